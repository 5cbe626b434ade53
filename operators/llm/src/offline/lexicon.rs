//! Word lists: what the offline teacher knows of English.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

/// Whether a word (in lower case) stands in a list.
pub(super) type Words = LazyLock<HashSet<&'static str>>;

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident: $list:expr;)*) => {
        $($(#[$doc])* pub(super) static $name: Words = LazyLock::new(|| $list.split_whitespace().collect());)*
    };
}

words! {
    /// Articles, demonstratives, quantifiers.
    DETERMINERS: "the a an this that these those each every any some no all both either neither another such much many few several most half its his her their our your my";
    /// Stand for a noun that came before.
    POSSESSIVES: "its his her their";
    SUBJECT_PRONOUNS: "it he she they";
    PRONOUNS: "it he she they him them her i we us you me this these those one ones someone somebody anyone anybody everyone everybody nobody nothing something anything everything himself herself itself themselves who whoever whose which what whatever there here none others";
    PREPOSITIONS: "of in on at by for with from to into onto over under above below between among through during before after until till since without within along across behind beyond beside besides near against around about towards toward upon off out up down per via inside outside despite except like as than throughout beneath amid opposite past unlike including following";
    /// Begin a clause that depends on another.
    SUBORDINATORS: "because although though while when whenever where wherever if unless since after before until once so that as whereas whether";
    CONJUNCTIONS: "and or but nor yet so";
    RELATIVES: "who which that whose whom where when";
    AUXILIARIES: "is are was were be been being am has have had having do does did can could may might must shall should will would cannot can't isn't aren't wasn't weren't doesn't don't didn't won't couldn't hasn't haven't hadn't shouldn't";
    BE: "is are was were am be been being isn't aren't wasn't weren't";
    MODALS: "can could may might must shall should will would cannot can't won't couldn't shouldn't";
    ADVERBS: "not never always often usually sometimes also only just even still already again once twice soon later then now today here there very too quite rather almost nearly about exactly together alone apart away back down up out off forward indoors outdoors inside outside instead however therefore thus hence moreover furthermore afterwards meanwhile otherwise nowadays originally ago long far well ever yet else perhaps maybe abroad aloud ashore aboard aside overnight upstairs downstairs twice mostly mainly least less more most so";
    COLOURS: "red orange yellow green blue purple violet pink brown black white grey gray gold golden silver crimson scarlet turquoise teal indigo magenta maroon beige ivory amber cyan lilac lavender ochre navy copper rose";
    MONTHS: "january february march april may june july august september october november december";
    WEEKDAYS: "monday tuesday wednesday thursday friday saturday sunday mondays tuesdays wednesdays thursdays fridays saturdays sundays";
    SEASONS: "spring summer autumn winter midsummer midwinter easter christmas";
    NUMBER_WORDS: "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion dozen";
    ORDINALS: "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth last";
    CURRENCIES: "crowns crown dollars dollar euros euro pounds pound pence cents shillings shilling francs franc marks guilders guilder ducats florins kroner krone yen rupees rubles roubles yuan";
    UNITS: "metre metres meter meters kilometre kilometres kilometer kilometers km cm mm m centimetre centimetres millimetre millimetres mile miles foot feet inch inches yard yards fathom fathoms league leagues acre acres hectare hectares litre litres liter liters gallon gallons gram grams kilogram kilograms kg tonne tonnes ton tons ounce ounces watt watts kilowatt kilowatts megawatt megawatts volt volts hertz kilohertz megahertz degree degrees percent knot knots bar bars second seconds minute minutes hour hours day days night nights week weeks month months year years decade decades century centuries candela lumens decibels bytes bits pixels hp horsepower mph mm²";
    DURATIONS: "second seconds minute minutes hour hours day days night nights week weeks month months year years decade decades century centuries";
    HONORIFICS: "mr mrs ms dr sir lady lord dame saint st captain professor prof king queen prince princess duke duchess emperor empress pope bishop general colonel admiral president senator judge father sister brother mayor mr. mrs. ms. dr. prof. rev. gen. col. capt. st. jr.";
    /// Nouns for people by what they are or do. Agent nouns in -er, -or, -ist, -ian, -man are found by their form.
    ROLES: "people person man woman men women boy girl child children crew guard guards chief clerk cook smith captain pilot scribe steward marshal monk nun nurse judge king queen prince princess emperor pope bishop priest poet apprentice apprentices widow widower uncle aunt nephew niece cousin son daughter father mother brother sister wife husband twin twins family staff team novice novices recruit recruits beginner volunteers volunteer friend friends pupil pupils student students guest guests hand hands crowd member members assistant assistants engineer engineers officer officers minister ministers soldier soldiers carpenter carpenters butcher gardener gardeners shepherd shepherds potter cooper banker lawyer lawyers author authors mayor tailor tailors doctor doctors professor professors senator senators ancestor ancestors brewer brewers plumber prisoner prisoners villager villagers passenger passengers stranger strangers newcomer newcomers fisher fishers weaver weavers founder founders writer writers ruler rulers settler settlers traveller travellers traveler travelers visitor visitors worker workers sailor sailors tutor heir heirs follower followers offender offenders keeper keepers mason masons ranger rangers cellist deacon warden wardens nobody everybody mate";
    /// Look like agent nouns and are not.
    NOT_ROLES: "hawser stopper marker starter carrier carriers header sleeper sleepers bearer bolster boarder buffer steamer tanker trawler cruiser scraper sharpener opener timer timers counters fastener tightener washer washers mixer mixers blower roaster toaster cleaver recorder recorders processor conductor reflector reflectors connector detector detectors compressor escalator elevators accumulator calculator radiator radiators ventilator ventilators mirrors water paper number tower summer winter river power letter matter order corner cover layer timber lever meter meters cellar pillar altar motor tractor rotor harbor doctorate silver copper leather feather weather ladder rubber hammer anchor mirror error door floor color honor labor labour flavour vapor sailor's border shoulder counter chamber center centre fiber amber ember embers cider butter pepper ginger dinner supper fever flower flowers shower thunder boiler boilers burner burners cylinder cylinders computer computers printer printers container trailer freighter roller rollers elevator generator generators regulator register registers ledger ledgers folder boulder alder elder order orders quarter quarters chapter charter master's poster starter liner ladders borders powder finger fingers cutter cutters cooler heater filter filters transmitter transmitters receiver receivers indicator indicators sensor censor tenor factor factors sector sectors vector territor major minor superior interior exterior list mist dust coast chest nest west east forest harvest exist assist artist's twist wrist guest request interest interests rest best test dishwasher lighter bunker locker lockers drawer drawers hopper hoppers conveyor barometer thermometer hygrometer speedometer manner shutter shutters banner banners cleaner slipper slippers collar dollar sugar vinegar grammar calendar guitar radar pier piers tier tiers former latter other others either neither rather another over under after never ever however together per super inner outer upper lower later earlier better longer higher larger smaller older newer younger greater fewer closer further farther deeper wider gather whether librarian's wester tender";
    /// Nouns that make a capitalised name a place.
    PLACES: "city town village island isle bay river lake hill mountain mount valley street road lane square park forest coast harbour harbor port bridge county country state district region province sea ocean head point cape ledge skerry hythe rock rocks cliff stack ridge field fields quay wharf pier moor marsh fen gate hall house castle tower station church chapel abbey university school college museum library stadium airport mill farm strait sound channel canal peninsula desert north south east west";
    ORGANISATIONS: "company society institute association league conference council committee ministry department agency club band team university college party union bank group corporation foundation trust order guild army navy church commission authority office board parliament senate academy federation network press";
    /// Given names: a capitalised word after or alone is a person.
    GIVEN_NAMES: "aaron abel abigail abraham ada adam adele adrian agatha agnes alan albert alec alex alexander alfred alice alison alma amanda amelia amy andrea andrew angela anna anne annie anthony antonio arnold arthur astrid audrey august augustus barbara barnaby basil beatrice ben benedict benjamin bernard bertha betty bill bob boris brenda brian bruno calvin camille carl carla carlos carol caroline catherine cecil cecilia cedric charles charlie charlotte christian christina christine christopher clara clarence claude claudia clement clive conrad constance cora cornelius cyril daniel daphne david deborah denis dennis diana dora doris dorothy douglas duncan dylan edgar edith edmund edna edward edwin eleanor elias elisabeth elizabeth ella ellen elliot elsa elsie emil emily emma enid eric erik erika ernest esther ethel eugene eva eve evelyn felix fergus fernando fiona florence frances francis frank franz fred frederick freya gabriel gareth genevieve geoffrey george gerald gertrude gilbert giles gordon grace graham greta gregory greta gustav guy hannah hans harold harriet harry hazel heather hector helen helena henri henry herbert herman hilda horace howard hubert hugh hugo humphrey ian ida igor ines ingrid irene iris irma isaac isabel isabella isaiah ivan ivy jack jacob jacques james jan jane janet jasper jean jeffrey jennifer jenny jeremy jerome jessica jim joan joanna joe joel johan johann johannes john jon jonas jonathan joseph josephine joshua joyce juan judith julia julian julie juliet julius june karen karl kate katherine kathleen kenneth kevin klaus lars laura laurence lavinia lawrence lena leo leon leonard leopold leslie lewis lily linda lionel lisa lloyd lorenz louis louisa louise lucas lucia lucy ludwig luigi luis luke lydia mabel madeleine magda magnus malcolm marcel marcus margaret maria marian marianne marie marina mario marion marjorie mark marta martha martin mary mathias matilda matthew maud maurice max maximilian may michael michel miguel mildred miles millicent minna miriam molly monica morris mortimer muriel nadia nancy naomi natalie nathan nathaniel neil nell nicholas nicola nigel nils nina noah nora norman octavia odette olaf olga oliver olive olivia orla oscar oswald otto owen pamela pascal patricia patrick paul paula pauline pedro penelope percy peter petra philip phoebe phyllis pierre priscilla quentin rachel ralph ramon raymond rebecca reginald rene rhoda richard rita robert robin roger roland rosa rosalind rose rosemary rowena roy rudolf rufus rupert ruth samuel sandra sara sarah sebastian selma sheila sidney sigmund sigrid silas silvia simon sofia sophia sophie stanley stella stephen steven stuart susan sven sylvia teodor teresa thaddeus thelma theo theodor theodore theresa thomas tilda tim timothy tobias tom tomas ulrich ursula valentine valerie vera vernon veronica victor victoria vincent viola violet virginia vivian walter wanda warren wendy werner wilfred wilhelm will william wilma winifred winston xavier yvonne zachary zoe peyton cam ron jerry ken nick jordan steve kelly justin tony mike chris jeff greg gary kyle scott ryan jason brandon derek";
    /// Verbs in their base form, to tell verbs from nouns and to take inflected forms back.
    VERBS: "abandon abolish absorb accept accompany account achieve acquire act adapt add address admit adopt advance advise affect agree aid aim allow alter announce answer appear apply appoint approach approve argue arise arrange arrest arrive ask assemble assert assign assist assume attach attack attain attempt attend attract avoid award back bake ban bear beat become begin believe belong bequeath bind blow board boast boil bolt border borrow bound break breed bring broadcast brush build burn bury buy calculate call capture care carry cart carve cast catch cause celebrate change charge check choose circulate cite claim clean clear climb close coat coin collapse collect combine come command commission commit communicate compare compete complete comprise compose concern conclude conduct confirm connect conquer consider consist consolidate construct consume contain continue contribute control convert convince cook cool copy cost count cover crack create criticise criticize cross cultivate cure cut damage date deal decide declare decline decorate decrease dedicate defeat defend define deliver demand demolish deny depart depend deposit derive descend describe deserve design destroy determine develop devise devote die differ dig direct disagree disappear discover discuss dismiss display dissolve distinguish distribute divide donate double draft drag drain draw dress drift drill drink drive drop drown dry earn eat edit educate elect eliminate emerge emit emphasise emphasize employ empty enable encounter encourage end endow engage engrave enjoy enlarge enlist ensure enter equip erect escape establish estimate evolve examine exceed exchange exclude execute exhibit exist expand expect experience explain explode explore export express extend face fade fail fall farm fasten favor favour feature feed feel fetch fight fill film filter finance find fine finish fire fish fit fix flee float flood flow fly focus follow forbid force forecast forge forget form found frame free freeze function fund gain gather generate get give glow gnaw go govern grant graze greet grind group grow guard guide hand handle hang happen hatch haul head heat help hide hire hit hoist hold honor honour host house hunt identify ignite illustrate implement imply import impose improve include incorporate increase indicate influence inform inhabit inherit inscribe insist inspect inspire install instruct intend introduce invade invent invest invite involve isolate issue join judge jump justify keep kill knit knock know label lack land last launch lay lead lean learn lease leave lecture lend lie lift light like limit line link list listen live load locate lock lodge look lose love lower lubricate maintain make man manage manufacture mark marry mask match matter mean measure meet melt mend mention merge migrate mine miss mix mount move multiply murder name need negotiate note notice number obey object observe obtain occupy occur offer oil open operate oppose order organise organize originate overlook owe own pack paint paper park participate pass paste patrol pay peel perform permit persecute persuade photograph pick pierce pilot pin pipe place plan plant play plough point polish post pour power practise practice pray preach precede predict prefer prepare present preserve press prevent print proceed process proclaim produce prohibit project promise promote propel propose prosecute protect protest prove provide publish pull pump punish purchase push put raise range rank reach react read realise realize rebuild receive recognise recognize recommend record recover recruit reduce refer reflect reform refuse regard register regulate reign reject relate release rely remain remember remind remove renew rename renovate rent repair repeat replace report represent require rescue reserve reside resign resist resolve respond rest restore restrict result retain retire return reveal revise ride ring rise roast roll rotate row rub rule run sail salt save saw say scare schedule score scour scrub seal search seat secure see seek seize select sell send separate serve set settle shake shape share sharpen shave shelter shift shine ship shoot show shut sign signal sing sink sit sketch sleep slide slow smell smoke snap soak solve sound sow span spare speak specialise specialize specify spend spin split sponsor spread spring stack stain stamp stand start state stay steal steam steer stem step stick stir stock stop store strap strengthen stretch strike struggle study submit succeed suffer suggest suit summon supervise supply support surround survey survive suspect suspend sustain swear sweep swim swing switch symbolise take talk taste teach tear tell tend test thank think threaten throw tie time touch tour tow trace track trade train transfer transform translate transmit transport travel treat trigger trim trust try tune turn twist type undergo understand undertake unite use vary ventilate visit vote wait wake walk want warm warn wash watch water wear weave weigh weld welcome widen win wind wipe withdraw witness work worry wrap write yield chronicle greases grease buff whet forewarn tar thatch constitute encompass accomplish span total bid consider characterise characterize contrast correspond cooperate coincide compete conform dominate diverge elaborate emigrate immigrate exert flourish formulate foster fulfil hinder hamper illuminate inaugurate incline inflict inherit innovate insulate interpret intervene irrigate legislate memorise navigate nominate offset outlaw outline oversee penetrate persist populate possess preside prevail prompt quote ratify rebel recite reckon reconstruct recur redesign refine refurbish reinforce rely remodel render repeal resemble resettle revert revive rival sanction scatter shelter simplify stimulate stretch substitute succumb supersede surpass surrender tackle terminate testify thrive triumph trouble unveil urge utilise utilize violate withstand yield host headline feature premiere overtake outnumber tolerate translate underlie uphold waive swallow tap grip smuggle simmer repaint soften whistle harden tighten loosen deepen brighten darken repaint relay sip chew bark howl croak wag nest hatch mow rake thresh winnow hoe prune graft milk shear spin darn stitch hem mend polish rinse wring iron fold stow moor anchor paddle row sail tack haul hoist splice reel coil unwind rewind enamel gild plaster tile pave whitewash varnish bequeath foretell number yield taste outshine spell swivel tilt wobble hum purr rattle creak squeak hiss rumble accuse activate adjust administer admire adorn advertise afford amount amuse analyse analyze annoy appeal appreciate assess assure attribute balance bang bathe battle beg behave benefit betray bite blame bless block bloom bother bounce brake breathe brew bubble bump burst calm camp cancel chase chat cheer chop clap classify cling clip collide comfort commemorate compensate complain compress conceal concentrate condemn condense confess confine confuse conserve consult contact convey convict correct corrode crash crawl creep crush cry curl curve cycle dance dare decay delay demonstrate depict deprive detect deteriorate devastate devour dictate dip disappoint disguise dismantle dispatch dispute disrupt disturb dive divert dread dump dust echo elevate embark embrace embroider endure enforce enhance enrich enrol entertain erupt escort evacuate evaporate exaggerate excavate excel exercise exhaust expire exploit expose extract fear ferment ferry fine flap flash flatten fling foam forgive fortify forward fry fuel fulfill furnish gamble gaze glance glide glitter glue grab grasp groan grumble guarantee guess gush halt hammer hasten haunt hesitate hike hint hop hope hug hurry hurt imagine impress imprison infect inflate inject injure insert insure integrate intercept interrupt interview jam jog joke juggle kick kiss kneel knot laugh leap lick linger loop loot lure march master mature merit mislead mistake moan model monitor mourn mumble nail narrow nod nourish offend omit orbit overcome overflow overhaul overlap overrun overturn parade pardon peck perceive perch perish pile pinch plead please pledge plunge poison poke pollute portray pose postpone pound presume pretend prick probe procure profit pronounce prosper puff punch puncture pursue puzzle queue quit radiate raid rear recall recede reclaim reconcile recycle refill refresh regain regret rehearse rejoice relax relieve relocate remark reopen repay repel reply reproduce resume retell retreat reunite reverse review reward ripen risk roam roar rob rot ruin rush rust sacrifice saddle salute scan scold scoop scrape scratch scream screw scribble shed shiver shock shout shove shovel shrink shuffle sigh skip slam slap slip slope smash smile smooth sneak sneeze sniff snore soar sob soothe sort spark sparkle spawn speed spice splash spoil spray sprinkle sprout spy squeeze stagger stall stare starve sting stoke straighten strain stroll stumble subscribe suck sue superintend surge surprise swap swarm sway sweat swell tame taper tease telephone tempt thaw thump tick tickle toast topple toss trail trap tread treasure tremble trickle trot tug tumble undo unfold unload unlock unpack untie update upgrade upset usher utter vanish venture vibrate wade wail wander warp waste weed whisper wink wire wish wither worsen worship wreck wrestle yawn yell";
    /// Fill a sentence and say nothing.
    STOP: "the a an this that these those is are was were be been being am has have had having do does did can could may might must shall should will would of in on at by for with from to into onto and or but nor so yet as than it its he she they his her their them him who which what where when why how whom whose there here not no also only just very too most more some any each every all both such then over under up down out off about after before during until since between through into if because while although though whether i we you our your one ones other others another same own per via according text account";
}

/// Irregular verbs: base, past, participle.
const IRREGULAR: &str = "arise arose arisen|be was been|bear bore borne|beat beat beaten|become became become|begin began begun|bend bent bent|bind bound bound|blow blew blown|break broke broken|breed bred bred|bring brought brought|broadcast broadcast broadcast|build built built|bite bit bitten|burst burst burst|hurt hurt hurt|overcome overcame overcome|forgive forgave forgiven|fling flung flung|leap leapt leapt|mistake mistook mistaken|mislead misled misled|overrun overran overrun|quit quit quit|retell retold retold|repay repaid repaid|shed shed shed|speed sped sped|spit spat spat|sting stung stung|swell swelled swollen|undo undid undone|upset upset upset|foretell foretold foretold|relay relaid relaid|bid bid bid|overtake overtook overtaken|underlie underlay underlain|uphold upheld upheld|burn burnt burnt|buy bought bought|cast cast cast|catch caught caught|choose chose chosen|come came come|cost cost cost|cut cut cut|deal dealt dealt|dig dug dug|draw drew drawn|drink drank drunk|drive drove driven|eat ate eaten|fall fell fallen|feed fed fed|feel felt felt|fight fought fought|find found found|flee fled fled|fly flew flown|forbid forbade forbidden|forecast forecast forecast|forget forgot forgotten|freeze froze frozen|get got got|give gave given|go went gone|grind ground ground|grow grew grown|hang hung hung|have had had|hear heard heard|hide hid hidden|hit hit hit|hold held held|keep kept kept|knit knitted knitted|know knew known|lay laid laid|lead led led|lean leant leant|learn learnt learnt|leave left left|lend lent lent|let let let|lie lay lain|light lit lit|lose lost lost|make made made|mean meant meant|meet met met|pay paid paid|put put put|read read read|rebuild rebuilt rebuilt|ride rode ridden|ring rang rung|rise rose risen|run ran run|saw sawed sawn|say said said|see saw seen|seek sought sought|sell sold sold|send sent sent|set set set|sew sewed sewn|shake shook shaken|shine shone shone|shoot shot shot|show showed shown|shut shut shut|sing sang sung|sink sank sunk|sit sat sat|sleep slept slept|slide slid slid|sow sowed sown|speak spoke spoken|spend spent spent|spin spun spun|split split split|spread spread spread|spring sprang sprung|stand stood stood|steal stole stolen|stick stuck stuck|strike struck struck|swear swore sworn|sweep swept swept|swim swam swum|swing swung swung|take took taken|teach taught taught|tear tore torn|tell told told|think thought thought|throw threw thrown|undergo underwent undergone|understand understood understood|undertake undertook undertaken|wake woke woken|wear wore worn|weave wove woven|win won won|wind wound wound|withdraw withdrew withdrawn|write wrote written|overlook overlooked overlooked|smell smelt smelt|weep wept wept|dwell dwelt dwelt|bequeath bequeathed bequeathed|forego forewent foregone|withstand withstood withstood|overthrow overthrew overthrown|oversee oversaw overseen|bleed bled bled|cling clung clung|creep crept crept|sling slung slung|string strung strung|stride strode stridden|tread trod trodden|kneel knelt knelt|shrink shrank shrunk|spill spilt spilt|weld welded welded";

/// An inflected verb form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Base,
    ThirdPerson,
    Past,
    Participle,
    /// A past that is its own participle.
    PastOrParticiple,
    Ing,
}

static IRREGULARS: LazyLock<Vec<[&'static str; 3]>> = LazyLock::new(|| {
    let forms = |entry: &'static str| {
        let mut forms = entry.split(' ');
        Some([forms.next()?, forms.next()?, forms.next()?])
    };
    IRREGULAR.split('|').filter_map(forms).collect()
});

/// All forms of all known verbs: form to base and kind.
static FORMS: LazyLock<HashMap<String, (&'static str, Form)>> = LazyLock::new(|| {
    let mut forms = HashMap::new();
    let irregular: HashMap<&str, &[&'static str; 3]> = IRREGULARS.iter().map(|verb| (verb[0], verb)).collect();
    let mut bases: Vec<&'static str> = VERBS.iter().copied().chain(IRREGULARS.iter().map(|verb| verb[0])).collect();
    bases.sort_unstable();
    bases.dedup();
    for base in bases.iter().copied() {
        forms.insert(third_person(base), (base, Form::ThirdPerson));
        forms.insert(ing(base), (base, Form::Ing));
        forms.entry(regular_past(base)).or_insert((base, Form::PastOrParticiple));
        if let Some([_, past, participle]) = irregular.get(base) {
            let form = if past == participle { Form::PastOrParticiple } else { Form::Past };
            forms.insert((*past).to_owned(), (base, form));
            // "come" and "run" are met as a base far more often than as a participle.
            if past != participle && participle != &base {
                forms.insert((*participle).to_owned(), (base, Form::Participle));
            }
        }
    }
    // A base that is also another verb's past (found, saw, lay, wound) is looked up as the past: texts tell of the past.
    for base in bases {
        forms.entry(base.to_owned()).or_insert((base, Form::Base));
    }
    forms
});

/// Base and form of a verb (in lower case), known or regular in -ed.
pub(super) fn verb(word: &str) -> Option<(String, Form)> {
    if word == "born" {
        return Some(("bear".to_owned(), Form::Participle));
    }
    if let Some((base, form)) = FORMS.get(word) {
        return Some(((*base).to_owned(), *form));
    }
    for (end, base) in [("izes", "ize"), ("ises", "ise"), ("ifies", "ify")] {
        if let Some(stem) = word.strip_suffix(end).filter(|stem| stem.len() > 2) {
            return Some((format!("{stem}{base}"), Form::ThirdPerson));
        }
    }
    let stem = word.strip_suffix("ed").filter(|stem| stem.len() >= 3 && !stem.ends_with('e'))?;
    Some((base_of_stem(stem), Form::PastOrParticiple))
}

/// The base of a verb of which only the stem before -ed is known.
fn base_of_stem(stem: &str) -> String {
    let bytes = stem.as_bytes();
    let last = bytes[bytes.len() - 1];
    let doubled = bytes.len() > 3 && last == bytes[bytes.len() - 2] && !b"lsfz".contains(&last);
    if doubled {
        return stem[..stem.len() - 1].to_owned();
    }
    if let Some(stem) = stem.strip_suffix('i') {
        return format!("{stem}y");
    }
    let mute_e = [
        "at", "iz", "is", "v", "c", "g", "u", "rs", "ns", "ir", "ur", "or", "dl", "bl", "pl", "gl", "tl", "kl", "ut", "id", "od",
        "ud",
    ];
    if mute_e.iter().any(|end| stem.ends_with(end)) && !stem.ends_with("ng") {
        return format!("{stem}e");
    }
    stem.to_owned()
}

fn is_vowel(byte: u8) -> bool {
    b"aeiou".contains(&byte)
}

/// Whether the last consonant doubles before -ed and -ing: one syllable that ends in one vowel and one consonant.
fn doubles(base: &str) -> bool {
    let bytes = base.as_bytes();
    let n = bytes.len();
    if matches!(
        base,
        "refer"
            | "commit"
            | "admit"
            | "permit"
            | "submit"
            | "transmit"
            | "transfer"
            | "control"
            | "prefer"
            | "occur"
            | "propel"
            | "emit"
            | "equip"
            | "travel"
            | "label"
            | "signal"
    ) {
        return true;
    }
    n >= 3
        && !is_vowel(bytes[n - 1])
        && !b"wxy".contains(&bytes[n - 1])
        && is_vowel(bytes[n - 2])
        && !is_vowel(bytes[n - 3])
        && bytes[..n - 2].iter().filter(|b| is_vowel(**b)).count() == 0
}

fn last_char(text: &str) -> &str {
    &text[text.len() - 1..]
}

fn regular_past(base: &str) -> String {
    if base.ends_with('e') {
        format!("{base}d")
    } else if ends_in_consonant_y(base) {
        format!("{}ied", &base[..base.len() - 1])
    } else if doubles(base) {
        format!("{base}{}ed", last_char(base))
    } else {
        format!("{base}ed")
    }
}

fn ing(base: &str) -> String {
    if let Some(stem) = base.strip_suffix("ie") {
        format!("{stem}ying")
    } else if base.ends_with('e') && !base.ends_with("ee") && base != "be" {
        format!("{}ing", &base[..base.len() - 1])
    } else if doubles(base) {
        format!("{base}{}ing", last_char(base))
    } else {
        format!("{base}ing")
    }
}

fn ends_in_consonant_y(base: &str) -> bool {
    let bytes = base.as_bytes();
    bytes.len() > 1 && bytes[bytes.len() - 1] == b'y' && !is_vowel(bytes[bytes.len() - 2])
}

/// The form for he, she and it.
pub(super) fn third_person(base: &str) -> String {
    match base {
        "be" => "is".to_owned(),
        "have" => "has".to_owned(),
        "do" | "go" => format!("{base}es"),
        _ if ends_in_consonant_y(base) => format!("{}ies", &base[..base.len() - 1]),
        _ if ["s", "x", "z", "ch", "sh"].iter().any(|end| base.ends_with(end)) => {
            format!("{base}es")
        }
        _ => format!("{base}s"),
    }
}

/// The past participle of a verb.
pub(super) fn participle(base: &str) -> String {
    irregular(base).map_or_else(|| regular_past(base), |verb| verb[2].to_owned())
}

/// The simple past of a verb.
pub(super) fn past(base: &str) -> String {
    irregular(base).map_or_else(|| regular_past(base), |verb| verb[1].to_owned())
}

fn irregular(base: &str) -> Option<&'static [&'static str; 3]> {
    IRREGULARS.iter().find(|verb| verb[0] == base)
}

/// Whether a noun (in lower case) names people by what they are or do.
pub(super) fn is_role(noun: &str) -> bool {
    let singular = noun.strip_suffix('s').filter(|stem| stem.len() > 3 && !stem.ends_with('s')).unwrap_or(noun);
    if NOT_ROLES.contains(noun) || NOT_ROLES.contains(singular) {
        return false;
    }
    ROLES.contains(noun)
        || ROLES.contains(singular)
        || singular.len() > 4 && ["ist", "ian", "man", "woman", "eer"].iter().any(|end| singular.ends_with(end))
        || is_agent(singular)
        || noun.ends_with("men")
}

/// Whether a noun is a known verb's agent: "keeper", "inspector", "baker", "runner".
fn is_agent(noun: &str) -> bool {
    let Some(stem) = noun.strip_suffix("er").or_else(|| noun.strip_suffix("or")) else {
        return false;
    };
    let undoubled = stem.len() > 3 && stem.as_bytes()[stem.len() - 1] == stem.as_bytes()[stem.len() - 2];
    VERBS.contains(stem) || VERBS.contains(format!("{stem}e").as_str()) || undoubled && VERBS.contains(&stem[..stem.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_go_back_to_their_base() {
        for (form, base) in [
            ("built", "build"),
            ("opened", "open"),
            ("used", "use"),
            ("stopped", "stop"),
            ("carries", "carry"),
            ("watches", "watch"),
            ("founded", "found"),
            ("lit", "light"),
            ("running", "run"),
            ("lies", "lie"),
            ("tied", "tie"),
            ("dying", "die"),
            ("commemorated", "commemorate"),
            ("plated", "plate"),
            ("ferried", "ferry"),
            ("goes", "go"),
            ("caught", "catch"),
            ("refurbished", "refurbish"),
        ] {
            assert_eq!(verb(form).map(|(found, _)| found).as_deref(), Some(base), "{form}");
        }
        assert_eq!(verb("tower"), None);
        assert_eq!(verb("need").map(|(_, form)| form), Some(Form::Base));
        assert_eq!(verb("written").map(|(_, form)| form), Some(Form::Participle));
    }

    #[test]
    fn forms_are_made() {
        assert_eq!((participle("write").as_str(), past("write").as_str()), ("written", "wrote"));
        assert_eq!((participle("stop").as_str(), third_person("carry").as_str()), ("stopped", "carries"));
        assert_eq!(third_person("watch"), "watches");
    }

    #[test]
    fn people_by_what_they_do() {
        for role in ["keeper", "engineers", "botanist", "crew", "boatman"] {
            assert!(is_role(role), "{role}");
        }
        for thing in ["tower", "water", "ledger", "letters", "boilers", "forest"] {
            assert!(!is_role(thing), "{thing}");
        }
    }
}

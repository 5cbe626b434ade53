//! What kind of word a word is, and where noun phrases and verb groups lie in a row of words.

use std::ops::Range;

use super::lexicon::{
    ADVERBS, AUXILIARIES, BE, CONJUNCTIONS, DETERMINERS, Form, MODALS, MONTHS, NUMBER_WORDS, PREPOSITIONS, PRONOUNS, RELATIVES,
    SUBJECT_PRONOUNS, SUBORDINATORS, verb,
};
use super::text::Token;

pub(super) fn is_determiner(token: &Token) -> bool {
    DETERMINERS.contains(token.lower().as_str())
}

pub(super) fn is_preposition(token: &Token) -> bool {
    PREPOSITIONS.contains(token.lower().as_str())
}

pub(super) fn is_number(token: &Token) -> bool {
    token.is_number() || NUMBER_WORDS.contains(token.lower().as_str()) || currency_amount(&token.text)
}

fn currency_amount(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| matches!(c, '$' | '£' | '€' | '¥')) && chars.next().is_some_and(|c| c.is_ascii_digit())
}

/// A capitalised word that isn't capitalised for standing first.
pub(super) fn is_name(tokens: &[Token], at: usize) -> bool {
    let token = &tokens[at];
    if !token.is_capital() {
        return false;
    }
    let lower = token.lower();
    let lower = lower.as_str();
    let closed = DETERMINERS.contains(lower)
        || PREPOSITIONS.contains(lower)
        || PRONOUNS.contains(lower)
        || SUBORDINATORS.contains(lower)
        || CONJUNCTIONS.contains(lower)
        || ADVERBS.contains(lower)
        || NUMBER_WORDS.contains(lower)
        || AUXILIARIES.contains(lower) && at == 0;
    !closed || MONTHS.contains(lower)
}

pub(super) fn is_auxiliary(token: &Token) -> bool {
    !token.is_capital() && AUXILIARIES.contains(token.text.as_str())
}

/// Words that end a noun phrase when they come inside it.
fn bounds_phrase(token: &Token) -> bool {
    let lower = token.lower();
    let lower = lower.as_str();
    !token.is_word()
        || is_preposition(token)
        || CONJUNCTIONS.contains(lower)
        || PRONOUNS.contains(lower)
        || SUBORDINATORS.contains(lower)
        || RELATIVES.contains(lower)
        || is_auxiliary(token)
        || ADVERBS.contains(lower) && !token.is_capital()
        || is_ly(token)
}

/// Whether a word can only be a plural or a mass of people, so that a base form after it may be its verb.
fn is_plural(token: &Token) -> bool {
    let lower = token.lower();
    matches!(
        lower.as_str(),
        "that"
            | "which"
            | "people"
            | "men"
            | "women"
            | "children"
            | "they"
            | "all"
            | "both"
            | "who"
            | "some"
            | "many"
            | "crew"
            | "police"
            | "these"
            | "those"
            | "others"
            | "mice"
            | "geese"
            | "sheep"
            | "oxen"
    ) || is_plural_form(&lower)
}

/// Whether a noun (in lower case) has the form of a plural.
pub(super) fn is_plural_form(noun: &str) -> bool {
    let singular = ["ss", "us", "is", "gas", "lens", "canvas", "atlas", "news", "'s", "’s"].iter().any(|end| noun.ends_with(end));
    noun.len() > 3 && noun.ends_with('s') && !singular
        || matches!(noun, "people" | "men" | "women" | "children" | "mice" | "geese" | "oxen" | "feet" | "teeth")
}

/// Whether a finite verb group starts at `at`. `subject` is where the subject starts.
pub(super) fn is_finite_verb(tokens: &[Token], subject: usize, at: usize) -> bool {
    let token = &tokens[at];
    if token.is_capital() || !token.is_word() || at <= subject {
        return false;
    }
    let lower = token.text.as_str();
    let before = &tokens[at - 1];
    let before_lower = before.lower();
    if AUXILIARIES.contains(lower) {
        let attributive = is_determiner(before) && matches!(lower, "can" | "will" | "might");
        return !matches!(lower, "be" | "been" | "being" | "having") && !attributive;
    }
    let Some((_, form)) = verb(lower) else {
        return false;
    };
    let after_noun = before.is_word()
        && (!is_determiner(before)
            || matches!(before_lower.as_str(), "all" | "both" | "some" | "many" | "most" | "few" | "each"))
        && (!is_preposition(before) || before_lower == "down")
        && before_lower != "to"
        && !is_auxiliary(before)
        && !CONJUNCTIONS.contains(before_lower.as_str());
    let open = before.text == "," || before.text == "\"" || before.text == "”" || before.text == ")";
    let after_relative = matches!(before_lower.as_str(), "who" | "which" | "that");
    if open && tokens.get(at + 1).is_none_or(|next| !next.is_word()) {
        return false;
    }
    if !after_noun && !open && !after_relative && !SUBJECT_PRONOUNS.contains(before_lower.as_str()) {
        return false;
    }
    let next = tokens.get(at + 1);
    let starts_complement = next.is_none_or(|next| {
        is_determiner(next)
            || is_number(next)
            || is_preposition(next)
            || !next.is_word()
            || next.is_capital()
            || ADVERBS.contains(next.lower().as_str())
            || PRONOUNS.contains(next.lower().as_str())
            || SUBORDINATORS.contains(next.lower().as_str())
            || CONJUNCTIONS.contains(next.lower().as_str())
            || matches!(next.text.as_str(), "early" | "late" | "high" | "low" | "fast" | "straight")
    });
    let next_is_verb = next.is_some_and(|next| {
        // "cooks baked trout": a participle before a noun is no verb.
        let attributive = tokens.get(at + 2).is_some_and(|third| third.is_word() && !is_preposition(third) && !is_ly(third));
        is_auxiliary(next) || matches!(verb(&next.text), Some((_, Form::Past))) || next.lower().ends_with("ed") && !attributive
    });
    match form {
        Form::Past => !next_is_verb || starts_complement,
        Form::PastOrParticiple => {
            // "the tower built in 1912 has": another verb follows before any mark, so this one only describes.
            let rest = tokens[at + 1..].iter().take_while(|token| token.is_word());
            let finite_later = rest.clone().enumerate().any(|(n, token)| {
                let object = tokens.get(at + 2 + n).is_some_and(is_determiner);
                is_auxiliary(token) && !matches!(token.text.as_str(), "be" | "been" | "being")
                    || matches!(verb(&token.text), Some((_, Form::Past)))
                    || matches!(verb(&token.text), Some((_, Form::PastOrParticiple | Form::ThirdPerson)))
                        && object
                        && !token.is_capital()
            });
            let clause_between = rest.clone().any(|token| {
                let lower = token.lower();
                SUBORDINATORS.contains(lower.as_str()) && !PREPOSITIONS.contains(lower.as_str())
                    || RELATIVES.contains(lower.as_str())
                    || CONJUNCTIONS.contains(lower.as_str())
            });
            starts_complement && (!finite_later || clause_between)
                || !starts_complement && !finite_later && (after_noun || open) && !is_adjective_like(before)
        }
        Form::ThirdPerson => !next_is_verb && (starts_complement || !is_adjective_like(before)) && !is_number(before),
        Form::Base => {
            // "the wheels of Mother Rasp weigh": what makes the subject plural may stand further back.
            let plural = is_plural(before)
                || (starts_complement || next.is_some_and(|next| is_plural_form(&next.text)))
                    && next.is_some()
                    && tokens[subject..at].iter().any(|token| is_plural(token) || token.text == "and")
                    && !is_adjective_like(before);
            plural && !next_is_verb && (starts_complement || lower.len() > 2) && !is_noun_here(tokens, at)
        }
        Form::Participle | Form::Ing => false,
    }
}

/// A base form that more likely is a noun: "the lamp post", "3 people work" stays a verb by its plural.
fn is_noun_here(tokens: &[Token], at: usize) -> bool {
    let of = |next: &Token| {
        next.text == "of"
            && !matches!(
                tokens[at].text.as_str(),
                "consist" | "think" | "speak" | "die" | "approve" | "dispose" | "dream" | "tell"
            )
    };
    tokens.get(at + 1).is_some_and(|next| is_auxiliary(next) || of(next))
}

/// Whether a word looks like an adjective: a noun is then still to come.
pub(super) fn is_adjective_like(token: &Token) -> bool {
    let lower = token.lower();
    super::lexicon::COLOURS.contains(lower.as_str())
        || super::lexicon::ORDINALS.contains(lower.as_str())
        || ["al", "ous", "ful", "ic", "ive", "able", "ible", "ish", "less"]
            .iter()
            .any(|end| lower.ends_with(end) && lower.len() > end.len() + 2)
        || matches!(
            lower.as_str(),
            "old"
                | "new"
                | "big"
                | "small"
                | "large"
                | "little"
                | "great"
                | "high"
                | "low"
                | "long"
                | "short"
                | "tall"
                | "wide"
                | "good"
                | "bad"
                | "main"
                | "own"
                | "only"
                | "same"
                | "other"
                | "young"
                | "late"
                | "early"
                | "whole"
                | "heavy"
                | "light"
                | "dark"
                | "dry"
                | "wet"
                | "hot"
                | "cold"
                | "warm"
                | "iron"
                | "wooden"
                | "stone"
                | "steel"
                | "brass"
                | "tin"
        )
}

/// A noun phrase without what hangs on it: determiner, numbers, adjectives, nouns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Phrase {
    pub(super) range: Range<usize>,
    /// The preposition right before it, if any.
    pub(super) preposition: Option<usize>,
}

/// The noun phrases in a row of words that holds no finite verb.
pub(super) fn phrases(tokens: &[Token]) -> Vec<Phrase> {
    let mut out: Vec<Phrase> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let describes = at > 0 && tokens[at - 1].is_word() && starts_description(tokens, at);
        let infinitive = at > 0
            && tokens[at - 1].text == "to"
            && !tokens[at].is_capital()
            && matches!(verb(&tokens[at].text), Some((_, Form::Base)));
        if bounds_phrase(&tokens[at]) && !is_name(tokens, at) || infinitive || describes || is_surely_verb(tokens, 0, at) {
            at += 1;
            continue;
        }
        let start = at;
        if is_determiner(&tokens[at]) {
            at += 1;
        }
        // "the most populous city", "a newly built house"
        let graded = |at: usize| at == start + 1 && is_determiner(&tokens[start]) && is_grade(&tokens[at]);
        while at < tokens.len()
            && (graded(at) || !is_determiner(&tokens[at]) && (!bounds_phrase(&tokens[at]) || name_goes_on(tokens, start, at)))
        {
            if at > start && (starts_description(tokens, at) || is_surely_verb(tokens, start, at)) {
                break;
            }
            at += 1;
        }
        if at == start || at == start + 1 && is_determiner(&tokens[start]) {
            at = start + 1;
            continue;
        }
        let preposition = start.checked_sub(1).filter(|before| is_preposition(&tokens[*before]));
        out.push(Phrase { range: start..at, preposition });
    }
    out
}

/// An adverb that can stand between an article and an adjective.
fn is_grade(token: &Token) -> bool {
    is_ly(token) || matches!(token.text.as_str(), "most" | "more" | "least" | "less" | "very" | "too" | "once" | "still" | "now")
}

/// Among noun phrases, a word that can be a plural noun ("steps") is a verb only if an object follows.
fn is_surely_verb(tokens: &[Token], start: usize, at: usize) -> bool {
    let object =
        || tokens.get(at + 1).is_some_and(|next| is_determiner(next) || is_number(next) || PRONOUNS.contains(next.text.as_str()));
    is_finite_verb(tokens, start, at)
        && (is_auxiliary(&tokens[at])
            || matches!(verb(&tokens[at].text), Some((_, Form::Past | Form::PastOrParticiple)))
            || object())
}

/// "Isle of Man", "University of the Arts": a small word between two capitals of one name.
fn name_goes_on(tokens: &[Token], start: usize, at: usize) -> bool {
    at > start
        && matches!(tokens[at].text.as_str(), "of" | "the" | "upon" | "&" | "de" | "la" | "van" | "von")
        && tokens[at].text != "the"
        && is_name(tokens, at - 1)
        && tokens.get(at + 1).is_some_and(Token::is_capital)
}

/// Whether a description of the noun before starts here, though no small word says so: a participle with a complement ("a
/// volume bound in calfskin"), or an -ing form with its object.
fn starts_description(tokens: &[Token], at: usize) -> bool {
    let token = &tokens[at];
    let next = tokens.get(at + 1);
    match verb(&token.text) {
        Some((_, Form::PastOrParticiple | Form::Participle)) => {
            !token.is_capital()
                && next.is_none_or(|next| is_preposition(next) || !next.is_word() || ADVERBS.contains(next.lower().as_str()))
        }
        Some((_, Form::Ing)) => !token.is_capital() && next.is_some_and(|next| is_determiner(next) || is_number(next)),
        _ => false,
    }
}

/// A verb group: auxiliaries, adverbs between, and the main verb last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VerbGroup {
    pub(super) tokens: Vec<Token>,
    /// Base of the main verb.
    pub(super) base: String,
    /// Form of the first verb if it is the main verb and no form of be.
    pub(super) lexical: Option<Form>,
    pub(super) passive: bool,
    pub(super) copula: bool,
}

/// Reads the verb group that starts at `at` and gives its end.
pub(super) fn verb_group(tokens: &[Token], at: usize) -> Option<(VerbGroup, usize)> {
    let first = tokens[at].lower();
    if !AUXILIARIES.contains(first.as_str()) {
        let (base, form) = verb(&first)?;
        let group = VerbGroup { tokens: vec![tokens[at].clone()], base, lexical: Some(form), passive: false, copula: false };
        return Some((group, at + 1));
    }
    let mut end = at + 1;
    let mut last_auxiliary = first.clone();
    loop {
        let mut next = end;
        while tokens.get(next).is_some_and(|token| {
            ADVERBS.contains(token.text.as_str()) || is_ly(token) || matches!(token.text.as_str(), "first" | "last")
        }) {
            next += 1;
        }
        let Some(token) = tokens.get(next) else { break };
        let word = token.text.as_str();
        let form = verb(word);
        let chained = AUXILIARIES.contains(word)
            && (MODALS.contains(last_auxiliary.as_str()) && matches!(word, "be" | "have")
                || matches!(last_auxiliary.as_str(), "has" | "have" | "had") && word == "been"
                || BE.contains(last_auxiliary.as_str()) && word == "being");
        if chained {
            last_auxiliary = word.to_owned();
            end = next + 1;
            continue;
        }
        let after_be = BE.contains(last_auxiliary.as_str());
        let after_have = matches!(last_auxiliary.as_str(), "has" | "have" | "had");
        let fits = match &form {
            Some((_, Form::Participle | Form::PastOrParticiple)) => after_be || after_have,
            Some((_, Form::Ing)) => after_be && !is_phrase_head(tokens, next),
            None => {
                MODALS.contains(last_auxiliary.as_str())
                    && token.is_word()
                    && !bounds_phrase(token)
                    && !is_determiner(token)
                    && !token.is_capital()
            }
            Some((base, Form::Base)) => !after_be && (!after_have || super::lexicon::participle(base) == word),
            _ => false,
        };
        let form = form.or_else(|| Some((word.to_owned(), Form::Base)));
        if let (true, Some((base, form))) = (fits, form) {
            let group = VerbGroup {
                tokens: tokens[at..=next].to_vec(),
                base,
                lexical: None,
                passive: after_be && form != Form::Ing,
                copula: false,
            };
            return Some((group, next + 1));
        }
        break;
    }
    let copula = BE.contains(last_auxiliary.as_str());
    let have = matches!(last_auxiliary.as_str(), "has" | "have" | "had");
    if !copula && !have && !matches!(last_auxiliary.as_str(), "does" | "do" | "did") {
        return None;
    }
    let base = if copula {
        "be"
    } else if have {
        "have"
    } else {
        "do"
    };
    let form = match first.as_str() {
        "has" | "does" => Form::ThirdPerson,
        "had" | "did" => Form::Past,
        _ => Form::Base,
    };
    let lexical = (end == at + 1 && !copula).then_some(form);
    let group = VerbGroup { tokens: tokens[at..end].to_vec(), base: base.to_owned(), lexical, passive: false, copula };
    Some((group, end))
}

/// "is ringing the bell" against "is weaving in spring": an -ing form after which its own phrase ends is a noun only
/// when nothing it could act on follows; here it counts as a noun if a form of be or "of" comes next.
fn is_phrase_head(tokens: &[Token], at: usize) -> bool {
    tokens.get(at + 1).is_some_and(|next| next.text == "of" || is_auxiliary(next))
}

pub(super) fn is_ly(token: &Token) -> bool {
    !token.is_capital()
        && token.text.len() > 4
        && token.text.ends_with("ly")
        && !matches!(
            token.text.as_str(),
            "family"
                | "supply"
                | "assembly"
                | "reply"
                | "early"
                | "holly"
                | "lily"
                | "rally"
                | "ally"
                | "butterfly"
                | "gully"
                | "folly"
                | "fly"
                | "monopoly"
                | "anomaly"
                | "jelly"
                | "belly"
        )
}

impl VerbGroup {
    /// Auxiliary, and what stays of the group behind the subject, for a question or an inversion: "was", "built" or
    /// "does", "have". `None` for the second where nothing stays.
    pub(super) fn inverted(&self) -> (String, Vec<Token>) {
        match self.lexical {
            None => (self.tokens[0].text.clone(), self.tokens[1..].to_vec()),
            Some(form) => {
                let auxiliary = match form {
                    Form::ThirdPerson => "does",
                    Form::Base => "do",
                    _ => "did",
                };
                (auxiliary.to_owned(), vec![Token::new(&self.base)])
            }
        }
    }

    /// Whether the group tells of the past.
    pub(super) fn is_past(&self) -> bool {
        matches!(self.lexical, Some(Form::Past | Form::PastOrParticiple | Form::Participle))
            || self.tokens.first().is_some_and(|first| matches!(first.lower().as_str(), "was" | "were" | "had" | "did"))
    }

    pub(super) fn is_negative(&self) -> bool {
        self.tokens.iter().any(|token| matches!(token.text.as_str(), "not" | "never" | "cannot") || token.text.ends_with("n't"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::text::{join, tokens};

    fn first_verb(sentence: &str) -> Option<String> {
        let tokens = tokens(sentence);
        (1..tokens.len()).find(|at| is_finite_verb(&tokens, 0, *at)).map(|at| tokens[at].text.clone())
    }

    #[test]
    fn the_finite_verb_is_found() {
        for (sentence, verb) in [
            ("The old mill houses three stones.", "houses"),
            ("The guards take their places at 22:15.", "take"),
            ("The tower built in 1912 has a red roof.", "has"),
            ("Ada Fenn designed the tower.", "designed"),
            ("The painted door leads to the hall.", "leads"),
            ("One of them walks ahead.", "walks"),
            ("A brown pennant tells ships that Tallow Watch has begun.", "tells"),
            ("Its older volumes lie in a chest.", "lie"),
            ("The stone lights are cleaned.", "are"),
        ] {
            assert_eq!(first_verb(sentence).as_deref(), Some(verb), "{sentence}");
        }
    }

    #[test]
    fn noun_phrases_are_found() {
        let found = |text: &str| {
            let tokens = tokens(text);
            phrases(&tokens).into_iter().map(|phrase| join(&tokens[phrase.range])).collect::<Vec<_>>()
        };
        assert_eq!(found("in a chest of cedar near the Isle of Man"), ["a chest", "cedar", "the Isle of Man"]);
        assert_eq!(found("the Roll of Hands, a volume bound in calfskin"), ["the Roll of Hands", "a volume", "calfskin"]);
        assert_eq!(found("with 142 steps and two lamps"), ["142 steps", "two lamps"]);
    }

    #[test]
    fn verb_groups_invert() {
        let inverted = |text: &str| {
            let tokens = tokens(text);
            let (group, end) = verb_group(&tokens, 0).expect("a verb group");
            let (auxiliary, stays) = group.inverted();
            (auxiliary, join(&stays), end)
        };
        assert_eq!(inverted("was built by"), ("was".to_owned(), "built".to_owned(), 2));
        assert_eq!(inverted("has 142 steps"), ("does".to_owned(), "have".to_owned(), 1));
        assert_eq!(inverted("had been lit twice"), ("had".to_owned(), "been lit".to_owned(), 3));
        assert_eq!(inverted("lies on"), ("does".to_owned(), "lie".to_owned(), 1));
        assert_eq!(inverted("must be read within"), ("must".to_owned(), "be read".to_owned(), 3));
        assert_eq!(inverted("is a round"), ("is".to_owned(), String::new(), 1));
    }
}

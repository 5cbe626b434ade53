//! A document as the offline teacher understands it: what it is about, and its clauses with pronouns replaced.

use std::collections::{HashMap, HashSet};

use super::clause::{Clause, clauses};
use super::grammar::{is_auxiliary, is_name, phrases};
use super::lexicon::{GIVEN_NAMES, HONORIFICS, ORGANISATIONS, PLACES, PREPOSITIONS, PRONOUNS, is_role, verb};
use super::reference::{Case, Resolver};
use super::text::{Token, capitalised, contains_words, join, sentences, tokens, words};

/// What the subject of a document is, as far as it decides how to speak of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nature {
    Person,
    Place,
    /// Something that is done or happens.
    Event,
    Thing,
}

/// What a document is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subject {
    /// As it stands inside a sentence, with its article: "the Amber Ferry".
    pub(super) name: String,
    /// Without article and brackets.
    pub(super) bare: String,
    pub(super) nature: Nature,
    plural: bool,
    /// Whether nearly everything in the text is about it, so that pronouns mean it.
    pub(super) alone: bool,
}

/// A text taken apart.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) subject: Subject,
    pub(super) sentences: Vec<String>,
    /// In the order of the text. None has a pronoun for its subject.
    pub(super) clauses: Vec<Clause>,
    /// Names that are people's.
    people: HashSet<String>,
}

impl Subject {
    fn of(title: &str, sentences: &[&str]) -> Self {
        let bare = bare_title(title, sentences);
        let (has_article, bare) = match bare.split_once(' ') {
            Some((the, rest)) if the.eq_ignore_ascii_case("the") => (true, rest.to_owned()),
            _ => (false, bare),
        };
        let text = sentences.join(" ");
        let mentions = count(&text, &bare);
        let lower = bare.to_lowercase();
        let bare = if count(&text, &lower) > mentions { lower } else { bare };
        let with_article = count(&text, &format!("the {bare}")) + count(&text, &format!("The {bare}"));
        let name = if has_article || with_article * 2 > mentions.max(1) { format!("the {bare}") } else { bare.clone() };
        let mentioned = sentences.iter().filter(|sentence| contains_words(sentence, &bare)).count();
        let nature = nature(&bare, sentences);
        let last = bare.rsplit(' ').next().unwrap_or_default().to_lowercase();
        let were = format!("{bare} were ");
        let plural = text.contains(&were) || text.contains(&format!("{bare} are ")) && last.ends_with('s');
        // A short text that opens with its subject is about it, however seldom it says the name again.
        let short = sentences.len() <= 20 && text.split(' ').count() <= 260;
        let opens = sentences.first().is_some_and(|first| contains_words(first, &bare));
        let alone = mentioned * 5 >= sentences.len() && sentences.len() <= 40 || short && opens;
        Self { name, bare, nature, plural, alone }
    }

    /// Whether a text names it.
    pub(super) fn is_named_in(&self, text: &str) -> bool {
        contains_words(text, &self.bare)
    }

    /// Whether a pronoun can mean it.
    pub(super) fn is_meant_by(&self, pronoun: &str) -> bool {
        match pronoun {
            "he" | "she" => self.nature == Nature::Person,
            "it" => self.nature != Nature::Person && !self.plural,
            "they" => self.plural,
            _ => false,
        }
    }

    /// A sentence that names it, made of one that perhaps doesn't. `variant` chooses the words.
    pub(super) fn named(&self, sentence: &str, variant: u64) -> String {
        if self.is_named_in(sentence) {
            return capitalised(sentence);
        }
        let name = &self.name;
        let frames: &[&str] = match self.nature {
            _ if !self.alone => {
                &["In the text on {}, ", "On the subject of {}, ", "In the account of {}, ", "With regard to {}, "]
            }
            Nature::Place => &["At {}, ", "At {}, ", "As for {}, "],
            Nature::Event => &["In {}, ", "During {}, ", "As part of {}, "],
            Nature::Person => &["In the case of {}, ", "As for {}, ", "In the story of {}, "],
            Nature::Thing => &["In the case of {}, ", "As for {}, ", "When it comes to {}, "],
        };
        let frame = frames[(variant % frames.len() as u64) as usize];
        capitalised(&format!("{}{sentence}", frame.replace("{}", name)))
    }
}

/// How often `part` stands in `text` as whole words, in this case.
fn count(text: &str, part: &str) -> usize {
    let bounded = |at: usize| {
        !text[..at].chars().next_back().is_some_and(char::is_alphanumeric)
            && !text[at + part.len()..].chars().next().is_some_and(char::is_alphanumeric)
    };
    if part.is_empty() { 0 } else { text.match_indices(part).filter(|(at, _)| bounded(*at)).count() }
}

fn bare_title(title: &str, sentences: &[&str]) -> String {
    let title = title.rsplit('/').next().unwrap_or(title).trim();
    let title = title.split(" (").next().unwrap_or(title);
    let title = title.trim_matches(|c: char| !c.is_alphanumeric() && !matches!(c, '"' | '\'' | ')' | '!' | '?'));
    if title.chars().any(char::is_alphanumeric) {
        return title.to_owned();
    }
    // A text without a title is about the first name in it.
    let first = tokens(sentences.first().copied().unwrap_or_default());
    let start = (0..first.len()).find(|at| is_name(&first, *at));
    let name: Vec<Token> =
        first.iter().skip(start.unwrap_or(first.len())).take_while(|token| token.is_capital()).cloned().collect();
    if name.is_empty() { "the text".to_owned() } else { join(&name) }
}

fn nature(bare: &str, sentences: &[&str]) -> Nature {
    let title = words(bare);
    let first = title.first().map_or("", String::as_str);
    let last = title.last().map_or("", String::as_str);
    let text = format!(" {} ", sentences.join(" ").to_lowercase());
    let pronouns = |list: &[&str]| list.iter().map(|word| text.matches(&format!(" {word} ")).count()).sum::<usize>();
    if GIVEN_NAMES.contains(first)
        && title.len() > 1
        && !PLACES.contains(last)
        && pronouns(&["he", "she", "his", "her"]) >= pronouns(&["it", "its"])
    {
        return Nature::Person;
    }
    // "X is the count of all hands": what it says it is.
    let said = sentences.iter().find_map(|sentence| {
        let rest = sentence.strip_prefix(bare).or_else(|| sentence.strip_prefix("The ")?.strip_prefix(bare))?;
        let said = words(rest);
        matches!(said.first()?.as_str(), "is" | "was" | "are" | "were").then_some(said)
    });
    let said: Vec<String> = said
        .unwrap_or_default()
        .into_iter()
        .skip(1)
        .take_while(|word| {
            !matches!(word.as_str(), "of" | "in" | "on" | "at" | "for" | "that" | "which" | "who" | "to" | "by" | "from")
        })
        .collect();
    let head = said.last().map_or("", String::as_str);
    if is_role(head) && pronouns(&["he", "she", "his", "her"]) > pronouns(&["it", "its"]) {
        Nature::Person
    } else if PLACES.contains(head) || PLACES.contains(last) {
        Nature::Place
    } else if is_event(head) || is_event(last) || last.ends_with("ing") && title.len() > 1 {
        Nature::Event
    } else if pronouns(&["he", "she"]) > 2 * pronouns(&["it", "its"]) + 1
        && title.len() > 1
        && text.contains(&format!(" {last} "))
    {
        Nature::Person
    } else {
        Nature::Thing
    }
}

fn is_event(noun: &str) -> bool {
    matches!(
        noun,
        "watch"
            | "muster"
            | "count"
            | "drill"
            | "check"
            | "round"
            | "procedure"
            | "routine"
            | "ceremony"
            | "festival"
            | "game"
            | "war"
            | "battle"
            | "feast"
            | "race"
            | "exercise"
            | "ritual"
            | "rite"
            | "walk"
            | "custom"
            | "practice"
            | "inspection"
            | "test"
            | "way"
            | "method"
            | "landing"
            | "rehearsal"
            | "celebration"
            | "election"
            | "strike"
            | "march"
            | "plague"
            | "revolution"
    )
}

impl Document {
    /// Takes a text apart.
    pub(super) fn new(title: &str, text: &str) -> Self {
        let found = sentences(text);
        let subject = Subject::of(title, &found);
        let case = Case::of(&found, &subject);
        let mut resolver = Resolver::new(&subject);
        let mut kept = Vec::new();
        for (number, sentence) in found.iter().enumerate() {
            let before = kept.len();
            for mut clause in clauses(number, sentence) {
                case.settle(&mut clause);
                if resolver.resolve(&mut clause) {
                    kept.push(clause);
                }
            }
            if kept.len() == before
                && let Some(mut whole) = whole(number, sentence)
            {
                case.settle(&mut whole);
                kept.push(whole);
            }
        }
        let people = people(&kept, &found, &subject);
        let sentences = found.into_iter().map(|sentence| sentence.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        Self { subject, sentences, clauses: kept, people }
    }

    /// Whether a row names a person, or people by what they are.
    pub(super) fn is_person(&self, row: &[Token]) -> bool {
        let own = self.subject.nature == Nature::Person && join(row) == self.subject.name;
        if row.iter().any(|token| PREPOSITIONS.contains(token.text.as_str()) && row[0].is_capital())
            || row.iter().skip(1).any(|token| PREPOSITIONS.contains(token.text.as_str())) && row.iter().any(Token::is_capital)
        {
            return own;
        }
        let name: Vec<Token> = row.iter().skip_while(|token| !token.is_capital()).cloned().collect();
        own || !name.is_empty() && self.people.contains(&join(&name))
            || is_role(&head_noun(row)) && !row.iter().any(Token::is_capital)
    }
}

/// A sentence that can't be taken apart, if it says something by itself.
fn whole(number: usize, sentence: &str) -> Option<Clause> {
    let mut row = tokens(sentence);
    while row.last().is_some_and(|token| matches!(token.text.as_str(), "." | "!" | ";" | ":")) {
        row.pop();
    }
    let has_verb = (1..row.len()).any(|at| is_auxiliary(&row[at]) || verb(&row[at].text).is_some());
    let vague = row.iter().take(4).any(|token| {
        matches!(
            token.lower().as_str(),
            "it" | "they" | "them" | "he" | "she" | "this" | "these" | "those" | "that" | "such" | "i" | "we" | "you"
        )
    });
    let plain = !row.iter().any(|token| matches!(token.text.as_str(), "?" | "·" | "|" | "(" | "["));
    (has_verb && plain && !vague && (5..=26).contains(&row.len())).then(|| Clause::whole(number, row))
}

/// The names of people: by their first name, by what is said of them, or by what they do.
fn people(clauses: &[Clause], sentences: &[&str], subject: &Subject) -> HashSet<String> {
    let text = sentences.join(" ");
    let mut found = HashSet::new();
    for clause in clauses {
        for (row, acts) in [(&clause.subject, true), (&clause.rest, false)] {
            for phrase in phrases(row) {
                let start = phrase.range.clone().find(|at| is_name(row, *at));
                let Some(start) = start else { continue };
                let name = &row[start..phrase.range.end];
                let joined = join(name);
                let plain = name.iter().all(|token| {
                    token.is_capital() && token.text.chars().all(|c| c.is_alphabetic() || matches!(c, '.' | '-' | '\'' | '’'))
                });
                let last = name[name.len() - 1].lower();
                if !plain
                    || PLACES.contains(last.as_str())
                    || ORGANISATIONS.contains(last.as_str())
                    || joined == subject.bare && subject.nature != Nature::Person
                {
                    continue;
                }
                let article = start > 0 && matches!(row[start - 1].text.as_str(), "the" | "The" | "a" | "an");
                let given = GIVEN_NAMES.contains(name[0].lower().as_str()) || HONORIFICS.contains(name[0].lower().as_str());
                let role_before = start > 0 && is_role(&row[start - 1].text);
                let called = acts
                    && (clause.verb.copula || clause.verb.base == "become")
                    && is_role(&head_noun(&clause.rest))
                    && phrase.range.end == row.len();
                let two = (2..=3).contains(&name.len()) && !article;
                let doing = acts && two && !clause.verb.copula && !clause.verb.passive && phrase.range.end == row.len();
                let by = !acts && two && clause.verb.passive && phrase.preposition.is_some_and(|at| row[at].text == "by");
                let placed = || ["in", "at", "near", "from", "to"].iter().any(|word| text.contains(&format!(" {word} {joined}")));
                if (given && name.len() > 1
                    || given && name.len() == 1 && !article
                    || role_before
                    || called
                    || (doing || by) && !placed())
                    && (given || !article)
                {
                    found.insert(joined);
                }
            }
        }
    }
    found
}

/// The noun that a phrase is about: its last word before the first preposition, in lower case.
pub(super) fn head_noun(row: &[Token]) -> String {
    let end = row
        .iter()
        .position(|token| {
            PREPOSITIONS.contains(token.text.as_str()) || !token.is_word() || PRONOUNS.contains(token.text.as_str())
        })
        .filter(|end| *end > 0);
    row[..end.unwrap_or(row.len())].last().map(Token::lower).unwrap_or_default()
}

/// How rare each word is among sentences: log of the number of sentences over the number that hold it.
pub(super) fn rarity(sentences: &[String]) -> HashMap<String, f64> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    for sentence in sentences {
        let distinct: HashSet<String> = words(sentence).into_iter().collect();
        distinct.into_iter().for_each(|word| *seen.entry(word).or_default() += 1);
    }
    let n = sentences.len() as f64;
    seen.into_iter().map(|(word, count)| (word, (1.0 + n / count as f64).ln())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::clause::shown;

    const TEXT: &str = "Cold Reeling is the way to take in a frozen hawser. Freya Dunmore wrote it down in 1938. Gloves are \
        compulsory in Cold Reeling. She also made gloves. It is forbidden in winds above 22 knots. Its fine is 6 crowns.";

    #[test]
    fn pronouns_are_replaced() {
        let document = Document::new("Cold Reeling", TEXT);
        let shown: Vec<String> = document.clauses.iter().map(shown).collect();
        assert_eq!(
            shown,
            [
                " | Cold Reeling | is | the way to take in a frozen hawser",
                " | Freya Dunmore | wrote | Cold Reeling down in 1938",
                " | gloves | are | compulsory in Cold Reeling",
                " | Freya Dunmore | made | gloves",
                " | Cold Reeling | is forbidden | in winds above 22 knots",
                " | the fine of Cold Reeling | is | 6 crowns",
            ]
        );
    }

    #[test]
    fn the_subject_is_spoken_of_as_the_text_does() {
        let subject = |title: &str, text: &str| Document::new(title, text).subject;
        let ferry = subject("Amber Ferry (1912)", "The Amber Ferry is a boat. People like the Amber Ferry.");
        assert_eq!((ferry.name.as_str(), ferry.bare.as_str(), ferry.nature), ("the Amber Ferry", "Amber Ferry", Nature::Thing));
        assert_eq!(subject("Prime number", "A prime number is odd. Every prime number counts.").name, "prime number");
        assert_eq!(subject("Tern Ledge", "Tern Ledge is a small rock. It is wet.").nature, Nature::Place);
        assert_eq!(subject("Ada Fenn", "Ada Fenn was a mason. She lived in Hull.").nature, Nature::Person);
        assert_eq!(subject("", "Tern Ledge is wet.").name, "Tern Ledge");
        assert_eq!(Document::new("Cold Reeling", TEXT).subject.nature, Nature::Event);
    }

    #[test]
    fn sentences_are_made_to_name_it() {
        let subject = Document::new("Cold Reeling", TEXT).subject;
        assert_eq!(subject.named("the drum turns", 0), "In Cold Reeling, the drum turns");
        assert_eq!(subject.named("cold Reeling is slow", 0), "Cold Reeling is slow");
    }
}

//! How a clause is turned into a question for one of its facts, and into a sentence that ends in it.

use std::ops::Range;

use super::clause::Clause;
use super::document::head_noun;
use super::fact::{Fact, Place, Sort};
use super::grammar::{Phrase, VerbGroup, is_determiner, is_plural_form, is_preposition, phrases};
use super::lexicon::{Form, past, third_person};
use super::text::{Token, join};

/// Words in a row, for putting sentences together.
pub(super) type Row = Vec<Token>;

pub(super) fn row(text: &str) -> Row {
    text.split_whitespace().map(Token::new).collect()
}

/// Joins rows, the first token of each with a space before it.
pub(super) fn sentence(parts: &[&[Token]]) -> String {
    let mut all: Row = Vec::new();
    for part in parts {
        for (at, token) in part.iter().enumerate() {
            let mut token = token.clone();
            token.spaced |= at == 0 && token.text != ",";
            all.push(token);
        }
    }
    join(&all)
}

impl Sort {
    /// The words that ask for it: "which year", "how many steps", "whom" behind a preposition.
    pub(super) fn wh(self, unit: &str, behind_preposition: bool) -> String {
        let word = match self {
            Self::Date => "which date",
            Self::Month => "which month",
            Self::Weekday => "which day of the week",
            Self::Year => "which year",
            Self::Time => "what time",
            Self::Money if unit.is_empty() => "how much money",
            Self::Count if unit.is_empty() => "how many",
            Self::Period => "when",
            Self::Money | Self::Quantity | Self::Count => return format!("how many {unit}"),
            Self::Percent => "what percentage",
            Self::Person | Self::Role if behind_preposition => "whom",
            Self::Person | Self::Role => "who",
            Self::Place => "which place",
            Self::Colour => "which colour",
            Self::Quote => "which words",
            Self::Reason | Self::Purpose => "why",
            Self::Condition => "when",
            Self::Name | Self::Noun => "what",
        };
        word.to_owned()
    }

    /// What kind of thing is missing, for gaps.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Date => "date",
            Self::Month => "month",
            Self::Weekday => "day",
            Self::Year => "year",
            Self::Time => "time",
            Self::Money => "sum",
            Self::Percent => "percentage",
            Self::Quantity | Self::Count => "number",
            Self::Person => "person",
            Self::Place => "place",
            Self::Name => "name",
            Self::Colour => "colour",
            Self::Reason => "reason",
            Self::Purpose => "purpose",
            Self::Condition => "condition",
            Self::Period => "time",
            Self::Quote | Self::Role | Self::Noun => "words",
        }
    }
}

/// `part` of a row taken out and `fill` put in.
pub(super) fn replaced(whole: &[Token], part: &Range<usize>, fill: &str) -> Row {
    let mut out = whole[..part.start].to_vec();
    out.extend(row(fill));
    out.extend(whole[part.end..].iter().cloned());
    out
}

/// The phrase of `row` that holds `range`.
fn phrase_of(row: &[Token], range: &Range<usize>) -> Option<Phrase> {
    let found = phrases(row);
    let first = found.iter().find(|phrase| phrase.range.start <= range.start && range.start < phrase.range.end)?;
    // A fact with its "of" spans two phrases.
    Some(Phrase { range: first.range.start..first.range.end.max(range.end), preposition: first.preposition })
}

/// The row with the fact asked for where it stands: "hangs in a loft for how many days".
pub(super) fn asked_in_place(row: &[Token], fact: &Fact) -> Option<Row> {
    let phrase = phrase_of(row, &fact.range)?;
    if fact.sort == Sort::Colour && fact.range.end < phrase.range.end {
        return Some(without_colour(row, fact, &phrase, "of which colour"));
    }
    let mut whole = asked_range(row, fact, &phrase);
    if fact.sort == Sort::Period {
        whole.start = phrase.preposition.unwrap_or(phrase.range.start);
    }
    let prep = phrase.preposition.filter(|_| whole.start == phrase.range.start).is_some();
    let wh = fact.sort.wh(&fact.unit, prep);
    Some(replaced(row, &whole, &wh))
}

/// What the question word stands for: the fact, with the words before it in its phrase where it is a name or noun.
fn asked_range(row: &[Token], fact: &Fact, phrase: &Phrase) -> Range<usize> {
    let rough = |token: &Token| {
        matches!(
            token.text.as_str(),
            "all" | "about" | "nearly" | "almost" | "some" | "roughly" | "just" | "only" | "exactly" | "over"
        )
    };
    if matches!(fact.sort, Sort::Count | Sort::Quantity | Sort::Money)
        && fact.range.start > 0
        && rough(&row[fact.range.start - 1])
    {
        return fact.range.start - 1..fact.range.end;
    }
    let names = matches!(fact.sort, Sort::Person | Sort::Place | Sort::Name | Sort::Noun | Sort::Role | Sort::Quote);
    let dated = matches!(fact.sort, Sort::Weekday) && fact.range.start > 0 && is_determiner(&row[fact.range.start - 1]);
    if names || dated { phrase.range.start.min(fact.range.start)..fact.range.end } else { fact.range.clone() }
}

/// "a violet pennant" as "a pennant of which colour".
fn without_colour(row: &[Token], fact: &Fact, phrase: &Phrase, tail: &str) -> Row {
    let mut out = row[..fact.range.start].to_vec();
    let next = &row[fact.range.end];
    if let Some(article) = out.last_mut().filter(|token| matches!(token.text.as_str(), "a" | "an")) {
        article.text = if next.text.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }.to_owned();
    }
    out.extend(row[fact.range.end..phrase.range.end].iter().cloned());
    out.extend(self::row(tail));
    out.extend(row[phrase.range.end..].iter().cloned());
    out
}

/// A fact brought to the front of its question, and what stays behind.
struct Fronted {
    front: Row,
    stays: Row,
}

/// Takes the phrase of a fact, with its preposition, out of a row. `None` where it hangs on an object before it.
fn front(row: &[Token], fact: &Fact, variant: u64) -> Option<Fronted> {
    let phrase = phrase_of(row, &fact.range)?;
    let found = phrases(row);
    let mut start = phrase.preposition.unwrap_or(phrase.range.start);
    let mut chained = false;
    while start > 0 && hangs_on_noun(row, start) {
        let before = found.iter().find(|before| before.range.end == start)?;
        start = before.preposition?;
        chained = true;
    }
    // "a pump that drains the meadows": nothing comes out of a relative clause.
    if row[..start].iter().any(|token| matches!(token.text.as_str(), "that" | "who" | "which" | "whom" | "whose" | "where")) {
        return None;
    }
    // "four years later" stays together.
    let together = |next: &Token| {
        matches!(next.text.as_str(), "later" | "ago" | "long" | "high" | "wide" | "deep" | "tall" | "old" | "away" | "earlier")
    };
    let phrase_end = phrase.range.end;
    let end = phrase_end + usize::from(fact.sort == Sort::Quantity && row.get(phrase_end).is_some_and(together));
    // "behind the scenes of", "thanks to": words in between mean that the phrase isn't what it seems.
    if start > 0 && is_preposition(&row[start - 1]) && !chained && phrase.preposition.is_some() && !is_particle(&row[start - 1]) {
        return None;
    }
    if fact.range.end < phrase.range.end && fact.sort != Sort::Colour {
        return None;
    }
    if start > 0 && row[start].text == "of" && is_particle(&row[start - 1]) {
        return None;
    }
    if start > 0
        && matches!(
            row[start - 1].text.as_str(),
            "and"
                | "or"
                | ","
                | "than"
                | "as"
                | "both"
                | "either"
                | "not"
                | "about"
                | "nearly"
                | "almost"
                | "only"
                | "over"
                | "exactly"
        )
        || row.get(phrase.range.end).is_some_and(|next| matches!(next.text.as_str(), "and" | "or"))
    {
        return None;
    }
    let cut = &row[start..end];
    let inner = fact.range.start - start..fact.range.end - start;
    let shifted = Fact { range: inner, ..fact.clone() };
    let mut front = asked_in_place(cut, &shifted)?;
    if let (false, Some(preposition)) = (chained, phrase.preposition) {
        let word = row[preposition].lower();
        let timely = matches!(fact.sort, Sort::Date | Sort::Year | Sort::Month | Sort::Weekday | Sort::Time);
        match word.as_str() {
            _ if fact.sort == Sort::Period => {}
            "in" | "on" | "at" if timely && !variant.is_multiple_of(3) => front = self::row("when"),
            "in" | "on" | "at" if fact.sort == Sort::Place && !variant.is_multiple_of(3) => front = self::row("where"),
            _ => {}
        }
    }
    let mut stays = row[..start].to_vec();
    // "What is the gull fed with?" rather than "With what is the gull fed?", every other time.
    if let (false, Some(preposition)) = (chained, phrase.preposition)
        && matches!(fact.sort, Sort::Noun | Sort::Name)
        && front.len() == 2
        && variant.is_multiple_of(2)
    {
        front.remove(0);
        stays.push(row[preposition].clone());
    }
    stays.extend(row[end..].iter().cloned());
    Some(Fronted { front, stays })
}

fn is_particle(token: &Token) -> bool {
    matches!(token.text.as_str(), "down" | "up" | "out" | "off" | "back" | "over" | "away" | "along" | "in")
}

/// Whether the preposition at `at` belongs to the noun before it rather than to the verb.
fn hangs_on_noun(row: &[Token], at: usize) -> bool {
    let before = &row[at - 1];
    let after_noun = before.is_word() && !is_preposition(before) && !matches!(before.text.as_str(), "to" | "made" | "compulsory");
    let word = row[at].lower();
    after_noun
        && (matches!(word.as_str(), "of" | "than" | "between" | "beyond")
            || matches!(word.as_str(), "above" | "below" | "over" | "under") && row[..at].iter().any(is_preposition))
}

/// A question that begins with its question word: "How many days does the hawser hang in a loft for?". `None` where the
/// fact can't be moved.
pub(super) fn inverted(clause: &Clause, fact: &Fact, variant: u64) -> Option<String> {
    let verb = &clause.verb;
    if !clause.is_apart() || is_denied(clause) {
        return None;
    }
    let lead = clause.lead_inside();
    let lead: &[Token] = if lead.len() <= 8 && fact.place != Place::Lead { &lead } else { &[] };
    let (auxiliary, stays) = verb.inverted();
    let auxiliary = row(&auxiliary);
    match fact.place {
        Place::Subject => asked_subject(clause, fact, lead),
        Place::Tail(_) => {
            let wh = row(&fact.sort.wh("", false));
            Some(sentence(&[&wh, &auxiliary, &clause.subject, &stays, &clause.rest, lead]))
        }
        Place::Rest if fact.sort == Sort::Purpose => {
            let wh = row("why");
            Some(sentence(&[&wh, &auxiliary, &clause.subject, &stays, &clause.rest[..fact.range.start], lead]))
        }
        Place::Rest => {
            if let Some(question) = asked_agent(clause, fact, lead) {
                return Some(question);
            }
            let fronted = front(&clause.rest, fact, variant)?;
            Some(sentence(&[&fronted.front, &auxiliary, &clause.subject, &stays, &fronted.stays, lead]))
        }
        Place::Lead => {
            let moved = clause.lead_inside();
            let fronted = front(&moved, fact, variant).filter(|fronted| fronted.stays.is_empty())?;
            Some(sentence(&[&fronted.front, &auxiliary, &clause.subject, &stays, &clause.rest]))
        }
    }
}

/// Whether a clause says that something isn't so: a question for a part of it would be hard to follow.
fn is_denied(clause: &Clause) -> bool {
    let first = clause.subject.first().map(Token::lower).unwrap_or_default();
    clause.verb.is_negative() || matches!(first.as_str(), "no" | "nothing" | "nobody" | "neither" | "none")
}

/// "Who wrote it down?", for a subject, or a part of one.
fn asked_subject(clause: &Clause, fact: &Fact, lead: &[Token]) -> Option<String> {
    let subject = &clause.subject;
    let phrase = phrase_of(subject, &fact.range)?;
    if fact.sort == Sort::Colour {
        // "Which colour is the pennant that hangs from the gable?"
        if phrase.range.start != 0 || fact.range.end == phrase.range.end {
            return None;
        }
        let mut named = without_colour(subject, fact, &phrase, "");
        if matches!(named[0].text.as_str(), "a" | "an" | "one") {
            named[0].text = "the".to_owned();
        }
        let plural = named.last().is_some_and(|token| token.text.ends_with('s') && !token.text.ends_with("ss"));
        let be = row(if plural { "are" } else { "is" });
        return Some(sentence(&[&row("which colour"), &be, &named, &row("that"), &clause.verb.tokens, &clause.rest, lead]));
    }
    let asked = asked_range(subject, fact, &phrase);
    if asked != (0..subject.len()) {
        // "the guards of how many towers take": the question word may stand at the end of the subject's first half.
        return None;
    }
    let wh = row(&fact.sort.wh(&fact.unit, false));
    let counted = matches!(fact.sort, Sort::Count | Sort::Quantity | Sort::Money);
    let verb = if counted { clause.verb.tokens.clone() } else { singular(&clause.verb) };
    Some(sentence(&[&wh, &verb, &clause.rest, lead]))
}

/// The verb group as it stands after "who" and "what".
fn singular(verb: &VerbGroup) -> Row {
    let mut tokens = verb.tokens.clone();
    tokens[0].text = match (tokens[0].text.as_str(), verb.lexical) {
        ("are", _) => "is".to_owned(),
        ("were", _) => "was".to_owned(),
        ("have", _) => "has".to_owned(),
        ("do", _) => "does".to_owned(),
        (_, Some(Form::Base)) => third_person(&verb.base),
        (word, _) => word.to_owned(),
    };
    tokens
}

/// "Who designed the tower in 1912?" of "The tower was designed by Ada Fenn in 1912".
fn asked_agent(clause: &Clause, fact: &Fact, lead: &[Token]) -> Option<String> {
    let (active, agent) = active_verb(clause)?;
    let phrase = phrase_of(&clause.rest, &fact.range)?;
    if phrase.preposition != Some(agent) || fact.sort == Sort::Colour || fact.range.end != phrase.range.end {
        return None;
    }
    if clause.rest.get(phrase.range.end).is_some_and(|next| matches!(next.text.as_str(), "and" | "or" | "of" | ",")) {
        return None;
    }
    let wh = row(&fact.sort.wh(&fact.unit, false));
    let before = &clause.rest[..agent];
    let after = &clause.rest[phrase.range.end..];
    Some(sentence(&[&wh, &active, &clause.subject, before, after, lead]))
}

/// The active form of a plain passive, and where its "by" stands in the rest.
pub(super) fn active_verb(clause: &Clause) -> Option<(Row, usize)> {
    let verb = &clause.verb;
    let agent = clause.rest.iter().position(|token| token.text == "by")?;
    if !verb.passive || verb.tokens.len() != 2 || verb.is_negative() || agent > 3 {
        return None;
    }
    let next = clause.rest.get(agent + 1)?;
    if next.text.ends_with("ing") || next.is_number() {
        return None;
    }
    let active = match verb.tokens[0].text.as_str() {
        "was" | "were" => past(&verb.base),
        "is" | "are" => third_person(&verb.base),
        _ => return None,
    };
    Some((row(&active), agent))
}

/// A question answered by yes or no, with `fill` in the place of the fact: "Was the tower designed by Tom Reed".
pub(super) fn yes_no(clause: &Clause, fact: &Fact, drop_preposition: bool, fill: &str) -> Option<String> {
    if !clause.is_apart() || is_denied(clause) {
        return None;
    }
    let (auxiliary, stays) = clause.verb.inverted();
    let auxiliary = row(&auxiliary);
    let lead = clause.lead_inside();
    let put = |whole: &[Token]| -> Option<Row> {
        let phrase = phrase_of(whole, &fact.range)?;
        let mut part = asked_range(whole, fact, &phrase);
        if drop_preposition {
            part.start = phrase.preposition.filter(|at| matches!(whole[*at].text.as_str(), "in" | "on" | "at"))?;
        }
        Some(replaced(whole, &part, fill))
    };
    match fact.place {
        Place::Subject => Some(sentence(&[&auxiliary, &put(&clause.subject)?, &stays, &clause.rest, &lead])),
        Place::Rest => Some(sentence(&[&auxiliary, &clause.subject, &stays, &put(&clause.rest)?, &lead])),
        Place::Lead => Some(sentence(&[&auxiliary, &clause.subject, &stays, &clause.rest, &put(&lead)?])),
        Place::Tail(_) => None,
    }
}

/// The clause as a statement with `fill` in the place of the fact.
pub(super) fn statement(clause: &Clause, fact: &Fact, fill: &str) -> String {
    let lead = clause.lead_inside();
    let fill_in = |place: Place, whole: &[Token]| {
        if fact.place == place { replaced(whole, &fact.range, fill) } else { whole.to_vec() }
    };
    let subject = fill_in(Place::Subject, &clause.subject);
    let rest = fill_in(Place::Rest, &clause.rest);
    let lead = fill_in(Place::Lead, &lead);
    let tail = match fact.place {
        Place::Tail(n) => fill_in(fact.place, &clause.tails[n]),
        _ => Row::new(),
    };
    sentence(&[&subject, &clause.verb.tokens, &rest, &lead, &tail])
}

/// A sentence that ends in the fact, without its stop. `None` where the clause can't be turned so.
pub(super) fn ending_in(clause: &Clause, fact: &Fact) -> Option<String> {
    let verb = &clause.verb.tokens;
    match fact.place {
        Place::Tail(n) => Some(sentence(&[&clause.subject, verb, &clause.rest, &clause.tails[n][..fact.range.end]])),
        Place::Lead if fact.range.end == clause.lead.len() => {
            Some(sentence(&[&clause.subject, verb, &clause.rest, &clause.lead_inside()]))
        }
        Place::Lead => None,
        Place::Rest => {
            let (before, after) = (&clause.rest[..fact.range.end], &clause.rest[fact.range.end..]);
            let whole = match after.first() {
                None => true,
                Some(next) => {
                    let lower = next.lower();
                    fact.sort != Sort::Colour && is_preposition(next) && lower != "of"
                        || matches!(lower.as_str(), "," | "to" | "and" | "that" | "each" | "every" | "when" | "where" | "because")
                }
            };
            let after_determiner =
                fact.range.start > 0 && fact.sort == Sort::Colour && is_determiner(&clause.rest[fact.range.start - 1]);
            (whole && !after_determiner).then(|| sentence(&[&clause.subject, verb, before]))
        }
        Place::Subject => ending_in_subject(clause, fact),
    }
}

fn ending_in_subject(clause: &Clause, fact: &Fact) -> Option<String> {
    let subject = &clause.subject;
    let phrase = phrase_of(subject, &fact.range)?;
    if fact.sort == Sort::Colour && phrase.range.start == 0 && fact.range.end < phrase.range.end {
        // "The pennant that hangs from the gable is violet."
        let mut named = without_colour(subject, fact, &phrase, "");
        if matches!(named[0].text.as_str(), "a" | "an" | "one") {
            named[0].text = "the".to_owned();
        }
        let plural = named.last().is_some_and(|token| token.text.ends_with('s') && !token.text.ends_with("ss"));
        let be = row(if plural { "are" } else { "is" });
        return Some(sentence(&[&named, &row("that"), &clause.verb.tokens, &clause.rest, &be, &subject[fact.range.clone()]]));
    }
    if asked_range(subject, fact, &phrase).start != 0 || fact.range.end != subject.len() {
        return None;
    }
    let verb = &clause.verb;
    let plural = matches!(verb.tokens[0].text.as_str(), "are" | "were" | "have" | "do")
        || verb.lexical == Some(Form::Base)
        || is_plural_form(&head_noun(subject)) && !subject[subject.len() - 1].is_capital();
    let past = verb.is_past();
    let (who, be) = match fact.sort {
        Sort::Role | Sort::Person if plural => ("those who", if past { "were" } else { "are" }),
        Sort::Person | Sort::Role => ("the one who", if past { "was" } else { "is" }),
        Sort::Place => ("the place that", if past { "was" } else { "is" }),
        _ => ("what", if past { "was" } else { "is" }),
    };
    // "The storekeeper is Rafe Ombler" needs no "the one who".
    let definite = clause.rest.first().is_some_and(|first| first.text == "the" || first.text.ends_with("'s"));
    if verb.copula
        && verb.tokens.len() == 1
        && definite
        && phrases(&clause.rest).first().is_some_and(|phrase| phrase.range.start == 0)
    {
        return Some(sentence(&[&clause.rest, &verb.tokens, subject]));
    }
    let tokens = if who == "those who" { verb.tokens.clone() } else { singular(verb) };
    Some(sentence(&[&row(who), &tokens, &clause.rest, &row(be), subject]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::document::Document;
    use crate::offline::fact::facts;

    /// Questions and sentences for the fact with this answer.
    fn said(text: &str, answer: &str) -> (String, String) {
        let document = Document::new("Tern Ledge", text);
        let found = facts(&document, text);
        let fact = found.iter().find(|fact| fact.answer == answer).unwrap_or_else(|| panic!("{answer} in {found:?}"));
        let clause = &document.clauses[fact.clause];
        (inverted(clause, fact, 1).unwrap_or_default(), ending_in(clause, fact).unwrap_or_default())
    }

    #[test]
    fn questions_and_sentences_that_end_in_the_answer() {
        for (text, answer, question, sentence) in [
            (
                "Tern Ledge was surveyed in 1912 by Ada Fenn.",
                "1912",
                "when was Tern Ledge surveyed by Ada Fenn",
                "Tern Ledge was surveyed in 1912",
            ),
            (
                "Tern Ledge was surveyed in 1912 by Ada Fenn.",
                "Ada Fenn",
                "who surveyed Tern Ledge in 1912",
                "Tern Ledge was surveyed in 1912 by Ada Fenn",
            ),
            (
                "Tern Ledge has 142 stone steps.",
                "142 stone steps",
                "how many stone steps does Tern Ledge have",
                "Tern Ledge has 142 stone steps",
            ),
            (
                "In 1931 Tern Ledge lost its roof.",
                "1931",
                "when did Tern Ledge lose its roof",
                "Tern Ledge lost its roof in 1931",
            ),
            (
                "At Tern Ledge a violet pennant hangs from the gable.",
                "violet",
                "which colour is the pennant that hangs from the gable at Tern Ledge",
                "the pennant that hangs from the gable is violet",
            ),
            (
                "Freya Dunmore sealed Tern Ledge with wax.",
                "Freya Dunmore",
                "who sealed Tern Ledge with wax",
                "the one who sealed Tern Ledge with wax was Freya Dunmore",
            ),
            (
                "Work at Tern Ledge stops in winds above 22 knots.",
                "22 knots",
                "in winds above how many knots does work at Tern Ledge stop",
                "work at Tern Ledge stops in winds above 22 knots",
            ),
            (
                "Tern Ledge is closed in May, because the birds breed.",
                "the birds breed",
                "why is Tern Ledge closed in May",
                "Tern Ledge is closed in May because the birds breed",
            ),
        ] {
            assert_eq!(said(text, answer), (question.to_owned(), sentence.to_owned()), "{text}");
        }
    }
}

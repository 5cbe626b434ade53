//! What can be asked about: short spans of clauses, and what kind of thing each is.

use std::ops::Range;

use super::clause::Clause;
use super::document::{Document, head_noun};
use super::grammar::{Phrase, is_adjective_like, is_determiner, is_plural_form, is_preposition, phrases};
use super::lexicon::{COLOURS, DURATIONS, Form, MONTHS, SEASONS, WEEKDAYS, is_role, verb};
use super::span::{date_end, date_sort, name_sort, name_span, number_span, quote};
use super::text::{Token, contains_words, join, words};

/// What kind of answer a fact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Sort {
    Quote,
    Date,
    Month,
    Weekday,
    /// A time by its name: "the cold months".
    Period,
    Year,
    Time,
    Money,
    Percent,
    /// A number with a unit of measure.
    Quantity,
    /// A number of things.
    Count,
    Person,
    Place,
    Name,
    Colour,
    /// People by what they are: "the night steward".
    Role,
    Noun,
    /// "wet leather sticks", after "because".
    Reason,
    /// "to catch the drops".
    Purpose,
    /// "when fog hides the platform".
    Condition,
}

/// Where in its clause a fact stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Lead,
    Subject,
    Rest,
    Tail(usize),
}

/// A span of a clause that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fact {
    /// Number of the clause in the document.
    pub(super) clause: usize,
    pub(super) place: Place,
    /// The words of the answer in that part of the clause.
    pub(super) range: Range<usize>,
    pub(super) sort: Sort,
    /// As the text has it.
    pub(super) answer: String,
    /// For numbers, what is counted: "minutes", "steps".
    pub(super) unit: String,
}

/// The longest answer, in words.
pub(super) const MAX_ANSWER_WORDS: usize = 12;

impl Fact {
    pub(super) fn row<'a>(&self, clause: &'a Clause) -> &'a [Token] {
        match self.place {
            Place::Lead => &clause.lead,
            Place::Subject => &clause.subject,
            Place::Rest => &clause.rest,
            Place::Tail(n) => &clause.tails[n],
        }
    }

    /// The value of a number, a year or an amount.
    pub(super) fn value(&self) -> Option<f64> {
        let digits: String = self
            .answer
            .chars()
            .skip_while(|c| !c.is_ascii_digit())
            .take_while(|c| c.is_ascii_digit() || matches!(c, ',' | '.'))
            .collect();
        digits.trim_end_matches(['.', ',']).replace(',', "").parse().ok()
    }
}

/// All facts of a document, in the order of the text. `text` is what every answer must stand in.
pub(super) fn facts(document: &Document, text: &str) -> Vec<Fact> {
    let mut out = Vec::new();
    for (number, clause) in document.clauses.iter().enumerate() {
        if clause.core().len() > 60 {
            continue;
        }
        let mut found = Vec::new();
        for place in [Place::Subject, Place::Rest, Place::Lead] {
            spans(document, number, place, &mut found);
        }
        let timed =
            found.iter().any(|fact| matches!(fact.sort, Sort::Date | Sort::Year | Sort::Month | Sort::Weekday | Sort::Time));
        reasons(clause, number, timed, &mut found);
        purpose(clause, number, &mut found);
        let subject = &document.subject;
        found.retain(|fact: &Fact| {
            let answer = &fact.answer;
            !subject.is_named_in(answer)
                && !words(&subject.bare).iter().all(|word| contains_words(answer, word))
                && !(contains_words(&subject.bare, answer))
                && words(answer).len() <= MAX_ANSWER_WORDS
                && answer.chars().count() > 1
                && contains_words(text, answer)
        });
        out.append(&mut found);
    }
    out
}

fn spans(document: &Document, number: usize, place: Place, out: &mut Vec<Fact>) {
    let clause = &document.clauses[number];
    let whole = Fact { clause: number, place, range: 0..0, sort: Sort::Noun, answer: String::new(), unit: String::new() };
    let row = whole.row(clause);
    let fact = |range: Range<usize>, sort: Sort, unit: &str| Fact {
        answer: join(&row[range.clone()]),
        range,
        sort,
        unit: unit.to_owned(),
        ..whole.clone()
    };
    if let Some(range) = quote(row) {
        out.push(fact(range, Sort::Quote, ""));
        return;
    }
    let found = phrases(row);
    let mut skip_until = 0;
    for (n, phrase) in found.iter().enumerate() {
        let range = phrase.range.clone();
        if range.start < skip_until {
            continue;
        }
        if let Some(end) = date_end(row, range.start) {
            skip_until = end;
            let halfway =
                range.start > 0 && row[range.start - 1].text == "from" && row.get(end).is_some_and(|next| next.text == "to");
            if !halfway {
                out.push(fact(range.start..end, date_sort(&row[range.start..end]), ""));
            }
            continue;
        }
        if let Some(at) = range.clone().find(|at| date_end(row, *at).is_some_and(|end| end >= range.end) && *at > range.start) {
            // "every Thursday": the day is the answer.
            if WEEKDAYS.contains(row[at].lower().as_str()) {
                out.push(fact(at..range.end, Sort::Weekday, ""));
                continue;
            }
        }
        if let Some((range, sort, unit)) = number_span(row, &range) {
            out.push(fact(range, sort, &unit));
            continue;
        }
        if let Some(at) = range.clone().find(|at| COLOURS.contains(row[*at].text.as_str())) {
            if at + 1 < range.end && !matches!(row[at].text.as_str(), "iron" | "copper" | "rose") {
                out.push(fact(at..at + 1, Sort::Colour, &head_noun(&row[range.clone()])));
            }
            if at + 1 == range.end && range.len() == 1 {
                out.push(fact(range, Sort::Colour, ""));
                continue;
            }
        }
        if let Some(name) = name_span(row, &range) {
            let sort = match name_sort(row, &name, phrase.preposition, &clause.verb.base) {
                _ if document.is_person(&row[name.clone()]) => Sort::Person,
                Sort::Name if clause.verb.copula && is_role(&head_noun(&clause.subject)) => Sort::Person,
                sort => sort,
            };
            out.push(fact(name, sort, ""));
            continue;
        }
        let complement = place == Place::Rest && (clause.verb.copula || clause.verb.base == "become");
        noun_facts(row, &found, n, place, complement, &fact, out);
    }
}

/// The facts of a plain noun phrase: with the "of" behind it, where there is one, and without.
fn noun_facts(
    row: &[Token],
    found: &[Phrase],
    n: usize,
    place: Place,
    complement: bool,
    fact: &impl Fn(Range<usize>, Sort, &str) -> Fact,
    out: &mut Vec<Fact>,
) {
    let range = found[n].range.clone();
    let head = head_noun(&row[range.clone()]);
    if range.len() > 5 || head.len() < 3 || !row[range.clone()].iter().all(Token::is_word) {
        return;
    }
    let prep = range.start.checked_sub(1).map(|at| row[at].lower()).unwrap_or_default();
    let repeated =
        matches!(row[range.start].text.as_str(), "each" | "every") && (is_period(&head) || MONTHS.contains(head.as_str()));
    let timely = repeated && prep != "of" || is_period(&head) && matches!(prep.as_str(), "in" | "on" | "at" | "during");
    let sort = match is_role(&head) {
        true => Sort::Role,
        false if timely => Sort::Period,
        false => Sort::Noun,
    };
    let joined = row.get(range.end).is_some_and(|token| matches!(token.text.as_str(), "and" | "or" | ","))
        || range.start > 0 && matches!(row[range.start - 1].text.as_str(), "and" | "or" | ",");
    if let Some(next) = found.get(n + 1)
        && row.get(range.end).is_some_and(|token| token.text == "of")
        && next.range.start == range.end + 1
    {
        let whole = range.start..next.range.end;
        if whole.len() <= 7 && !joined {
            out.push(fact(whole, sort, ""));
        }
        return;
    }
    // A bare word after "is" is more often an adjective, and one before "above" or "of" says too little alone.
    let bare = range.len() == 1;
    let prepared = range.start > 0 && is_preposition(&row[range.start - 1]);
    let narrowed = row
        .get(range.end)
        .is_some_and(|token| matches!(token.text.as_str(), "of" | "above" | "below" | "over" | "under" | "between" | "than"));
    let halfway = bare && row.get(range.end).is_some_and(|token| matches!(token.text.as_str(), "to" | "by")) && prep == "from";
    let verbal = bare && !prepared && matches!(verb(&head), Some((_, Form::ThirdPerson))) && place != Place::Subject;
    // "come down hard", "found it difficult", "by hand"
    let trailing = bare && !prepared && range.start > 0 && !is_plural_form(&head);
    let idiom = prep == "per" || bare && prep == "by" && sort == Sort::Role;
    let negative = matches!(row[range.start].lower().as_str(), "no" | "neither");
    let described =
        halfway || trailing || idiom || negative || verbal || is_adjective_like(&row[range.end - 1]) && range.len() < 3;
    if !is_empty_noun(&head) && !joined && !(bare && (narrowed || complement && !prepared)) && !described {
        out.push(fact(range, sort, ""));
    }
}

/// Nouns for stretches of time.
fn is_period(noun: &str) -> bool {
    SEASONS.contains(noun)
        || DURATIONS.contains(noun)
        || matches!(
            noun,
            "dawn"
                | "dusk"
                | "noon"
                | "midnight"
                | "morning"
                | "mornings"
                | "evening"
                | "evenings"
                | "season"
                | "night"
                | "nights"
                | "holidays"
                | "seasons"
                | "break"
                | "daytime"
                | "period"
        )
}

/// Nouns that answer nothing by themselves.
fn is_empty_noun(noun: &str) -> bool {
    matches!(
        noun,
        "part"
            | "way"
            | "thing"
            | "things"
            | "case"
            | "use"
            | "number"
            | "end"
            | "lot"
            | "kind"
            | "sort"
            | "example"
            | "fact"
            | "side"
            | "times"
            | "time"
            | "rest"
            | "addition"
            | "order"
            | "well"
            | "result"
            | "place"
            | "name"
            | "names"
            | "years"
            | "year"
            | "day"
            | "days"
            | "beginning"
            | "start"
            | "form"
            | "type"
            | "member"
            | "members"
            | "majority"
            | "most"
            | "basis"
            | "terms"
            | "term"
            | "contrast"
            | "fire"
            | "people"
            | "total"
            | "course"
            | "account"
            | "behalf"
            | "charge"
            | "view"
            | "half"
            | "third"
            | "respect"
            | "subject"
            | "all"
            | "much"
            | "many"
            | "some"
            | "others"
    )
}

/// Reasons and conditions: whole tails. Of a clause that says when, nobody asks when.
fn reasons(clause: &Clause, number: usize, timed: bool, out: &mut Vec<Fact>) {
    for (n, tail) in clause.tails.iter().enumerate() {
        let first = tail[0].lower();
        let second = tail.get(1).map(Token::lower).unwrap_or_default();
        let (skip, sort) = match (first.as_str(), second.as_str()) {
            ("because", "of") => (2, Sort::Reason),
            ("because", _) => (1, Sort::Reason),
            ("since", _) if !tail.get(1).is_some_and(Token::is_number) && !clause.verb.is_past() => (1, Sort::Reason),
            ("thanks", "to") => (2, Sort::Reason),
            ("so", "that") => (0, Sort::Purpose),
            ("in", "memory" | "honour" | "honor") => (0, Sort::Purpose),
            ("when" | "whenever" | "after" | "before" | "until" | "once", _) if !timed => (0, Sort::Condition),
            ("as", "soon") if !timed => (0, Sort::Condition),
            _ => continue,
        };
        let range = skip..tail.len();
        let answer = join(&tail[range.clone()]);
        let vague = tail.iter().any(|token| matches!(token.text.as_str(), "it" | "they" | "he" | "she" | "this"));
        if range.len() >= 2 && !(vague && sort != Sort::Condition) {
            out.push(Fact { clause: number, place: Place::Tail(n), range, sort, answer, unit: String::new() });
        }
    }
}

/// "to catch the drops" at the end of a clause.
fn purpose(clause: &Clause, number: usize, out: &mut Vec<Fact>) {
    let row = &clause.rest;
    let Some(at) = row.iter().rposition(|token| token.text == "to") else {
        return;
    };
    let acts = row.get(at + 1).is_some_and(|next| matches!(verb(&next.text), Some((_, Form::Base))) && !next.is_capital());
    if !acts || at < 2 || row.len() - at > MAX_ANSWER_WORDS || clause.verb.copula {
        return;
    }
    let before = &row[at - 1];
    let after_noun = before.is_word()
        && !is_preposition(before)
        && !is_determiner(before)
        && verb(&before.text).is_none_or(|(_, form)| form == Form::Base || form == Form::ThirdPerson);
    let part_of_noun = matches!(
        before.text.as_str(),
        "way"
            | "right"
            | "rights"
            | "attempt"
            | "ability"
            | "first"
            | "last"
            | "one"
            | "able"
            | "power"
            | "chance"
            | "need"
            | "decision"
            | "plan"
            | "plans"
            | "order"
            | "permission"
            | "effort"
            | "efforts"
            | "duty"
            | "time"
            | "likely"
            | "refusal"
            | "failure"
            | "desire"
            | "opportunity"
            | "authority"
    );
    let asks = matches!(
        clause.verb.base.as_str(),
        "want"
            | "help"
            | "allow"
            | "force"
            | "persuade"
            | "ask"
            | "order"
            | "need"
            | "have"
            | "cause"
            | "enable"
            | "require"
            | "teach"
            | "tell"
            | "invite"
            | "begin"
            | "forbid"
            | "consider"
            | "believe"
            | "think"
            | "lead"
            | "urge"
    );
    if after_noun && !part_of_noun && !asks {
        let range = at..row.len();
        let answer = join(&row[range.clone()]);
        out.push(Fact { clause: number, place: Place::Rest, range, sort: Sort::Purpose, answer, unit: String::new() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(String, Sort)> {
        let document = Document::new("Tern Ledge", text);
        facts(&document, text).into_iter().map(|fact| (fact.answer, fact.sort)).collect()
    }

    #[test]
    fn answers_and_their_sorts() {
        for (text, expected) in [
            ("Tern Ledge was surveyed on 3 May 1912 by Ada Fenn.", vec![("3 May 1912", Sort::Date), ("Ada Fenn", Sort::Person)]),
            ("Work on Tern Ledge starts at 10:30 in December.", vec![("Work on", Sort::Noun); 0]),
            ("Tern Ledge has 142 stone steps and two lamps.", vec![("142 stone steps", Sort::Count), ("two lamps", Sort::Count)]),
            (
                "At Tern Ledge a violet pennant hangs from the gable.",
                vec![("violet", Sort::Colour), ("a violet pennant", Sort::Noun), ("the gable", Sort::Noun)],
            ),
            (
                "Tern Ledge lies 40 kilometres from Port Ammon.",
                vec![("40 kilometres", Sort::Quantity), ("Port Ammon", Sort::Place)],
            ),
            (
                "Tern Ledge costs the owner 20 crowns and 5% of the catch.",
                vec![("20 crowns", Sort::Money), ("5%", Sort::Percent), ("the catch", Sort::Noun)],
            ),
            ("Tern Ledge was named \"The Wet Chair\" by sailors.", vec![("The Wet Chair", Sort::Quote)]),
            ("A chest of cedar stands at Tern Ledge.", vec![("A chest of cedar", Sort::Noun); 0]),
            (
                "Tern Ledge is closed in May, because the birds breed.",
                vec![("May", Sort::Month), ("the birds breed", Sort::Reason)],
            ),
            (
                "Tern Ledge keeps a mat of straw to catch the drops.",
                vec![("a mat of straw", Sort::Noun), ("the drops", Sort::Noun), ("to catch the drops", Sort::Purpose)],
            ),
        ] {
            if !expected.is_empty() {
                let expected: Vec<_> = expected.into_iter().map(|(answer, sort)| (answer.to_owned(), sort)).collect();
                let found = found(text);
                for fact in &expected {
                    assert!(found.contains(fact), "{fact:?} in {text}: {found:?}");
                }
            }
        }
    }
}

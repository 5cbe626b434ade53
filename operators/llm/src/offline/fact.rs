//! What can be asked about: short spans of clauses, and what kind of thing each is.

use std::ops::Range;

use super::clause::Clause;
use super::document::{Document, head_noun};
use super::grammar::{Phrase, is_adjective_like, is_determiner, is_name, is_number, is_preposition, phrases};
use super::lexicon::{
    COLOURS, CURRENCIES, DURATIONS, Form, GIVEN_NAMES, HONORIFICS, MONTHS, ORGANISATIONS, PLACES, SEASONS, UNITS, WEEKDAYS,
    is_role, verb,
};
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
        answer: answer_text(&row[range.clone()]),
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
            out.push(fact(range.start..end, date_sort(&row[range.start..end]), ""));
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
            let sort = match name_sort(row, &name, phrase.preposition) {
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
    let timely = is_period(&head) && matches!(prep.as_str(), "in" | "on" | "at" | "during");
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
    let described = halfway || verbal || is_adjective_like(&row[range.end - 1]) && range.len() < 3;
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

/// The text of an answer. A word that was put in place of another has no own spacing to lose.
fn answer_text(row: &[Token]) -> String {
    join(row)
}

fn quote(row: &[Token]) -> Option<Range<usize>> {
    let is_mark = |token: &Token| matches!(token.text.as_str(), "\"" | "“" | "”");
    let open = row.iter().position(is_mark)?;
    let close = open + 1 + row[open + 1..].iter().position(is_mark)?;
    (close - open > 1 && close - open <= 10).then_some(open + 1..close)
}

fn is_year(token: &Token) -> bool {
    let text = token.text.as_str();
    text.len() == 4 && text.bytes().all(|b| b.is_ascii_digit()) && (text.starts_with('1') || text.starts_with("20"))
        || text.len() == 5 && text.ends_with('s') && text[..4].bytes().all(|b| b.is_ascii_digit())
}

fn is_month(token: &Token) -> bool {
    token.is_capital() && MONTHS.contains(token.lower().as_str())
}

fn is_day(token: &Token) -> bool {
    let number = token.text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    !number.is_empty()
        && number.len() <= 2
        && number.parse::<u8>().is_ok_and(|day| (1..=31).contains(&day))
        && matches!(&token.text[number.len()..], "" | "st" | "nd" | "rd" | "th")
}

/// The end of a date that starts at `at`: "3 May 1912", "May 3, 1912", "May 1912", "May", "1912", "Thursday".
fn date_end(row: &[Token], at: usize) -> Option<usize> {
    let token = &row[at];
    let next = row.get(at + 1);
    let with_year = |end: usize| {
        let comma = usize::from(row.get(end).is_some_and(|token| token.text == ","));
        if row.get(end + comma).is_some_and(is_year) { end + comma + 1 } else { end }
    };
    if is_day(token) && next.is_some_and(is_month) {
        return Some(with_year(at + 2));
    }
    if is_month(token) {
        return Some(with_year(if next.is_some_and(is_day) { at + 2 } else { at + 1 }));
    }
    let before = at.checked_sub(1).map(|before| row[before].lower());
    if is_year(token)
        && before.as_deref().is_none_or(|word| {
            matches!(
                word,
                "in" | "since"
                    | "from"
                    | "until"
                    | "till"
                    | "by"
                    | "of"
                    | "before"
                    | "after"
                    | "to"
                    | "and"
                    | "spring"
                    | "summer"
                    | "autumn"
                    | "winter"
                    | "the"
                    | "around"
                    | "about"
                    | "during"
                    | "between"
            )
        })
    {
        return Some(at + 1);
    }
    (WEEKDAYS.contains(token.lower().as_str()) && token.is_capital()).then_some(at + 1)
}

fn date_sort(row: &[Token]) -> Sort {
    match row {
        [only] if is_year(only) => Sort::Year,
        [only] if is_month(only) => Sort::Month,
        [only] if WEEKDAYS.contains(only.lower().as_str()) => Sort::Weekday,
        _ => Sort::Date,
    }
}

/// A number in a phrase, with what it counts.
fn number_span(row: &[Token], range: &Range<usize>) -> Option<(Range<usize>, Sort, String)> {
    let at = range.clone().find(|at| is_number(&row[*at]) && !(row[*at].is_capital() && *at > 0))?;
    let token = &row[at];
    if at > range.start && row[at - 1].is_capital() && !is_determiner(&row[at - 1]) {
        // "Apollo 11": a part of a name.
        return None;
    }
    let text = token.text.as_str();
    if text.contains(':') && text.bytes().all(|b| b.is_ascii_digit() || b == b':') {
        let end = if row.get(at + 1).is_some_and(|next| matches!(next.text.as_str(), "a.m." | "p.m." | "am" | "pm")) {
            at + 2
        } else {
            at + 1
        };
        return Some((at..end, Sort::Time, String::new()));
    }
    if row.get(at + 1).is_some_and(|next| matches!(next.text.as_str(), "a.m." | "p.m." | "o'clock")) {
        return Some((at..at + 2, Sort::Time, String::new()));
    }
    let mut end = at + 1;
    while row.get(end).is_some_and(|next| is_number(next) && !next.is_number()) {
        end += 1;
    }
    if text.starts_with(|c: char| matches!(c, '$' | '£' | '€' | '¥')) {
        return Some((at..end, Sort::Money, String::new()));
    }
    if text.ends_with('%') {
        return Some((at..end, Sort::Percent, String::new()));
    }
    if end >= range.end && !token.is_number() && row.get(end).is_none_or(|next| next.text != "of") {
        return None;
    }
    if end >= range.end {
        return (text.len() > 1 || at == range.start)
            .then(|| (at..end, Sort::Count, String::new()))
            .filter(|_| !is_day(token) || range.len() == 1);
    }
    let unit = row[end].lower();
    if matches!(unit.as_str(), "percent") {
        return Some((at..end + 1, Sort::Percent, String::new()));
    }
    let measured = |range: Range<usize>, sort: Sort| Some((range.clone(), sort, join(&row[end..range.end])));
    if CURRENCIES.contains(unit.as_str()) {
        return measured(at..end + 1, Sort::Money);
    }
    if UNITS.contains(unit.as_str()) {
        let squared = matches!(unit.as_str(), "square" | "cubic");
        return measured(at..(end + 1 + usize::from(squared)).min(range.end), Sort::Quantity);
    }
    if matches!(unit.as_str(), "square" | "cubic") && end + 2 <= range.end {
        return measured(at..end + 2, Sort::Quantity);
    }
    if range.end - end <= 4 && row[end..range.end].iter().all(|token| token.is_word() && !is_number(token)) {
        return measured(at..range.end, Sort::Count);
    }
    None
}

/// The name in a phrase: its capitalised words, without the article, from the first to the last.
fn name_span(row: &[Token], range: &Range<usize>) -> Option<Range<usize>> {
    let is_part = |at: usize| is_name(row, at) && !is_month(&row[at]);
    let start = range.clone().find(|at| is_part(*at))?;
    let mut end = start + 1;
    while end < range.end
        && (is_part(end) || row[end].is_number() || matches!(row[end].text.as_str(), "of" | "de" | "van" | "von" | "upon" | "&"))
    {
        end += 1;
    }
    while !is_part(end - 1) && !row[end - 1].is_number() {
        end -= 1;
    }
    let is_adjective = end < range.end;
    let possessive = row[end - 1].text.ends_with("'s") || row[end - 1].text.ends_with("’s");
    let article = start > range.start && matches!(row[start - 1].text.as_str(), "the" | "The") && start - 1 == range.start;
    (!is_adjective && !possessive && end - start <= 7).then_some(start - usize::from(article)..end)
}

fn name_sort(row: &[Token], name: &Range<usize>, preposition: Option<usize>) -> Sort {
    let article = matches!(row[name.start].text.as_str(), "the" | "The");
    let first = row[name.start + usize::from(article)].lower();
    let last = row[name.end - 1].lower();
    let (first, last) = (first.as_str(), last.as_str());
    let before = name.start.checked_sub(1).map(|at| row[at].lower()).unwrap_or_default();
    let prep = preposition.map(|at| row[at].lower()).unwrap_or_default();
    let article = article || matches!(before.as_str(), "a" | "an");
    let has_of = row[name.clone()].iter().any(|token| token.text == "of");
    if PLACES.contains(last) && !ORGANISATIONS.contains(last) {
        return Sort::Place;
    }
    if ORGANISATIONS.contains(last) || ORGANISATIONS.contains(first) || has_of {
        return Sort::Name;
    }
    let given = GIVEN_NAMES.contains(first) || HONORIFICS.contains(first);
    if (given || HONORIFICS.contains(before.as_str()) || is_role(&before)) && !article {
        return Sort::Person;
    }
    if matches!(prep.as_str(), "in" | "at" | "near" | "from" | "to" | "off" | "around" | "outside")
        && !article
        && !is_season(last)
    {
        return Sort::Place;
    }
    Sort::Name
}

fn is_season(word: &str) -> bool {
    SEASONS.contains(word) || DURATIONS.contains(word)
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
        let answer = answer_text(&tail[range.clone()]);
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
        let answer = answer_text(&row[range.clone()]);
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

//! Dates, numbers and names in a row of words.

use std::ops::Range;

use super::fact::Sort;
use super::grammar::{is_determiner, is_name, is_number};
use super::lexicon::{
    CURRENCIES, DURATIONS, GIVEN_NAMES, HONORIFICS, MONTHS, ORGANISATIONS, PLACES, SEASONS, UNITS, WEEKDAYS, is_role,
};
use super::text::{Token, join};

pub(super) fn quote(row: &[Token]) -> Option<Range<usize>> {
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
pub(super) fn date_end(row: &[Token], at: usize) -> Option<usize> {
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

pub(super) fn date_sort(row: &[Token]) -> Sort {
    match row {
        [only] if is_year(only) => Sort::Year,
        [only] if is_month(only) => Sort::Month,
        [only] if WEEKDAYS.contains(only.lower().as_str()) => Sort::Weekday,
        _ => Sort::Date,
    }
}

/// A number in a phrase, with what it counts.
pub(super) fn number_span(row: &[Token], range: &Range<usize>) -> Option<(Range<usize>, Sort, String)> {
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
    if text.starts_with(['$', '£', '€', '¥']) {
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
pub(super) fn name_span(row: &[Token], range: &Range<usize>) -> Option<Range<usize>> {
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

pub(super) fn name_sort(row: &[Token], name: &Range<usize>, preposition: Option<usize>, verb: &str) -> Sort {
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
    let moves = matches!(
        verb,
        "go" | "come"
            | "travel"
            | "move"
            | "run"
            | "lead"
            | "sail"
            | "fly"
            | "return"
            | "send"
            | "carry"
            | "march"
            | "walk"
            | "flee"
            | "ship"
            | "bring"
            | "take"
    );
    let place = match prep.as_str() {
        "in" | "at" | "near" | "off" | "around" | "outside" => true,
        "to" => moves,
        "from" => !matches!(verb, "learn" | "receive" | "buy" | "inherit" | "get" | "hear" | "borrow" | "accept"),
        _ => false,
    };
    if place && !article && !is_season(last) {
        return Sort::Place;
    }
    Sort::Name
}

fn is_season(word: &str) -> bool {
    SEASONS.contains(word) || DURATIONS.contains(word)
}

//! What stands before the subject of a sentence: "In 1912", "Each winter", "Opened in 1859,".

use super::grammar::{is_adjective_like, is_auxiliary, is_determiner, is_finite_verb, is_ly, is_name, is_number, is_preposition};
use super::lexicon::{ADVERBS, CONJUNCTIONS, DURATIONS, Form, MONTHS, PRONOUNS, SEASONS, SUBORDINATORS, WEEKDAYS, is_role, verb};
use super::text::Token;

/// Where the subject starts: behind an adjunct and its comma, or behind a date that needs no comma.
pub(super) fn lead_end(row: &[Token]) -> usize {
    let end = first_lead_end(row);
    let follows = row.get(end).is_some_and(|next| is_preposition(next) && !next.is_capital());
    if end > 0 && follows { end + first_lead_end(&row[end..]) } else { end }
}

fn first_lead_end(row: &[Token]) -> usize {
    let first = row[0].lower();
    let first = first.as_str();
    let opens = is_preposition(&row[0])
        || SUBORDINATORS.contains(first)
        || ADVERBS.contains(first)
        || is_ly(&row[0])
        || matches!(verb(first), Some((_, Form::Ing)))
            && row.get(1).is_some_and(|next| !is_finite_verb(row, 0, 1) && !next.is_capital())
        || CONJUNCTIONS.contains(first)
        || is_participle_lead(row);
    if let Some(end) = time_lead_end(row) {
        return end;
    }
    if !opens {
        return 0;
    }
    if CONJUNCTIONS.contains(first) {
        return 1;
    }
    if is_time_adverb(first) && row.get(1).is_some_and(|next| starts_phrase(row, 1) || next.is_capital()) {
        return 1;
    }
    // "In 1912 the", "On 3 May 1912 the", "In spring it"
    let mut at = 1;
    while row.get(at).is_some_and(is_date_word) {
        at += 1;
    }
    let whole_date =
        |token: &Token| !token.is_number() || token.text.len() == 4 && token.text.bytes().all(|b| b.is_ascii_digit());
    if at > 1
        && whole_date(&row[at - 1])
        && row.get(at).is_some_and(|next| is_determiner(next) || PRONOUNS.contains(next.lower().as_str()) || is_name(row, at))
        && is_preposition(&row[0])
    {
        return at;
    }
    let dependent = SUBORDINATORS.contains(first) || first == "in" && row.get(1).is_some_and(|next| next.text == "case");
    let mut seen_verb = false;
    let mut relatives = 0_usize;
    for (at, token) in row.iter().enumerate().skip(1) {
        if token.text == "," {
            let rest = &row[at + 1..];
            // "In 1985, during a gale, he": two leads.
            if !dependent
                && rest.first().is_some_and(is_preposition)
                && let Some(comma) = rest.iter().position(|token| token.text == ",")
                && !(1..comma).any(|i| is_finite_verb(rest, 0, i))
                && (1..rest.len() - comma - 1).any(|i| is_finite_verb(&rest[comma + 1..], 0, i))
            {
                return at + comma + 2;
            }
            let goes_on = (1..rest.len()).any(|i| is_finite_verb(rest, 0, i));
            // A dependent clause needs its verb before the comma; an adjunct must not have one.
            return if goes_on && (dependent || !seen_verb) { at + 1 } else { 0 };
        }
        // "Above 35 knots the guards go": two phrases side by side.
        let side_by_side = at > 1
            && (!dependent || SUBORDINATORS.contains(first))
            && !seen_verb
            && is_preposition(&row[0])
            && closes_phrase(&row[at - 1])
            && starts_phrase(row, at);
        if side_by_side && (at + 1..row.len()).any(|i| is_finite_verb(row, at, i)) {
            return at;
        }
        // "For a stove that was missed": a verb behind "that" is the stove's.
        let relates = matches!(token.text.as_str(), "that" | "who" | "which");
        let finite = is_finite_verb(row, 0, at);
        seen_verb |= finite && relatives == 0;
        relatives = (relatives + usize::from(relates)).saturating_sub(usize::from(finite));
    }
    0
}

/// "Opened in 1859, it is": a participle that describes the subject behind the comma.
fn is_participle_lead(row: &[Token]) -> bool {
    let participle = matches!(verb(&row[0].lower()), Some((_, Form::PastOrParticiple | Form::Participle)));
    participle
        && row.get(1).is_some_and(is_preposition)
        && row.iter().position(|token| token.text == ",").is_some_and(|comma| {
            row.get(comma + 1)
                .is_some_and(|next| PRONOUNS.contains(next.text.as_str()) || is_determiner(next) || next.is_capital())
        })
}

/// The end of "Each winter", "Every Tuesday", "One day" at the start.
fn time_lead_end(row: &[Token]) -> Option<usize> {
    if !matches!(row[0].lower().as_str(), "each" | "every" | "one" | "that" | "this") {
        return None;
    }
    let is_time = |token: &Token| {
        let lower = token.lower();
        let word = lower.as_str();
        DURATIONS.contains(word)
            || SEASONS.contains(word)
            || WEEKDAYS.contains(word)
            || MONTHS.contains(word) && token.is_capital()
            || matches!(word, "dawn" | "morning" | "evening" | "noon" | "season" | "weekday")
    };
    let end = (1..row.len().min(4)).find(|at| is_time(&row[*at]))? + 1;
    let comma = usize::from(row.get(end).is_some_and(|next| next.text == ","));
    (row.len() > end + comma + 1 && (starts_phrase(row, end + comma) || row[end + comma].is_capital())).then_some(end + comma)
}

fn is_time_adverb(word: &str) -> bool {
    matches!(
        word,
        "therefore"
            | "thus"
            | "hence"
            | "afterwards"
            | "today"
            | "now"
            | "then"
            | "later"
            | "originally"
            | "sometimes"
            | "usually"
            | "often"
            | "nowadays"
            | "meanwhile"
            | "soon"
            | "once"
            | "daily"
            | "here"
    )
}

/// Whether a subject can start at `at` right behind another phrase.
fn starts_phrase(row: &[Token], at: usize) -> bool {
    let token = &row[at];
    let lower = token.lower();
    let counted =
        is_number(token) && row.get(at + 1).is_some_and(|next| next.is_word() && !next.is_capital() && !is_preposition(next));
    counted && !is_number(&row[at - 1])
        || is_determiner(token) && lower != "that" && lower != "no"
        || matches!(lower.as_str(), "it" | "he" | "she" | "they" | "everybody" | "everyone" | "one" | "nobody" | "all")
        || token.is_capital() && at > 1 && is_name(row, at) && is_common_noun(&row[at - 1])
}

/// A word in front of which no name belongs to it: "In the air Ilva Brandreth wears".
pub(super) fn is_common_noun(token: &Token) -> bool {
    !token.is_capital()
        && token.text.len() > 2
        && !is_adjective_like(token)
        && !is_role(&token.text)
        && !is_preposition(token)
        && !is_number(token)
}

/// Whether a phrase can end with this word.
fn closes_phrase(token: &Token) -> bool {
    token.is_word()
        && !token.text.ends_with("'s")
        && !token.text.ends_with("’s")
        && !is_determiner(token)
        && !is_preposition(token)
        && !CONJUNCTIONS.contains(token.lower().as_str())
        && !is_auxiliary(token)
}

fn is_date_word(token: &Token) -> bool {
    let lower = token.lower();
    let lower = lower.as_str();
    token.is_number() || MONTHS.contains(lower) && token.is_capital() || SEASONS.contains(lower) || WEEKDAYS.contains(lower)
}

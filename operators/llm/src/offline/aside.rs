//! What is said in passing, between commas: names, relative clauses, what something is.

use super::clause::{Clause, MAX_DEPTH, Row, read};
use super::grammar::{
    Phrase, VerbGroup, is_auxiliary, is_finite_verb, is_ly, is_plural_form, is_preposition, phrases, verb_group,
};
use super::lead::is_common_noun;
use super::lexicon::{ADVERBS, CONJUNCTIONS, Form, is_role, verb};
use super::text::Token;

/// The end (its comma) of a name between commas behind a noun: "her goose, Marigold,".
pub(super) fn name_aside_end(row: &[Token], start: usize, at: usize) -> Option<usize> {
    let end = (at + 1..row.len()).find(|i| row[*i].text == ",")?;
    let common = at > start && !row[at - 1].is_capital() && row[start..at].iter().all(Token::is_word);
    let name = end > at + 1
        && end <= at + 5
        && row[at + 1..end].iter().all(|token| token.is_capital() && token.is_word() && !token.text.ends_with("'s"));
    let verb = row.get(end + 1).is_some_and(|next| is_verb_after_aside(row, start, end + 1, next));
    (common && name && verb).then_some(end)
}

/// Says how something is called that is named in passing, and gives what to call it in its own clause: the name for
/// "an inspector, Thea Rundle", noun and name for "her goose, Marigold".
pub(super) fn call(sentence: usize, noun: Row, name: Row, out: &mut Vec<Clause>) -> Row {
    let indefinite = matches!(noun[0].lower().as_str(), "a" | "an");
    let person = noun.len() <= 5 && noun.last().is_some_and(|last| is_role(&last.text));
    if person {
        if let Some((verb, _)) = verb_group(&[Token::new("is")], 0) {
            let mut rest = noun.clone();
            rest[0].text = rest[0].text.to_lowercase();
            out.push(Clause { sentence, lead: Row::new(), subject: name.clone(), verb, rest, tails: Vec::new() });
        }
        if indefinite {
            return name;
        }
    } else if let Some((verb, _)) = verb_group(&[Token::new("is"), Token::new("called")], 0)
        && !indefinite
    {
        out.push(Clause { sentence, lead: Row::new(), subject: noun.clone(), verb, rest: name.clone(), tails: Vec::new() });
    }
    [noun, name].concat()
}

/// "Opened in 1859, it is": what the lead says is a clause of its own, and the lead is gone. Any other lead stays.
pub(super) fn told_apart(sentence: usize, lead: &[Token], subject: &[Token], out: &mut Vec<Clause>) -> Row {
    let Some(first) = lead.first() else {
        return Row::new();
    };
    let participle =
        matches!(verb(&first.lower()), Some((_, Form::PastOrParticiple | Form::Participle))) && !is_preposition(first);
    if !participle {
        return lead.to_vec();
    }
    let said: Row = [Token::new("was"), Token::new(&first.lower())].into_iter().chain(lead[1..].iter().cloned()).collect();
    read(sentence, &said, Some(subject), MAX_DEPTH, out);
    Row::new()
}

pub(super) fn is_verb_after_aside(row: &[Token], start: usize, at: usize, next: &Token) -> bool {
    is_finite_verb(row, start, at) || is_auxiliary(next) && !matches!(next.text.as_str(), "be" | "been")
}

/// The end (its comma) of an aside that starts after the comma at `at`: ", who came late,", ", a volume in calf,".
pub(super) fn aside_end(row: &[Token], start: usize, at: usize) -> Option<usize> {
    let next = row.get(at + 1)?;
    let lower = next.lower();
    let opens = matches!(
        lower.as_str(),
        "who" | "which" | "whose" | "where" | "a" | "an" | "the" | "its" | "his" | "her" | "or" | "also" | "then" | "now"
    ) || matches!(verb(&lower), Some((_, Form::PastOrParticiple | Form::Participle | Form::Ing)))
        || is_preposition(next);
    if !opens || at == start {
        return None;
    }
    let end = (at + 1..row.len()).find(|i| row[*i].text == ",")?;
    // A list ("the key, the lamp, and the rope") has more commas before its verb.
    let follows = row.get(end + 1)?;
    (!CONJUNCTIONS.contains(follows.lower().as_str())).then_some(end)
}

/// An aside about `subject`: a relative clause, or what it is.
pub(super) fn describe(sentence: usize, subject: &[Token], aside: &[Token], past: bool, depth: usize, out: &mut Vec<Clause>) {
    let Some(first) = aside.first() else { return };
    match first.lower().as_str() {
        "who" | "which" => {
            let skip = 1 + aside[1..].iter().take_while(|token| ADVERBS.contains(token.text.as_str()) || is_ly(token)).count();
            if skip < aside.len() {
                let mut marked = subject.to_vec();
                marked.extend(aside[skip..].iter().cloned());
                if is_finite_verb(&marked, 0, subject.len()) || is_auxiliary(&aside[skip]) {
                    read(sentence, &aside[skip..], Some(subject), depth + 1, out);
                }
            }
        }
        "a" | "an" | "the" | "his" | "her" | "its" => {
            let whole = phrases(aside);
            let fits = whole.first().is_some_and(|phrase| phrase.range.start == 0);
            let states = |at: usize| {
                is_auxiliary(&aside[at])
                    || matches!(verb(&aside[at].text), Some((_, Form::Past | Form::ThirdPerson))) && is_finite_verb(aside, 0, at)
            };
            // "a baker who can't swim": the verb behind "who" is the baker's.
            let own =
                aside.iter().position(|token| matches!(token.text.as_str(), "who" | "which" | "that")).unwrap_or(aside.len());
            if fits && !(1..own).any(states) {
                let plural = subject.iter().any(|token| token.text == "and")
                    || subject.last().is_some_and(|last| last.text.ends_with('s') && !last.is_capital())
                    || first.lower() == "the" && aside.last().is_some_and(|last| last.text.ends_with("ers"));
                let word = match (past, plural) {
                    (true, false) => "was",
                    (true, true) => "were",
                    (false, false) => "is",
                    (false, true) => "are",
                };
                if let Some((verb, _)) = verb_group(&[Token::new(word)], 0) {
                    out.push(Clause {
                        sentence,
                        lead: Vec::new(),
                        subject: subject.to_vec(),
                        verb,
                        rest: aside.to_vec(),
                        tails: Vec::new(),
                    });
                }
            }
        }
        _ => {}
    }
}

/// "is a retired diver, Emrik Sloane" says who, and what that one is.
pub(super) fn introduce(sentence: usize, verb: &VerbGroup, rest: &mut Row, later: &mut Vec<Clause>) {
    let Some(comma) = rest.iter().rposition(|token| token.text == ",") else {
        return;
    };
    let (what, name) = (&rest[..comma], &rest[comma + 1..]);
    let Some(start) = phrases(what).last().filter(|phrase| phrase.range.end == comma).map(|phrase| phrase.range.start) else {
        return;
    };
    let fits = (1..=3).contains(&name.len())
        && name.iter().all(|token| token.is_capital() && token.is_word())
        && matches!(what[start].text.as_str(), "a" | "an")
        && is_role(&what[comma - 1].text);
    if let (true, Some((is, _))) = (fits, verb_group(&[Token::new("is")], 0)) {
        later.push(Clause {
            sentence,
            lead: Row::new(),
            subject: name.to_vec(),
            verb: is,
            rest: what[start..].to_vec(),
            tails: Vec::new(),
        });
        if verb.copula && start == 0 {
            *rest = name.to_vec();
        }
    }
}

/// "a donkey, Chancellor," as "a donkey called Chancellor", "her teacher, Imogen Stroud" as "her teacher Imogen Stroud".
pub(super) fn called(row: &[Token]) -> Row {
    let mut out = Row::with_capacity(row.len());
    let mut at = 0;
    while at < row.len() {
        let name =
            row[at + 1..].iter().take_while(|token| token.is_capital() && token.is_word() && !token.text.ends_with("'s")).count();
        let closed = row.get(at + 1 + name).is_none_or(|next| next.text == ",");
        let common = out.last().is_some_and(is_common_noun_or_role);
        let phrase = phrases(&out).last().filter(|phrase| phrase.range.end == out.len()).map_or(0, |phrase| phrase.range.start);
        let common =
            common && !(matches!(out[phrase].text.as_str(), "a" | "an") && out.last().is_some_and(|noun| is_role(&noun.text)));
        if row[at].text == "," && (1..=3).contains(&name) && closed && common {
            if !out.last().is_some_and(|noun| is_role(&noun.text)) {
                out.push(Token::new("called"));
            }
            out.extend(row[at + 1..at + 1 + name].iter().cloned());
            at += 1 + name;
            // A comma that only closed the name has nothing left to close.
            if row.get(at).is_some_and(|token| token.text == ",")
                && !row.get(at + 1).is_some_and(|next| matches!(next.text.as_str(), "who" | "which" | "and" | "but"))
            {
                at += 1;
            }
        } else {
            out.push(row[at].clone());
            at += 1;
        }
    }
    out
}

fn is_common_noun_or_role(token: &Token) -> bool {
    is_common_noun(token) || is_role(&token.text) && !token.is_capital()
}

/// The noun phrase at the end of a row, with a name's "of": what a relative clause after it speaks of.
pub(super) fn last_phrase(row: &[Token]) -> Option<Vec<Token>> {
    let Phrase { range, .. } = phrases(row).into_iter().last()?;
    // A lone word may be an adjective or adverb: "start early, the first of them".
    let prepared = range.start > 0 && is_preposition(&row[range.start - 1]);
    let alone = range.len() == 1 && !prepared;
    if alone && !row[range.start].is_capital() && !is_plural_form(&row[range.start].text) {
        return None;
    }
    let joined = range.start > 0 && CONJUNCTIONS.contains(row[range.start - 1].lower().as_str());
    (range.end == row.len() && !joined).then(|| row[range].to_vec())
}

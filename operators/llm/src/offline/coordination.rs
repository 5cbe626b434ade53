//! Where one clause ends and the next begins.

use super::grammar::{VerbGroup, is_auxiliary, is_determiner, is_finite_verb, is_ly, is_name, is_number, is_preposition};
use super::lexicon::{ADVERBS, Form, PRONOUNS, verb};
use super::text::Token;

/// The row of a coordinated predicate that shares the subject: "and knocks off", "and heard" after "is called".
pub(super) fn coordinated(row: &[Token], verb_before: &VerbGroup) -> Option<Vec<Token>> {
    let skip = row.iter().take_while(|token| ADVERBS.contains(token.text.as_str()) || is_ly(token)).count();
    let first = row.get(skip)?;
    if is_auxiliary(first) {
        return Some(row[skip..].to_vec());
    }
    let (_, form) = verb(&first.text)?;
    if first.is_capital() {
        return None;
    }
    // "was propelled and gained new hits": a form with an object isn't passive.
    let object = row
        .get(skip + 1)
        .is_some_and(|next| next.is_word() && !is_preposition(next) && !ADVERBS.contains(next.text.as_str()) && !is_ly(next));
    if verb_before.passive && form == Form::PastOrParticiple && object {
        return Some(row[skip..].to_vec());
    }
    let same = match (verb_before.lexical, form) {
        (None, Form::Participle | Form::PastOrParticiple) if verb_before.passive => true,
        (None, Form::Base) => verb_before.tokens.len() == 2 && !verb_before.passive && !verb_before.copula,
        (None, _) => {
            return (form == Form::ThirdPerson || form == Form::Past).then(|| row[skip..].to_vec());
        }
        (Some(a), b) if a == b => return Some(row[skip..].to_vec()),
        (Some(Form::Past | Form::PastOrParticiple), Form::Past | Form::PastOrParticiple) => {
            return Some(row[skip..].to_vec());
        }
        _ => false,
    };
    same.then(|| {
        let shared = &verb_before.tokens[..verb_before.tokens.len() - 1];
        shared.iter().cloned().chain(row[skip..].iter().cloned()).collect()
    })
}

/// Whether another clause starts at `at`, behind a verb and its complements.
pub(super) fn starts_further_clause(row: &[Token], at: usize, verb_before: &VerbGroup) -> bool {
    let token = &row[at];
    let lower = token.lower();
    let lower = lower.as_str();
    let rest = &row[at + 1..];
    let Some(next) = rest.first() else {
        return false;
    };
    let next_lower = next.lower();
    let next_lower = next_lower.as_str();
    let has_verb = |row: &[Token]| {
        let end = row.iter().position(|token| matches!(token.text.as_str(), ",")).unwrap_or(row.len());
        (1..end).any(|i| is_finite_verb(row, 0, i))
    };
    if token.text == "," {
        return match next_lower {
            "who" | "which" | "where" | "whose" => true,
            "because" | "although" | "though" | "while" | "when" | "whenever" | "since" | "as" | "if" | "unless" | "until"
            | "after" | "before" | "once" | "whereas" | "whatever" | "so" => {
                has_verb(&rest[1..]) || rest.len() > 1 && matches!(next_lower, "so" | "whatever")
            }
            "and" | "but" => {
                let after = &rest[1..];
                !after.is_empty() && (coordinated(after, verb_before).is_some() || has_verb(after))
            }
            "a" | "an" => !list_goes_on(rest),
            _ => !next.is_capital() && !is_number(next) && next.is_word() && !list_goes_on(rest),
        };
    }
    match lower {
        "because" | "although" | "though" | "whenever" | "unless" | "whereas" => true,
        "when" | "while" | "where" | "once" | "until" | "before" | "after" | "if" | "since" => at > 0 && has_verb(rest),
        "so" => next_lower == "that",
        "as" => next_lower == "soon" || next_lower == "long" && rest.get(1).is_some_and(|third| third.text == "as"),
        "and" | "but" => {
            // "all stoves and pipes": two plurals in a row are two nouns.
            let plurals = at > 0
                && row[at - 1].text.ends_with('s')
                && !is_auxiliary(next)
                && matches!(verb(&next.text), Some((_, Form::ThirdPerson)));
            let parallel = verb_before.lexical == Some(Form::ThirdPerson) && rest.get(1).is_some_and(is_preposition);
            at > 0
                && !(plurals && !parallel && !rest.get(1).is_some_and(is_determiner))
                && (coordinated(rest, verb_before).is_some_and(|_| !is_number(next))
                    || starts_like_subject(rest) && has_sure_verb(rest))
        }
        _ => false,
    }
}

/// Whether a row has a finite verb that can't be part of a noun phrase, as "set" in "a radio set in 1951".
fn has_sure_verb(row: &[Token]) -> bool {
    let end = row.iter().position(|token| token.text == ",").unwrap_or(row.len());
    (1..end).any(|at| {
        let loose = matches!(verb(&row[at].text), Some((_, Form::PastOrParticiple | Form::Base)))
            && row.get(at + 1).is_none_or(is_preposition);
        is_finite_verb(row, 0, at) && !loose
    })
}

fn starts_like_subject(row: &[Token]) -> bool {
    is_determiner(&row[0]) || PRONOUNS.contains(row[0].lower().as_str()) || is_name(row, 0)
}

/// Whether an "and" follows before the next verb, as in "a key, a lamp and a rope".
fn list_goes_on(row: &[Token]) -> bool {
    let end = (1..row.len()).find(|at| is_finite_verb(row, 0, *at)).unwrap_or(row.len());
    row[..end].iter().any(|token| matches!(token.text.as_str(), "and" | "or"))
}

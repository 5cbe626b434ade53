//! Takes sentences apart into clauses: one subject, one verb, and what belongs to them.

use super::grammar::{
    Phrase, VerbGroup, is_adjective_like, is_auxiliary, is_determiner, is_finite_verb, is_ly, is_name, is_number, is_preposition,
    phrases, verb_group,
};
use super::lexicon::{
    ADVERBS, CONJUNCTIONS, DURATIONS, Form, MONTHS, PRONOUNS, SEASONS, SUBJECT_PRONOUNS, SUBORDINATORS, WEEKDAYS, is_role, verb,
};
#[cfg(test)]
use super::text::join;
use super::text::{Token, tokens};

/// Something that is said: who or what, does or is, what. Read in order (`lead`, comma, `subject`, `verb`, `rest`,
/// `tails`) it is a sentence without its stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clause {
    /// The sentence of the text it comes from, by number.
    pub(super) sentence: usize,
    /// An adjunct that stands before the subject: "In 1912". Empty where there is none.
    pub(super) lead: Vec<Token>,
    pub(super) subject: Vec<Token>,
    pub(super) verb: VerbGroup,
    /// Objects, complements and adjuncts after the verb.
    pub(super) rest: Vec<Token>,
    /// Dependent clauses at the end, each with the word that begins it: "because the rope is wet".
    pub(super) tails: Vec<Vec<Token>>,
}

impl Clause {
    /// The tails with the commas that they need: none before "because" or "when", one before a loose addition.
    pub(super) fn tails_told(&self) -> Vec<Token> {
        let mut out = Vec::new();
        for tail in &self.tails {
            let word = tail[0].lower();
            let close = matches!(
                word.as_str(),
                "because"
                    | "when"
                    | "whenever"
                    | "while"
                    | "until"
                    | "before"
                    | "after"
                    | "as"
                    | "if"
                    | "unless"
                    | "once"
                    | "so"
                    | "since"
                    | "to"
            );
            if !close {
                out.push(Token { text: ",".to_owned(), spaced: false });
            }
            out.extend(tail.iter().cloned());
        }
        out
    }

    /// The clause in its plain order, without the tails.
    pub(super) fn core(&self) -> Vec<Token> {
        let mut out = self.subject.clone();
        out.extend(self.verb.tokens.iter().cloned());
        out.extend(self.rest.iter().cloned());
        out
    }

    /// The adjunct at the start in the form it has elsewhere: "in 1912".
    pub(super) fn lead_inside(&self) -> Vec<Token> {
        let mut lead = self.lead.clone();
        if let Some(first) = lead.first_mut()
            && !is_name(&self.lead, 0)
        {
            first.text = first.text.to_lowercase();
        }
        lead
    }
}

/// The clauses of a sentence. A sentence that can't be taken apart gives none.
pub(super) fn clauses(sentence: usize, text: &str) -> Vec<Clause> {
    let mut row = tokens(text);
    while row.last().is_some_and(|token| matches!(token.text.as_str(), "." | "!" | "?" | ";" | ":")) {
        row.pop();
    }
    if text.trim_end().ends_with('?') || row.len() < 3 {
        return Vec::new();
    }
    let row = without_brackets(&row);
    let mut out = Vec::new();
    for part in row.split(|token| token.text == ";") {
        read(sentence, part, None, 0, &mut out);
    }
    out
}

fn without_brackets(row: &[Token]) -> Vec<Token> {
    let mut depth = 0;
    let mut out = Vec::with_capacity(row.len());
    for token in row {
        match token.text.as_str() {
            "(" | "[" => depth += 1,
            ")" | "]" => depth = (depth - 1).max(0),
            _ if depth == 0 => out.push(token.clone()),
            _ => {}
        }
    }
    out
}

const MAX_DEPTH: usize = 6;

/// Reads a row of words as a clause and what hangs on it. `subject` is given where the row starts with its verb.
fn read(sentence: usize, row: &[Token], subject: Option<&[Token]>, depth: usize, out: &mut Vec<Clause>) {
    if row.is_empty() || depth > MAX_DEPTH {
        return;
    }
    if let Some(subject) = subject {
        if let Some((verb, end)) = verb_group(row, 0) {
            finish(sentence, Vec::new(), subject.to_vec(), verb, &row[end..], depth, out);
        }
        return;
    }
    let start = lead_end(row);
    let lead_stop = if start > 0 && row[start - 1].text == "," { start - 1 } else { start };
    let mut subject = Vec::new();
    let mut asides: Vec<Vec<Token>> = Vec::new();
    let mut named: Option<(usize, Row)> = None;
    let mut relative = 0;
    let mut at = start;
    while at < row.len() {
        let token = &row[at];
        if token.text == "," {
            if let Some(end) = name_aside_end(row, start, at) {
                named = Some((subject.len(), row[at + 1..end].to_vec()));
                at = end + 1;
                continue;
            }
            match aside_end(row, start, at) {
                Some(end) => {
                    asides.push(row[at + 1..end].to_vec());
                    at = end + 1;
                    // The verb has to come now, or the subject goes on.
                    if row.get(at).is_some_and(|next| is_verb_after_aside(row, start, at, next)) {
                        break;
                    }
                    continue;
                }
                None => {
                    // A list within the subject: "brass, tin and copper are".
                    subject.push(token.clone());
                    at += 1;
                    continue;
                }
            }
        }
        let relates = at > start && matches!(token.text.as_str(), "who" | "which" | "that") && !is_determiner_that(row, at);
        if relates || at == start && matches!(token.lower().as_str(), "whoever" | "whatever") {
            relative += 1;
        } else if is_finite_verb(row, start, at) {
            if relative == 0 {
                break;
            }
            relative -= 1;
        }
        subject.push(token.clone());
        at += 1;
    }
    let Some((verb, end)) = (at < row.len()).then(|| verb_group(row, at)).flatten() else {
        turned_around(sentence, row, out);
        return;
    };
    let Some(mut subject) = without_adverbs(trimmed(without_aside(subject))) else {
        return;
    };
    // "A lock keeper's son, he": the pronoun alone is the subject.
    if let [.., comma, pronoun] = subject.as_slice()
        && comma.text == ","
        && SUBJECT_PRONOUNS.contains(pronoun.text.as_str())
    {
        subject = vec![pronoun.clone()];
    }
    if subject.is_empty() {
        return;
    }
    if !is_plain_subject(&subject) {
        turned_around(sentence, row, out);
        return;
    }
    let subject = match named {
        Some((length, name)) if length == subject.len() => call(sentence, subject, name, out),
        // What was named in passing isn't the subject's end: the name stays where it was.
        Some(_) => return,
        None => subject,
    };
    for aside in asides {
        describe(sentence, &subject, &aside, verb.is_past(), depth, out);
    }
    let mut lead = told_apart(sentence, &row[..lead_stop], &subject, out);
    // "With it": nobody knows any more with what.
    if lead.iter().any(|token| matches!(token.lower().as_str(), "it" | "them" | "this" | "that" | "these")) && lead.len() <= 3 {
        lead.clear();
    }
    finish(sentence, lead, subject, verb, &row[end..], depth, out);
}

/// The end (its comma) of a name between commas behind a noun: "her goose, Marigold,".
fn name_aside_end(row: &[Token], start: usize, at: usize) -> Option<usize> {
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
fn call(sentence: usize, noun: Row, name: Row, out: &mut Vec<Clause>) -> Row {
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
fn told_apart(sentence: usize, lead: &[Token], subject: &[Token], out: &mut Vec<Clause>) -> Row {
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

fn is_verb_after_aside(row: &[Token], start: usize, at: usize, next: &Token) -> bool {
    is_finite_verb(row, start, at) || is_auxiliary(next) && !matches!(next.text.as_str(), "be" | "been")
}

fn is_determiner_that(row: &[Token], at: usize) -> bool {
    row[at].text == "that" && is_preposition(&row[at - 1])
}

/// Words in a row.
type Row = Vec<Token>;

fn trimmed(mut row: Vec<Token>) -> Vec<Token> {
    while row.last().is_some_and(|token| token.text == "," || CONJUNCTIONS.contains(token.lower().as_str())) {
        row.pop();
    }
    while row
        .first()
        .is_some_and(|token| token.text == "," || CONJUNCTIONS.contains(token.lower().as_str()) || token.text == "\"")
    {
        row.remove(0);
    }
    row
}

/// "A tame hedgehog, Button by name, sleeps": what stands between two commas at the end of a subject isn't part of it.
fn without_aside(mut subject: Row) -> Row {
    let commas: Vec<usize> = (0..subject.len()).filter(|at| subject[*at].text == ",").collect();
    if let [first, last] = commas.as_slice()
        && *last == subject.len() - 1
        && *first > 0
        && !subject[*first..].iter().any(|token| matches!(token.text.as_str(), "and" | "or"))
    {
        subject.truncate(*first);
    }
    subject
}

/// Takes adverbs off the end of a subject ("he strongly"). `None` where one turns the sense around.
fn without_adverbs(mut subject: Vec<Token>) -> Option<Vec<Token>> {
    while let Some(last) = subject.last() {
        match last.text.as_str() {
            "never" | "not" | "hardly" | "scarcely" | "seldom" | "rarely" | "only" | "barely" => {
                return None;
            }
            word if subject.len() > 1 && !last.is_capital() && (ADVERBS.contains(word) || is_ly(last)) => drop(subject.pop()),
            _ => break,
        }
    }
    Some(subject)
}

/// Whether a row can be a subject: it starts like a noun phrase.
fn is_plain_subject(subject: &[Token]) -> bool {
    let first = &subject[0];
    let lower = first.lower();
    let lower = lower.as_str();
    let quotes = subject.iter().filter(|token| matches!(token.text.as_str(), "\"" | "“" | "”")).count();
    !(is_preposition(first) && !is_number(first) && !is_name(subject, 0))
        && !matches!(
            lower,
            "there" | "who" | "which" | "that" | "what" | "when" | "if" | "because" | "where" | "how" | "here" | "then" | "not"
        )
        && !ADVERBS.contains(lower)
        && quotes.is_multiple_of(2)
        && subject.iter().any(Token::is_word)
}

/// Where the subject starts: behind an adjunct and its comma, or behind a date that needs no comma.
fn lead_end(row: &[Token]) -> usize {
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
    while row.get(at).is_some_and(|token| is_date_word(token)) {
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
            && !dependent
            && !seen_verb
            && is_preposition(&row[0])
            && closes_phrase(&row[at - 1])
            && starts_phrase(row, at);
        if side_by_side && (at + 1..row.len()).any(|i| is_finite_verb(row, at, i)) {
            return at;
        }
        seen_verb |= is_finite_verb(row, 0, at);
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
        "afterwards"
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
fn is_common_noun(token: &Token) -> bool {
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

/// The end (its comma) of an aside that starts after the comma at `at`: ", who came late,", ", a volume in calf,".
fn aside_end(row: &[Token], start: usize, at: usize) -> Option<usize> {
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

/// "Behind the party goes the stove marshal": what stands after the verb is the subject.
fn turned_around(sentence: usize, row: &[Token], out: &mut Vec<Clause>) {
    if !is_preposition(&row[0]) {
        return;
    }
    let (row, aside) = match row.iter().position(|token| token.text == ",") {
        Some(comma) => (&row[..comma], &row[comma + 1..]),
        None => (row, &row[row.len()..]),
    };
    let Some(at) = (2..row.len())
        .find(|at| is_standing_verb(&row[*at]) && row.get(at + 1).is_some_and(|next| is_determiner(next) || is_number(next)))
    else {
        return;
    };
    let subject = &row[at + 1..];
    let found = phrases(subject);
    let plain =
        found.first().is_some_and(|phrase| phrase.range.start == 0) && !(1..subject.len()).any(|i| is_finite_verb(subject, 0, i));
    if let (true, Some((verb, _))) = (plain, verb_group(row, at)) {
        let mut rest = row[..at].to_vec();
        if !is_name(&rest, 0) {
            rest[0].text = rest[0].text.to_lowercase();
        }
        describe(sentence, subject, aside, verb.is_past(), 0, out);
        out.push(Clause { sentence, lead: Vec::new(), subject: subject.to_vec(), verb, rest, tails: Vec::new() });
    }
}

fn is_standing_verb(token: &Token) -> bool {
    matches!(verb(&token.text), Some((base, Form::ThirdPerson | Form::Past | Form::PastOrParticiple | Form::Base))
        if matches!(base.as_str(), "stand" | "lie" | "go" | "come" | "hang" | "sit" | "run" | "live" | "rise" | "grow" | "lead" | "begin" | "follow" | "hide"))
        && !token.is_capital()
}

/// An aside about `subject`: a relative clause, or what it is.
fn describe(sentence: usize, subject: &[Token], aside: &[Token], past: bool, depth: usize, out: &mut Vec<Clause>) {
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
            if fits && !(1..aside.len()).any(states) {
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

/// Cuts what follows a verb: the clause's own rest, dependent clauses, and further clauses.
fn finish(
    sentence: usize,
    lead: Vec<Token>,
    subject: Vec<Token>,
    verb: VerbGroup,
    after: &[Token],
    depth: usize,
    out: &mut Vec<Clause>,
) {
    let after = &called(after)[..];
    let cut = (0..after.len()).find(|at| starts_further_clause(after, *at, &verb)).unwrap_or(after.len());
    let mut rest = after[..cut].to_vec();
    while rest.last().is_some_and(|token| token.text == "," || token.text == ":") {
        rest.pop();
    }
    let mut later = Vec::new();
    introduce(sentence, &verb, &mut rest, &mut later);
    let mut clause = Clause { sentence, lead, subject: subject.clone(), verb: verb.clone(), rest, tails: Vec::new() };
    let mut at = cut;
    while at < after.len() {
        let body = &after[at..];
        let skip = usize::from(body[0].text == ",");
        let Some(first) = body.get(skip) else { break };
        let end =
            1 + skip + (skip + 1..body.len()).find(|i| starts_further_clause(body, *i, &verb)).unwrap_or(body.len()) - (skip + 1);
        let end = end.max(skip + 1).min(body.len());
        let part = &body[skip..end];
        match first.lower().as_str() {
            "who" | "which" => {
                let before = clause.tails.last().unwrap_or(&clause.rest);
                // "which is equivalent to": more often about the whole sentence than about its last noun.
                let about_all = part.get(1).is_some_and(is_auxiliary)
                    && part
                        .get(2)
                        .is_some_and(|third| !is_determiner(third) && verb_group(part, 1).is_none_or(|(verb, _)| verb.copula));
                if let Some(antecedent) = last_phrase(before)
                    && !about_all
                {
                    describe(sentence, &antecedent, part, verb.is_past(), depth, &mut later);
                }
            }
            "and" | "but" if part.len() > 2 => {
                let part = &part[1..];
                match coordinated(part, &verb) {
                    Some(own) => read(sentence, &own, Some(&subject), depth + 1, &mut later),
                    None => read(sentence, part, None, depth + 1, &mut later),
                }
            }
            "a" | "an" | "the" => {
                if let Some(antecedent) = last_phrase(&clause.rest)
                    && !after[at + end..].iter().any(|token| token.text == ",")
                {
                    describe(sentence, &antecedent, part, verb.is_past(), depth, &mut later);
                }
            }
            _ => {
                let mut tail = part.to_vec();
                while tail.last().is_some_and(|token| token.text == ",") {
                    tail.pop();
                }
                clause.tails.push(tail);
            }
        }
        at += end;
    }
    out.push(clause);
    out.extend(later);
}

/// "is a retired diver, Emrik Sloane" says who, and what that one is.
fn introduce(sentence: usize, verb: &VerbGroup, rest: &mut Row, later: &mut Vec<Clause>) {
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
fn called(row: &[Token]) -> Row {
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

/// The row of a coordinated predicate that shares the subject: "and knocks off", "and heard" after "is called".
fn coordinated(row: &[Token], verb_before: &VerbGroup) -> Option<Vec<Token>> {
    let skip = row.iter().take_while(|token| ADVERBS.contains(token.text.as_str()) || is_ly(token)).count();
    let first = row.get(skip)?;
    if is_auxiliary(first) {
        return Some(row[skip..].to_vec());
    }
    let (_, form) = verb(&first.text)?;
    if first.is_capital() {
        return None;
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

/// The noun phrase at the end of a row, with a name's "of": what a relative clause after it speaks of.
fn last_phrase(row: &[Token]) -> Option<Vec<Token>> {
    let Phrase { range, .. } = phrases(row).into_iter().last()?;
    let joined = range.start > 0 && CONJUNCTIONS.contains(row[range.start - 1].lower().as_str());
    (range.end == row.len() && !joined).then(|| row[range].to_vec())
}

/// Whether another clause starts at `at`, behind a verb and its complements.
fn starts_further_clause(row: &[Token], at: usize, verb_before: &VerbGroup) -> bool {
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

/// A clause as text, in its plain order with lead and tails.
#[cfg(test)]
pub(super) fn shown(clause: &Clause) -> String {
    let tails: Vec<String> = clause.tails.iter().map(|tail| join(tail)).collect();
    let verb = join(&clause.verb.tokens);
    let mut out = format!("{} | {} | {} | {}", join(&clause.lead), join(&clause.subject), verb, join(&clause.rest));
    for tail in tails {
        out.push_str(" / ");
        out.push_str(&tail);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<String> {
        clauses(0, text).iter().map(shown).collect()
    }

    #[test]
    fn sentences_are_taken_apart() {
        for (text, expected) in [
            ("Ada Fenn designed the tower in 1912.", vec![" | Ada Fenn | designed | the tower in 1912"]),
            ("In 1912, the tower was built by Ada Fenn.", vec!["In 1912 | the tower | was built | by Ada Fenn"]),
            ("In 1912 the tower was built.", vec!["In 1912 | the tower | was built | "]),
            (
                "The tower, which has 142 steps, was built in 1912 and opened in 1913.",
                vec![
                    " | The tower | has | 142 steps",
                    " | The tower | was built | in 1912",
                    " | The tower | was opened | in 1913",
                ],
            ),
            (
                "It is led by the ice warden, who alone may call a halt.",
                vec![" | It | is led | by the ice warden", " | the ice warden | may call | a halt"],
            ),
            (
                "Gloves of sheepskin are compulsory in Cold Reeling, since wet leather sticks.",
                vec![" | Gloves of sheepskin | are | compulsory in Cold Reeling / since wet leather sticks"],
            ),
            ("Behind the party goes the stove marshal.", vec![" | the stove marshal | goes | behind the party"]),
            (
                "One of them walks ahead and knocks off the ice with a birch mallet.",
                vec![" | One of them | walks | ahead", " | One of them | knocks | off the ice with a birch mallet"],
            ),
            (
                "The result goes into the Roll of Hands, a volume bound in calfskin.",
                vec![" | The result | goes | into the Roll of Hands", " | the Roll of Hands | is | a volume bound in calfskin"],
            ),
            (
                "Work starts at 10:30, when the sun has reached the rope.",
                vec![" | Work | starts | at 10:30 / when the sun has reached the rope"],
            ),
        ] {
            assert_eq!(cut(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_statement_gives_nothing() {
        assert!(cut("Why?").is_empty());
        assert!(cut("A heading without a verb").is_empty());
    }
}

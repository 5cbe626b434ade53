//! Takes sentences apart into clauses: one subject, one verb, and what belongs to them.

use super::aside::{aside_end, call, called, describe, introduce, is_verb_after_aside, last_phrase, name_aside_end, told_apart};
use super::coordination::{coordinated, starts_further_clause};
use super::grammar::{
    VerbGroup, is_auxiliary, is_determiner, is_finite_verb, is_ly, is_name, is_number, is_preposition, phrases, verb_group,
};
use super::lead::lead_end;
use super::lexicon::{ADVERBS, CONJUNCTIONS, Form, SUBJECT_PRONOUNS, verb};
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
    /// A sentence that couldn't be taken apart: all of it stands in `rest`.
    pub(super) fn whole(sentence: usize, row: Vec<Token>) -> Self {
        let verb = VerbGroup { tokens: Vec::new(), base: String::new(), lexical: None, passive: false, copula: false };
        Self { sentence, lead: Vec::new(), subject: Vec::new(), verb, rest: row, tails: Vec::new() }
    }

    /// Whether it has a subject and a verb.
    pub(super) fn is_apart(&self) -> bool {
        !self.verb.tokens.is_empty()
    }

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

/// Clauses within clauses beyond this are not read.
pub(super) const MAX_DEPTH: usize = 6;

/// Reads a row of words as a clause and what hangs on it. `subject` is given where the row starts with its verb.
pub(super) fn read(sentence: usize, row: &[Token], subject: Option<&[Token]>, depth: usize, out: &mut Vec<Clause>) {
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
    let closes = subject.last().is_some_and(|last| last.text == ",");
    let Some(mut subject) = without_adverbs(trimmed(without_aside(subject))) else {
        return;
    };
    // "Two stokers, Hal Brisk and Dora Menzies, look": the second comma belongs to the first.
    let named_list = subject
        .iter()
        .position(|token| token.text == ",")
        .is_some_and(|comma| subject[comma + 1..].iter().all(|token| token.is_capital() || token.text == "and"));
    if closes && named_list {
        subject.push(Token { text: ",".to_owned(), spaced: false });
    }
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
    let linking = lead.len() == 1
        && matches!(
            lead[0].lower().as_str(),
            "therefore"
                | "thus"
                | "hence"
                | "however"
                | "moreover"
                | "furthermore"
                | "also"
                | "instead"
                | "otherwise"
                | "nevertheless"
                | "indeed"
                | "consequently"
                | "additionally"
                | "finally"
        );
    if linking
        || lead.iter().any(|token| matches!(token.lower().as_str(), "it" | "them" | "this" | "that" | "these")) && lead.len() <= 3
    {
        lead.clear();
    }
    finish(sentence, lead, subject, verb, &row[end..], depth, out);
}

fn is_determiner_that(row: &[Token], at: usize) -> bool {
    row[at].text == "that" && is_preposition(&row[at - 1])
}

/// Words in a row.
pub(super) type Row = Vec<Token>;

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
    // "Speaking aloud costs": here the adverb belongs to what is done.
    if matches!(verb(&subject.first()?.lower()), Some((_, Form::Ing))) {
        return Some(subject);
    }
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
    let adjunct = is_preposition(first) && !is_number(first) && !is_name(subject, 0);
    let opens_another = matches!(
        lower,
        "there" | "who" | "which" | "that" | "what" | "when" | "if" | "because" | "where" | "how" | "here" | "then" | "not"
    );
    // "most of the baskets" is a subject, "mostly" and "often" are none.
    let adverb = ADVERBS.contains(lower) && subject.get(1).is_none_or(|next| next.text != "of");
    !adjunct && !opens_another && !adverb && quotes.is_multiple_of(2) && subject.iter().any(Token::is_word)
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
    while rest.last().is_some_and(|token| matches!(token.text.as_str(), "," | ":" | "and" | "or" | "but")) {
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

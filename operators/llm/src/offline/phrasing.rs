//! Says one clause in several ways.

use super::clause::Clause;
use super::document::{Document, Nature, head_noun};
use super::grammar::{is_plural_form, is_preposition, phrases};
use super::lexicon::{Form, UNITS, participle, verb};
use super::rewrite::finished;
use super::text::{Token, contains_words, join, mixed};
use super::wording::{active_verb, row, sentence};

/// Words that stand for others in the same place: from, to.
const SYNONYMS: &[(&str, &str)] = &[
    ("begins", "starts"),
    ("starts at", "begins at"),
    ("began", "started"),
    ("built", "constructed"),
    ("compulsory", "obligatory"),
    ("forbidden", "prohibited"),
    ("prohibited", "forbidden"),
    ("needed", "required"),
    ("required", "needed"),
    ("big", "large"),
    ("often", "frequently"),
    ("nearly", "almost"),
    ("mainly", "mostly"),
    ("helped", "assisted"),
    ("bought", "purchased"),
    ("purchased", "bought"),
    ("chosen", "selected"),
    ("close to", "near"),
    ("every year", "each year"),
    ("every day", "each day"),
    ("every week", "each week"),
    ("each year", "every year"),
    ("also known as", "also called"),
    ("because of", "owing to"),
    ("in order to", "to"),
];

/// The clause in its plain order, with everything that belongs to it.
pub(super) fn plain(clause: &Clause) -> String {
    let tails = clause.tails_told();
    sentence(&[&clause.lead, &clause.subject, &clause.verb.tokens, &clause.rest, &tails])
}

/// Tells the clauses of a document one after another.
pub(super) struct Teller<'a> {
    document: &'a Document,
    seed: u64,
    /// Of the sentence told last.
    last_subject: Vec<Token>,
    pronoun: &'static str,
    unnamed: usize,
}

impl<'a> Teller<'a> {
    pub(super) fn new(document: &'a Document, seed: u64) -> Self {
        let text = format!(" {} ", document.sentences.join(" ").to_lowercase());
        let count = |word: &str| text.matches(word).count();
        let pronoun = match document.subject.nature {
            Nature::Person if count(" she ") + count(" her ") > count(" he ") + count(" his ") => "she",
            Nature::Person => "he",
            _ if count(" they ") > count(" it ") && document.subject.bare.ends_with('s') => "they",
            _ => "it",
        };
        Self { document, seed, last_subject: Vec::new(), pronoun, unnamed: 0 }
    }

    /// A sentence that says the clause, with a second one about the same subject where given. It prefers words for which
    /// `is_source` is false.
    pub(super) fn tell(
        &mut self,
        number: usize,
        partner: Option<usize>,
        first: bool,
        is_source: &dyn Fn(&str) -> bool,
    ) -> Option<String> {
        let clause = &self.document.clauses[number];
        let variant = mixed(self.seed ^ (number as u64 + 1).wrapping_mul(0x5851_f42d));
        let mut forms = match partner {
            Some(partner) => joined(self.document, clause, &self.document.clauses[partner], variant),
            None => self.forms(clause),
        };
        let n = forms.len().max(1);
        forms.rotate_left((variant % n as u64) as usize);
        let name = self.document.subject.name.clone();
        let is_subject = join(&clause.subject) == name;
        let repeats = is_subject && !first && join(&self.last_subject) == name && variant & 8 != 0;
        let mut best = None;
        for form in &forms {
            let mut text = with_synonyms(form, variant);
            if repeats && text.starts_with(&name) {
                text = format!("{}{}", self.pronoun, &text[name.len()..]);
            } else if !self.document.subject.is_named_in(&text) && (first || self.unnamed >= 1) {
                text = self.document.subject.named(&text, variant >> 8);
            }
            let text = finished(&text);
            if !is_source(&text) {
                best = Some(text);
                break;
            }
            best.get_or_insert(text);
        }
        let told = best?;
        self.unnamed = if self.document.subject.is_named_in(&told) { 0 } else { self.unnamed + 1 };
        self.last_subject.clone_from(&clause.subject);
        Some(told)
    }

    /// The ways to say a clause, without capital and stop.
    fn forms(&self, clause: &Clause) -> Vec<String> {
        if !clause.is_apart() {
            return vec![plain(clause)];
        }
        let verb = &clause.verb.tokens;
        let tails = clause.tails_told();
        let lead = clause.lead_inside();
        let mut forms = Vec::new();
        let back = sentence(&[&clause.subject, verb, &clause.rest, &lead, &tails]);
        if clause.lead.is_empty() {
            if let Some((adjunct, rest)) = final_adjunct(clause) {
                let fronted = sentence(&[&adjunct, &row(","), &clause.subject, verb, &rest, &tails]);
                forms.push(fronted.replace(" ,", ","));
                let dated = matches!(adjunct[0].text.as_str(), "in" | "on" | "at" | "during");
                if dated && clause.tails.is_empty() {
                    forms.push(format!(
                        "it {} {} that {}",
                        if clause.verb.is_past() { "was" } else { "is" },
                        join(&adjunct),
                        sentence(&[&clause.subject, verb, &rest])
                    ));
                }
            }
        } else {
            forms.push(back.clone());
        }
        if let Some((active, by)) = active_verb(clause) {
            let agent = phrases(&clause.rest).into_iter().find(|phrase| phrase.range.start == by + 1);
            if let Some(agent) = agent
                .filter(|agent| clause.rest.get(agent.range.end).is_none_or(|next| is_preposition(next) && next.text != "of"))
            {
                let actor = &clause.rest[agent.range.clone()];
                let plural = is_plural_form(&head_noun(actor)) && !actor[actor.len() - 1].is_capital();
                let active = if plural && !clause.verb.is_past() { row(&clause.verb.base) } else { active };
                forms.push(sentence(&[
                    actor,
                    &active,
                    &clause.subject,
                    &clause.rest[..by],
                    &clause.rest[agent.range.end..],
                    &lead,
                    &tails,
                ]));
            }
        }
        if let Some(passive) = passive(clause, &lead, &tails) {
            forms.push(passive);
        }
        if let Some(cleft) = cleft(self.document, clause, &lead, &tails) {
            forms.push(cleft);
        }
        if let Some(turned) = there_is(clause, &lead, &tails) {
            forms.push(turned);
        }
        if forms.is_empty() || clause.lead.is_empty() {
            forms.push(back);
        }
        forms
    }
}

/// The last adjunct of time, place or circumstance, and what stays without it.
fn final_adjunct(clause: &Clause) -> Option<(Vec<Token>, Vec<Token>)> {
    let rest = &clause.rest;
    let last = phrases(rest).into_iter().next_back()?;
    let at = last.preposition?;
    let fits = last.range.end == rest.len()
        && at > 0
        && matches!(rest[at].text.as_str(), "in" | "on" | "at" | "during" | "after" | "before" | "since" | "until")
        && rest[at - 1].is_word()
        && !is_preposition(&rest[at - 1])
        && !matches!(verb(&rest[at - 1].text), Some((_, Form::Participle | Form::PastOrParticiple)))
        && rest.len() <= 14
        && !rest[..at].iter().any(|token| matches!(token.text.as_str(), "to" | "that" | "and" | "," | "\""));
    fits.then(|| (rest[at..].to_vec(), rest[..at].to_vec()))
}

/// Verbs whose object can become a subject without harm.
fn is_transitive(base: &str) -> bool {
    matches!(
        base,
        "build"
            | "design"
            | "found"
            | "paint"
            | "write"
            | "make"
            | "invent"
            | "introduce"
            | "discover"
            | "carve"
            | "keep"
            | "use"
            | "carry"
            | "hold"
            | "support"
            | "train"
            | "teach"
            | "lead"
            | "draft"
            | "devise"
            | "rebuild"
            | "repair"
            | "donate"
            | "buy"
            | "defeat"
            | "win"
            | "record"
            | "open"
            | "close"
            | "feed"
            | "guard"
            | "watch"
            | "protect"
            | "announce"
            | "lift"
            | "drive"
            | "power"
            | "heat"
            | "cover"
            | "surround"
            | "survey"
            | "drop"
            | "clean"
            | "wash"
            | "check"
            | "inspect"
            | "test"
            | "measure"
            | "produce"
            | "print"
            | "publish"
            | "establish"
            | "create"
            | "develop"
            | "capture"
            | "destroy"
            | "replace"
            | "restore"
            | "restrict"
            | "forge"
            | "weave"
            | "sew"
            | "cook"
            | "bake"
            | "brew"
            | "serve"
            | "plant"
            | "grow"
            | "collect"
            | "store"
            | "seal"
            | "lock"
            | "mark"
            | "light"
            | "ring"
            | "sound"
            | "raise"
            | "lower"
            | "steer"
            | "command"
            | "own"
            | "run"
            | "manage"
            | "burn"
            | "drafted"
            | "govern"
            | "challenge"
            | "adopt"
            | "oppose"
            | "reject"
            | "translate"
            | "compose"
            | "perform"
            | "sign"
            | "sell"
            | "give"
            | "grease"
    )
}

/// "The tower was designed by Ada Fenn" of "Ada Fenn designed the tower".
fn passive(clause: &Clause, lead: &[Token], tails: &[Token]) -> Option<String> {
    let verb = &clause.verb;
    let form = verb.lexical?;
    if !is_transitive(&verb.base) || verb.is_negative() || clause.subject.len() > 7 {
        return None;
    }
    let rest = &clause.rest;
    let found = phrases(rest);
    let object = found.first().filter(|object| object.range.start == 0)?;
    let mut end = object.range.end;
    if let Some(of) = found.get(1).filter(|of| of.range.start == end + 1 && rest[end].text == "of") {
        end = of.range.end;
    }
    let after = rest.get(end);
    let fits = after.is_none_or(|next| is_preposition(next) || matches!(next.text.as_str(), "every"));
    if !fits || rest[..end].iter().any(|token| matches!(token.text.as_str(), "its" | "his" | "her" | "their")) {
        return None;
    }
    // Particles belong to the verb: "wrote down".
    if after.is_some_and(|next| matches!(next.text.as_str(), "down" | "up" | "out" | "off" | "back" | "away" | "over" | "like")) {
        return None;
    }
    let head = head_noun(&rest[..object.range.end]);
    if UNITS.contains(head.as_str()) {
        return None;
    }
    let plural = is_plural_form(&head) || rest[0].is_number() && rest[0].text != "1";
    let be = match (matches!(form, Form::Past | Form::PastOrParticiple | Form::Participle), plural) {
        (true, true) => "were",
        (true, false) => "was",
        (false, true) => "are",
        (false, false) => "is",
    };
    let done = [row(be), row(&participle(&verb.base))].concat();
    Some(sentence(&[&rest[..end], &done, &row("by"), &clause.subject, &rest[end..], lead, tails]))
}

/// "The one who designed the tower was Ada Fenn": the subject at the end, where it is a person or a thing by name.
fn cleft(document: &Document, clause: &Clause, lead: &[Token], tails: &[Token]) -> Option<String> {
    let subject = &clause.subject;
    let verb = &clause.verb;
    let name = subject.iter().all(|token| token.is_capital() && token.is_word());
    if verb.copula
        || verb.is_negative()
        || !tails.is_empty()
        || subject.len() > 5
        || !matches!(verb.lexical, Some(Form::Past | Form::PastOrParticiple | Form::ThirdPerson))
    {
        return None;
    }
    let person = document.is_person(subject);
    let role = person && !name && matches!(verb.lexical, Some(Form::ThirdPerson));
    if !name && !role {
        return None;
    }
    let be = if verb.is_past() { "was" } else { "is" };
    let who = if person { "who" } else { "that" };
    Some(sentence(&[&row("it"), &row(be), subject, &row(who), &verb.tokens, &clause.rest, lead]))
}

/// "On the drum lie 950 metres of cable" and "there are 950 metres of cable on the drum" say the same.
fn there_is(clause: &Clause, lead: &[Token], tails: &[Token]) -> Option<String> {
    let verb = &clause.verb;
    let standing = matches!(verb.base.as_str(), "stand" | "lie" | "hang" | "sit");
    let indefinite =
        matches!(clause.subject[0].text.as_str(), "a" | "an" | "one" | "two" | "three") || clause.subject[0].is_number();
    let starts = clause.rest.first().is_some_and(is_preposition);
    if !standing || !indefinite || !starts || verb.lexical.is_none() || contains_words(&join(&clause.rest), "ready") {
        return None;
    }
    let plural = !matches!(clause.subject[0].text.as_str(), "a" | "an" | "one");
    let be = match (verb.is_past(), plural) {
        (true, true) => "were",
        (true, false) => "was",
        (false, true) => "are",
        (false, false) => "is",
    };
    Some(sentence(&[&row("there"), &row(be), &clause.subject, &clause.rest, lead, tails]))
}

/// Two clauses about one subject as one sentence.
fn joined(document: &Document, first: &Clause, second: &Clause, variant: u64) -> Vec<String> {
    let and = sentence(&[&first.subject, &first.verb.tokens, &first.rest, &row("and"), &second.verb.tokens, &second.rest]);
    let subject = &first.subject;
    let name = subject.iter().all(Token::is_capital);
    let who = if document.is_person(subject) { "who" } else { "which" };
    let inside =
        sentence(&[subject, &row(","), &row(who), &second.verb.tokens, &second.rest, &row(","), &first.verb.tokens, &first.rest])
            .replace(" ,", ",");
    if name && variant & 16 != 0 { vec![inside, and] } else { vec![and] }
}

/// The text with some words exchanged for others of the same sense.
fn with_synonyms(text: &str, variant: u64) -> String {
    let mut out = format!(" {text} ");
    for (n, (from, to)) in SYNONYMS.iter().enumerate() {
        if !mixed(variant ^ n as u64).is_multiple_of(3) && out.contains(&format!(" {from} ")) {
            out = out.replacen(&format!(" {from} "), &format!(" {to} "), 1);
            break;
        }
    }
    out.trim().to_owned()
}

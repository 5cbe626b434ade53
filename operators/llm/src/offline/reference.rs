//! Capitals and pronouns: which words are names, and what "it" and "she" mean.

use std::collections::HashSet;

use super::clause::Clause;
use super::document::{Nature, Subject, head_noun};
use super::grammar::{is_plural_form, phrases};
use super::lexicon::{
    CONJUNCTIONS, DETERMINERS, GIVEN_NAMES, MONTHS, POSSESSIVES, PREPOSITIONS, PRONOUNS, SUBORDINATORS, WEEKDAYS, is_role,
};
use super::text::{Token, join, tokens, words};

/// Which words are names, learnt from where they are capitalised for no other reason.
pub(super) struct Case {
    title: String,
    names: HashSet<String>,
    common: HashSet<String>,
}

impl Case {
    pub(super) fn of(sentences: &[&str], subject: &Subject) -> Self {
        let mut case =
            Self { title: subject.bare.clone(), names: words(&subject.bare).into_iter().collect(), common: HashSet::new() };
        for sentence in sentences {
            let row = tokens(sentence);
            for (at, token) in row.iter().enumerate().skip(1) {
                let opens = matches!(row[at - 1].text.as_str(), "\"" | "“" | ":" | "(");
                if token.is_capital() && !opens {
                    case.names.insert(token.lower());
                } else if !token.is_capital() {
                    case.common.insert(token.text.clone());
                }
            }
        }
        case
    }

    /// Takes the capital off a word that has it only for standing first.
    pub(super) fn settle(&self, clause: &mut Clause) {
        for row in [&mut clause.lead, &mut clause.subject, &mut clause.rest] {
            if join(row).starts_with(&self.title) {
                continue;
            }
            let followed = row.get(1).is_some_and(Token::is_capital);
            if let Some(first) = row.first_mut()
                && first.is_capital()
                && self.is_common(first, followed)
            {
                first.text = first.text.to_lowercase();
            }
        }
    }

    fn is_common(&self, token: &Token, followed_by_capital: bool) -> bool {
        let lower = token.lower();
        let word = lower.as_str();
        if token.text.chars().filter(|c| c.is_uppercase()).count() > 1 || token.text == "I" {
            return false;
        }
        if DETERMINERS.contains(word)
            || PREPOSITIONS.contains(word)
            || PRONOUNS.contains(word)
            || SUBORDINATORS.contains(word)
            || CONJUNCTIONS.contains(word)
        {
            return true;
        }
        if GIVEN_NAMES.contains(word)
            || MONTHS.contains(word)
            || WEEKDAYS.contains(word)
            || self.names.contains(word) && (followed_by_capital || !self.common.contains(word))
        {
            return false;
        }
        self.common.contains(word) || !followed_by_capital
    }
}

/// Follows who and what was spoken of last.
pub(super) struct Resolver<'a> {
    subject: &'a Subject,
    thing: Option<Vec<Token>>,
    person: Option<Vec<Token>>,
    many: Option<Vec<Token>>,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(subject: &'a Subject) -> Self {
        Self { subject, thing: None, person: None, many: None }
    }

    /// Puts nouns in the place of pronouns. `false` where that can't be done: the clause then says nothing by itself.
    pub(super) fn resolve(&mut self, clause: &mut Clause) -> bool {
        let first = clause.subject[0].lower();
        if clause.subject.len() == 1 && matches!(first.as_str(), "it" | "he" | "she" | "they") {
            match self.referent(&first) {
                Some(referent) => clause.subject = referent,
                None => return false,
            }
        } else if POSSESSIVES.contains(first.as_str()) {
            self.own(&mut clause.subject, &first);
        } else if self.is_short_form(&clause.subject) {
            clause.subject = tokens(&self.subject.name);
        }
        let vague = |token: &Token| {
            matches!(
                token.lower().as_str(),
                "them" | "these" | "those" | "this" | "it" | "they" | "he" | "she" | "i" | "we" | "you" | "us" | "one"
            )
        };
        let counted = clause.subject[0].lower() == "one" && clause.subject.get(1).is_some_and(|next| next.text != "of");
        if clause.subject.iter().skip(usize::from(counted)).any(vague) {
            return false;
        }
        self.remember(clause);
        self.resolve_object(clause);
        true
    }

    /// "her goose" as "Ilva Brandreth's goose", "its boiler" as "the boiler of Old Brannoch"; "the" where nobody knows whose.
    fn own(&self, row: &mut Vec<Token>, possessive: &str) {
        let meant = match possessive {
            "his" | "her" => self.subject.nature == Nature::Person,
            "its" => self.subject.is_meant_by("it"),
            _ => self.subject.is_meant_by("they"),
        };
        let phrase = phrases(row).first().map_or(row.len(), |phrase| phrase.range.end);
        let name = tokens(&self.subject.name);
        if !(meant && self.subject.alone) || self.subject.is_named_in(&join(row)) {
            row[0].text = "the".to_owned();
        } else if self.subject.nature == Nature::Person || phrase < row.len() {
            let mut owner = name;
            if let Some(last) = owner.last_mut() {
                last.text.push_str(if last.text.ends_with('s') { "'" } else { "'s" });
            }
            row.splice(0..1, owner);
        } else {
            row[0].text = "the".to_owned();
            row.splice(phrase..phrase, std::iter::once(Token::new("of")).chain(name));
        }
    }

    fn referent(&self, pronoun: &str) -> Option<Vec<Token>> {
        let name = || tokens(&self.subject.name);
        let meant = self.subject.is_meant_by(pronoun);
        if meant && self.subject.alone {
            return Some(name());
        }
        let last = match pronoun {
            "it" => &self.thing,
            "they" => &self.many,
            _ => &self.person,
        };
        last.clone().or_else(|| meant.then(name))
    }

    /// "the ferry" for the Amber Ferry, "Luther" for Martin Luther.
    fn is_short_form(&self, row: &[Token]) -> bool {
        let bare = &self.subject.bare;
        let Some((_, head)) = bare.rsplit_once(' ') else {
            return false;
        };
        match row {
            [only] => self.subject.nature == Nature::Person && only.text == head,
            [the, noun] => {
                self.subject.alone
                    && the.lower() == "the"
                    && noun.text == head.to_lowercase()
                    && head.chars().all(char::is_alphabetic)
            }
            _ => false,
        }
    }

    fn remember(&mut self, clause: &Clause) {
        let end = clause.subject.iter().position(|token| token.text == ",").unwrap_or(clause.subject.len());
        let row = &clause.subject[..end];
        if row.is_empty() || row.len() > 8 {
            return;
        }
        let head = head_noun(row);
        let plural = matches!(clause.verb.tokens[0].text.as_str(), "are" | "were" | "have" | "do")
            || is_plural_form(&head) && !row.last().is_some_and(Token::is_capital);
        let is_person = is_role(&head)
            || row.len() > 1 && GIVEN_NAMES.contains(row[0].lower().as_str())
            || join(row) == self.subject.name && self.subject.nature == Nature::Person;
        let slot = if plural {
            &mut self.many
        } else if is_person {
            &mut self.person
        } else {
            &mut self.thing
        };
        // "a landing" was introduced and is "the landing" from now on.
        let mut row = row.to_vec();
        match row[0].lower().as_str() {
            "a" | "an" | "every" | "each" => row[0].text = "the".to_owned(),
            _ if row[0].is_number() => row.insert(0, Token::new("the")),
            _ => {}
        }
        *slot = Some(row);
    }

    /// "wrote it down" in a text about one thing: it is that thing.
    fn resolve_object(&self, clause: &mut Clause) {
        let elsewhere = !self.subject.is_named_in(&join(&clause.subject));
        if !(self.subject.alone && elsewhere) {
            return;
        }
        // "Lavinia Crabbe set out its rules": a person has no "its", so it is the subject's.
        let by_person = clause.subject[0].is_capital() || is_role(&head_noun(&clause.subject));
        if by_person
            && self.subject.is_meant_by("it")
            && let Some(at) = clause.rest.iter().position(|token| token.text == "its")
        {
            let mut owned = clause.rest.split_off(at);
            self.own(&mut owned, "its");
            clause.rest.append(&mut owned);
            return;
        }
        let first = clause.rest.first().map(Token::lower).unwrap_or_default();
        if clause.verb.copula && POSSESSIVES.contains(first.as_str()) {
            self.own(&mut clause.rest, &first);
            return;
        }
        let pronoun = if self.subject.nature == Nature::Person { "him" } else { "it" };
        if pronoun == "it" && !self.subject.is_meant_by("it") {
            return;
        }
        if let Some(at) = clause.rest.iter().take(3).position(|token| token.text == pronoun)
            && (at == 0 || PREPOSITIONS.contains(clause.rest[at - 1].text.as_str()))
        {
            let name = tokens(&self.subject.name);
            clause.rest.splice(at..=at, name);
        }
    }
}

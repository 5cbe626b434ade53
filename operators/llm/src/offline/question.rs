//! Kinds of question, and the walk through all facts and kinds of a document.

use std::collections::HashSet;

use super::clause::Clause;
use super::document::{Document, head_noun};
use super::fact::{Fact, Place, Sort, facts};
use super::grammar::phrases;
use super::lexicon::STOP;
use super::text::{Token, capitalised, contains_words, join, mixed, pick, seed, words};
use super::wording::{asked_in_place, ending_in, inverted, replaced, sentence, statement, yes_no};

/// A way to ask for a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// "The tower was built in which year?"
    InPlace,
    /// "When was the tower built?"
    Inverted,
    /// "Tern Ledge, tower, built: which year?"
    Keyword,
    /// "Tern Ledge tower: which year?"
    Short,
    /// "Which year fills the gap? The tower was built in ____."
    Gap,
    /// "Was the tower built before or after 1920, and in which year?"
    EitherOr,
    /// "Complete the sentence: The tower was built in …"
    Completion,
    /// "Who built the tower?", where the answer is the one who acts.
    Reversed,
    /// "Why is the tower closed?"
    Why,
}

/// A question with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) kind: Kind,
    pub(super) question: String,
    /// A sentence that ends in the answer.
    pub(super) explanation: String,
    pub(super) answer: String,
}

/// The longest clause that is asked about, in words.
const MAX_CLAUSE_WORDS: usize = 34;
/// The longest question, in words.
const MAX_QUESTION_WORDS: usize = 44;

/// All questions of a document, each once, in the order in which draws take them: first every fact once, the most telling
/// of each clause before the others, then every fact again in another kind.
pub(super) fn questions(title: &str, text: &str) -> Vec<Asked> {
    let document = Document::new(title, text);
    let mut found: Vec<Fact> = facts(&document, text);
    found.retain(|fact| {
        let clause = &document.clauses[fact.clause];
        let plain = matches!(fact.sort, Sort::Noun | Sort::Role);
        clause_words(clause) <= MAX_CLAUSE_WORDS && !(plain && ending_in(clause, fact).is_none())
    });
    let order = walk(&found);
    let per_fact: Vec<Vec<Asked>> = order.iter().map(|n| Asker::new(&document, &found, *n).all()).collect();
    let rounds = per_fact.iter().map(Vec::len).max().unwrap_or_default();
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for round in 0..rounds {
        for asked in per_fact.iter().filter_map(|asked| asked.get(round)) {
            if seen.insert(asked.question.to_lowercase()) {
                out.push(asked.clone());
            }
        }
    }
    out
}

fn clause_words(clause: &Clause) -> usize {
    clause.lead.len() + clause.subject.len() + clause.verb.tokens.len() + clause.rest.len()
}

/// The numbers of the facts in the order of the walk.
fn walk(facts: &[Fact]) -> Vec<usize> {
    let mut ranked: Vec<(usize, usize, usize)> = Vec::new();
    let mut start = 0;
    while start < facts.len() {
        let clause = facts[start].clause;
        let end = start + facts[start..].iter().take_while(|fact| fact.clause == clause).count();
        let mut of_clause: Vec<usize> = (start..end).collect();
        of_clause.sort_by_key(|n| (plainness(facts[*n].sort), *n));
        ranked.extend(of_clause.into_iter().enumerate().map(|(rank, n)| (rank, clause, n)));
        start = end;
    }
    ranked.sort_unstable();
    ranked.into_iter().map(|(_, _, n)| n).collect()
}

/// How little a fact tells: names and numbers come before plain nouns.
fn plainness(sort: Sort) -> u8 {
    match sort {
        Sort::Quote | Sort::Date | Sort::Year | Sort::Money | Sort::Time | Sort::Quantity | Sort::Count | Sort::Percent => 0,
        Sort::Person | Sort::Place | Sort::Name | Sort::Colour | Sort::Month | Sort::Weekday => 0,
        Sort::Reason | Sort::Purpose => 1,
        Sort::Role | Sort::Noun | Sort::Period => 2,
        Sort::Condition => 3,
    }
}

/// Asks for one fact in every kind that suits it.
struct Asker<'a> {
    document: &'a Document,
    facts: &'a [Fact],
    number: usize,
    fact: &'a Fact,
    clause: &'a Clause,
    variant: u64,
}

impl<'a> Asker<'a> {
    fn new(document: &'a Document, facts: &'a [Fact], number: usize) -> Self {
        let fact = &facts[number];
        let variant = seed(&[&document.subject.bare, &fact.answer, &number.to_string()]);
        Self { document, facts, number, fact, clause: &document.clauses[fact.clause], variant }
    }

    /// The kinds, beginning with another one for every fact.
    fn all(&self) -> Vec<Asked> {
        let kinds = match self.fact.sort {
            Sort::Reason | Sort::Purpose => {
                vec![Kind::Why, Kind::Completion, Kind::InPlace, Kind::Gap]
            }
            Sort::Condition => vec![Kind::Inverted, Kind::Completion],
            _ => vec![
                Kind::Inverted,
                Kind::Reversed,
                Kind::InPlace,
                Kind::EitherOr,
                Kind::Keyword,
                Kind::Completion,
                Kind::Inverted,
                Kind::Gap,
                Kind::Short,
            ],
        };
        // The kinds that people ask in come first more often.
        let turn = [0, 0, 0, 2, 2, 3, 4, 5, 7, 8][(self.variant % 10) as usize];
        let start = if kinds.len() < 9 { 0 } else { turn };
        let explanation = self.explanation();
        let asked = |at: usize| {
            let kind = kinds[(start + at) % kinds.len()];
            let question = self.ask(kind, self.variant.wrapping_add(at as u64))?;
            Some(Asked { kind, question, explanation: explanation.clone(), answer: self.fact.answer.clone() })
        };
        (0..kinds.len()).filter_map(asked).filter(|asked| self.is_fair(asked)).collect()
    }

    /// Whether a question names its subject, doesn't give its answer away and can be read in one go.
    fn is_fair(&self, asked: &Asked) -> bool {
        let n = words(&asked.question).len();
        self.document.subject.is_named_in(&asked.question)
            && !contains_words(&asked.question, &asked.answer)
            && (3..=MAX_QUESTION_WORDS).contains(&n)
    }

    fn ask(&self, kind: Kind, variant: u64) -> Option<String> {
        match kind {
            Kind::InPlace => self.in_place(variant),
            Kind::Inverted => self.mark(&inverted(self.clause, self.fact, variant)?, variant).filter(|_| !self.is_reversed()),
            Kind::Reversed => self.mark(&inverted(self.clause, self.fact, variant)?, variant).filter(|_| self.is_reversed()),
            Kind::Why => self.mark(&inverted(self.clause, self.fact, variant)?, variant),
            Kind::Gap => Some(self.gap(variant)),
            Kind::Completion => self.completion(variant),
            Kind::Keyword => self.keyword(),
            Kind::Short => self.short(),
            Kind::EitherOr => self.either_or(variant),
        }
    }

    /// Whether the fact is the one who or what acts.
    fn is_reversed(&self) -> bool {
        self.fact.place == Place::Subject
            || self.clause.verb.passive
                && self.fact.place == Place::Rest
                && super::wording::active_verb(self.clause)
                    .is_some_and(|(_, by)| self.fact.range.start > by && self.fact.range.start <= by + 2)
    }

    fn named(&self, text: &str, variant: u64) -> String {
        self.document.subject.named(text, variant)
    }

    fn mark(&self, question: &str, variant: u64) -> Option<String> {
        Some(format!("{}?", self.named(question, variant)))
    }

    fn in_place(&self, variant: u64) -> Option<String> {
        let Self { clause, fact, .. } = self;
        let lead = clause.lead_inside();
        let verb = &clause.verb.tokens;
        let text = match fact.place {
            Place::Subject => {
                let asked = asked_in_place(&clause.subject, fact)?;
                // "what on the mast announces": half a subject isn't asked for by "what".
                let half = matches!(fact.sort, Sort::Noun | Sort::Role | Sort::Person | Sort::Name) && asked.len() > 1;
                if half {
                    return None;
                }
                sentence(&[&asked, verb, &clause.rest, &lead])
            }
            Place::Rest if fact.sort == Sort::Purpose => {
                let why = super::wording::row("for what purpose");
                sentence(&[&clause.subject, verb, &clause.rest[..fact.range.start], &lead, &why])
            }
            Place::Rest => sentence(&[&clause.subject, verb, &asked_in_place(&clause.rest, fact)?, &lead]),
            Place::Lead => sentence(&[&clause.subject, verb, &clause.rest, &asked_in_place(&lead, fact)?]),
            Place::Tail(_) => {
                let why = super::wording::row(if fact.sort == Sort::Condition {
                    "under which circumstances"
                } else {
                    "for what reason"
                });
                sentence(&[&clause.subject, verb, &clause.rest, &lead, &why])
            }
        };
        self.mark(&text, variant)
    }

    fn gap(&self, variant: u64) -> String {
        let statement = self.named(&statement(self.clause, self.fact, "____"), variant);
        let noun = self.fact.sort.noun();
        let plural = noun == "words";
        let frames: [String; 4] = [
            format!("Which {noun} {} the gap? {statement}.", if plural { "fill" } else { "fills" }),
            format!("Fill in the missing {noun}: {statement}."),
            format!("Which {noun} {} missing here? {statement}.", if plural { "are" } else { "is" }),
            format!("{statement}. Which {noun} {} in the gap?", if plural { "belong" } else { "belongs" }),
        ];
        frames[(variant % 4) as usize].clone()
    }

    fn completion(&self, variant: u64) -> Option<String> {
        let whole = ending_in(self.clause, self.fact)?;
        let start = whole.strip_suffix(self.fact.answer.as_str())?.trim_end();
        let ends_well = words(start).len() >= 2 && !start.ends_with(['"', '“', '(', '-', '$', '£', '€']);
        let start = self.named(start, variant);
        let frames: [String; 4] = [
            format!("Complete the sentence: {start} …"),
            format!("How does this sentence end? {start} …"),
            format!("Finish this statement: {start} …"),
            format!("{start} … How does it go on?"),
        ];
        ends_well.then(|| frames[(variant % 4) as usize].clone())
    }

    /// The words of the clause that carry its meaning, without those of the subject and the answer.
    fn content(&self, most: usize) -> Vec<String> {
        let known: HashSet<String> = words(&self.document.subject.bare).into_iter().chain(words(&self.fact.answer)).collect();
        let shown = statement(self.clause, self.fact, "");
        let keep = |word: &&str| {
            let parts = words(word);
            !parts.is_empty() && parts.iter().all(|part| !known.contains(part) && !STOP.contains(part.as_str()))
        };
        let trim = |word: &str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_owned();
        shown.split_whitespace().filter(keep).map(trim).take(most).collect()
    }

    fn wh(&self) -> String {
        self.fact.sort.wh(&self.fact.unit, false)
    }

    fn keyword(&self) -> Option<String> {
        let content = self.content(5);
        let colour = self.fact.sort == Sort::Colour;
        (content.len() >= 2 || colour && !content.is_empty())
            .then(|| format!("{}, {}: {}?", capitalised(&self.document.subject.bare), content.join(" "), self.wh()))
    }

    fn short(&self) -> Option<String> {
        let focus = self.focus()?;
        Some(format!("{} {focus}: {}?", capitalised(&self.document.subject.bare), self.wh()))
    }

    /// The word that the fact is said of: the noun before it, the subject's, or the verb.
    fn focus(&self) -> Option<String> {
        let known: HashSet<String> = words(&self.document.subject.bare).into_iter().chain(words(&self.fact.answer)).collect();
        let fits = |noun: &String| {
            let lower = noun.to_lowercase();
            noun.len() > 2 && !words(&lower).iter().any(|word| known.contains(word)) && !STOP.contains(lower.as_str())
        };
        if self.fact.sort == Sort::Colour {
            return Some(self.fact.unit.clone()).filter(fits);
        }
        let row = self.fact.row(self.clause);
        let before = phrases(row).into_iter().rfind(|phrase| phrase.range.end < self.fact.range.start);
        // A name keeps its capitals, and all its words.
        let named = |row: &[Token]| {
            let name = row.iter().rposition(|token| !token.is_capital()).map_or(row, |at| &row[at + 1..]);
            if name.is_empty() { head_noun(row) } else { join(name) }
        };
        let nearest = before.map(|phrase| named(&row[phrase.range]));
        let subject = Some(named(&self.clause.subject)).filter(|_| self.fact.place != Place::Subject);
        let verb = self.clause.verb.tokens.last().map(|token| token.lower()).filter(|_| !self.clause.verb.copula);
        let object = phrases(&self.clause.rest).first().map(|phrase| head_noun(&self.clause.rest[phrase.range.clone()]));
        [nearest, subject, object, verb].into_iter().flatten().find(fits)
    }

    fn either_or(&self, variant: u64) -> Option<String> {
        let fact = self.fact;
        match fact.sort {
            Sort::Year => {
                let bound = other_year(fact.value()?, variant);
                let question = yes_no(self.clause, fact, true, &format!("before or after {bound}"))?;
                self.mark(&format!("{question}, and in which year"), variant)
            }
            Sort::Count | Sort::Quantity | Sort::Money if fact.value().is_some() && !fact.unit.is_empty() => {
                let bound = other_number(fact.value()?, variant)?;
                let question = yes_no(self.clause, fact, false, &format!("more or fewer than {bound} {}", fact.unit))?;
                self.mark(&format!("{question}, and how many exactly"), variant)
            }
            Sort::Person | Sort::Place | Sort::Colour | Sort::Month | Sort::Weekday | Sort::Name => {
                let others: Vec<&Fact> = self
                    .facts
                    .iter()
                    .filter(|other| {
                        other.sort == fact.sort
                            && !contains_words(&other.answer, &fact.answer)
                            && !contains_words(&fact.answer, &other.answer)
                    })
                    .collect();
                let other = pick(&others, variant.wrapping_add(self.number as u64))?;
                if contains_words(&statement(self.clause, fact, ""), &other.answer) {
                    return None;
                }
                let question = match fact.sort {
                    Sort::Colour => self.yes_no_colour(&other.answer)?,
                    _ => yes_no(self.clause, fact, false, &other.answer)?,
                };
                let otherwise = match fact.sort {
                    Sort::Person => "or somebody else",
                    Sort::Place => "or another place",
                    Sort::Colour => "or another colour",
                    Sort::Month => "or another month",
                    Sort::Weekday => "or another day",
                    _ => "or something else",
                };
                self.mark(&format!("{question}, {otherwise}"), variant)
            }
            _ => None,
        }
    }

    /// "Is the pennant that hangs from the gable red".
    fn yes_no_colour(&self, colour: &str) -> Option<String> {
        let whole = ending_in(self.clause, self.fact)?;
        let start = whole.strip_suffix(self.fact.answer.as_str())?.trim_end();
        let start =
            start.strip_suffix(" is").map(|rest| ("is", rest)).or_else(|| start.strip_suffix(" are").map(|rest| ("are", rest)));
        start.map(|(be, rest)| format!("{be} {rest} {colour}"))
    }

    /// One sentence that ends in the answer and names the subject.
    fn explanation(&self) -> String {
        let text = match ending_in(self.clause, self.fact) {
            Some(text) => text,
            None => {
                let noun = self.fact.sort.noun();
                let be = if noun == "words" { "are" } else { "is" };
                match self.fact.sort {
                    Sort::Colour => format!("the colour of the {} is {}", self.fact.unit, self.fact.answer),
                    _ => format!("where it says \"{}\", the {noun} {be} {}", self.quoted(), self.fact.answer),
                }
            }
        };
        let mut text = self.named(&text, self.variant);
        text.push('.');
        text
    }

    /// The part of the statement around the fact, with a gap.
    fn quoted(&self) -> String {
        let row = self.fact.row(self.clause);
        let start = self.fact.range.start.saturating_sub(4);
        let end = (self.fact.range.end + 4).min(row.len());
        let inner = self.fact.range.start - start..self.fact.range.end - start;
        sentence(&[&replaced(&row[start..end], &inner, "…")]).replace('"', "")
    }
}

/// A round year near `year`, and not the same.
fn other_year(year: f64, variant: u64) -> i64 {
    let year = year as i64;
    let decade = year - year.rem_euclid(10);
    let choices = [decade + 10, decade + 20, decade - 10, if decade == year { decade - 20 } else { decade }];
    choices[(mixed(variant) % 4) as usize]
}

/// A number near `value`, as round as it, and not the same.
fn other_number(value: f64, variant: u64) -> Option<String> {
    if value < 2.0 || value.fract() != 0.0 || value > 1e9 {
        return None;
    }
    let value = value as i64;
    let step = [1, 5, 10, 50, 100, 500, 1_000, 10_000, 100_000, 1_000_000, 10_000_000]
        .into_iter()
        .rfind(|step| step * 4 <= value)
        .unwrap_or(1);
    let offset = (mixed(variant) % 3) as i64 + 1;
    let below = (value - 1) / step * step - (offset - 1) * step;
    let above = (value / step + offset) * step;
    let other = if mixed(variant).is_multiple_of(2) && below > 1 { below } else { above };
    (other != value).then(|| other.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_near_others() {
        for variant in 0..50 {
            for value in [2.0, 3.0, 5.0, 12.0, 85.0, 1912.0, 240.0] {
                let other: f64 = other_number(value, variant).expect("a number").parse().expect("a number");
                assert!(other != value && other > 0.0 && other < value * 3.0 + 3.0, "{value} {other}");
            }
            assert!((other_year(1912.0, variant) - 1912).abs() <= 20 && other_year(1910.0, variant) != 1910);
        }
    }

    #[test]
    fn every_fact_is_asked_for_before_any_twice() {
        let text = "Tern Ledge was surveyed in 1912. It has 142 stone steps. A violet pennant hangs from the gable. Ada Fenn sealed it with wax.";
        let all = questions("Tern Ledge", text);
        let mut answers: Vec<&str> = all.iter().map(|asked| asked.answer.as_str()).collect();
        answers.sort_unstable();
        answers.dedup();
        let mut first: Vec<&str> = all[..answers.len()].iter().map(|asked| asked.answer.as_str()).collect();
        first.sort_unstable();
        assert_eq!(first, answers);
        let kinds: HashSet<Kind> = all.iter().map(|asked| asked.kind).collect();
        assert!(kinds.len() >= 6, "{kinds:?}");
    }
}

//! Tells a document again, around one question.

use std::collections::{BTreeSet, HashSet};

use super::clause::Clause;
use super::document::{Document, rarity};
use super::phrasing::{Teller, plain};
use super::reader::stem;
use super::text::{capitalised, contains_words, mixed, seed, words};

/// A rewrite has at least so many words, where the document does.
const MIN_WORDS: usize = 30;

/// What is to be told again.
pub(super) struct Focus<'a> {
    pub(super) title: &'a str,
    pub(super) text: &'a str,
    pub(super) question: &'a str,
    pub(super) answer: Option<&'a str>,
    pub(super) max_words: usize,
}

/// A text of at most `max_words` words that says first what answers the question, then what else the document says, in
/// other words and another order than the document, and in others for other questions. Names, numbers and facts stay as
/// they are. `draw` gives other words again.
pub(super) fn rewrite(focus: &Focus<'_>, draw: u32) -> String {
    let document = Document::new(focus.title, focus.text);
    let seed = seed(&[focus.title, focus.question, &draw.to_string()]);
    let order = order(&document, focus, seed);
    let source = normal(&document.sentences.join(" "));
    let total: usize = document.sentences.iter().map(|sentence| words(sentence).len()).sum();
    // Less than everything, so that two questions get two texts.
    let share = 55 + (mixed(seed) % 26) as usize;
    let target = focus.max_words.min((total * share / 100).max(MIN_WORDS + 10));
    let mut teller = Teller::new(&document, seed);
    let mut out: Vec<String> = Vec::new();
    let mut length = 0;
    let mut used = HashSet::new();
    for at in 0..order.len() {
        if used.contains(&order[at]) {
            continue;
        }
        // A clause that says little more about the same subject joins the one before.
        let partner = order[at + 1..]
            .iter()
            .take(4)
            .copied()
            .find(|next| !used.contains(next) && joins(&document.clauses[order[at]], &document.clauses[*next]));
        let partner = partner.filter(|next| at > 0 && mixed(seed ^ *next as u64).is_multiple_of(2));
        let Some(sentence) = teller.tell(order[at], partner, at == 0, &|text| source.contains(&normal(text))) else {
            continue;
        };
        let n = words(&sentence).len();
        // A sentence too long for what is left may give way to a shorter one.
        if length + n > focus.max_words || length + n > target && length >= MIN_WORDS {
            continue;
        }
        length += n;
        used.insert(order[at]);
        used.extend(partner);
        out.push(sentence);
        if length + 4 > target {
            break;
        }
    }
    if out.is_empty() {
        return shortened(&document, focus.max_words);
    }
    out.join(" ")
}

/// Words and marks in one case and spacing, for finding a sentence in its source.
pub(super) fn normal(text: &str) -> String {
    format!(" {} ", words(text).join(" "))
}

/// The document's first sentences, where none could be taken apart.
pub(super) fn shortened(document: &Document, max_words: usize) -> String {
    let name = &document.subject.name;
    let mut out = vec![format!("This is about {name}.")];
    let mut length = 4;
    for sentence in &document.sentences {
        length += words(sentence).len();
        if length > max_words {
            break;
        }
        out.push(sentence.clone());
    }
    out.join(" ")
}

/// The clauses in the order in which they are told: what bears on the question by how much it does, then the rest,
/// shuffled, but with clauses of one sentence together.
fn order(document: &Document, focus: &Focus<'_>, seed: u64) -> Vec<usize> {
    let rarity = rarity(&document.sentences);
    let weight = |word: &String| rarity.get(word).copied().unwrap_or(1.0);
    let asked: HashSet<String> = words(focus.question).iter().map(|word| stem(word)).collect();
    let name: HashSet<String> = words(&document.subject.bare).iter().map(|word| stem(word)).collect();
    let score = |clause: &Clause| {
        let text = plain(clause);
        // In order: a sum of floats depends on it.
        let shared: BTreeSet<String> =
            words(&text).into_iter().filter(|word| asked.contains(&stem(word)) && !name.contains(&stem(word))).collect();
        let score: f64 = shared.iter().map(weight).sum();
        let answers = focus
            .answer
            .is_some_and(|answer| contains_words(&text, answer) || contains_words(&document.sentences[clause.sentence], answer));
        score + if answers { 6.0 } else { 0.0 }
    };
    let scores: Vec<f64> = document.clauses.iter().map(score).collect();
    let mut order: Vec<usize> =
        (0..document.clauses.len()).filter(|n| document.clauses[*n].is_apart() || scores[*n] > 0.0).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    let close = order.len().min(2 + order.len() / 12);
    let (near, far) = order.split_at(close);
    let mut far = far.to_vec();
    let shuffled = |n: usize| mixed(seed ^ (document.clauses[n].sentence as u64).wrapping_mul(0x9e37));
    far.sort_by_key(|n| (shuffled(*n), *n));
    near.iter().copied().chain(far).collect()
}

/// Whether two clauses speak of the same subject and are short enough for one sentence.
pub(super) fn joins(first: &Clause, second: &Clause) -> bool {
    first.is_apart()
        && first.subject == second.subject
        && first.tails.is_empty()
        && second.tails.is_empty()
        && first.lead.is_empty()
        && second.lead.is_empty()
        && first.verb.is_past() == second.verb.is_past()
        && first.rest.len() + second.rest.len() <= 16
}

/// A sentence out of a clause's words.
pub(super) fn finished(text: &str) -> String {
    let mut text = capitalised(text.trim());
    if !text.ends_with(['.', '!', '?']) {
        text.push('.');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Tern Ledge was surveyed in 1912 by Ada Fenn. It has 142 stone steps. A violet pennant hangs from the gable at \
        noon. The keeper feeds two goats on the terrace. In winds above 40 knots, the boat stays in its shed. The walls are made \
        of slate and painted white. The bell was cast in Hull, and it weighs 90 kilograms.";

    fn told(question: &str, answer: Option<&str>, max_words: usize) -> String {
        rewrite(&Focus { title: "Tern Ledge", text: TEXT, question, answer, max_words }, 0)
    }

    #[test]
    fn the_answer_comes_first_and_the_length_holds() {
        let text = told("Which colour is the pennant?", Some("violet"), 60);
        assert!(contains_words(&text[..text.find(". ").unwrap_or(text.len())], "violet"), "{text}");
        for max_words in [12, 35, 60, 200] {
            for question in ["Who surveyed Tern Ledge?", "How many steps?", "Where was the bell cast?"] {
                let text = told(question, None, max_words);
                assert!(words(&text).len() <= max_words, "{max_words}: {text}");
                assert!(max_words < 35 || words(&text).len() >= 30, "{max_words}: {text}");
            }
        }
    }

    #[test]
    fn a_text_without_clauses_is_told_all_the_same() {
        let focus =
            Focus { title: "Stock", text: "Ropes, blocks, tar.", question: "What is there?", answer: None, max_words: 50 };
        assert!(rewrite(&focus, 0).contains("Ropes, blocks, tar."));
    }
}

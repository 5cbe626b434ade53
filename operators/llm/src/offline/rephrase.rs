//! Tells a text again in a style, without a question to serve.

use std::collections::HashSet;

use super::document::Document;
use super::phrasing::Teller;
use super::question;
use super::rewrite::{joins, normal, shortened};
use super::text::{mixed, seed, words};

/// A telling has at least so many words, where the text does.
const MIN_WORDS: usize = 30;

/// How a text is told again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// A clause a sentence.
    Easy,
    /// In the text's order.
    Medium,
    /// Clauses of one subject together, in another order.
    Hard,
    /// As questions and answers.
    Qa,
}

impl Style {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "easy" => Self::Easy,
            "medium" => Self::Medium,
            "hard" => Self::Hard,
            "qa" => Self::Qa,
            _ => return None,
        })
    }
}

/// A text of at most `max_words` words that says what `text` does, in other words. Names, numbers and facts stay as they are.
/// `draw` gives other words again, and leaves out others of the clauses that there is no room for.
pub(super) fn rephrase(title: &str, text: &str, (name, style): (&str, Style), max_words: usize, draw: u32) -> String {
    let seed = seed(&["rephrase", title, text, name, &draw.to_string()]);
    match style {
        Style::Qa => questions(title, text, max_words, seed),
        style => told(title, text, style, max_words, seed),
    }
}

fn told(title: &str, text: &str, style: Style, max_words: usize, seed: u64) -> String {
    let document = Document::new(title, text);
    let source = normal(&document.sentences.join(" "));
    let total: usize = document.sentences.iter().map(|sentence| words(sentence).len()).sum();
    // Less than everything, so that two draws are two texts.
    let share = 60 + (mixed(seed) % 31) as usize;
    let target = max_words.min((total * share / 100).max(MIN_WORDS + 10));
    let order = order(&document, style, target * 100 / total.max(1), seed);
    let mut teller = Teller::new(&document, seed);
    let (mut out, mut length, mut used) = (Vec::<String>::new(), 0, HashSet::new());
    for at in 0..order.len() {
        if used.contains(&order[at]) {
            continue;
        }
        let next = || order[at + 1..].iter().take(4).copied();
        let partner = match style {
            Style::Hard => {
                next().find(|next| !used.contains(next) && joins(&document.clauses[order[at]], &document.clauses[*next]))
            }
            _ => None,
        };
        let Some(sentence) = teller.tell(order[at], partner, out.is_empty(), &|text| source.contains(&normal(text))) else {
            continue;
        };
        let n = words(&sentence).len();
        if length + n > max_words || length + n > target && length >= MIN_WORDS {
            continue;
        }
        length += n;
        used.insert(order[at]);
        used.extend(partner);
        out.push(sentence);
    }
    if out.is_empty() { shortened(&document, max_words) } else { out.join(" ") }
}

/// The clauses that are told, about `percent` of them, in the order in which they are.
fn order(document: &Document, style: Style, percent: usize, seed: u64) -> Vec<usize> {
    let mut clauses: Vec<usize> = (0..document.clauses.len()).filter(|n| document.clauses[*n].is_apart()).collect();
    // What is left out is spread over the text; a little more is kept than there is room for.
    let draw = |n: &usize| mixed(seed ^ (*n as u64 + 1).wrapping_mul(0x9e37_79b9)) % 100;
    clauses.retain(|n| (draw(n) as usize) < percent + 15);
    if style == Style::Hard {
        // Whole sentences change places, so that what belongs together stays so.
        clauses.sort_by_key(|n| (mixed(seed ^ (document.clauses[*n].sentence as u64).wrapping_mul(0x9e37)), *n));
    }
    clauses
}

/// Questions about the text with their answers, from another place for every draw.
fn questions(title: &str, text: &str, max_words: usize, seed: u64) -> String {
    let all = question::questions(title, text);
    let document = || Document::new(title, text);
    if all.is_empty() {
        return shortened(&document(), max_words);
    }
    let (mut out, mut length) = (Vec::new(), 0);
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_key(|n| (mixed(seed ^ (*n as u64).wrapping_mul(0x51_7cc1)), *n));
    for asked in order.into_iter().map(|n| &all[n]) {
        let line = format!("Question: {}\nAnswer: {}", asked.question, asked.explanation);
        let n = words(&line).len();
        if length + n <= max_words {
            length += n;
            out.push(line);
        }
    }
    if out.is_empty() { shortened(&document(), max_words) } else { out.join("\n\n") }
}

#[cfg(test)]
mod tests {
    use super::super::text::contains_words;
    use super::*;

    const TEXT: &str = "Tern Ledge was surveyed in 1912 by Ada Fenn. It has 142 stone steps. A violet pennant hangs from the gable at \
        noon. The keeper feeds two goats on the terrace. In winds above 40 knots, the boat stays in its shed. The walls are made \
        of slate and painted white. The bell was cast in Hull, and it weighs 90 kilograms.";

    fn told(style: &str, max_words: usize, draw: u32) -> String {
        rephrase("Tern Ledge", TEXT, (style, Style::named(style).unwrap()), max_words, draw)
    }

    #[test]
    fn every_style_keeps_to_the_length_and_to_the_facts() {
        for style in ["easy", "medium", "hard", "qa"] {
            for max_words in [12, 35, 60, 200] {
                for draw in 0..6 {
                    let text = told(style, max_words, draw);
                    assert!(!text.is_empty() && words(&text).len() <= max_words, "{style} {max_words}: {text}");
                    assert!(max_words < 60 || words(&text).len() >= MIN_WORDS, "{style} {max_words}: {text}");
                    assert!(contains_words(&text, "Tern Ledge"), "{style}: {text}");
                }
            }
        }
        assert!(Style::named("plain").is_none());
    }

    #[test]
    fn draws_and_styles_are_other_texts() {
        let texts: HashSet<String> =
            ["easy", "medium", "hard", "qa"].iter().flat_map(|style| (0..10).map(|draw| told(style, 60, draw))).collect();
        assert!(texts.len() >= 34, "{} of 40 are different", texts.len());
        assert_eq!(told("hard", 60, 3), told("hard", 60, 3));
        assert!(told("qa", 60, 0).starts_with("Question: "));
    }

    #[test]
    fn a_text_without_clauses_is_told_all_the_same() {
        for style in ["easy", "hard", "qa"] {
            let text = rephrase("Stock", "Ropes, blocks, tar.", (style, Style::named(style).unwrap()), 50, 0);
            assert!(text.contains("Ropes, blocks, tar."), "{style}: {text}");
        }
    }
}

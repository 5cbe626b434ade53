//! Tells a text again in a style, without a question to serve.

use std::collections::HashSet;

use super::document::Document;
use super::phrasing::Teller;
use super::question::{self, Kind};
use super::rewrite::{joins, normal, shortened};
use super::text::{mixed, seed, words};

/// A telling has at least so many words, where the text does.
const MIN_WORDS: usize = 30;
/// How many clauses further on a partner for one is looked for.
const PARTNERS: usize = 4;

/// How a text is told again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// A clause a sentence, in the text's order.
    Easy,
    /// In the text's order, some sentences of two clauses.
    Medium,
    /// As many clauses of one subject together as there are, in another order.
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
    let is_source = |text: &str| source.contains(&normal(text));
    let total: usize = document.sentences.iter().map(|sentence| words(sentence).len()).sum();
    // Less than everything, so that two draws are two texts.
    let share = 60 + (mixed(seed) % 31) as usize;
    let target = max_words.min((total * share / 100).max(MIN_WORDS + 10));
    let groups = chosen(&document, style, target, seed, &is_source);
    let mut teller = Teller::new(&document, seed);
    let (mut out, mut length) = (Vec::<String>::new(), 0);
    for (first, partner) in groups {
        let Some(sentence) = teller.tell(first, partner, out.is_empty(), &is_source) else { continue };
        let n = words(&sentence).len();
        // Told in its place, a sentence may be longer than it was alone: a pronoun became a name.
        if length + n <= max_words {
            length += n;
            out.push(sentence);
        }
    }
    if out.is_empty() { shortened(&document, max_words) } else { out.join(" ") }
}

/// The clauses that are told in `target` words, some with a partner in the same sentence, in the order in which they are told. Each
/// is as likely as any other, wherever it stands in the text.
fn chosen(
    document: &Document,
    style: Style,
    target: usize,
    seed: u64,
    is_source: &dyn Fn(&str) -> bool,
) -> Vec<(usize, Option<usize>)> {
    let draw = |n: usize| mixed(seed ^ (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let clauses: Vec<usize> = (0..document.clauses.len()).filter(|n| document.clauses[*n].is_apart()).collect();
    let mut groups: Vec<(usize, Option<usize>)> = Vec::new();
    let mut used = HashSet::new();
    for (at, first) in clauses.iter().copied().enumerate() {
        if !used.insert(first) {
            continue;
        }
        let near = || clauses[at + 1..].iter().copied().take(PARTNERS);
        let fits = |next: &usize| !used.contains(next) && joins(&document.clauses[first], &document.clauses[*next]);
        let partner = match style {
            Style::Hard => near().find(fits),
            // Every other clause that can have one.
            Style::Medium if draw(first).is_multiple_of(2) => near().find(fits),
            _ => None,
        };
        used.extend(partner);
        groups.push((first, partner));
    }
    let mut order: Vec<usize> = (0..groups.len()).collect();
    order.sort_by_key(|n| (draw(groups[*n].0), *n));
    let (mut taken, mut length) = (Vec::new(), 0);
    for n in order {
        let (first, partner) = groups[n];
        let Some(sentence) = Teller::new(document, seed).tell(first, partner, false, is_source) else { continue };
        let words = words(&sentence).len();
        // A sentence too long for what is left gives way to a shorter one.
        if length + words <= target || length == 0 {
            length += words;
            taken.push(n);
        }
    }
    match style {
        Style::Hard => {}
        Style::Easy | Style::Medium | Style::Qa => taken.sort_unstable(),
    }
    taken.into_iter().map(|n| groups[n]).collect()
}

/// Questions about the text with their answers, from another place for every draw.
fn questions(title: &str, text: &str, max_words: usize, seed: u64) -> String {
    let all = question::questions(title, text);
    let document = || Document::new(title, text);
    if all.is_empty() {
        return shortened(&document(), max_words);
    }
    // What is short for a sentence, a keyword or a title, doesn't read as a conversation.
    let all: Vec<_> = all.into_iter().filter(|asked| !matches!(asked.kind, Kind::Keyword | Kind::Short)).collect();
    let (mut out, mut length) = (Vec::new(), 0);
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_key(|n| (mixed(seed ^ (*n as u64).wrapping_mul(0x51_7cc1)), *n));
    for asked in order.into_iter().map(|n| &all[n]) {
        let line = format!("Question: {}\nAnswer: {}", asked.question, asked.explanation);
        let n = line.split_whitespace().count();
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
    fn the_end_of_a_text_is_told_as_often_as_its_beginning() {
        for style in ["easy", "medium", "hard"] {
            let told = |name: &str| (0..60).filter(|draw| contains_words(&told(style, 40, *draw), name)).count();
            let (beginning, end) = (told("142") + told("violet"), told("slate") + told("Hull"));
            assert!(beginning.abs_diff(end) < 40 && end > 30, "{style}: {beginning} and {end} of 120");
        }
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

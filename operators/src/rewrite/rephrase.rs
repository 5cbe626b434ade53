//! Documents said again in fixed styles, piece by piece.

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unicode_segmentation::UnicodeSegmentation;

/// The most words of a piece: about the 350 tokens of WRAP (Maini et al., arXiv 2401.16380), at three words for four tokens.
const PIECE_WORDS: usize = 260;

/// A style of WRAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// For a child: short words and short sentences.
    Easy,
    /// As an encyclopedia would have it.
    Medium,
    /// Terse, for scholars.
    Hard,
    /// As questions and answers.
    Qa,
}

impl Style {
    /// Every style, in the order in which they are asked for.
    pub(super) const ALL: [Self; 4] = [Self::Easy, Self::Medium, Self::Hard, Self::Qa];

    /// The word in the pipeline file.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Easy => "easy",
            Self::Medium => "medium",
            Self::Hard => "hard",
            Self::Qa => "qa",
        }
    }

    /// What a prompt says of it.
    pub(super) fn manner(self) -> &'static str {
        match self {
            Self::Easy => "Write for a child: short sentences, everyday words, one thought at a time.",
            Self::Medium => "Write as a good encyclopedia does: clear, even, in complete sentences.",
            Self::Hard => "Write for scholars: terse and exact, in long sentences that join what belongs together.",
            Self::Qa => {
                "Write a conversation of questions and answers, each question on a line that begins with `Question:`, its answer on the next line after `Answer:`. Every question names what it is about."
            }
        }
    }
}

/// One of the rewrites of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    /// Which piece, from 0, and where it stands in the text, in bytes.
    pub(super) piece: usize,
    pub(super) span: Range<usize>,
    pub(super) style: Style,
    /// Which of several answers to the same request.
    pub(super) draw: u32,
}

impl Turn {
    /// What tells it from the document's others of the same draw, whatever the other settings are.
    pub(super) fn ordinal(&self) -> u64 {
        (self.piece * Style::ALL.len() + self.style as usize) as u64
    }
}

/// The first `count` rewrites of a text: every piece in the first style, then every piece in the next, and then again with another
/// draw.
pub(super) fn turns(text: &str, styles: &[Style], count: u32) -> Vec<Turn> {
    let pieces = pieces(text);
    if pieces.is_empty() || styles.is_empty() {
        return Vec::new();
    }
    let turn = |number: usize| Turn {
        piece: number % pieces.len(),
        span: pieces[number % pieces.len()].clone(),
        style: styles[number / pieces.len() % styles.len()],
        draw: u32::try_from(number / pieces.len() / styles.len()).unwrap_or(u32::MAX),
    };
    (0..count as usize).map(turn).collect()
}

/// A text in pieces of at most [`PIECE_WORDS`] words that end where a sentence does, of about the same length; a sentence that is
/// longer is cut between words. White space around a piece belongs to none.
fn pieces(text: &str) -> Vec<Range<usize>> {
    let words = |text: &str| text.split_whitespace().count();
    let mut units: Vec<Range<usize>> = Vec::new();
    for (start, sentence) in text.split_sentence_bound_indices() {
        if words(sentence) <= PIECE_WORDS {
            units.push(start..start + sentence.len());
            continue;
        }
        let (mut begin, mut count, mut was_space) = (start, 0, true);
        for (at, char) in sentence.char_indices() {
            if was_space && !char.is_whitespace() {
                if count == PIECE_WORDS {
                    units.push(begin..start + at);
                    (begin, count) = (start + at, 0);
                }
                count += 1;
            }
            was_space = char.is_whitespace();
        }
        units.push(begin..start + sentence.len());
    }
    let total: usize = units.iter().map(|unit| words(&text[unit.clone()])).sum();
    let even = total.div_ceil(total.div_ceil(PIECE_WORDS).max(1)).max(1);
    let (mut found, mut count): (Vec<Range<usize>>, usize) = (Vec::new(), 0);
    for unit in units {
        let more = words(&text[unit.clone()]);
        match found.last_mut() {
            Some(last) if count < even && count + more <= PIECE_WORDS => {
                last.end = unit.end;
                count += more;
            }
            _ => {
                found.push(unit);
                count = more;
            }
        }
    }
    let trimmed = |piece: Range<usize>| {
        let inner = &text[piece.clone()];
        let start = piece.start + inner.len() - inner.trim_start().len();
        start..start + inner.trim().len()
    };
    found.into_iter().map(trimmed).filter(|piece| !piece.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_with_sentences_and_hold_every_word_once() {
        let sentence = |n: usize| format!("Number {n} is a sentence of eight words. ");
        for count in [1, 3, 32, 33, 70, 200] {
            let text: String = (0..count).map(sentence).collect();
            let found = pieces(&text);
            assert_eq!(found.len(), (count * 8).div_ceil(PIECE_WORDS).max(1), "{count} sentences");
            let said: Vec<&str> = found.iter().flat_map(|piece| text[piece.clone()].split_whitespace()).collect();
            assert_eq!(said, text.split_whitespace().collect::<Vec<_>>());
            assert!(found.iter().all(|piece| text[piece.clone()].ends_with('.')));
        }
        let endless = "word ".repeat(600);
        let lengths: Vec<usize> =
            pieces(&endless).iter().map(|piece| endless[piece.clone()].split_whitespace().count()).collect();
        assert_eq!(lengths, [260, 260, 80]);
        assert!(pieces(" \n ").is_empty());
    }

    #[test]
    fn every_piece_and_style_has_its_turn_before_a_second_draw() {
        let text = "Number one is a sentence of seven words. ".repeat(40);
        let all = turns(&text, &Style::ALL, 20);
        let told: Vec<(usize, &str, u32)> = all.iter().map(|turn| (turn.piece, turn.style.name(), turn.draw)).collect();
        assert_eq!(told[..4], [(0, "easy", 0), (1, "easy", 0), (0, "medium", 0), (1, "medium", 0)]);
        assert_eq!(told[8..10], [(0, "easy", 1), (1, "easy", 1)]);
        let ids: std::collections::BTreeSet<(u64, u32)> = all.iter().map(|turn| (turn.ordinal(), turn.draw)).collect();
        assert_eq!(ids.len(), 20);
        let hard = turns(&text, &[Style::Hard], 3);
        assert_eq!((hard[0].ordinal(), hard[2].draw), (all[4].ordinal(), 1), "which styles there are is in no id");
        assert!(turns("", &Style::ALL, 3).is_empty());
    }
}

//! Where text may be cut: at paragraphs, sentences, lines, words and characters.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

/// Longer sentences are cut at a line, a word or a character, so that no step ever works on more than this at once.
const LONGEST: usize = 16 << 10;

/// How many graphemes stay together when a word must be cut.
const RUN: usize = 16;

/// What lies between a span and the next one, from weak to strong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Boundary {
    /// Nothing: a word goes on.
    Character,
    /// Whitespace within a line.
    Word,
    /// A line break.
    Line,
    /// The end of a sentence.
    Sentence,
    /// An empty line, or the end of the text.
    Paragraph,
}

/// A stretch of text without whitespace at its ends, and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) after: Boundary,
}

impl Span {
    pub(super) fn range(self) -> Range<usize> {
        self.start..self.end
    }
}

/// The next sentence from byte `from` on; `None` when only whitespace is left.
///
/// A sentence ends at an empty line, at a full-width stop, or at `.`, `!`, `?` or `…` (closing quotes and brackets
/// included) before whitespace, unless a lower-case letter follows or the stop belongs to an abbreviation.
pub(super) fn sentence(text: &str, from: usize) -> Option<Span> {
    let start = from + text[from..].find(|c: char| !c.is_whitespace())?;
    let mut line = None;
    let mut word = None;
    let mut chars = text[start..].char_indices().map(|(at, c)| (start + at, c)).peekable();
    while let Some((at, c)) = chars.next() {
        if at - start >= LONGEST {
            let (end, after) = line
                .map(|end| (end, Boundary::Line))
                .or(word.map(|end| (end, Boundary::Word)))
                .unwrap_or((at, Boundary::Character));
            return Some(Span { start, end, after });
        }
        if c.is_whitespace() {
            let (breaks, next) = gap(text, at);
            let end = at;
            match (next, breaks) {
                (None, _) | (_, 2..) => return Some(Span { start, end, after: Boundary::Paragraph }),
                (_, 1) => line = Some(end),
                _ => word = Some(end),
            }
            while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
            continue;
        }
        if !stop(c) {
            continue;
        }
        let mut end = at + c.len_utf8();
        while let Some((at, c)) = chars.next_if(|(at, c)| at - start < LONGEST && (stop(*c) || closing(*c))) {
            end = at + c.len_utf8();
        }
        let (breaks, next) = gap(text, end);
        let after = if next.is_none() || breaks > 1 { Boundary::Paragraph } else { Boundary::Sentence };
        let spaced = text[end..].starts_with(char::is_whitespace);
        let ends = match next {
            None => true,
            Some(_) if full_width(c) => true,
            Some(next) => spaced && (breaks > 1 || !(next.is_lowercase() || (c == '.' && abbreviation(&text[start..at], next)))),
        };
        if ends {
            return Some(Span { start, end, after });
        }
    }
    Some(Span { start, end: text.len(), after: Boundary::Paragraph })
}

/// The span in smaller ones, at the strongest boundary that it contains: lines, else words, else runs of graphemes, else
/// graphemes, else characters. Just itself when it is one character.
pub(super) fn finer(text: &str, span: Span) -> Vec<Span> {
    let inside = &text[span.range()];
    let between = |pieces: Vec<Range<usize>>, boundary| {
        let last = pieces.len().saturating_sub(1);
        let place = |(n, piece): (usize, Range<usize>)| Span {
            start: span.start + piece.start,
            end: span.start + piece.end,
            after: if n == last { span.after } else { boundary },
        };
        pieces.into_iter().enumerate().map(place).collect::<Vec<_>>()
    };
    let trimmed = |piece: &str| {
        let start = piece.as_ptr() as usize - inside.as_ptr() as usize;
        let left = piece.len() - piece.trim_start().len();
        let kept = piece.trim();
        (!kept.is_empty()).then(|| start + left..start + left + kept.len())
    };
    let lines: Vec<_> = inside.split('\n').filter_map(trimmed).collect();
    if lines.len() > 1 {
        return between(lines, Boundary::Line);
    }
    let words: Vec<_> = inside.split_whitespace().filter_map(trimmed).collect();
    if words.len() > 1 {
        return between(words, Boundary::Word);
    }
    let mut graphemes: Vec<_> = inside.grapheme_indices(true).map(|(at, grapheme)| at..at + grapheme.len()).collect();
    if graphemes.len() > RUN {
        graphemes = graphemes.chunks(RUN).map(|run| run[0].start..run[run.len() - 1].end).collect();
    }
    if graphemes.len() > 1 {
        return between(graphemes, Boundary::Character);
    }
    between(inside.char_indices().map(|(at, c)| at..at + c.len_utf8()).collect(), Boundary::Character)
}

/// The line breaks in the whitespace at `at`, and the character behind it.
fn gap(text: &str, at: usize) -> (usize, Option<char>) {
    let mut breaks = 0;
    for c in text[at..].chars() {
        if !c.is_whitespace() {
            return (breaks, Some(c));
        }
        breaks += usize::from(c == '\n');
    }
    (breaks, None)
}

fn stop(c: char) -> bool {
    matches!(c, '.' | '!' | '?' | '…') || full_width(c)
}

fn full_width(c: char) -> bool {
    matches!(c, '。' | '！' | '？' | '｡')
}

fn closing(c: char) -> bool {
    matches!(c, '"' | '\'' | ')' | ']' | '}' | '”' | '’' | '»' | '」' | '』' | '）' | '】')
}

/// Whether a full stop behind `before`, with `next` as the next character, belongs to an abbreviation: an initial, a title,
/// or a word that stands before numbers.
fn abbreviation(before: &str, next: char) -> bool {
    let word = before.rsplit(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
    let mut chars = word.chars();
    if let (Some(initial), None) = (chars.next(), chars.next()) {
        return initial.is_uppercase();
    }
    match word {
        "Mr" | "Mrs" | "Ms" | "Dr" | "Prof" | "St" | "Gen" | "Col" | "Capt" | "Lt" | "Sgt" | "Rev" | "Hon" | "Gov" | "Sen"
        | "Rep" | "Pres" | "vs" | "cf" | "approx" => true,
        "No" | "Nos" | "no" | "nos" | "Fig" | "Figs" | "Eq" | "Sec" | "Ch" | "Vol" | "Art" | "pp" | "ca" | "para" => {
            next.is_numeric()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentences(text: &str) -> Vec<(&str, Boundary)> {
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(span) = sentence(text, at) {
            assert!(span.end > span.start && span.start >= at, "{span:?}");
            found.push((&text[span.range()], span.after));
            at = span.end;
        }
        found
    }

    #[test]
    fn sentences_end_at_stops_before_space() {
        use Boundary::{Paragraph, Sentence};
        for (text, expected) in [
            (
                "One. Two! \"Three?\" Four",
                vec![("One.", Sentence), ("Two!", Sentence), ("\"Three?\"", Sentence), ("Four", Paragraph)],
            ),
            (
                "Costs 3.5 m. per day, at 3 p.m. today. End.",
                vec![("Costs 3.5 m. per day, at 3 p.m. today.", Sentence), ("End.", Paragraph)],
            ),
            (
                "Dr. J. Smith met Mrs. Lee. No. 5 won. No. It lost.",
                vec![
                    ("Dr. J. Smith met Mrs. Lee.", Sentence),
                    ("No. 5 won.", Sentence),
                    ("No.", Sentence),
                    ("It lost.", Paragraph),
                ],
            ),
            (
                "  Title\n\nA line\nanother line.\n\n\nLast ",
                vec![("Title", Paragraph), ("A line\nanother line.", Paragraph), ("Last", Paragraph)],
            ),
            ("这是一。那是二！完", vec![("这是一。", Sentence), ("那是二！", Sentence), ("完", Paragraph)]),
            ("See a.b.c and v1.2.", vec![("See a.b.c and v1.2.", Paragraph)]),
            ("", vec![]),
            (" \n ", vec![]),
        ] {
            assert_eq!(sentences(text), expected, "{text}");
        }
    }

    #[test]
    fn endless_text_is_cut() {
        let lines = "word word word\n".repeat(5000);
        assert!(sentences(&lines).iter().all(|(text, _)| text.len() <= LONGEST));
        assert_eq!(sentences(&lines)[0].1, Boundary::Line);
        for blob in ["é".repeat(50_000), ".".repeat(50_000), "?!\"".repeat(20_000)] {
            let pieces = sentences(&blob);
            assert!(pieces.iter().all(|(text, _)| text.len() <= LONGEST + 4));
            assert_eq!(pieces.iter().map(|(text, _)| text.len()).sum::<usize>(), blob.len());
            assert_eq!(pieces[0].1, Boundary::Character);
        }
    }

    #[test]
    fn spans_get_finer_down_to_characters() {
        let text = "a b\n cd  e";
        let whole = Span { start: 0, end: text.len(), after: Boundary::Sentence };
        let lines = finer(text, whole);
        assert_eq!(lines.iter().map(|span| &text[span.range()]).collect::<Vec<_>>(), ["a b", "cd  e"]);
        assert_eq!((lines[0].after, lines[1].after), (Boundary::Line, Boundary::Sentence));
        let words = finer(text, lines[1]);
        assert_eq!(words.iter().map(|span| &text[span.range()]).collect::<Vec<_>>(), ["cd", "e"]);
        assert_eq!(finer(text, words[0]).len(), 2);
        assert_eq!(finer(text, words[1]), [words[1]]);
        let accents = "e\u{301}\u{302}";
        let span = Span { start: 0, end: accents.len(), after: Boundary::Paragraph };
        assert_eq!(finer(accents, span).len(), 3);
    }
}

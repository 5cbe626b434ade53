//! Puts sentences together into chunks.

use std::collections::VecDeque;

use ingrain_engine::failure::Failure;

use super::{
    boundaries::{Boundary, Span, finer, sentence},
    measure::Measure,
};

/// How much longer a word may be at the front of a text than behind a space: vocabularies know most words with one.
const SLACK: usize = 16;

/// How long chunks may be, in the unit of the [`Measure`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max: usize,
    pub(super) overlap: usize,
}

/// A stretch of the document's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) start: usize,
    pub(super) end: usize,
    /// Its exact length.
    pub(super) length: usize,
}

/// A span with its length behind another one: the whitespace in front of it is included.
#[derive(Debug, Clone, Copy)]
struct Unit {
    span: Span,
    length: usize,
    /// Its length at the front of a chunk, once that was asked for.
    bare: Option<usize>,
}

/// Cuts one document into chunks, from front to back. Holds the sentences of one chunk, not those of the document.
#[derive(Debug)]
pub(super) struct Packer {
    limits: Limits,
    /// Where the next sentence begins.
    cursor: usize,
    /// The end of the last unit: the whitespace from here on belongs to the next one.
    measured: usize,
    /// Spans that a long sentence was cut into, waiting.
    pending: VecDeque<Span>,
    /// The units of the next chunk, those carried over from the one before first.
    window: VecDeque<Unit>,
    /// How many units at the window's front were in the last chunk, too.
    carried: usize,
}

impl Packer {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, cursor: 0, measured: 0, pending: VecDeque::new(), window: VecDeque::new(), carried: 0 }
    }

    /// The next chunk of `text`, which must be the same text every time.
    ///
    /// It takes as many sentences as fit. It then goes back to the last paragraph that leaves it at least half full, or
    /// else to the last sentence or line that does. A chunk is longer than the limit only if one character alone is.
    pub(super) fn next(&mut self, text: &str, measure: &mut Measure) -> Result<Option<Chunk>, Failure> {
        let fitting = self.fill(text, measure)?;
        if fitting <= self.carried {
            return Ok(None);
        }
        let more = self.window.len() > fitting;
        let mut taken = if more { self.cut(fitting) } else { fitting };
        let mut length = measure.length(&text[self.window[0].span.start..self.window[taken - 1].span.end])?;
        // Lengths of parts don't quite add up for every tokenizer, so the sum only says where to begin.
        while length > self.limits.max && (taken > self.carried + 1 || self.carried > 0) {
            if taken > self.carried + 1 {
                taken -= 1;
            } else {
                self.window.pop_front();
                self.carried -= 1;
                taken -= 1;
            }
            length = measure.length(&text[self.window[0].span.start..self.window[taken - 1].span.end])?;
        }
        let chunk = Chunk { start: self.window[0].span.start, end: self.window[taken - 1].span.end, length };
        self.carry(taken, text, measure)?;
        Ok(Some(chunk))
    }

    /// Pulls units until one doesn't fit, and says how many do: at least one that is new, if there is any.
    fn fill(&mut self, text: &str, measure: &mut Measure) -> Result<usize, Failure> {
        let mut fitting = 0;
        let mut total = 0;
        loop {
            if self.window.len() == fitting {
                match self.pull(text, measure)? {
                    Some(unit) => self.window.push_back(unit),
                    None => return Ok(fitting),
                }
            }
            if fitting > 0 && total + self.window[fitting].length > self.limits.max {
                if fitting > self.carried {
                    return Ok(fitting);
                }
                // Nothing new fits behind what was carried over.
                while fitting > 0 && total + self.window[fitting].length > self.limits.max {
                    self.window.pop_front();
                    self.carried -= 1;
                    fitting -= 1;
                    total = match fitting {
                        0 => 0,
                        _ => self.front(text, measure)? + self.window.range(1..fitting).map(|unit| unit.length).sum::<usize>(),
                    };
                }
            }
            total += if fitting == 0 { self.front(text, measure)? } else { self.window[fitting].length };
            fitting += 1;
        }
    }

    /// The length of the window's first unit, where no whitespace is in front of it.
    fn front(&mut self, text: &str, measure: &mut Measure) -> Result<usize, Failure> {
        let unit = &mut self.window[0];
        let bare = match unit.bare {
            Some(bare) => bare,
            None => measure.length(&text[unit.span.range()])?,
        };
        unit.bare = Some(bare);
        Ok(bare)
    }

    /// The next sentence, or a part of it that fits a chunk.
    fn pull(&mut self, text: &str, measure: &mut Measure) -> Result<Option<Unit>, Failure> {
        loop {
            let span = match self.pending.pop_front() {
                Some(span) => span,
                None => match sentence(text, self.cursor) {
                    Some(span) => {
                        self.cursor = span.end;
                        span
                    }
                    None => return Ok(None),
                },
            };
            let length = measure.length(&text[self.measured..span.end])?;
            if length + SLACK > self.limits.max && measure.length(&text[span.range()])? > self.limits.max {
                let parts = finer(text, span);
                if parts.len() > 1 {
                    for part in parts.into_iter().rev() {
                        self.pending.push_front(part);
                    }
                    continue;
                }
            }
            self.measured = span.end;
            return Ok(Some(Unit { span, length, bare: None }));
        }
    }

    /// How many of the first `fitting` units to take, so that the chunk ends at a strong boundary and is half full.
    fn cut(&self, fitting: usize) -> usize {
        let mut totals = Vec::with_capacity(fitting);
        let mut total = 0;
        for unit in self.window.iter().take(fitting) {
            total += if totals.is_empty() { unit.bare.unwrap_or(unit.length) } else { unit.length };
            totals.push(total);
        }
        for boundary in [Boundary::Paragraph, Boundary::Sentence, Boundary::Line, Boundary::Word] {
            for taken in (self.carried + 1..=fitting).rev() {
                if totals[taken - 1] < self.limits.max.div_ceil(2) {
                    break;
                }
                if self.window[taken - 1].span.after >= boundary {
                    return taken;
                }
            }
        }
        fitting
    }

    /// Drops the chunk's units but for the overlap: its last whole sentences that fit, or if not one does, the last
    /// words of it.
    fn carry(&mut self, taken: usize, text: &str, measure: &mut Measure) -> Result<(), Failure> {
        let last = self.window[taken - 1];
        let mut kept = 0;
        let mut total = 0;
        while kept + 1 < taken && self.limits.overlap > 0 {
            let unit = self.window[taken - 1 - kept];
            total += unit.length;
            if total > self.limits.overlap {
                // The sum has the whitespace in front of the overlap in it.
                if measure.length(&text[unit.span.start..last.span.end])? <= self.limits.overlap {
                    kept += 1;
                }
                break;
            }
            kept += 1;
        }
        self.window.drain(..taken - kept);
        self.carried = kept;
        if kept == 0 && self.limits.overlap > 0 {
            let words = text[last.span.range()].split_whitespace().rev();
            let mut tail = None;
            for word in words {
                let start = word.as_ptr() as usize - text.as_ptr() as usize;
                let length = measure.length(&text[start..last.span.end])?;
                if length > self.limits.overlap || start == last.span.start {
                    break;
                }
                tail = Some(Unit { span: Span { start, ..last.span }, length, bare: Some(length) });
            }
            if let Some(tail) = tail {
                self.window.push_front(tail);
                self.carried = 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(text: &str, max: usize, overlap: usize) -> Vec<Chunk> {
        let mut packer = Packer::new(Limits { max, overlap });
        let mut measure = Measure::Characters;
        let mut found = Vec::new();
        while let Some(chunk) = packer.next(text, &mut measure).unwrap() {
            found.push(chunk);
        }
        found
    }

    fn texts(text: &str, max: usize, overlap: usize) -> Vec<&str> {
        chunks(text, max, overlap).into_iter().map(|chunk| &text[chunk.start..chunk.end]).collect()
    }

    #[test]
    fn sentences_fill_chunks() {
        let text = "Aaa aaa. Bbb bbb. Ccc ccc. Ddd.";
        assert_eq!(texts(text, 18, 0), ["Aaa aaa. Bbb bbb.", "Ccc ccc. Ddd."]);
        assert_eq!(texts(text, 100, 0), [text]);
        assert_eq!(texts("", 10, 0), Vec::<&str>::new());
        assert_eq!(texts(" \n ", 10, 5), Vec::<&str>::new());
    }

    #[test]
    fn paragraphs_are_preferred_when_the_chunk_is_half_full() {
        let text = "Aaa aaa aa.\n\nBbb. Ccc ccc ccc ccc.";
        assert_eq!(texts(text, 20, 0), ["Aaa aaa aa.", "Bbb.", "Ccc ccc ccc ccc."].to_vec());
        let text = "Aaa.\n\nBbb bbb bbb. Ccc ccc ccc ccc.";
        assert_eq!(texts(text, 20, 0)[0], "Aaa.\n\nBbb bbb bbb.");
    }

    #[test]
    fn overlap_is_whole_sentences_where_they_fit() {
        let text = "Aaa aaa. Bbb. Ccc ccc. Ddd. Eee eee.";
        let found = texts(text, 15, 6);
        assert_eq!(found, ["Aaa aaa. Bbb.", "Bbb. Ccc ccc.", "ccc. Ddd.", "Ddd. Eee eee."]);
        let long = "One two three four five. Six seven eight nine ten.";
        let found = texts(long, 30, 9);
        assert_eq!(found[0], "One two three four five.");
        assert_eq!(found[1], "Six seven eight nine ten.");
        let found = texts(long, 40, 10);
        assert_eq!(found[1], "four five. Six seven eight nine ten.");
    }

    #[test]
    fn whitespace_in_front_does_not_count() {
        assert_eq!(texts("Aaa aaa aaa.\n\nBbb bbb. Ccc ccc.", 17, 0), ["Aaa aaa aaa.", "Bbb bbb. Ccc ccc."]);
        assert_eq!(texts("One. Two. Three. Four.", 15, 4), ["One. Two.", "Two. Three.", "Four."]);
    }

    #[test]
    fn long_words_are_cut_and_nothing_is_lost() {
        let blob = "x".repeat(100);
        let found = chunks(&blob, 30, 0);
        assert!(found.iter().all(|chunk| chunk.length <= 30));
        assert_eq!(found.iter().map(|chunk| chunk.end - chunk.start).sum::<usize>(), 100);
        assert_eq!(texts("ab", 1, 0), ["a", "b"]);
    }

    #[test]
    fn every_word_is_in_a_chunk_and_no_chunk_is_too_long() {
        let mut state = 1_u64;
        let mut random = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        let pieces =
            ["a", "Word", "ünï", "longerword", ". ", "! ", "\n", "\n\n", " ", "。", "No. ", "…", "\t", "x".repeat(70).leak()];
        for round in 0..300 {
            let text: String = (0..random(200)).map(|_| pieces[random(pieces.len() as u64) as usize]).collect();
            let max = 1 + random(60) as usize;
            let overlap = random(max as u64) as usize;
            let found = chunks(&text, max, overlap);
            let mut reached = 0;
            for chunk in &found {
                let inside = &text[chunk.start..chunk.end];
                assert_eq!(inside.chars().count(), chunk.length, "round {round}");
                assert!(chunk.length <= max, "round {round}: {inside:?}");
                assert_eq!(inside.trim(), inside);
                assert!(chunk.end > reached, "round {round}: no progress");
                assert!(chunk.start >= reached || text[chunk.start..reached].chars().count() <= overlap, "round {round}");
                if chunk.start > reached {
                    assert!(text[reached..chunk.start].trim().is_empty(), "round {round}: text is lost");
                }
                reached = chunk.end;
            }
            assert!(text[reached..].trim().is_empty(), "round {round}: the end is lost");
        }
    }
}

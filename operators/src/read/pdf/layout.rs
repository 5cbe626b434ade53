//! The text of a page, from where its letters stand.
//!
//! A PDF says where each letter goes and nothing of words, lines, columns or paragraphs. Letters become words by the gaps
//! between them, words on one height become a line, cells of a line are set apart by a tab, and lines that fill the width
//! of the lines around them flow on. Lines stay in the order in which the page draws them, which is that of reading in nearly every
//! PDF, several columns of text included; only the words within a line are put in order.

use pdf_extract::{MediaBox, OutputDev, OutputError, Transform};

/// All lengths below are in sizes of the letters at hand. Letters that are this far apart are two words.
const WORD_GAP: f64 = 0.15;
/// Words that are this far apart are two cells of a table.
const CELL_GAP: f64 = 1.5;
/// A sign of a currency that stands alone begins a cell if it is this far behind another.
const CURRENCY_GAP: f64 = 0.6;
/// Words that differ less than this in height are on one line: it takes in what is raised or lowered.
const SAME_LINE: f64 = 0.45;
/// Lines that are further apart than this are two paragraphs.
const PARAGRAPH_GAP: f64 = 1.7;
/// A line flows on into the next if it reaches this share of its block's width, and is this long.
const FULL: f64 = 0.85;
const LONG: f64 = 15.0;
/// More letters on a page are an error.
const MOST_LETTERS: usize = 4_000_000;

/// Collects what stands on a page.
#[derive(Debug, Default)]
pub(super) struct Layout {
    words: Vec<Word>,
    /// Whether the next letter begins a word.
    apart: bool,
    letters: usize,
}

/// A word, in coordinates in which it runs to the right and up is up.
#[derive(Debug, Clone)]
struct Word {
    text: String,
    start: f64,
    end: f64,
    height: f64,
    size: f64,
    /// Quarter turns against the page.
    turn: u8,
}

impl OutputDev for Layout {
    fn begin_page(&mut self, _: u32, _: &MediaBox, _: Option<(f64, f64, f64, f64)>) -> Result<(), OutputError> {
        Ok(())
    }

    fn end_page(&mut self) -> Result<(), OutputError> {
        Ok(())
    }

    fn output_character(
        &mut self,
        place: &Transform,
        width: f64,
        _: f64,
        font_size: f64,
        letter: &str,
    ) -> Result<(), OutputError> {
        self.letters += 1;
        if self.letters > MOST_LETTERS {
            return Err(OutputError::IoError(std::io::Error::other(format!("more than {MOST_LETTERS} letters"))));
        }
        let advance = width * place.m11.hypot(place.m12) * font_size;
        let size = (place.m21.hypot(place.m22) * font_size).abs();
        let (x, y) = (place.m31, place.m32);
        let (turn, start, height) = if place.m11.abs() >= place.m12.abs() {
            if place.m11 >= 0.0 { (0, x, y) } else { (2, -x, -y) }
        } else if place.m12 >= 0.0 {
            (1, y, -x)
        } else {
            (3, -y, x)
        };
        if letter.trim().is_empty() || ![start, height, advance, size].iter().all(|value| value.is_finite()) {
            self.apart = true;
            return Ok(());
        }
        let end = start + advance.abs();
        let letter = readable(letter);
        if let Some(word) = self.words.last_mut()
            && !self.apart
            && word.turn == turn
            && (word.height - height).abs() < 0.1 * size
            && (start - word.end).abs() < WORD_GAP * size
        {
            word.text.push_str(&letter);
            word.end = end;
            word.size = word.size.max(size);
        } else if !letter.is_empty() {
            self.words.push(Word { text: letter, start, end, height, size, turn });
        }
        self.apart = false;
        Ok(())
    }

    fn begin_word(&mut self) -> Result<(), OutputError> {
        Ok(())
    }

    fn end_word(&mut self) -> Result<(), OutputError> {
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), OutputError> {
        Ok(())
    }
}

/// A letter as text: ligatures spelt out, soft hyphens and what is no letter left out.
fn readable(letter: &str) -> String {
    let mut text = String::with_capacity(letter.len());
    for letter in letter.chars() {
        match letter {
            'ﬀ' => text.push_str("ff"),
            'ﬁ' => text.push_str("fi"),
            'ﬂ' => text.push_str("fl"),
            'ﬃ' => text.push_str("ffi"),
            'ﬄ' => text.push_str("ffl"),
            'ﬅ' | 'ﬆ' => text.push_str("st"),
            '\u{ad}' => {}
            letter if letter.is_whitespace() => text.push(' '),
            letter if letter.is_control() => {}
            letter => text.push(letter),
        }
    }
    text
}

/// A line, with its cells set apart by tabs.
#[derive(Debug)]
struct Line {
    text: String,
    cells: usize,
    start: f64,
    end: f64,
    height: f64,
    size: f64,
    turn: u8,
}

impl Layout {
    /// The text: lines that don't flow on end with `\n`, paragraphs with an empty line.
    pub(super) fn text(mut self) -> String {
        let mut turns = [0_usize; 4];
        for word in &self.words {
            turns[usize::from(word.turn)] += word.text.len();
        }
        // What runs across the page, such as a note on its margin, comes last.
        let main = (0..4_u8).rev().max_by_key(|turn| turns[usize::from(*turn)]).unwrap_or(0);
        self.words.sort_by_key(|word| word.turn != main);
        let lines = lines(self.words);
        let mut text = String::new();
        for block in lines.chunk_by(|before, line| !apart(before, line)) {
            if !text.is_empty() {
                text.push_str("\n\n");
            }
            let flowing = || block.iter().filter(|line| line.cells == 1);
            let left = flowing().map(|line| line.start).fold(f64::INFINITY, f64::min);
            let right = flowing().map(|line| line.end).fold(f64::NEG_INFINITY, f64::max);
            let full = left + FULL * (right - left);
            for (at, line) in block.iter().enumerate() {
                if at > 0 {
                    text.push_str(between(&block[at - 1], line, full));
                }
                text.push_str(&line.text);
            }
        }
        text.trim().to_owned()
    }
}

fn lines(words: Vec<Word>) -> Vec<Line> {
    let mut lines: Vec<Vec<Word>> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if on_line(line, &word) => line.push(word),
            _ => lines.push(vec![word]),
        }
    }
    lines.into_iter().filter_map(line).collect()
}

/// Whether a word stands on the line of `words`: on the height of the largest of them.
fn on_line(words: &[Word], word: &Word) -> bool {
    let largest = words.iter().max_by(|a, b| a.size.total_cmp(&b.size));
    largest.is_some_and(|largest| {
        largest.turn == word.turn && (largest.height - word.height).abs() < SAME_LINE * largest.size.max(word.size)
    })
}

fn line(mut words: Vec<Word>) -> Option<Line> {
    words.sort_by(|a, b| a.start.total_cmp(&b.start));
    let mut words = words.into_iter();
    let first = words.next()?;
    let mut line = Line {
        text: first.text.clone(),
        cells: 1,
        start: first.start,
        end: first.end,
        height: first.height,
        size: first.size,
        turn: first.turn,
    };
    let mut before = first;
    for word in words {
        let size = before.size.max(word.size);
        let gap = word.start - line.end;
        // Bold letters made by writing twice.
        if word.text == before.text && (word.start - before.start).abs() < 0.3 * size {
            continue;
        }
        let currency = |word: &Word| matches!(word.text.as_str(), "$" | "€" | "£" | "¥");
        let cell = if currency(&word) { CURRENCY_GAP } else { CELL_GAP };
        let tail = matches!(word.text.as_str(), ")" | "%" | ")%" | "%)");
        if currency(&before) {
            line.text.push(' ');
        } else if gap > cell * size && !tail {
            line.text.push('\t');
            line.cells += 1;
        } else if !tail && (gap > 0.05 * size || word.height == before.height) {
            line.text.push(' ');
        }
        line.text.push_str(&word.text);
        line.end = line.end.max(word.end);
        if word.size > line.size {
            (line.size, line.height) = (word.size, word.height);
        }
        before = word;
    }
    Some(line)
}

/// Whether two lines are of two blocks: far apart, or the second one not below the first.
fn apart(before: &Line, line: &Line) -> bool {
    let size = before.size.max(line.size);
    let down = before.height - line.height;
    before.turn != line.turn || down < -SAME_LINE * size || down > PARAGRAPH_GAP * size
}

/// What stands between two lines of a block, in which lines that end at `full` or behind it are full.
fn between(before: &Line, line: &Line, full: f64) -> &'static str {
    let size = before.size.max(line.size);
    let alike = (before.size - line.size).abs() < 0.1 * size;
    let long = before.end >= full && before.end - before.start >= LONG * size;
    let indented = line.start > before.start + size;
    if before.cells > 1 || line.cells > 1 || before.height <= line.height || !alike || !long || indented {
        "\n"
    } else if before.text.ends_with('-') {
        ""
    } else {
        " "
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes `text` with letters half as wide as they are high.
    fn write(layout: &mut Layout, x: f64, y: f64, size: f64, text: &str) {
        for (n, letter) in text.chars().enumerate() {
            let mut place = Transform::identity();
            (place.m31, place.m32) = (x + n as f64 * size * 0.5, y);
            layout.output_character(&place, 0.5, 0.0, size, &letter.to_string()).unwrap();
        }
        layout.apart = true;
    }

    fn text(writes: &[(f64, f64, f64, &str)]) -> String {
        let mut layout = Layout::default();
        for (x, y, size, text) in writes {
            write(&mut layout, *x, *y, *size, text);
        }
        layout.text()
    }

    #[test]
    fn rows_of_a_table_stay_rows() {
        let table = text(&[
            (50.0, 700.0, 10.0, "Net sales"),
            (300.0, 700.0, 10.0, "$"),
            (320.0, 700.0, 10.0, "46,298"),
            (357.0, 700.0, 10.0, "$"),
            (400.0, 700.5, 10.0, "(1,577"),
            (432.0, 700.5, 10.0, ")"),
            (50.0, 688.0, 10.0, "Costs"),
            (400.0, 688.0, 10.0, "9"),
            (300.0, 688.0, 10.0, "8"),
        ]);
        assert_eq!(table, "Net sales\t$ 46,298\t$ (1,577)\nCosts\t8\t9");
    }

    #[test]
    fn prose_flows_and_paragraphs_stay_apart() {
        let prose = text(&[
            (50.0, 700.0, 10.0, "This line is a full one and goes on"),
            (50.0, 688.0, 10.0, "in the next one, which is short."),
            (50.0, 660.0, 10.0, "Another, after a gap, is also long-"),
            (50.0, 648.0, 10.0, "lived."),
            (50.0, 636.0, 10.0, "Its own"),
            (85.0, 639.5, 6.0, "1"),
        ]);
        let expected = "This line is a full one and goes on in the next one, which is short.\n\nAnother, after a gap, is also \
                        long-lived.\nIts own1";
        assert_eq!(prose, expected);
    }

    #[test]
    fn letters_become_text() {
        assert_eq!(readable("ﬁ\u{ad}\u{a0}x\u{1}"), "fi x");
        assert_eq!(text(&[(50.0, 700.0, 10.0, "Bold"), (50.4, 700.0, 10.0, "Bold"), (50.0, 688.0, 10.0, "ﬂow")]), "Bold\nflow");
        assert_eq!(text(&[]), "");
        let mut layout = Layout::default();
        write(&mut layout, 50.0, 700.0, 10.0, "Across the page");
        let mut up = Transform::identity();
        (up.m11, up.m12, up.m21, up.m22, up.m31, up.m32) = (0.0, 1.0, -1.0, 0.0, 20.0, 300.0);
        layout.output_character(&up, 0.5, 0.0, 10.0, "M").unwrap();
        assert_eq!(layout.text(), "Across the page\n\nM");
    }
}

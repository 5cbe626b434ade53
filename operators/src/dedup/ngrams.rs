//! N-grams of a text as 64-bit hashes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an n-gram is made of, and how much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ngram {
    /// So many words in a row. A word is what stands between white space, punctuation included.
    Words(u32),
    /// So many characters in a row; a run of white space counts as one.
    Characters(u32),
}

impl Ngram {
    /// The name of its unit in a pipeline file, and how many of them it has.
    pub(crate) fn parts(self) -> (&'static str, u32) {
        match self {
            Self::Words(n) => ("words", n),
            Self::Characters(n) => ("characters", n),
        }
    }
}

/// Odd, with ones and zeros all over: the golden ratio as a fraction of 2^64.
const ODD: u64 = 0x9E37_79B9_7F4A_7C15;
/// The base of the polynomials that n-grams are hashed with.
const BASE: u64 = 0xD134_2543_DE82_EF95;

/// A bijection that spreads every bit of `value` over all of them: the finaliser of SplitMix64 (Steele et al., 2014).
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// A hash of bytes that is the same on every machine. Different texts of at most eight bytes and equal length differ.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let (chunks, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let start = ODD.wrapping_mul(bytes.len() as u64 + 1);
    let sum = chunks.iter().fold(start, |sum, chunk| mix(sum ^ u64::from_le_bytes(*chunk)));
    mix(sum ^ u64::from_le_bytes(last))
}

/// Makes n-grams; holds buffers that are used again.
#[derive(Debug)]
pub(crate) struct Grams {
    ngram: Ngram,
    lower: String,
    units: Vec<u64>,
}

impl Grams {
    /// N-grams of this kind, of one unit at least.
    pub(crate) fn new(ngram: Ngram) -> Self {
        Self { ngram, lower: String::new(), units: Vec::new() }
    }

    /// Fills `grams` with the n-grams of `text` in their order, repeats included; never with none: a text that is shorter
    /// than an n-gram is one by itself.
    ///
    /// Every character is taken in lower case, and every run of white space (as Unicode defines it) as one space; white
    /// space at both ends doesn't count.
    pub(crate) fn fill(&mut self, text: &str, grams: &mut Vec<u64>) {
        lower_case(text, &mut self.lower);
        self.units.clear();
        let (_, n) = self.ngram.parts();
        match self.ngram {
            Ngram::Words(_) => each_word(&self.lower, |word| self.units.push(hash(word))),
            Ngram::Characters(_) => characters(&self.lower, &mut self.units),
        }
        grams.clear();
        roll(&self.units, n.max(1) as usize, grams);
    }

    /// The different n-grams of `text`, sorted.
    pub(crate) fn set(&mut self, text: &str) -> Vec<u64> {
        let mut grams = Vec::new();
        self.fill(text, &mut grams);
        grams.sort_unstable();
        grams.dedup();
        grams
    }
}

/// The words of a text in lower case, hashed, in their order.
pub(crate) fn words(text: &str) -> Vec<u64> {
    let (mut lower, mut words) = (String::new(), Vec::new());
    lower_case(text, &mut lower);
    each_word(&lower, |word| words.push(hash(word)));
    words
}

/// How many words a text has.
pub(crate) fn word_count(text: &str) -> u64 {
    let mut count = 0;
    each_word(text, |_| count += 1);
    count
}

/// Calls `word` with the bytes of each word. ASCII needs no decoding, which takes most of the time otherwise; white space is
/// what it is for [`char::is_whitespace`] in both cases.
fn each_word(text: &str, mut word: impl FnMut(&[u8])) {
    if text.is_ascii() {
        let words = text.as_bytes().split(|byte| matches!(byte, b'\t'..=b'\r' | b' '));
        words.filter(|bytes| !bytes.is_empty()).for_each(word);
    } else {
        text.split_whitespace().for_each(|text| word(text.as_bytes()));
    }
}

fn lower_case(text: &str, lower: &mut String) {
    lower.clear();
    if text.is_ascii() {
        lower.push_str(text);
        lower.make_ascii_lowercase();
    } else {
        lower.extend(text.chars().flat_map(char::to_lowercase));
    }
}

fn characters(lower: &str, units: &mut Vec<u64>) {
    let unit = |character: char| mix(ODD ^ u64::from(character));
    let mut space = false;
    for character in lower.chars() {
        if character.is_whitespace() {
            space = !units.is_empty();
        } else {
            if std::mem::take(&mut space) {
                units.push(unit(' '));
            }
            units.push(unit(character));
        }
    }
}

/// Appends a hash for every `n` of `units` in a row: a polynomial, so that each takes one step, then mixed. Fewer than `n`
/// units are one n-gram.
pub(crate) fn roll(units: &[u64], n: usize, grams: &mut Vec<u64>) {
    let n = n.min(units.len());
    let mixed = |sum: u64| mix(sum.wrapping_add(ODD.wrapping_mul(n as u64)));
    let leaves = (0..n).fold(1_u64, |power, _| power.wrapping_mul(BASE));
    let mut sum = units[..n].iter().fold(0_u64, |sum, unit| sum.wrapping_mul(BASE).wrapping_add(*unit));
    grams.push(mixed(sum));
    for (gone, unit) in units.iter().zip(&units[n..]) {
        sum = sum.wrapping_mul(BASE).wrapping_add(*unit).wrapping_sub(gone.wrapping_mul(leaves));
        grams.push(mixed(sum));
    }
}

/// The Jaccard similarity of two sorted sets: what they share, as a share of all that they hold. At least one isn't empty.
pub(crate) fn jaccard(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut shared) = (0, 0, 0_usize);
    while i < a.len() && j < b.len() {
        shared += usize::from(a[i] == b[j]);
        let (x, y) = (a[i], b[j]);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    shared as f64 / (a.len() + b.len() - shared) as f64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn set(ngram: Ngram, text: &str) -> Vec<u64> {
        Grams::new(ngram).set(text)
    }

    #[test]
    fn case_and_white_space_do_not_count() {
        for ngram in [Ngram::Words(2), Ngram::Characters(3)] {
            assert_eq!(set(ngram, " The\n\tHARBOUR  office "), set(ngram, "the harbour office"));
            assert_eq!(set(ngram, "GRÖSSE\u{a0}Ärger\u{2003}da"), set(ngram, "grösse ärger da"));
            assert_ne!(set(ngram, "the harbour office"), set(ngram, "the harbour offices"));
            assert_ne!(set(ngram, "the harbour office"), set(ngram, "theharbour office"));
        }
        // White space is the same in ASCII and in other texts.
        let spaces: String = (0..0x80_u8).map(char::from).filter(|character| character.is_whitespace()).collect();
        assert_eq!((word_count(&format!("a{spaces}b")), word_count(&format!("ä{spaces}b"))), (2, 2));
        let controls: String = (0..0x80_u8).map(char::from).filter(|character| !character.is_whitespace()).collect();
        assert_eq!((word_count(&controls), word_count(&format!("{controls}ä"))), (1, 1));
    }

    #[test]
    fn there_is_a_gram_for_every_place() {
        let mut grams = Vec::new();
        Grams::new(Ngram::Words(2)).fill("a b c a b", &mut grams);
        assert_eq!((grams.len(), grams[0]), (4, grams[3]));
        assert_eq!(set(Ngram::Words(2), "a b c a b").len(), 3);
        assert_eq!(set(Ngram::Characters(3), "abcde").len(), 3);
        // An n-gram doesn't depend on what stands before it.
        assert_eq!(set(Ngram::Characters(3), "cde")[0], {
            Grams::new(Ngram::Characters(3)).fill("abcde", &mut grams);
            grams[2]
        });
    }

    #[test]
    fn a_short_text_is_one_gram_and_so_is_an_empty_one() {
        assert_eq!(set(Ngram::Words(5), "three short words").len(), 1);
        assert_eq!(set(Ngram::Words(5), ""), set(Ngram::Words(5), " \n"));
        assert_eq!(set(Ngram::Characters(5), "").len(), 1);
        let different: HashSet<u64> =
            ["", "a", "a a", "a a a", "aa", "b"].into_iter().map(|text| set(Ngram::Words(5), text)[0]).collect();
        assert_eq!(different.len(), 6);
    }

    #[test]
    fn hashes_of_many_words_all_differ() {
        let mut words: Vec<String> = (0..200_000).map(|n| format!("word{n}")).collect();
        words.extend((0..100).map(|n| "\0".repeat(n)));
        let hashes: HashSet<u64> = words.iter().map(|word| hash(word.as_bytes())).collect();
        assert_eq!(hashes.len(), words.len());
    }

    #[test]
    fn the_similarity_is_what_is_shared() {
        assert_eq!(jaccard(&[1, 2, 3, 4], &[2, 3, 4, 5]), 0.6);
        assert_eq!(jaccard(&[1, 2], &[3]), 0.0);
        assert_eq!(jaccard(&[1, 2], &[1, 2]), 1.0);
        assert_eq!(jaccard(&[], &[1]), 0.0);
    }

    #[test]
    fn golden_hashes() {
        assert_eq!(mix(1), 0x5692_161D_100B_05E5);
        assert_eq!(words("A b"), words(" a\nB"));
    }
}

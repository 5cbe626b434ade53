//! Self-BLEU: how well each text is foretold by the others.

use std::collections::HashMap;

use crate::dedup::ngrams::roll;

/// The longest n-gram of BLEU.
const ORDERS: usize = 4;
/// What counts in place of no match (Chen and Cherry, 2014, method 1).
const NO_MATCH: f64 = 0.1;

/// How often an n-gram occurs in the text that has it most often, which text that is, and how often in the next.
#[derive(Debug, Clone, Copy, Default)]
struct Most {
    count: u32,
    text: u32,
    next: u32,
}

impl Most {
    fn add(&mut self, count: u32, text: u32) {
        if count > self.count {
            *self = Self { count, text, next: self.count };
        } else {
            self.next = self.next.max(count);
        }
    }

    /// The most among all texts but `text`.
    fn without(self, text: u32) -> u32 {
        if self.text == text { self.next } else { self.count }
    }
}

/// The mean BLEU-4 of each text against all others (Zhu et al., 2018), 0 to 1, from words of four or more a text; `None` for
/// fewer than two texts. A precision without a match counts as 0.1 match. The work is linear in the words: instead of every
/// pair, it looks at how often an n-gram occurs in the text that has it most often.
pub(super) fn self_bleu(texts: &[&[u64]]) -> Option<f64> {
    if texts.len() < 2 {
        return None;
    }
    let mut products = vec![1.0; texts.len()];
    for n in 1..=ORDERS {
        let mut most: HashMap<u64, Most> = HashMap::new();
        for (number, text) in texts.iter().enumerate() {
            for (gram, count) in counts(text, n) {
                most.entry(gram).or_default().add(count, number as u32);
            }
        }
        for (number, text) in texts.iter().enumerate() {
            let foretold = |(gram, count): (u64, u32)| u64::from(count.min(most[&gram].without(number as u32)));
            let matches: u64 = counts(text, n).map(foretold).sum();
            let matches = if matches == 0 { NO_MATCH } else { matches as f64 };
            products[number] *= matches / (text.len() + 1 - n) as f64;
        }
    }
    let mut lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
    lengths.sort_unstable();
    // The fourth root of the product, without a logarithm that differs between machines.
    let scores = texts.iter().zip(products).map(|(text, product)| brevity(text.len(), &lengths) * product.sqrt().sqrt());
    Some(scores.sum::<f64>() / texts.len() as f64)
}

/// Every different n-gram of a text with how often it occurs.
fn counts(text: &[u64], n: usize) -> impl Iterator<Item = (u64, u32)> {
    let mut grams = Vec::with_capacity(text.len());
    roll(text, n, &mut grams);
    grams.sort_unstable();
    let mut place = 0;
    std::iter::from_fn(move || {
        let gram = *grams.get(place)?;
        let count = grams[place..].partition_point(|other| *other == gram);
        place += count;
        Some((gram, count as u32))
    })
}

/// The penalty of a text that is shorter than the other whose length is nearest (of two, the shorter). `lengths` are sorted
/// and hold its own.
fn brevity(length: usize, lengths: &[usize]) -> f64 {
    let place = lengths.partition_point(|other| *other < length);
    let shorter = place.checked_sub(1).map(|place| lengths[place]);
    match (shorter, lengths.get(place + 1)) {
        (_, None) => 1.0,
        (Some(shorter), Some(longer)) if length - shorter <= longer - length => 1.0,
        (_, Some(longer)) => (1.0 - *longer as f64 / length as f64).exp(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dedup::ngrams::words;

    fn score(texts: &[&str]) -> Option<f64> {
        let texts: Vec<Vec<u64>> = texts.iter().map(|text| words(text)).collect();
        self_bleu(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    #[test]
    fn equal_texts_foretell_each_other_and_different_ones_do_not() {
        assert_eq!(score(&["a b c d e", "A b c  d e"]), Some(1.0));
        // 0.1 of 5, 4, 3 and 2 n-grams.
        let none = (0.1_f64.powi(4) / 120.0).powf(0.25);
        assert!((score(&["a b c d e", "f g h i j"]).unwrap() - none).abs() < 1e-12);
        assert_eq!(score(&["a b c d e"]), None);
    }

    #[test]
    fn matches_are_clipped_to_the_other_text_that_has_most() {
        // `a b c d e f` against `a b c d x y z` and `a a a a b c d e`: 5 of 6, 4 of 5, 3 of 4, 2 of 3; a text of 7 words is nearest.
        let first = words("a b c d e f");
        let (second, third) = (words("a b c d x y z"), words("a a a a b c d e"));
        let texts: [&[u64]; 3] = [&first, &second, &third];
        let first = (5.0 / 6.0 * 4.0 / 5.0 * 3.0 / 4.0 * 2.0 / 3.0_f64).powf(0.25) * (1.0 - 7.0 / 6.0_f64).exp();
        // Of 7: a b c d. Of 8: a once, b c d e.
        let second = (4.0 / 7.0 * 3.0 / 6.0 * 2.0 / 5.0 * 1.0 / 4.0_f64).powf(0.25);
        let third = (5.0 / 8.0 * 4.0 / 7.0 * 3.0 / 6.0 * 2.0 / 5.0_f64).powf(0.25);
        let expected = (first + second + third) / 3.0;
        assert!((self_bleu(&texts).unwrap() - expected).abs() < 1e-12);
    }

    #[test]
    fn only_texts_that_are_too_short_are_punished() {
        let lengths = [4, 6, 9, 9, 20];
        assert_eq!(brevity(9, &lengths), 1.0);
        assert_eq!(brevity(20, &lengths), 1.0);
        // 4 and 9 are 2 and 3 away.
        assert_eq!(brevity(6, &lengths), 1.0);
        assert_eq!(brevity(4, &lengths), (1.0 - 6.0 / 4.0_f64).exp());
        assert_eq!(brevity(7, &[5, 7, 9]), 1.0);
        assert_eq!(brevity(7, &[4, 7, 9]), (1.0 - 9.0 / 7.0_f64).exp());
    }
}

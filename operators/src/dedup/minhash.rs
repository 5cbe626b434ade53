//! Sketches of sets, cut into bands: sets that are similar agree in one band at least, most others in none.

use super::ngrams::mix;

/// How much of a pair at the threshold may be missed.
const MISSED: f64 = 0.03;
/// How many values a sketch has at most.
const MOST_VALUES: usize = 256;

/// How a sketch is cut: `count` bands of `width` values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bands {
    pub(crate) count: usize,
    pub(crate) width: usize,
}

impl Bands {
    /// The widest bands (the wider, the fewer dissimilar pairs agree in one) by which a pair of exactly this similarity is
    /// found with a probability of 97 % with 256 values at most. A more similar pair is found with a higher one. Of what
    /// `similarity` is made from 0.1 up.
    pub(crate) fn of(similarity: f64) -> Self {
        let mut bands = Self { count: MOST_VALUES, width: 1 };
        let mut agrees = 1.0;
        for width in 1..=MOST_VALUES {
            agrees *= similarity;
            let (mut count, mut missed) = (0, 1.0);
            while missed > MISSED && count <= MOST_VALUES {
                missed *= 1.0 - agrees;
                count += 1;
            }
            if count * width <= MOST_VALUES {
                bands = Self { count, width };
            }
        }
        bands
    }

    /// The values of a whole sketch.
    pub(crate) fn values(self) -> usize {
        self.count * self.width
    }
}

/// Sketches sets by Fast Similarity Sketching (Dahlgaard, Knudsen, Thorup, 2017): each element goes to one bin a round, the
/// smallest of a bin stays, and rounds go on until no bin is empty. Two sets agree in a bin with the probability of their
/// Jaccard similarity, as with MinHash of independent permutations, and no worse spread, while the work is the set's size plus
/// `k log k` and not their product.
#[derive(Debug)]
pub(crate) struct Sketch {
    bands: Bands,
    bins: Vec<u64>,
    multipliers: Vec<u64>,
}

/// No element has come to a bin. Rounds stay under 2^16 - 1, so that no value is this one.
const EMPTY: u64 = u64::MAX;

impl Sketch {
    pub(crate) fn new(bands: Bands) -> Self {
        let rounds = 2 * bands.values() as u64;
        Self { bands, bins: vec![EMPTY; bands.values()], multipliers: (1..=rounds).map(|round| mix(round) | 1).collect() }
    }

    /// Writes a hash of each band of the sketch of `elements`, which are hashes and of which there is one at least. Sets with
    /// different salts agree by chance only.
    pub(crate) fn bands(&mut self, elements: &[u64], salt: u64, hashes: &mut [u32]) {
        self.fill(elements);
        for (band, hash) in self.bins.chunks_exact(self.bands.width).zip(hashes) {
            let sum = band.iter().fold(salt, |sum, value| (sum.rotate_left(23) ^ value).wrapping_mul(0xD134_2543_DE82_EF95));
            *hash = (mix(sum) >> 32) as u32;
        }
    }

    fn fill(&mut self, elements: &[u64]) {
        let bins = self.bins.len();
        self.bins.fill(EMPTY);
        let mut empty = bins;
        for (round, multiplier) in self.multipliers.iter().enumerate() {
            let earlier_wins = (round as u64) << 48;
            for element in elements {
                // Whole and fraction of a number between 0 and the number of bins.
                let scaled = u128::from(element.wrapping_mul(*multiplier)) * bins as u128;
                // The last rounds fill a bin each, so that few elements come to an end.
                let bin = if round < bins { (scaled >> 64) as usize } else { round - bins };
                let value = earlier_wins | (scaled as u64 >> 16);
                empty -= usize::from(self.bins[bin] == EMPTY);
                self.bins[bin] = self.bins[bin].min(value);
            }
            if empty == 0 {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_at_the_threshold_are_found() {
        for percent in 10..=100 {
            let similarity = f64::from(percent) / 100.0;
            let bands = Bands::of(similarity);
            assert!(bands.values() <= MOST_VALUES && bands.count > 0 && bands.width > 0, "{bands:?}");
            let found = 1.0 - (1.0 - similarity.powi(bands.width as i32)).powi(bands.count as i32);
            assert!(found >= 0.97, "{similarity}: {bands:?} finds {found}");
        }
        assert_eq!(Bands::of(0.8), Bands { count: 25, width: 9 });
    }

    fn set(from: u64, to: u64) -> Vec<u64> {
        (from..to).map(mix).collect()
    }

    /// The share of equal values in sketches of sets that share `shared` of `size` elements each, over many pairs.
    fn agreement(size: u64, shared: u64) -> f64 {
        let bands = Bands { count: 32, width: 4 };
        let (mut a, mut b) = (Sketch::new(bands), Sketch::new(bands));
        let mut equal = 0;
        for pair in 0..200_u64 {
            let start = pair << 32;
            a.fill(&set(start, start + size));
            b.fill(&set(start + size - shared, start + 2 * size - shared));
            equal += a.bins.iter().zip(&b.bins).filter(|(a, b)| a == b).count();
        }
        equal as f64 / (200 * bands.values()) as f64
    }

    #[test]
    fn values_agree_as_often_as_sets_are_similar() {
        for (size, shared) in [(1, 1), (1, 0), (3, 2), (40, 30), (150, 120), (2000, 1000)] {
            let similarity = shared as f64 / (2 * size - shared) as f64;
            let found = agreement(size, shared);
            assert!((found - similarity).abs() < 0.03, "{size}, {shared}: {found} for {similarity}");
        }
    }

    #[test]
    fn a_sketch_depends_on_the_set_alone() {
        let bands = Bands::of(0.8);
        let mut sketch = Sketch::new(bands);
        let elements = set(0, 90);
        let mut turned: Vec<u64> = elements.iter().rev().copied().collect();
        turned.extend(&elements[..20]);
        let mut hashes = vec![vec![0; bands.count]; 3];
        sketch.bands(&elements, 1, &mut hashes[0]);
        sketch.bands(&turned, 1, &mut hashes[1]);
        sketch.bands(&elements, 2, &mut hashes[2]);
        assert_eq!(hashes[0], hashes[1]);
        assert!(hashes[0].iter().zip(&hashes[2]).all(|(a, b)| a != b));
    }
}

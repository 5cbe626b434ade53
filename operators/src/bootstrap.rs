//! Figures over questions, with intervals.

/// A figure with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figure {
    /// The sum of the numerators over that of the denominators.
    pub(crate) value: f64,
    /// The 2.5th percentile over resamples.
    pub(crate) low: f64,
    /// The 97.5th.
    pub(crate) high: f64,
    /// How many questions it is over.
    pub(crate) n: usize,
}

impl Figure {
    /// The figure and its interval after a function that never falls.
    pub(crate) fn map(self, rising: impl Fn(f64) -> f64) -> Self {
        Self { value: rising(self.value), low: rising(self.low), high: rising(self.high), n: self.n }
    }

    /// The figure with its sign turned.
    pub(crate) fn negated(self) -> Self {
        Self { value: -self.value, low: -self.high, high: -self.low, n: self.n }
    }
}

/// Samples of questions, drawn with replacement, as many as there are. They follow from the seed, the number of questions
/// and their order alone, so figures over the same questions share them.
pub(crate) struct Resamples {
    stream: blake3::OutputReader,
    bytes: Vec<u8>,
    n: u64,
}

impl Resamples {
    /// Resamples of `n` questions.
    pub(crate) fn new(n: usize, seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"bootstrap").update(&seed.to_le_bytes()).update(&(n as u64).to_le_bytes());
        Self { stream: hasher.finalize_xof(), bytes: vec![0; 4 * n], n: n as u64 }
    }

    /// The places of the questions of the next resample.
    pub(crate) fn draw(&mut self) -> impl Iterator<Item = usize> + Clone + '_ {
        self.stream.fill(&mut self.bytes);
        let n = self.n;
        self.bytes.chunks_exact(4).map(move |four| {
            let draw = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
            // The high half of the product maps 32 bits to 0..n, even to within n in 2^32.
            ((u64::from(draw) * n) >> 32) as usize
        })
    }
}

/// The ratio of sums over questions, each a numerator and a denominator, with a percentile bootstrap interval over so many
/// [`Resamples`]. `None` without questions.
pub(crate) fn ratio(questions: &[(f64, f64)], resamples: u32, seed: u64) -> Option<Figure> {
    let n = questions.len();
    let quotient = |(over, under): (f64, f64)| over / under;
    let add = |sum: (f64, f64), one: &(f64, f64)| (sum.0 + one.0, sum.1 + one.1);
    let value = quotient(questions.iter().fold((0.0, 0.0), add));
    if n == 0 {
        return None;
    }
    let mut drawn = Resamples::new(n, seed);
    let values = (0..resamples.max(1)).map(|_| quotient(drawn.draw().map(|place| &questions[place]).fold((0.0, 0.0), add)));
    let (low, high) = interval(values.collect());
    Some(Figure { value, low, high, n })
}

/// The 2.5th and the 97.5th percentile of what resamples gave.
pub(crate) fn interval(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (percentile(&values, 0.025), percentile(&values, 0.975))
}

/// The mean of one value a question, with its interval.
pub(crate) fn mean(values: &[f64], resamples: u32, seed: u64) -> Option<Figure> {
    let questions: Vec<_> = values.iter().map(|value| (*value, 1.0)).collect();
    ratio(&questions, resamples, seed)
}

/// A percentile of sorted values, linear between neighbours.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(right: usize, of: usize) -> Vec<f64> {
        (0..of).map(|n| f64::from(u8::from(n < right))).collect()
    }

    #[test]
    fn the_interval_is_that_of_a_share_and_repeats() {
        let figure = mean(&answers(120, 400), 1000, 7).unwrap();
        assert_eq!((figure.value, figure.n), (0.3, 400));
        // The normal approximation: 1.96 times the root of 0.3 * 0.7 / 400.
        let half = 0.0449;
        assert!((figure.low - (0.3 - half)).abs() < 0.008, "{figure:?}");
        assert!((figure.high - (0.3 + half)).abs() < 0.008, "{figure:?}");
        assert_eq!(mean(&answers(120, 400), 1000, 7), Some(figure));
        assert_ne!(mean(&answers(120, 400), 1000, 8), Some(figure));
    }

    #[test]
    fn the_edges() {
        assert_eq!(mean(&[], 1000, 1), None);
        assert_eq!(mean(&[1.0], 1000, 1), Some(Figure { value: 1.0, low: 1.0, high: 1.0, n: 1 }));
        let all = mean(&answers(50, 50), 200, 1).unwrap();
        assert_eq!((all.low, all.high), (1.0, 1.0));
    }

    #[test]
    fn a_ratio_weighs_questions_by_their_denominators() {
        let figure = ratio(&[(-2.0, 1.0), (-6.0, 7.0)], 500, 3).unwrap();
        assert_eq!(figure.value, -1.0);
        assert_eq!((figure.low, figure.high), (-2.0, -6.0 / 7.0));
        let perplexity = figure.negated().map(f64::exp);
        assert!((perplexity.value - 1f64.exp()).abs() < 1e-12);
        assert_eq!(perplexity.high, 2f64.exp());
        assert!(perplexity.low <= perplexity.value && perplexity.value <= perplexity.high);
    }
}

//! Whether a mean of paired differences could be chance.

/// Differences other than 0 up to which all sign patterns are counted: 65,536 at most.
const EXACT: usize = 16;

/// The two-sided p-value of a mean difference: how often the mean would be at least as far from 0 if the sign of every
/// difference were a coin's. All patterns are counted for up to 16 differences that aren't 0. For more, `patterns` are
/// drawn from the seed and the observed one is counted among them, so that no p is 0: (k + 1) / (m + 1).
///
/// Fisher, The Design of Experiments, 1935, section 21; Phipson and Smyth, Permutation p-values should never be zero,
/// 2010.
pub(crate) fn p_value(differences: &[f64], patterns: u32, seed: u64) -> f64 {
    // A difference of 0 is the same under both signs.
    let differences: Vec<f64> = differences.iter().copied().filter(|difference| *difference != 0.0).collect();
    let sum: f64 = differences.iter().sum();
    // Sums in another order differ by rounding, and ties count.
    let reached = sum.abs() - 1e-9 * differences.iter().map(|difference| difference.abs()).sum::<f64>();
    if differences.len() <= EXACT {
        let all = 1u32 << differences.len();
        let far = (0..all).filter(|pattern| signed(&differences, |place| pattern >> place & 1 == 1).abs() >= reached).count();
        return far as f64 / f64::from(all);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"sign flip").update(&seed.to_le_bytes()).update(&(differences.len() as u64).to_le_bytes());
    let mut stream = hasher.finalize_xof();
    let mut bytes = vec![0; differences.len().div_ceil(8)];
    let far = (0..patterns).filter(|_| {
        stream.fill(&mut bytes);
        signed(&differences, |place| bytes[place / 8] >> (place % 8) & 1 == 1).abs() >= reached
    });
    (far.count() + 1) as f64 / (f64::from(patterns) + 1.0)
}

fn signed(differences: &[f64], flipped: impl Fn(usize) -> bool) -> f64 {
    differences.iter().enumerate().map(|(place, difference)| if flipped(place) { -difference } else { *difference }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_differences_are_counted_exactly() {
        assert_eq!(p_value(&[], 10, 1), 1.0);
        assert_eq!(p_value(&[0.0, 0.0], 10, 1), 1.0);
        // Only all-plus and all-minus of 8 patterns reach a sum of 3.
        assert_eq!(p_value(&[1.0, 1.0, 0.0, 1.0], 10, 1), 0.25);
        // As McNemar's exact test: 5 against 1 of 6 discordant pairs, 2 * (1 + 6) / 64.
        assert_eq!(p_value(&[1.0, 1.0, -1.0, 1.0, 1.0, 1.0], 10, 1), 14.0 / 64.0);
        // 1, 2, 4: of the 8 sums 7, 5, 3, 1 and their negatives, 4 are at least 5 away from 0.
        assert_eq!(p_value(&[4.0, 2.0, -1.0], 10, 1), 0.5);
        // A tie but for rounding counts: 0.1 + 0.2 isn't 0.3.
        assert_eq!(p_value(&[0.1, 0.2, -0.3], 10, 1), 1.0);
    }

    #[test]
    fn many_are_drawn_and_never_give_0() {
        assert_eq!(p_value(&[1.0; 40], 999, 7), 1.0 / 1000.0);
        let even: Vec<f64> = (0..40).map(|n| if n % 2 == 0 { 1.0 } else { -1.0 }).collect();
        assert_eq!(p_value(&even, 999, 7), 1.0);
        // 25 against 15 of 40: twice the binomial tail of 25 and more, 0.1539.
        let more: Vec<f64> = (0..40).map(|n| if n < 25 { 1.0 } else { -1.0 }).collect();
        let p = p_value(&more, 20_000, 7);
        assert!((p - 0.1539).abs() < 0.01, "{p}");
        assert_eq!(p_value(&more, 20_000, 7), p);
        assert_ne!(p_value(&more, 20_000, 8), p);
    }
}

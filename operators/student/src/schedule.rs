//! The learning rate: a linear rise, then a cosine to 0.

use std::f64::consts::PI;

/// The learning rate of `step` (from 0) of `steps`: it rises linearly over the first `warmup` share of them, which ends
/// at `peak`, then follows half a cosine that would reach 0 one step after the last.
pub fn learning_rate(step: usize, steps: usize, peak: f64, warmup: f64) -> f64 {
    let rising = ((steps as f64 * warmup).ceil() as usize).min(steps);
    if step < rising {
        return peak * (step + 1) as f64 / rising as f64;
    }
    let progress = (step - rising) as f64 / (steps - rising).max(1) as f64;
    peak * 0.5 * (1.0 + (PI * progress.min(1.0)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_to_the_peak_and_falls_to_nothing() {
        let rates: Vec<f64> = (0..100).map(|step| learning_rate(step, 100, 2.0, 0.05)).collect();
        assert!((rates[0] - 0.4).abs() < 1e-12);
        assert!((rates[4] - 2.0).abs() < 1e-12 && (rates[5] - 2.0).abs() < 1e-12);
        assert!(rates[..5].windows(2).all(|pair| pair[0] < pair[1]));
        assert!(rates[5..].windows(2).all(|pair| pair[0] > pair[1]));
        assert!((rates[52] - 2.0 * 0.5 * (1.0 + (PI * 47.0 / 95.0).cos())).abs() < 1e-12);
        assert!(rates[99] > 0.0 && rates[99] < 2e-3);
    }

    #[test]
    fn short_and_extreme_schedules_are_finite() {
        for steps in 1..4 {
            for warmup in [0.0, 0.05, 1.0] {
                let rates: Vec<f64> = (0..=steps).map(|step| learning_rate(step, steps, 1.0, warmup)).collect();
                assert!(rates.iter().all(|rate| (0.0..=1.0).contains(rate)), "{steps} {warmup} {rates:?}");
            }
        }
        assert_eq!(learning_rate(0, 1, 1.0, 0.0), 1.0);
    }
}

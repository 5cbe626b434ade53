//! A curve that levels off, fitted to mean values.

use super::line::{Observed, average, r2};
use crate::bootstrap::{Resamples, interval};

/// Points that a fit of three parameters needs: one more than these.
pub(crate) const POINTS: usize = 4;
/// The exponents that are tried, from a curve that is as good as a line in log2(x) to one that is a step.
const EXPONENTS: (f64, f64) = (0.05, 8.0);
/// Steps of the search over exponents: first a grid, then golden sections of its best cell.
const GRID: usize = 64;
const SECTIONS: usize = 40;

/// `limit - scale * x^-exponent`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Curve {
    /// What the values approach.
    pub(crate) limit: f64,
    pub(crate) scale: f64,
    pub(crate) exponent: f64,
}

/// A curve, and how sure it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Saturation {
    pub(crate) curve: Curve,
    /// 95 % interval of the limit over questions; `None` if there may be none.
    pub(crate) low: Option<f64>,
    pub(crate) high: Option<f64>,
    /// The share of the variance of the means that it explains.
    pub(crate) r2: f64,
}

impl Observed {
    /// The curve through the mean points, by least squares. `None` with fewer than four different x, or where the points
    /// bend no more than a line: then no limit is seen.
    pub(crate) fn saturation(&self, resamples: u32, seed: u64) -> Option<Saturation> {
        let mut distinct = self.places.clone();
        distinct.sort_by(f64::total_cmp);
        distinct.dedup();
        let questions = self.values.first().map_or(0, Vec::len);
        if distinct.len() < POINTS || questions == 0 {
            return None;
        }
        let means = self.means();
        let curve = fit(&self.places, &means)?;
        let r2 = r2(&self.places, &means, |place| curve.at(place))?;
        let rising = curve.scale.signum();
        let mut drawn = Resamples::new(questions, seed);
        let limits = (0..resamples.max(1)).map(|_| {
            let places = drawn.draw();
            let mean = |values: &Vec<f64>| places.clone().map(|place| values[place]).sum::<f64>() / questions as f64;
            let means: Vec<f64> = self.values.iter().map(mean).collect();
            fit(&self.places, &means).map_or(rising * f64::INFINITY, |curve| curve.limit)
        });
        let (low, high) = interval(limits.collect());
        let known = |limit: f64| limit.is_finite().then_some(limit);
        Some(Saturation { curve, low: known(low), high: known(high), r2 })
    }
}

impl Curve {
    /// Its value at log2(x) = `place`.
    pub(crate) fn at(&self, place: f64) -> f64 {
        self.limit - self.scale * (-self.exponent * place).exp2()
    }
}

/// For a given exponent the best limit and scale are a linear fit, so one number is searched for, in a fixed number of steps.
fn fit(places: &[f64], means: &[f64]) -> Option<Curve> {
    // x is counted from the middle of the points, else its powers have nothing in common with the values.
    let centre = average(places);
    let powers = |exponent: f64| places.iter().map(move |place| (-exponent * (place - centre)).exp2()).collect::<Vec<f64>>();
    let linear = |exponent: f64| {
        let powers = powers(exponent);
        let (middle, level) = (average(&powers), average(means));
        let spread: f64 = powers.iter().map(|power| (power - middle).powi(2)).sum();
        let scale = -powers.iter().zip(means).map(|(power, mean)| (power - middle) * (mean - level)).sum::<f64>() / spread;
        let limit = level + scale * middle;
        let left: f64 = powers.iter().zip(means).map(|(power, mean)| (mean - limit + scale * power).powi(2)).sum();
        (left, limit, scale)
    };
    let logarithm = |step: f64| {
        let (first, last) = (EXPONENTS.0.ln(), EXPONENTS.1.ln());
        (first + (last - first) * step / GRID as f64).exp()
    };
    let left = |step: f64| linear(logarithm(step)).0;
    let best = (0..=GRID).min_by(|one, other| left(*one as f64).total_cmp(&left(*other as f64)))?;
    if best == 0 {
        return None;
    }
    let (mut low, mut high) = (best as f64 - 1.0, (best as f64 + 1.0).min(GRID as f64));
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    for _ in 0..SECTIONS {
        let (one, other) = (high - golden * (high - low), low + golden * (high - low));
        if left(one) <= left(other) { high = other } else { low = one }
    }
    let exponent = logarithm((low + high) / 2.0);
    let (_, limit, scale) = linear(exponent);
    let scale = scale * (exponent * centre).exp2();
    (limit.is_finite() && scale.is_finite() && scale != 0.0).then_some(Curve { limit, scale, exponent })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(values: impl Fn(f64) -> f64) -> Observed {
        let places: Vec<f64> = (0..6).map(|doubling| 17.0 + f64::from(doubling)).collect();
        let values = places.iter().map(|place| vec![values(*place); 3]).collect();
        Observed { places, values }
    }

    #[test]
    fn a_curve_is_found_again() {
        for (limit, drop, exponent) in [(0.8, 0.6, 0.5), (0.65, 0.3, 1.3), (0.1, -0.4, 0.7)] {
            let known = Curve { limit, scale: drop * (exponent * 17.0f64).exp2(), exponent };
            let found = through(|place| known.at(place)).saturation(20, 7).unwrap();
            assert!((found.curve.limit - limit).abs() < 1e-6, "{found:?}");
            assert!((found.curve.exponent - exponent).abs() < 1e-5, "{found:?}");
            assert!((found.curve.scale / known.scale - 1.0).abs() < 1e-3, "{found:?}");
            assert!(found.r2 > 1.0 - 1e-9, "{found:?}");
            let (low, high) = (found.low.unwrap(), found.high.unwrap());
            assert!((low - limit).abs() < 1e-6 && (high - limit).abs() < 1e-6, "{found:?}");
        }
    }

    #[test]
    fn a_line_has_no_limit() {
        assert_eq!(through(|place| 0.05 * place).saturation(20, 7), None);
        // Faster than a line.
        assert_eq!(through(|place| (place * 0.2).exp2()).saturation(20, 7), None);
        assert_eq!(through(|_| 0.5).saturation(20, 7), None);
    }

    #[test]
    fn a_step_and_a_resample_without_a_limit() {
        let step = through(|place| if place < 17.5 { 0.2 } else { 0.7 }).saturation(20, 7).unwrap();
        assert!((step.curve.limit - 0.7).abs() < 0.01, "{step:?}");
        // Two questions level off, one rises like a line and bends the wrong way.
        let places: Vec<f64> = (0..5).map(f64::from).collect();
        let values = places.iter().map(|place| vec![1.0 - (-place).exp2(), 1.0 - (-place).exp2(), place * place / 32.0]);
        let observed = Observed { values: values.collect(), places };
        let torn = observed.saturation(400, 7).unwrap();
        assert_eq!(torn.high, None);
        assert!(torn.low.is_some_and(|low| low < torn.curve.limit + 1e-9), "{torn:?}");
    }

    #[test]
    fn three_points_are_too_few() {
        let three = Observed { places: vec![1.0, 2.0, 3.0], values: vec![vec![0.1], vec![0.5], vec![0.6]] };
        assert_eq!(three.saturation(10, 1), None);
        let same = Observed { places: vec![1.0, 2.0, 3.0, 3.0], values: vec![vec![0.1], vec![0.5], vec![0.6], vec![0.7]] };
        assert_eq!(same.saturation(10, 1), None);
    }
}

//! A line through mean values, by least squares on log2 of x.

use crate::bootstrap::{Figure, Resamples, interval, mean};

/// How far from its points a line is followed to a crossing: 2^10 times, in doublings.
const FOLLOWED: f64 = 10.0;

/// Values of the same questions at some x.
#[derive(Debug, Clone)]
pub(crate) struct Observed {
    /// log2 of x, a value a point.
    pub(crate) places: Vec<f64>,
    /// By point: one value a question, in the same order of questions.
    pub(crate) values: Vec<Vec<f64>>,
}

/// A line `intercept + slope * log2(x)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Line {
    pub(crate) intercept: f64,
    /// A doubling of x adds this much.
    pub(crate) slope: f64,
}

/// Where two lines meet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Crossing {
    pub(crate) x: f64,
    /// `None` if it may be anywhere below.
    pub(crate) low: Option<f64>,
    /// `None` if it may be anywhere above, or never.
    pub(crate) high: Option<f64>,
}

impl Line {
    /// Its value at log2(x) = `place`.
    pub(crate) fn at(&self, place: f64) -> f64 {
        self.intercept + self.slope * place
    }
}

impl Observed {
    /// The mean of each point.
    pub(crate) fn means(&self) -> Vec<f64> {
        self.values.iter().map(|values| average(values)).collect()
    }

    fn questions(&self) -> usize {
        self.values.first().map_or(0, Vec::len)
    }

    /// The least-squares line of each question. The fit is linear in the values, so the line through the mean points is the
    /// mean of these, for the questions as for any resample of them.
    fn lines(&self) -> Vec<Line> {
        let centre = average(&self.places);
        let spread: f64 = self.places.iter().map(|place| (place - centre).powi(2)).sum();
        let line = |question: usize| {
            let at = |point: usize| self.values[point][question];
            let middle = (0..self.places.len()).map(at).sum::<f64>() / self.places.len() as f64;
            let slope = self.places.iter().enumerate().map(|(point, place)| (place - centre) * at(point)).sum::<f64>() / spread;
            Line { intercept: middle - slope * centre, slope }
        };
        // One point says nothing of a slope; a flat line through it is what a baseline is.
        let flat = |question: usize| {
            let sum: f64 = self.values.iter().map(|values| values[question]).sum();
            Line { intercept: sum / self.values.len() as f64, slope: 0.0 }
        };
        (0..self.questions()).map(|question| if spread > 0.0 { line(question) } else { flat(question) }).collect()
    }

    /// The line through the mean points; flat if all have the same x. `None` without questions.
    pub(crate) fn line(&self) -> Option<Line> {
        middle(&self.lines())
    }

    /// The slope with its interval over questions, each resample fitted anew.
    pub(crate) fn slope(&self, resamples: u32, seed: u64) -> Option<Figure> {
        let slopes: Vec<f64> = self.lines().iter().map(|line| line.slope).collect();
        mean(&slopes, resamples, seed)
    }

    /// Where the line meets that of `other`, which has the same questions, in units of x. `None` if they are parallel, or meet
    /// more than 1,024 times above or below all points. Resamples whose lines turn away from each other count as a crossing
    /// beyond every x, or below.
    pub(crate) fn crossing(&self, other: &Self, resamples: u32, seed: u64) -> Option<Crossing> {
        let difference =
            |(one, other): (&Line, &Line)| Line { intercept: one.intercept - other.intercept, slope: one.slope - other.slope };
        let (lines, others) = (self.lines(), other.lines());
        let differences: Vec<Line> = lines.iter().zip(&others).map(difference).collect();
        let whole = middle(&differences)?;
        let places = || self.places.iter().copied();
        let (first, last) = (places().fold(f64::INFINITY, f64::min), places().fold(f64::NEG_INFINITY, f64::max));
        let rising = whole.slope.signum();
        let within = |place: f64| (first - FOLLOWED..=last + FOLLOWED).contains(&place).then(|| place.exp2());
        let x = within(-whole.intercept / whole.slope)?;
        let mut drawn = Resamples::new(differences.len(), seed);
        let crossings = (0..resamples.max(1)).map(|_| {
            let sum = drawn.draw().map(|question| differences[question]).fold(Line { intercept: 0.0, slope: 0.0 }, |sum, one| {
                Line { intercept: sum.intercept + one.intercept, slope: sum.slope + one.slope }
            });
            if sum.slope * rising > 0.0 {
                -sum.intercept / sum.slope
            } else if sum.at((first + last) / 2.0) * rising < 0.0 {
                f64::INFINITY
            } else {
                f64::NEG_INFINITY
            }
        });
        let (low, high) = interval(crossings.collect());
        Some(Crossing { x, low: within(low), high: within(high) })
    }
}

/// The share of the variance of the means that the line explains; `None` if they have none.
pub(crate) fn r2(places: &[f64], means: &[f64], fitted: impl Fn(f64) -> f64) -> Option<f64> {
    let centre = average(means);
    let total: f64 = means.iter().map(|mean| (mean - centre).powi(2)).sum();
    let left: f64 = places.iter().zip(means).map(|(place, mean)| (mean - fitted(*place)).powi(2)).sum();
    (total > 1e-18).then_some(1.0 - left / total)
}

fn middle(lines: &[Line]) -> Option<Line> {
    let n = lines.len() as f64;
    let sum = |of: fn(&Line) -> f64| lines.iter().map(of).sum::<f64>();
    (!lines.is_empty()).then(|| Line { intercept: sum(|line| line.intercept) / n, slope: sum(|line| line.slope) / n })
}

/// The mean of some values; not a number without any.
pub(crate) fn average(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(one: f64, other: f64) {
        assert!((one - other).abs() < 1e-12, "{one} isn't {other}");
    }

    /// Two questions at x = 2, 4, 8: means 1, 3, 4.
    fn observed() -> Observed {
        Observed { places: vec![1.0, 2.0, 3.0], values: vec![vec![0.0, 2.0], vec![2.0, 4.0], vec![5.0, 3.0]] }
    }

    #[test]
    fn a_line_by_hand() {
        // Means 1, 3, 4 at 1, 2, 3: slope (-1 * 1 + 1 * 4) / 2, intercept 8/3 - 2 * 1.5.
        let line = observed().line().unwrap();
        near(line.slope, 1.5);
        near(line.intercept, 8.0 / 3.0 - 3.0);
        near(line.at(2.0), 8.0 / 3.0);
        // Residuals -1/6, 1/3, -1/6: 1/6 of the total 14/3.
        near(r2(&[1.0, 2.0, 3.0], &[1.0, 3.0, 4.0], |place| line.at(place)).unwrap(), 1.0 - (1.0 / 6.0) / (14.0 / 3.0));
        assert_eq!(r2(&[1.0, 2.0], &[0.5, 0.5], |_| 0.5), None);
    }

    #[test]
    fn a_resample_is_fitted_anew() {
        // The first question alone has slope 2.5, the second 0.5.
        let slope = observed().slope(1000, 7).unwrap();
        assert_eq!((slope.value, slope.low, slope.high, slope.n), (1.5, 0.5, 2.5, 2));
        let none = Observed { places: vec![1.0, 2.0], values: vec![Vec::new(), Vec::new()] };
        assert_eq!((none.line(), none.slope(10, 1)), (None, None));
    }

    fn flat(values: [f64; 2]) -> Observed {
        Observed { places: vec![0.0], values: vec![values.to_vec()] }
    }

    #[test]
    fn lines_cross_where_they_meet() {
        // -1/3 + 1.5 z = 3.5 at z = 23/9. The first question has -8/3 + 2.5 z, the second 2 + 0.5 z.
        let crossing = observed().crossing(&flat([3.5, 3.5]), 1000, 7).unwrap();
        near(crossing.x, (23.0f64 / 9.0).exp2());
        near(crossing.low.unwrap(), (37.0f64 / 6.0 / 2.5).exp2());
        near(crossing.high.unwrap(), 8.0);
        let falling = Observed { places: vec![1.0, 2.0], values: vec![vec![4.0, 4.0], vec![3.0, 3.0]] };
        // 5 - z meets 2 at 3.
        near(falling.crossing(&flat([2.0, 2.0]), 10, 1).unwrap().x, 8.0);
        // Against a line: z meets 5 - z at 2.5.
        let rising = Observed { places: vec![1.0, 2.0], values: vec![vec![1.0, 1.0], vec![2.0, 2.0]] };
        near(rising.crossing(&falling, 10, 1).unwrap().x, 2.5f64.exp2());
        near(falling.crossing(&rising, 10, 1).unwrap().x, 2.5f64.exp2());
    }

    #[test]
    fn what_never_meets_has_no_crossing() {
        let level = Observed { places: vec![1.0, 2.0], values: vec![vec![1.0], vec![1.0]] };
        let base = |value: f64| Observed { places: vec![0.0], values: vec![vec![value]] };
        assert_eq!(level.crossing(&base(2.0), 10, 1), None);
        assert_eq!(level.crossing(&base(1.0), 10, 1), None);
        let rising = Observed { places: vec![1.0, 2.0], values: vec![vec![1.0], vec![2.0]] };
        assert!(rising.crossing(&base(12.0), 10, 1).is_some());
        assert_eq!(rising.crossing(&base(12.5), 10, 1), None);
        // One of two questions falls: resamples of it alone stay below the baseline for ever.
        let torn = Observed { places: vec![1.0, 2.0], values: vec![vec![1.0, 1.0], vec![4.0, 0.0]] };
        let crossing = torn.crossing(&flat([3.0, 3.0]), 1000, 7).unwrap();
        assert_eq!(crossing.high, None);
        assert!(crossing.low.is_some_and(|low| low < crossing.x), "{crossing:?}");
    }
}

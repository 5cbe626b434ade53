//! How long things take.

use std::time::{Duration, Instant};

/// Repetitions before those that count: the first may compile and tune kernels, and what is tuned runs for the first time
/// in the second.
pub(super) const WARM_UP: usize = 2;
/// The fewest repetitions that count.
pub(super) const FEWEST: usize = 3;
/// The most.
const MOST: usize = 1000;
/// Work is repeated within a repetition until it takes so long: shorter times measure the clock and the queue.
const SHORTEST: Duration = Duration::from_millis(10);

/// Times of repetitions, in seconds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Times(Vec<f64>);

impl Times {
    /// Sorts the times; there must be one at least.
    pub(super) fn new(mut seconds: Vec<f64>) -> Self {
        assert!(!seconds.is_empty(), "nothing was measured");
        seconds.sort_by(f64::total_cmp);
        Self(seconds)
    }

    pub(super) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        match self.0.len() % 2 {
            1 => self.0[middle],
            _ => (self.0[middle - 1] + self.0[middle]) / 2.0,
        }
    }

    pub(super) fn least(&self) -> f64 {
        self.0[0]
    }

    pub(super) fn most(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}

/// Whether repetitions that took so long are enough.
pub(super) fn enough(counted: usize, since: Instant, seconds: f64) -> bool {
    counted >= MOST || counted >= FEWEST && since.elapsed().as_secs_f64() >= seconds
}

/// Times `work` until `seconds` have passed; `finish` waits until a device has done what it was given.
pub(super) fn timed(seconds: f64, mut work: impl FnMut(), finish: impl Fn()) -> Times {
    let mut once = |times: usize| {
        let start = Instant::now();
        (0..times).for_each(|_| work());
        finish();
        start.elapsed()
    };
    let mut warm = Duration::ZERO;
    for _ in 0..WARM_UP {
        warm = once(1);
    }
    let inner = (SHORTEST.as_secs_f64() / warm.as_secs_f64().max(1e-7)).ceil().clamp(1.0, 10_000.0) as usize;
    let (start, mut all) = (Instant::now(), Vec::new());
    while !enough(all.len(), start, seconds) {
        all.push(once(inner).as_secs_f64() / inner as f64);
    }
    Times::new(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_between_the_ends() {
        let times = Times::new(vec![3.0, 1.0, 2.0, 10.0]);
        assert_eq!((times.least(), times.median(), times.most(), times.count()), (1.0, 2.5, 10.0, 4));
        assert_eq!(Times::new(vec![3.0, 1.0, 2.0]).median(), 2.0);
    }

    #[test]
    fn warm_up_does_not_count() {
        let mut calls = 0;
        let slow = |calls: usize| if calls <= WARM_UP { 30 } else { 12 };
        let times = timed(
            0.0,
            || {
                calls += 1;
                std::thread::sleep(Duration::from_millis(slow(calls)));
            },
            || {},
        );
        assert_eq!((times.count(), calls), (FEWEST, FEWEST + WARM_UP));
        assert!(times.most() < 0.03, "{times:?}");
    }
}

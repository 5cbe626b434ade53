//! How long is waited, how often it is tried again, and what a server says about both.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// The patience of a client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// A request without a whole answer after this long is given up.
    pub(super) timeout: Duration,
    /// A connection that doesn't stand after this long is given up.
    pub(super) connect: Duration,
    /// The first delay is drawn from 0 to this, each next one from 0 to twice as much.
    pub(super) base: Duration,
    /// No delay is longer, unless a server asks for it.
    pub(super) longest_delay: Duration,
    /// A server that asks for a longer pause is out.
    pub(super) longest_pause: Duration,
    /// How long a server that can't be reached is left alone while others can.
    pub(super) aside: Duration,
    /// How long the first request is waited for before others are sent.
    pub(super) probe: Duration,
}

/// Failures of one call after which it is tried again.
const RETRIES: u32 = 8;
/// The same, of requests that ran into the timeout: each costs as long as the longest answer.
const TIMEOUTS: u32 = 2;
/// The same, of requests refused by a rate limit, however many other calls were answered meanwhile.
const RATE_LIMITED: u32 = 128;

impl Limits {
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            connect: Duration::from_secs(20),
            base: Duration::from_millis(500),
            longest_delay: Duration::from_secs(60),
            longest_pause: Duration::from_secs(600),
            aside: Duration::from_secs(30),
            probe: Duration::from_secs(5),
        }
    }

    /// The longest delay before try `n` (from 1).
    pub(super) fn ceiling(&self, n: u32) -> Duration {
        self.base.saturating_mul(1 << (n.saturating_sub(1)).min(16)).min(self.longest_delay)
    }

    /// The delay before try `n`: full jitter, so that calls that failed together don't come back together.
    fn delay(&self, n: u32) -> Duration {
        jitter(self.ceiling(n))
    }
}

/// A delay between 0 and `longest`.
pub(super) fn jitter(longest: Duration) -> Duration {
    // Every `RandomState` has keys of its own: that is all the chance that is needed here.
    let bits = RandomState::new().hash_one(0_u8) >> 11;
    longest.mul_f64(bits as f64 / (1_u64 << 53) as f64)
}

/// What went wrong with a request that may go right another time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// No connection.
    Connect,
    /// No answer in time.
    Timeout,
    /// The server wants fewer requests.
    RateLimit,
    /// An error of the server's, or an answer that broke off or isn't one.
    Broken,
}

/// The failures of one call so far.
#[derive(Debug, Default)]
pub(super) struct Tries {
    broken: u32,
    timeouts: u32,
    limited: u32,
    limited_in_all: u32,
    /// Answers that the client had when this call last met a rate limit.
    answers: u64,
}

impl Tries {
    /// Counts a failure; `answers` is how many answers the client has had. Gives the delay until the next try, or `None`
    /// when it isn't tried again.
    ///
    /// A rate limit that lets other calls through isn't held against a call that waits for its turn.
    pub(super) fn failed(&mut self, kind: Kind, answers: u64, limits: &Limits) -> Option<Duration> {
        let (n, most) = match kind {
            Kind::Connect | Kind::Broken => {
                self.broken += 1;
                (self.broken, RETRIES)
            }
            Kind::Timeout => {
                self.timeouts += 1;
                (self.timeouts, TIMEOUTS)
            }
            Kind::RateLimit => {
                self.limited_in_all += 1;
                self.limited = if answers > self.answers { 1 } else { self.limited + 1 };
                self.answers = answers;
                if self.limited_in_all > RATE_LIMITED {
                    return None;
                }
                (self.limited, RETRIES)
            }
        };
        (n <= most).then(|| limits.delay(n))
    }

    /// How many requests failed.
    pub(super) fn count(&self) -> u32 {
        self.broken + self.timeouts + self.limited_in_all
    }
}

/// How long the server asks to be left alone: `retry-after-ms`, or `retry-after` in seconds or as a date (RFC 9110,
/// section 10.2.3). A date that has passed is 0.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let number = |text: &str, unit: f64| text.parse::<f64>().ok().and_then(|n| Duration::try_from_secs_f64(n * unit).ok());
    if let Some(pause) = text("retry-after-ms").and_then(|text| number(text, 1e-3)) {
        return Some(pause);
    }
    let text = text(RETRY_AFTER.as_str())?;
    number(text, 1.0).or_else(|| {
        let date = DateTime::parse_from_rfc2822(text).ok()?.with_timezone(&Utc);
        Some(SystemTime::from(date).duration_since(now).unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits::new(Duration::from_secs(600))
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::from(DateTime::parse_from_rfc3339("2026-03-01T12:00:00Z").expect("a date").with_timezone(&Utc));
        let asked = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().expect("a value"));
            retry_after(&headers, now)
        };
        assert_eq!(asked("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(asked("retry-after", " 0.5 "), Some(Duration::from_millis(500)));
        assert_eq!(asked("retry-after-ms", "250"), Some(Duration::from_millis(250)));
        assert_eq!(asked("retry-after", "Sun, 01 Mar 2026 12:01:30 GMT"), Some(Duration::from_secs(90)));
        assert_eq!(asked("retry-after", "Sun, 01 Mar 2026 11:00:00 GMT"), Some(Duration::ZERO));
        for wrong in ["soon", "-1", "NaN", "inf", "1e300", ""] {
            assert_eq!(asked("retry-after", wrong), None, "{wrong}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn delays_double_up_to_the_longest() {
        let ceilings: Vec<u64> = (1..=9).map(|n| limits().ceiling(n).as_millis() as u64).collect();
        assert_eq!(ceilings, [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
        let drawn: Vec<Duration> = (0..100).map(|_| jitter(Duration::from_secs(8))).collect();
        assert!(drawn.iter().all(|delay| *delay <= Duration::from_secs(8)));
        assert!(drawn.iter().min() < Some(&Duration::from_secs(2)) && drawn.iter().max() > Some(&Duration::from_secs(6)));
    }

    #[test]
    fn a_call_is_tried_again_so_often_and_no_more() {
        let mut tries = Tries::default();
        let again = |tries: &mut Tries, kind| (0..50).take_while(|_| tries.failed(kind, 3, &limits()).is_some()).count();
        assert_eq!(again(&mut tries, Kind::Timeout), 2);
        assert_eq!(again(&mut tries, Kind::Broken), 8);
        assert_eq!(again(&mut tries, Kind::RateLimit), 8);
        assert_eq!(tries.count(), 3 + 9 + 9);
    }

    #[test]
    fn a_rate_limit_that_lets_others_through_is_waited_out() {
        let mut tries = Tries::default();
        let again = (0..500).take_while(|n| tries.failed(Kind::RateLimit, *n, &limits()).is_some()).count();
        assert_eq!(again, RATE_LIMITED as usize);
    }
}

//! The servers of one model.

use std::ops::BitOr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use url::Url;

use super::retry::{Limits, jitter};
use crate::config::Servers;

/// In what a request to a server differs from the common form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Form {
    /// It takes no `response_format`.
    pub(super) no_response_format: bool,
    /// It calls `max_tokens` `max_completion_tokens`.
    pub(super) max_completion_tokens: bool,
}

impl BitOr for Form {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self {
            no_response_format: self.no_response_format || other.no_response_format,
            max_completion_tokens: self.max_completion_tokens || other.max_completion_tokens,
        }
    }
}

/// Servers that give the same answers. A request goes to the one with the fewest in flight among those that answer.
pub(super) struct Pool {
    servers: Vec<Server>,
    states: Mutex<Vec<State>>,
}

/// Where a server is.
pub(super) struct Server {
    /// Where requests go.
    pub(super) url: Url,
    /// The address, as the pipeline file has it.
    pub(super) name: String,
}

#[derive(Default)]
struct State {
    in_flight: usize,
    /// Until when it has asked to be left alone.
    paused: Option<Instant>,
    /// Until when others are asked first.
    aside: Option<Instant>,
    failures: u32,
    form: Form,
}

/// A server with a request in flight.
pub(super) struct Lease<'a> {
    pool: &'a Pool,
    index: usize,
}

impl Pool {
    pub(super) fn new(servers: &Servers) -> Self {
        let servers: Vec<Server> = servers
            .addresses()
            .iter()
            .map(|address| {
                let mut url = address.clone();
                url.set_path(&format!("{}/chat/completions", address.path().trim_end_matches('/')));
                Server { url, name: address.as_str().trim_end_matches('/').to_owned() }
            })
            .collect();
        let states = Mutex::new(servers.iter().map(|_| State::default()).collect());
        Self { servers, states }
    }

    /// The server for the next request. Waits while all have asked to be left alone.
    pub(super) async fn lease(&self, limits: &Limits) -> Lease<'_> {
        loop {
            match self.take(Instant::now()) {
                Ok(lease) => return lease,
                Err(pause) => sleep(pause + jitter(limits.base)).await,
            }
        }
    }

    /// A server now, or how long none is there.
    fn take(&self, now: Instant) -> Result<Lease<'_>, Duration> {
        let mut states = self.states();
        let left = |until: Option<Instant>| until.map(|until| until.saturating_duration_since(now)).unwrap_or_default();
        let best = states
            .iter()
            .enumerate()
            .filter(|(_, state)| left(state.paused).is_zero())
            .min_by_key(|(_, state)| (!left(state.aside).is_zero(), state.in_flight))
            .map(|(index, _)| index);
        match best {
            Some(index) => {
                states[index].in_flight += 1;
                Ok(Lease { pool: self, index })
            }
            None => Err(states.iter().map(|state| left(state.paused)).min().unwrap_or_default()),
        }
    }

    /// Whether a server is there that hasn't failed of late.
    pub(super) fn has_another(&self) -> bool {
        let now = Instant::now();
        self.states().iter().any(|state| state.aside.is_none_or(|until| until <= now))
    }

    /// How many servers there are.
    pub(super) fn len(&self) -> usize {
        self.servers.len()
    }

    /// Whether no server may be asked now.
    #[cfg(test)]
    pub(super) fn is_paused(&self) -> bool {
        self.take(Instant::now()).is_err()
    }

    fn states(&self) -> MutexGuard<'_, Vec<State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease<'_> {
    pub(super) fn server(&self) -> &Server {
        &self.pool.servers[self.index]
    }

    /// In what its requests differ, as far as it is known.
    pub(super) fn form(&self) -> Form {
        self.pool.states()[self.index].form
    }

    /// It answered a request of this form.
    pub(super) fn answered(&self, form: Form) {
        let state = &mut self.pool.states()[self.index];
        state.form = state.form | form;
        state.failures = 0;
        state.aside = None;
    }

    /// It can't be reached: others are asked first for `pause`.
    pub(super) fn unreachable(&self, pause: Duration) {
        self.pool.states()[self.index].aside = Some(Instant::now() + pause);
    }

    /// It failed: others are asked first, the longer the more often it fails. A server that fails fast has few requests in
    /// flight, and would draw all of them otherwise.
    pub(super) fn failed(&self, limits: &Limits) {
        let state = &mut self.pool.states()[self.index];
        state.failures = state.failures.saturating_add(1);
        state.aside = Some(Instant::now() + limits.ceiling(state.failures).min(limits.aside));
    }

    /// It asks to be left alone.
    pub(super) fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let state = &mut self.pool.states()[self.index];
        state.paused = Some(state.paused.map_or(until, |earlier| earlier.max(until)));
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.pool.states()[self.index].in_flight -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(n: usize) -> Pool {
        let addresses: Vec<String> = (0..n).map(|n| format!("http://gpu{n}:8000/v1/")).collect();
        Pool::new(&Servers::new(&addresses).expect("addresses"))
    }

    fn limits() -> Limits {
        Limits::new(Duration::from_secs(1))
    }

    #[test]
    fn addresses_lead_to_the_chat_endpoint() {
        assert_eq!(pool(1).servers[0].url.as_str(), "http://gpu0:8000/v1/chat/completions");
        assert_eq!(pool(1).servers[0].name, "http://gpu0:8000/v1");
        let bare = Pool::new(&Servers::new(&["http://h"]).expect("an address"));
        assert_eq!(bare.servers[0].url.as_str(), "http://h/chat/completions");
    }

    #[test]
    fn the_fewest_in_flight_come_first() {
        let pool = pool(3);
        let leases: Vec<Lease<'_>> = (0..7).map(|_| pool.take(Instant::now()).expect("a server")).collect();
        let in_flight: Vec<usize> = pool.states().iter().map(|state| state.in_flight).collect();
        assert_eq!(in_flight, [3, 2, 2]);
        drop(leases);
        assert!(pool.states().iter().all(|state| state.in_flight == 0));
    }

    #[tokio::test]
    async fn a_failing_server_stands_aside_and_comes_back() {
        let pool = pool(2);
        let first = pool.lease(&limits()).await;
        assert_eq!(first.index, 0);
        first.unreachable(Duration::from_secs(30));
        drop(first);
        let others: Vec<usize> = futures::future::join_all((0..3).map(|_| async {
            let lease = pool.lease(&limits()).await;
            let index = lease.index;
            std::mem::forget(lease);
            index
        }))
        .await;
        assert_eq!(others, [1, 1, 1]);
        assert!(pool.has_another());
        pool.states()[1].aside = Some(Instant::now() + Duration::from_secs(30));
        assert!(!pool.has_another());
        assert_eq!(pool.lease(&limits()).await.index, 0, "when all stand aside, the one with the fewest is asked");
        pool.states()[0].aside = Some(Instant::now());
        assert!(pool.has_another(), "its time is over");
    }

    #[tokio::test]
    async fn a_pause_is_kept_by_all_calls() {
        let pool = pool(1);
        let limits = Limits { base: Duration::ZERO, ..limits() };
        let lease = pool.lease(&limits).await;
        lease.pause(Duration::from_millis(40));
        lease.pause(Duration::from_millis(10));
        let started = Instant::now();
        assert!(matches!(pool.take(started), Err(left) if left > Duration::from_millis(10)), "the longer pause counts");
        assert_eq!(pool.lease(&limits).await.index, 0);
        assert!(started.elapsed() >= Duration::from_millis(30), "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn what_a_server_does_not_take_is_remembered_for_it() {
        let pool = pool(2);
        let lease = pool.lease(&limits()).await;
        lease.answered(lease.form() | Form { no_response_format: true, ..Form::default() });
        assert!(lease.form().no_response_format);
        assert!(!pool.lease(&limits()).await.form().no_response_format);
    }
}

//! One request goes first.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::request::Outage;

/// Lets the first call through alone, and the others when its request was answered: a wrong key or an unknown model then
/// costs one request and not as many as may be in flight. After an outage that no other request can end, nothing is let
/// through any more.
pub(super) struct Gate {
    state: watch::Sender<State>,
    patience: Duration,
}

#[derive(Clone)]
enum State {
    Untried,
    Probing,
    Open,
    Shut(Outage),
}

/// The right to send. The first call gives its place to another if it ends without having opened or shut the gate.
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    first: bool,
}

impl Gate {
    /// A gate that opens by itself when the first request takes longer than `patience`: a server that is at work on an
    /// answer has taken key and model.
    pub(super) fn new(patience: Duration) -> Self {
        Self { state: watch::Sender::new(State::Untried), patience }
    }

    /// Waits until requests may be sent.
    ///
    /// # Errors
    /// The outage that shut the gate.
    pub(super) async fn pass(&self) -> Result<Pass<'_>, Outage> {
        let mut states = self.state.subscribe();
        loop {
            let state = states.borrow_and_update().clone();
            match state {
                State::Open => return Ok(Pass { gate: self, first: false }),
                State::Shut(outage) => return Err(outage),
                State::Untried => {
                    let mut first = false;
                    self.state.send_if_modified(|state| {
                        first = matches!(state, State::Untried);
                        if first {
                            *state = State::Probing;
                        }
                        false
                    });
                    if first {
                        return Ok(Pass { gate: self, first });
                    }
                }
                State::Probing => {
                    if timeout(self.patience, states.changed()).await.is_err() {
                        self.open();
                    }
                }
            }
        }
    }

    /// Whether the gate has been shut meanwhile.
    ///
    /// # Errors
    /// The outage that shut it.
    pub(super) fn check(&self) -> Result<(), Outage> {
        match &*self.state.borrow() {
            State::Shut(outage) => Err(outage.clone()),
            State::Untried | State::Probing | State::Open => Ok(()),
        }
    }

    /// Lets everybody through.
    pub(super) fn open(&self) {
        // Every answer opens the gate: only the first takes the lock that writing needs.
        if matches!(&*self.state.borrow(), State::Open | State::Shut(_)) {
            return;
        }
        self.state.send_if_modified(|state| {
            let waits = matches!(state, State::Untried | State::Probing);
            if waits {
                *state = State::Open;
            }
            waits
        });
    }

    /// Lets nobody through any more.
    pub(super) fn shut(&self, outage: &Outage) {
        self.state.send_modify(|state| *state = State::Shut(outage.clone()));
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.first {
            self.gate.state.send_if_modified(|state| {
                let unknown = matches!(state, State::Probing);
                if unknown {
                    *state = State::Untried;
                }
                unknown
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        Gate::new(Duration::from_secs(3600))
    }

    #[tokio::test]
    async fn the_others_wait_for_the_first() {
        let gate = gate();
        let first = gate.pass().await.expect("goes first");
        let mut second = Box::pin(gate.pass());
        assert!(futures::poll!(&mut second).is_pending());
        gate.open();
        assert!(!second.await.expect("open").first);
        drop(first);
        assert!(!gate.pass().await.expect("stays open").first);
    }

    #[tokio::test]
    async fn a_first_that_gives_up_leaves_its_place_to_another() {
        let gate = gate();
        let first = gate.pass().await.expect("goes first");
        let mut second = Box::pin(gate.pass());
        assert!(futures::poll!(&mut second).is_pending());
        drop(first);
        assert!(second.await.expect("goes first now").first);
    }

    #[tokio::test]
    async fn what_shuts_it_is_what_everybody_hears() {
        let gate = gate();
        let _first = gate.pass().await.expect("goes first");
        let mut second = Box::pin(gate.pass());
        assert!(futures::poll!(&mut second).is_pending());
        gate.shut(&Outage::teacher("wrong key"));
        gate.open();
        assert_eq!(second.await.err().expect("shut").to_string(), "wrong key");
        assert!(gate.check().is_err());
        assert!(gate.pass().await.is_err());
    }

    #[tokio::test]
    async fn a_slow_first_answer_holds_nobody_up_for_long() {
        let gate = Gate::new(Duration::from_millis(1));
        let _first = gate.pass().await.expect("goes first");
        assert!(!gate.pass().await.expect("opens by itself").first);
    }
}

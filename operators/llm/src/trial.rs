//! Whether a server that refuses requests refuses these, or all of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::request::Outage;

/// So many refusals, before the first answer of another kind, are an outage.
const FIRST: usize = 20;

/// Judges requests that a server refused (400, 413, 422).
///
/// A refusal is believed to be about its request once the teacher has answered another one. Until then it waits for the
/// calls in flight: if one is answered, all waiting refusals are answers to be kept; if [`FIRST`] are refused, it is an
/// outage; if no call is left that could tell, the refused are rejects of this run and not kept.
#[derive(Default)]
pub(crate) struct Trial {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    verdict: Verdict,
    /// Calls that may still tell.
    busy: usize,
    refused: usize,
}

#[derive(Default)]
enum Verdict {
    #[default]
    Open,
    Sound,
    Out(Outage),
}

/// A call whose answer isn't known yet.
pub(crate) struct Call {
    trial: Arc<Trial>,
}

impl Trial {
    /// Begins a call.
    ///
    /// # Errors
    /// The outage that was found before.
    pub(crate) fn begin(self: &Arc<Self>) -> Result<Call, Outage> {
        let mut state = self.state();
        if let Verdict::Out(outage) = &state.verdict {
            return Err(outage.clone());
        }
        state.busy += 1;
        Ok(Call { trial: self.clone() })
    }

    /// What is known of refusals, once it is: whether they are kept.
    fn known(&self) -> Option<Result<bool, Outage>> {
        let state = self.state();
        match &state.verdict {
            Verdict::Sound => Some(Ok(true)),
            Verdict::Out(outage) => Some(Err(outage.clone())),
            Verdict::Open => (state.busy == 0).then_some(Ok(false)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call {
    /// Whether the call may still be made.
    ///
    /// # Errors
    /// The outage that was found meanwhile.
    pub(crate) fn check(&self) -> Result<(), Outage> {
        match &self.trial.state().verdict {
            Verdict::Out(outage) => Err(outage.clone()),
            Verdict::Open | Verdict::Sound => Ok(()),
        }
    }

    /// The call was answered.
    pub(crate) fn answered(self) {
        let mut state = self.trial.state();
        if matches!(state.verdict, Verdict::Open) {
            state.verdict = Verdict::Sound;
            self.trial.changed.notify_waiters();
        }
    }

    /// The call's request was refused, with these words. Gives whether the refusal is kept.
    ///
    /// # Errors
    /// When all requests so far were refused, and they are many.
    pub(crate) async fn refused(self, words: &str) -> Result<bool, Outage> {
        let trial = self.trial.clone();
        {
            let mut state = trial.state();
            if matches!(state.verdict, Verdict::Open) {
                state.refused += 1;
                if state.refused >= FIRST {
                    state.verdict = Verdict::Out(outage(words));
                    trial.changed.notify_waiters();
                }
            }
        }
        drop(self);
        loop {
            let mut changed = std::pin::pin!(trial.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(known) = trial.known() {
                return known;
            }
            changed.await;
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.trial.state();
        state.busy -= 1;
        if state.busy == 0 && matches!(state.verdict, Verdict::Open) {
            self.trial.changed.notify_waiters();
        }
    }
}

fn outage(words: &str) -> Outage {
    Outage::Teacher {
        message: format!("the teacher refused the first {FIRST} requests, all of them; the last one with {words}"),
        hint: Some("see what of `model`, `extra_body` and the stage's decoding settings the server doesn't take".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    #[tokio::test]
    async fn a_refusal_waits_for_an_answer_and_is_then_kept() {
        let trial = Arc::new(Trial::default());
        let (bad, good) = (trial.begin().expect("goes"), trial.begin().expect("goes"));
        let mut refused = Box::pin(bad.refused("no"));
        assert!(futures::poll!(&mut refused).is_pending());
        good.answered();
        assert!(refused.await.expect("no outage"));
        assert!(trial.begin().expect("goes").refused("no").await.expect("no outage"), "known by now");
    }

    #[tokio::test]
    async fn refusals_that_nothing_can_tell_about_are_not_kept() {
        let trial = Arc::new(Trial::default());
        assert!(!trial.begin().expect("goes").refused("no").await.expect("no outage"));
        let (bad, other) = (trial.begin().expect("goes"), trial.begin().expect("goes"));
        let mut refused = Box::pin(bad.refused("no"));
        assert!(futures::poll!(&mut refused).is_pending());
        drop(other);
        assert!(!refused.await.expect("no outage"));
    }

    #[tokio::test]
    async fn twenty_refusals_and_nothing_else_are_an_outage() {
        let trial = Arc::new(Trial::default());
        let calls: Vec<Call> = (0..30).map(|_| trial.begin().expect("goes")).collect();
        let ends = join_all(calls.into_iter().map(|call| call.refused("HTTP 400: no such field"))).await;
        assert!(ends.iter().all(Result::is_err));
        let outage = trial.begin().err().expect("nothing is sent any more");
        assert!(outage.to_string().contains("HTTP 400: no such field"), "{outage}");
    }

    #[tokio::test]
    async fn nineteen_and_an_answer_are_not() {
        let trial = Arc::new(Trial::default());
        let good = trial.begin().expect("goes");
        let mut refused: Vec<_> = (0..19).map(|_| Box::pin(trial.begin().expect("goes").refused("no"))).collect();
        for call in &mut refused {
            assert!(futures::poll!(call).is_pending());
        }
        good.answered();
        assert!(join_all(refused).await.into_iter().all(|kept| matches!(kept, Ok(true))));
    }
}

//! The budget: what a pipeline may spend on calls, over all its runs on a store.

mod ledger;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use object_store::ObjectStore;
use object_store::path::Path;
use tokio::sync::Notify;

use self::ledger::Ledger;
use crate::config::Price;
use crate::request::Usage;

/// Money, in billionths of a dollar: sums of it are exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Nanodollars(pub u64);

impl Nanodollars {
    /// From dollars; less than nothing is nothing.
    pub fn of_dollars(dollars: f64) -> Self {
        // Saturates, as `as` does for floating-point numbers.
        Self((dollars * 1e9).round() as u64)
    }

    /// In dollars.
    pub fn dollars(self) -> f64 {
        self.0 as f64 / 1e9
    }

    fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl std::fmt::Display for Nanodollars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dollars = self.dollars();
        // As many digits as a single call's price needs to show.
        let digits = if self.0 == 0 || dollars >= 1.0 { 2 } else { (2 - dollars.log10().floor() as i32).clamp(2, 9) as usize };
        write!(f, "${dollars:.digits$}")
    }
}

impl Price {
    /// What so many tokens cost, rounded up.
    pub fn of(&self, usage: Usage) -> Nanodollars {
        // Dollars per million tokens are thousands of billionths of a dollar per token.
        let cost = (self.input * usage.input_tokens as f64 + self.output * usage.output_tokens as f64) * 1e3;
        Nanodollars(cost.ceil() as u64)
    }
}

/// Why a budget can't be used, or lets no call through any more.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BudgetError {
    /// It is less than a single call may cost.
    #[error(
        "the budget of {limit} doesn't cover one call, which may cost {call}: a token for each byte of the request, and as many \
         as the answer may have (`max_output_tokens`)"
    )]
    TooSmall {
        /// The budget.
        limit: Nanodollars,
        /// The most that the call may cost.
        call: Nanodollars,
    },
    /// The next call might pass it, and no call is under way whose end could change that.
    #[error("the budget of {limit} is spent: {spent} so far, and the next call may cost {call}")]
    Spent {
        /// The budget.
        limit: Nanodollars,
        /// What was spent, by all runs of the pipeline on the store.
        spent: Nanodollars,
        /// The most that the next call may cost.
        call: Nanodollars,
    },
    /// Another run of the same pipeline spends from it.
    #[error("another run of this pipeline holds its budget ({holder})")]
    Held {
        /// Who: a process.
        holder: String,
    },
    /// What was spent can't be read or written down.
    #[error("the record of what was spent, at `{path}`, can't be used: {message}")]
    Record {
        /// The file or object.
        path: String,
        /// What the system says.
        message: String,
    },
}

/// What a pipeline may still spend.
///
/// A call is let through only if what is spent, what calls under way may cost at most, and what it may cost itself stay
/// within the budget; else it waits for one of those under way. So the budget is never passed, whatever answers come.
///
/// **Durability.** Before a call is made its worst case stands in a file of this machine, and what it did cost after it.
/// A run that is killed leaves that file; the next run counts every call in it whose end isn't known with its worst case.
/// Sums go to the store now and then and at the end, where runs on other machines find them.
#[derive(Debug)]
pub struct Budget {
    limit: Nanodollars,
    state: Mutex<State>,
    /// A call ended.
    changed: Notify,
    ledger: Ledger,
}

#[derive(Debug, Default)]
struct State {
    spent: Nanodollars,
    /// The worst cases of the calls under way, and how many they are.
    held: Nanodollars,
    open: usize,
    calls: u64,
}

impl Budget {
    /// Opens the budget whose record is under `prefix` of `store` and in the local `folder`, made if need be.
    ///
    /// # Errors
    /// When another run holds it, or the record can't be read.
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        prefix: Path,
        folder: &std::path::Path,
        limit: Nanodollars,
    ) -> Result<Self, BudgetError> {
        let (ledger, spent) = Ledger::open(store, prefix, folder).await?;
        Ok(Self { limit, state: Mutex::new(State { spent, ..State::default() }), changed: Notify::new(), ledger })
    }

    /// What was spent by all runs so far.
    pub fn spent(&self) -> Nanodollars {
        self.state().spent
    }

    /// Lets a call through that may cost `worst` at most, as soon as the budget has room for it.
    ///
    /// # Errors
    /// [`BudgetError::TooSmall`] or [`BudgetError::Spent`] when it won't have room, and when the record can't be written.
    pub async fn hold(&self, worst: Nanodollars) -> Result<Hold<'_>, BudgetError> {
        if worst > self.limit {
            return Err(BudgetError::TooSmall { limit: self.limit, call: worst });
        }
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state();
                if state.spent.plus(state.held).plus(worst) <= self.limit {
                    let call = state.calls;
                    self.ledger.hold(call, worst)?;
                    state.calls += 1;
                    state.held = state.held.plus(worst);
                    state.open += 1;
                    return Ok(Hold { budget: self, call, worst, cost: worst });
                }
                if state.open == 0 {
                    return Err(BudgetError::Spent { limit: self.limit, spent: state.spent, call: worst });
                }
            }
            changed.await;
        }
    }

    /// Brings the sum to the store if it hasn't been there for a while, or `now`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn upload(&self, now: bool) -> Result<(), BudgetError> {
        self.ledger.upload(now).await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that was let through. Dropping it without [`Hold::paid`] counts its worst case.
#[derive(Debug)]
pub struct Hold<'a> {
    budget: &'a Budget,
    call: u64,
    worst: Nanodollars,
    cost: Nanodollars,
}

impl Hold<'_> {
    /// The call ended, and cost so much.
    pub fn paid(mut self, cost: Nanodollars) {
        self.cost = cost;
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        // If this can't be written, the next run counts the worst case.
        self.budget.ledger.paid(self.call, self.cost);
        let mut state = self.budget.state();
        state.held = Nanodollars(state.held.0.saturating_sub(self.worst.0));
        state.spent = state.spent.plus(self.cost);
        state.open -= 1;
        drop(state);
        self.budget.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    const CENT: Nanodollars = Nanodollars(10_000_000);

    async fn open(store: &Arc<InMemory>, folder: &std::path::Path, cents: u64) -> Budget {
        let limit = Nanodollars(cents * CENT.0);
        Budget::open(store.clone(), Path::from("budget/p"), folder, limit).await.expect("opened")
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    #[test]
    fn money_is_exact_and_shown_short() {
        let price = Price { input: 0.59, output: 0.79 };
        assert_eq!(price.of(Usage { input_tokens: 1_000_000, output_tokens: 2_000_000 }), Nanodollars(2_170_000_000));
        for (nano, text) in [(0, "$0.00"), (2_170_000_000, "$2.17"), (12_345_678, "$0.0123"), (590, "$0.000000590")] {
            assert_eq!(Nanodollars(nano).to_string(), text);
        }
        assert_eq!(Nanodollars::of_dollars(0.25), Nanodollars(250_000_000));
    }

    #[tokio::test]
    async fn a_call_waits_for_those_under_way_and_the_last_one_is_told() {
        let (store, folder) = (Arc::new(InMemory::new()), folder());
        let budget = open(&store, folder.path(), 10).await;
        let first = budget.hold(Nanodollars(6 * CENT.0)).await.expect("room");
        // A second one of 6 has to wait, and is let through once the first turns out to cost 1.
        let (second, ()) = tokio::join!(budget.hold(Nanodollars(6 * CENT.0)), async { first.paid(CENT) });
        second.expect("room").paid(Nanodollars(5 * CENT.0));
        let failure = budget.hold(Nanodollars(6 * CENT.0)).await.expect_err("6 + 6 is over 10");
        assert_eq!(failure.to_string(), "the budget of $0.100 is spent: $0.0600 so far, and the next call may cost $0.0600");
        budget.hold(Nanodollars(4 * CENT.0)).await.expect("just fits");
    }

    #[tokio::test]
    async fn a_budget_that_covers_no_call_says_so() {
        let (store, folder) = (Arc::new(InMemory::new()), folder());
        let budget = open(&store, folder.path(), 3).await;
        budget.hold(Nanodollars(2 * CENT.0)).await.expect("room").paid(CENT);
        let failure = budget.hold(Nanodollars(5 * CENT.0)).await.expect_err("5 is over 3");
        let said = "the budget of $0.0300 doesn't cover one call, which may cost $0.0500: a token for each byte";
        assert!(failure.to_string().starts_with(said), "{failure}");
    }

    #[tokio::test]
    async fn what_was_spent_counts_in_the_next_run_and_on_another_machine() {
        let (store, here, there) = (Arc::new(InMemory::new()), folder(), folder());
        let budget = open(&store, here.path(), 10).await;
        budget.hold(Nanodollars(5 * CENT.0)).await.expect("room").paid(Nanodollars(2 * CENT.0));
        drop(budget.hold(Nanodollars(3 * CENT.0)).await.expect("room"));
        assert_eq!(budget.spent(), Nanodollars(5 * CENT.0), "an end that isn't known counts with its worst case");
        budget.upload(true).await.expect("the store takes it");
        drop(budget);
        assert_eq!(open(&store, there.path(), 10).await.spent(), Nanodollars(5 * CENT.0));
        assert_eq!(open(&store, here.path(), 10).await.spent(), Nanodollars(5 * CENT.0), "counted once");
    }

    #[tokio::test]
    async fn a_killed_run_counts_its_open_calls_in_full() {
        let (store, folder) = (Arc::new(InMemory::new()), folder());
        let budget = open(&store, folder.path(), 10).await;
        budget.hold(Nanodollars(5 * CENT.0)).await.expect("room").paid(CENT);
        let open_call = budget.hold(Nanodollars(3 * CENT.0)).await.expect("room");
        let second = Budget::open(store.clone(), Path::from("budget/p"), folder.path(), CENT).await;
        assert!(matches!(second, Err(BudgetError::Held { .. })), "one run at a time");
        // As a kill leaves it: nothing is written any more, and the lock is gone.
        std::mem::forget(open_call);
        budget.ledger.release_for_test();
        std::mem::forget(budget);
        assert_eq!(open(&store, folder.path(), 10).await.spent(), Nanodollars(4 * CENT.0));
    }
}

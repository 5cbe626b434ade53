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
/// within the budget; else it waits for one of those under way. So the budget is never passed, whatever answers come. One run at a
/// time should spend from it, which is the caller's to see to.
///
/// **Durability.** Before a call is made, the store says how much this run will have spent at most, a few dozen calls ahead, and a
/// file of this machine says what the call may cost; what it did cost follows. A run that is killed leaves both. The next run on
/// this machine reads the file and counts every call whose end it doesn't know with its worst case; one on another machine, or
/// after a power cut, counts what the store says.
#[derive(Debug)]
pub struct Budget {
    limit: Nanodollars,
    state: Mutex<State>,
    /// A call ended.
    changed: Notify,
    ledger: Ledger,
    /// Two promises at once would be made from the same sums.
    promising: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// What other runs spent, or may have.
    others: Nanodollars,
    /// What this run's calls cost, as far as they have ended.
    paid: Nanodollars,
    /// The worst cases of the calls under way, and how many they are.
    held: Nanodollars,
    open: usize,
    calls: u64,
    /// What the store says that this run spends at most.
    promised: Nanodollars,
}

impl State {
    fn with(&self, worst: Nanodollars) -> Nanodollars {
        self.paid.plus(self.held).plus(worst)
    }
}

/// So many calls, or so large a part of the budget, are promised ahead: one request to the store for all of them.
const CALLS_AHEAD: u64 = 64;
const PART_AHEAD: u64 = 32;

impl Budget {
    /// Opens the budget whose record is under `prefix` of `store` and in the local `folder`, made if need be.
    ///
    /// # Errors
    /// When the record can't be read.
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        prefix: Path,
        folder: &std::path::Path,
        limit: Nanodollars,
    ) -> Result<Self, BudgetError> {
        let (ledger, others) = Ledger::open(store, prefix, folder).await?;
        let state = Mutex::new(State { others, ..State::default() });
        Ok(Self { limit, state, changed: Notify::new(), ledger, promising: tokio::sync::Mutex::default() })
    }

    /// What was spent by all runs so far, at most.
    pub fn spent(&self) -> Nanodollars {
        let state = self.state();
        state.others.plus(state.paid)
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
            let has_room = {
                let mut state = self.state();
                let wanted = state.with(worst);
                let has_room = state.others.plus(wanted) <= self.limit;
                if has_room && wanted <= state.promised {
                    let call = state.calls;
                    self.ledger.hold(call, worst)?;
                    state.calls += 1;
                    state.held = state.held.plus(worst);
                    state.open += 1;
                    return Ok(Hold { budget: self, call, worst, cost: worst });
                }
                if !has_room && state.open == 0 {
                    return Err(BudgetError::Spent { limit: self.limit, spent: state.others.plus(state.paid), call: worst });
                }
                has_room
            };
            if has_room {
                self.promise(worst).await?;
            } else {
                changed.await;
            }
        }
    }

    /// Has the store say that this run spends more, enough for a call of `worst` and for some after it.
    async fn promise(&self, worst: Nanodollars) -> Result<(), BudgetError> {
        let _alone = self.promising.lock().await;
        let is_promised = |state: &State| state.with(worst) <= state.promised;
        if is_promised(&self.state()) {
            return Ok(());
        }
        let others = self.ledger.others().await?;
        let promise = {
            let mut state = self.state();
            state.others = others;
            let ahead = worst.0.saturating_mul(CALLS_AHEAD).max(self.limit.0 / PART_AHEAD);
            Nanodollars(state.with(Nanodollars(ahead)).0.min(self.limit.0.saturating_sub(others.0)))
        };
        self.ledger.promise(promise, false).await?;
        self.state().promised = promise;
        Ok(())
    }

    /// Has the store say what this run really spent. Calls under way count with their worst case; more may follow.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn settle(&self) -> Result<(), BudgetError> {
        let _alone = self.promising.lock().await;
        let spent = {
            let mut state = self.state();
            if state.promised == Nanodollars::default() {
                return Ok(());
            }
            // Calls from here on need a promise of their own.
            state.promised = state.with(Nanodollars::default());
            state.promised
        };
        self.ledger.promise(spent, true).await
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
        state.paid = state.paid.plus(self.cost);
        state.open -= 1;
        drop(state);
        self.budget.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;
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
        budget.settle().await.expect("the store takes it");
        drop(budget);
        assert_eq!(std::fs::read_dir(here.path()).expect("made").count(), 0, "the store has it");
        assert_eq!(open(&store, there.path(), 10).await.spent(), Nanodollars(5 * CENT.0));
        let next = open(&store, here.path(), 10).await;
        assert_eq!(next.spent(), Nanodollars(5 * CENT.0), "counted once");
        next.hold(CENT).await.expect("room").paid(CENT);
        next.settle().await.expect("the store takes it");
        let files = store.list(Some(&Path::from("budget"))).try_collect::<Vec<_>>().await.expect("listed");
        assert_eq!(files.len(), 1, "sums don't pile up");
        assert_eq!(open(&store, there.path(), 10).await.spent(), Nanodollars(6 * CENT.0));
    }

    /// As a kill leaves it: nothing is written any more, and the lock is gone.
    fn kill(budget: Budget) {
        budget.ledger.release_for_test();
        std::mem::forget(budget);
    }

    #[tokio::test]
    async fn a_killed_run_counts_its_open_calls_in_full() {
        let (store, folder) = (Arc::new(InMemory::new()), folder());
        let budget = open(&store, folder.path(), 10).await;
        budget.hold(Nanodollars(5 * CENT.0)).await.expect("room").paid(CENT);
        std::mem::forget(budget.hold(Nanodollars(3 * CENT.0)).await.expect("room"));
        kill(budget);
        assert_eq!(open(&store, folder.path(), 10).await.spent(), Nanodollars(4 * CENT.0));
        assert_eq!(open(&store, folder.path(), 10).await.spent(), Nanodollars(4 * CENT.0), "once");
    }

    #[tokio::test]
    async fn on_another_machine_a_killed_run_counts_with_what_it_promised() {
        let (store, here, there) = (Arc::new(InMemory::new()), folder(), folder());
        let budget = open(&store, here.path(), 1000).await;
        budget.hold(CENT).await.expect("room").paid(Nanodollars(1));
        kill(budget);
        let other = open(&store, there.path(), 1000).await;
        assert_eq!(other.spent(), Nanodollars(64 * CENT.0));
        other.hold(CENT).await.expect("room").paid(Nanodollars(2));
        other.settle().await.expect("the store takes it");
        // The first machine knows better, and then all do.
        assert_eq!(open(&store, here.path(), 1000).await.spent(), Nanodollars(3));
        assert_eq!(open(&store, there.path(), 1000).await.spent(), Nanodollars(3));
    }

    #[tokio::test]
    async fn a_run_that_was_taken_for_dead_doesnt_pass_the_budget_either() {
        let (store, here, there) = (Arc::new(InMemory::new()), folder(), folder());
        let (first, second) = (open(&store, here.path(), 10).await, open(&store, there.path(), 10).await);
        first.hold(Nanodollars(6 * CENT.0)).await.expect("room").paid(Nanodollars(6 * CENT.0));
        let failure = second.hold(Nanodollars(6 * CENT.0)).await.expect_err("it sees what the first one promised");
        assert!(matches!(failure, BudgetError::Spent { .. }), "{failure}");
    }

    #[tokio::test]
    async fn a_sum_that_cannot_be_read_is_named() {
        let (store, folder) = (Arc::new(InMemory::new()), folder());
        store.put(&Path::from("budget/p/1-2.json"), "{".into()).await.expect("put");
        let failure = Budget::open(store, Path::from("budget/p"), folder.path(), CENT).await.expect_err("it may be any amount");
        assert!(failure.to_string().contains("budget/p/1-2.json"), "{failure}");
    }
}

//! What happens in a run, kept apart from the future that drives it: it is still there when that is dropped.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    context::{Counters, Environment},
    history::{Ending, RunRecord, StageRecord, StageState, Took},
    resolve::{LastRun, StageKey},
    stage::main_rows,
};
use crate::{
    failure::Failure,
    operator::{Price, REJECTS_OUTPUT},
    plan::{Plan, StageIndex},
    store::Manifest,
};

/// One try at a stage.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    /// Its id, which stands in the artifact that it makes.
    pub(super) id: Uuid,
    pub(super) stage: StageIndex,
    pub(super) began: DateTime<Utc>,
    /// The artifacts that it reads.
    pub(super) upstream: HashMap<StageIndex, Arc<Manifest>>,
    /// Its key, once that is known, and which filling of it this is.
    pub(super) key: Option<(StageKey, u64)>,
    pub(super) ended: Option<(DateTime<Utc>, End)>,
    /// What it took so far.
    pub(super) took: Took,
}

/// How a try ended.
#[derive(Debug, Clone)]
pub(super) enum End {
    /// It made an artifact.
    Ran(Arc<Manifest>),
    /// The artifact was there.
    Cached {
        manifest: Arc<Manifest>,
        /// The run that made it.
        filled_by: Option<String>,
    },
    /// It failed; what it made, if `min_yield` refused that.
    Failed(Failure, Option<Arc<Manifest>>),
}

/// The tries of a run, in the order in which they began, and what began and ended when.
#[derive(Debug, Default)]
struct Pages {
    last: Option<LastRun>,
    attempts: Vec<Attempt>,
    /// Places of attempts, each once when it began and once when it ended.
    moments: Vec<usize>,
    skipped: Vec<StageIndex>,
}

/// A run's journal.
#[derive(Debug)]
pub(super) struct Journal {
    pub(super) run: Uuid,
    pub(super) started: DateTime<Utc>,
    pages: Mutex<Pages>,
}

/// A journal that is closed: what the record and the events are made of.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) run: Uuid,
    pub(super) started: DateTime<Utc>,
    pub(super) finished: DateTime<Utc>,
    pub(super) ending: Ending,
    pub(super) attempts: Vec<Attempt>,
    /// Places of attempts, each once when it began and, if it ended, once then.
    pub(super) moments: Vec<usize>,
    skipped: Vec<StageIndex>,
    last: LastRun,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self { run: Uuid::now_v7(), started: Utc::now(), pages: Mutex::default() }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run has begun; `last` is the one before it.
    pub(super) fn open(&self, last: LastRun) {
        self.pages().last = Some(last);
    }

    /// A stage is tried. Gives the try's id.
    pub(super) fn began(&self, stage: StageIndex, upstream: HashMap<StageIndex, Arc<Manifest>>) -> Uuid {
        let mut pages = self.pages();
        let id = Uuid::now_v7();
        let place = pages.attempts.len();
        pages.attempts.push(Attempt { id, stage, began: Utc::now(), upstream, key: None, ended: None, took: Took::default() });
        pages.moments.push(place);
        id
    }

    /// The key of the stage that is tried is known.
    pub(super) fn keyed(&self, stage: StageIndex, key: &StageKey, generation: u64) {
        if let Some(attempt) = self.pages().attempts.iter_mut().rfind(|attempt| attempt.stage == stage) {
            attempt.key = Some((key.clone(), generation));
        }
    }

    /// The try at a stage has ended. One that never began did so just now.
    pub(super) fn ended(&self, stage: StageIndex, end: End, took: Took) {
        let is_open = |attempt: &Attempt| attempt.stage == stage && attempt.ended.is_none();
        if !self.pages().attempts.iter().any(is_open) {
            self.began(stage, HashMap::new());
        }
        let mut pages = self.pages();
        let Some(place) = pages.attempts.iter().rposition(is_open) else { return };
        let now = Utc::now();
        let attempt = &mut pages.attempts[place];
        attempt.took = took;
        if matches!(end, End::Failed(..)) && took.seconds == 0.0 {
            attempt.took.seconds = (now - attempt.began).as_seconds_f64();
        }
        attempt.ended = Some((now, end));
        pages.moments.push(place);
    }

    /// A stage isn't tried, since one that it needs failed.
    pub(super) fn skipped(&self, stage: StageIndex) {
        self.pages().skipped.push(stage);
    }

    /// Closes the journal; `None` if the run didn't get as far as to open it, or it is closed already. What hasn't ended by now
    /// never did, and took what its counters say.
    pub(super) fn close(&self, interrupted: bool, took: impl Fn(StageIndex) -> Took) -> Option<Closed> {
        let mut pages = self.pages();
        let last = pages.last.take()?;
        let Pages { mut attempts, moments, skipped, .. } = std::mem::take(&mut *pages);
        let finished = Utc::now();
        for attempt in attempts.iter_mut().filter(|attempt| attempt.ended.is_none()) {
            let seconds = (finished - attempt.began).as_seconds_f64();
            attempt.took = Took { seconds, ..took(attempt.stage) };
        }
        let has_failed = final_attempts(&attempts).values().any(|attempt| matches!(attempt.ended, Some((_, End::Failed(..)))));
        let ending = match (interrupted, has_failed) {
            (true, _) => Ending::Interrupted,
            (false, true) => Ending::Failed,
            (false, false) => Ending::Done,
        };
        Some(Closed { run: self.run, started: self.started, finished, ending, attempts, moments, skipped, last })
    }
}

/// The last try at each stage.
fn final_attempts(attempts: &[Attempt]) -> HashMap<StageIndex, &Attempt> {
    attempts.iter().map(|attempt| (attempt.stage, attempt)).collect()
}

/// What a stage took, by its counters, in `seconds`.
pub(super) fn took(counters: &Counters, price: Option<Price>, seconds: f64) -> Took {
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let (input_tokens, output_tokens) = (load(&counters.input_tokens), load(&counters.output_tokens));
    Took {
        seconds,
        calls: load(&counters.calls),
        memo_hits: load(&counters.memo_hits),
        input_tokens,
        output_tokens,
        usd: price.map(|price| price.of(input_tokens, output_tokens)),
    }
}

impl Closed {
    /// The last try at each stage.
    pub(super) fn final_attempts(&self) -> HashMap<StageIndex, &Attempt> {
        final_attempts(&self.attempts)
    }

    /// The run's record, unless nothing happened that the last one doesn't say.
    pub(super) fn record(&self, plan: &Plan, environment: &Environment, file_digest: Option<&str>) -> Option<RunRecord> {
        let mut stages: BTreeMap<String, StageRecord> = BTreeMap::new();
        let mut failures = BTreeMap::new();
        for (index, attempt) in self.final_attempts() {
            let stage = plan.stage(index);
            let (state, manifest) = match &attempt.ended {
                Some((_, End::Ran(manifest))) => (StageState::Ran, Some(manifest)),
                Some((_, End::Cached { manifest, .. })) => (StageState::Cached, Some(manifest)),
                Some((_, End::Failed(failure, manifest))) => {
                    failures.insert(stage.name.clone(), failure.clone());
                    (StageState::Failed, manifest.as_ref())
                }
                None => (StageState::Interrupted, None),
            };
            let mut record = StageRecord { state: Some(state), executed: state == StageState::Ran, ..StageRecord::default() };
            if state != StageState::Cached {
                record.took = Some(attempt.took);
            }
            if let (Some(manifest), Some((key, generation))) = (manifest, &attempt.key) {
                record.key = Some(key.key.clone());
                record.generation = Some(*generation);
                record.digests = manifest.outputs.iter().map(|(name, table)| (name.clone(), table.digest.clone())).collect();
                for ((port, _), (above, output)) in plan.reads(index) {
                    let read = (plan.stage(above).name.clone(), output.to_owned());
                    record.reads.entry(port.to_owned()).or_default().push(read);
                }
                record.rows = Some(main_rows(stage, manifest));
                record.rejects = manifest.outputs.get(REJECTS_OUTPUT).map(|table| table.rows);
            }
            stages.insert(stage.name.clone(), record);
        }
        for index in &self.skipped {
            let (name, record) =
                (&plan.stage(*index).name, StageRecord { state: Some(StageState::Skipped), ..StageRecord::default() });
            // A try before may have found an input damaged, which then couldn't be made anew.
            failures.remove(name);
            stages.insert(name.clone(), record);
        }
        let is_known =
            |(name, stage): (&String, &StageRecord)| stage.key.is_some() && self.last.keys.get(name) == stage.key.as_ref();
        let has_run = stages.values().any(|stage| stage.executed);
        if self.ending == Ending::Done && !self.last.ended_early && !has_run && stages.iter().all(is_known) {
            return None;
        }
        // A stage that this run has no artifact of is still compared with what it was when one last had.
        for (name, key) in self.last.keys.iter().filter(|(name, _)| plan.find(name).is_some()) {
            let unreached = || StageRecord { state: Some(StageState::NotReached), ..StageRecord::default() };
            stages.entry(name.clone()).or_insert_with(unreached).key.get_or_insert_with(|| key.clone());
        }
        Some(RunRecord {
            run: self.run.to_string(),
            pipeline: plan.pipeline.clone(),
            file: environment.file.clone(),
            file_digest: file_digest.map(str::to_owned),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            result: Some(self.ending),
            started: self.started,
            finished: self.finished,
            stages,
            failures,
        })
    }
}

//! Driving a plan: every stage that is ready runs; one that fails stops only what needs it.

use std::{
    collections::{HashMap, HashSet},
    panic::AssertUnwindSafe,
    path::{Path as FilePath, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use object_store::path::Path;
use serde::Serialize;
use uuid::Uuid;

use super::{
    context::{Counters, Environment},
    gate,
    history::Took,
    journal::{End, Journal, took},
    node::panicked,
    openlineage,
    reason::Reason,
    resolve::{Resolver, StageKey, Status, last_run},
    stage::{StageRun, main_rows},
};
use crate::{
    failure::Failure,
    operator::Resource,
    plan::{Plan, StageIndex},
    store::{Holder, Manifest},
};

/// What a run is asked for beside the plan.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Run these stages and what they need, and nothing else; empty for all.
    pub until: Vec<StageIndex>,
    /// Stages that run whatever the store has.
    pub force: HashSet<StageIndex>,
    /// Whether every file of an artifact is read before it counts as one.
    pub verify: bool,
    /// Whether counters keep what is spent on each document.
    pub by_document: bool,
    /// Whether every stage plan is encoded and decoded before it runs, as for an executor.
    pub round_trip: bool,
    /// What the pipeline file said when it was read; its digest stands in the run's record.
    pub written: Option<Arc<str>>,
}

/// What happens during a run.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The store has the stage's artifact.
    Cached {
        /// The stage.
        stage: String,
        /// Rows of its main output.
        rows: u64,
    },
    /// The last run under this pipeline's name was of another file.
    Namesake {
        /// That file.
        file: PathBuf,
    },
    /// Another run is at work on the same stage: this one waits for what comes of it.
    Waiting {
        /// The stage.
        stage: String,
        /// Who that is: a process and its machine.
        holder: String,
    },
    /// A stage starts.
    Started {
        /// The stage.
        stage: String,
        /// Why it has to run.
        reasons: Vec<String>,
    },
    /// A stage was committed.
    Finished(StageReport),
    /// A stage failed.
    Failed {
        /// The stage.
        stage: String,
        /// Why, and what would be right.
        failure: Failure,
    },
    /// An artifact that a stage reads isn't whole any more: it is made anew.
    Damaged {
        /// The stage whose artifact it is.
        stage: String,
        /// What doesn't hold what was written there.
        object: String,
    },
    /// A stage can't run because of others.
    Skipped {
        /// The stage.
        stage: String,
        /// The stages that it needs and that failed.
        because: Vec<String>,
    },
}

/// What a committed stage took.
#[derive(Debug, Clone, Serialize)]
pub struct StageReport {
    /// The stage.
    pub stage: String,
    /// Rows of its main output.
    pub rows: u64,
    /// Rows that it refused.
    pub rejects: u64,
    /// Wall time.
    pub seconds: f64,
    /// Calls that a teacher answered.
    pub calls: u64,
    /// Answers found in the memo.
    pub memo_hits: u64,
    /// Tokens of the requests of these calls.
    pub input_tokens: u64,
    /// Tokens of their answers.
    pub output_tokens: u64,
    /// What the calls cost, where the model's price is known, in dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd: Option<f64>,
    /// Partitions that the stage has.
    pub partitions: u64,
}

impl StageReport {
    fn took(&self) -> Took {
        let Self { seconds, calls, memo_hits, input_tokens, output_tokens, usd, .. } = *self;
        Took { seconds, calls, memo_hits, input_tokens, output_tokens, usd }
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// The artifacts, by stage.
    pub artifacts: HashMap<StageIndex, Arc<Manifest>>,
    /// How many stages ran and were committed.
    pub executed: usize,
    /// How many were there already.
    pub cached: usize,
    /// How many need a stage that failed.
    pub skipped: usize,
    /// Failures by stage, in the order in which they happened.
    pub failures: Vec<(StageIndex, Failure)>,
}

/// Which filling of which key a stage's artifact is.
struct Filled {
    key: String,
    generation: u64,
    executed: bool,
}

/// How many artifacts a run makes anew because they aren't whole any more: where there are more, the disk is broken.
const MENDED: usize = 8;

/// A stage whose artifact is there.
struct Done {
    manifest: Arc<Manifest>,
    key: StageKey,
    generation: u64,
    /// What it took, if it ran.
    report: Option<StageReport>,
    /// The run that made it before, if it didn't.
    filled_by: Option<String>,
}

/// A run of a plan.
pub struct Run<'a> {
    plan: &'a Plan,
    environment: Arc<Environment>,
    options: RunOptions,
    journal: Journal,
    counters: HashMap<StageIndex, Arc<Counters>>,
    has_failed: AtomicBool,
    tell: &'a (dyn Fn(Event) + Sync),
}

impl<'a> Run<'a> {
    /// A run that tells what happens through `tell`.
    pub fn new(plan: &'a Plan, environment: Arc<Environment>, options: RunOptions, tell: &'a (dyn Fn(Event) + Sync)) -> Self {
        let counters = || if options.by_document { Counters::by_document() } else { Counters::default() };
        let counters = plan.stages().map(|(index, _)| (index, Arc::new(counters()))).collect();
        Self { plan, environment, options, journal: Journal::new(), counters, has_failed: AtomicBool::new(false), tell }
    }

    /// The live counters of a stage.
    pub fn counters(&self, index: StageIndex) -> Arc<Counters> {
        self.counters.get(&index).cloned().unwrap_or_default()
    }

    /// Runs what is needed. Dropping the future stops the run: what was committed stays, answers that were paid for stay, and
    /// [`Self::interrupted`] writes down how far it came.
    ///
    /// # Errors
    /// When the store fails in a way that no stage can be blamed for. A stage's failure is part of the outcome.
    pub async fn execute(&self) -> Result<Outcome, Failure> {
        let wanted: HashSet<StageIndex> = match self.options.until.as_slice() {
            [] => self.plan.stages().map(|(index, _)| index).collect(),
            until => until.iter().flat_map(|index| self.plan.needed_by(*index)).collect(),
        };
        let last = last_run(&self.environment, &self.plan.pipeline).await?;
        if let Some(file) = last.file.as_deref().filter(|file| self.is_another(file)) {
            (self.tell)(Event::Namesake { file: file.to_owned() });
        }
        self.journal.open(last);
        let resolver = Resolver::new(self.plan, &self.environment, self.options.force.clone()).verifying(self.options.verify);
        let device = tokio::sync::Semaphore::new(1);
        let mut waiting: Vec<StageIndex> =
            self.plan.stages().map(|(index, _)| index).filter(|index| wanted.contains(index)).collect();
        let mut outcome = Outcome { artifacts: HashMap::new(), executed: 0, cached: 0, skipped: 0, failures: Vec::new() };
        let mut lost: HashSet<StageIndex> = HashSet::new();
        let mut filled: HashMap<StageIndex, Filled> = HashMap::new();
        let mut given: HashMap<StageIndex, HashMap<StageIndex, Arc<Manifest>>> = HashMap::new();
        let mut mended = 0;
        // What is wrong with a source is said before any work is done.
        for index in &waiting {
            if self.plan.reads(*index).is_empty()
                && let Err(failure) = resolver.key(*index, &HashMap::new()).await
            {
                self.journal.ended(*index, End::Failed(failure.clone(), None), Took::default());
                self.fail(*index, failure, &mut outcome, &mut lost);
            }
        }
        if !outcome.failures.is_empty() {
            self.write_down(false).await?;
            return Ok(outcome);
        }
        let mut running = FuturesUnordered::new();
        loop {
            let mut index = 0;
            while index < waiting.len() {
                let stage = waiting[index];
                let above: Vec<StageIndex> = self.plan.reads(stage).into_values().map(|(above, _)| above).collect();
                if above.iter().any(|above| lost.contains(above)) {
                    let mut because: Vec<String> = above
                        .iter()
                        .filter(|above| lost.contains(above))
                        .map(|above| self.plan.stage(*above).name.clone())
                        .collect();
                    because.sort();
                    because.dedup();
                    self.journal.skipped(stage);
                    (self.tell)(Event::Skipped { stage: self.plan.stage(stage).name.clone(), because });
                    lost.insert(stage);
                    outcome.skipped += 1;
                    waiting.remove(index);
                } else if above.iter().all(|above| outcome.artifacts.contains_key(above)) {
                    let upstream: HashMap<_, _> = above.iter().map(|above| (*above, outcome.artifacts[above].clone())).collect();
                    given.insert(stage, upstream.clone());
                    running.push(self.stage(stage, upstream, &resolver, &device));
                    waiting.remove(index);
                } else {
                    index += 1;
                }
            }
            let Some((stage, result)) = running.next().await else { break };
            match result {
                Ok(Done { manifest, key, generation, report, filled_by }) => {
                    filled.insert(stage, Filled { key: key.key, generation, executed: report.is_some() });
                    if let Err(failure) = gate::check(&self.environment, self.plan.stage(stage), &manifest).await {
                        self.journal.ended(
                            stage,
                            End::Failed(failure.clone(), Some(manifest)),
                            report.as_ref().map_or_else(Took::default, StageReport::took),
                        );
                        self.fail(stage, failure, &mut outcome, &mut lost);
                        continue;
                    }
                    match report {
                        Some(report) => {
                            outcome.executed += 1;
                            self.journal.ended(stage, End::Ran(manifest.clone()), report.took());
                            (self.tell)(Event::Finished(report));
                        }
                        None => {
                            outcome.cached += 1;
                            self.journal.ended(stage, End::Cached { manifest: manifest.clone(), filled_by }, Took::default());
                            let (stage, rows) = (self.plan.stage(stage), main_rows(self.plan.stage(stage), &manifest));
                            (self.tell)(Event::Cached { stage: stage.name.clone(), rows });
                        }
                    }
                    outcome.artifacts.insert(stage, manifest);
                }
                Err(failure) => {
                    self.journal.ended(stage, End::Failed(failure.clone(), None), self.took(stage));
                    let object = failure.damaged.as_deref();
                    let holds = |artifact: &Manifest| artifact.files().any(|(path, _)| Some(path) == object);
                    let above = given[&stage].iter().find(|(_, artifact)| holds(artifact));
                    let Some((above, artifact)) = above.filter(|_| mended < MENDED) else {
                        self.fail(stage, failure, &mut outcome, &mut lost);
                        continue;
                    };
                    waiting.push(stage);
                    // Another reader may have found it before.
                    if outcome.artifacts.get(above).is_some_and(|current| Arc::ptr_eq(current, artifact)) {
                        mended += 1;
                        self.condemn(*above, object.unwrap_or_default(), &filled[above], &mut outcome).await?;
                        waiting.push(*above);
                    }
                }
            }
        }
        drop(running);
        self.write_down(false).await?;
        Ok(outcome)
    }

    /// Writes down how far a run came whose [`Self::execute`] was dropped. After one that ended it does nothing.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn interrupted(&self) -> Result<(), Failure> {
        self.write_down(true).await
    }

    /// Takes back a stage's artifact, of which `object` doesn't hold what was written there.
    async fn condemn(&self, stage: StageIndex, object: &str, filled: &Filled, outcome: &mut Outcome) -> Result<(), Failure> {
        self.environment.store.condemn(&filled.key, filled.generation, object).await?;
        (self.tell)(Event::Damaged { stage: self.plan.stage(stage).name.clone(), object: object.to_owned() });
        outcome.artifacts.remove(&stage);
        *(if filled.executed { &mut outcome.executed } else { &mut outcome.cached }) -= 1;
        Ok(())
    }

    fn fail(&self, stage: StageIndex, failure: Failure, outcome: &mut Outcome, lost: &mut HashSet<StageIndex>) {
        (self.tell)(Event::Failed { stage: self.plan.stage(stage).name.clone(), failure: failure.clone() });
        self.has_failed.store(true, Ordering::Relaxed);
        outcome.failures.push((stage, failure));
        outcome.artifacts.remove(&stage);
        lost.insert(stage);
    }

    async fn stage(
        &self,
        index: StageIndex,
        upstream: HashMap<StageIndex, Arc<Manifest>>,
        resolver: &Resolver<'_>,
        device: &tokio::sync::Semaphore,
    ) -> (StageIndex, Result<Done, Failure>) {
        let attempt = self.journal.began(index, upstream.clone());
        let result = AssertUnwindSafe(self.stage_result(index, attempt, upstream, resolver, device)).catch_unwind().await;
        let name = self.plan.stage(index).operator_type.name;
        (index, result.unwrap_or_else(|panic| Err(panicked(name, panic.as_ref()))))
    }

    async fn stage_result(
        &self,
        index: StageIndex,
        attempt: Uuid,
        upstream: HashMap<StageIndex, Arc<Manifest>>,
        resolver: &Resolver<'_>,
        device: &tokio::sync::Semaphore,
    ) -> Result<Done, Failure> {
        let stage = self.plan.stage(index);
        let mut status = resolver.status(index, &upstream).await?;
        let mut _device = None;
        if let Status::Run { .. } = &status {
            self.environment.store.demand_conditions().await?;
        }
        if let Status::Run { key, .. } = &status
            && stage.operator.resource() != Resource::None
        {
            self.lease(index, &key.key).await?;
            if self.plan.holds_device(index, &self.environment.registry) {
                _device = Some(device.acquire().await.map_err(|error| Failure::bug(error.to_string()))?);
            }
            if stage.operator.resource() == Resource::Device {
                self.environment.vacate().await;
            }
            // Whoever had the lease before may have made it.
            status = resolver.status(index, &upstream).await?;
        }
        let (key, generation, reasons) = match status {
            Status::Hit { key, generation, manifest, filled_by } => {
                self.environment.release(&key.key).await;
                self.journal.keyed(index, &key, generation);
                return Ok(Done { manifest, key, generation, report: None, filled_by });
            }
            Status::Run { key, generation, reasons, .. } => (key, generation, reasons),
            Status::Unknown { after } => return Err(Failure::bug(format!("stages {after:?} were to run first"))),
        };
        self.journal.keyed(index, &key, generation);
        (self.tell)(Event::Started { stage: stage.name.clone(), reasons: reasons.iter().map(Reason::to_string).collect() });
        let began = Instant::now();
        let counters = self.counters(index);
        let run = StageRun {
            plan: self.plan,
            index,
            key: &key,
            generation,
            upstream: &upstream,
            environment: &self.environment,
            counters: counters.clone(),
            rehearsal: false,
            round_trip: self.options.round_trip,
            run: self.journal.run,
            attempt,
        };
        let manifest = run.execute().await?;
        self.environment.release(&key.key).await;
        let Took { seconds, calls, memo_hits, input_tokens, output_tokens, usd } =
            Took { seconds: began.elapsed().as_secs_f64(), ..self.took(index) };
        let report = StageReport {
            stage: stage.name.clone(),
            rows: main_rows(stage, &manifest),
            rejects: manifest.outputs.get(crate::operator::REJECTS_OUTPUT).map_or(0, |table| table.rows),
            seconds,
            calls,
            memo_hits,
            input_tokens,
            output_tokens,
            usd,
            partitions: counters.partitions.load(Ordering::Relaxed),
        };
        Ok(Done { manifest: Arc::new(manifest), key, generation, report: Some(report), filled_by: None })
    }

    /// What a stage took so far, but for the time.
    fn took(&self, index: StageIndex) -> Took {
        took(&self.counters(index), self.plan.price(index, &self.environment.registry), 0.0)
    }

    /// Waits until no other run is at work on a stage. If this stage fails, the run keeps the lease to its end: until then answers
    /// may come that others would ask for again.
    async fn lease(&self, index: StageIndex, key: &str) -> Result<(), Failure> {
        let stage = &self.plan.stage(index).name;
        let mut told = None;
        let mut wait = |holder: &Holder| {
            if told.as_ref() != Some(&holder.name) {
                (self.tell)(Event::Waiting { stage: stage.clone(), holder: holder.name.clone() });
                told = Some(holder.name.clone());
            }
            // Two failed runs that wait for each other's leases would wait for ever.
            !self.has_failed.load(Ordering::Relaxed)
        };
        if self.environment.lease(key, &mut wait).await? {
            return Ok(());
        }
        let holder = told.unwrap_or_default();
        Err(Failure::external(format!("{holder} is at work on it, and this run has failed already: it doesn't wait"))
            .hint("mend what failed, and run again"))
    }

    /// Whether a pipeline file that is still there isn't this run's, and says something else.
    fn is_another(&self, file: &FilePath) -> bool {
        let own = &self.environment.file;
        let canonical = |path: &FilePath| std::fs::canonicalize(path).ok();
        let is_other = canonical(file).is_some_and(|file| canonical(own).is_some_and(|own| own != file));
        is_other && std::fs::read(file).ok() != std::fs::read(own).ok()
    }

    /// Writes the run's record, unless it would say nothing new, and its OpenLineage events. Once.
    async fn write_down(&self, interrupted: bool) -> Result<(), Failure> {
        let Some(closed) = self.journal.close(interrupted, |stage| self.took(stage)) else { return Ok(()) };
        let (plan, environment) = (self.plan, &self.environment);
        let digest = self.options.written.as_ref().map(|text| blake3::hash(text.as_bytes()).to_hex().to_string());
        if let Some(record) = closed.record(plan, environment, digest.as_deref()) {
            let content = serde_json::to_vec(&record).map_err(|error| Failure::bug(error.to_string()))?;
            let path = Path::from_iter(["runs", &plan.pipeline, &format!("{}.json", closed.run)]);
            environment.store.write(&path, content.into()).await?;
        }
        let events = openlineage::events(plan, environment, &closed, digest.as_deref()).await?;
        let path = Path::from_iter(["lineage", &plan.pipeline, &format!("{}.ndjson", closed.run)]);
        environment.store.write(&path, events.into()).await
    }
}

//! What running operators are given: [`RowStream`] and [`Task`] with their contexts.

use std::{
    any::{Any, TypeId},
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::execution::{SendableRecordBatchStream, runtime_env::RuntimeEnv};
use futures::stream::BoxStream;
use serde_json::Value;

use super::{gate::Gate, sources::SourceFile, table::Table, task::TaskOutputs};
use crate::{
    failure::Failure,
    operator::Registry,
    store::{BlobCache, Buckets, Holder, Lease, Store, Tombstone},
};

/// Rows for one of a stage's outputs.
#[derive(Debug, Clone)]
pub struct OutputRows {
    /// `default`, `rejects`, `removed`, ...
    pub output: &'static str,
    /// Rows with exactly that output's schema.
    pub rows: RecordBatch,
}

/// What a row transform gives.
pub type OutputStream = BoxStream<'static, Result<OutputRows, Failure>>;

/// A unary row transform. Its outputs are a pure function of the rows of one partition, in their order, and of the
/// context's settings; never of batch sizes, of concurrency or of time.
pub trait RowStream: Send + Sync {
    /// Starts one partition. Nothing happens until the stream is polled; dropping it cancels the work.
    fn start(&self, rows: SendableRecordBatchStream, context: StreamContext) -> OutputStream;
}

/// Work that sees whole tables, on the machine that runs the command.
#[async_trait]
pub trait Task: Send + Sync {
    /// Reads the inputs and writes every output through the context. What it wrote counts only when it returns `Ok`.
    async fn run(&self, context: &mut TaskContext) -> Result<(), Failure>;
}

/// Something live that a run's stages share (clients, memo), made on first use and closed at the end of the run.
#[async_trait]
pub trait Service: Any + Send + Sync {
    /// Makes durable what the rows emitted so far rely on. Called before every partition's record is written.
    async fn sync(&self) -> Result<(), Failure>;
    /// Learns what other runs have made durable since this one began. Called when a stage has its lease.
    async fn refresh(&self) -> Result<(), Failure> {
        Ok(())
    }
    /// Takes off the run's device what nobody uses at the moment. Called before a stage needs it for itself.
    async fn vacate(&self) {}
    /// Called once when the run ends, also when it failed.
    async fn close(&self) -> Result<(), Failure>;
}

/// What a run is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The store.
    pub store: Store,
    /// The pipeline file, from the root of the file system.
    pub file: PathBuf,
    /// The pipeline's name, under which it spends from its budget.
    pub pipeline: String,
    /// Dollars that the pipeline may spend, over all its runs on the store.
    pub budget: Option<f64>,
    /// How buckets are reached, those of sources included.
    pub buckets: Buckets,
    /// A local folder that outlives the run: memo logs, materialised blobs, what a training has reached.
    pub cache: PathBuf,
    /// Bytes of blobs that are kept there.
    pub cache_limit: u64,
    /// The operators.
    pub registry: Registry,
    /// The entries of `models:`, as written in the pipeline file, but for paths, which are absolute; secrets are references.
    pub models: BTreeMap<String, Value>,
    /// `auto`, `cpu`, `cuda:0`.
    pub device: String,
    /// Bytes that DataFusion may hold before it spills.
    pub memory: usize,
    /// Partitions that run at once.
    pub threads: usize,
    /// Whether rows that teachers' answers were rejected for are asked about anew (`--retry-rejects`).
    pub retry_rejects: bool,
    /// Bytes of content after which a part is cut; a file group of a source is half of it.
    pub part_bytes: u64,
}

/// The surroundings of a run, shared by its stages.
pub struct Environment {
    settings: Settings,
    pub(crate) runtime: Arc<RuntimeEnv>,
    pub(crate) slots: Arc<tokio::sync::Semaphore>,
    pub(crate) blobs: Arc<BlobCache>,
    services: Mutex<HashMap<TypeId, Arc<dyn Service>>>,
    /// Leases that this run holds, by name.
    leases: tokio::sync::Mutex<HashMap<String, Lease>>,
}

impl std::ops::Deref for Environment {
    type Target = Settings;

    fn deref(&self) -> &Settings {
        &self.settings
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Environment {
    /// Surroundings without services yet.
    ///
    /// # Errors
    /// When no place to spill to can be had.
    pub fn new(settings: Settings) -> Result<Self, Failure> {
        let runtime = super::session::runtime(&settings.store, settings.memory)?;
        let slots = Arc::new(tokio::sync::Semaphore::new(settings.threads.max(1)));
        let blobs = Arc::new(BlobCache::new(settings.cache.clone(), settings.cache_limit));
        Ok(Self { settings, runtime, slots, blobs, services: Mutex::default(), leases: tokio::sync::Mutex::default() })
    }

    /// The same surroundings for work that is only tried out: without services, and nothing on the store changes.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn rehearsal(&self) -> Result<Self, Failure> {
        Self::new(Settings { store: self.store.discarding(), ..self.settings.clone() })
    }

    /// What it was started with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The service of type `S`, made by `make` on first use.
    pub fn service<S: Service>(&self, make: impl FnOnce() -> S) -> Arc<S> {
        let mut services = self.services.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let service = services.entry(TypeId::of::<S>()).or_insert_with(|| Arc::new(make())).clone();
        let any: Arc<dyn Any + Send + Sync> = service;
        match any.downcast::<S>() {
            Ok(service) => service,
            Err(_) => unreachable!("services are filed under their own type"),
        }
    }

    fn all_services(&self) -> Vec<Arc<dyn Service>> {
        self.services.lock().unwrap_or_else(std::sync::PoisonError::into_inner).values().cloned().collect()
    }

    /// Makes durable what rows emitted so far rely on.
    ///
    /// # Errors
    /// The first service's failure.
    pub async fn sync(&self) -> Result<(), Failure> {
        for service in self.all_services() {
            service.sync().await?;
        }
        Ok(())
    }

    /// Has the services leave the run's device, which a stage needs for itself.
    pub async fn vacate(&self) {
        for service in self.all_services() {
            service.vacate().await;
        }
    }

    /// Takes a lease of the store ([`Store::lease`]) for as long as the run, or until it is released, and lets the services learn
    /// what its last holder made durable. Gives whether there is one.
    ///
    /// # Errors
    /// As [`Store::lease`], and the first service's failure.
    pub async fn lease(&self, name: &str, wait: impl FnMut(&Holder) -> bool + Send) -> Result<bool, Failure> {
        let Some(lease) = self.store.lease(name, &self.cache, wait).await? else { return Ok(false) };
        self.leases.lock().await.insert(name.to_owned(), lease);
        for service in self.all_services() {
            service.refresh().await?;
        }
        Ok(true)
    }

    /// Gives a lease back, if it is held.
    pub(crate) async fn release(&self, name: &str) {
        if let Some(lease) = self.leases.lock().await.remove(name)
            && let Err(failure) = lease.release().await
        {
            // What it was for is done.
            tracing::warn!(%failure, name, "a lease isn't given back: others wait until it expires");
        }
    }

    /// Closes the services, and then gives back what leases are held: those who wait for them find what was made durable.
    ///
    /// # Errors
    /// The first failure; the other services are closed all the same.
    pub async fn close(&self) -> Result<(), Failure> {
        let mut result = Ok(());
        for service in self.all_services() {
            result = result.and(service.close().await);
        }
        let held: Vec<String> = self.leases.lock().await.keys().cloned().collect();
        for name in held {
            self.release(&name).await;
        }
        result
    }
}

/// Live counters of a running stage.
#[derive(Debug, Default)]
pub struct Counters {
    /// Rows written to `default`.
    pub rows: AtomicU64,
    /// Rows written to `rejects`.
    pub rejects: AtomicU64,
    /// Partitions done, and of how many.
    pub partitions_done: AtomicU64,
    /// How many partitions the stage has.
    pub partitions: AtomicU64,
    /// Units of work done.
    pub done: AtomicU64,
    /// How many there are: rows that arrive, or what a task says. 0 where nobody knows.
    pub of: AtomicU64,
    /// Units of work that a row that arrives makes; 0 stands for 1.
    pub units_per_row: AtomicU64,
    /// Calls that a teacher answered.
    pub calls: AtomicU64,
    /// Answers found in the memo.
    pub memo_hits: AtomicU64,
    /// Tokens sent.
    pub input_tokens: AtomicU64,
    /// Tokens received.
    pub output_tokens: AtomicU64,
    /// What a task says of itself (`step 120 of 2,344, loss 2.31`).
    pub message: Mutex<String>,
    /// What was spent on each document, where a run asks for that.
    by_document: Option<Mutex<BTreeMap<String, Spent>>>,
}

/// What a teacher was asked and said, remembered answers included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Requests.
    pub requests: u64,
    /// Their tokens.
    pub input_tokens: u64,
    /// Tokens of the answers.
    pub output_tokens: u64,
}

impl Counters {
    /// Counters that also keep what is spent on each document.
    pub(crate) fn by_document() -> Self {
        Self { by_document: Some(Mutex::default()), ..Self::default() }
    }

    /// Counts what was spent on a document.
    pub fn spend(&self, document: &str, spent: Spent) {
        let Some(by_document) = &self.by_document else { return };
        let mut by_document = by_document.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let sum = by_document.entry(document.to_owned()).or_default();
        sum.requests += spent.requests;
        sum.input_tokens += spent.input_tokens;
        sum.output_tokens += spent.output_tokens;
    }

    /// What was spent on each document; empty if nobody asked for it.
    pub fn spent(&self) -> BTreeMap<String, Spent> {
        let lock = |sums: &Mutex<BTreeMap<_, _>>| sums.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        self.by_document.as_ref().map(lock).unwrap_or_default()
    }

    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Says how many units of work are done, of how many.
    pub fn progress(&self, done: u64, of: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.of.store(of, Ordering::Relaxed);
    }

    /// Says what is being done.
    pub fn say(&self, message: impl Into<String>) {
        *self.message.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = message.into();
    }
}

/// What a row transform works with.
#[derive(Clone)]
pub struct StreamContext {
    /// The stage's seed.
    pub seed: u64,
    /// The stage's `refresh`, as JSON text.
    pub refresh: Option<String>,
    /// Surroundings of the run.
    pub environment: Arc<Environment>,
    /// Live counters of the stage.
    pub counters: Arc<Counters>,
    pub(crate) files: Arc<BTreeMap<String, String>>,
    pub(crate) forgotten: Arc<[Tombstone]>,
    pub(crate) blobs: Arc<BTreeMap<String, Table>>,
    pub(crate) schemas: Arc<BTreeMap<String, SchemaRef>>,
    pub(crate) units: Arc<AtomicU64>,
    pub(crate) gate: Option<Arc<Gate>>,
}

impl StreamContext {
    /// The schema of an output.
    ///
    /// # Errors
    /// A bug, if the operator didn't name the output at bind.
    pub fn schema(&self, output: &str) -> Result<SchemaRef, Failure> {
        self.schemas.get(output).cloned().ok_or_else(|| Failure::bug(format!("no output `{output}` was bound")))
    }

    /// The content of a file that the config names in `field`, as it was when the stage's key was made.
    ///
    /// # Errors
    /// When it has changed since, or can't be read.
    pub fn file(&self, field: &str, path: &Path) -> Result<Vec<u8>, Failure> {
        named_file(&self.files, field, path)
    }

    /// The whole content of the blob called `name` at `port`.
    ///
    /// # Errors
    /// When nothing arrives at the port, it has no such blob, or the store fails.
    pub async fn blob(&self, port: &str, name: &str) -> Result<Bytes, Failure> {
        let table = self.blobs.get(port).ok_or_else(|| Failure::bug(format!("nothing arrives at port `{port}`")))?;
        table.blob(name).await
    }

    /// Opens a file of the source, in the state in which it was listed.
    ///
    /// # Errors
    /// When the file has changed since, is gone, or its store fails.
    pub async fn open(&self, file: &SourceFile) -> Result<Bytes, Failure> {
        file.read(&self.environment.buckets).await
    }

    /// Opens a file of the source as [`Self::open`] does, in pieces of some MiB.
    ///
    /// What was made of the pieces counts only when the stream has ended without an error: a file that changes meanwhile may
    /// show that at its end.
    pub fn open_stream(&self, file: &SourceFile) -> BoxStream<'static, Result<Bytes, Failure>> {
        file.stream(&self.environment.buckets)
    }

    /// `doc_id`s of documents in a file of the source that are forgotten: no output may hold anything of them.
    pub fn forgotten(&self, file: &SourceFile) -> Vec<String> {
        let of_file = self.forgotten.iter().filter(|tombstone| tombstone.is_in(&file.source));
        of_file.map(|tombstone| tombstone.doc_id.clone()).collect()
    }

    /// Counts units of work (requests, documents) for `min_yield`. A transform that never calls this has its input rows
    /// counted.
    pub fn count_units(&self, n: u64) {
        self.units.fetch_add(n, Ordering::Relaxed);
        Counters::add(&self.counters.done, n);
        if let Some(gate) = &self.gate {
            gate.count(n);
        }
    }
}

/// What a task works with.
pub struct TaskContext {
    /// The stage's seed.
    pub seed: u64,
    /// The stage's `refresh`, as JSON text.
    pub refresh: Option<String>,
    /// Surroundings of the run.
    pub environment: Arc<Environment>,
    /// Live counters of the stage.
    pub counters: Arc<Counters>,
    pub(crate) files: BTreeMap<String, String>,
    pub(crate) source: Vec<SourceFile>,
    pub(crate) inputs: BTreeMap<String, Vec<Table>>,
    pub(crate) outputs: TaskOutputs,
    pub(crate) scratch: tempfile::TempDir,
    pub(crate) progress: PathBuf,
}

impl TaskContext {
    /// The content of a file that the config names in `field`, as it was when the stage's key was made.
    ///
    /// # Errors
    /// When it has changed since, or can't be read.
    pub fn file(&self, field: &str, path: &Path) -> Result<Vec<u8>, Failure> {
        named_file(&self.files, field, path)
    }

    /// The files of the source, in the state in which they were listed; sorted by path.
    pub fn source(&self) -> &[SourceFile] {
        &self.source
    }

    /// Opens a file of the source, in the state in which it was listed.
    ///
    /// # Errors
    /// When the file has changed since, is gone, or its store fails.
    pub async fn open(&self, file: &SourceFile) -> Result<Bytes, Failure> {
        file.read(&self.environment.buckets).await
    }

    /// Opens some bytes of a file of the source, without looking at the rest.
    ///
    /// # Errors
    /// As [`Self::open`], and when the file ends before.
    pub async fn open_range(&self, file: &SourceFile, range: Range<u64>) -> Result<Bytes, Failure> {
        file.range(range, &self.environment.buckets).await
    }

    /// The tables at `port`, in the order of its list; empty for an optional port that nothing arrives at.
    pub fn tables(&self, port: &str) -> &[Table] {
        self.inputs.get(port).map_or(&[], Vec::as_slice)
    }

    /// The table at `port`.
    ///
    /// # Errors
    /// A bug, if nothing arrives there.
    pub fn table(&self, port: &str) -> Result<&Table, Failure> {
        self.tables(port).first().ok_or_else(|| Failure::bug(format!("nothing arrives at port `{port}`")))
    }

    /// Runs a query over the ports, named as in [`crate::operator::Query`]. Spills; the order is the query's.
    ///
    /// # Errors
    /// When the query can't be planned; a failure while it runs comes out of the stream.
    pub async fn query(&self, sql: &str) -> Result<SendableRecordBatchStream, Failure> {
        super::table::query(&self.environment, &self.inputs, sql).await
    }

    /// The schema of an output.
    ///
    /// # Errors
    /// A bug, if the operator didn't name the output at bind.
    pub fn schema(&self, output: &str) -> Result<SchemaRef, Failure> {
        self.outputs.schema(output)
    }

    /// Appends rows to an output. Their order is the caller's and becomes the parts' order: make it a function of content.
    ///
    /// # Errors
    /// When the rows don't have the output's schema, or the store fails.
    pub async fn write(&mut self, output: &str, rows: RecordBatch) -> Result<(), Failure> {
        self.outputs.write(output, rows).await
    }

    /// Adds the files of a local folder as blobs `name/...` of an output and gives the folder's digest: blake3 over the
    /// sorted names and contents, hex.
    ///
    /// # Errors
    /// When the file can't be read or the store fails.
    pub async fn put_folder(&mut self, output: &str, name: &str, folder: &Path) -> Result<String, Failure> {
        self.outputs.put_folder(output, name, folder).await
    }

    /// Adds a file of the source as `name` to what an output points to: it stays where it is.
    pub fn refer(&mut self, output: &str, name: &str, file: &SourceFile) {
        self.outputs.refer(output, name, file);
    }

    /// Counts units of work for `min_yield`. A task that never calls this isn't judged by it.
    pub fn count_units(&mut self, n: u64) {
        self.outputs.units += n;
    }

    /// Says what the task computes on (`cpu`, `cuda:0`), which then stands in the artifact.
    pub fn computed_on(&mut self, device: impl std::fmt::Display) {
        self.outputs.device = Some(device.to_string());
    }

    /// An empty local folder, removed after the task.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// A local folder, which may not exist yet, for what the task has reached. It belongs to this filling of the stage's key on
    /// this machine, outlives a process that is killed, and is removed when the stage is committed. Two runs may be at the same
    /// stage at once. A task that locks a file there keeps `gc` away.
    pub fn progress(&self) -> &Path {
        &self.progress
    }
}

fn named_file(files: &BTreeMap<String, String>, field: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let content = std::fs::read(path)
        .map_err(|error| Failure::data(format!("`{}` (field `{field}`) can't be read: {error}", path.display())))?;
    if files.get(field).is_some_and(|digest| blake3::hash(&content).to_hex().as_str() == digest) {
        return Ok(content);
    }
    Err(Failure::external(format!("`{}` (field `{field}`) changed while the stage ran", path.display()))
        .hint("run again: what it holds now makes another stage of it"))
}

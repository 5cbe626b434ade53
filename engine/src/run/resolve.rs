//! Whether a stage has to run: its key, what the store has for it, and why not.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
};

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::sync::OnceCell;

use super::{
    context::Environment,
    reason::{Difference, FileChange, Reason, Subject, differ},
    reference,
    sources::{self, SourceFile},
};
use crate::{
    failure::Failure,
    key,
    operator::{Lowering, REJECTS_OUTPUT, Registry, Resource},
    plan::{Plan, Stage, StageIndex},
    store::{Action, Committed, FORMAT, Manifest, Tombstone},
};

/// The key of a stage whose inputs are known.
#[derive(Debug, Clone)]
pub struct StageKey {
    /// 64 hex digits: blake3 of the preimage.
    pub key: String,
    /// Everything that decides what the stage gives.
    pub preimage: Value,
    /// Hash of the preimage without its inputs: what partitions of artifacts over changing inputs share.
    pub(crate) step: String,
    /// What a source would read.
    pub(crate) files: Vec<SourceFile>,
    /// Documents of those files that are forgotten.
    pub(crate) forgotten: Vec<Tombstone>,
}

/// What the store has for a stage.
#[derive(Debug, Clone)]
pub enum Status {
    /// The artifact is there and whole.
    Hit {
        /// The stage's key.
        key: StageKey,
        /// Which filling of it.
        generation: u64,
        /// The artifact.
        manifest: Arc<Manifest>,
        /// The run that made it.
        filled_by: Option<String>,
    },
    /// The stage has to run.
    Run {
        /// The stage's key.
        key: StageKey,
        /// Which filling of the key this will be.
        generation: u64,
        /// Why: never empty.
        reasons: Vec<Reason>,
        /// What the stage took when it last ran, whatever it read then.
        last: Option<LastTime>,
    },
    /// It depends on what comes out of these stages, which run first.
    Unknown {
        /// Names of the stages.
        after: Vec<String>,
    },
}

/// What a stage took when it last ran.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LastTime {
    /// Wall time.
    pub seconds: f64,
    /// Calls that a teacher answered.
    pub calls: u64,
}

impl LastTime {
    fn of(action: &Action) -> Option<Self> {
        Some(Self { seconds: action.usage["seconds"].as_f64()?, calls: action.usage["calls"].as_u64()? })
    }
}

/// Finds out what a plan's stages need, one stage at a time.
pub struct Resolver<'a> {
    plan: &'a Plan,
    environment: &'a Environment,
    forced: HashSet<StageIndex>,
    verify: bool,
    previous: OnceCell<LastRun>,
    /// What each source was found to hold: a run reads the files of one listing.
    listed: tokio::sync::Mutex<HashMap<StageIndex, Vec<SourceFile>>>,
    /// The store's tombstones: a run goes by those that were there at first.
    forgotten: OnceCell<Vec<Tombstone>>,
}

impl<'a> Resolver<'a> {
    /// A resolver for `plan`; the stages in `forced` run whatever the store has.
    pub fn new(plan: &'a Plan, environment: &'a Environment, forced: HashSet<StageIndex>) -> Self {
        let (previous, listed) = (OnceCell::new(), tokio::sync::Mutex::default());
        Self { plan, environment, forced, verify: false, previous, listed, forgotten: OnceCell::new() }
    }

    /// Reads every file of an artifact before it counts as one.
    pub fn verifying(self, verify: bool) -> Self {
        Self { verify, ..self }
    }

    /// The key of a stage, given the artifacts of those that it reads.
    ///
    /// # Errors
    /// When a file that the stage names can't be read or a source can't be listed.
    pub async fn key(&self, index: StageIndex, upstream: &HashMap<StageIndex, Arc<Manifest>>) -> Result<StageKey, Failure> {
        let stage = self.plan.stage(index);
        let mut preimage = step_preimage(stage, self.plan, self.environment)?;
        let step = key::key("step", &Value::Object(preimage.clone()));
        let files = match stage.operator.source() {
            Some(source) => {
                let mut listed = self.listed.lock().await;
                match listed.get(&index) {
                    Some(files) => files.clone(),
                    None => {
                        let environment = self.environment;
                        let files = sources::list(&source, &self.plan.folder, &environment.cache, &environment.buckets).await?;
                        listed.insert(index, files.clone());
                        files
                    }
                }
            }
            None => Vec::new(),
        };
        let mut inputs: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for ((port, _), (above, output)) in self.plan.reads(index) {
            let table = upstream.get(&above).and_then(|manifest| manifest.outputs.get(output));
            let table = table.ok_or_else(|| {
                Failure::bug(format!("no output `{output}` in the artifact of `{}`", self.plan.stage(above).name))
            })?;
            inputs.entry(port).or_default().push(&table.digest);
        }
        preimage.insert("inputs".into(), json!(inputs));
        preimage.insert("source".into(), files.iter().map(SourceFile::identity).collect::<Vec<_>>().into());
        let forgotten = self.forgotten(&files).await?;
        if !forgotten.is_empty() {
            preimage.insert("forgotten".into(), forgotten.iter().map(Tombstone::identity).collect());
        }
        let preimage = Value::Object(preimage);
        Ok(StageKey { key: key::key("stage", &preimage), preimage, step, files, forgotten })
    }

    /// The tombstones of documents that may be in these files.
    async fn forgotten(&self, files: &[SourceFile]) -> Result<Vec<Tombstone>, Failure> {
        if files.is_empty() {
            return Ok(Vec::new());
        }
        let read = || async {
            let found = self.environment.store.forgotten().await?;
            Ok::<_, Failure>(found.into_iter().map(|forgotten| forgotten.tombstone).collect())
        };
        let all = self.forgotten.get_or_try_init(read).await?;
        Ok(all.iter().filter(|tombstone| files.iter().any(|file| tombstone.is_in(&file.source))).cloned().collect())
    }

    /// What the store has for a stage.
    ///
    /// # Errors
    /// As [`Self::key`], and when the store fails.
    pub async fn status(&self, index: StageIndex, upstream: &HashMap<StageIndex, Arc<Manifest>>) -> Result<Status, Failure> {
        let waits: Vec<String> = self
            .plan
            .reads(index)
            .into_values()
            .filter(|(above, _)| !upstream.contains_key(above))
            .map(|(above, _)| self.plan.stage(above).name.clone())
            .collect();
        if !waits.is_empty() {
            let mut after = waits;
            after.sort();
            after.dedup();
            return Ok(Status::Unknown { after });
        }
        let key = self.key(index, upstream).await?;
        let store = &self.environment.store;
        let (generation, reasons, last) = match store.latest_action(&key.key).await? {
            None => {
                let (reasons, last) = self.changes(index, &key).await?;
                (0, reasons, last)
            }
            Some(Committed { generation, action, is_damaged }) => {
                let last = action.as_ref().and_then(LastTime::of);
                let filled_by = action.as_ref().and_then(|action| Some(action.filled_by["run"].as_str()?.to_owned()));
                let manifest = match &action {
                    Some(action) => store.manifest(&action.manifest).await?,
                    None => None,
                };
                let missing = match &manifest {
                    _ if is_damaged => Some("a file of the artifact doesn't hold what was written there".into()),
                    Some(manifest) => self.fault(manifest).await?,
                    None => Some("the artifact's manifest can't be read".into()),
                };
                let rejects = self.rejects_to_retry(index, manifest.as_ref());
                match (missing, manifest) {
                    (None, Some(_)) if rejects > 0 => (generation + 1, vec![Reason::RetryRejects { rows: rejects }], last),
                    (None, Some(manifest)) if !self.forced.contains(&index) => {
                        let manifest = Arc::new(reference::relocated(manifest, &key.files));
                        return Ok(Status::Hit { key, generation, manifest, filled_by });
                    }
                    (None, _) => (generation + 1, vec![Reason::Forced], last),
                    (Some(what), _) => (generation + 1, vec![Reason::Missing { what }], last),
                }
            }
        };
        Ok(Status::Run { key, generation, reasons, last })
    }

    /// How many rejected rows of an artifact are to be asked about anew.
    fn rejects_to_retry(&self, index: StageIndex, manifest: Option<&Manifest>) -> u64 {
        let asks = self.plan.stage(index).operator.resource() == Resource::Teacher;
        let rejects = manifest.and_then(|manifest| manifest.outputs.get(REJECTS_OUTPUT));
        rejects.filter(|_| asks && self.environment.retry_rejects).map_or(0, |rejects| rejects.rows)
    }

    /// What is wrong with an artifact's files, if anything is.
    async fn fault(&self, manifest: &Manifest) -> Result<Option<String>, Failure> {
        let store = &self.environment.store;
        let missing = store.missing_file(manifest).await?;
        if missing.is_some() || !self.verify {
            return Ok(missing);
        }
        let damaged = store.damaged_file(manifest).await?;
        Ok(damaged.map(|path| format!("`{path}` doesn't hold what was written there")))
    }

    /// What changed since this pipeline's stage of the same name last ran or was found, the first difference first, and what
    /// it took then.
    async fn changes(&self, index: StageIndex, key: &StageKey) -> Result<(Vec<Reason>, Option<LastTime>), Failure> {
        let name = &self.plan.stage(index).name;
        let previous = self.previous.get_or_try_init(|| last_run(self.environment, &self.plan.pipeline)).await?;
        let Some(before) = previous.keys.get(name) else { return Ok((vec![Reason::FirstRun], None)) };
        let action = self.environment.store.latest_action(before).await?.and_then(|committed| committed.action);
        let Some(action) = action else { return Ok((vec![Reason::NotOnStore], None)) };
        let last = LastTime::of(&action);
        let arrivals: Vec<Arrival> = self
            .plan
            .reads(index)
            .into_iter()
            .map(|((port, position), (above, output))| {
                let stage = self.plan.stage(above).name.clone();
                Arrival { port: port.to_owned(), position, stage, output: output.to_owned() }
            })
            .collect();
        let found = differences(&action.preimage, &key.preimage, &self.environment.registry, &arrivals);
        if found.is_empty() {
            return Ok((vec![Reason::NotOnStore], last));
        }
        Ok((found.into_iter().map(Reason::Changed).collect(), last))
    }
}

/// An output that arrives at a port of a stage.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub(super) port: String,
    /// The place in the port's list.
    pub(super) position: usize,
    pub(super) stage: String,
    pub(super) output: String,
}

/// What differs between two preimages of a stage's keys, the first difference first. `arrivals` is what the second one reads.
pub(super) fn differences(old: &Value, new: &Value, registry: &Registry, arrivals: &[Arrival]) -> Vec<Difference> {
    let mut differences = Vec::new();
    for member in MEMBERS {
        let subject = |path: &[&str]| subject(registry, member, path, &old[member]);
        differ(&old[member], &new[member], &subject, &mut differences);
    }
    source_changes(&old["source"], &new["source"], &mut differences);
    forgotten_changes(&old["forgotten"], &new["forgotten"], &mut differences);
    for Arrival { port, position, stage, output } in arrivals {
        if old["inputs"][port.as_str()][position] != new["inputs"][port.as_str()][position] {
            let (port, stage, output) = (port.clone(), stage.clone(), output.clone());
            differences.push(Difference::of(Subject::Input { port, stage, output }));
        }
    }
    for (port, before) in old["inputs"].as_object().into_iter().flatten() {
        let count = |inputs: &Value| inputs.as_array().map_or(0, Vec::len);
        let (before, after) = (count(before), count(&new["inputs"][port.as_str()]));
        if after < before {
            let subject = Subject::Inputs { port: port.clone() };
            differences.push(Difference { subject, old: before.into(), new: after.into() });
        }
    }
    differences
}

/// What a member of a preimage is about, at a path within it.
fn subject(registry: &Registry, member: &str, path: &[&str], old: &Value) -> Subject {
    let (first, rest) = path.split_first().map_or(("", String::new()), |(first, rest)| (*first, rest.join(".")));
    match member {
        "operator" => Subject::Operator { is_known: registry.operator(old.as_str().unwrap_or_default()).is_some() },
        "version" => Subject::Version,
        "columns" => Subject::Columns,
        "files" => Subject::File { field: first.to_owned() },
        "models" => Subject::Model { field: first.to_owned(), part: rest },
        "names" => Subject::Names,
        "seed" => Subject::Seed,
        "refresh" => Subject::Refresh,
        "engine" => Subject::Engine,
        "format" => Subject::Format,
        _ => Subject::Field { field: path.join(".") },
    }
}

/// Stages whose artifacts are looked for at once.
const LOOKED_UP_AT_ONCE: usize = 32;

/// What of a preimage can differ beside sources and inputs, what a person changes first.
const MEMBERS: [&str; 11] =
    ["operator", "version", "config", "columns", "files", "models", "names", "seed", "refresh", "engine", "format"];

fn source_changes(before: &Value, after: &Value, differences: &mut Vec<Difference>) {
    let listing = |files: &Value| -> BTreeMap<String, Value> {
        let files = files.as_array().cloned().unwrap_or_default();
        files.into_iter().filter_map(|file| Some((file[0].as_str()?.to_owned(), file))).collect()
    };
    let (old, new) = (listing(before), listing(after));
    let added: Vec<&String> = new.keys().filter(|path| !old.contains_key(*path)).collect();
    let removed: Vec<&String> = old.keys().filter(|path| !new.contains_key(*path)).collect();
    let changed: Vec<&String> = new.keys().filter(|path| old.get(*path).is_some_and(|file| *file != new[*path])).collect();
    for (files, change) in [(added, FileChange::Added), (removed, FileChange::Removed), (changed, FileChange::Changed)] {
        if let Some(first) = files.first() {
            let subject = Subject::Files { change, count: files.len(), first: first.to_string() };
            differences.push(Difference::of(subject));
        }
    }
}

fn forgotten_changes(before: &Value, after: &Value, differences: &mut Vec<Difference>) {
    let listing = |documents: &Value| documents.as_array().cloned().unwrap_or_default();
    let (old, new) = (listing(before), listing(after));
    let added = new.iter().filter(|document| !old.contains(document));
    let removed = old.iter().filter(|document| !new.contains(document));
    for (documents, change) in
        [(added.collect::<Vec<_>>(), FileChange::Added), (removed.collect::<Vec<_>>(), FileChange::Removed)]
    {
        if let Some(first) = documents.first() {
            let first = first[0].as_str().unwrap_or_default().to_owned();
            differences.push(Difference::of(Subject::Forgotten { change, count: documents.len(), first }));
        }
    }
}

/// All of a stage key's preimage but the inputs.
fn step_preimage(stage: &Stage, plan: &Plan, environment: &Environment) -> Result<Map<String, Value>, Failure> {
    let mut config = stage.config.as_object().cloned().unwrap_or_default();
    for (field, _) in stage.operator_type.unkeyed {
        config.remove(*field);
    }
    let mut files = Map::new();
    for (field, path) in stage.operator.files() {
        config.remove(field);
        let content = std::fs::read(&path)
            .map_err(|error| Failure::data(format!("`{}` (field `{field}`) can't be read: {error}", path.display())))?;
        files.insert(field.into(), blake3::hash(&content).to_hex().to_string().into());
    }
    let mut models = Map::new();
    for (field, name) in stage.operator.models() {
        config.remove(field);
        let entry = plan.models.get(&name).ok_or_else(|| Failure::bug(format!("no model `{name}`")))?;
        models.insert(field.into(), (environment.registry.model_identity)(entry, &environment.cache)?);
    }
    let names = stage.operator_type.gathers.then(|| {
        let ports = stage.inputs.ports.iter();
        ports
            .map(|(port, inputs)| (port.clone(), inputs.iter().map(|input| &input.name).collect::<Vec<_>>()))
            .collect::<BTreeMap<_, _>>()
    });
    let relational = matches!(stage.operator.lower(&stage.inputs), Lowering::Rows { query: Some(_), .. });
    let mut preimage = Map::new();
    preimage.insert("format".into(), FORMAT.into());
    preimage.insert("operator".into(), stage.operator_type.name.into());
    preimage.insert("version".into(), stage.operator_type.version.into());
    preimage.insert("config".into(), config.into());
    preimage.insert("files".into(), files.into());
    // The rows of every file follow from the first one's columns: another first file is another step.
    if let Some(columns) = &stage.inputs.source {
        let columns = columns.fields().iter().map(|field| json!([field.name(), field.data_type().to_string()]));
        preimage.insert("columns".into(), columns.collect());
    }
    preimage.insert("models".into(), models.into());
    preimage.insert("names".into(), json!(names));
    preimage.insert("seed".into(), if stage.operator.draws() { stage.seed.into() } else { Value::Null });
    preimage.insert("refresh".into(), stage.refresh.clone().unwrap_or_default());
    // Which rows a hash partition holds is DataFusion's business, and not promised across its versions.
    preimage.insert("engine".into(), if relational { datafusion::DATAFUSION_VERSION.into() } else { Value::Null });
    Ok(preimage)
}

/// What the record of a run says that later ones ask about.
#[derive(Debug, Default)]
pub(crate) struct LastRun {
    /// Stage keys, by name.
    pub(crate) keys: BTreeMap<String, String>,
    /// The pipeline file, on the machine that it ran on.
    pub(crate) file: Option<PathBuf>,
    /// Whether a stage failed, or somebody stopped it.
    pub(crate) ended_early: bool,
}

/// The pipeline's last run that has a record.
pub(crate) async fn last_run(environment: &Environment, pipeline: &str) -> Result<LastRun, Failure> {
    let store = &environment.store;
    let found = store.list(&Path::from_iter(["runs", pipeline])).await?;
    // By the store's clock: those of machines may be hours apart.
    let is_record = |path: &Path| path.as_ref().ends_with(".json");
    let found = found.into_iter().filter(|meta| is_record(&meta.location));
    let mut runs: Vec<_> = found.map(|meta| (meta.last_modified, meta.location)).collect();
    runs.sort();
    // One that can't be read says nothing: the one before it is the last that does.
    while let Some((_, run)) = runs.pop() {
        let record = store.read(&run).await?.and_then(|content| serde_json::from_slice::<Value>(&content).ok());
        let Some(record) = record else { continue };
        if let Some(stages) = record["stages"].as_object() {
            let key = |(name, stage): (&String, &Value)| Some((name.clone(), stage["key"].as_str()?.to_owned()));
            let file = record["file"].as_str().map(PathBuf::from);
            let has_failed = record["failures"].as_object().is_some_and(|failures| !failures.is_empty());
            let ended_early = has_failed || record["result"] == "interrupted";
            return Ok(LastRun { keys: stages.iter().filter_map(key).collect(), file, ended_early });
        }
    }
    Ok(LastRun::default())
}

/// The status of every stage in `wanted`, as far as it can be known without running anything.
///
/// # Errors
/// As [`Resolver::status`].
pub async fn why(
    plan: &Plan,
    environment: &Environment,
    wanted: &HashSet<StageIndex>,
    forced: HashSet<StageIndex>,
) -> Result<Vec<(StageIndex, Status)>, Failure> {
    let resolver = Resolver::new(plan, environment, forced);
    let mut artifacts = HashMap::new();
    let mut statuses: BTreeMap<usize, (StageIndex, Status)> = BTreeMap::new();
    let mut waiting: Vec<(usize, StageIndex)> =
        plan.stages().map(|(index, _)| index).filter(|index| wanted.contains(index)).enumerate().collect();
    while !waiting.is_empty() {
        // Stages that don't read each other are looked up at once: a store's answers take their time.
        let open: HashSet<StageIndex> = waiting.iter().map(|(_, index)| *index).collect();
        let is_ready = |index: StageIndex| !plan.reads(index).values().any(|(above, _)| open.contains(above));
        let (ready, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(_, index)| is_ready(*index));
        let found: Vec<_> = futures::stream::iter(ready)
            .map(|(place, index)| {
                let status = resolver.status(index, &artifacts);
                async move { Ok::<_, Failure>((place, index, status.await?)) }
            })
            .buffer_unordered(LOOKED_UP_AT_ONCE)
            .try_collect()
            .await?;
        for (place, index, status) in found {
            if let Status::Hit { manifest, .. } = &status {
                artifacts.insert(index, manifest.clone());
            }
            statuses.insert(place, (index, status));
        }
        waiting = rest;
    }
    Ok(statuses.into_values().collect())
}

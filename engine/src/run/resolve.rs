//! Whether a stage has to run: its key, what the store has for it, and why not.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::Arc,
};

use object_store::path::Path;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::sync::OnceCell;

use super::{
    context::Environment,
    sources::{self, SourceFile},
};
use crate::{
    failure::Failure,
    key,
    operator::{Lowering, REJECTS_OUTPUT, Resource},
    plan::{Plan, Stage, StageIndex},
    store::{Action, Committed, FORMAT, Manifest},
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

/// Why a stage has to run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    /// No run of this pipeline has had a stage of this name.
    FirstRun,
    /// Something that decides what the stage gives has changed.
    Changed(Difference),
    /// Nothing has changed, but the artifact isn't whole any more.
    Missing {
        /// What is wrong with it.
        what: String,
    },
    /// Nothing has changed, but what an earlier run made of it isn't on this store.
    NotOnStore,
    /// `--force`.
    Forced,
    /// `--retry-rejects`, and the stage has rejected rows.
    RetryRejects {
        /// How many.
        rows: u64,
    },
}

/// A difference between what decided the stage's output last time and what does now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// What changed: a config field, an input by its port and the stage it comes from, a file.
    pub what: String,
    /// The value of last time.
    pub old: Value,
    /// The value now.
    pub new: Value,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstRun => f.write_str("first run"),
            Self::Changed(difference) => difference.fmt(f),
            Self::Missing { what } => f.write_str(what),
            Self::NotOnStore => f.write_str("an earlier run's artifact isn't on this store"),
            Self::Forced => f.write_str("`--force`"),
            Self::RetryRejects { rows } => write!(f, "`--retry-rejects`, and {rows} rows are rejected"),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.old, &self.new) {
            (Value::Null, Value::Null) => f.write_str(&self.what),
            (old, new) => write!(f, "{}: {} -> {}", self.what, short(old), short(new)),
        }
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Finds out what a plan's stages need, one stage at a time.
pub struct Resolver<'a> {
    plan: &'a Plan,
    environment: &'a Environment,
    forced: HashSet<StageIndex>,
    verify: bool,
    previous: OnceCell<BTreeMap<String, String>>,
    /// What each source was found to hold: a run reads the files of one listing.
    listed: tokio::sync::Mutex<HashMap<StageIndex, Vec<SourceFile>>>,
}

impl<'a> Resolver<'a> {
    /// A resolver for `plan`; the stages in `forced` run whatever the store has.
    pub fn new(plan: &'a Plan, environment: &'a Environment, forced: HashSet<StageIndex>) -> Self {
        let (previous, listed) = (OnceCell::new(), tokio::sync::Mutex::default());
        Self { plan, environment, forced, verify: false, previous, listed }
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
        let preimage = Value::Object(preimage);
        Ok(StageKey { key: key::key("stage", &preimage), preimage, step, files })
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
                        return Ok(Status::Hit { key, generation, manifest: Arc::new(manifest) });
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
        let Some(before) = previous.get(name) else { return Ok((vec![Reason::FirstRun], None)) };
        let action = self.environment.store.latest_action(before).await?.and_then(|committed| committed.action);
        let Some(action) = action else { return Ok((vec![Reason::NotOnStore], None)) };
        let (preimage, last) = (&action.preimage, LastTime::of(&action));
        let mut differences = Vec::new();
        for field in
            ["operator", "version", "config", "columns", "files", "models", "names", "seed", "refresh", "engine", "format"]
        {
            differ(field, &preimage[field], &key.preimage[field], &mut differences);
        }
        self.source_changes(&preimage["source"], key, &mut differences);
        let (old, new) = (&preimage["inputs"], &key.preimage["inputs"]);
        for ((port, position), (above, output)) in self.plan.reads(index) {
            let from = format!("{}.{output}", self.plan.stage(above).name);
            if old[port][position] != new[port][position] {
                let what = format!("input `{port}` changed (`{}`)", from.trim_end_matches(".default"));
                differences.push(Difference { what, old: Value::Null, new: Value::Null });
            }
        }
        if differences.is_empty() {
            return Ok((vec![Reason::NotOnStore], last));
        }
        Ok((differences.into_iter().map(Reason::Changed).collect(), last))
    }

    fn source_changes(&self, before: &Value, key: &StageKey, differences: &mut Vec<Difference>) {
        let listing = |files: &Value| -> BTreeMap<String, Value> {
            let files = files.as_array().cloned().unwrap_or_default();
            files.into_iter().filter_map(|file| Some((file[0].as_str()?.to_owned(), file))).collect()
        };
        let (old, new) = (listing(before), listing(&key.preimage["source"]));
        let say = |what: String, differences: &mut Vec<Difference>| {
            differences.push(Difference { what, old: Value::Null, new: Value::Null });
        };
        let named = |files: &[&String]| match files {
            [only] => format!("`{only}`"),
            [first, rest @ ..] => format!("`{first}` and {} more", rest.len()),
            [] => String::new(),
        };
        let added: Vec<&String> = new.keys().filter(|path| !old.contains_key(*path)).collect();
        let removed: Vec<&String> = old.keys().filter(|path| !new.contains_key(*path)).collect();
        let changed: Vec<&String> = new.keys().filter(|path| old.get(*path).is_some_and(|file| *file != new[*path])).collect();
        for (files, word) in [(added, "added"), (removed, "removed"), (changed, "changed")] {
            if !files.is_empty() {
                say(format!("files {word}: {}", named(&files)), differences);
            }
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
        models.insert(field.into(), (environment.registry.model_identity)(entry));
    }
    let names = stage.operator.gathers().then(|| {
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

fn differ(what: &str, old: &Value, new: &Value, differences: &mut Vec<Difference>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let fields: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for field in fields {
                let name = if what == "config" { format!("`{field}`") } else { format!("{what} `{field}`") };
                differ(&name, old.get(field).unwrap_or(&Value::Null), new.get(field).unwrap_or(&Value::Null), differences);
            }
        }
        (old, new) if old != new => {
            differences.push(Difference { what: what.to_owned(), old: old.clone(), new: new.clone() });
        }
        _ => {}
    }
}

/// The stage keys of the pipeline's last run that has a record.
pub(crate) async fn last_run(environment: &Environment, pipeline: &str) -> Result<BTreeMap<String, String>, Failure> {
    let store = &environment.store;
    let found = store.list(&Path::from_iter(["runs", pipeline])).await?;
    // Run ids begin with the time.
    let mut runs: Vec<Path> = found.into_iter().map(|meta| meta.location).collect();
    runs.sort();
    // One that can't be read says nothing: the one before it is the last that does.
    while let Some(run) = runs.pop() {
        let record = store.read(&run).await?.and_then(|content| serde_json::from_slice::<Value>(&content).ok());
        if let Some(stages) = record.as_ref().and_then(|record| record["stages"].as_object()) {
            let key = |stage: &Value| stage["key"].as_str().map(str::to_owned);
            return Ok(stages.iter().filter_map(|(name, stage)| Some((name.clone(), key(stage)?))).collect());
        }
    }
    Ok(BTreeMap::new())
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
    let mut statuses = Vec::new();
    for (index, _) in plan.stages().filter(|(index, _)| wanted.contains(index)) {
        let status = resolver.status(index, &artifacts).await?;
        if let Status::Hit { manifest, .. } = &status {
            artifacts.insert(index, manifest.clone());
        }
        statuses.push((index, status));
    }
    Ok(statuses)
}

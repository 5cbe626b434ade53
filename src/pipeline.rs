//! Loading a pipeline file and opening its store.

use std::{collections::HashSet, path::Path, process::ExitCode, sync::Arc};

use ingrain_engine::{
    diagnostic::{Diagnostics, Source, nearest, quoted},
    failure::Failure,
    operator::{Cell, DEFAULT_OUTPUT, Output},
    plan::{Plan, SourceColumns, StageIndex},
    run::{Environment, Settings, Status, Table, default_memory, source_columns, why},
    spec::{self, Reference, Size, Spec},
    store::{Buckets, Store},
};
use ingrain_operators::REGISTRY;

use crate::{
    End, WRONG,
    call::{FileCall, RunCall, StoreCall, cores},
    progress,
};

/// A checked pipeline.
pub(crate) struct Pipeline {
    pub(crate) plan: Plan,
    pub(crate) spec: Spec,
    buckets: Buckets,
    sources: SourceColumns,
    /// The file, as it was named in the call and as it was read.
    source: Source,
    /// Whose budget it spends from: the pipeline's, also where only a sample of it runs.
    spends_as: String,
}

impl Pipeline {
    /// Reads and checks a file; prints every mistake.
    pub(crate) async fn load(call: &FileCall) -> Result<Self, End> {
        Self::load_with(call, None).await
    }

    /// As [`Self::load`], with another budget than the file's.
    pub(crate) async fn load_with(call: &FileCall, budget: Option<f64>) -> Result<Self, End> {
        let name = call.file.display().to_string();
        let text = std::fs::read(&call.file).map_err(|error| {
            Failure::data(format!("`{name}` can't be read: {error}")).hint("`ingrain init` writes a file to start from")
        })?;
        let text = String::from_utf8(text).map_err(|error| {
            Failure::data(format!("`{name}` isn't UTF-8 from byte {}", error.utf8_error().valid_up_to())).hint("save it as UTF-8")
        })?;
        let source = Source { name, text: text.into() };
        let mut overrides = Vec::new();
        for set in &call.set {
            let (name, value) = set
                .split_once('=')
                .ok_or_else(|| Failure::data(format!("`--set {set}` has no value")).hint("write `--set vars.name=value`"))?;
            overrides.push((name.to_owned(), value.to_owned()));
        }
        let (mut spec, mut wrong) = spec::parse(&source, &REGISTRY, &overrides, &|name| std::env::var(name).ok());
        let folder = call.file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        let mut loaded = None;
        if let Some(spec) = &mut spec {
            spec.budget = budget.or(spec.budget);
            let buckets = match Buckets::new(spec.buckets.clone()) {
                Ok(buckets) => buckets,
                Err(failure) if wrong.is_empty() => return Err(failure.into()),
                Err(_) => Buckets::default(),
            };
            let sources = source_columns(spec, &folder, &cache()?, &buckets).await;
            let (plan, more) = Plan::compile(spec, &REGISTRY, folder, &sources);
            wrong.extend(more);
            if wrong.is_empty() {
                let (source, spends_as) = (source.clone(), spec.pipeline.clone());
                loaded = plan.map(|plan| Self { plan, spec: spec.clone(), buckets, sources, source, spends_as });
            }
        }
        match loaded {
            Some(pipeline) if wrong.is_empty() => Ok(pipeline),
            _ => {
                progress::tell_diagnostics(&Diagnostics::new(source, wrong));
                Err(End::Told(ExitCode::from(WRONG)))
            }
        }
    }

    /// The same file with other stages.
    pub(crate) fn with(&self, spec: Spec) -> Result<Self, Failure> {
        let (plan, wrong) = Plan::compile(&spec, &REGISTRY, self.plan.folder.clone(), &self.sources);
        let said = || wrong.iter().map(|diagnostic| diagnostic.message.clone()).collect::<Vec<_>>().join("; ");
        let plan = plan.ok_or_else(|| Failure::bug(format!("the changed pipeline has mistakes: {}", said())))?;
        let (buckets, sources) = (self.buckets.clone(), self.sources.clone());
        Ok(Self { plan, spec, buckets, sources, source: self.source.clone(), spends_as: self.spends_as.clone() })
    }

    /// The stages that `written` means: a stage of the file, or of one with a matrix all cells, or those that fit
    /// (`mixture[arm=mixed]`).
    pub(crate) fn stages(&self, written: &str) -> Result<Vec<StageIndex>, Failure> {
        let reference = Reference::parse(written).filter(|reference| reference.output == DEFAULT_OUTPUT);
        let (base, cell) = reference.map_or((written.to_owned(), Cell::default()), |found| (found.stage, found.cell));
        self.cells(&base, &cell)
    }

    fn cells(&self, base: &str, cell: &Cell) -> Result<Vec<StageIndex>, Failure> {
        let found = self.plan.cells(base, cell);
        if !found.is_empty() {
            return Ok(found);
        }
        let all = self.plan.cells(base, &Cell::default());
        if all.is_empty() {
            let mut names: Vec<&str> = self.spec.stages.iter().map(|stage| stage.base.as_str()).collect();
            names.dedup();
            let help = match nearest(base, names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the stages are {}", quoted(names)),
            };
            return Err(Failure::data(format!("no stage is called `{base}`")).hint(help));
        }
        let names: Vec<&str> = all.iter().take(8).map(|index| self.plan.stage(*index).name.as_str()).collect();
        let more = if all.len() > names.len() { format!(" and {} more", all.len() - names.len()) } else { String::new() };
        Err(Failure::data(format!("`{base}` has no cell `{cell}`")).hint(format!("there are {}{more}", quoted(names))))
    }

    /// The one stage that `written` means.
    pub(crate) fn stage(&self, written: &str) -> Result<StageIndex, Failure> {
        match self.stages(written)?.as_slice() {
            [only] => Ok(*only),
            several => Err(self.several(written, several)),
        }
    }

    fn several(&self, written: &str, cells: &[StageIndex]) -> Failure {
        let first = cells.first().map_or("", |index| &self.plan.stage(*index).name);
        Failure::data(format!("`{written}` is {} cells of a matrix", cells.len())).hint(format!("name one of them: `{first}`"))
    }

    /// Every stage.
    pub(crate) fn all(&self) -> HashSet<StageIndex> {
        self.plan.stages().map(|(index, _)| index).collect()
    }

    /// The output that `STAGE[.OUTPUT]` means, of every stage that it means.
    pub(crate) fn outputs(&self, written: &str) -> Result<Vec<(StageIndex, &Output)>, Failure> {
        let reference = Reference::parse(written);
        let (base, cell, name) = match &reference {
            Some(found) => (found.stage.as_str(), found.cell.clone(), found.output.as_str()),
            None => (written, Cell::default(), DEFAULT_OUTPUT),
        };
        let output = |index: StageIndex| {
            let stage = self.plan.stage(index);
            let output = stage.output(name).ok_or_else(|| {
                let names: Vec<String> = stage.outputs.iter().map(|output| format!("`{}.{}`", stage.name, output.name)).collect();
                Failure::data(format!("`{}` has no output `{name}`", stage.name)).hint(format!("it has {}", names.join(", ")))
            })?;
            Ok((index, output))
        };
        self.cells(base, &cell)?.into_iter().map(output).collect()
    }

    /// The one output that `STAGE[.OUTPUT]` means, with its stage.
    pub(crate) fn output(&self, written: &str) -> Result<(StageIndex, &Output), Failure> {
        let found = self.outputs(written)?;
        match found.as_slice() {
            [only] => Ok(*only),
            _ => Err(self.several(written, &found.iter().map(|(index, _)| *index).collect::<Vec<_>>())),
        }
    }

    /// Checks that there is a store to look at.
    pub(crate) fn store_is_there(&self, environment: &Environment) -> Result<(), Failure> {
        if environment.store.is_there() {
            return Ok(());
        }
        Err(Failure::data(format!("there is no store at `{}`", environment.store.location()))
            .hint(format!("`ingrain run {}` makes one; `--store` names another", self.source.name)))
    }

    /// The table of an output, as the pipeline stands now.
    pub(crate) async fn table(
        &self,
        environment: &Arc<Environment>,
        index: StageIndex,
        output: &Output,
    ) -> Result<Table, Failure> {
        self.store_is_there(environment)?;
        let statuses = why(&self.plan, environment, &self.plan.needed_by(index), HashSet::new()).await?;
        let status = statuses.into_iter().find(|(found, _)| *found == index).map(|(_, status)| status);
        let Some(Status::Hit { manifest, .. }) = status else {
            let name = &self.plan.stage(index).name;
            return Err(Failure::data(format!("`{name}` hasn't run as it stands now"))
                .hint(format!("run it: `ingrain run {} --until {name}`", self.source.name)));
        };
        let table = manifest.outputs.get(&output.name).ok_or_else(|| Failure::bug("an artifact without a bound output"))?;
        Ok(Table::new(environment, output.schema.clone(), table.clone()))
    }

    /// The file, as it was named in the call.
    pub(crate) fn file(&self) -> &str {
        &self.source.name
    }

    /// What it said when it was read.
    pub(crate) fn written(&self) -> Arc<str> {
        self.source.text.clone()
    }

    /// Whether the file says something else by now than it did when it was read.
    pub(crate) fn has_changed(&self) -> bool {
        std::fs::read(&self.source.name).is_ok_and(|now| now != self.source.text.as_bytes())
    }

    /// The columns of its sources that are tables.
    pub(crate) fn sources(&self) -> &SourceColumns {
        &self.sources
    }

    /// How the buckets of the pipeline are reached.
    pub(crate) fn buckets(&self) -> &Buckets {
        &self.buckets
    }

    /// Opens the store for looking at what is there: nothing is written, and a store that isn't there is an empty one.
    pub(crate) async fn open(&self, call: &StoreCall) -> Result<Arc<Environment>, Failure> {
        let store = Store::existing(&self.location(call.store.as_deref()), &self.buckets).await?;
        self.environment(call, store, "auto", cores(), default_memory(), false)
    }

    /// Opens the store for a run.
    pub(crate) async fn open_for(&self, call: &RunCall) -> Result<Arc<Environment>, Failure> {
        let memory = match &call.memory {
            Some(text) => {
                // `4GiB` is how memory is written elsewhere.
                let bytes = text.strip_suffix('B').unwrap_or(text);
                let size: Size = serde_json::from_value(bytes.into())
                    .map_err(|error| Failure::data(format!("`--memory {text}`: {error}")).hint("write bytes as in `4Gi`"))?;
                usize::try_from(size.0).unwrap_or(usize::MAX)
            }
            None => default_memory(),
        };
        let store = Store::open(&self.location(call.store.store.as_deref()), &self.buckets).await?;
        let threads = call.threads.unwrap_or_else(cores);
        self.environment(&call.store, store, &call.device, threads, memory, call.retry_rejects)
    }

    /// Where the store is: as the call says, else as the file says, else beside the file.
    pub(crate) fn location(&self, given: Option<&str>) -> String {
        let beside = |path: &str| self.plan.folder.join(path).to_string_lossy().into_owned();
        match (given, &self.spec.store) {
            (Some(given), _) => given.to_owned(),
            (None, Some(written)) if written.contains("://") => written.clone(),
            (None, Some(written)) => beside(written),
            (None, None) => beside(".ingrain"),
        }
    }

    fn environment(
        &self,
        call: &StoreCall,
        store: Store,
        device: &str,
        threads: usize,
        memory: usize,
        retry_rejects: bool,
    ) -> Result<Arc<Environment>, Failure> {
        let settings = Settings {
            store,
            buckets: self.buckets.clone(),
            cache: cache()?,
            cache_limit: cache_limit()?,
            registry: REGISTRY,
            file: std::path::absolute(&self.source.name).map_err(Failure::from)?,
            pipeline: self.spends_as.clone(),
            budget: self.spec.budget,
            models: self.plan.models.clone(),
            device: device.to_owned(),
            memory,
            threads,
            retry_rejects,
            part_bytes: call.part_bytes.max(1),
        };
        Ok(Arc::new(Environment::new(settings)?))
    }
}

/// Bytes of blobs that the cache folder keeps where nobody says otherwise.
const CACHE_LIMIT: u64 = 64 << 30;

fn cache_limit() -> Result<u64, Failure> {
    let Some(text) = std::env::var("INGRAIN_CACHE_LIMIT").ok().filter(|text| !text.is_empty()) else { return Ok(CACHE_LIMIT) };
    let size: Size = serde_json::from_value(text.clone().into())
        .map_err(|error| Failure::data(format!("`INGRAIN_CACHE_LIMIT={text}`: {error}")).hint("write bytes as in `64Gi`"))?;
    Ok(size.0)
}

/// The folder for what this machine keeps between runs.
pub(crate) fn cache() -> Result<std::path::PathBuf, Failure> {
    let under = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(std::path::PathBuf::from);
    let folder = under("INGRAIN_CACHE")
        .or_else(|| under("XDG_CACHE_HOME").map(|folder| folder.join("ingrain")))
        .or_else(|| under("HOME").map(|folder| folder.join(".cache").join("ingrain")))
        .unwrap_or_else(|| std::env::temp_dir().join("ingrain"));
    std::fs::create_dir_all(&folder).map_err(|error| {
        Failure::external(format!("the cache folder `{}` can't be made: {error}", folder.display())).hint("set `INGRAIN_CACHE`")
    })?;
    Ok(folder)
}

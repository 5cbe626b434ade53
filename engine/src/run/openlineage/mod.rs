//! A run as OpenLineage events, an event a line: what began and ended, what was read and made, and which columns came from which.
//!
//! The run is a job `<pipeline>`, and each try at a stage a run of its own of the job `<pipeline>.<stage>`, whose parent it is.
//! Jobs and artifacts lie in the store's namespace, an artifact's tables under `<pipeline>.<stage>.<output>`; sources in that of
//! their file system or bucket, under the path that the pipeline file names.
//!
//! Column lineage says what is sure. Rows that pass through a stage keep the values of its input's columns. Of new rows,
//! `parent_id` and `doc_id` are those of the row that they are made of, `row_id` is a hash over its id. A user's query is followed
//! through its plan. Of all else only the columns are named that the operator reads.

mod columns;
mod event;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path as FilePath,
};

use arrow::datatypes::SchemaRef;
use chrono::{DateTime, Utc};

use self::event::{
    Cache, ColumnLineage, DataSource, DatasetFacets, ErrorMessage, EventType, Facet, InputDataset, InputFacets, InputField,
    InputFields, InputStatistics, Job, JobFacets, JobName, JobType, Name, OutputDataset, OutputFacets, OutputStatistics, Parent,
    Pipeline, ProcessingEngine, RunEvent, RunFacets, RunId, Schema, SchemaField, Sql, Transformation, Usage, Version,
};
use super::{
    context::Environment,
    history::{Ending, Took},
    journal::{Attempt, Closed, End},
    sources,
};
use crate::{
    failure::Failure,
    operator::{Lowering, Output, Port, Ports, REJECTS_OUTPUT, Role},
    plan::{Plan, Stage, StageIndex},
    store::{Manifest, TableManifest},
};

/// The events of a run, as lines of JSON.
///
/// # Errors
/// A bug, if an event can't be written as JSON.
pub(super) async fn events(
    plan: &Plan,
    environment: &Environment,
    closed: &Closed,
    file_digest: Option<&str>,
) -> Result<Vec<u8>, Failure> {
    let writer = Writer { plan, closed, namespace: namespace(environment) };
    let mut lines = Vec::new();
    let mut write = |event: RunEvent| -> Result<(), Failure> {
        serde_json::to_writer(&mut lines, &event).map_err(|error| Failure::bug(error.to_string()))?;
        lines.push(b'\n');
        Ok(())
    };
    let file = environment.file.display().to_string();
    let pipeline = |result: Option<Ending>| Pipeline {
        file: file.clone(),
        file_digest: file_digest.map(str::to_owned),
        datafusion_version: datafusion::DATAFUSION_VERSION,
        result: result.map(Ending::word),
    };
    let run = |facets: RunFacets| event::Run { run_id: closed.run.to_string(), facets };
    let engine = || Some(ProcessingEngine::this());
    let facets = RunFacets { processing_engine: engine(), ingrain_pipeline: Some(pipeline(None).into()), ..RunFacets::default() };
    write(RunEvent::new(EventType::Start, closed.started, run(facets), writer.job()))?;

    let mut begun = BTreeSet::new();
    for place in &closed.moments {
        let attempt = &closed.attempts[*place];
        let is_begin = begun.insert(*place);
        match (&attempt.ended, is_begin) {
            (_, true) => write(writer.began(attempt))?,
            (Some((at, end)), false) => write(writer.ended(attempt, *at, end).await)?,
            (None, false) => {}
        }
    }
    for attempt in closed.attempts.iter().filter(|attempt| attempt.ended.is_none()) {
        write(writer.aborted(attempt))?;
    }

    let mut facets = RunFacets {
        processing_engine: engine(),
        ingrain_pipeline: Some(pipeline(Some(closed.ending)).into()),
        ingrain_usage: Some(writer.usage().into()),
        ..RunFacets::default()
    };
    let how = match closed.ending {
        Ending::Done => EventType::Complete,
        Ending::Failed => EventType::Fail,
        Ending::Interrupted => EventType::Abort,
    };
    facets.error_message = writer.failures().map(error_message);
    write(RunEvent::new(how, closed.finished, run(facets), writer.job()))?;
    Ok(lines)
}

/// The store's place as a namespace: a URL without a user, a password or a query.
fn namespace(environment: &Environment) -> String {
    let location = environment.store.location();
    let Some((scheme, rest)) = location.split_once("://") else {
        let path = std::path::absolute(location).unwrap_or_else(|_| location.into());
        return format!("file://{}", tidy(&path));
    };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}/{path}").trim_end_matches('/').to_owned()
}

/// A path without `.` and, as far as they follow a name, `..`.
fn tidy(path: &FilePath) -> String {
    use std::path::Component::{CurDir, Normal, ParentDir};
    let mut tidied = std::path::PathBuf::new();
    for part in path.components() {
        match part {
            CurDir => {}
            ParentDir if matches!(tidied.components().next_back(), Some(Normal(_))) => {
                tidied.pop();
            }
            part => tidied.push(part),
        }
    }
    tidied.to_string_lossy().into_owned()
}

/// `text` as a part of a URI: whatever may not stand there is written as bytes in hex.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b'@' | b'=' | b'+' | b',' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn error_message(message: String) -> Facet<ErrorMessage> {
    ErrorMessage { message, programming_language: "RUST" }.into()
}

impl From<Took> for Usage {
    fn from(took: Took) -> Self {
        let Took { seconds, calls, memo_hits, input_tokens, output_tokens, usd } = took;
        Self { seconds, calls, memo_hits, input_tokens, output_tokens, usd }
    }
}

struct Writer<'a> {
    plan: &'a Plan,
    closed: &'a Closed,
    namespace: String,
}

/// A table that arrives at a stage, by its dataset's name.
struct Arriving<'a> {
    port: &'a str,
    name: Name,
    columns: Vec<&'a str>,
}

impl Writer<'_> {
    fn job(&self) -> Job {
        let facets = JobFacets { job_type: Some(JobType::of("PIPELINE")), ..JobFacets::default() };
        Job { namespace: self.namespace.clone(), name: self.plan.pipeline.clone(), facets }
    }

    fn stage_job(&self, stage: &Stage) -> Job {
        let mut facets = JobFacets { job_type: Some(JobType::of("STAGE")), ..JobFacets::default() };
        if let Lowering::Rows { query: Some(query), .. } = stage.operator.lower(&stage.inputs) {
            facets.sql = Some(Sql { query: query.sql, dialect: "datafusion" }.into());
        }
        Job { namespace: self.namespace.clone(), name: format!("{}.{}", self.plan.pipeline, stage.name), facets }
    }

    /// The run of a stage, with what it is a part of.
    fn stage_run(&self, attempt: &Attempt) -> event::Run {
        let parent = Parent {
            run: RunId { run_id: self.closed.run.to_string() },
            job: JobName { namespace: self.namespace.clone(), name: self.plan.pipeline.clone() },
        };
        let facets =
            RunFacets { parent: Some(parent.into()), processing_engine: Some(ProcessingEngine::this()), ..RunFacets::default() };
        event::Run { run_id: attempt.id.to_string(), facets }
    }

    fn began(&self, attempt: &Attempt) -> RunEvent {
        let job = self.stage_job(self.plan.stage(attempt.stage));
        RunEvent::new(EventType::Start, attempt.began, self.stage_run(attempt), job).reading(self.inputs(attempt, false))
    }

    fn aborted(&self, attempt: &Attempt) -> RunEvent {
        let job = self.stage_job(self.plan.stage(attempt.stage));
        let mut run = self.stage_run(attempt);
        run.facets.ingrain_usage = Some(Usage::from(attempt.took).into());
        RunEvent::new(EventType::Abort, self.closed.finished, run, job).reading(self.inputs(attempt, true))
    }

    async fn ended(&self, attempt: &Attempt, at: DateTime<Utc>, end: &End) -> RunEvent {
        let stage = self.plan.stage(attempt.stage);
        let mut run = self.stage_run(attempt);
        let ran_here = || Some(self.closed.run.to_string());
        let (how, made, filled_by) = match end {
            End::Ran(manifest) => (EventType::Complete, Some(manifest), ran_here()),
            End::Cached { manifest, filled_by } => (EventType::Complete, Some(manifest), filled_by.clone()),
            End::Failed(failure, manifest) => {
                run.facets.error_message = Some(error_message(failure.message.clone()));
                (EventType::Fail, manifest.as_ref(), None)
            }
        };
        let hit = matches!(end, End::Cached { .. });
        if !hit {
            run.facets.ingrain_usage = Some(Usage::from(attempt.took).into());
        }
        if let (Some((key, generation)), Some(_)) = (&attempt.key, made) {
            let cache = Cache { hit, stage_key: key.key.clone(), generation: *generation, filled_by };
            run.facets.ingrain_cache = Some(cache.into());
        }
        let outputs = match made {
            Some(manifest) => self.outputs(attempt.stage, manifest).await,
            None => Vec::new(),
        };
        RunEvent::new(how, at, run, self.stage_job(stage)).reading(self.inputs(attempt, true)).giving(outputs)
    }

    /// What the whole run took.
    fn usage(&self) -> Usage {
        let seconds = (self.closed.finished - self.closed.started).as_seconds_f64().max(0.0);
        let mut sum = Took { seconds, ..Took::default() };
        for attempt in self.closed.final_attempts().values() {
            let took = attempt.took;
            sum.calls += took.calls;
            sum.memo_hits += took.memo_hits;
            sum.input_tokens += took.input_tokens;
            sum.output_tokens += took.output_tokens;
            if let Some(usd) = took.usd {
                *sum.usd.get_or_insert(0.0) += usd;
            }
        }
        sum.into()
    }

    /// What went wrong, stage by stage.
    fn failures(&self) -> Option<String> {
        let mut said: Vec<String> = Vec::new();
        for (index, attempt) in self.closed.final_attempts() {
            if let Some((_, End::Failed(failure, _))) = &attempt.ended {
                said.push(format!("`{}`: {}", self.plan.stage(index).name, failure.message));
            }
        }
        said.sort();
        if said.is_empty() { None } else { Some(said.join("\n")) }
    }

    fn artifact(&self, index: StageIndex, output: &str) -> Name {
        let name = format!("{}.{}.{output}", self.plan.pipeline, self.plan.stage(index).name);
        Name { namespace: self.namespace.clone(), name }
    }

    /// What a try reads: tables of artifacts, and for a source the files under each path that it names; at the end with what was
    /// found there.
    fn inputs(&self, attempt: &Attempt, at_end: bool) -> Vec<InputDataset> {
        let mut inputs = self.source(attempt, at_end);
        let mut seen = BTreeSet::new();
        for (above, output) in self.plan.reads(attempt.stage).into_values() {
            let name = self.artifact(above, output);
            if !seen.insert(name.clone()) {
                continue;
            }
            let table = attempt.upstream.get(&above).and_then(|manifest| manifest.outputs.get(output));
            let version = table.map(|table| Version { dataset_version: table.digest.clone() }.into());
            let statistics = table.map(|table| {
                let (size, file_count) = files(table);
                InputStatistics { row_count: Some(table.rows), size, file_count }.into()
            });
            inputs.push(InputDataset {
                name,
                facets: DatasetFacets { version, ..DatasetFacets::default() },
                input_facets: InputFacets { statistics },
            });
        }
        inputs
    }

    fn source(&self, attempt: &Attempt, at_end: bool) -> Vec<InputDataset> {
        let stage = self.plan.stage(attempt.stage);
        let Some(source) = stage.operator.source() else { return Vec::new() };
        let read = attempt.key.as_ref().filter(|_| at_end).map(|(key, _)| key.files.as_slice());
        let dataset = |written: &String| {
            let name = source_name(written, &self.plan.folder);
            let uri = match name.namespace.as_str() {
                "file" => format!("file://{}", escaped(&name.name)),
                bucket => format!("{bucket}/{}", escaped(&name.name)),
            };
            let data_source = DataSource { name: name.namespace.clone(), uri };
            let found = read.map(|read| sources::under(read, &source, written, &self.plan.folder));
            let version = found.as_ref().map(|found| {
                let identities = found.iter().map(|file| file.identity()).collect::<Vec<_>>();
                Version { dataset_version: crate::key::key("source files", &identities.into()) }.into()
            });
            let statistics = found.map(|found| {
                let size = found.iter().map(|file| file.size).sum();
                InputStatistics { row_count: None, size, file_count: found.len() }.into()
            });
            let schema = stage.inputs.source.as_ref().map(|columns| {
                let fields = columns.fields().iter();
                schema(fields.map(|field| (field.name().clone(), field.data_type().to_string())))
            });
            InputDataset {
                name,
                facets: DatasetFacets { data_source: Some(data_source.into()), version, schema, ..DatasetFacets::default() },
                input_facets: InputFacets { statistics },
            }
        };
        source.paths.iter().map(dataset).collect()
    }

    async fn outputs(&self, index: StageIndex, manifest: &Manifest) -> Vec<OutputDataset> {
        let stage = self.plan.stage(index);
        let mut outputs = Vec::new();
        for output in &stage.outputs {
            let Some(table) = manifest.outputs.get(&output.name) else { continue };
            // Nearly every stage has no rejects: that needs no dataset.
            if output.name == REJECTS_OUTPUT && table.rows == 0 && !self.is_read(index, &output.name) {
                continue;
            }
            let (size, file_count) = files(table);
            let columns = table.columns.iter().map(|column| (column.name.clone(), column.r#type.clone()));
            let data_source = DataSource { name: self.namespace.clone(), uri: uri_of(&self.namespace) };
            let facets = DatasetFacets {
                data_source: Some(data_source.into()),
                version: Some(Version { dataset_version: table.digest.clone() }.into()),
                schema: Some(schema(columns)),
                column_lineage: self.column_lineage(index, output).await.map(Facet::from),
            };
            let statistics = OutputStatistics { row_count: table.rows, size, file_count };
            outputs.push(OutputDataset {
                name: self.artifact(index, &output.name),
                facets,
                output_facets: OutputFacets { statistics: Some(statistics.into()) },
            });
        }
        outputs
    }

    fn is_read(&self, index: StageIndex, output: &str) -> bool {
        let mut readers = self.plan.readers(index);
        readers.any(|reader| self.plan.reads(reader).values().any(|read| *read == (index, output)))
    }

    /// Where an output's columns come from; `None` for a source, whose files have none.
    async fn column_lineage(&self, index: StageIndex, output: &Output) -> Option<ColumnLineage> {
        let stage = self.plan.stage(index);
        if self.plan.reads(index).is_empty() {
            return None;
        }
        let arriving = self.arriving(index);
        if output.name != REJECTS_OUTPUT
            && stage.operator.ports() == Ports::Any
            && let Lowering::Rows { query: Some(query), .. } = stage.operator.lower(&stage.inputs)
            && let Some(lineage) = of_query(&query.sql, &stage.inputs.ports, &arriving).await
        {
            return Some(lineage);
        }
        let ports = match stage.operator.ports() {
            Ports::Named(ports) => ports,
            Ports::Any => Vec::new(),
        };
        let mut lineage = ColumnLineage::default();
        for field in output.schema.fields() {
            let from = origins(field.name(), output, &ports, &arriving);
            if !from.is_empty() {
                lineage.fields.insert(field.name().clone(), InputFields { input_fields: from });
            }
        }
        if output.name != REJECTS_OUTPUT {
            lineage.dataset = read_columns(&ports, &arriving);
        }
        if lineage == ColumnLineage::default() { None } else { Some(lineage) }
    }

    fn arriving(&self, index: StageIndex) -> Vec<Arriving<'_>> {
        let arriving = self.plan.reads(index).into_iter().map(|((port, _), (above, output))| {
            let columns = self.plan.stage(above).output(output).into_iter().flat_map(|output| output.schema.fields());
            let columns = columns.map(|field| field.name().as_str()).collect();
            Arriving { port, name: self.artifact(above, output), columns }
        });
        arriving.collect()
    }
}

/// The columns of the inputs that a column of an output is made of, where that is sure.
fn origins(column: &str, output: &Output, ports: &[Port], arriving: &[Arriving<'_>]) -> Vec<InputField> {
    let field = |arriving: &Arriving<'_>, field: &str, how: Transformation| InputField {
        name: arriving.name.clone(),
        field: field.to_owned(),
        transformations: vec![how],
    };
    let with = |port: &str, name: &str, how: Transformation| -> Vec<InputField> {
        let there = arriving.iter().filter(|table| table.port == port && table.columns.contains(&name));
        there.map(|table| field(table, name, how)).collect()
    };
    if !output.rows_of.is_empty() {
        return output.rows_of.iter().flat_map(|port| with(port, column, Transformation::IDENTITY)).collect();
    }
    // What a row is made of arrives at the first port, but for weights, whose parents aren't the rows that they are trained on.
    let of_parents = ports.iter().find(|port| !matches!(port.role, Role::Train | Role::Vocabulary));
    let Some(parents) = of_parents.map(|port| port.name) else { return Vec::new() };
    match column {
        "parent_id" => with(parents, "row_id", Transformation::IDENTITY),
        "row_id" if output.schema.column_with_name("parent_id").is_some() => with(parents, "row_id", Transformation::HASHED),
        "doc_id" => with(parents, "doc_id", Transformation::IDENTITY),
        _ => Vec::new(),
    }
}

/// The columns that an operator reads: those that its ports demand, or all where a port demands none but an id.
fn read_columns(ports: &[Port], arriving: &[Arriving<'_>]) -> Vec<InputField> {
    let mut found = BTreeMap::new();
    for table in arriving {
        let port = ports.iter().find(|port| port.name == table.port);
        let demanded: Vec<&str> = port.into_iter().flat_map(|port| port.columns.iter().map(|(name, _)| *name)).collect();
        let says_nothing = demanded.iter().all(|name| *name == "row_id");
        for column in table.columns.iter().filter(|column| says_nothing || demanded.contains(column)) {
            found.insert((table.name.clone(), *column), ());
        }
    }
    let field =
        |(name, field): (Name, &str)| InputField { name, field: field.to_owned(), transformations: vec![Transformation::READ] };
    found.into_keys().map(field).collect()
}

/// The column lineage of a user's query, if it can be followed.
async fn of_query(
    sql: &str,
    inputs: &BTreeMap<String, Vec<crate::operator::Input>>,
    arriving: &[Arriving<'_>],
) -> Option<ColumnLineage> {
    let tables: Vec<(&str, SchemaRef)> =
        inputs.iter().filter_map(|(port, tables)| Some((port.as_str(), tables.first()?.schema.clone()))).collect();
    let found = columns::origins(sql, &tables).await?;
    let field = |(table, field, how): columns::Origin| {
        let arriving = arriving.iter().find(|arriving| arriving.port == table)?;
        Some(InputField { name: arriving.name.clone(), field, transformations: vec![how] })
    };
    let fields = |origins: BTreeSet<columns::Origin>| -> Option<Vec<InputField>> { origins.into_iter().map(field).collect() };
    let mut lineage = ColumnLineage { dataset: fields(found.rows)?, ..ColumnLineage::default() };
    // A count, or a constant, comes from no column.
    for (column, from) in found.columns.into_iter().filter(|(_, from)| !from.is_empty()) {
        lineage.fields.insert(column, InputFields { input_fields: fields(from)? });
    }
    Some(lineage)
}

fn schema(columns: impl Iterator<Item = (String, String)>) -> Facet<Schema> {
    let field = |(place, (name, r#type)): (usize, (String, String))| SchemaField { name, r#type, ordinal_position: place + 1 };
    Schema { fields: columns.enumerate().map(field).collect() }.into()
}

/// Bytes and number of a table's files.
fn files(table: &TableManifest) -> (u64, usize) {
    let sizes = table.parts.iter().map(|part| part.bytes).chain(table.blobs.iter().map(|blob| blob.bytes));
    (sizes.fold(0, u64::saturating_add), table.parts.len() + table.blobs.len())
}

/// The dataset that a path of a source is.
fn source_name(written: &str, folder: &FilePath) -> Name {
    match written.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            Name { namespace: format!("{scheme}://{host}"), name: path.to_owned() }
        }
        None => {
            let path = folder.join(written);
            let path = std::path::absolute(&path).unwrap_or(path);
            Name { namespace: "file".to_owned(), name: tidy(&path) }
        }
    }
}

/// A namespace, which is a URL of any characters, as a URI.
fn uri_of(namespace: &str) -> String {
    match namespace.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{}", escaped(rest)),
        None => escaped(namespace),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_named_by_its_path() {
        let named = |written: &str| {
            let Name { namespace, name } = source_name(written, FilePath::new("/home/a/b"));
            (namespace, name)
        };
        assert_eq!(named("docs/./**/*.md"), ("file".into(), "/home/a/b/docs/**/*.md".into()));
        assert_eq!(named("../x.md"), ("file".into(), "/home/a/x.md".into()));
        assert_eq!(named("s3://bucket/docs/**/*.md"), ("s3://bucket".into(), "docs/**/*.md".into()));
        assert_eq!(named("s3://me:secret@bucket/a"), ("s3://bucket".into(), "a".into()));
    }

    #[test]
    fn a_uri_has_no_characters_that_it_may_not_have() {
        assert_eq!(uri_of("file:///a b/ä"), "file:///a%20b/%C3%A4");
        assert_eq!(escaped("/docs/**/*.{md,txt}"), "/docs/%2A%2A/%2A.%7Bmd,txt%7D");
    }
}

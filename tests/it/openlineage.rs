//! The events of runs: valid by the published schemas, paired, and saying what happened.

use std::{collections::BTreeMap, path::Path};

use jsonschema::{Registry, Resource, Validator};
use serde_json::{Value, json};

use crate::{
    cache::{document, walk},
    project::{Project, repository},
};

const PIPELINE: &str = r#"pipeline: notes
stages:
  documents: { op: read, path: "docs/*.md" }
  chunks: { op: chunk, from: documents, max_characters: 200 }
  unique: { op: dedup, from: chunks, column: text }
  counts: { op: sql, from: { rows: unique }, query: "select doc_id, count(*) as n from rows where length(text) > 9 group by doc_id", key: [doc_id] }
"#;

/// A stage that fails while it runs, and one that needs it.
const FAILING: &str = "  numbers: { op: sql, from: { rows: unique }, query: \"select row_id, cast(text as int) as n from rows\" }\n  \
                       after: { op: filter, from: numbers, where: \"n > 0\" }\n";

fn project() -> Project {
    let project = Project::new();
    for n in 0..3 {
        project.write(&format!("docs/{n}.md"), document(n));
    }
    project.write("pipeline.yaml", PIPELINE);
    project
}

/// The events of each run on a store, in the order of their ids, which is that of time.
pub(crate) fn events(store: &Path) -> Vec<Vec<Value>> {
    let files = walk(&store.join("lineage"));
    let lines = |file: &String| {
        assert!(file.ends_with(".ndjson"), "{file}");
        let text = std::fs::read_to_string(file).expect("read");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    files.iter().map(lines).collect()
}

/// The schemas under `tests/openlineage`, each by its id.
struct Schemas {
    registry: Registry<'static>,
    by_id: BTreeMap<String, Value>,
}

impl Schemas {
    fn load() -> Self {
        let mut registry = Registry::new();
        let mut by_id = BTreeMap::new();
        for file in walk(&repository().join("tests/openlineage")) {
            if !file.ends_with(".json") {
                continue;
            }
            let schema: Value = serde_json::from_slice(&std::fs::read(&file).expect("read")).expect("JSON");
            let id = schema["$id"].as_str().expect("an id").to_owned();
            registry = registry.add(&id, Resource::from_contents(schema.clone())).expect("a schema");
            by_id.insert(id, schema);
        }
        Self { registry: registry.prepare().expect("every reference is in this folder"), by_id }
    }

    fn validator(&self, schema: &Value) -> Validator {
        jsonschema::options()
            .with_registry(&self.registry)
            .should_validate_formats(true)
            .build(schema)
            .expect("a schema without references to elsewhere")
    }

    /// Checks a value against the definition that `url` points to.
    fn check(&self, value: &Value, url: &Value) {
        let url = url.as_str().expect("a URL");
        let id = url.split('#').next().unwrap_or_default();
        assert!(self.by_id.contains_key(id), "`{id}` isn't in tests/openlineage");
        let wrong: Vec<String> =
            self.validator(&json!({ "$ref": url })).iter_errors(value).map(|error| error.to_string()).collect();
        assert_eq!(wrong, Vec::<String>::new(), "by {url}: {value}");
    }

    /// Checks an event and all its facets.
    fn check_event(&self, event: &Value) {
        let core = &self.by_id["https://openlineage.io/spec/2-0-2/OpenLineage.json"];
        let wrong: Vec<String> = self.validator(core).iter_errors(event).map(|error| error.to_string()).collect();
        assert_eq!(wrong, Vec::<String>::new(), "{event}");
        self.check(event, &event["schemaURL"]);
        for facet in facets(event) {
            self.check(facet, &facet["_schemaURL"]);
        }
    }
}

fn facets(event: &Value) -> Vec<&Value> {
    let datasets = ["inputs", "outputs"].iter().flat_map(|side| event[side].as_array().into_iter().flatten());
    let of_datasets = datasets.flat_map(|dataset| [&dataset["facets"], &dataset["inputFacets"], &dataset["outputFacets"]]);
    let all = of_datasets.chain([&event["run"]["facets"], &event["job"]["facets"]]);
    all.flat_map(|facets| facets.as_object().into_iter().flat_map(|facets| facets.values())).collect()
}

/// Checks that each run has one START, and one end after it; gives the ends by the name of their job.
fn ends(events: &[Value]) -> BTreeMap<String, &Value> {
    let mut open: BTreeMap<String, &Value> = BTreeMap::new();
    let mut ended: BTreeMap<String, &Value> = BTreeMap::new();
    for event in events {
        let run = event["run"]["runId"].as_str().expect("an id").to_owned();
        match event["eventType"].as_str().expect("a type") {
            "START" => assert!(open.insert(run.clone(), event).is_none() && !ended.contains_key(&run), "{run} starts twice"),
            "COMPLETE" | "FAIL" | "ABORT" => {
                assert!(open.remove(&run).is_some(), "{run} ends without a START, or twice");
                ended.insert(run, event);
            }
            other => panic!("`{other}`"),
        }
    }
    assert!(open.is_empty(), "without an end: {open:?}");
    ended.into_values().map(|event| (event["job"]["name"].as_str().expect("a name").to_owned(), event)).collect()
}

fn dataset<'a>(event: &'a Value, side: &str, name: &str) -> &'a Value {
    let found = event[side].as_array().into_iter().flatten().find(|dataset| dataset["name"] == name);
    found.unwrap_or_else(|| panic!("no `{name}` in {}", event[side]))
}

/// The columns that a column of a dataset comes from, as `dataset.column subtype`.
fn from(dataset: &Value, column: &str) -> Vec<String> {
    let fields = dataset["facets"]["columnLineage"]["fields"][column]["inputFields"].as_array().into_iter().flatten();
    let said = |field: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let how = text(&field["transformations"][0]["subtype"]);
        format!("{}.{} {how}", text(&field["name"]), text(&field["field"]))
    };
    fields.map(said).collect()
}

#[test]
fn every_run_writes_valid_events_of_all_that_happened() {
    let project = project();
    project.ran(&[]);
    project.write("pipeline.yaml", format!("{PIPELINE}{FAILING}"));
    let failed = project.run(&[]);
    assert_eq!(failed.code, 1, "{}", failed.stderr);
    project.write("pipeline.yaml", PIPELINE);
    assert_eq!(project.ran(&[]).executed(), Vec::<&str>::new());
    let runs = events(&project.path(".ingrain"));
    assert_eq!(runs.len(), 3, "one that found everything writes events, too");
    let schemas = Schemas::load();
    for event in runs.iter().flatten() {
        schemas.check_event(event);
    }

    let done = ends(&runs[0]);
    let jobs: Vec<&str> = done.keys().map(String::as_str).collect();
    assert_eq!(jobs, ["notes", "notes.chunks", "notes.counts", "notes.documents", "notes.unique"]);
    assert!(done.values().all(|event| event["eventType"] == "COMPLETE"));
    let (run, pipeline) = (&done["notes"]["run"], &done["notes"]["run"]["facets"]["ingrain_pipeline"]);
    assert_eq!((&pipeline["result"], &pipeline["file"]), (&json!("done"), &json!(project.path("pipeline.yaml"))));
    assert_eq!(pipeline["fileDigest"], blake3::hash(PIPELINE.as_bytes()).to_hex().as_str());
    let chunks = done["notes.chunks"];
    assert_eq!(chunks["run"]["facets"]["parent"]["run"]["runId"], run["runId"]);
    assert_eq!(chunks["run"]["facets"]["ingrain_cache"]["hit"], false);
    assert_eq!(chunks["run"]["facets"]["ingrain_cache"]["filledBy"], run["runId"]);
    assert!(chunks["run"]["facets"]["ingrain_usage"]["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));

    let failing = ends(&runs[1]);
    assert_eq!(failing["notes"]["eventType"], "FAIL");
    assert_eq!(failing["notes.numbers"]["eventType"], "FAIL");
    let message = failing["notes.numbers"]["run"]["facets"]["errorMessage"]["message"].as_str().expect("a message");
    assert!(failed.stderr.contains(message), "`{message}` isn't in:\n{}", failed.stderr);
    assert!(!failing.contains_key("notes.after"), "a stage that needs a failed one never started");

    let cached = ends(&runs[2]);
    let cache = &cached["notes.chunks"]["run"]["facets"]["ingrain_cache"];
    assert_eq!((&cache["hit"], &cache["filledBy"], &cache["generation"]), (&json!(true), &run["runId"], &json!(0)));
    assert_ne!(cached["notes"]["run"]["runId"], run["runId"]);
    let output = |event: &Value| dataset(event, "outputs", "notes.chunks.default")["facets"].clone();
    assert_eq!(output(cached["notes.chunks"]), output(chunks), "what was found is what was made");
}

#[test]
fn datasets_say_where_they_lie_what_they_hold_and_what_they_are_made_of() {
    let project = project();
    let store = project.path(".ingrain");
    project.ran(&[]);
    let runs = events(&store);
    let done = ends(&runs[0]);

    let source = &done["notes.documents"]["inputs"][0];
    assert_eq!((&source["namespace"], &source["name"]), (&json!("file"), &json!(project.path("docs/*.md"))));
    assert_eq!(source["inputFacets"]["inputStatistics"]["fileCount"], 3);
    assert!(source["facets"]["version"]["datasetVersion"].is_string());
    let documents = dataset(done["notes.documents"], "outputs", "notes.documents.default");
    assert_eq!(documents["namespace"], format!("file://{}", store.display()));
    assert_eq!(documents["facets"]["version"]["datasetVersion"], project.digests(".ingrain", "notes")["documents"]["default"]);
    assert_eq!(documents["outputFacets"]["outputStatistics"]["rowCount"], 3);
    assert!(documents["facets"]["columnLineage"].is_null(), "files have no columns");
    let columns: Vec<&Value> =
        documents["facets"]["schema"]["fields"].as_array().expect("fields").iter().map(|field| &field["name"]).collect();
    assert_eq!(columns, ["row_id", "doc_id", "title", "text", "source", "metadata"]);

    let read = dataset(done["notes.chunks"], "inputs", "notes.documents.default");
    assert_eq!(read["facets"]["version"], documents["facets"]["version"]);
    assert_eq!(read["inputFacets"]["inputStatistics"]["rowCount"], 3);
    let chunks = dataset(done["notes.chunks"], "outputs", "notes.chunks.default");
    assert_eq!(from(chunks, "parent_id"), ["notes.documents.default.row_id IDENTITY"]);
    assert_eq!(from(chunks, "row_id"), ["notes.documents.default.row_id TRANSFORMATION"]);
    assert_eq!(from(chunks, "doc_id"), ["notes.documents.default.doc_id IDENTITY"]);
    let influences = chunks["facets"]["columnLineage"]["dataset"].as_array().expect("columns");
    assert!(influences.iter().any(|column| column["field"] == "text" && column["transformations"][0]["type"] == "INDIRECT"));

    let unique = dataset(done["notes.unique"], "outputs", "notes.unique.default");
    for column in ["row_id", "parent_id", "text", "byte_start"] {
        assert_eq!(from(unique, column), [format!("notes.chunks.default.{column} IDENTITY")]);
    }
    let removed = dataset(done["notes.unique"], "outputs", "notes.unique.removed");
    assert_eq!(from(removed, "text"), ["notes.chunks.default.text IDENTITY"]);
    assert_eq!(from(removed, "kept_id"), Vec::<String>::new());

    let counts = dataset(done["notes.counts"], "outputs", "notes.counts.default");
    assert_eq!(from(counts, "doc_id"), ["notes.unique.default.doc_id IDENTITY"]);
    assert_eq!(from(counts, "row_id"), ["notes.unique.default.doc_id TRANSFORMATION"]);
    let influences = counts["facets"]["columnLineage"]["dataset"].as_array().expect("columns");
    let said: Vec<String> = influences
        .iter()
        .map(|column| format!("{} {}", column["field"], column["transformations"][0]["subtype"]).replace('"', ""))
        .collect();
    assert_eq!(said, ["doc_id GROUP_BY", "text FILTER"]);
    assert!(
        done["notes.counts"]["job"]["facets"]["sql"]["query"].as_str().is_some_and(|query| query.contains("GROUP BY doc_id"))
    );
}

#[test]
fn a_source_that_matches_nothing_is_a_failed_run() {
    let project = project();
    project.write("pipeline.yaml", PIPELINE.replace("docs/*.md", "nothing/*.md"));
    assert_eq!(project.run(&[]).code, 1);
    let runs = events(&project.path(".ingrain"));
    let schemas = Schemas::load();
    runs[0].iter().for_each(|event| schemas.check_event(event));
    let ended = ends(&runs[0]);
    assert_eq!(ended.keys().collect::<Vec<_>>(), ["notes", "notes.documents"]);
    assert!(ended.values().all(|event| event["eventType"] == "FAIL"));
}

#[test]
fn events_go_with_the_records_of_their_runs() {
    let project = project();
    project.ran(&[]);
    project.ran(&[]);
    project.write("pipeline.yaml", PIPELINE.replace("200", "220"));
    project.ran(&[]);
    project.ran(&[]);
    assert_eq!(events(&project.path(".ingrain")).len(), 4);
    let collected = project.call(&["gc", "pipeline.yaml", "--keep", "1", "--grace", "0s"]);
    assert!(collected.status.success(), "{}", String::from_utf8_lossy(&collected.stderr));
    let left = events(&project.path(".ingrain"));
    assert_eq!(left.len(), 2, "the last run with a record, and the one after it");
    assert_eq!(project.ran(&[]).executed(), Vec::<&str>::new());
}

//! Every operator: `tests/operators/<op>.yaml` says what goes in and what must come out.

use std::collections::{BTreeMap, BTreeSet};

use ingrain_operators::REGISTRY;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::project::{Project, repository};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    /// Files beside the pipeline.
    files: BTreeMap<String, String>,
    /// The `stages:` of the pipeline, as YAML.
    stages: String,
    /// Rows by output; only the columns that are written here are compared, and order doesn't count.
    #[serde(default)]
    expect: BTreeMap<String, Vec<BTreeMap<String, Value>>>,
    /// A failure of a stage instead: what the message must hold.
    #[serde(default)]
    fails: Option<String>,
    /// A mistake that is found before anything runs: what the message must hold.
    #[serde(default)]
    refused: Option<String>,
}

/// What an operator made of the cases at a semantics version: digests of outputs by case and stage.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Golden {
    version: u32,
    outputs: BTreeMap<String, String>,
}

/// What is computed in floating point on whatever device there is, and what is read from that, isn't the same everywhere.
const COMPUTED: [&str; 2] = ["checkpoint", "train"];

/// Runs a case, and gives the digests of what came out by operator and stage, if anything was to.
fn check(case: &Case) -> Vec<(String, String, String)> {
    let project = Project::new();
    for (name, content) in &case.files {
        project.write(name, content);
    }
    let indented: String = case.stages.lines().map(|line| format!("  {line}\n")).collect();
    project.write(
        "pipeline.yaml",
        format!("pipeline: case\nseed: 7\nmodels: {{ offline: {{ offline: {{}} }} }}\nstages:\n{indented}"),
    );
    let said = project.run(&["--round-trip"]);
    for (message, code) in [(&case.refused, 2), (&case.fails, 1)] {
        let Some(message) = message else { continue };
        assert_eq!(said.code, code, "{}: was to fail with this code\n{}", case.name, said.stderr);
        assert!(said.stderr.contains(message.as_str()), "{}: `{message}` isn't in:\n{}", case.name, said.stderr);
        return Vec::new();
    }
    assert_eq!(said.code, 0, "{}: {}", case.name, said.stderr);
    for (output, expected) in &case.expect {
        let columns: BTreeSet<&String> = expected.iter().flat_map(BTreeMap::keys).collect();
        let of = |row: &Value| -> String {
            let cells: BTreeMap<&String, &Value> = columns.iter().map(|column| (*column, &row[column.as_str()])).collect();
            serde_json::to_string(&cells).expect("JSON")
        };
        let mut found: Vec<String> = project.rows(output, &[]).iter().map(of).collect();
        let mut wanted: Vec<String> = expected.iter().map(|row| of(&serde_json::json!(row))).collect();
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted, "{}: rows of `{output}`", case.name);
    }
    let stages: BTreeMap<String, Value> = serde_yaml::from_str(&case.stages).expect("stages");
    let digests = project.digests(".ingrain", "case");
    let same_everywhere = stages.iter().filter(|(name, _)| !is_computed(name, &stages));
    same_everywhere
        .map(|(name, stage)| {
            let is_cell =
                |stage: &str| stage == name || stage.strip_prefix(name.as_str()).is_some_and(|cell| cell.starts_with('['));
            let cells = digests.as_object().into_iter().flatten().filter(|(stage, _)| is_cell(stage));
            let of_cells: BTreeMap<&String, &Value> = cells.collect();
            let text = match of_cells.values().next() {
                Some(only) if of_cells.len() == 1 => only.to_string(),
                _ => serde_json::to_string(&of_cells).expect("JSON"),
            };
            let digest = blake3::hash(text.as_bytes()).to_hex().as_str()[..16].to_owned();
            (stage["op"].as_str().expect("an operator").to_owned(), name.clone(), digest)
        })
        .collect()
}

fn is_computed(name: &str, stages: &BTreeMap<String, Value>) -> bool {
    fn mentioned(from: &Value, names: &mut Vec<String>) {
        match from {
            Value::String(name) => names.push(name.split('.').next().unwrap_or(name).to_owned()),
            Value::Array(items) => items.iter().for_each(|item| mentioned(item, names)),
            Value::Object(ports) => ports.values().for_each(|port| mentioned(port, names)),
            _ => {}
        }
    }
    let Some(stage) = stages.get(name) else { return false };
    let mut above = Vec::new();
    mentioned(&stage["from"], &mut above);
    COMPUTED.iter().any(|operator| stage["op"] == *operator) || above.iter().any(|name| is_computed(name, stages))
}

/// An operator that gives other rows than before has another semantics version: else the store's hits would be wrong.
fn compare(found: BTreeMap<String, Golden>) {
    let path = repository().join("tests/golden.json");
    let written: BTreeMap<String, Golden> =
        std::fs::read(&path).ok().map(|content| serde_json::from_slice(&content).expect("golden outputs")).unwrap_or_default();
    for (operator, golden) in &found {
        let Some(before) = written.get(operator).filter(|before| before.version == golden.version) else { continue };
        for (case, digest) in &golden.outputs {
            let same = before.outputs.get(case).is_none_or(|before| before == digest);
            assert!(
                same,
                "`{operator}` gives other rows in \"{case}\" than version {} did: raise its version in `operators/src/lib.rs`, or mend \
                 it",
                golden.version
            );
        }
    }
    if found != written {
        let content = serde_json::to_string_pretty(&found).expect("JSON") + "\n";
        std::fs::write(&path, content).expect("written");
        panic!("cases or versions are new: `tests/golden.json` has been written anew, and is to be committed");
    }
}

#[test]
fn cases() {
    let mut covered = BTreeSet::new();
    let mut golden: BTreeMap<String, Golden> = BTreeMap::new();
    for entry in std::fs::read_dir(repository().join("tests/operators")).expect("cases") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a case file");
        let cases: Vec<Case> = serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(!cases.is_empty(), "{}: no case", path.display());
        covered.insert(path.file_stem().expect("a name").to_string_lossy().into_owned());
        for case in &cases {
            for (operator, stage, digest) in check(case) {
                let version = REGISTRY.operator(&operator).expect("an operator").version;
                let entry = golden.entry(operator).or_insert_with(|| Golden { version, ..Golden::default() });
                entry.outputs.insert(format!("{}: {stage}", case.name), digest);
            }
        }
    }
    compare(golden);
    let listed = Project::new().call(&["operators"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let operators: BTreeSet<String> =
        listed.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    assert_eq!(covered, operators, "every operator has a case file, and every case file an operator");
}

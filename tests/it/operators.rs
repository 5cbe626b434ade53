//! Every operator: `tests/operators/<op>.yaml` says what goes in and what must come out.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
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

fn check(case: &Case) {
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
        return;
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
}

#[test]
fn cases() {
    let mut covered = BTreeSet::new();
    for entry in std::fs::read_dir(repository().join("tests/operators")).expect("cases") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a case file");
        let cases: Vec<Case> = serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(!cases.is_empty(), "{}: no case", path.display());
        covered.insert(path.file_stem().expect("a name").to_string_lossy().into_owned());
        for case in &cases {
            check(case);
        }
    }
    let listed = Project::new().call(&["operators"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let operators: BTreeSet<String> =
        listed.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    assert_eq!(covered, operators, "every operator has a case file, and every case file an operator");
}

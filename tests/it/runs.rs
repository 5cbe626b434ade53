//! `runs`: what ran when, and how two runs differ.

use serde_json::{Value, json};

use crate::{cache::document, project::Project};

const PIPELINE: &str = "pipeline: notes\nstages:\n  documents: { op: read, path: \"docs/*.md\" }\n  \
                        chunks: { op: chunk, from: documents, max_characters: 200 }\n  \
                        unique: { op: dedup, from: chunks, column: text }\n";

const FAILING: &str = "  numbers: { op: sql, from: { rows: unique }, query: \"select row_id, cast(text as int) as n from rows\" }\n  \
     after: { op: filter, from: numbers, where: \"n > 0\" }\n";

/// Three runs: one, one with another length of chunks, and one that fails.
fn project() -> Project {
    let project = Project::new();
    project.write("docs/a.md", document(0));
    project.write("pipeline.yaml", PIPELINE);
    project.ran(&[]);
    project.write("pipeline.yaml", PIPELINE.replace("200", "210"));
    project.ran(&[]);
    project.write("pipeline.yaml", format!("{}{FAILING}", PIPELINE.replace("200", "210")));
    assert_eq!(project.run(&[]).code, 1);
    project
}

fn said(project: &Project, words: &[&str]) -> String {
    let words: Vec<&str> = ["runs", "pipeline.yaml"].iter().chain(words).copied().collect();
    let output = project.call(&words);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn told(project: &Project, words: &[&str]) -> Vec<Value> {
    let words: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
    said(project, &words).lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect()
}

fn refused(project: &Project, words: &[&str]) -> String {
    let words: Vec<&str> = ["runs", "pipeline.yaml"].iter().chain(words).copied().collect();
    let output = project.call(&words);
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn runs_are_listed_newest_first() {
    let project = project();
    let runs = told(&project, &[]);
    assert_eq!(runs.len(), 3);
    let of = |run: &Value, names: &[&str]| -> Vec<Value> { names.iter().map(|name| run[name].clone()).collect() };
    let counts = ["number", "result", "ran", "cached", "failed", "skipped"];
    assert_eq!(of(&runs[0], &counts), [json!(1), json!("failed"), json!(0), json!(3), json!(1), json!(1)]);
    assert_eq!(of(&runs[1], &counts), [json!(2), json!("done"), json!(2), json!(1), json!(0), json!(0)]);
    assert_eq!(of(&runs[2], &counts), [json!(3), json!("done"), json!(3), json!(0), json!(0), json!(0)]);
    assert_eq!(runs[2]["file"], json!(project.path("pipeline.yaml")));
    assert_eq!(runs[2]["file_digest"], blake3::hash(PIPELINE.as_bytes()).to_hex().as_str());
    assert_eq!(runs[2]["usd"], Value::Null);
    assert!(runs[0]["started"].as_str() > runs[1]["started"].as_str());

    // A run that found everything isn't one more, and a namesake on the store isn't this pipeline's.
    project.write("pipeline.yaml", PIPELINE.replace("200", "210"));
    project.ran(&[]);
    project.ran(&[]);
    let before = told(&project, &[]).len();
    project.write("other.yaml", PIPELINE.replace("notes", "others"));
    assert!(project.call(&["run", "other.yaml"]).status.success());
    assert_eq!(told(&project, &[]).len(), before);
    let all = told(&project, &["--all"]);
    assert_eq!((all.len(), &all[0]["pipeline"]), (before + 1, &json!("others")));
    assert_eq!(told(&project, &["--limit", "2"]).len(), 2);
    let table = said(&project, &[]);
    assert!(table.contains("started (UTC)") && table.contains("| failed |") && table.contains("| pipeline.yaml |"), "{table}");
}

#[test]
fn a_run_is_shown_by_number_id_or_a_part_of_it() {
    let project = project();
    let runs = told(&project, &[]);
    let id = runs[1]["run"].as_str().expect("an id");
    for written in ["2", id, &id[24..]] {
        let shown = told(&project, &[written]);
        assert_eq!((shown.len(), &shown[0]["run"]), (1, &runs[1]["run"]), "{written}");
    }
    let failed = &told(&project, &["1"])[0];
    assert_eq!(failed["stages"]["documents"]["state"], "cached");
    assert_eq!(failed["stages"]["numbers"]["state"], "failed");
    assert_eq!(failed["stages"]["after"]["state"], "skipped");
    let ran = &told(&project, &["2"])[0]["stages"]["chunks"];
    assert_eq!((&ran["state"], &ran["executed"], &ran["generation"]), (&json!("ran"), &json!(true), &json!(0)));
    assert_eq!(ran["rows"], project.rows("chunks", &[]).len());
    assert!(ran["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    let table = said(&project, &["1"]);
    assert!(table.contains("| numbers   | failed  |") && table.contains("`numbers` failed: "), "{table}");
    let order: Vec<usize> = ["documents", "chunks", "unique"].iter().map(|name| table.find(*name).expect("a row")).collect();
    assert!(order.is_sorted(), "{table}");

    let unknown = refused(&project, &["ffff"]);
    assert!(unknown.contains("no run is called `ffff`") && unknown.contains(&format!("`{id}`")), "{unknown}");
    assert!(refused(&project, &["4"]).contains("its number, 1 to 3"));
    assert!(refused(&project, &[&id[..4]]).contains("3 runs are called"));
}

#[test]
fn two_runs_differ_by_what_was_changed() {
    let project = project();
    let changes = told(&project, &["--diff", "3", "2"]);
    assert_eq!(changes[0], json!({ "stage": "documents", "change": "same" }));
    let reason = json!({ "reason": "changed", "subject": "field", "field": "max_characters", "old": 200, "new": 210 });
    assert_eq!(changes[1], json!({ "stage": "chunks", "change": "changed", "reasons": [reason] }));
    let reasons = changes[2]["reasons"].as_array().expect("reasons");
    assert_eq!((reasons.len(), &reasons[0]["subject"], &reasons[0]["stage"]), (1, &json!("input"), &json!("chunks")));
    let text = said(&project, &["--diff", "3", "2"]);
    assert!(text.contains("`max_characters`: 200 -> 210") && text.contains("documents  same"), "{text}");
    let failed = said(&project, &["--diff", "2", "1"]);
    assert!(failed.contains("numbers    only in the second"), "{failed}");

    let forced = Project::new();
    forced.write("docs/a.md", document(0));
    forced.write("pipeline.yaml", PIPELINE);
    forced.ran(&[]);
    forced.ran(&["--force", "chunks"]);
    let again = told(&forced, &["--diff", "2", "1"]);
    assert_eq!(again[1], json!({ "stage": "chunks", "change": "refilled", "old": 0, "new": 1 }));

    // What was collected can't be compared any more, and is said to be gone.
    let collected = project.call(&["gc", "pipeline.yaml", "--keep", "3", "--grace", "0s"]);
    assert!(collected.status.success());
    assert_eq!(told(&project, &["--diff", "3", "2"])[1]["change"], "changed", "three runs are kept");
    for action in crate::cache::walk(&project.path(".ingrain/actions")) {
        if std::fs::read_to_string(&action).expect("read").contains("\"max_characters\":200") {
            std::fs::remove_file(action).expect("removed");
        }
    }
    let gone = said(&project, &["--diff", "3", "2"]);
    assert!(gone.contains("another key: `gc` took what one of the keys was made of"), "{gone}");
}

#[test]
fn a_place_without_a_store_is_none() {
    let project = Project::new();
    project.write("pipeline.yaml", PIPELINE);
    assert!(refused(&project, &[]).contains("there is no store at `./.ingrain`"));
    assert!(!project.path(".ingrain").exists());
}

//! Runs that are told apart: by their pipeline's name, its file, and the time.

use std::time::{Duration, SystemTime};

use crate::project::Project;

const PIPELINE: &str = "pipeline: notes\nstages:\n  documents: { op: read, path: \"docs/*.md\" }\n  \
                        chunks: { op: chunk, from: documents, max_characters: 200 }\n";

fn project() -> Project {
    let project = Project::new();
    project.write("docs/a.md", crate::cache::document(0));
    project.write("pipeline.yaml", PIPELINE);
    project
}

#[test]
fn two_pipelines_of_one_name_on_a_store_are_named() {
    let project = project();
    let namesakes = |said: &crate::project::Said| said.events.iter().filter(|event| event["event"] == "namesake").count();
    assert_eq!(namesakes(&project.ran(&[])), 0);
    project.write("other/pipeline.yaml", PIPELINE.replace("docs", "../docs"));
    let other = project.call(&["run", "other/pipeline.yaml", "--store", ".ingrain"]);
    let stderr = String::from_utf8_lossy(&other.stderr);
    assert!(other.status.success(), "{stderr}");
    let named = format!("another file, `{}`", project.path("pipeline.yaml").display());
    assert!(stderr.contains(&named) && stderr.contains("give one of them another name (`pipeline:`)"), "{stderr}");
    // A copy of the same pipeline elsewhere is the same pipeline.
    project.write("other/pipeline.yaml", PIPELINE);
    project.write("other/docs/a.md", crate::cache::document(0));
    let copied = project.call(&["run", "other/pipeline.yaml", "--store", ".ingrain"]);
    assert!(!String::from_utf8_lossy(&copied.stderr).contains("another file"), "{}", String::from_utf8_lossy(&copied.stderr));
}

#[test]
fn a_cause_further_up_is_named() {
    let project = project();
    project.ran(&[]);
    project.write("docs/b.md", crate::cache::document(1));
    let why = project.call(&["why", "pipeline.yaml", "chunks"]);
    let stdout = String::from_utf8_lossy(&why.stdout);
    assert_eq!(
        stdout,
        "`chunks`: unknown: runs only if what comes out of documents has changed\n  `documents` will run: files added: `b.md`\n"
    );
    let told = project.call(&["why", "pipeline.yaml", "documents", "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).expect("JSON");
    let reason = serde_json::json!({ "reason": "changed", "subject": "files", "change": "added", "count": 1, "first": "b.md" });
    assert_eq!(told["reasons"], serde_json::json!([reason]));
    project.ran(&["--until", "documents"]);
    let why = project.call(&["why", "pipeline.yaml", "chunks"]);
    assert_eq!(String::from_utf8_lossy(&why.stdout), "`chunks` has to run:\n  input `documents` changed (`documents`)\n");
}

#[test]
fn an_operator_that_is_no_more_is_named() {
    let project = project();
    project.ran(&[]);
    for action in crate::cache::walk(&project.path(".ingrain/actions")) {
        let record = std::fs::read_to_string(&action).expect("read");
        std::fs::write(&action, record.replace("\"operator\":\"chunk\"", "\"operator\":\"slice\"")).expect("written");
    }
    project.write("pipeline.yaml", PIPELINE.replace("200", "210"));
    let why = project.call(&["why", "pipeline.yaml", "chunks"]);
    let stdout = String::from_utf8_lossy(&why.stdout);
    let said = "operator: \"slice\" -> \"chunk\" (this program has no operator of the old name)\n  `max_characters`: 200 -> 210";
    assert!(stdout.contains(said), "{stdout}");
    assert_eq!(project.ran(&[]).executed(), ["chunks"]);
    let collected = project.call(&["gc", "pipeline.yaml", "--keep", "1", "--grace", "0s"]);
    assert!(collected.status.success(), "{}", String::from_utf8_lossy(&collected.stderr));
    assert_eq!(project.ran(&[]).executed(), Vec::<&str>::new());
}

#[test]
fn a_machine_whose_clock_is_a_day_ahead_does_not_stay_the_last() {
    let project = project();
    project.ran(&[]);
    let runs = project.path(".ingrain/runs/notes");
    let first = std::fs::read_dir(&runs).expect("runs").next().expect("one").expect("an entry").path();
    // Its name says tomorrow, the store's clock says that it was an hour ago.
    let ahead = runs.join("ffffffff-0000-7000-8000-000000000000.json");
    std::fs::rename(&first, &ahead).expect("renamed");
    let then = SystemTime::now() - Duration::from_secs(3600);
    std::fs::File::options().write(true).open(&ahead).and_then(|file| file.set_modified(then)).expect("another time");
    project.write("pipeline.yaml", PIPELINE.replace("200", "210"));
    project.ran(&[]);
    project.write("pipeline.yaml", PIPELINE.replace("200", "220"));
    let why = project.call(&["why", "pipeline.yaml", "chunks"]);
    let stdout = String::from_utf8_lossy(&why.stdout);
    assert!(stdout.contains("`max_characters`: 210 -> 220"), "{stdout}");
}

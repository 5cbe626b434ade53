//! What lies on a store and isn't what was written there: found, named, and made anew.

use serde_json::Value;

use crate::{
    cache::{document, walk},
    project::{Project, Said},
};

const PIPELINE: &str = r#"pipeline: damage
seed: 3
stages:
  documents: { op: read, path: "docs/*.md" }
  chunks: { op: chunk, from: documents, max_characters: 200, overlap_characters: 20 }
  unique: { op: dedup, from: chunks, column: text }
  words: { op: tokenizer, from: documents, vocabulary: 300 }
  pieces: { op: chunk, from: { documents: documents, tokenizer: words }, max_tokens: 60 }
"#;

fn project() -> Project {
    let project = Project::new();
    for n in 0..6 {
        project.write(&format!("docs/{n}.md"), document(n));
    }
    project.write("pipeline.yaml", PIPELINE);
    project
}

/// Files of the store below a folder whose names end so.
fn files(project: &Project, folder: &str, ending: &str) -> Vec<String> {
    walk(&project.path(".ingrain").join(folder)).into_iter().filter(|path| path.ends_with(ending)).collect()
}

/// Flips one bit in the middle of a file, whose size stays.
fn flip(path: &str) {
    let mut content = std::fs::read(path).expect("a file");
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(path, content).expect("written");
}

fn made_anew(said: &Said) -> Vec<&str> {
    let found = said.events.iter().filter(|event| event["event"] == "damaged");
    found.map(|event| event["stage"].as_str().expect("a name")).collect()
}

#[test]
fn a_flipped_bit_in_any_part_is_found_and_the_part_is_made_anew() {
    let project = project();
    project.ran(&[]);
    let expected = project.digests(".ingrain", "damage");
    let parts = files(&project, "parts", ".parquet");
    assert!(parts.len() >= 5, "{parts:?}");
    for part in &parts {
        let whole = std::fs::read(part).expect("a part");
        flip(part);
        assert_eq!(project.ran(&[]).executed(), Vec::<&str>::new(), "nothing is read, nothing is noticed");
        let said = project.ran(&["--verify"]);
        assert_eq!(said.executed().len(), 1, "the stage whose part it is: {:?}", said.executed());
        let started = said.events.iter().find(|event| event["event"] == "started").expect("a stage started");
        let reason = started["reasons"][0].as_str().expect("a reason");
        let name = part.rsplit('/').next().expect("a name");
        assert!(reason.contains(name) && reason.contains("doesn't hold what was written"), "{reason}");
        assert_eq!(project.digests(".ingrain", "damage"), expected);
        assert_eq!(project.ran(&["--verify"]).executed(), Vec::<&str>::new());
        std::fs::write(part, whole).expect("written back");
    }
}

#[test]
fn a_stage_that_reads_a_broken_part_has_it_made_anew_and_goes_on() {
    let project = project();
    project.ran(&["--until", "chunks"]);
    let chunks = project.rows("chunks", &[]);
    // The parts of `documents` and of `chunks`: both are read by what comes next.
    for part in files(&project, "parts", ".parquet") {
        flip(&part);
    }
    let said = project.ran(&[]);
    let mut found = made_anew(&said);
    found.sort_unstable();
    assert_eq!(found, ["chunks", "documents"], "{:?}", said.events);
    assert_eq!(project.rows("chunks", &[]), chunks);
    assert_eq!(project.ran(&["--verify"]).executed(), Vec::<&str>::new());
    let fresh = project_like(&project);
    assert_eq!(project.digests(".ingrain", "damage"), fresh);
}

/// The digests of the same pipeline on a store of its own.
fn project_like(project: &Project) -> Value {
    project.ran(&["--store", "fresh"]);
    project.digests("fresh", "damage")
}

#[test]
fn a_flipped_bit_in_a_tokenizer_is_found_by_who_reads_it() {
    let project = project();
    project.ran(&["--until", "words"]);
    let blobs = files(&project, "parts", "tokenizer.json");
    assert_eq!(blobs.len(), 1);
    flip(&blobs[0]);
    let said = project.ran(&[]);
    assert_eq!(made_anew(&said), ["words"]);
    assert_eq!(project.digests(".ingrain", "damage"), project_like(&project));
}

#[test]
fn records_that_cannot_be_read_are_misses() {
    let project = project();
    project.ran(&[]);
    let expected = project.digests(".ingrain", "damage");
    for (folder, content) in [("manifests", "{"), ("actions", ""), ("parts", "{\"attempt\": 3}")] {
        for record in files(&project, folder, ".json").into_iter().filter(|path| !path.ends_with("tokenizer.json")) {
            std::fs::write(record, content).expect("written");
        }
        let said = project.ran(&[]);
        // What a broken record of a partition stood for is committed already.
        assert_eq!(said.executed().is_empty(), folder == "parts", "{folder}: {:?}", said.executed());
        assert_eq!(project.digests(".ingrain", "damage"), expected, "{folder}");
        assert_eq!(project.ran(&[]).executed(), Vec::<&str>::new());
    }
}

#[test]
fn a_record_of_a_run_with_any_key_in_it_is_passed_over() {
    let project = project();
    project.ran(&[]);
    let records = files(&project, "runs", ".json");
    for key in ["", "ä", "00", "../../../etc/passwd"] {
        let record = serde_json::json!({ "stages": { "chunks": { "key": key } } });
        std::fs::write(&records[0], record.to_string()).expect("written");
        project.write("pipeline.yaml", PIPELINE.replace("max_characters: 200", "max_characters: 210"));
        let why = project.call(&["why", "pipeline.yaml", "chunks"]);
        assert!(why.status.success(), "{key}: {}", String::from_utf8_lossy(&why.stderr));
    }
}

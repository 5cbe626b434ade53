//! A document is forgotten: what goes, what stays, and what that costs.

use std::path::Path;

use serde_json::Value;

use crate::{
    cache::{document, walk},
    project::{Project, Said},
    teacher::content,
};

const PIPELINE: &str = r#"pipeline: notes
seed: 3
models: { offline: { offline: {} } }
stages:
  documents: { op: read, path: "docs/*.md" }
  units: { op: chunk, from: documents, max_characters: 4000 }
  qa: { op: synthesize_qa, from: units, teacher: offline, pairs: 6, draws: 2 }
  unique: { op: dedup, from: qa, column: question, within: doc_id }
  rewrites: { op: rewrite, from: { documents: units, questions: unique }, strategy: focal, teacher: offline, per_document: 3, max_output_tokens: 120 }
  corpus: { op: sql, from: { units: units }, query: "select row_id, text from units" }
  tokenizer: { op: tokenizer, from: corpus, vocabulary: 320 }
  mixture: { op: mix, from: { sources: [unique, rewrites], tokenizer: tokenizer }, weights: [1, 1] }
  others: { op: read, path: "others/*.md" }
  passages: { op: chunk, from: others, max_characters: 200, overlap_characters: 0 }
"#;

fn project() -> Project {
    let project = Project::new();
    for n in 0..4 {
        project.write(&format!("docs/{n}.md"), document(n));
    }
    project.write("others/9.md", document(6));
    project.write("pipeline.yaml", PIPELINE);
    project
}

/// The sentences of a document, title and short ones aside.
fn sentences(text: &str) -> Vec<String> {
    let parts = text.split(['.', '\n']).map(str::trim).filter(|part| part.len() > 24);
    parts.map(str::to_owned).collect()
}

/// The files below the store and the cache that hold one of these sentences, decompressed.
fn holding(project: &Project, folders: &[&str], sentences: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for file in folders.iter().flat_map(|folder| walk(&project.path(folder))) {
        let content = content(Path::new(&file));
        let text = String::from_utf8_lossy(&content);
        if sentences.iter().any(|sentence| text.contains(sentence.as_str())) {
            found.push(file);
        }
    }
    found
}

fn said(project: &Project, words: &[&str]) -> (i32, String, String) {
    let output = project.call(words);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn json(project: &Project, words: &[&str]) -> Value {
    let (code, stdout, stderr) = said(project, words);
    assert_eq!(code, 0, "{stderr}");
    serde_json::from_str(&stdout).expect("JSON")
}

fn calls(said: &Said) -> u64 {
    let finished = said.events.iter().filter(|event| event["event"] == "finished");
    finished.map(|event| event["calls"].as_u64().unwrap_or(0)).sum()
}

#[test]
fn nothing_of_a_forgotten_document_is_left_and_nobody_is_asked_for_the_rest() {
    let project = project();
    let gone = sentences(&document(2));
    assert!(gone.len() > 6, "{gone:?}");
    project.ran(&[]);
    let everywhere = [".ingrain", ".cache"];
    assert!(holding(&project, &everywhere, &gone).len() > 5);
    let before = walk(&project.path(".ingrain"));

    let listed = json(&project, &["forget", "pipeline.yaml", "2.md", "--json"]);
    assert_eq!((&listed["source"], &listed["forgotten_since"]), (&"docs/2.md".into(), &Value::Null));
    let of = |stage: &str| -> Value {
        let outputs = listed["outputs"].as_array().expect("a list");
        outputs.iter().find(|output| output["stage"] == stage).cloned().unwrap_or_default()
    };
    assert_eq!((&of("documents")["rows"], &of("units")["rows"], &of("rewrites")["rows"]), (&1.into(), &1.into(), &3.into()));
    assert_eq!((&of("tokenizer")["whole"], &of("passages")), (&true.into(), &Value::Null));
    assert!(of("qa")["rows"].as_u64() > Some(3) && of("mixture")["rows"].as_u64() > Some(5), "{listed}");
    assert_eq!((&listed["answers"], &listed["run_again"]), (&5.into(), &serde_json::json!(["notes"])));
    assert_eq!(walk(&project.path(".ingrain")), before, "it was only listed");

    let (code, _, stderr) = said(&project, &["forget", "pipeline.yaml", "2.md", "--apply"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("no `read` gives it any more") && stderr.contains("gc pipeline.yaml --forgotten"), "{stderr}");
    let (code, _, stderr) = said(&project, &["forget", "pipeline.yaml", "2.md", "--apply"]);
    assert!(code == 0 && stderr.contains("forgotten already"), "{stderr}");
    let (_, why, _) = said(&project, &["why", "pipeline.yaml", "documents"]);
    assert!(why.contains("documents forgotten: `2.md`"), "{why}");

    let again = project.ran(&[]);
    let rebuilt = ["corpus", "documents", "mixture", "qa", "rewrites", "tokenizer", "unique", "units"];
    assert_eq!(again.executed(), rebuilt, "`others` and `passages` are as they were");
    assert_eq!(calls(&again), 0, "all that is asked is remembered");
    assert_eq!(again.report("qa")["memo_hits"], 6);
    assert_eq!(project.rows("documents", &[]).len(), 3);

    let counted = json(&project, &["gc", "pipeline.yaml", "--forgotten", "--dry-run", "--json"]);
    let collected = json(&project, &["gc", "pipeline.yaml", "--forgotten", "--json"]);
    assert_eq!(counted, collected);
    assert_eq!((&collected["artifacts"], &collected["answers"]), (&8.into(), &5.into()));
    assert_eq!(collected["run_again"], serde_json::json!([]), "every pipeline is rebuilt already");
    assert_eq!(holding(&project, &everywhere, &gone), Vec::<String>::new());
    for n in [0, 1, 3] {
        assert!(holding(&project, &[".ingrain"], &sentences(&document(n))).len() > 3, "the others are there");
    }
    assert!(walk(&project.path(".cache")).iter().all(|file| !file.ends_with(".redb")), "no log of answers is left");

    assert_eq!(project.ran(&["--verify"]).executed(), Vec::<&str>::new(), "what is in use is whole");
    let (_, _, stderr) = said(&project, &["forget", "pipeline.yaml", "2.md"]);
    assert!(stderr.contains("nothing is left of it"), "{stderr}");
    assert_eq!(json(&project, &["gc", "pipeline.yaml", "--forgotten", "--json"])["artifacts"], 0);
    let forced = project.ran(&["--force", "qa", "--force", "rewrites"]);
    assert_eq!((calls(&forced), project.rows("documents", &[]).len()), (0, 3));
}

#[test]
fn a_pipeline_that_was_not_run_again_is_named_and_then_rebuilds() {
    let project = project();
    project.ran(&[]);
    assert_eq!(said(&project, &["forget", "pipeline.yaml", "2.md", "--apply"]).0, 0);
    let (code, _, stderr) = said(&project, &["gc", "pipeline.yaml", "--forgotten"]);
    assert!(code == 0 && stderr.contains("run `notes`"), "{stderr}");
    assert_eq!(holding(&project, &[".ingrain", ".cache"], &sentences(&document(2))), Vec::<String>::new());
    let again = project.ran(&[]);
    assert_eq!((calls(&again), project.rows("documents", &[]).len()), (0, 3));
    assert_eq!(holding(&project, &[".ingrain", ".cache"], &sentences(&document(2))), Vec::<String>::new());
}

#[test]
fn a_document_that_two_sources_share_is_named_for_each() {
    let project = project();
    project.write("others/2.md", document(5));
    project.ran(&[]);
    let (code, _, stderr) = said(&project, &["forget", "pipeline.yaml", "2.md", "--apply"]);
    assert_eq!(code, 2, "{stderr}");
    for part in ["2 sources have a document `2.md`", "`--source docs/2.md`", "`--source others/2.md`"] {
        assert!(stderr.contains(part), "`{part}` isn't in:\n{stderr}");
    }
    assert!(!project.path(".ingrain/forgotten").exists());
    let (code, _, stderr) = said(&project, &["forget", "pipeline.yaml", "2.md", "--source", "else/2.md"]);
    assert!(code == 2 && stderr.contains("`else/2.md` has no document `2.md`"), "{stderr}");
    let (code, _, stderr) = said(&project, &["forget", "pipeline.yaml", "3.nd"]);
    assert!(code == 2 && stderr.contains("did you mean `3.md`?"), "{stderr}");

    let words = ["forget", "pipeline.yaml", "2.md", "--source", "others/2.md", "--apply"];
    assert_eq!(said(&project, &words).0, 0);
    assert_eq!(project.ran(&[]).executed(), ["others", "passages"]);
    assert_eq!(json(&project, &["gc", "pipeline.yaml", "--forgotten", "--json"])["artifacts"], 2);
    let (gone, left) = (sentences(&document(5)), sentences(&document(2)));
    assert_eq!(holding(&project, &[".ingrain", ".cache"], &gone), Vec::<String>::new());
    assert!(holding(&project, &[".ingrain"], &left).len() > 5);
    let forced = project.ran(&["--force", "qa", "--force", "rewrites"]);
    assert_eq!(calls(&forced), 0, "answers about the other document of this id are remembered");
}

#[test]
fn a_pipeline_in_another_folder_honours_it() {
    let project = project();
    project.ran(&[]);
    let elsewhere = "pipeline: elsewhere\nstore: ../.ingrain\nstages:\n  documents: { op: read, path: \"../docs/*.md\" }\n";
    project.write("second/pipeline.yaml", elsewhere);
    let run = |words: &[&str]| {
        let output = project.call(words);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output
    };
    run(&["run", "second/pipeline.yaml"]);
    assert_eq!(said(&project, &["forget", "second/pipeline.yaml", "2.md", "--apply"]).0, 0, "one file, seen from two folders");
    let said = Said::of(&run(&["run", "second/pipeline.yaml", "--json"]));
    assert_eq!(said.report("documents")["rows"], 3);
    project.ran(&[]);
    assert_eq!(project.rows("documents", &[]).len(), 3);
    // A folder below the pipeline file's, read by a pipeline that lies in it.
    project.write("docs/own.yaml", "pipeline: own\nstore: ../.ingrain\nstages:\n  documents: { op: read, path: \"*.md\" }\n");
    let said = Said::of(&run(&["run", "docs/own.yaml", "--json"]));
    assert_eq!(said.report("documents")["rows"], 3);
}

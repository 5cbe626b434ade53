//! Checkpoints that answer in the command's own process.

use serde_json::{Value, json};

use crate::{cache::document, project::Project};

const QUESTIONS: usize = 6;

/// A project with two checkpoints in folders of its own: `one` and `two`.
fn project() -> Project {
    let project = Project::new();
    for n in 0..4 {
        project.write(&format!("docs/{n}.md"), document(n));
    }
    let question = |n: usize| {
        let options = ["Lotte Amsel", "Hanne Drost", "Ida Brandt"];
        json!({ "id": format!("q{n}"), "question": format!("Who keeps light {n}?"), "options": options, "answer": options[n % 3] })
    };
    let exam: String = (0..QUESTIONS).map(|n| format!("{}\n", question(n))).collect();
    project.write("exam.jsonl", exam);
    for (seed, name) in [(1, "one"), (2, "two")] {
        project.write(
            "pipeline.yaml",
            format!(
                "pipeline: made\nseed: {seed}\nstages:\n  documents: {{ op: read, path: \"docs/*.md\" }}\n  \
                 words: {{ op: tokenizer, from: documents, vocabulary: 300 }}\n  \
                 base: {{ op: checkpoint, from: words, preset: tiny }}\n"
            ),
        );
        project.ran(&[]);
        let output = project.call(&["export", "pipeline.yaml", "base", name]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // A random model says nothing in particular: half of its vocabulary ends an answer.
        let ends: Vec<u32> = (0..150).collect();
        project.write(&format!("{name}/generation_config.json"), json!({ "eos_token_id": ends }).to_string());
    }
    project
}

/// A pipeline whose reader is the checkpoint in `folder`.
fn asks(project: &Project, folder: &str, more: &str) {
    project.write(
        "pipeline.yaml",
        format!(
            "pipeline: asked\nmodels: {{ mine: {{ local: {{ checkpoint: {folder} }} }} }}\nstages:\n  \
             exam: {{ op: read, path: exam.jsonl, format: multiple_choice }}\n  \
             asked: {{ op: evaluate, from: exam, reader: mine, temperature: 1.0, max_output_tokens: 64 }}\n{more}"
        ),
    );
}

fn counts(report: &Value) -> (u64, u64) {
    let count = |name: &str| report[name].as_u64().expect("a count");
    (count("calls"), count("memo_hits"))
}

#[test]
fn a_reader_on_this_machine_is_asked_once() {
    let project = project();
    asks(&project, "one", "");
    let said = project.ran(&["--device", "cpu"]);
    let report = said.report("asked");
    assert_eq!(counts(report), (QUESTIONS as u64, 0));
    assert!(report["input_tokens"].as_u64() > Some(100) && report["output_tokens"].as_u64() > Some(0), "{report}");
    let predictions = project.rows("asked.predictions", &[]);
    assert_eq!(predictions.len(), QUESTIONS);
    let mut requests: Vec<&str> = predictions.iter().filter_map(|row| row["request_id"].as_str()).collect();
    requests.sort_unstable();
    requests.dedup();
    assert_eq!(requests.len(), QUESTIONS, "each is an answer of the memo");

    assert_eq!(project.ran(&["--device", "cpu"]).executed(), Vec::<&str>::new());
    assert_eq!(counts(project.ran(&["--force", "asked"]).report("asked")), (0, QUESTIONS as u64));
    assert_eq!(project.rows("asked.predictions", &[]), predictions);

    // The same files elsewhere are the same model; others aren't.
    for file in std::fs::read_dir(project.path("one")).expect("a folder") {
        let path = file.expect("a file").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        project.write(&format!("elsewhere/{name}"), std::fs::read(&path).expect("read"));
    }
    asks(&project, "elsewhere", "");
    assert_eq!(project.ran(&[]).executed(), Vec::<&str>::new());
    asks(&project, "two", "");
    assert_eq!(counts(project.ran(&[]).report("asked")), (QUESTIONS as u64, 0));
    assert_ne!(project.rows("asked.predictions", &[]), predictions);
    let template = "{% for message in messages %}{{ message.content }}{% endfor %}{% if add_generation_prompt %} So:{% endif %}";
    project.write("two/chat_template.jinja", template);
    assert_eq!(counts(project.ran(&[]).report("asked")), (QUESTIONS as u64, 0));
    let why = project.call(&["why", "pipeline.yaml", "asked"]);
    assert!(why.status.success());
}

#[test]
fn a_checkpoint_shares_the_device_with_others() {
    let project = project();
    let more = "  documents: { op: read, path: \"docs/*.md\" }\n  \
                words: { op: tokenizer, from: documents, vocabulary: 300 }\n  \
                base: { op: checkpoint, from: words, preset: tiny }\n  \
                likely: { op: evaluate, from: { questions: exam, model: base } }\n  \
                again: { op: evaluate, from: exam, reader: other, temperature: 1.0, max_output_tokens: 64 }\n  \
                qa: { op: synthesize_qa, from: documents, teacher: other, attempts: 1, max_output_tokens: 64, min_yield: 0 }\n  \
                told: { op: rewrite, from: documents, strategy: rephrase, teacher: other, per_document: 2, attempts: 1, min_words: 1, \
                max_output_tokens: 64, min_yield: 0 }\n";
    asks(&project, "one", more);
    let pipeline = std::fs::read_to_string(project.path("pipeline.yaml")).expect("read");
    project.write("pipeline.yaml", pipeline.replace("models: {", "models: { other: { local: { checkpoint: two } },"));
    let said = project.ran(&[]);
    assert_eq!(said.executed(), ["again", "asked", "base", "exam", "likely", "qa", "told"]);
    assert_eq!(counts(said.report("again")), (QUESTIONS as u64, 0));
    // Nothing sensible comes of it, and nothing is lost.
    let rejects = project.rows("qa.rejects", &[]);
    assert_eq!(rejects.len(), 4);
    assert!(rejects.iter().all(|row| row["attempts"] == 1 && row["reason"].is_string()), "{rejects:?}");
    let told = project.rows("told", &[]);
    assert_eq!(told.len() + project.rows("told.rejects", &[]).len(), 8);
    assert!(told.iter().all(|row| row["strategy"] == "rephrase" && row["text"].is_string()), "{told:?}");
    assert_eq!(counts(said.report("told")), (8, 0));
}

#[test]
fn what_is_no_checkpoint_is_said_before_anything_runs() {
    let project = project();
    let refused = |said: &str| {
        let output = project.call(&["check", "pipeline.yaml"]);
        assert_eq!(output.status.code(), Some(2));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains(said) && stderr.contains("pipeline.yaml:5:"), "{said}: {stderr}");
    };
    asks(&project, "none", "");
    refused("none` isn't there");
    asks(&project, "docs", "");
    refused("it has no `config.json`");
    asks(&project, "one", "");
    std::fs::remove_file(project.path("one/tokenizer.json")).expect("removed");
    refused("it has no `tokenizer.json`");
    // A device that isn't there is said before anything is asked.
    asks(&project, "two", "");
    let said = project.run(&["--device", "cuda:9"]);
    assert_eq!(said.code, 2);
    assert_eq!(said.executed(), Vec::<&str>::new());
}

//! What other tools are given.

use serde_json::Value;

use crate::{cache::document, project::Project};

const PIPELINE: &str = r#"pipeline: exported
models: { offline: { offline: {} } }
stages:
  documents: { op: read, path: "docs/*.md" }
  qa: { op: synthesize_qa, from: documents, teacher: offline, pairs: 3 }
  words: { op: tokenizer, from: documents, vocabulary: 300 }
  base: { op: checkpoint, from: words, preset: tiny }
  mixture: { op: mix, from: { sources: [qa, documents], tokenizer: words }, tokens: 2000 }
"#;

fn project() -> Project {
    let project = Project::new();
    for n in 0..4 {
        project.write(&format!("docs/{n}.md"), document(n));
    }
    project.write("pipeline.yaml", PIPELINE);
    project.ran(&[]);
    project
}

fn exported(project: &Project, words: &[&str]) {
    let words: Vec<&str> = ["export", "pipeline.yaml"].iter().chain(words).copied().collect();
    let output = project.call(&words);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn lines(project: &Project, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(project.path(name)).expect("written");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn tables_leave_as_they_are() {
    let project = project();
    exported(&project, &["qa", "out/qa.jsonl"]);
    let sorted = |mut rows: Vec<Value>| {
        rows.sort_by_key(|row| row["row_id"].to_string());
        rows
    };
    assert_eq!(sorted(lines(&project, "out/qa.jsonl")), sorted(project.rows("qa", &[])));
    exported(&project, &["qa", "out/qa.parquet"]);
    let file = std::fs::File::open(project.path("out/qa.parquet")).expect("written");
    let rows = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet");
    let rows: usize = rows.build().expect("rows").map(|batch| batch.expect("a batch").num_rows()).sum();
    assert_eq!(rows, project.rows("qa", &[]).len());
    let described: Value =
        serde_json::from_slice(&std::fs::read(project.path("out/qa.parquet.croissant.json")).expect("written")).expect("JSON");
    assert_eq!(described["conformsTo"], "http://mlcommons.org/croissant/1.0");
    assert_eq!(described["distribution"][0]["contentUrl"], "qa.parquet");
    let again = project.call(&["export", "pipeline.yaml", "qa", "out/qa.parquet"]);
    assert_eq!(again.status.code(), Some(2), "a file that is there stays");
}

#[test]
fn a_table_that_left_comes_back_as_it_was() {
    let project = project();
    let questions = project.rows("qa", &[]);
    exported(&project, &["qa", "tables/qa.parquet"]);
    let stages = "  back: { op: read, path: \"tables/*.parquet\", format: table, columns: { asked: question } }\n  \
                  long: { op: filter, from: back, where: \"length(asked) > 0\" }\n";
    project.write("pipeline.yaml", format!("pipeline: back\nstages:\n{stages}"));
    project.ran(&["--round-trip"]);
    let mut back = project.rows("long", &[]);
    for row in &mut back {
        let row = row.as_object_mut().expect("an object");
        let asked = row.remove("asked").expect("another name");
        row.insert("question".to_owned(), asked);
    }
    let by_id = |rows: &[Value]| -> std::collections::BTreeMap<String, Value> {
        rows.iter().map(|row| (row["row_id"].to_string(), row.clone())).collect()
    };
    assert_eq!(by_id(&back), by_id(&questions));
    assert_eq!(project.ran(&[]).executed(), Vec::<&str>::new());

    // A file of another kind beside it, and one that is none.
    project.write("pipeline.yaml", PIPELINE);
    exported(&project, &["documents", "tables/z.parquet"]);
    project.write("pipeline.yaml", format!("pipeline: back\nstages:\n{stages}"));
    let said = project.run(&[]);
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("`tables/z.parquet` has other columns than the first file: `title` is new"), "{}", said.stderr);
    project.write("tables/a.parquet", "not Parquet");
    let said = project.call(&["check", "pipeline.yaml"]);
    assert_eq!(said.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(stderr.contains("`tables/a.parquet` can't be read as Parquet") && stderr.contains("pipeline.yaml:3:"), "{stderr}");
}

#[test]
fn a_mixture_leaves_as_conversations_in_its_order() {
    let project = project();
    exported(&project, &["mixture", "chat.jsonl", "--format", "chat"]);
    let mut mixture = project.rows("mixture", &[]);
    mixture.sort_by_key(|row| row["position"].as_i64());
    let chat = lines(&project, "chat.jsonl");
    assert_eq!(chat.len(), mixture.len());
    for (line, row) in chat.iter().zip(&mixture) {
        assert_eq!(line["row_id"], row["row_id"]);
        let text = row["text"].as_str().expect("text");
        let said = line["messages"].as_array().expect("messages").last().expect("one")["content"].as_str().expect("text");
        assert!(text.ends_with(said));
        match row["kind"].as_str() {
            Some("qa") => {
                let asked = line["messages"][0]["content"].as_str().expect("text");
                assert_eq!(text, format!("Question: {asked}\nAnswer: {said}"));
            }
            _ => assert_eq!(text, said),
        }
    }
}

#[test]
fn a_checkpoint_leaves_as_its_folder() {
    let project = project();
    exported(&project, &["base", "model"]);
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(project.path("model").join(name).is_file(), "`{name}`");
    }
    let wrong = project.call(&["export", "pipeline.yaml", "qa", "rows"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("doesn't say what to write"));
    let none = project.call(&["export", "pipeline.yaml", "qa", "rows", "--format", "folder"]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("point to no files"));
    assert!(!project.path("rows").exists());
}

#[test]
fn an_adapter_leaves_with_the_place_of_its_base() {
    let project = project();
    exported(&project, &["base", "model"]);
    let train = |base: &str| {
        format!(
            "{PIPELINE}  taken: {{ op: checkpoint, path: model }}\n  \
                 tuned: {{ op: train, from: {{ mixture: mixture, base: {base} }}, sequence: 64, epochs: 1, lora: {{ rank: 2, alpha: 4 }} }}\n"
        )
    };
    let config = |folder: &str| -> Value {
        serde_json::from_slice(&std::fs::read(project.path(folder).join("adapter_config.json")).expect("written")).expect("JSON")
    };
    project.write("pipeline.yaml", train("taken"));
    project.ran(&[]);
    exported(&project, &["tuned.adapter", "adapter"]);
    let folder = std::fs::canonicalize(project.path("model")).expect("a folder");
    let said = config("adapter");
    let named = said["base_model_name_or_path"].as_str().expect("a path");
    assert_eq!(std::fs::canonicalize(named).expect("a folder"), folder);
    assert_eq!((&said["r"], &said["lora_alpha"], &said["revision"]), (&2.into(), &4.0.into(), &Value::Null));
    assert!(project.path("adapter/adapter_model.safetensors").is_file());

    project.write("pipeline.yaml", train("base"));
    project.ran(&[]);
    let output = project.call(&["export", "pipeline.yaml", "tuned.adapter", "from-scratch"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && stderr.contains("export it, too, and name that folder"), "{stderr}");
}

#[test]
fn a_mixture_leaves_with_a_configuration_that_trains_on_it() {
    let project = project();
    let words = ["export", "pipeline.yaml", "mixture", "bare", "--format", "axolotl"];
    let bare = project.call(&words);
    let stderr = String::from_utf8_lossy(&bare.stderr).into_owned();
    assert!(bare.status.success() && stderr.contains("no `train` stage"), "{stderr}");
    let yaml = |name: &str| -> Value {
        serde_yaml::from_str(&std::fs::read_to_string(project.path(name)).expect("written")).expect("YAML")
    };
    assert_eq!(yaml("bare/config.yaml")["base_model"], "FILL IN");
    assert!(!project.path("bare/heldout.jsonl").exists());

    let stage = "  student: { op: train, from: { mixture: mixture, base: base }, batch: 4, loss_on: completion, heldout: 0.2 }\n";
    project.write("pipeline.yaml", format!("{PIPELINE}{stage}"));
    exported(&project, &["mixture", "out", "--format", "axolotl"]);
    let config = yaml("out/config.yaml");
    assert_eq!((&config["base_model"], &config["gradient_accumulation_steps"]), (&"./base".into(), &4.into()));
    assert_eq!(config["datasets"][0]["type"], "input_output");
    assert!(project.path("out/base/model.safetensors").is_file());
    let mut mixture = project.rows("mixture", &[]);
    mixture.sort_by_key(|row| row["position"].as_i64());
    let (trained, heldout) = (lines(&project, "out/mixture.jsonl"), lines(&project, "out/heldout.jsonl"));
    assert_eq!(trained.len() + heldout.len(), mixture.len());
    let held: Vec<&Value> = heldout.iter().map(|line| &line["row_id"]).collect();
    mixture.retain(|row| !held.contains(&&row["row_id"]));
    for (line, row) in trained.iter().zip(&mixture) {
        assert_eq!(line["row_id"], row["row_id"]);
        let segments = line["segments"].as_array().expect("segments");
        let text: String = segments.iter().map(|segment| segment["text"].as_str().expect("text")).collect();
        assert_eq!(text, format!("<|begin|>{}<|end|>", row["text"].as_str().expect("text")));
        assert_eq!(segments[0]["label"], row["prompt"].is_null());
    }
    for (name, rows) in [("mixture", trained.len()), ("heldout", heldout.len())] {
        let described = std::fs::read(project.path(&format!("out/{name}.jsonl.croissant.json"))).expect("written");
        let described: Value = serde_json::from_slice(&described).expect("JSON");
        assert!(described["description"].as_str().expect("text").contains(&format!("({rows} rows")), "{described}");
    }
    let wrong = project.call(&["export", "pipeline.yaml", "qa", "questions", "--format", "axolotl"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("no mixture"));
}

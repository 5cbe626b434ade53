//! Rows are followed through every kind of stage: back to the sentence, forward to the step of the checkpoint.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::project::Project;

const PIPELINE: &str = r#"
pipeline: lineage
seed: 3
models: { teacher: { offline: {} } }
stages:
  documents: { op: read, path: "docs/*.txt" }
  passages: { op: chunk, from: documents, max_characters: 160 }
  qa: { op: synthesize_qa, from: documents, teacher: teacher, pairs: 6 }
  qa_unique: { op: dedup, from: qa, column: question, within: doc_id, similarity: 0.6 }
  rewrites:
    { op: rewrite, from: { documents: documents, questions: qa_unique }, strategy: focal, teacher: teacher, per_document: 3 }
  corpus:
    op: sql
    from: { qa: qa_unique, rewrites: rewrites }
    query: >
      select row_id, question || ' ' || answer as text from qa union all select row_id, text from rewrites
  asked: { op: sql, from: qa_unique, query: "select row_id as parent_id, question from qa_unique", key: [question] }
  counts: { op: sql, from: qa_unique, query: "select doc_id, count(*) as n from qa_unique group by doc_id", key: [doc_id] }
  tokenizer: { op: tokenizer, from: corpus, vocabulary: 300 }
  base: { op: checkpoint, from: tokenizer, preset: tiny }
  mixture: { op: mix, from: { sources: [qa_unique, rewrites], tokenizer: tokenizer }, tokens: 3000 }
  student: { op: train, from: { mixture: mixture, base: base }, epochs: 2, heldout: 0.1 }
  exam: { op: read, path: exam.jsonl, format: multiple_choice }
  closed: { op: evaluate, from: { questions: exam, model: student } }
  found: { op: retrieve, from: { questions: exam, corpus: passages }, top_k: 2 }
  open: { op: evaluate, from: { questions: exam, contexts: found }, reader: teacher }
"#;

const AURORA: &str = "The Aurora is a ferry of the Northwind Line. The Aurora was built in 1987 by Halden Works. The Aurora carries 120 \
passengers. Captain Ida Brandt commands the Aurora. The hull of the Aurora is green. The Aurora leaves Tern Bay at 7 o'clock.";
const BOREAS: &str = "The Boreas is a tug of the Northwind Line. The Boreas was built in 1954 by Marten Yard. The Boreas weighs 300 \
tons. Captain Olaf Rask commands the Boreas. The funnel of the Boreas is red. The Boreas lies at Gull Pier.";
const EXAM: &str = r#"{"question_id": "e1", "doc_id": "aurora.txt", "question": "When was the Aurora built?", "options": ["1954", "1987", "1990"], "answer": "1987"}
{"question_id": "e2", "doc_id": "nowhere.txt", "question": "Who commands the Boreas?", "options": ["Ida Brandt", "Olaf Rask"], "answer": "Olaf Rask"}
"#;

fn project() -> Project {
    let project = Project::new();
    project.write("pipeline.yaml", PIPELINE);
    project.write("docs/aurora.txt", AURORA);
    project.write("docs/boreas.txt", BOREAS);
    project.write("exam.jsonl", EXAM);
    project
}

fn trace(project: &Project, words: &[&str]) -> Vec<Value> {
    let words: Vec<&str> = ["trace", "pipeline.yaml"].iter().chain(words).chain(&["--json"]).copied().collect();
    let told = project.call(&words);
    assert!(told.status.success(), "{words:?}: {}", String::from_utf8_lossy(&told.stderr));
    String::from_utf8_lossy(&told.stdout).lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect()
}

/// What a call that fails says.
fn mistake(project: &Project, words: &[&str]) -> String {
    let told = project.call(&[&["trace", "pipeline.yaml"], words].concat());
    assert_eq!(told.status.code(), Some(2), "{words:?}");
    assert!(told.stdout.is_empty());
    String::from_utf8_lossy(&told.stderr).into_owned()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no `{field}` in {value}"))
}

fn of_kind<'a>(told: &'a [Value], kind: &str) -> Vec<&'a Value> {
    told.iter().filter(|object| object["kind"] == kind).collect()
}

/// (stage, column, stage) of every link.
fn links(told: &[Value]) -> Vec<(&str, &str, &str)> {
    let links = told.iter().filter(|object| object["kind"] == "link");
    links.map(|link| (text(&link["row"], "stage"), text(link, "column"), text(&link["of"], "stage"))).collect()
}

fn made<'a>(told: &'a [Value], stage: &str, output: &str) -> &'a Value {
    let made = of_kind(told, "made").into_iter().find(|made| made["stage"] == stage && made["output"] == output);
    made.unwrap_or_else(|| panic!("nothing made in `{stage}.{output}`"))
}

fn first(rows: &[Value], mut fits: impl FnMut(&Value) -> bool) -> &Value {
    rows.iter().find(|row| fits(row)).expect("such a row")
}

#[test]
fn rows_lead_back_to_sentences_and_forward_to_steps() {
    let project = project();
    project.ran(&[]);
    let documents = project.rows("documents", &[]);
    let mixture = project.rows("mixture", &[]);

    // A focal rewrite in the mixture: its document, its question, and the sentence that holds the answer.
    let row = first(&mixture, |row| row["kind"] == "document");
    let told = trace(&project, &["mixture", &text(row, "row_id")[..12]]);
    assert_eq!(told[0]["row_id"], row["row_id"]);
    for link in [
        ("mixture", "parent_id", "rewrites"),
        ("rewrites", "parent_id", "documents"),
        ("rewrites", "question_id", "qa_unique"),
        ("qa_unique", "row_id", "qa"),
        ("qa", "parent_id", "documents"),
    ] {
        assert!(links(&told).contains(&link), "{link:?} in {:?}", links(&told));
    }
    let spot = of_kind(&told, "sentences")[0];
    let document = first(&documents, |document| document["row_id"] == spot["row"]["row_id"]);
    let sentence = &spot["sentences"][0];
    let place = |field: &str| usize::try_from(sentence[field].as_u64().expect("a place")).expect("small");
    let there = &text(document, "text")[place("byte_start")..place("byte_end")];
    assert_eq!(there, text(sentence, "text"));
    assert!(there.to_lowercase().contains(&text(spot, "answer").to_lowercase()), "{spot}");

    // `sql` that passes rows on, that names parents, and that ends lineage.
    let corpus = project.rows("corpus", &[]);
    let told = trace(&project, &["corpus", text(&corpus[0], "row_id")]);
    assert_eq!(links(&told)[0].1, "row_id");
    assert_eq!(of_kind(&told, "loose")[0]["how"], "perhaps");
    let told = trace(&project, &["asked", text(&project.rows("asked", &[])[0], "row_id")]);
    assert_eq!(links(&told)[..2], [("asked", "parent_id", "qa_unique"), ("qa_unique", "row_id", "qa")]);
    let told = trace(&project, &["counts", text(&project.rows("counts", &[])[0], "row_id")]);
    assert!(links(&told).is_empty());
    assert_eq!((&of_kind(&told, "loose")[0]["how"], &of_kind(&told, "loose")[0]["on"][0]), (&"ends".into(), &"qa_unique".into()));

    // A removed row leads to the one that stayed.
    let removed = project.rows("qa_unique.removed", &[]);
    if let Some(row) = removed.first() {
        let told = trace(&project, &["qa_unique.removed", text(row, "row_id")]);
        let link = of_kind(&told, "link").into_iter().find(|link| link["column"] == "kept_id").expect("a link");
        assert_eq!(link["of"]["row_id"], row["kept_id"]);
    }

    // From an exam answer, by the question's document, to what the student was taught of it.
    let predictions = project.rows("closed.predictions", &[]);
    let row = first(&predictions, |row| row["question_id"] == "e1");
    let told = trace(&project, &["closed.predictions", text(row, "row_id")]);
    assert!(links(&told).contains(&("closed", "parent_id", "exam")));
    assert_eq!(of_kind(&told, "known")[0]["doc_id"], "aurora.txt");
    assert_eq!(of_kind(&told, "document")[0]["values"]["doc_id"], "aurora.txt");
    let sentences = of_kind(&told, "sentences");
    let about = sentences.iter().find(|spot| spot["answer"] == "1987").expect("found");
    assert_eq!(about["sentences"][0]["text"], "The Aurora was built in 1987 by Halden Works.");
    let of_aurora = mixture.iter().filter(|row| row["doc_id"] == "aurora.txt").count();
    assert_eq!(made(&told, "mixture", "default")["rows"], of_aurora);
    let trained = &made(&told, "student", "default")["trained"];
    assert_eq!(trained["rows"].as_u64().unwrap() + trained["held_out"].as_u64().unwrap(), of_aurora as u64);
    assert!(trained["seen"][0]["fate"]["trained"][0]["step"].as_u64().unwrap() >= 1);
    let unknown = first(&predictions, |row| row["question_id"] == "e2");
    let told = trace(&project, &["closed.predictions", text(unknown, "row_id")]);
    assert!(of_kind(&told, "document").is_empty());

    // With passages: those that it was asked with, and their bytes.
    let row = project.rows("open.predictions", &["--where", "question_id = 'e1'"]);
    let told = trace(&project, &["open.predictions", text(&row[0], "row_id")]);
    for link in [("open", "contexts", "found"), ("found", "corpus_id", "passages"), ("passages", "parent_id", "documents")] {
        assert!(links(&told).contains(&link), "{link:?} in {:?}", links(&told));
    }
    assert!(of_kind(&told, "sentences").iter().any(|spot| spot["answer"] == "1987"));

    // Forward from both documents: every row that was made, and every step as the training measured it.
    let mut tokens: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut rows, mut held_out) = (0, 0);
    for document in &documents {
        let told = trace(&project, &["documents", text(document, "row_id"), "--forward", "--limit", "100000"]);
        assert_eq!(told[0]["row_id"], document["row_id"]);
        let of = |table: &[Value]| table.iter().filter(|row| row["doc_id"] == document["doc_id"]).count();
        for stage in ["passages", "qa", "qa_unique", "rewrites", "mixture"] {
            assert_eq!(made(&told, stage, "default")["rows"], of(&project.rows(stage, &[])), "{stage}");
        }
        assert_eq!(made(&told, "counts", "default")["rows"], Value::Null);
        assert_eq!(made(&told, "closed", "predictions")["rows"], Value::Null);
        let trained = &made(&told, "student", "default")["trained"];
        for seen in trained["seen"].as_array().expect("a list") {
            for place in seen["fate"]["trained"].as_array().into_iter().flatten() {
                *tokens.entry(place["step"].as_u64().unwrap()).or_default() += place["tokens"].as_u64().unwrap();
            }
        }
        rows += trained["rows"].as_u64().unwrap();
        held_out += trained["held_out"].as_u64().unwrap();
    }
    assert_eq!(rows + held_out, mixture.len() as u64);
    assert!(held_out > 0);
    let mut sum = 0;
    let traced: Vec<(u64, u64)> = tokens
        .into_iter()
        .map(|(step, tokens)| {
            sum += tokens;
            (step, sum)
        })
        .collect();
    let metrics = project.rows("student.metrics", &["--where", "step > 0"]);
    let mut measured: Vec<(u64, u64)> =
        metrics.iter().map(|row| (row["step"].as_u64().unwrap(), row["tokens"].as_u64().unwrap())).collect();
    measured.sort_unstable();
    assert_eq!(traced, measured);

    // Forward from a sentence: what answers from it, and the passage that holds it.
    let aurora = first(&documents, |document| document["doc_id"] == "aurora.txt");
    let qa = project.rows("qa", &["--where", "doc_id = 'aurora.txt'"]);
    let says = qa.iter().filter(|row| "The Aurora was built in 1987 by Halden Works.".contains(text(row, "answer"))).count();
    let id = text(aurora, "row_id");
    let told = trace(&project, &["documents", id, "--forward", "--sentence", "built in 1987 by halden works"]);
    let rows = made(&told, "qa", "default")["rows"].as_u64().unwrap();
    assert!((1..qa.len() as u64).contains(&rows) && rows <= says as u64 + 1, "{rows} of {}, {says}", qa.len());
    assert_eq!(made(&told, "passages", "default")["rows"], 1);
    assert!(mistake(&project, &["documents", id, "--forward", "--sentence", "sunk in 1912"]).contains("no sentence"));

    // On a terminal.
    let shown = project.call(&["trace", "pipeline.yaml", "mixture", text(row_of(&mixture), "row_id")]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("parent_id: rewrites (rewrite) ") && shown.contains("stands in bytes"), "{shown}");
}

fn row_of(mixture: &[Value]) -> &Value {
    first(mixture, |row| row["kind"] == "document")
}

#[test]
fn an_id_that_is_not_there_is_looked_for_nearby_and_then_on_the_store() {
    let project = Project::new();
    project.write(
        "pipeline.yaml",
        r#"
pipeline: ids
stages:
  documents: { op: read, path: "docs/*.txt" }
  passages: { op: chunk, from: documents, max_characters: 60 }
  long: { op: filter, from: passages, where: "length(text) > 20" }
"#,
    );
    project.write("docs/a.txt", AURORA);
    assert!(mistake(&project, &["documents", "00"]).contains("there is no store"));
    project.ran(&[]);
    let documents = project.rows("documents", &[]);
    let passages = project.rows("passages", &[]);
    let id = text(&documents[0], "row_id");
    let said = mistake(&project, &["long", id]);
    assert!(said.contains(&format!("`long` has no row `{id}`")), "{said}");
    assert!(said.contains(&format!("`ingrain trace pipeline.yaml documents {id}`")), "{said}");
    // Both have it: `passages` is nearer to `documents` than `long` is.
    let said = mistake(&project, &["documents", text(&passages[0], "row_id")]);
    assert!(said.contains("`passages` has it"), "{said}");
    let said = mistake(&project, &["long", "no such row"]);
    assert!(said.contains("nor anything else on the store") && said.contains("`ingrain show pipeline.yaml long`"), "{said}");
    let said = mistake(&project, &["passages", ""]);
    assert!(said.contains("several rows of `passages` begin with ``") && said.contains("write more of it"), "{said}");
    assert!(mistake(&project, &["nothing", id]).contains("no stage is called `nothing`"));

    // The file says something else now, and has no row for its last chunk any more.
    let last = text(first(&passages, |row| row["chunk_index"] == passages.len() - 1), "row_id");
    project.write("docs/a.txt", "The Aurora is a ferry of the Northwind Line.");
    let said = mistake(&project, &["passages", last]);
    assert!(said.contains("`passages` hasn't run as it stands now"), "{said}");
    assert!(said.contains("`passages` of pipeline `ids`, run `"), "{said}");
    project.ran(&[]);
    let said = mistake(&project, &["passages", last]);
    assert!(said.contains(&format!("`passages` has no row `{last}`, nor has any other stage")), "{said}");
    assert!(said.contains("`passages` of pipeline `ids`, run `"), "{said}");
}

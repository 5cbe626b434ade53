//! What decides a stage key, and what doesn't: for every field of every operator.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use ingrain_engine::{
    diagnostic::Source,
    plan::{Plan, SourceColumns},
    run::{Environment, Resolver, Settings},
    spec,
    store::{Buckets, Manifest, Store, TableManifest},
};
use ingrain_operators::REGISTRY;

use crate::project::Project;

/// What stages read.
const ABOVE: &str = r#"
  documents: { op: read, path: "docs/*.md" }
  words: { op: tokenizer, from: documents, vocabulary: 300 }
  base: { op: checkpoint, from: words, preset: tiny }
  qa: { op: synthesize_qa, from: documents, teacher: first }
  rewrites: { op: rewrite, from: { documents: documents, questions: qa }, teacher: first }
  mixture: { op: mix, from: { sources: [qa, rewrites], tokenizer: words } }
  exam: { op: read, path: exam.jsonl, format: open_ended }
  found: { op: retrieve, from: { questions: exam, corpus: documents } }
  before: { op: evaluate, from: { questions: exam, contexts: found }, reader: first }
  after: { op: evaluate, from: { questions: exam, contexts: found }, reader: second }
  cells:
    op: evaluate
    from: { questions: exam, contexts: found }
    reader: first
    matrix: { arm: [a, b], size: [1, 2], seed: [3, 4] }
    resamples: "${matrix.size}"
"#;

/// Fields with other values than a stage has.
type Values = &'static [(&'static str, &'static str)];

/// Stages of each operator, and for each of its fields another value.
const STAGES: &[(&str, &str, Values)] = &[
    ("read", "path: docs/*.md", &[("format", "text"), ("columns", "{ text: body }")]),
    ("tokenizer", "from: documents, vocabulary: 300", &[("vocabulary", "301"), ("chat_template", "one.jinja")]),
    ("tokenizer", "path: one.json", &[("path", "two.json")]),
    ("chunk", "from: documents, max_characters: 100", &[("max_characters", "101"), ("overlap_characters", "5")]),
    (
        "chunk",
        "from: { documents: documents, tokenizer: words }, max_tokens: 100",
        &[("max_tokens", "101"), ("overlap_tokens", "5")],
    ),
    (
        "synthesize_qa",
        "from: documents, teacher: first",
        &[
            ("teacher", "second"),
            ("pairs", "9"),
            ("draws", "2"),
            ("prompt", "one.jinja"),
            ("temperature", "0.5"),
            ("top_p", "0.5"),
            ("max_output_tokens", "100"),
            ("attempts", "4"),
        ],
    ),
    (
        "rewrite",
        "from: { documents: documents, questions: qa }, teacher: first",
        &[
            ("teacher", "second"),
            ("per_document", "9"),
            ("prompt", "one.jinja"),
            ("temperature", "0.5"),
            ("top_p", "0.5"),
            ("max_output_tokens", "100"),
            ("min_words", "5"),
            ("attempts", "4"),
        ],
    ),
    ("rewrite", "from: documents, strategy: rephrase, teacher: first", &[("styles", "[easy, qa]"), ("per_document", "9")]),
    ("filter", "from: documents, where: \"length(text) > 3\"", &[("where", "\"length(text) > 4\"")]),
    ("split", "from: documents", &[("heldout", "0.2"), ("by", "doc_id")]),
    (
        "dedup",
        "from: documents, column: text, similarity: 0.8",
        &[("column", "title"), ("within", "doc_id"), ("similarity", "0.9"), ("ngram", "{ words: 3 }")],
    ),
    (
        "sql",
        "from: { d: documents }, query: \"select doc_id, title from d\", key: [doc_id]",
        &[("query", "\"select title, doc_id from d\""), ("key", "[doc_id, title]")],
    ),
    ("diversity", "from: [documents, rewrites]", &[("column", "doc_id"), ("token_budget", "50"), ("embedder", "first")]),
    (
        "mix",
        "from: { sources: [qa, rewrites], tokenizer: words }",
        &[("weights", "[1, 2]"), ("tokens", "1000"), ("render", "chat")],
    ),
    ("mix", "from: { sources: qa, replay: rewrites, tokenizer: words }", &[("replay", "0.2")]),
    (
        "train",
        "from: { mixture: mixture, base: base }",
        &[
            ("epochs", "3"),
            ("learning_rate", "1.0e-4"),
            ("sequence", "64"),
            ("batch", "4"),
            ("warmup", "0.1"),
            ("weight_decay", "0.1"),
            ("beta1", "0.8"),
            ("beta2", "0.99"),
            ("epsilon", "1.0e-6"),
            ("clip", "2.0"),
            ("loss_on", "completion"),
            ("heldout", "0.1"),
            ("evaluate_every", "10"),
            ("micro_batch", "1"),
            ("optimizer", "adafactor"),
            ("precision", "bf16"),
            ("lora", "{ rank: 4 }"),
            ("fused_update", "true"),
        ],
    ),
    ("retrieve", "from: { questions: exam, corpus: documents }", &[("method", "gold"), ("top_k", "9")]),
    (
        "evaluate",
        "from: { questions: exam, contexts: found }, reader: first",
        &[
            ("reader", "second"),
            ("by", "doc_id"),
            ("resamples", "10"),
            ("temperature", "0.5"),
            ("max_output_tokens", "10"),
            ("tolerance", "0.01"),
        ],
    ),
    ("evaluate", "from: { questions: exam, model: base }", &[("method", "generate"), ("render", "chat")]),
    (
        "compare",
        "from: [before.predictions, after.predictions]",
        &[("baseline", "1"), ("column", "token_f1"), ("against", "exact_match"), ("resamples", "10")],
    ),
    ("compare", "from: cells.predictions", &[("pool", "[seed]"), ("baseline", "{ arm: b }")]),
    (
        "scaling",
        "from: cells.predictions, x: size",
        &[
            ("x", "seed"),
            ("y", "exact_match"),
            ("by", "[seed, arm]"),
            ("pool", "[seed]"),
            ("baseline", "{ arm: a }"),
            ("resamples", "10"),
        ],
    ),
];

/// Fields that have one value only, and those that stay out of keys with a reason of their own.
const ONE_VALUE: &[(&str, &str)] = &[("checkpoint", "preset"), ("synthesize_qa", "avoid_repeats"), ("rewrite", "strategy")];

fn project() -> Project {
    let project = Project::new();
    project.write("docs/a.md", "# A\n\nText.\n");
    project.write("exam.jsonl", "{\"question\": \"Who?\", \"answer\": \"Ida\"}\n");
    for (name, content) in [("one.json", "{}"), ("two.json", "{ }"), ("one.jinja", "{{ text }}"), ("two.jinja", "{{ text }}.")] {
        project.write(name, content);
    }
    project
}

fn pipeline(stage: &str) -> String {
    let models = "models: { first: { offline: {} }, second: { openai: { base_url: \"http://localhost/v1\", model: m } } }";
    format!("pipeline: keys\n{models}\nstages:{ABOVE}  x: {{ {stage} }}\n")
}

/// The key of the stage `name`, on inputs that are the same for every pipeline.
async fn key(project: &Project, text: &str, name: &str) -> String {
    let source = Source::new("pipeline.yaml", text);
    let (spec, wrong) = spec::parse(&source, &REGISTRY, &[], &|_| None);
    assert_eq!(wrong, Vec::new(), "{text}");
    let folder = project.path("");
    let (plan, wrong) = Plan::compile(&spec.expect("a spec"), &REGISTRY, folder, &SourceColumns::new());
    assert_eq!(wrong, Vec::new(), "{text}");
    let plan = plan.expect("a plan");
    let index = plan.find(name).expect("the stage");
    let mut upstream = HashMap::new();
    for (above, _) in plan.reads(index).into_values() {
        let table = |output: &ingrain_engine::operator::Output| {
            (output.name.clone(), TableManifest::new(&output.schema, Vec::new(), Vec::new()))
        };
        let outputs: BTreeMap<_, _> = plan.stage(above).outputs.iter().map(table).collect();
        upstream.insert(above, Arc::new(Manifest::new(outputs, 0)));
    }
    let settings = Settings {
        store: Store::existing(&project.path("nowhere").to_string_lossy(), &Buckets::default()).await.expect("an empty store"),
        pipeline: "keys".to_owned(),
        file: project.path("pipeline.yaml"),
        budget: None,
        buckets: Buckets::default(),
        cache: project.path(".cache"),
        cache_limit: 1 << 20,
        registry: REGISTRY,
        models: plan.models.clone(),
        device: "cpu".to_owned(),
        memory: 1 << 26,
        threads: 1,
        retry_rejects: false,
        part_bytes: 1 << 20,
    };
    let environment = Environment::new(settings).expect("surroundings");
    Resolver::new(&plan, &environment, HashSet::new()).key(index, &upstream).await.expect("a key").key
}

/// The stage with `field` at `value`, whatever it was before.
fn with(stage: &str, field: &str, value: &str) -> String {
    let (mut depth, mut is_quoted) = (0, false);
    let mut parts = vec![String::new()];
    for char in stage.chars() {
        match char {
            '"' => is_quoted = !is_quoted,
            _ if is_quoted => {}
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().expect("one part").push(char);
    }
    let name = format!("{field}:");
    parts.retain(|part| !part.trim_start().starts_with(&name));
    parts.push(format!("{field}: {value}"));
    parts.join(",")
}

#[tokio::test]
async fn every_field_of_every_operator_is_in_the_key() {
    let project = project();
    let mut changed: BTreeSet<(&str, &str)> = ONE_VALUE.iter().copied().collect();
    for (op, fields, others) in STAGES {
        let stage = format!("op: {op}, {fields}");
        let before = key(&project, &pipeline(&stage), "x").await;
        assert_eq!(key(&project, &pipeline(&stage), "x").await, before, "{op}");
        for (field, value) in *others {
            let after = key(&project, &pipeline(&with(&stage, field, value)), "x").await;
            assert_ne!(after, before, "`{field}` of `{op}` isn't in the key");
            changed.insert((op, field));
        }
        // Names, order and comments are in no key.
        let renamed = pipeline(&stage).replace("  x: ", "  # a comment\n  y: ");
        assert_eq!(key(&project, &renamed, "y").await, before, "{op}");
        let reversed: Vec<&str> = fields.rsplitn(2, ", ").collect();
        if !fields.contains(['{', '[', '"']) {
            let stage = format!("{}, op: {op}", reversed.join(", "));
            assert_eq!(key(&project, &pipeline(&stage), "x").await, before, "{op}");
        }
    }
    let mut missing = Vec::new();
    for operator in REGISTRY.operators {
        let schema = operator.schema().to_value();
        for field in schema["properties"].as_object().into_iter().flatten().map(|(field, _)| field.as_str()) {
            let is_unkeyed = operator.unkeyed.iter().any(|(name, _)| *name == field);
            if !is_unkeyed && !changed.contains(&(operator.name, field)) {
                missing.push(format!("{}.{field}", operator.name));
            }
        }
        for (field, reason) in operator.unkeyed {
            assert!(!reason.is_empty(), "`{field}` of `{}` stays out of the key without a reason", operator.name);
        }
    }
    assert_eq!(missing, Vec::<String>::new(), "no other value of these fields is tried here");
}

#[tokio::test]
async fn a_default_that_is_written_out_is_the_default() {
    let project = project();
    for (stage, written) in [
        ("op: synthesize_qa, from: documents, teacher: first", "pairs: 8, draws: 1, temperature: 1, top_p: 1.0, attempts: 3"),
        ("op: split, from: documents", "heldout: 0.1, by: row_id"),
        ("op: train, from: { mixture: mixture, base: base }", "warmup: 0.05, clip: 1, loss_on: all, beta1: 9.0e-1"),
        ("op: read, path: docs/*.md", "format: auto, exclude: [], columns: {}"),
    ] {
        let both = format!("{stage}, {written}");
        assert_eq!(key(&project, &pipeline(stage), "x").await, key(&project, &pipeline(&both), "x").await, "{written}");
    }
}

#[tokio::test]
async fn files_count_by_content_and_models_by_identity() {
    let project = project();
    let prompted = |file: &str| pipeline(&format!("op: synthesize_qa, from: documents, teacher: first, prompt: {file}"));
    let before = key(&project, &prompted("one.jinja"), "x").await;
    assert_ne!(key(&project, &prompted("two.jinja"), "x").await, before);
    project.write("two.jinja", "{{ text }}");
    assert_eq!(key(&project, &prompted("two.jinja"), "x").await, before, "another path to the same text");

    let taught = pipeline("op: synthesize_qa, from: documents, teacher: second");
    let before = key(&project, &taught, "x").await;
    for (what, is_same) in [
        ("base_url: \"http://elsewhere/v1\", model: m", true),
        ("base_url: \"http://localhost/v1\", model: m, timeout: 5", true),
        ("base_url: \"http://localhost/v1\", model: n", false),
        ("base_url: \"http://localhost/v1\", model: m, revision: r2", false),
        ("base_url: \"http://localhost/v1\", model: m, context: 8Ki", false),
        ("base_url: \"http://localhost/v1\", model: m, extra_body: { top_k: 4 }", false),
    ] {
        let other = taught.replace("base_url: \"http://localhost/v1\", model: m", what);
        assert_eq!(key(&project, &other, "x").await == before, is_same, "{what}");
    }
    // A seed counts where something is drawn by it, and a wish to be asked anew everywhere.
    let seeded = |stage: &str| pipeline(stage).replace("pipeline: keys", "pipeline: keys\nseed: 9");
    for (stage, is_same) in [
        ("op: synthesize_qa, from: documents, teacher: first", true),
        ("op: train, from: { mixture: mixture, base: base }", false),
    ] {
        assert_eq!(key(&project, &seeded(stage), "x").await == key(&project, &pipeline(stage), "x").await, is_same, "{stage}");
        let refreshed = pipeline(&format!("{stage}, refresh: 2"));
        assert_ne!(key(&project, &refreshed, "x").await, key(&project, &pipeline(stage), "x").await, "{stage}");
    }
}

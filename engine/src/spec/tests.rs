use std::{borrow::Cow, collections::BTreeMap};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema as schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

mod matrix;

use super::*;
use crate::{
    diagnostic::Diagnostics,
    operator::{Inputs, Invalid, Lowering, Output, Ports},
};

/// Cuts documents into chunks.
///
/// The second paragraph is for the reference page.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Chunk {
    /// Most tokens in a chunk.
    max_tokens: Size,
    /// How many tokens neighbours share.
    #[serde(default)]
    overlap_tokens: u32,
    /// How documents are cut.
    #[serde(default)]
    strategy: Strategy,
    #[serde(default)]
    order: Option<Order>,
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    similarity: f64,
    #[serde(default)]
    weights: Vec<f64>,
    #[serde(default)]
    path: Option<Paths>,
    #[serde(default)]
    #[schemars(length(min = 1))]
    column: Option<String>,
    #[serde(default)]
    cased: bool,
    #[serde(default)]
    limit: Option<Limit>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Limit {
    Word(Auto),
    Size(Size),
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Auto {
    Auto,
}

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Strategy {
    #[default]
    Plain,
    Focal,
    BySentence,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Order {
    /// As they come.
    Given,
    /// By hash.
    Random,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Paths {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Train {
    epochs: u32,
    #[serde(default)]
    learning_rate: f64,
    #[serde(default)]
    schedule: Option<Schedule>,
    #[serde(default)]
    method: Option<Method>,
    #[serde(default)]
    extra: serde_json::Map<String, Value>,
    /// Where progress is sent.
    #[serde(default)]
    token: Option<Secret>,
    #[serde(default)]
    tree: Option<Box<Tree>>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Tree {
    children: Vec<Tree>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Schedule {
    Constant {},
    Cosine { warmup: u32 },
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Method {
    Bm25,
    Embeddings { model: String },
    Hybrid { share: f64 },
}

/// A half of the checks that only serde knows.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, try_from = "EvenFields")]
struct Even {
    number: u32,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EvenFields {
    number: u32,
}

impl TryFrom<EvenFields> for Even {
    type Error = String;

    fn try_from(fields: EvenFields) -> Result<Self, String> {
        if fields.number.is_multiple_of(2) { Ok(Self { number: fields.number }) } else { Err("`number` must be even".into()) }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Secret(String);

impl JsonSchema for Secret {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schema!({ "type": "string", "format": "secret" })
    }
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Header {
    Secret(Secret),
    Plain(String),
}

#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Model {
    #[serde(flatten)]
    provider: Provider,
    #[serde(default)]
    max_in_flight: Option<u32>,
}

#[derive(JsonSchema, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code)]
enum Provider {
    Offline(Offline),
    OpenAi(OpenAi),
}

#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
struct Offline {}

#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct OpenAi {
    base_url: Paths,
    model: String,
    #[serde(default)]
    api_key: Option<Secret>,
    #[serde(default)]
    headers: BTreeMap<String, Header>,
}

macro_rules! operator {
    ($type:ty) => {
        impl Operator for $type {
            fn ports(&self) -> Ports {
                Ports::Any
            }
            fn bind(&self, _: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
                Ok(Vec::new())
            }
            fn lower(&self, _: &Inputs) -> Lowering {
                Lowering::Rows { query: None, stream: None }
            }
        }
    };
}
operator!(Chunk);
operator!(Train);
operator!(Even);

static OPERATORS: [OperatorType; 4] = [
    OperatorType::of::<Chunk>("chunk", 1),
    OperatorType::of::<Train>("train", 1),
    OperatorType::of::<Even>("even", 1),
    OperatorType::of::<Even>("gather", 1).gathers(),
];

fn registry() -> Registry {
    Registry {
        operators: &OPERATORS,
        planned: &["retrieve"],
        model_schema: || schemars::generate::SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Model>(),
        model_beside: |entry, _| entry.clone(),
        model_ready: |_| Ok(()),
        model_identity: |entry, _| Ok(entry.clone()),
        model_on_device: |_| false,
        model_cost: |_| crate::operator::Cost::Free,
    }
}

fn env(name: &str) -> Option<String> {
    match name {
        "URL" => Some("http://teacher/v1".into()),
        "LEAK" => Some("http://me:hunter2@teacher/v1".into()),
        "NUMBER" => Some("12".into()),
        _ => None,
    }
}

fn read_with(text: &str, overrides: &[(&str, &str)]) -> (Option<Spec>, Diagnostics) {
    let source = Source::new("pipeline.yaml", text);
    let overrides: Vec<(String, String)> =
        overrides.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let (spec, list) = parse(&source, &registry(), &overrides, &env);
    (spec, Diagnostics::new(source, list))
}

/// Message, text under the place, label and help of every mistake.
fn found(text: &str) -> Vec<(String, String, String, String)> {
    let diagnostics = read_with(text, &[]).1;
    let one = |diagnostic: &Diagnostic| {
        let under = diagnostic.span.map_or("-", |span| diagnostics.source.slice(span));
        let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
        (diagnostic.message.clone(), under.to_owned(), or_empty(&diagnostic.label), or_empty(&diagnostic.help))
    };
    diagnostics.list.iter().map(one).collect()
}

#[track_caller]
fn expect(text: &str, expected: &[(&str, &str)]) {
    let found = found(text);
    let short: Vec<(&str, &str)> = found.iter().map(|(message, under, ..)| (message.as_str(), under.as_str())).collect();
    assert_eq!(short, expected, "in\n{text}");
}

/// Mistakes of a `chunk` stage with these further keys.
#[track_caller]
fn expect_chunk(keys: &str, expected: &[(&str, &str)]) {
    expect(&format!("pipeline: p\nstages:\n  units: {{ op: chunk, max_tokens: 1, {keys} }}\n"), expected);
}

#[track_caller]
fn expect_train(keys: &str, expected: &[(&str, &str)]) {
    expect(&format!("pipeline: p\nstages:\n  student: {{ op: train, epochs: 1, {keys} }}\n"), expected);
}

#[track_caller]
fn expect_model(model: &str, expected: &[(&str, &str)]) {
    expect(&format!("pipeline: p\nmodels:\n  m: {model}\nstages:\n  units: {{ op: chunk, max_tokens: 1 }}\n"), expected);
}

const VALID: &str = r#"# A pipeline
pipeline: hand-book_1
description: Teach a model our handbook
store: s3://team/ingrain
seed: 7
vars: { tokens: 2M, share: 0.25, both: [1, 1], name: "run ${env:NUMBER}" }
models:
  llama:
    openai: { base_url: "${env:URL}", model: "m", api_key: "${secret:KEY}", headers: { a: plain, b: "${secret:B}" } }
    max_in_flight: 256
  offline: { offline: {} }
s3:
  public: { region: "${env:NUMBER}", anonymous: true }
stages:
  units: { op: chunk, from: { documents: documents, tokenizer: base.tokenizer }, max_tokens: "${vars.tokens}", weights: "${vars.both}" }
  student:
    op: train
    from: [units, other.heldout]
    epochs: 2.0
    learning_rate: 1e-5
    schedule: { kind: cosine, warmup: 10 }
    method: { hybrid: { share: "${vars.share}" } }
    token: ${secret:TOKEN}
    extra: { text: "costs $${x} in ${vars.name}: ${vars.share}" }
    seed: 3
    refresh: again
    min_yield: 0.75
    description: on
  twin: { op: chunk, from: units, max_tokens: 512Ki, order: random, path: [a, b], overlap_tokens: 0x10 }
"#;

#[test]
fn reads_a_pipeline() {
    let (spec, diagnostics) = read_with(VALID, &[]);
    assert_eq!(diagnostics.render(false, 100), "");
    let spec = spec.unwrap();
    assert_eq!((spec.pipeline.as_str(), spec.seed), ("hand-book_1", 7));
    assert_eq!(spec.store.as_deref(), Some("s3://team/ingrain"));
    assert_eq!(spec.buckets["public"], json!({ "region": "12", "anonymous": true }));
    assert_eq!(spec.models["llama"]["openai"]["base_url"], json!("http://teacher/v1"));
    assert_eq!(spec.models["llama"]["openai"]["api_key"], json!("${secret:KEY}"));
    assert_eq!(spec.stages.iter().map(|stage| stage.name.as_str()).collect::<Vec<_>>(), ["units", "student", "twin"]);

    let units = &spec.stages[0];
    let (operator, _, config) = units.operator.as_ref().unwrap();
    assert_eq!(operator.name, "chunk");
    assert_eq!(config["max_tokens"], json!(2_000_000));
    assert_eq!(config["weights"], json!([1.0, 1.0]));
    assert_eq!(config["strategy"], json!("plain"));
    assert_eq!((units.seed, units.min_yield, &units.refresh), (None, 0.5, &None));
    let ports: Vec<_> = units.from.iter().map(|port| (port.port.as_deref(), port.list, port.inputs.len())).collect();
    assert_eq!(ports, [(Some("documents"), false, 1), (Some("tokenizer"), false, 1)]);
    let reference = &units.from[1].inputs[0];
    assert_eq!((reference.stage.as_str(), reference.output.as_str()), ("base", "tokenizer"));
    assert_eq!(diagnostics.source.slice(reference.span), "base.tokenizer");

    let student = &spec.stages[1];
    let config = &student.operator.as_ref().unwrap().2;
    assert_eq!(config["epochs"], json!(2));
    assert_eq!(config["learning_rate"], json!(1e-5));
    assert_eq!(config["method"], json!({ "hybrid": { "share": 0.25 } }));
    assert_eq!(config["token"], json!("${secret:TOKEN}"));
    assert_eq!(config["extra"]["text"], json!("costs ${x} in run 12: 0.25"));
    assert_eq!((student.seed, student.min_yield), (Some(3), 0.75));
    assert_eq!((student.refresh.as_ref(), student.description.as_deref()), (Some(&json!("again")), Some("on")));
    assert_eq!((student.from[0].port.as_deref(), student.from[0].list), (None, true));
    assert_eq!(student.from[0].inputs[0].output, "default");
    assert_eq!(diagnostics.source.slice(student.span_of("/epochs")), "2.0");
    assert_eq!(diagnostics.source.slice(student.span_of("/schedule/warmup")), "10");
    assert_eq!(diagnostics.source.slice(student.span_of("/schedule/other")), "{ kind: cosine, warmup: 10 }");
    assert_eq!(diagnostics.source.slice(student.span_of("/none")), "student");
    assert_eq!(diagnostics.source.slice(student.span_of("")), "student");
    assert_eq!(spec.stages[2].operator.as_ref().unwrap().2["overlap_tokens"], json!(16));
}

#[test]
fn top_level() {
    expect("", &[("the file is empty", "")]);
    expect("# nothing\n", &[("the file is empty", "")]);
    expect("- a\n", &[("the file is not a mapping", "")]);
    expect(
        "pipelin: p\nstages: {}\n",
        &[("unknown key `pipelin` at the top of the pipeline", "pipelin"), ("`stages` must not be empty", "stages")],
    );
    expect(
        "seed: 1\n",
        &[("missing key `pipeline` at the top of the pipeline", ""), ("missing key `stages` at the top of the pipeline", "")],
    );
    expect(
        "pipeline: My Pipe\nseed: -1\nstore: 3\nstages: [a]\nvars: x\n",
        &[
            ("`pipeline`: `My Pipe` does not have the right form", "My Pipe"),
            ("`seed` must be at least 0, found `-1`", "-1"),
            ("`store`: expected a text, found a number", "3"),
            ("`stages`: expected a mapping, found a list", "stages"),
            ("`vars`: expected a mapping, found a text", "x"),
        ],
    );
}

#[test]
fn buckets() {
    let at = |entry: &str| format!("pipeline: p\ns3:\n  corpora: {entry}\nstages:\n  a: {{ op: even, number: 2 }}\n");
    let (spec, diagnostics) = read_with(
        &at(
            "{ endpoint: \"http://minio:9000\", region: eu-west-1, key_id: \"${secret:ID}\", key: \"${secret:KEY}\", path_style: true }",
        ),
        &[],
    );
    assert_eq!(diagnostics.render(false, 100), "");
    let spec = spec.unwrap();
    assert_eq!(spec.buckets["corpora"]["endpoint"], json!("http://minio:9000"));
    assert_eq!(spec.buckets["corpora"]["key"], json!("${secret:KEY}"));
    expect(&at("{ regin: x }"), &[("unknown key `regin` in `s3.corpora`", "regin")]);
    expect(
        &at("{ endpoint: minio:9000 }"),
        &[("`s3.corpora.endpoint`: `minio:9000` does not have the right form", "minio:9000")],
    );
    expect(&at("{ key_id: AKIA, key: \"${secret:K}\" }"), &[("a secret must not stand in a pipeline file", "AKIA")]);
    expect(&at("{ region: \"${secret:K}\" }"), &[("a secret can't stand here", "${secret:K}")]);
    expect(&at("{ key: \"${secret:K}\" }"), &[("`s3.corpora` has `key` and no `key_id`", "key")]);
    expect(&at("{ key_id: \"${secret:K}\" }"), &[("`s3.corpora` has `key_id` and no `key`", "key_id")]);
    expect(
        &at("{ anonymous: true, key_id: \"${secret:I}\", key: \"${secret:K}\" }"),
        &[("`s3.corpora` is `anonymous` and has credentials", "anonymous")],
    );
    expect(&at("3"), &[("`s3.corpora`: expected a mapping, found a number", "3")]);
}

#[test]
fn operators_and_engine_keys() {
    let at = |stage: &str| format!("pipeline: p\nstages:\n  {stage}\n");
    expect(&at("a: { op: chunks, max_tokens: 1 }"), &[("unknown operator `chunks`", "chunks")]);
    let (_, _, label, help) = found(&at("a: { op: chunks }")).remove(0);
    assert_eq!((label.as_str(), help.as_str()), ("did you mean `chunk`?", "operators: `chunk`, `train`, `even`, `gather`"));
    expect(&at("a: { op: retrieve, top_k: 3 }"), &[("operator `retrieve` is not built yet", "retrieve")]);
    expect(&at("a: { max_tokens: 1 }"), &[("missing key `op` in stage `a`", "a")]);
    expect(&at("a: { op: 3 }"), &[("`op`: expected a text, found a number", "3")]);
    expect(&at("a: chunk"), &[("stage `a`: expected a mapping, found a text", "a")]);
    expect(&at("a:"), &[("stage `a`: expected a mapping, found nothing", "a")]);
    expect(&at("Big: { op: even, number: 2 }"), &[("`Big` is no name for a stage", "Big")]);
    expect(&at("a: { op: even, number: 3 }"), &[("stage `a`: `number` must be even", "a")]);
    expect_chunk("seed: -1", &[("`seed` must be at least 0, found `-1`", "-1")]);
    expect_chunk("min_yield: 1.5", &[("`min_yield` must be at most 1, found `1.5`", "1.5")]);
    expect_chunk("min_yield: most", &[("`min_yield`: expected a number, found a text", "most")]);
    expect_chunk("refresh: [1]", &[("`refresh`: expected `true` or `false`, a number or a text, found a list", "refresh")]);
    // A stage with an unknown operator is still looked at as far as the engine's keys go.
    expect(
        &at("a: { op: nope, min_yield: 2, from: '!' }"),
        &[
            ("unknown operator `nope`", "nope"),
            ("`min_yield` must be at most 1, found `2`", "2"),
            ("`!` names no output of a stage", "'!'"),
        ],
    );
}

#[test]
fn references() {
    expect_chunk("from: a.b.c", &[("`a.b.c` names no output of a stage", "a.b.c")]);
    expect_chunk("from: 3", &[("`from`: expected the name of a stage, found a number", "3")]);
    expect_chunk("from: ", &[("`from`: expected the name of a stage, found nothing", "from")]);
    expect_chunk("from: []", &[("`from` must not be empty", "[]")]);
    expect_chunk("from: { a: [] }", &[("`from.a` must not be empty", "[]")]);
    expect_chunk("from: { a: { b: c } }", &[("`from`: expected the name of a stage, found a mapping", "{ b: c }")]);
    expect_chunk("from: [a, B]", &[("`B` names no output of a stage", "B")]);
    for text in ["a[", "a[]", "a[x]", "a[x=1,x=2]", "a[x=1]b", "[x=1]", "a.b[x=1]"] {
        let message = format!("`{text}` names no output of a stage");
        expect_chunk(&format!("from: '{text}'"), &[(&message, &format!("'{text}'"))]);
    }
}

#[test]
fn unknown_and_missing_keys() {
    expect_chunk("overlap: 3", &[("unknown key `overlap` in stage `units`", "overlap")]);
    let text = "pipeline: p\nstages:\n  units: { op: chunk, max_token: 3 }\n";
    let (message, under, label, help) = found(text).remove(0);
    assert_eq!((message.as_str(), under.as_str()), ("unknown key `max_token` in stage `units`", "max_token"));
    assert_eq!(label, "did you mean `max_tokens`?");
    assert_eq!(
        help,
        "valid keys: `max_tokens`, `overlap_tokens`, `strategy`, `order`, `similarity`, `weights`, `path`, `column`, \
         `cased`, `limit`, `op`, `from`, `matrix`, `seed`, `refresh`, `min_yield`, `description`"
    );
    assert_eq!(found(text).len(), 1, "the misspelt key is the missing one");
    let missing = found("pipeline: p\nstages:\n  units: { op: chunk }\n").remove(0);
    assert_eq!(missing.0, "missing key `max_tokens` in stage `units`");
    assert_eq!((missing.1.as_str(), missing.3.as_str()), ("units", "`max_tokens`: Most tokens in a chunk."));
    expect_train("tree: { children: [{ childern: [] }] }", &[("unknown key `childern` in `tree.children[0]`", "childern")]);
    expect_train("tree: { children: [{}] }", &[("missing key `children` in `tree.children[0]`", "{}")]);
}

#[test]
fn values() {
    expect_chunk("overlap_tokens: few", &[("`overlap_tokens`: expected a whole number, found a text", "few")]);
    expect_chunk("overlap_tokens: 1.5", &[("`overlap_tokens`: expected a whole number, found `1.5`", "1.5")]);
    expect_chunk("overlap_tokens: -5", &[("`overlap_tokens` must be at least 0, found `-5`", "-5")]);
    expect_chunk("cased: yes", &[("`cased`: expected `true` or `false`, found a text", "yes")]);
    expect_chunk("similarity: true", &[("`similarity`: expected a number, found `true`", "true")]);
    expect_chunk("similarity: 1.01", &[("`similarity` must be at most 1, found `1.01`", "1.01")]);
    expect_chunk(
        "weights: [1, x, 2, y]",
        &[("`weights[1]`: expected a number, found a text", "x"), ("`weights[3]`: expected a number, found a text", "y")],
    );
    expect_chunk("column: ''", &[("`column` must not be empty", "''")]);
    expect_chunk("path: 3", &[("`path`: expected a text or a list, found a number", "3")]);
    expect_chunk("path: [a, 3]", &[("`path[1]`: expected a text, found a number", "3")]);
    expect_chunk("strategy: 3", &[("`strategy`: expected a text, found a number", "3")]);
    for (key, choices) in [("strategy: focl", "`plain`, `focal`, `by_sentence`"), ("order: givn", "`given`, `random`")] {
        let (message, _, label, help) =
            found(&format!("pipeline: p\nstages:\n  u: {{ op: chunk, max_tokens: 1, {key} }}\n")).remove(0);
        let (field, word) = key.split_once(": ").unwrap();
        assert_eq!(message, format!("`{field}`: `{word}` is not one of the choices"));
        assert!(label.starts_with("did you mean `"), "{label}");
        assert_eq!(help, format!("choices: {choices}"));
    }
    expect(
        "pipeline: p\nstages:\n  u: { op: chunk, max_tokens: 2Q }\n  v: { op: chunk, max_tokens: 1.0001k }\n",
        &[
            ("`max_tokens`: `2Q` is not a size", "2Q"),
            ("stage `v`: `1.0001k` is not a size: a whole number, with `K`, `M`, `G`, `Ki`, `Mi` or `Gi` behind it or not", "v"),
        ],
    );
}

#[test]
fn alternatives() {
    expect_train("schedule: { kind: cosin, warmup: 1 }", &[("`schedule.kind`: `cosin` is not one of the choices", "cosin")]);
    expect_train("schedule: { warmup: 1 }", &[("missing key `kind` in `schedule`", "schedule")]);
    expect_train("schedule: { kind: cosine }", &[("missing key `warmup` in `schedule`", "schedule")]);
    expect_train("schedule: { kind: cosine, warmup: x }", &[("`schedule.warmup`: expected a whole number, found a text", "x")]);
    expect_train("schedule: { kind: cosine, warmup: 1, extra: 2 }", &[("unknown key `extra` in `schedule`", "extra")]);
    expect_train("method: bm2", &[("`method`: `bm2` is not one of the choices", "bm2")]);
    expect_train("method: { hybrid: { share: x } }", &[("`method.hybrid.share`: expected a number, found a text", "x")]);
    expect_train("method: { hybrd: { share: 1 } }", &[("unknown key `hybrd` in `method`", "hybrd")]);
    expect_train("method: [1]", &[("`method`: expected a text or a mapping, found a list", "method")]);
    expect_chunk("limit: auto", &[]);
    expect_chunk("limit: 3", &[]);
    expect_chunk("limit: 2Q", &[("`limit`: `2Q` is none of the accepted forms", "2Q")]);
    let (.., help) = found("pipeline: p\nstages:\n  u: { op: chunk, max_tokens: 1, limit: 2Q }\n").remove(0);
    assert_eq!(help, "accepted: `auto` or a size such as `2M`");
    expect_chunk("limit: [1]", &[("`limit`: expected a text or a whole number, found a list", "limit")]);
    expect_train("method: {}", &[("missing key in `method`: one of `embeddings`, `hybrid`", "method")]);
}

#[test]
fn models() {
    expect_model("{ offline: {} }", &[]);
    expect_model("{ offline: { x: 1 } }", &[("unknown key `x` in `offline`", "x")]);
    // A value that could not be found out hides nothing beside it.
    expect_model(
        "{ openai: { base_url: \"${env:NONE}\", api_key: sk-1, modl: m } }",
        &[
            ("environment variable `NONE` is not set", "${env:NONE}"),
            ("a secret must not stand in a pipeline file", "sk-1"),
            ("unknown key `modl` in `openai`", "modl"),
        ],
    );
    expect_model(
        "{ openai: { base_url: \"${env:NONE}\", model: m } }",
        &[("environment variable `NONE` is not set", "${env:NONE}")],
    );
    expect_model("{}", &[("missing key in model `m`: one of `offline`, `openai`", "m")]);
    expect_model("{ offlin: {} }", &[("unknown key `offlin` in model `m`", "offlin")]);
    expect_model("{ offline: {}, max_in_flight: x }", &[("`max_in_flight`: expected a whole number, found a text", "x")]);
    expect_model(
        "{ openai: { base_url: [a, 1], modell: m } }",
        &[("`openai.base_url[1]`: expected a text, found a number", "1"), ("unknown key `modell` in `openai`", "modell")],
    );
    expect_model(
        "{ offline: {}, openai: { base_url: a, model: b } }",
        &[("`offline`, `openai` exclude each other in model `m`", "m")],
    );
    expect_model("offline", &[("model `m`: expected a mapping, found a text", "m")]);
}

#[test]
fn secrets() {
    let write = "write `${secret:NAME}`, and give the value in the environment variable `NAME`";
    for value in ["sk-123456789", "'Bearer ${secret:KEY}'", "\"${env:NUMBER}\"", "123456789", "\"${secret:}\""] {
        let text = format!("pipeline: p\nstages:\n  s: {{ op: train, epochs: 1, token: {value} }}\n");
        let (message, under, _, help) = found(&text).remove(0);
        assert_eq!(message, "a secret must not stand in a pipeline file");
        assert_eq!((under.as_str(), help.as_str()), (value, write));
        assert_eq!(found(&text).len(), 1);
        let shown = read_with(&text, &[]).1;
        assert!(!shown.render(false, 200).contains("123456789"));
        assert!(!shown.to_json().to_string().contains("123456789"));
        assert!(!format!("{:?}", read_with(&text, &[]).0).contains("123456789"));
    }
    expect_train("token: null", &[]);
    expect_train("token: [a]", &[("`token`: expected a text, found a list", "token")]);
    expect_chunk("column: \"${secret:KEY}\"", &[("a secret can't stand here", "${secret:KEY}")]);
    expect_train("extra: { a: [\"x ${secret:KEY}\"] }", &[("a secret can't stand here", "${secret:KEY}")]);
    expect(
        "pipeline: p\nvars: { k: \"${secret:K}\" }\nstages:\n  s: { op: train, epochs: 1, token: \"${vars.k}\" }\n",
        &[("a secret can't stand here", "${secret:K}"), ("a secret must not stand in a pipeline file", "\"${vars.k}\"")],
    );
    let misspelt = "pipeline: p\nstages:\n  s: { op: train, epochs: 1, tokn: sk-123456789 }\n";
    expect(misspelt, &[("unknown key `tokn` in stage `s`", "tokn")]);
    assert!(!read_with(misspelt, &[]).1.render(false, 200).contains("sk-123456789"));
    expect_train("tokn: \"${secret:K}\"", &[("unknown key `tokn` in stage `student`", "tokn")]);
    expect_model("{ openai: { base_url: u, model: m, headers: { a: plain, b: \"${secret:B}\" } } }", &[]);
}

#[test]
fn credentials_in_urls() {
    let text = "pipeline: p\nstore: s3://id:hunter2@bucket/x\nstages:\n  s: { op: chunk, max_tokens: 1, path: \
                ['https://h/?X-Amz-Signature=hunter2', '${env:LEAK}'] }\n";
    expect(
        text,
        &[
            ("a password stands in this URL", "s3://id:hunter2@bucket/x"),
            ("a signature stands in this URL", "'https://h/?X-Amz-Signature=hunter2'"),
            ("a password stands in this URL", "'${env:LEAK}'"),
        ],
    );
    let found = found(text);
    assert!(found[0].3.starts_with("credentials of a bucket come from the environment"));
    assert!(found[1].3.contains("`${secret:NAME}` in a field for secrets"));
    let (spec, shown) = read_with(text, &[]);
    assert!(!shown.render(false, 200).contains("hunter2") && !format!("{spec:?}").contains("hunter2"));
}

#[test]
fn substitution() {
    expect_chunk("column: \"${env:NONE}\"", &[("environment variable `NONE` is not set", "${env:NONE}")]);
    expect_chunk("overlap_tokens: \"${env:NONE}\"", &[("environment variable `NONE` is not set", "${env:NONE}")]);
    expect_chunk(
        "overlap_tokens: \"${env:NUMBER}\"",
        &[("`overlap_tokens`: expected a whole number, found a text", "\"${env:NUMBER}\"")],
    );
    expect_chunk("column: 'a ${matrix.x} b'", &[("the stage has no axis `x`", "${matrix.x}")]);
    expect_chunk("column: 'a ${b} c ${d'", &[("`${b}` means nothing", "${b}"), ("`${` without `}`", "${d")]);
    expect_chunk("column: '$${b} $$${env:URL}'", &[]);
    expect_chunk(
        "column: '${env:A B}'",
        &[("`${env:A B}` names nothing: `env:` needs a name of letters, digits and `_`", "${env:A B}")],
    );
    let vars = "pipeline: p\nvars: { tokens: 2M, list: [1, 2], map: { a: 1 }, text: x, n: 3, none: \"${env:NONE}\", early: \
                \"${vars.late}\", late: 1 }\nstages:\n";
    let mistakes = [
        ("environment variable `NONE` is not set", "${env:NONE}"),
        ("variable `late` is used above its own value", "${vars.late}"),
        ("unknown variable `token`", "${vars.token}"),
        ("`overlap_tokens`: expected a whole number, found a text", "'${vars.text}'"),
        ("`overlap_tokens`: expected a whole number, found a list", "overlap_tokens"),
        ("`${vars.list}` is no text that can stand inside another", "${vars.list}"),
    ];
    expect(
        &format!(
            "{vars}  a: {{ op: chunk, max_tokens: '${{vars.token}}', column: '${{vars.none}}', path: '${{vars.early}}' }}\n  \
             b: {{ op: chunk, max_tokens: '${{vars.tokens}}', overlap_tokens: '${{vars.text}}' }}\n  \
             c: {{ op: chunk, max_tokens: '${{vars.n}}', overlap_tokens: '${{vars.list}}', column: 'a ${{vars.list}}' }}\n"
        ),
        &mistakes,
    );
}

#[test]
fn overrides() {
    let text = "pipeline: p\nvars: { tokens: 2M, note: a }\nstages:\n  u: { op: chunk, max_tokens: \"${vars.tokens}\", \
                column: \"${vars.note}\" }\n";
    let config = |overrides: &[(&str, &str)]| {
        let (spec, diagnostics) = read_with(text, overrides);
        assert_eq!(diagnostics.render(false, 100), "");
        spec.unwrap().stages[0].operator.as_ref().unwrap().2.clone()
    };
    assert_eq!(config(&[])["max_tokens"], json!(2_000_000));
    assert_eq!(config(&[("vars.tokens", "10M")])["max_tokens"], json!(10_000_000));
    assert_eq!(config(&[("vars.tokens", "1"), ("vars.tokens", "128")])["max_tokens"], json!(128));
    assert_eq!(config(&[("vars.note", "b c: d")])["column"], json!("b c: d"));
    let message = |name: &str, value: &str| read_with(text, &[(name, value)]).1.list.remove(0);
    let unknown = message("vars.token", "1");
    assert_eq!(unknown.message, "`--set vars.token`: the pipeline has no variable `token`; did you mean `vars.tokens`?");
    assert_eq!((unknown.span, unknown.help.as_deref()), (None, Some("variables: `tokens`, `note`")));
    assert_eq!(message("tokens", "1").message, "`--set tokens` sets no variable");
    assert_eq!(message("vars.note", "3").message, "`column`: expected a text, found a number");
    assert_eq!(
        message("vars.tokens", "99999999999999999999").message,
        "`--set vars.tokens`: `99999999999999999999` is too large for a whole number: at most 9223372036854775807"
    );
}

#[test]
fn anchors_in_stages() {
    let text = "pipeline: p\nvars:\n  base: &base { op: chunk, max_tokens: 2, overlap_tokens: x }\nstages:\n  a: *base\n  \
                b: { <<: *base, overlap_tokens: 3 }\n  c: { <<: *base, columm: n }\n";
    // What is wrong inside an anchor is wrong once, however often it is used.
    expect(
        text,
        &[("`overlap_tokens`: expected a whole number, found a text", "x"), ("unknown key `columm` in stage `c`", "columm")],
    );
    let spec = read_with(text, &[]).0.unwrap();
    assert!(spec.stages[0].operator.is_none() && spec.stages[2].operator.is_none());
    assert_eq!(spec.stages[1].operator.as_ref().unwrap().2["overlap_tokens"], json!(3));
}

#[test]
fn variables_do_not_explode() {
    let mut text = "pipeline: p\nvars:\n  v0: xxxxxxxxxxxxxxxx\n".to_owned();
    for i in 1..60 {
        text.push_str(&format!("  v{i}: \"${{vars.v{}}}${{vars.v{}}}\"\n", i - 1, i - 1));
    }
    text.push_str("stages:\n  u: { op: chunk, max_tokens: 1, column: \"${vars.v59}\" }\n");
    let messages: Vec<String> = found(&text).into_iter().map(|(message, ..)| message).collect();
    assert_eq!(messages, ["variables make the file too large"]);
    let mut text = "pipeline: p\nvars:\n  v0: [x]\n".to_owned();
    for i in 1..200 {
        text.push_str(&format!("  v{i}: [\"${{vars.v{}}}\"]\n", i - 1));
    }
    text.push_str("stages:\n  u: { op: chunk, max_tokens: 1, path: \"${vars.v199}\" }\n");
    assert_eq!(found(&text)[0].0, "nested more than 64 levels deep");
    assert_eq!(found(&text).len(), 1);
}

#[test]
fn fifty_mistakes_are_fifty_diagnostics() {
    let mut text = "pipeline: p\nstages:\n".to_owned();
    for i in 0..10 {
        text.push_str(&format!(
            "  s{i}: {{ op: chunk, overlap_tokens: x, similarity: 2, strategy: nope, wieghts: [1], cased: 1, cased: true }}\n"
        ));
    }
    // Each stage: no `max_tokens`, wrong type, out of range, not a choice, unknown key, wrong type, duplicate key.
    assert_eq!(found(&text).len(), 70);
    let text = text.replace(", cased: 1, cased: true", "");
    let found = found(&text);
    assert_eq!(found.len(), 50);
    let source = Source::new("f", text.as_str());
    let again: std::collections::HashSet<_> = read_with(&text, &[])
        .1
        .list
        .iter()
        .map(|diagnostic| (source.position(diagnostic.span.unwrap().start), diagnostic.message.clone()))
        .collect();
    assert_eq!(again.len(), 50);
}

#[test]
fn five_mistakes_as_they_are_shown() {
    let text = r#"pipeline: handbook
vars: { tokens: 2M }
models:
  llama: { openai: { base_url: "http://gpu1:8000/v1", model: llama, api_key: sk-live-1234 } }
stages:
  units:
    op: chunk
    max_token: 8192
    strategy: focl
  student: { op: trian, from: units }
  exam: { op: train, epochs: "${vars.epochs}", learning_rate: 1e-5 }
"#;
    let (_, diagnostics) = read_with(text, &[]);
    let shown = diagnostics.render(false, 100);
    println!("{shown}");
    assert_eq!(diagnostics.list.len(), 5, "{shown}");
    assert!(!shown.contains('\u{1b}') && !shown.contains("1234"), "{shown}");
    for part in [
        "[pipeline.yaml:4:78]",
        "api_key: ************ }",
        "[pipeline.yaml:8:5]",
        "`-- did you mean `max_tokens`?",
        "help: choices: `plain`, `focal`, `by_sentence`",
        "x unknown operator `trian`",
        "[pipeline.yaml:11:31]",
    ] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
}

#[test]
fn damaged_files_never_panic() {
    const MARKS: &[u8] = b"{}[]:,&*!|>'\"%@`#-?$~\t\n\0";
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut reported = 0;
    for _ in 0..2_000 {
        let mut bytes = VALID.as_bytes().to_vec();
        for _ in 0..=next(4) {
            let at = next(bytes.len());
            let length = (1 + next(12)).min(bytes.len() - at);
            match next(4) {
                0 => bytes[at] ^= 1 << next(8),
                1 => drop(bytes.drain(at..at + length)),
                2 => {
                    let piece = bytes[at..at + length].to_vec();
                    let to = next(bytes.len());
                    bytes.splice(to..to, piece);
                }
                _ => bytes[at] = MARKS[next(MARKS.len())],
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (_, diagnostics) = read_with(&text, &[("vars.tokens", "1k")]);
        reported += usize::from(!diagnostics.is_empty());
        diagnostics.render(true, 60);
        diagnostics.to_json();
    }
    assert!(reported > 1_000, "{reported}");
}

#[test]
fn garbage_never_panics() {
    for text in [
        "\0",
        "\u{feff}",
        "{{{{{{{{",
        "]",
        "? ? ?",
        "*a",
        "&a *a",
        "--- |\n\t\n...\n---",
        "%YAML 9.9\n---\n",
        "!!binary \"\\xff\"",
        "a: !!int x\nb: !x {}\n? [c]\n: d",
        "\r\r\n\u{2028}: \u{85}",
        "stages: { a: { op: chunk, <<: 3, <<: [{ op: 1 }, 2] } }",
        "stages: &s { a: *s }",
        "\u{1F4A9}: \"\\ud83d\"",
        "pipeline: ${secret:x}\nstages: { ~: ~, ? : ~ }",
    ] {
        let (_, diagnostics) = read_with(text, &[]);
        assert!(!diagnostics.is_empty(), "{text:?}");
        diagnostics.render(true, 60);
    }
}

fn invalid_by(schema: &Value, text: &str) -> Vec<String> {
    let source = Source::new("f", text);
    let value = tree::parse(&source).root.unwrap().to_json();
    let validator = jsonschema::validator_for(schema).unwrap();
    validator.iter_errors(&value).map(|error| format!("{} {error}", error.instance_path())).collect()
}

#[test]
fn the_json_schema_accepts_what_is_accepted() {
    let schema = json_schema(&registry());
    assert!(jsonschema::draft202012::meta::is_valid(&schema));
    assert_eq!(invalid_by(&schema, VALID), Vec::<String>::new());
    for keys in [
        "overlap_tokens: '${vars.x}', similarity: '${vars.y}', strategy: '${vars.z}', weights: ['${vars.a}', 1]",
        "from: 'a[arm=b].c', matrix: { x: [1] }, seed: '${vars.seed}', cased: '${env:CASED}', order: '${matrix.o}'",
        "path: ['a', '${vars.b}'], refresh: 3, min_yield: 1, description: d",
    ] {
        let text = format!("pipeline: p\nstages:\n  u: {{ op: chunk, max_tokens: '${{vars.n}}', {keys} }}\n");
        assert_eq!(invalid_by(&schema, &text), Vec::<String>::new(), "{keys}");
    }
    let tree = "pipeline: p\nstages:\n  t: { op: train, epochs: 1, tree: { children: [{ children: [] }] } }\n";
    assert_eq!(invalid_by(&schema, tree), Vec::<String>::new());
}

#[test]
fn the_json_schema_refuses_mistakes() {
    let schema = json_schema(&registry());
    for text in [
        "pipeline: p\nstages: {}\n",
        "pipeline: p\nother: 1\nstages: { u: { op: even, number: 2 } }\n",
        "pipeline: p\nstages: { u: { op: evn, number: 2 } }\n",
        "pipeline: p\nstages: { u: { op: even, number: x } }\n",
        "pipeline: p\nstages: { u: { op: even, nmber: 2 } }\n",
        "pipeline: p\nstages: { u: { op: even, number: 2, more: 1 } }\n",
        "pipeline: p\nstages: { U: { op: even, number: 2 } }\n",
        "pipeline: p\nstages: { u: { op: even, number: 2, from: 'a b' } }\n",
        "pipeline: p\nstages: { u: { op: train, epochs: 1, token: sk-1 } }\n",
        "pipeline: p\nstages: { u: { op: train, epochs: 1, tree: { children: [{}] } } }\n",
        "pipeline: p\nmodels: { m: { offlin: {} } }\nstages: { u: { op: even, number: 2 } }\n",
    ] {
        assert!(!invalid_by(&schema, text).is_empty(), "{text}");
    }
    let chunk = &schema["$defs"]["op:chunk"]["properties"];
    assert_eq!(chunk["max_tokens"]["description"], "Most tokens in a chunk.");
    assert!(chunk["op"]["description"].as_str().unwrap().starts_with("Cuts documents into chunks."));
}

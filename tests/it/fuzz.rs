//! Pipeline files that nobody meant: what `check` does with them.

use std::{path::Path, sync::Arc, time::Duration};

use ingrain_engine::{
    diagnostic::{Diagnostic, Diagnostics, Source},
    failure::Failure,
    plan::{Plan, SourceColumns},
    spec::{self, Spec},
};
use ingrain_mutation::{Strategy, holds, mutated_text, strategy::Just, text, within, worded};
use ingrain_operators::REGISTRY;
use serde_json::{Map, Value};

use crate::project::repository;

/// No file of [`ingrain_mutation`]'s size takes longer.
const LONGEST: Duration = Duration::from_secs(1);

/// What a pipeline file is made of, and what it is broken by.
const WORDS: [&str; 72] = [
    "&a ",
    "*a",
    "&b ",
    "*b",
    "<<: *a",
    "<<: [*a, *b]",
    "<<",
    "!!str ",
    "!!int ",
    "!own ",
    "!<tag:x> ",
    "? ",
    "- ",
    ": ",
    ":\n",
    "\n",
    "\n  ",
    "\n    ",
    "\t",
    "# x\n",
    " #",
    "|\n",
    ">-\n",
    "|2+\n",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "\r\n",
    "\r",
    "{",
    "}",
    "[",
    "]",
    ", ",
    "\"",
    "'",
    "\\x00",
    "${vars.tokens}",
    "${vars.x}",
    "${env:SET}",
    "${env:UNSET}",
    "${secret:KEY}",
    "${matrix.a}",
    "$${",
    "${",
    "pipeline: p\n",
    "stages:\n",
    "vars:\n",
    "models:\n",
    "budget: { usd: 1 }\n",
    "s3:\n",
    "store: s3://a:b@c/d\n",
    "seed: -1\n",
    "refresh: ",
    "min_yield: 2\n",
    "matrix: { a: [1] }\n",
    "op: read\n",
    "op: chunk\n",
    "op: sql\n",
    "from: ",
    "from: a\n",
    "path: x\n",
    "query: select 1\n",
    "where: text = 1\n",
    "tokens: 1e999Gi\n",
    "weights: [1, .nan]\n",
    "0o17",
    "1.5Ki",
    ".inf",
    "1_000",
    "2026-01-01",
    "https://u:p@h/?sig=x",
];

/// The pipeline files of the repository, right and wrong, and the stages of the operators' cases.
fn pipelines() -> Vec<String> {
    let mut found = Vec::new();
    for folder in ["pipelines", "src/init", "benches", "tests/errors", "tests/operators"] {
        let mut paths: Vec<_> = std::fs::read_dir(repository().join(folder))
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        paths.sort();
        for path in paths.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "yaml")) {
            let content = std::fs::read_to_string(path).expect("read");
            if folder != "tests/operators" {
                found.push(content);
                continue;
            }
            let cases: Vec<Map<String, Value>> = serde_yaml::from_str(&content).expect("cases");
            let stages = cases.iter().filter_map(|case| case["stages"].as_str());
            found.extend(stages.map(|stages| format!("pipeline: case\nstages:\n{}", indented(stages))));
        }
    }
    assert!(found.len() > 60, "{}", found.len());
    found
}

fn indented(block: &str) -> String {
    block.lines().map(|line| format!("  {line}\n")).collect()
}

/// What `check` does between reading the file and printing, but for looking at source files.
fn checked(text: &str, overrides: &[(String, String)], folder: &Path) -> (Option<Spec>, Option<Plan>, Diagnostics) {
    let source = Source::new("p.yaml", text);
    let env = |name: &str| (name != "UNSET").then(|| "value: [of]".to_owned());
    let (spec, mut wrong) = spec::parse(&source, &REGISTRY, overrides, &env);
    let mut plan = None;
    if let Some(spec) = &spec {
        let sources: SourceColumns = spec
            .stages
            .iter()
            .filter(|stage| {
                stage
                    .operator
                    .as_ref()
                    .and_then(|(_, operator, _)| operator.source())
                    .is_some_and(|source| source.columns_in_files)
            })
            .map(|stage| (stage.name.clone(), Err(Failure::data("nobody looked"))))
            .collect();
        let (bound, more) = Plan::compile(spec, &REGISTRY, folder.to_owned(), &sources);
        (plan, wrong) = (bound, [wrong, more].concat());
    }
    (spec, plan, Diagnostics::new(source, wrong))
}

/// What a plan says of its stages, by name.
fn described(plan: &Plan) -> Vec<String> {
    let mut stages: Vec<String> = plan
        .stages()
        .map(|(index, stage)| {
            let reads: Vec<String> = plan
                .reads(index)
                .into_iter()
                .map(|(port, (of, output))| format!("{port:?} {}.{output}", plan.stage(of).name))
                .collect();
            // Keys go by the values of a config, not by the order in which they are written.
            let config = sorted(stage.config.clone());
            format!("{}: {config} {:?} {:?} {reads:?} {}", stage.name, stage.outputs, stage.refresh, stage.seed)
        })
        .collect();
    stages.sort();
    stages
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        Value::Object(members) => {
            let mut members: Vec<_> = members.into_iter().map(|(name, value)| (name, sorted(value))).collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            members.into_iter().collect()
        }
        other => other,
    }
}

fn ends_well(text: &str, overrides: &[(String, String)]) {
    let folder = tempfile::tempdir().expect("a folder");
    let (spec, plan, found) = within(LONGEST, || checked(text, overrides, folder.path()));
    assert!(plan.is_some() || !found.is_empty(), "a file without a plan has a mistake");
    for diagnostic in &found.list {
        places(diagnostic, text);
    }
    within(LONGEST, || {
        for colour in [false, true] {
            let shown = found.render(colour, 80);
            assert!(found.is_empty() || !shown.is_empty());
        }
        assert_eq!(found.to_json().as_array().map(Vec::len), Some(found.list.len()));
    });
    let again = checked(text, overrides, folder.path());
    assert_eq!(found, again.2);
    assert_eq!(format!("{spec:?}"), format!("{:?}", again.0));
    assert_eq!(plan.as_ref().map(described), again.1.as_ref().map(described));
}

fn places(diagnostic: &Diagnostic, text: &str) {
    assert!(!diagnostic.message.is_empty());
    let also = diagnostic.also.iter().map(|(span, _)| *span);
    for span in diagnostic.span.into_iter().chain(also).chain(diagnostic.hidden.iter().copied()) {
        assert!(span.start <= span.end && text.get(span.start..span.end).is_some(), "{span:?} of {}: {diagnostic:?}", text.len());
    }
}

#[test]
fn any_text_is_a_pipeline_or_has_mistakes_with_places() {
    holds(48, &text(4096), |text| ends_well(&text, &[]));
    holds(64, &worded(&WORDS, 60), |text| ends_well(&text, &[]));
}

#[test]
fn changed_pipelines_have_mistakes_with_places() {
    holds(64, &mutated_text(&pipelines(), &WORDS), |text| ends_well(&text, &[]));
}

#[test]
fn variables_are_set_to_any_text() {
    let file = "pipeline: p\nvars: { tokens: 1k, path: a, at: { b: 1 } }\nstages:\n  documents: { op: read, path: \"${vars.path}\" }\n  \
                chunks: { op: chunk, from: documents, max_characters: \"${vars.tokens}\" }\n";
    let names = ["vars.tokens", "vars.path", "vars.at", "vars.", "vars", "", "tokens", "vars.at.b"];
    let name = (0..names.len()).prop_map(move |place| names[place].to_owned());
    let value = mutated_text(&["1k", "2M", "512Ki", "1e9", "a/*.md", "s3://b/c", "${vars.path}", "${secret:KEY}", "~"], &WORDS);
    holds(64, &(name, value), |set| ends_well(file, &[set]));
}

/// A file that is the same in another order: keys anywhere but in `vars`, where order counts.
fn shuffled(value: Value, draws: &mut impl Iterator<Item = u64>) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(|item| shuffled(item, draws)).collect(),
        Value::Object(members) => {
            let mut members: Vec<(u64, String, Value)> = members
                .into_iter()
                .map(|(name, value)| {
                    let value = if name == "vars" { value } else { shuffled(value, draws) };
                    (draws.next().unwrap_or_default(), name, value)
                })
                .collect();
            members.sort_by_key(|(draw, ..)| *draw);
            members.into_iter().map(|(_, name, value)| (name, value)).collect()
        }
        other => other,
    }
}

/// Numbers that follow from `seed`.
fn draws(seed: u64) -> impl Iterator<Item = u64> {
    (0_u64..).map(move |n| {
        let hash = blake3::hash(&[seed.to_le_bytes(), n.to_le_bytes()].concat());
        u64::from_le_bytes(std::array::from_fn(|at| hash.as_bytes()[at]))
    })
}

#[test]
fn neither_order_of_keys_nor_comments_change_a_plan() {
    let folder = tempfile::tempdir().expect("a folder");
    // A YAML text like `n` isn't one any more where another reader takes it for a word of YAML 1.1.
    let as_json = |text: &str| serde_yaml::from_str::<Value>(text).map(|value| value.to_string());
    let has_plan = |text: &str| checked(text, &[], folder.path()).1.is_some();
    let plans = pipelines().into_iter().filter(|text| has_plan(text) && as_json(text).is_ok_and(|text| has_plan(&text)));
    let plans: Arc<Vec<String>> = Arc::new(plans.collect());
    assert!(plans.len() > 40, "{}", plans.len());
    let plan = |text: &str| {
        let (_, plan, found) = checked(text, &[], folder.path());
        plan.as_ref().map(described).ok_or_else(|| found.render(false, 80))
    };
    holds(48, &(0..plans.len(), Just(plans.clone()), 0..u64::MAX), |(place, plans, seed)| {
        let value: Value = serde_yaml::from_str(&plans[place]).expect("YAML");
        let (written, other) = (value.to_string(), shuffled(value, &mut draws(seed)).to_string());
        assert_eq!(plan(&written), plan(&other), "{written}\n{other}");
        let commented = commented(&plans[place], &mut draws(seed));
        assert_eq!(plan(&plans[place]), plan(&commented), "{commented}");
    });
}

/// `text` with comments and empty lines before some of the lines that begin a key, where none of its texts goes over several
/// lines.
fn commented(text: &str, draws: &mut impl Iterator<Item = u64>) -> String {
    let is_plain = !text.lines().any(|line| line.trim_end().ends_with(['|', '>', '-']));
    let begins = |line: &str| {
        line.trim_start().split_once(':').is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
    };
    let mut open = 0_i32;
    let mut out = String::new();
    for line in text.lines() {
        let draw = draws.next().unwrap_or_default();
        if is_plain && open == 0 && begins(line) {
            out.push_str(["", "# a comment: [of\n", "\n   # \"another\n", "\n\n"][(draw % 4) as usize]);
        }
        open += line.matches(['{', '[']).count() as i32 - line.matches(['}', ']']).count() as i32;
        out.push_str(line);
        out.push('\n');
    }
    out
}

//! `schema`, `operators`, `init`

use std::{io::Write, path::Path, process::ExitCode};

use ingrain_engine::{failure::Failure, spec::json_schema};
use ingrain_operators::REGISTRY;
use serde_json::Value;

use crate::{End, WRONG, progress::tell};

/// What `ingrain init` writes.
const STARTER: [(&str, &str); 3] = [
    ("pipeline.yaml", include_str!("init/pipeline.yaml")),
    ("documents/lighthouse.md", include_str!("init/lighthouse.md")),
    ("exam.jsonl", include_str!("init/exam.jsonl")),
];

/// Commands that the design names and that aren't built yet.
const LATER: [&str; 2] = ["report", "cluster"];

pub(crate) fn schema() -> Result<(), End> {
    let schema = serde_json::to_string_pretty(&json_schema(&REGISTRY)).map_err(|error| Failure::bug(error.to_string()))?;
    writeln!(std::io::stdout().lock(), "{schema}").map_err(Failure::from)?;
    Ok(())
}

pub(crate) fn operators(name: Option<&str>) -> Result<(), End> {
    let mut stdout = std::io::stdout().lock();
    let Some(name) = name else {
        for operator in REGISTRY.operators {
            let schema = operator.schema();
            let description = schema.get("description").and_then(Value::as_str).unwrap_or_default();
            let first = description.lines().next().unwrap_or_default();
            writeln!(stdout, "{:14} {first}", operator.name).map_err(Failure::from)?;
        }
        return Ok(());
    };
    let operator = REGISTRY.operator(name).ok_or_else(|| {
        if REGISTRY.planned.contains(&name) {
            return Failure::data(format!("the operator `{name}` isn't built yet"));
        }
        let names: Vec<String> = REGISTRY.operators.iter().map(|operator| format!("`{}`", operator.name)).collect();
        Failure::data(format!("no operator is called `{name}`")).hint(format!("the operators are {}", names.join(", ")))
    })?;
    let schema = operator.schema();
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    writeln!(stdout, "{}\n\n{}", operator.name, text(schema.get("description"))).map_err(Failure::from)?;
    if let Some(fields) = schema.get("properties").and_then(Value::as_object) {
        writeln!(stdout, "\n# Fields").map_err(Failure::from)?;
        for (field, schema) in fields {
            let default =
                schema.get("default").filter(|default| !default.is_null()).map(|default| format!(" (default {default})"));
            let about = text(schema.get("description")).replace('\n', " ");
            writeln!(stdout, "- `{field}`{}: {about}", default.unwrap_or_default()).map_err(Failure::from)?;
            for choice in choices(schema) {
                let about = text(choice.get("description")).replace('\n', " ");
                writeln!(stdout, "  - `{}`: {about}", text(choice.get("const"))).map_err(Failure::from)?;
            }
        }
    }
    Ok(())
}

/// The values that a field may have, where each is described.
fn choices(schema: &Value) -> Vec<&Value> {
    let branches = ["oneOf", "anyOf"].iter().filter_map(|key| schema.get(*key)?.as_array()).flatten();
    let mut found = Vec::new();
    for branch in branches {
        if branch.get("const").is_some() { found.push(branch) } else { found.extend(choices(branch)) }
    }
    found
}

pub(crate) fn init(folder: &Path) -> Result<(), End> {
    let taken: Vec<&str> = STARTER.iter().map(|(name, _)| *name).filter(|name| folder.join(name).exists()).collect();
    if !taken.is_empty() {
        return Err(Failure::data(format!("`{}` is there already in `{}`", taken.join("`, `"), folder.display()))
            .hint("nothing was written: choose another folder")
            .into());
    }
    for (name, content) in STARTER {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(Failure::from)?;
        }
        std::fs::write(&path, content).map_err(Failure::from)?;
    }
    tell(&format!("wrote `{0}`; now: ingrain run {0}", folder.join("pipeline.yaml").display()), None);
    Ok(())
}

/// The answer to a command that isn't there.
pub(crate) fn other(words: &[String]) -> End {
    let word = words.first().map(String::as_str).unwrap_or_default();
    let message =
        if LATER.contains(&word) { format!("`{word}` isn't built yet") } else { format!("no command is called `{word}`") };
    tell(&format!("error: {message}"), Some("`ingrain --help` lists the commands"));
    End::Told(ExitCode::from(WRONG))
}

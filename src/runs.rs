//! `runs`

use std::{
    collections::{BTreeSet, HashMap},
    io::Write,
    path::Path,
    sync::Arc,
};

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use ingrain_engine::{
    failure::Failure,
    run::{Environment, RunRecord, Runs, StageChange, StageRecord, StageState, compare_runs},
};
use ingrain_operators::REGISTRY;
use serde_json::{Value, json};

use crate::{
    End,
    call::RunsCall,
    pipeline::Pipeline,
    progress::{grouped, printable, tell},
    show::print_rows,
};

/// Characters of a path that a table shows.
const PATH: usize = 40;
/// Digits of a digest that a person is shown.
const DIGITS: usize = 12;

pub(crate) async fn runs(call: &RunsCall) -> Result<(), End> {
    let pipeline = Pipeline::load(&call.store.file).await?;
    let environment = pipeline.open(&call.store).await?;
    if !environment.store.is_there() {
        return Err(Failure::data(format!("there is no store at `{}`", environment.store.location()))
            .hint(format!("`ingrain run {}` makes one; `--store` names another", pipeline.file()))
            .into());
    }
    let of = if call.all { None } else { Some(pipeline.plan.pipeline.as_str()) };
    let found = Runs::of(&environment.store, of).await?;
    let order = order(&pipeline);
    match (call.diff.as_slice(), &call.run) {
        ([old, new], _) => {
            let (old, new) = (found.find(&environment.store, old).await?, found.find(&environment.store, new).await?);
            diff(&environment, &old, &new, &order, call.json).await?;
        }
        (_, Some(run)) => show(&found.find(&environment.store, run).await?, &order, call.json)?,
        _ => list(&environment, &found, call).await?,
    }
    Ok(())
}

/// The places of stages in the pipeline as it stands now.
fn order(pipeline: &Pipeline) -> HashMap<String, usize> {
    pipeline.plan.stages().enumerate().map(|(place, (_, stage))| (stage.name.clone(), place)).collect()
}

/// Names in the order of the pipeline; those that it hasn't got come last.
fn sorted<'a>(names: impl Iterator<Item = &'a String>, order: &HashMap<String, usize>) -> Vec<&'a String> {
    let mut names: Vec<&String> = names.collect::<BTreeSet<_>>().into_iter().collect();
    names.sort_by_key(|name| order.get(*name).copied().unwrap_or(usize::MAX));
    names
}

async fn list(environment: &Environment, found: &Runs, call: &RunsCall) -> Result<(), Failure> {
    let records = found.newest(&environment.store, usize::try_from(call.limit).unwrap_or(usize::MAX)).await?;
    let mut stdout = std::io::stdout().lock();
    if call.json {
        for (number, record) in &records {
            writeln!(stdout, "{}", told(*number, record))?;
        }
        return Ok(());
    }
    let mut table = Table::default();
    for (number, record) in &records {
        table.cell("#", number.to_string());
        table.cell("started (UTC)", record.started_utc());
        table.cell("took", format!("{:.1} s", record.seconds()));
        if call.all {
            table.cell("pipeline", record.pipeline.clone());
        }
        table.cell("result", record.ending().word().to_owned());
        for state in [StageState::Ran, StageState::Cached, StageState::Failed] {
            table.cell(state.word(), record.count(state).to_string());
        }
        table.cell("usd", dollars(record.usd()));
        table.cell("file", end_of(&near(&record.file)));
        table.cell("run", record.run.clone());
    }
    if records.is_empty() {
        tell("no run is recorded", None);
        return Ok(());
    }
    table.print(&mut stdout)?;
    tell(
        &format!(
            "{} of {} runs; one that found everything as the run before left it isn't recorded",
            grouped(records.len() as u64),
            grouped(found.len() as u64)
        ),
        None,
    );
    Ok(())
}

fn show(record: &RunRecord, order: &HashMap<String, usize>, json: bool) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    if json {
        let line = serde_json::to_string(record).map_err(|error| Failure::bug(error.to_string()))?;
        writeln!(stdout, "{line}")?;
        return Ok(());
    }
    let digest = record.file_digest.as_ref().map(|digest| format!(" (blake3 {})", short(digest))).unwrap_or_default();
    let program = if record.version.is_empty() { "unknown" } else { &record.version };
    for (name, value) in [
        ("run", record.run.clone()),
        ("pipeline", record.pipeline.clone()),
        ("file", format!("{}{digest}", record.file.display())),
        ("program", format!("ingrain {program}")),
        ("started", format!("{} UTC, took {:.1} s", record.started_utc(), record.seconds())),
        ("result", record.ending().word().to_owned()),
    ] {
        writeln!(stdout, "{name:8}  {}", printable(&value))?;
    }
    let mut table = Table::default();
    for name in sorted(record.stages.keys(), order) {
        let stage = &record.stages[name];
        let number = |number: Option<u64>| number.map_or("-".to_owned(), grouped);
        let took = |number: fn(&ingrain_engine::run::Took) -> u64| number_of(stage, number);
        table.cell("stage", name.clone());
        table.cell("state", stage.state().word().to_owned());
        table.cell("rows", number(stage.rows));
        table.cell("rejects", number(stage.rejects));
        table.cell("seconds", stage.took.map_or("-".to_owned(), |took| format!("{:.1}", took.seconds)));
        table.cell("calls", took(|took| took.calls));
        table.cell("memo", took(|took| took.memo_hits));
        table.cell("tokens", took(|took| took.input_tokens + took.output_tokens));
        table.cell("usd", dollars(stage.took.and_then(|took| took.usd)));
        table.cell("filling", number(stage.generation));
        // Without an artifact of this run, the key is that of an earlier one.
        let key = stage.key.as_deref().filter(|_| stage.generation.is_some());
        table.cell("key", key.map_or("-".to_owned(), short));
    }
    table.print(&mut stdout)?;
    for (stage, failure) in &record.failures {
        writeln!(stdout, "`{}` failed: {}", printable(stage), printable(&failure.message))?;
    }
    Ok(())
}

fn number_of(stage: &StageRecord, number: fn(&ingrain_engine::run::Took) -> u64) -> String {
    match stage.took.as_ref().map(number) {
        None | Some(0) => "-".to_owned(),
        Some(number) => grouped(number),
    }
}

async fn diff(
    environment: &Arc<Environment>,
    old: &RunRecord,
    new: &RunRecord,
    order: &HashMap<String, usize>,
    json: bool,
) -> Result<(), Failure> {
    let changes = compare_runs(&environment.store, &REGISTRY, old, new).await?;
    let mut stdout = std::io::stdout().lock();
    let names = sorted(changes.keys(), order);
    if json {
        for name in names {
            let mut line = json!({ "stage": name });
            if let (Some(line), Value::Object(change)) = (line.as_object_mut(), json!(changes[name])) {
                line.extend(change);
            }
            writeln!(stdout, "{line}")?;
        }
        return Ok(());
    }
    for (word, record) in [("first", old), ("second", new)] {
        writeln!(stdout, "{word:6}  {} UTC  {}  {}", record.started_utc(), record.ending().word(), printable(&record.run))?;
    }
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    for name in &names {
        let lines = said(&changes[*name]);
        for (place, line) in lines.iter().enumerate() {
            let name = if place == 0 { printable(name) } else { String::new() };
            writeln!(stdout, "{name:width$}  {}", printable(line))?;
        }
    }
    let same = changes.values().filter(|change| matches!(change, StageChange::Same)).count();
    tell(&format!("{same} of {} stages are the same", changes.len()), None);
    Ok(())
}

/// A change in words, a line for each reason.
fn said(change: &StageChange) -> Vec<String> {
    match change {
        StageChange::Same => vec!["same".into()],
        StageChange::Refilled { old, new } => vec![format!("same key, filled again: {old} -> {new}")],
        StageChange::OnlyInFirst => vec!["only in the first".into()],
        StageChange::OnlyInSecond => vec!["only in the second".into()],
        StageChange::Changed { reasons } => reasons.iter().map(ToString::to_string).collect(),
        StageChange::Unknown { why } => vec![format!("another key: {why}")],
        StageChange::Absent { old, new } => vec![format!("not to be compared: {} -> {}", old.word(), new.word())],
    }
}

fn told(number: usize, record: &RunRecord) -> Value {
    let sum = |number: fn(&ingrain_engine::run::Took) -> u64| -> u64 {
        record.stages.values().filter_map(|stage| stage.took.as_ref().map(number)).sum()
    };
    json!({
        "number": number, "run": record.run, "pipeline": record.pipeline, "file": record.file, "file_digest": record.file_digest,
        "version": record.version, "result": record.ending(), "started": record.started, "finished": record.finished,
        "seconds": record.seconds(), "ran": record.count(StageState::Ran), "cached": record.count(StageState::Cached),
        "failed": record.count(StageState::Failed), "skipped": record.count(StageState::Skipped), "calls": sum(|took| took.calls),
        "memo_hits": sum(|took| took.memo_hits), "input_tokens": sum(|took| took.input_tokens),
        "output_tokens": sum(|took| took.output_tokens), "usd": record.usd(),
    })
}

fn dollars(usd: Option<f64>) -> String {
    usd.map_or("-".to_owned(), |usd| format!("{usd:.4}"))
}

fn short(digest: &str) -> String {
    digest.chars().take(DIGITS).collect()
}

/// A path as it is written from here.
fn near(path: &Path) -> String {
    let here = std::env::current_dir().ok();
    let near = here.and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned));
    near.unwrap_or_else(|| path.to_owned()).display().to_string()
}

/// The end of a long path, which tells more than its beginning.
fn end_of(path: &str) -> String {
    let length = path.chars().count();
    if length <= PATH {
        return path.to_owned();
    }
    let end: String = path.chars().skip(length - PATH + 1).collect();
    format!("…{end}")
}

/// A table that is filled row by row, cell by cell.
#[derive(Default)]
struct Table {
    columns: Vec<(&'static str, Vec<String>)>,
}

impl Table {
    fn cell(&mut self, name: &'static str, cell: String) {
        match self.columns.iter_mut().find(|(column, _)| *column == name) {
            Some((_, cells)) => cells.push(cell),
            None => self.columns.push((name, vec![cell])),
        }
    }

    fn print(self, out: &mut impl Write) -> Result<(), Failure> {
        if self.columns.is_empty() {
            return Ok(());
        }
        let column = |(name, cells): (&'static str, Vec<String>)| (name, Arc::new(StringArray::from(cells)) as ArrayRef);
        let rows = RecordBatch::try_from_iter(self.columns.into_iter().map(column))?;
        print_rows(out, &[rows], &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_shown_by_its_end() {
        let path = format!("{}/pipelines/handbook.yaml", "/home/somebody/in/a/deep/folder".repeat(3));
        let shown = end_of(&path);
        assert_eq!(shown.chars().count(), PATH);
        assert!(shown.starts_with('…') && shown.ends_with("/pipelines/handbook.yaml"));
        assert_eq!(end_of("a.yaml"), "a.yaml");
    }
}

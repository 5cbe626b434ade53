//! `run`

use std::{
    collections::{BTreeSet, HashMap},
    io::Write,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use arrow::{
    array::{Array, AsArray, BooleanArray, RecordBatch},
    compute::filter_record_batch,
};
use ingrain_engine::{
    failure::{Failure, Fault},
    operator::REJECTS_OUTPUT,
    plan::{Plan, Stage, StageIndex},
    run::{Counters, Environment, Event, Outcome, Run, RunOptions, Status, Table, why},
};
use ingrain_operators::{REGISTRY, train::device};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    End, INTERRUPTED, SPENT, STAGE_FAILED,
    call::RunCall,
    pipeline::Pipeline,
    progress::{Progress, grouped, tell},
    sample::sample,
    show::{print_rows, row_objects, with_axes},
    told,
};

pub(crate) async fn run(call: RunCall) -> Result<(), End> {
    if let Some(option) = call.later.given() {
        return Err(Failure::data(format!("`{option}` isn't built yet")).into());
    }
    if let Some(budget) = call.budget.filter(|budget| !(budget.is_finite() && *budget >= 0.0)) {
        return Err(Failure::data(format!("`--budget {budget}` is no amount of money"))
            .hint("write dollars as in `25.00`")
            .into());
    }
    let pipeline = Pipeline::load_with(&call.store.file, call.budget).await?;
    if let Some(documents) = call.sample {
        return sample(&call, &pipeline, documents).await;
    }
    let options = RunOptions {
        until: meant(&pipeline, &call.until)?,
        force: meant(&pipeline, &call.force)?.into_iter().collect(),
        verify: call.verify,
        round_trip: call.round_trip,
        by_document: false,
        written: Some(pipeline.written()),
    };
    let mut interrupts = Interrupts::new()?;
    let environment = interrupts.unless(pipeline.open_for(&call)).await??;
    if let Some(failure) = interrupts.unless(no_device(&call, &pipeline, &environment, &options)).await?? {
        return Err(failure.into());
    }
    let driven = drive(&pipeline.plan, &environment, options, call.json, &mut interrupts).await?;
    let reported = interrupts.unless(report(&pipeline, &environment, &driven.outcome, call.json)).await?;
    if let Err(failure) = reported {
        return Err(End::Told(told(&failure, STAGE_FAILED)));
    }
    if pipeline.has_changed() {
        let file = pipeline.file();
        tell(
            &format!(
                "`{file}` has changed since this run began, which took it as it was: `ingrain plan {file}` says what is new"
            ),
            None,
        );
    }
    if !call.json {
        tell_rejects(&pipeline, &driven.outcome);
    }
    driven.end(&pipeline.plan, call.json)
}

/// The stages that the call names, every cell of a matrix.
fn meant(pipeline: &Pipeline, names: &[String]) -> Result<Vec<StageIndex>, Failure> {
    let found: Vec<Vec<StageIndex>> = names.iter().map(|name| pipeline.stages(name)).collect::<Result<_, _>>()?;
    Ok(found.concat())
}

/// Names the stages that refused rows: on a terminal that has scrolled on, or in a log, nothing else does.
fn tell_rejects(pipeline: &Pipeline, outcome: &Outcome) {
    for (index, stage) in pipeline.plan.stages() {
        let rejects = outcome.artifacts.get(&index).and_then(|artifact| artifact.outputs.get(REJECTS_OUTPUT));
        let count = rejects.map_or(0, |rejects| rejects.rows);
        if count > 0 {
            let (name, rows) = (&stage.name, crate::progress::rows(count));
            tell(&format!("`{name}` rejected {rows}: `ingrain show {} {name}.rejects`", pipeline.file()), None);
        }
    }
}

/// Why the device that the call names can't be had, where a stage is going to need it: said before anything is paid for.
async fn no_device(
    call: &RunCall,
    pipeline: &Pipeline,
    environment: &Environment,
    options: &RunOptions,
) -> Result<Option<Failure>, Failure> {
    let Err(failure) = device(&call.device) else { return Ok(None) };
    let wanted = match options.until.as_slice() {
        [] => pipeline.all(),
        until => until.iter().flat_map(|index| pipeline.plan.needed_by(*index)).collect(),
    };
    let statuses = why(&pipeline.plan, environment, &wanted, options.force.clone()).await?;
    let needs = |index: StageIndex| pipeline.plan.holds_device(index, &environment.registry);
    let is_needed = statuses.iter().any(|(index, status)| needs(*index) && !matches!(status, Status::Hit { .. }));
    Ok(is_needed.then_some(failure))
}

/// What a run did.
pub(crate) struct Driven {
    pub(crate) outcome: Outcome,
    pub(crate) counters: HashMap<StageIndex, Arc<Counters>>,
    /// Wall time of each stage that ran.
    pub(crate) seconds: HashMap<String, f64>,
    started: Instant,
    /// What went wrong when all was done: answers that didn't get to the store.
    unclosed: Option<Failure>,
}

/// Runs a plan, says on the way what happens, and stops at an interrupt.
pub(crate) async fn drive(
    plan: &Plan,
    environment: &Arc<Environment>,
    options: RunOptions,
    json: bool,
    interrupts: &mut Interrupts,
) -> Result<Driven, End> {
    let started = Instant::now();
    let wanted =
        |index: &StageIndex| options.until.is_empty() || options.until.iter().any(|until| plan.needed_by(*until).contains(index));
    let progress = Progress::new(plan.stages().filter(|(index, _)| wanted(index)).map(|(_, stage)| stage), !json);
    let seconds = Mutex::new(HashMap::new());
    let running = Mutex::new(std::collections::HashSet::new());
    let tell_event = |event: Event| {
        let mut running = running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &event {
            Event::Started { stage, .. } => {
                running.insert(stage.clone());
            }
            Event::Finished(report) => {
                running.remove(&report.stage);
                let mut seconds = seconds.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                seconds.insert(report.stage.clone(), report.seconds);
            }
            Event::Failed { stage, .. } => {
                running.remove(stage);
            }
            Event::Namesake { .. }
            | Event::Waiting { .. }
            | Event::Damaged { .. }
            | Event::Cached { .. }
            | Event::Skipped { .. } => {}
        }
        if json {
            emit(&json!(event));
        }
        progress.event(&event);
    };
    let work = Run::new(plan, environment.clone(), options, &tell_event);
    let watch = async {
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        loop {
            tick.tick().await;
            let names: Vec<String> = running.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter().cloned().collect();
            for name in names {
                if let Some(index) = plan.find(&name) {
                    progress.update(&name, &work.counters(index), plan.price(index, &REGISTRY));
                }
            }
        }
    };
    let outcome = tokio::select! {
        outcome = work.execute() => Some(outcome),
        () = watch => None,
        () = interrupts.next() => None,
    };
    let Some(outcome) = outcome else {
        tell("interrupted: waiting for answers that are paid for (once more to stop at once)", None);
        for end in [interrupts.unless(environment.close()).await?, interrupts.unless(work.interrupted()).await?] {
            if let Err(failure) = end {
                tell(&format!("error: {}", failure.message), failure.hint.as_deref());
            }
        }
        return Err(End::Told(ExitCode::from(INTERRUPTED)));
    };
    let unclosed = interrupts.unless(environment.close()).await?.err();
    let outcome = outcome.map_err(|failure| End::Told(told(&failure, STAGE_FAILED)))?;
    let counters = plan.stages().map(|(index, _)| (index, work.counters(index))).collect();
    drop(work);
    let seconds = seconds.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(Driven { outcome, counters, seconds, started, unclosed })
}

impl Driven {
    /// Says how it ended.
    pub(crate) fn end(&self, plan: &Plan, json: bool) -> Result<(), End> {
        let outcome = &self.outcome;
        for (stage, failure) in &outcome.failures {
            tell(&format!("error: `{}`: {}", plan.stage(*stage).name, failure.message), failure.hint.as_deref());
        }
        let seconds = self.started.elapsed().as_secs_f64();
        if json {
            emit(&json!({
                "event": "ended", "executed": outcome.executed, "failed": outcome.failures.len(), "seconds": seconds,
            }));
        } else {
            let counts = [
                (outcome.executed, "ran"),
                (outcome.cached, "cached"),
                (outcome.failures.len(), "failed"),
                (outcome.skipped, "not run because of these"),
            ];
            let counts = counts.iter().filter(|(count, _)| *count > 0);
            let counts: Vec<String> = counts.map(|(count, word)| format!("{} {word}", grouped(*count as u64))).collect();
            tell(&format!("stages: {}; {seconds:.1} s", counts.join(", ")), None);
        }
        if let Some(failure) = &self.unclosed {
            tell(&format!("error: {}", failure.message), failure.hint.as_deref());
        }
        let code = match outcome.failures.as_slice() {
            [] if self.unclosed.is_some() => STAGE_FAILED,
            [] => return Ok(()),
            failures if failures.iter().all(|(_, failure)| failure.fault == Fault::Budget) => SPENT,
            _ => STAGE_FAILED,
        };
        Err(End::Told(ExitCode::from(code)))
    }
}

/// Ctrl-C and requests to end, from when it is made on: none is missed between two waits.
pub(crate) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    pub(crate) fn new() -> Result<Self, Failure> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next one.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// The result of `work`, unless an interrupt comes before it.
    pub(crate) async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Result<T, End> {
        tokio::select! {
            result = work => Ok(result),
            () = self.next() => Err(End::Told(ExitCode::from(INTERRUPTED))),
        }
    }
}

pub(crate) fn emit(event: &serde_json::Value) {
    let _ = writeln!(std::io::stdout().lock(), "{event}");
}

/// Ends a run with the tables of the stages that report, one for all cells of a matrix.
async fn report(pipeline: &Pipeline, environment: &Environment, outcome: &Outcome, json: bool) -> Result<(), Failure> {
    let mut reported: Vec<(&Stage, Vec<RecordBatch>)> = Vec::new();
    for (index, stage) in pipeline.plan.stages().filter(|(_, stage)| stage.operator_type.reported) {
        let Some(manifest) = outcome.artifacts.get(&index) else { continue };
        let (Some(output), Some(table)) = (stage.output("default"), manifest.outputs.get("default")) else { continue };
        let rows = Table::new(environment, output.schema.clone(), table.clone()).collect().await?;
        if json {
            emit(&json!({ "event": "table", "stage": stage.name, "rows": row_objects(&rows)? }));
            continue;
        }
        let rows = with_axes(&rows, &stage.cell)?;
        match reported.iter_mut().find(|(first, _)| first.base == stage.base) {
            Some((_, before)) => before.extend(rows),
            None => reported.push((stage, rows)),
        }
    }
    let mut stdout = std::io::stdout().lock();
    for (stage, rows) in reported {
        let name = if stage.cell.0.is_empty() { &stage.name } else { &stage.base };
        match &stage.description {
            Some(description) => writeln!(stdout, "\n{name}: {description}")?,
            None => writeln!(stdout, "\n{name}")?,
        }
        let (mut rows, mut left) = without(&rows, stage.operator_type.detail)?;
        if !stage.cell.0.is_empty() && rows.iter().map(RecordBatch::num_rows).sum::<usize>() > MOST_ROWS {
            let (first, more) = first_metric(&rows)?;
            (rows, left) = (first, left + more);
        }
        let mut unsaid = empty_columns(&rows);
        unsaid.extend(["row_id", "parent_id"].map(str::to_owned));
        print_rows(&mut stdout, &rows, &unsaid.iter().map(String::as_str).collect::<Vec<_>>())?;
        if left > 0 {
            writeln!(stdout, "{} more: `ingrain show {} {name}`", crate::progress::rows(left), pipeline.file())?;
        }
    }
    Ok(())
}

/// The columns in which no row has a value.
fn empty_columns(rows: &[RecordBatch]) -> Vec<String> {
    let has_values = |name: &str| {
        let mut columns = rows.iter().filter_map(|batch| batch.column_by_name(name));
        columns.any(|column| column.null_count() < column.len())
    };
    let names: BTreeSet<String> = rows
        .iter()
        .flat_map(|batch| batch.schema().fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>())
        .collect();
    names.into_iter().filter(|name| !has_values(name)).collect()
}

/// Of the cells of a matrix a run ends with so many rows; where there are more, with the first metric of each cell.
const MOST_ROWS: usize = 36;

/// The rows of the metric that stands first, and how many others there are.
fn first_metric(rows: &[RecordBatch]) -> Result<(Vec<RecordBatch>, u64), Failure> {
    let metrics = |batch: &RecordBatch| batch.column_by_name("metric").and_then(|column| column.as_string_opt::<i32>()).cloned();
    let first = rows.iter().find_map(|batch| metrics(batch)?.iter().flatten().next().map(str::to_owned));
    let (mut kept, mut left) = (Vec::new(), 0);
    for batch in rows {
        let mask: BooleanArray = match metrics(batch) {
            Some(names) => names.iter().map(|name| Some(name == first.as_deref())).collect(),
            None => std::iter::repeat_n(Some(true), batch.num_rows()).collect(),
        };
        left += (batch.num_rows() - mask.true_count()) as u64;
        kept.push(filter_record_batch(batch, &mask)?);
    }
    Ok((kept, left))
}

/// Rows without those of some metrics (`accuracy_raw`, `accuracy_raw[by=x]`), and how many these are.
fn without(rows: &[RecordBatch], metrics: &[&str]) -> Result<(Vec<RecordBatch>, u64), Failure> {
    let (mut kept, mut left) = (Vec::new(), 0);
    for batch in rows {
        let Some(names) = batch.column_by_name("metric").and_then(|column| column.as_string_opt::<i32>()) else {
            kept.push(batch.clone());
            continue;
        };
        let is_left = |name: &str| metrics.contains(&name.split('[').next().unwrap_or(name));
        let mask: BooleanArray = names.iter().map(|name| Some(!name.is_some_and(is_left))).collect();
        left += (batch.num_rows() - mask.true_count()) as u64;
        kept.push(filter_record_batch(batch, &mask)?);
    }
    Ok((kept, left))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray};

    use super::*;

    #[test]
    fn metrics_for_a_second_look_are_counted_and_not_shown() {
        let column = |names: &[&str]| Arc::new(StringArray::from(names.to_vec())) as ArrayRef;
        let rows = |name: &str, names: &[&str]| RecordBatch::try_from_iter([(name, column(names))]).expect("one column");
        let some = rows("metric", &["accuracy", "accuracy_raw", "accuracy[by=x]", "accuracy_raw[by=x]"]);
        let (kept, left) = without(&[some], &["accuracy_raw"]).expect("filtered");
        assert_eq!((kept, left), (vec![rows("metric", &["accuracy", "accuracy[by=x]"])], 2));
        let other = rows("comparison", &["accuracy_raw"]);
        assert_eq!(without(std::slice::from_ref(&other), &["accuracy_raw"]).expect("passed"), (vec![other], 0));
    }
}

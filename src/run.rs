//! `run`

use std::{
    collections::HashMap,
    io::Write,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ingrain_engine::{
    failure::{Failure, Fault},
    plan::{Plan, StageIndex},
    run::{Counters, Environment, Event, Outcome, Run, RunOptions, Table},
};
use ingrain_operators::REGISTRY;
use serde_json::json;

use crate::{
    End, INTERRUPTED, SPENT, STAGE_FAILED,
    call::RunCall,
    pipeline::Pipeline,
    progress::{Progress, grouped, tell},
    sample::sample,
    show::{print_rows, row_objects},
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
    let pipeline = Pipeline::load_with(&call.store.file, call.budget)?;
    if let Some(documents) = call.sample {
        return sample(&call, &pipeline, documents).await;
    }
    let options = RunOptions {
        until: call.until.iter().map(|name| pipeline.stage(name)).collect::<Result<_, _>>()?,
        force: call.force.iter().map(|name| pipeline.stage(name)).collect::<Result<_, _>>()?,
        round_trip: call.round_trip,
        by_document: false,
    };
    let environment = pipeline.open_for(&call).await?;
    let driven = drive(&pipeline.plan, &environment, options, call.json).await?;
    report(&pipeline.plan, &environment, &driven.outcome, call.json).await?;
    driven.end(&pipeline.plan, call.json)
}

/// What a run did.
pub(crate) struct Driven {
    pub(crate) outcome: Outcome,
    pub(crate) counters: HashMap<StageIndex, Arc<Counters>>,
    /// Wall time of each stage that ran.
    pub(crate) seconds: HashMap<String, f64>,
    started: Instant,
}

/// Runs a plan, says on the way what happens, and stops at an interrupt.
pub(crate) async fn drive(plan: &Plan, environment: &Arc<Environment>, options: RunOptions, json: bool) -> Result<Driven, End> {
    let started = Instant::now();
    let progress = Progress::new(plan.stages().map(|(_, stage)| stage.name.len()), !json);
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
            Event::Cached { .. } | Event::Skipped { .. } => {}
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
        () = interrupted() => None,
    };
    let Some(outcome) = outcome else {
        tell("interrupted: keeping what is paid for (once more to stop at once)", None);
        tokio::select! {
            closed = environment.close() => closed?,
            () = interrupted() => {}
        }
        return Err(End::Told(ExitCode::from(INTERRUPTED)));
    };
    let outcome = outcome?;
    environment.close().await?;
    let counters = plan.stages().map(|(index, _)| (index, work.counters(index))).collect();
    drop(work);
    let seconds = seconds.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(Driven { outcome, counters, seconds, started })
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
        let code = match outcome.failures.as_slice() {
            [] => return Ok(()),
            failures if failures.iter().all(|(_, failure)| failure.fault == Fault::Budget) => SPENT,
            _ => STAGE_FAILED,
        };
        Err(End::Told(ExitCode::from(code)))
    }
}

/// Waits for Ctrl-C, or for the request to end.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let ended = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signals) => signals.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    let stopped = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        _ = ended => {}
        () = stopped => {}
    }
}

pub(crate) fn emit(event: &serde_json::Value) {
    let _ = writeln!(std::io::stdout().lock(), "{event}");
}

/// Ends a run with the tables of the stages that report.
async fn report(plan: &Plan, environment: &Environment, outcome: &Outcome, json: bool) -> Result<(), Failure> {
    for (index, stage) in plan.stages().filter(|(_, stage)| stage.operator_type.reported) {
        let Some(manifest) = outcome.artifacts.get(&index) else { continue };
        let (Some(output), Some(table)) = (stage.output("default"), manifest.outputs.get("default")) else { continue };
        let rows = Table::new(environment, output.schema.clone(), table.clone()).collect().await?;
        if json {
            emit(&json!({ "event": "table", "stage": stage.name, "rows": row_objects(&rows)? }));
            continue;
        }
        let mut stdout = std::io::stdout().lock();
        match &stage.description {
            Some(description) => writeln!(stdout, "\n{}: {description}", stage.name)?,
            None => writeln!(stdout, "\n{}", stage.name)?,
        }
        print_rows(&mut stdout, &rows, &["row_id", "parent_id"])?;
    }
    Ok(())
}

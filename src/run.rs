//! `run`

use std::{io::Write, process::ExitCode, sync::Mutex, time::Duration};

use ingrain_engine::{
    failure::Failure,
    plan::Plan,
    run::{Environment, Event, Outcome, Run, RunOptions, Table},
};
use serde_json::json;

use crate::{
    End, INTERRUPTED, STAGE_FAILED,
    call::RunCall,
    pipeline::Pipeline,
    progress::{Progress, grouped, tell},
    show::{print_rows, row_objects},
};

pub(crate) async fn run(call: RunCall) -> Result<(), End> {
    if let Some(option) = call.later.given() {
        return Err(Failure::data(format!("`{option}` isn't built yet")).into());
    }
    let pipeline = Pipeline::load(&call.store.file)?;
    let plan = &pipeline.plan;
    let options = RunOptions {
        until: call.until.as_deref().map(|name| pipeline.stage(name)).transpose()?,
        force: call.force.iter().map(|name| pipeline.stage(name)).collect::<Result<_, _>>()?,
        round_trip: call.round_trip,
    };
    let environment = pipeline.open_for(&call).await?;
    let started = std::time::Instant::now();
    let progress = Progress::new(plan.stages().map(|(_, stage)| stage.name.len()), !call.json);
    let running = Mutex::new(std::collections::HashSet::new());
    let tell_event = |event: Event| {
        let mut running = running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &event {
            Event::Started { stage, .. } => {
                running.insert(stage.clone());
            }
            Event::Finished(report) => {
                running.remove(&report.stage);
            }
            Event::Failed { stage, .. } => {
                running.remove(stage);
            }
            Event::Cached { .. } | Event::Skipped { .. } => {}
        }
        if call.json {
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
                    progress.update(&name, &work.counters(index));
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
    report(plan, &environment, &outcome, call.json).await?;
    for (stage, failure) in &outcome.failures {
        tell(&format!("error: `{}`: {}", plan.stage(*stage).name, failure.message), failure.hint.as_deref());
    }
    let counts = [
        (outcome.executed, "ran"),
        (outcome.cached, "cached"),
        (outcome.failures.len(), "failed"),
        (outcome.skipped, "not run because of these"),
    ];
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{} {word}", grouped(*count as u64))).collect();
    let summary = format!("stages: {}; {:.1} s", counts.join(", "), started.elapsed().as_secs_f64());
    if call.json {
        emit(&json!({
            "event": "ended", "executed": outcome.executed, "failed": outcome.failures.len(),
            "seconds": started.elapsed().as_secs_f64(),
        }));
    } else {
        tell(&summary, None);
    }
    if outcome.failures.is_empty() { Ok(()) } else { Err(End::Told(ExitCode::from(STAGE_FAILED))) }
}

async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn emit(event: &serde_json::Value) {
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

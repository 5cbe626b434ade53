//! `check`, `plan`, `why`

use std::{collections::HashSet, io::Write};

use ingrain_engine::{
    failure::Failure,
    plan::Stage,
    run::{Reason, Status, why as statuses},
};
use serde_json::{Value, json};

use crate::{
    End,
    call::{FileCall, PlanCall, WhyCall},
    pipeline::Pipeline,
    progress::{rows as rows_of, tell},
};

pub(crate) fn check(call: &FileCall) -> Result<(), End> {
    let pipeline = Pipeline::load(call)?;
    tell(&format!("{}: {} stages, nothing wrong", call.file.display(), pipeline.all().len()), None);
    Ok(())
}

pub(crate) async fn plan(call: &PlanCall) -> Result<(), End> {
    let pipeline = Pipeline::load(&call.store.file)?;
    let environment = pipeline.open(&call.store).await?;
    let found = statuses(&pipeline.plan, &environment, &pipeline.all(), HashSet::new()).await?;
    let mut stdout = std::io::stdout().lock();
    let width = found.iter().map(|(index, _)| pipeline.plan.stage(*index).name.len()).max().unwrap_or(0);
    for (index, status) in &found {
        let stage = pipeline.plan.stage(*index);
        let line = if call.json {
            told(&stage.name, status).to_string()
        } else {
            format!("{:width$}  {}", stage.name, said(stage, status))
        };
        writeln!(stdout, "{line}").map_err(Failure::from)?;
    }
    let runs = found.iter().filter(|(_, status)| !matches!(status, Status::Hit { .. })).count();
    if !call.json {
        let summary = match runs {
            0 => "everything is cached: a run would execute nothing".to_owned(),
            runs => format!("{} of {} stages cached", found.len() - runs, found.len()),
        };
        tell(&summary, None);
    }
    Ok(())
}

pub(crate) async fn why(call: &WhyCall) -> Result<(), End> {
    let pipeline = Pipeline::load(&call.store.file)?;
    let index = pipeline.stage(&call.stage)?;
    let environment = pipeline.open(&call.store).await?;
    let found = statuses(&pipeline.plan, &environment, &pipeline.plan.needed_by(index), HashSet::new()).await?;
    let mut stdout = std::io::stdout().lock();
    for (_, status) in found.iter().filter(|(found, _)| *found == index) {
        if call.json {
            writeln!(stdout, "{}", told(&call.stage, status)).map_err(Failure::from)?;
            continue;
        }
        match status {
            Status::Run { reasons, .. } => {
                writeln!(stdout, "`{}` has to run:", call.stage).map_err(Failure::from)?;
                for reason in reasons {
                    writeln!(stdout, "  {reason}").map_err(Failure::from)?;
                }
            }
            other => writeln!(stdout, "`{}`: {}", call.stage, said(pipeline.plan.stage(index), other)).map_err(Failure::from)?,
        }
    }
    Ok(())
}

fn said(stage: &Stage, status: &Status) -> String {
    match status {
        Status::Hit { manifest, .. } => {
            let rows = manifest.outputs.get(stage.main_output()).map_or(0, |table| table.rows);
            format!("cached, {}", rows_of(rows))
        }
        Status::Run { reasons, .. } => {
            let more = if reasons.len() > 1 { format!(" (and {} more)", reasons.len() - 1) } else { String::new() };
            format!("will run: {}{more}", reasons.first().map(Reason::to_string).unwrap_or_default())
        }
        Status::Unknown { after } => format!("unknown: runs only if what comes out of {} has changed", after.join(", ")),
    }
}

fn told(stage: &str, status: &Status) -> Value {
    match status {
        Status::Hit { key, generation, .. } => {
            json!({ "stage": stage, "status": "cached", "key": key.key, "generation": generation })
        }
        Status::Run { key, generation, reasons } => {
            json!({ "stage": stage, "status": "run", "key": key.key, "generation": generation, "reasons": reasons })
        }
        Status::Unknown { after } => json!({ "stage": stage, "status": "unknown", "after": after }),
    }
}

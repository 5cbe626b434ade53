//! `check`, `plan`, `why`

use std::{
    collections::{HashMap, HashSet},
    io::Write,
    sync::Arc,
};

use ingrain_engine::{
    failure::Failure,
    operator::Resource,
    plan::{Stage, StageIndex},
    run::{Counters, Environment, Reason, Status, rehearse, why as statuses},
};
use ingrain_operators::{
    REGISTRY,
    teachers::{Estimate, estimates},
};
use serde_json::{Value, json};

use crate::{
    End,
    call::{FileCall, PlanCall, WhyCall},
    pipeline::Pipeline,
    progress::{grouped, rows as rows_of, tell},
};

pub(crate) async fn check(call: &FileCall) -> Result<(), End> {
    let pipeline = Pipeline::load(call).await?;
    tell(&format!("{}: {} stages, nothing wrong", call.file.display(), pipeline.all().len()), None);
    Ok(())
}

pub(crate) async fn plan(call: &PlanCall) -> Result<(), End> {
    let pipeline = Pipeline::load(&call.store.file).await?;
    let environment = pipeline.open(&call.store).await?;
    let found = statuses(&pipeline.plan, &environment, &pipeline.all(), HashSet::new()).await?;
    let asking = asking(&pipeline, &environment, &found).await?;
    let mut stdout = std::io::stdout().lock();
    let width = found.iter().map(|(index, _)| pipeline.plan.stage(*index).name.len()).max().unwrap_or(0);
    for (index, status) in &found {
        let stage = pipeline.plan.stage(*index);
        let asks = asking.get(index);
        let line = if call.json {
            let mut told = told(&stage.name, status);
            if let Some(asks) = asks {
                told["asks"] = asks.told();
            }
            told.to_string()
        } else {
            let asks = asks.map(|asks| format!("; {}", asks.said())).unwrap_or_default();
            format!("{:width$}  {}{asks}{}", stage.name, said(stage, status), took(status, asking.get(index)))
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

/// What a stage that will run asks its teacher.
enum Asks {
    Known {
        estimate: Estimate,
        usd: Option<f64>,
    },
    /// It can't be found out, for this reason.
    Unknown(String),
}

/// What the stages that will run, and whose inputs are there, would ask.
async fn asking(
    pipeline: &Pipeline,
    environment: &Environment,
    found: &[(StageIndex, Status)],
) -> Result<HashMap<StageIndex, Asks>, Failure> {
    let asks = |index: &StageIndex| pipeline.plan.stage(*index).operator.resource() == Resource::Teacher;
    let runs = found.iter().filter(|(index, status)| matches!(status, Status::Run { .. }) && asks(index));
    let mut asking = HashMap::new();
    let mut rehearsal = None;
    for (index, _) in runs {
        let (environment, estimates) = match &rehearsal {
            Some(made) => made,
            None => {
                let environment = Arc::new(environment.rehearsal()?);
                let estimates = estimates(&environment);
                rehearsal.insert((environment, estimates))
            }
        };
        let asks = match rehearse(&pipeline.plan, environment, *index).await {
            Ok(counters) => {
                let estimate = estimates.take(&counters);
                let price = pipeline.plan.price(*index, &REGISTRY);
                Asks::Known { estimate, usd: price.map(|price| price.of(estimate.input_tokens, estimate.output_tokens)) }
            }
            Err(failure) => {
                // What it had counted until then isn't the next stage's.
                estimates.take(&Counters::default());
                Asks::Unknown(failure.message)
            }
        };
        asking.insert(*index, asks);
    }
    Ok(asking)
}

impl Asks {
    fn said(&self) -> String {
        let Estimate { calls, memo_hits, input_tokens, output_tokens, at_most } = match self {
            Self::Known { estimate, .. } => estimate,
            Self::Unknown(reason) => return format!("what it asks is unknown: {reason}"),
        };
        let memo = if *memo_hits > 0 { format!(", {} answers in the memo", grouped(*memo_hits)) } else { String::new() };
        if *calls == 0 {
            return format!("no calls{memo}");
        }
        let bound = if *at_most { "at most " } else { "" };
        let usd = match self {
            Self::Known { usd: Some(usd), .. } => format!(", {bound}${usd:.4}"),
            _ => String::new(),
        };
        format!(
            "{} call{}{memo}, about {} tokens to send, {bound}{} to receive{usd}",
            grouped(*calls),
            if *calls == 1 { "" } else { "s" },
            grouped(*input_tokens),
            grouped(*output_tokens)
        )
    }

    fn told(&self) -> Value {
        match self {
            Self::Known { estimate, usd } => json!({
                "calls": estimate.calls, "memo_hits": estimate.memo_hits, "input_tokens": estimate.input_tokens,
                "output_tokens": estimate.output_tokens, "output_tokens_at_most": estimate.at_most, "usd": usd,
            }),
            Self::Unknown(reason) => json!({ "unknown": reason }),
        }
    }
}

/// How long a stage took when it last ran; one that asks, for as many calls as it has to make now.
fn took(status: &Status, asks: Option<&Asks>) -> String {
    let Status::Run { last: Some(last), .. } = status else { return String::new() };
    match asks {
        Some(Asks::Known { estimate, .. }) if estimate.calls > 0 && last.calls > 0 => {
            let seconds = last.seconds * estimate.calls as f64 / last.calls as f64;
            format!("; {seconds:.1} s at the last run's rate")
        }
        _ => format!("; {:.1} s last time", last.seconds),
    }
}

pub(crate) async fn why(call: &WhyCall) -> Result<(), End> {
    let pipeline = Pipeline::load(&call.store.file).await?;
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
            Status::Unknown { .. } => {
                writeln!(stdout, "`{}`: {}", call.stage, said(pipeline.plan.stage(index), status)).map_err(Failure::from)?;
                // The first causes: what is above runs only because of these.
                for (above, status) in &found {
                    if let Status::Run { reasons, .. } = status {
                        let first = reasons.first().map(Reason::to_string).unwrap_or_default();
                        writeln!(stdout, "  `{}` will run: {first}", pipeline.plan.stage(*above).name).map_err(Failure::from)?;
                    }
                }
            }
            Status::Hit { .. } => {
                writeln!(stdout, "`{}`: {}", call.stage, said(pipeline.plan.stage(index), status)).map_err(Failure::from)?;
            }
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
        Status::Run { key, generation, reasons, last } => json!({
            "stage": stage, "status": "run", "key": key.key, "generation": generation, "reasons": reasons, "last": last,
        }),
        Status::Unknown { after } => json!({ "stage": stage, "status": "unknown", "after": after }),
    }
}

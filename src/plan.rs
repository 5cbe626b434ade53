//! `check`, `plan`, `why`

use std::{
    collections::{HashMap, HashSet},
    io::Write,
    sync::Arc,
};

use ingrain_engine::{
    failure::Failure,
    operator::Resource,
    plan::{Plan, Stage, StageIndex},
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
    let width = found.iter().map(|(index, _)| pipeline.plan.stage(*index).base.len()).max().unwrap_or(0);
    for (stage, cells) in groups(&pipeline.plan, &found) {
        let lines: Vec<(&Stage, String)> = cells
            .iter()
            .map(|(index, status)| {
                let (stage, asks) = (pipeline.plan.stage(*index), asking.get(index));
                let asked = asks.map(|asks| format!("; {}", asks.said())).unwrap_or_default();
                (stage, format!("{}{asked}{}", said(stage, status), took(status, asks)))
            })
            .collect();
        if call.json {
            for (index, status) in &cells {
                let mut told = told(pipeline.plan.stage(*index), status);
                if let Some(asks) = asking.get(index) {
                    told["asks"] = asks.told();
                }
                writeln!(stdout, "{told}").map_err(Failure::from)?;
            }
        } else {
            for line in grouped_lines(stage, width, &lines, &cells) {
                writeln!(stdout, "{line}").map_err(Failure::from)?;
            }
        }
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

type Found = (StageIndex, Status);

/// The stages of the file, in the order of the first cell of each, with all cells.
fn groups<'a>(plan: &'a Plan, found: &'a [Found]) -> Vec<(&'a str, Vec<&'a Found>)> {
    let mut groups: Vec<(&str, Vec<&Found>)> = Vec::new();
    for one in found {
        let base = plan.stage(one.0).base.as_str();
        match groups.iter_mut().find(|(known, _)| *known == base) {
            Some((_, cells)) => cells.push(one),
            None => groups.push((base, vec![one])),
        }
    }
    groups
}

/// A stage in one line; with a matrix the number of cells of each kind, and what there is to say of those that differ.
fn grouped_lines(base: &str, width: usize, lines: &[(&Stage, String)], cells: &[&Found]) -> Vec<String> {
    if let [(stage, line)] = lines
        && stage.cell.0.is_empty()
    {
        return vec![format!("{base:width$}  {line}")];
    }
    let count = |is: fn(&Status) -> bool| cells.iter().filter(|(_, status)| is(status)).count();
    let counts = [
        (count(|status| matches!(status, Status::Hit { .. })), "cached"),
        (count(|status| matches!(status, Status::Run { .. })), "will run"),
        (count(|status| matches!(status, Status::Unknown { .. })), "unknown"),
    ];
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{} {word}", grouped(*count as u64))).collect();
    let head = format!("{base:width$}  {} cells: {}", grouped(cells.len() as u64), counts.join(", "));
    let open: Vec<&(&Stage, String)> =
        lines.iter().zip(cells).filter(|(_, (_, status))| !matches!(status, Status::Hit { .. })).map(|(line, _)| line).collect();
    let alike = open.iter().all(|(_, line)| open.first().is_some_and(|(_, first)| first == line));
    match open.first() {
        None => vec![head],
        Some((_, line)) if alike => {
            let line = line.strip_prefix("will run: ").or_else(|| line.strip_prefix("unknown: ")).unwrap_or(line);
            vec![format!("{head}: {line}")]
        }
        Some(_) => {
            let widest = open.iter().map(|(stage, _)| stage.cell.to_string().len()).max().unwrap_or(0);
            let line = |(stage, line): &&(&Stage, String)| format!("{:width$}  {:widest$}  {line}", "", stage.cell.to_string());
            [head].into_iter().chain(open.iter().map(line)).collect()
        }
    }
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
    let wanted = pipeline.stages(&call.stage)?;
    let environment = pipeline.open(&call.store).await?;
    let needed = wanted.iter().flat_map(|index| pipeline.plan.needed_by(*index)).collect();
    let found = statuses(&pipeline.plan, &environment, &needed, HashSet::new()).await?;
    let mut stdout = std::io::stdout().lock();
    for (index, status) in found.iter().filter(|(found, _)| wanted.contains(found)) {
        let stage = pipeline.plan.stage(*index);
        if call.json {
            writeln!(stdout, "{}", told(stage, status)).map_err(Failure::from)?;
            continue;
        }
        let name = &stage.name;
        match status {
            Status::Run { reasons, .. } => {
                writeln!(stdout, "`{name}` has to run:").map_err(Failure::from)?;
                for reason in reasons {
                    writeln!(stdout, "  {reason}").map_err(Failure::from)?;
                }
            }
            Status::Unknown { .. } => {
                writeln!(stdout, "`{name}`: {}", said(stage, status)).map_err(Failure::from)?;
                // The first causes: what is above runs only because of these.
                let above = pipeline.plan.needed_by(*index);
                for (above, status) in found.iter().filter(|(found, _)| above.contains(found)) {
                    if let Status::Run { reasons, .. } = status {
                        let first = reasons.first().map(Reason::to_string).unwrap_or_default();
                        writeln!(stdout, "  `{}` will run: {first}", pipeline.plan.stage(*above).name).map_err(Failure::from)?;
                    }
                }
            }
            Status::Hit { .. } => {
                writeln!(stdout, "`{name}`: {}", said(stage, status)).map_err(Failure::from)?;
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
        Status::Unknown { after } => {
            // Of a matrix the stage of the file will do.
            let mut names: Vec<&str> = after.iter().map(|name| name.split('[').next().unwrap_or(name)).collect();
            names.dedup();
            format!("unknown: runs only if what comes out of {} has changed", names.join(", "))
        }
    }
}

fn told(stage: &Stage, status: &Status) -> Value {
    let mut told = json!({ "stage": stage.name });
    if !stage.cell.0.is_empty() {
        let labels = stage.cell.0.iter().map(|(axis, label)| (axis.clone(), label.as_str().into()));
        told["cell"] = Value::Object(labels.collect());
    }
    let more = match status {
        Status::Hit { key, generation, .. } => json!({ "status": "cached", "key": key.key, "generation": generation }),
        Status::Run { key, generation, reasons, last } => {
            json!({ "status": "run", "key": key.key, "generation": generation, "reasons": reasons, "last": last })
        }
        Status::Unknown { after } => json!({ "status": "unknown", "after": after }),
    };
    if let (Value::Object(told), Value::Object(more)) = (&mut told, more) {
        told.extend(more);
    }
    told
}

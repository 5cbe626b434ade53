//! `gc`

use std::io::Write;

use ingrain_engine::{
    failure::Failure,
    run::{Unfinished, remove_unfinished},
    store::{Collected, Keep},
};
use serde::Serialize;

use crate::{
    End,
    call::GcCall,
    forget,
    pipeline::Pipeline,
    progress::{grouped, tell},
};

pub(crate) async fn gc(call: &GcCall) -> Result<(), End> {
    let pipeline = Pipeline::load(&call.store.file).await?;
    let environment = pipeline.open(&call.store).await?;
    if !environment.store.is_there() {
        return Err(Failure::data(format!("there is no store at `{}`", environment.store.location()))
            .hint("`--store` names another one")
            .into());
    }
    if call.forgotten {
        return forget::gc(call, &environment).await;
    }
    let collected = environment.store.collect(Keep { runs: call.keep, grace: call.grace }, call.dry_run).await?;
    let unfinished = remove_unfinished(&environment, call.grace, call.dry_run)?;
    let removed = Removed { collected, unfinished };
    if call.json {
        let line = serde_json::to_string(&removed).map_err(|error| Failure::bug(error.to_string()))?;
        writeln!(std::io::stdout().lock(), "{line}").map_err(Failure::from)?;
        return Ok(());
    }
    tell(&said(&removed, call.dry_run), None);
    Ok(())
}

/// What was removed of the store, and of what trainings had reached on this machine.
#[derive(Serialize)]
struct Removed {
    #[serde(flatten)]
    collected: Collected,
    unfinished: Unfinished,
}

fn said(removed: &Removed, dry_run: bool) -> String {
    let Collected { artifacts, runs, files, bytes, later_bytes } = &removed.collected;
    let word = if dry_run { "would remove" } else { "removed" };
    let later = match later_bytes {
        0 => String::new(),
        later => format!("; {} follow when the grace time is over", size(*later)),
    };
    let unfinished = match removed.unfinished {
        Unfinished { stages: 0, .. } => String::new(),
        Unfinished { stages, bytes } => {
            format!("; of this machine's cache what {} had reached, {}", trainings(stages), size(bytes))
        }
    };
    format!(
        "{word} {} artifacts, {} records of runs, {} files of {}{later}{unfinished}",
        grouped(*artifacts as u64),
        grouped(*runs as u64),
        grouped(*files as u64),
        size(*bytes)
    )
}

/// "1 unfinished training"
fn trainings(count: usize) -> String {
    format!("{} unfinished training{}", grouped(count as u64), if count == 1 { "" } else { "s" })
}

/// "1.5 GiB"
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..0x40_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x40_0000..0x1_0000_0000 => format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64),
        _ => format!("{:.1} GiB", bytes as f64 / (1 << 30) as f64),
    }
}

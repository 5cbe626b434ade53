//! `doctor`

use std::{io::Write, process::ExitCode};

use ingrain_engine::{
    failure::Failure,
    run::default_memory,
    store::{Buckets, Check, Verdict, probe},
};
use ingrain_operators::REGISTRY;

use crate::{
    End, STAGE_FAILED,
    call::{DoctorCall, FileCall, cores},
    devices,
    pipeline::{Pipeline, cache},
    progress::{printable, tell},
};

pub(crate) async fn doctor(call: DoctorCall) -> Result<(), End> {
    if let Some(name) = &call.device {
        return devices::examine(&call, name).await;
    }
    let pipeline = match &call.file {
        Some(file) => Some(Pipeline::load(&FileCall { file: file.clone(), set: call.set.clone() }).await?),
        None => None,
    };
    let location = match (&pipeline, &call.store) {
        (Some(pipeline), given) => pipeline.location(given.as_deref()),
        (None, Some(given)) => given.clone(),
        (None, None) => return about().map_err(End::from),
    };
    let buckets = pipeline.as_ref().map_or_else(Buckets::default, |pipeline| pipeline.buckets().clone());
    let checks = match probe(&location, &buckets).await {
        Ok(checks) => checks,
        Err(failure) => return Err(End::Told(crate::told(&failure, STAGE_FAILED))),
    };
    print(&checks).map_err(End::from)?;
    let missing = checks.iter().filter(|check| check.verdict == Verdict::Missing).count();
    if missing > 0 {
        tell(&format!("error: `{location}` can't be a store: {missing} of what runs need is missing"), None);
        return Err(End::Told(ExitCode::from(STAGE_FAILED)));
    }
    tell(&format!("`{location}` can be a store"), None);
    Ok(())
}

fn print(checks: &[Check]) -> Result<(), Failure> {
    let width = checks.iter().map(|check| check.promise.len()).max().unwrap_or(0);
    let mut stdout = std::io::stdout().lock();
    for check in checks {
        let word = match check.verdict {
            Verdict::Holds => "holds",
            Verdict::Weak => "weak",
            Verdict::Missing => "MISSING",
        };
        writeln!(stdout, "{:width$}  {word:7}  {}", check.promise, printable(&check.seen))?;
    }
    Ok(())
}

/// What this binary is and what it would use here.
fn about() -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let lines = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("operators", format!("{} (`ingrain operators`)", REGISTRY.operators.len())),
        ("stores", "local folders, `s3://` (`ingrain doctor --store URL` tries one out)".to_owned()),
        ("cores", cores().to_string()),
        ("memory", format!("{} MiB for tables, unless `--memory` says otherwise", default_memory() >> 20)),
        ("cache", cache()?.display().to_string()),
        ("device", "not looked at: `ingrain doctor --device auto` does".to_owned()),
    ];
    for (name, value) in lines {
        writeln!(stdout, "{name:10} {value}")?;
    }
    Ok(())
}

//! The `ingrain` command: parses the call, calls the engine, prints.

mod call;
mod devices;
mod doctor;
mod export;
mod forget;
mod gc;
mod info;
mod pipeline;
mod plan;
mod progress;
mod run;
mod runs;
mod sample;
mod show;
mod trace;

use std::process::ExitCode;

use clap::Parser;
use ingrain_engine::failure::Failure;

use crate::call::{Call, Command};

/// How a call ends other than well.
pub(crate) enum End {
    /// What was wrong has been printed.
    Told(ExitCode),
    /// A failure to print.
    Failed(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// A stage failed.
pub(crate) const STAGE_FAILED: u8 = 1;
/// The pipeline file or the call is wrong.
pub(crate) const WRONG: u8 = 2;
/// Stopped by the budget.
pub(crate) const SPENT: u8 = 3;
/// Interrupted.
pub(crate) const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let call = Call::parse();
    if let Command::Worker = call.command {
        return match ingrain_engine::run::serve_worker(ingrain_operators::REGISTRY) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => told(&failure, WRONG),
        };
    }
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("INGRAIN_LOG"))
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(call.threads()).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return told(&error.into(), STAGE_FAILED),
    };
    let result = runtime.block_on(dispatch(call.command));
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(End::Told(code)) => code,
        Err(End::Failed(failure)) => told(&failure, WRONG),
    }
}

async fn dispatch(command: Command) -> Result<(), End> {
    match command {
        Command::Run(call) => run::run(call).await,
        Command::Check(call) => plan::check(&call).await,
        Command::Plan(call) => plan::plan(&call).await,
        Command::Why(call) => plan::why(&call).await,
        Command::Runs(call) => runs::runs(&call).await,
        Command::Show(call) => show::show(call).await,
        Command::Trace(call) => trace::trace(&call).await,
        Command::Export(call) => export::export(&call).await,
        Command::Forget(call) => forget::forget(&call).await,
        Command::Gc(call) => gc::gc(&call).await,
        Command::Schema => info::schema(),
        Command::Operators { name } => info::operators(name.as_deref()),
        Command::Init { folder } => info::init(&folder),
        Command::Doctor(call) => doctor::doctor(call).await,
        Command::Worker => Ok(()),
        Command::Other(words) => Err(info::other(&words)),
    }
}

pub(crate) fn told(failure: &Failure, code: u8) -> ExitCode {
    progress::tell(&format!("error: {}", failure.message), failure.hint.as_deref());
    ExitCode::from(code)
}

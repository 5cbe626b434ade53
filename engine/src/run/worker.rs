//! Tasks in a child process of the same binary: a driver's abort or the out-of-memory killer ends the stage, not the run.

use std::{
    io::{BufRead, Read, Write},
    process::Stdio,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

use super::{
    context::{Counters, Environment, Settings},
    task::{TaskWork, run_task},
};
use crate::{
    failure::Failure,
    operator::Registry,
    store::{Buckets, PartitionRecord, Store},
};

/// The hidden subcommand that serves one task.
const COMMAND: &str = "worker";

#[derive(Serialize, Deserialize)]
struct Job {
    work: TaskWork,
    store: String,
    file: std::path::PathBuf,
    pipeline: String,
    budget: Option<f64>,
    /// As written: secrets are references, which the child reads for itself.
    buckets: std::collections::BTreeMap<String, Value>,
    cache: std::path::PathBuf,
    cache_limit: u64,
    models: std::collections::BTreeMap<String, Value>,
    device: String,
    memory: usize,
    threads: usize,
    part_bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Progress { message: String, rows: u64, done: u64, of: u64 },
    Done(PartitionRecord),
    Failed(Failure),
}

/// Runs a task in a child process, which ends when this one does. Dropping the future kills it.
pub(crate) async fn run_in_child(
    work: TaskWork,
    environment: &Environment,
    counters: Arc<Counters>,
) -> Result<PartitionRecord, Failure> {
    let operator = work.operator.clone();
    let settings = environment.settings();
    let location = match settings.store.local_path(&object_store::path::Path::from("")) {
        Some(folder) => folder.to_string_lossy().into_owned(),
        None => settings.store.location().to_owned(),
    };
    let job = Job {
        work,
        store: location,
        file: settings.file.clone(),
        pipeline: settings.pipeline.clone(),
        budget: settings.budget,
        buckets: settings.buckets.written().clone(),
        cache: settings.cache.clone(),
        cache_limit: settings.cache_limit,
        models: settings.models.clone(),
        device: settings.device.clone(),
        memory: settings.memory,
        threads: settings.threads,
        part_bytes: settings.part_bytes,
    };
    let mut child = tokio::process::Command::new(std::env::current_exe()?)
        .arg(COMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        // Ctrl-C on a terminal reaches the whole group: the run alone decides what happens then.
        .process_group(0)
        .spawn()?;
    let (Some(mut stdin), Some(stdout), Some(mut stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
        return Err(Failure::bug("a child process without pipes"));
    };
    let mut line = serde_json::to_vec(&job).map_err(|error| Failure::bug(error.to_string()))?;
    line.push(b'\n');
    // A child that ends early says why on its standard error.
    let _ = stdin.write_all(&line).await;
    // The child watches its standard input: it stays open as long as this process lives.
    let last_words = tokio::spawn(async move {
        let mut text = Vec::new();
        let _ = stderr.read_to_end(&mut text).await;
        String::from_utf8_lossy(&text).into_owned()
    });
    let mut lines = tokio::io::BufReader::new(stdout).lines();
    let mut result = None;
    while let Some(line) = lines.next_line().await? {
        match serde_json::from_str(&line) {
            Ok(Line::Progress { message, rows, done, of }) => {
                counters.say(message);
                counters.progress(done, of);
                counters.rows.store(rows, Ordering::Relaxed);
            }
            Ok(Line::Done(record)) => result = Some(Ok(record)),
            Ok(Line::Failed(failure)) => result = Some(Err(failure)),
            Err(_) => tracing::debug!(line, "a worker's line that isn't one of ours"),
        }
    }
    drop(stdin);
    let status = child.wait().await?;
    let last_words = last_words.await.unwrap_or_default();
    result.unwrap_or_else(|| {
        let tail: Vec<&str> = last_words.lines().rev().take(5).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        Err(Failure::external(format!("the process that ran `{operator}` ended without a result ({status})\n{tail}"))
            .hint("if it was out of memory: lower `micro_batch` or `sequence`, or choose a smaller model"))
    })
}

/// Serves one task: the job on standard input, lines of progress and the result on standard output.
///
/// # Errors
/// When standard input holds no job. A task's own failure is an answer, not an error.
pub fn serve_worker(registry: Registry) -> Result<(), Failure> {
    let mut stdin = std::io::BufReader::new(std::io::stdin());
    let mut line = String::new();
    stdin.read_line(&mut line)?;
    let job: Job = serde_json::from_str(&line).map_err(|_| Failure::data("`worker` is started by `run` and expects a job"))?;
    std::thread::spawn(move || {
        let _ = stdin.read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(job.threads.max(1)).enable_all().build()?;
    let result = runtime.block_on(serve(job, registry));
    let line = match result {
        Ok(record) => Line::Done(record),
        Err(failure) => Line::Failed(failure),
    };
    say(&line)?;
    // Device threads of a driver may hang on the way out, and there is nothing left to do.
    std::process::exit(0)
}

async fn serve(job: Job, registry: Registry) -> Result<PartitionRecord, Failure> {
    let buckets = Buckets::new(job.buckets)?;
    let settings = Settings {
        store: Store::existing(&job.store, &buckets).await?,
        buckets,
        file: job.file,
        pipeline: job.pipeline,
        budget: job.budget,
        cache: job.cache,
        cache_limit: job.cache_limit,
        registry,
        models: job.models,
        device: job.device,
        memory: job.memory,
        threads: job.threads,
        retry_rejects: false,
        part_bytes: job.part_bytes,
    };
    let environment = Arc::new(Environment::new(settings)?);
    let counters = Arc::new(Counters::default());
    let watched = counters.clone();
    let watch = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        loop {
            tick.tick().await;
            let message = watched.message.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
            let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            let (rows, done, of) = (load(&watched.rows), load(&watched.done), load(&watched.of));
            if say(&Line::Progress { message, rows, done, of }).is_err() {
                return;
            }
        }
    });
    let result = run_task(&job.work, environment.clone(), counters).await;
    let damaged = environment.store.damaged().into_iter().next();
    let result = result.map_err(|failure| match damaged {
        Some(part) if failure.damaged.is_none() => Failure::damaged(&part),
        _ => failure,
    });
    watch.abort();
    let closed = environment.close().await;
    result.and_then(|record| closed.map(|()| record))
}

fn say(line: &Line) -> Result<(), Failure> {
    let mut text = serde_json::to_string(line).map_err(|error| Failure::bug(error.to_string()))?;
    text.push('\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

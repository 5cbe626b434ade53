//! Millions of remembered answers: how long it takes to open a memo of them and to look some up, and in how much memory.
//!
//!     cargo bench --workspace --bench memo -- [--entries 10000000] [--lookups 100000] [--json]
//!
//! `benches/memo.py` runs this and does the same in SQLite.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use ingrain_llm::{Answer, Finish, Key, Memo, Usage};
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::{Value, json};

/// Answers of a segment: about as many as fill one.
const SEGMENT: u64 = 150_000;
/// Lookups under way at once.
const TASKS: u64 = 64;

type Anyhow<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Anyhow<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str| {
        let at = words.iter().position(|word| word == name)?;
        words.get(at + 1)?.parse::<u64>().ok()
    };
    // `cargo test --benches` only wants to see that it runs.
    let default = if words.iter().any(|word| word == "--bench") { 10_000_000 } else { 10_000 };
    let entries = number("--entries").unwrap_or(default);
    let lookups = number("--lookups").unwrap_or(entries.div_ceil(100));
    let runtime = tokio::runtime::Runtime::new()?;
    if let Some(folder) = words.iter().position(|word| word == "--look-up").and_then(|at| words.get(at + 1)) {
        println!("{}", runtime.block_on(look_up(Path::new(folder), entries, lookups))?);
        return Ok(());
    }

    let folder = tempfile::tempdir()?;
    let start = Instant::now();
    let bytes = runtime.block_on(make(folder.path(), entries))?;
    let mut said = json!({ "entries": entries, "lookups": lookups, "store_bytes": bytes, "make_s": seconds(start) });
    for run in ["first", "second"] {
        // A process of its own: making the answers takes memory, too.
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--look-up").arg(folder.path());
        let done = command.args(["--entries", &entries.to_string(), "--lookups", &lookups.to_string()]).output()?;
        if !done.status.success() {
            return Err(String::from_utf8_lossy(&done.stderr).into());
        }
        said[run] = serde_json::from_slice(&done.stdout)?;
    }
    match words.iter().any(|word| word == "--json") {
        true => println!("{said}"),
        false => print(&said),
    }
    Ok(())
}

fn print(said: &Value) {
    let mib = |bytes: &Value| bytes.as_f64().unwrap_or(0.0) / f64::from(1 << 20);
    println!("{} answers, {:.0} MiB on the store, made in {:.1} s", said["entries"], mib(&said["store_bytes"]), said["make_s"]);
    for run in ["first", "second"] {
        let of = &said[run];
        println!(
            "{run} time: opened in {:.2} s ({:.0} MiB), {} present keys in {:.2} s, as many absent ones in {:.3} s; peak memory {:.0} MiB",
            of["open_s"],
            mib(&of["open_peak_bytes"]),
            said["lookups"],
            of["present_s"],
            of["absent_s"],
            mib(&of["peak_bytes"])
        );
    }
}

/// Writes segments as uploads do.
async fn make(folder: &Path, entries: u64) -> Anyhow<u64> {
    let store = Arc::new(LocalFileSystem::new_with_prefix(folder)?);
    let mut bytes = 0;
    let threads = std::thread::available_parallelism()?.get() as u64;
    let mut starts = (0..entries).step_by(SEGMENT as usize);
    let mut making = tokio::task::JoinSet::new();
    loop {
        while (making.len() as u64) < threads
            && let Some(start) = starts.next()
        {
            let store = Arc::clone(&store);
            making.spawn(async move {
                let numbers = start..entries.min(start + SEGMENT);
                let encode = move || Memo::encoded(numbers.map(|n| (key("present", n), answer(n))).collect());
                let (name, bytes) = tokio::task::spawn_blocking(encode).await??;
                let length = bytes.len() as u64;
                store.put(&object_store::path::Path::from_iter(["memo", &name]), bytes.into()).await?;
                Anyhow::Ok(length)
            });
        }
        match making.join_next().await {
            Some(length) => bytes += length??,
            None => return Ok(bytes),
        }
    }
}

async fn look_up(folder: &Path, entries: u64, lookups: u64) -> Anyhow<Value> {
    let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(folder)?);
    let start = Instant::now();
    let memo = Memo::open(store, "memo".into(), &folder.join("local")).await?;
    let mut said = json!({ "open_s": seconds(start), "open_peak_bytes": peak()? });
    for kind in ["present", "absent"] {
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..TASKS {
            let memo = memo.clone();
            tasks.spawn(async move {
                let mut found = 0;
                for n in (task..lookups).step_by(TASKS as usize) {
                    // A multiplicative walk: no number twice, and no order that a segment has.
                    let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % entries;
                    match memo.answer(&key(kind, n)).await? {
                        Some(found) if found != answer(n) => return Err(format!("another answer than {n}'s").into()),
                        answer => found += u64::from(answer.is_some()),
                    }
                }
                Anyhow::Ok(found)
            });
        }
        let mut found = 0;
        while let Some(some) = tasks.join_next().await {
            found += some??;
        }
        said[format!("{kind}_s")] = seconds(start).into();
        if found != if kind == "present" { lookups } else { 0 } {
            return Err(format!("{found} of {lookups} {kind} keys were found").into());
        }
    }
    said["peak_bytes"] = peak()?.into();
    Ok(said)
}

fn key(kind: &str, n: u64) -> Key {
    Key::vectors(&Value::Null, None)(&format!("{kind} {n}"))
}

/// An answer of about 300 bytes of JSON, of words that repeat as those of answers do.
fn answer(n: u64) -> Answer {
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = format!("Answer {n}:");
    while text.len() < 190 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let syllables = ["ba", "ten", "ri", "lo", "ment", "qua", "si", "der", "in", "no", "tra", "vel", "ku", "pes", "on", "al"];
        text.push(' ');
        for shift in [0, 4, 8] {
            text.push_str(syllables[(state >> (20 + shift)) as usize % syllables.len()]);
        }
    }
    let usage = Some(Usage { input_tokens: 700 + n % 100, output_tokens: 60 });
    Answer { text, reasoning: None, finish: Finish::Stop, usage, model: "a-teacher-of-some-size".to_owned(), created_ms: n }
}

fn seconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}

/// The most memory that this process had.
fn peak() -> Anyhow<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

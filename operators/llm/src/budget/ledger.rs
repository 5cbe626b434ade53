//! The record of what was spent: a file for each run on this machine, and its sum on the store.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::{BudgetError, Nanodollars};

/// How often the sum goes to the store without being asked to.
const UPLOAD_EVERY: Duration = Duration::from_secs(60);

/// This run's part of the record.
#[derive(Debug)]
pub(super) struct Ledger {
    store: Arc<dyn ObjectStore>,
    /// Where this run's sum lies on the store.
    object: Path,
    path: PathBuf,
    written: Mutex<Written>,
    /// Held as long as the run: one run at a time spends from a budget.
    lock: File,
}

#[derive(Debug)]
struct Written {
    file: File,
    /// What this run spent.
    paid: Nanodollars,
    uploaded: Nanodollars,
    uploaded_at: Instant,
}

impl Ledger {
    /// Opens a file for this run, and gives what all earlier ones spent. Files that ended runs left are brought to the
    /// store.
    pub(super) async fn open(
        store: Arc<dyn ObjectStore>,
        prefix: Path,
        folder: &FilePath,
    ) -> Result<(Self, Nanodollars), BudgetError> {
        std::fs::create_dir_all(folder).map_err(|error| local(folder, &error))?;
        let lock = locked(&folder.join("lock"))?;
        let mut spent: HashMap<String, Nanodollars> = HashMap::new();
        let found: Vec<_> = store.list(Some(&prefix)).try_collect().await.map_err(|error| on_store(&prefix, &error))?;
        for meta in found {
            let Some(run) = meta.location.filename().and_then(|name| name.strip_suffix(".json")) else { continue };
            let read = async { store.get(&meta.location).await?.bytes().await };
            let content = read.await.map_err(|error| on_store(&meta.location, &error))?;
            let sum = serde_json::from_slice::<u64>(&content).map_err(|error| on_store(&meta.location, &error))?;
            spent.insert(run.to_owned(), Nanodollars(sum));
        }
        let entries = std::fs::read_dir(folder).map_err(|error| local(folder, &error))?;
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "ledger"))
        {
            let text = std::fs::read_to_string(&path).map_err(|error| local(&path, &error))?;
            let run = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let sum = sum(&text);
            put(&store, &prefix.clone().join(format!("{run}.json")), sum).await?;
            spent.insert(run, sum);
            std::fs::remove_file(&path).map_err(|error| local(&path, &error))?;
        }
        let run = format!("{}-{}", std::process::id(), nanoseconds());
        let path = folder.join(format!("{run}.ledger"));
        let file = OpenOptions::new().append(true).create_new(true).open(&path).map_err(|error| local(&path, &error))?;
        let zero = Nanodollars::default();
        let written = Mutex::new(Written { file, paid: zero, uploaded: zero, uploaded_at: Instant::now() });
        let object = prefix.join(format!("{run}.json"));
        let spent = spent.values().fold(zero, |sum, part| sum.plus(*part));
        Ok((Self { store, object, path, written, lock }, spent))
    }

    /// Writes down that a call is about to be made.
    pub(super) fn hold(&self, call: u64, worst: Nanodollars) -> Result<(), BudgetError> {
        let line = format!("hold {call} {}\n", worst.0);
        self.written().file.write_all(line.as_bytes()).map_err(|error| local(&self.path, &error))
    }

    /// Writes down what it cost.
    pub(super) fn paid(&self, call: u64, cost: Nanodollars) {
        let mut written = self.written();
        written.paid = written.paid.plus(cost);
        let line = format!("paid {call} {}\n", cost.0);
        if let Err(error) = written.file.write_all(line.as_bytes()) {
            tracing::warn!(%error, path = %self.path.display(), "a call's cost isn't written down: it counts with its worst case");
        }
    }

    /// Brings this run's sum to the store if it is due, or `now`.
    pub(super) async fn upload(&self, now: bool) -> Result<(), BudgetError> {
        let paid = {
            let mut written = self.written();
            if written.paid == written.uploaded || !now && written.uploaded_at.elapsed() < UPLOAD_EVERY {
                return Ok(());
            }
            written.uploaded_at = Instant::now();
            written.paid
        };
        put(&self.store, &self.object, paid).await?;
        self.written().uploaded = paid;
        Ok(())
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn release_for_test(&self) {
        self.lock.unlock().expect("unlocked");
    }
}

impl Drop for Ledger {
    /// A file whose sum is on the store has nothing more to say.
    fn drop(&mut self) {
        let written = self.written();
        if written.paid == written.uploaded {
            // Left behind, it would be read again and say the same.
            let _ = std::fs::remove_file(&self.path);
        }
        drop(written);
        let _ = self.lock.unlock();
    }
}

/// What a run's file says was spent: what calls cost, and the worst case of those whose end isn't known. A line that was cut
/// by a crash says nothing: its call wasn't made, or its worst case stands above.
fn sum(text: &str) -> Nanodollars {
    let mut calls: HashMap<u64, u64> = HashMap::new();
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let mut words = line.split(' ');
        let (Some(word), Some(call), Some(amount), None) = (words.next(), words.next(), words.next(), words.next()) else {
            continue;
        };
        if let (true, Ok(call), Ok(amount)) = (matches!(word, "hold" | "paid"), call.parse(), amount.parse()) {
            calls.insert(call, amount);
        }
    }
    Nanodollars(calls.values().fold(0, |sum: u64, amount| sum.saturating_add(*amount)))
}

/// The file at `path`, locked, with this process's number in it.
fn locked(path: &FilePath) -> Result<File, BudgetError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let mut file = file.map_err(|error| local(path, &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only to name it.
            let _ = file.read_to_string(&mut holder);
            return Err(BudgetError::Held { holder });
        }
        Err(TryLockError::Error(error)) => return Err(local(path, &error)),
    }
    let named = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
    let named = named.and_then(|_| write!(file, "process {}", std::process::id()));
    named.map_err(|error| local(path, &error))?;
    Ok(file)
}

async fn put(store: &Arc<dyn ObjectStore>, path: &Path, sum: Nanodollars) -> Result<(), BudgetError> {
    store.put(path, sum.0.to_string().into()).await.map_err(|error| on_store(path, &error))?;
    Ok(())
}

fn nanoseconds() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

fn local(path: &FilePath, error: &impl std::fmt::Display) -> BudgetError {
    BudgetError::Record { path: path.display().to_string(), message: error.to_string() }
}

fn on_store(path: &Path, error: &impl std::fmt::Display) -> BudgetError {
    BudgetError::Record { path: path.to_string(), message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_calls_count_in_full_and_cut_lines_not_at_all() {
        let text = "hold 0 50\npaid 0 20\nhold 1 30\nhold 2 7\npaid 2 0\nhold 3 4\nhold 4 1";
        assert_eq!(sum(text), Nanodollars(20 + 30 + 4));
        assert_eq!(sum("hold 0 50\npaid 0\npai"), Nanodollars(50));
        assert_eq!(sum(""), Nanodollars(0));
    }
}

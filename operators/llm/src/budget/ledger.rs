//! The record of what was spent: a file for each run on this machine, and a sum for each on the store.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};

use super::{BudgetError, Nanodollars};

/// This run's part of the record.
#[derive(Debug)]
pub(super) struct Ledger {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// What this run is called in the record.
    run: String,
    path: PathBuf,
    /// Locked for as long as the run: nobody else takes it for that of a run that ended.
    file: Mutex<File>,
    /// The sums of other runs, which this one's takes in when it is next written.
    earlier: Mutex<Sums>,
    /// This run's own sum, as it lies on the store.
    own: Mutex<Sum>,
}

/// What lies on the store for one run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Sum {
    /// What the run spent, or will have spent at most, in billionths of a dollar.
    nanodollars: u64,
    /// Whether it is what the run spent, and final.
    ended: bool,
    /// What runs before it spent whose sums were taken in here.
    earlier: u64,
    /// These: where one is still there, it counts no more.
    of: BTreeSet<String>,
}

type Sums = BTreeMap<String, Sum>;

impl Ledger {
    /// Opens a file for this run, and gives what all other runs spent, at most. Files that ended runs left are brought to the
    /// store.
    pub(super) async fn open(
        store: Arc<dyn ObjectStore>,
        prefix: Path,
        folder: &FilePath,
    ) -> Result<(Self, Nanodollars), BudgetError> {
        std::fs::create_dir_all(folder).map_err(|error| local(folder, &error))?;
        let mut sums = sums(&store, &prefix).await?;
        let entries = std::fs::read_dir(folder).map_err(|error| local(folder, &error))?;
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "ledger"))
        {
            adopt(&store, &prefix, &path, &mut sums).await?;
        }
        let run = format!("{}-{}", std::process::id(), nanoseconds());
        let path = folder.join(format!("{run}.ledger"));
        let file = OpenOptions::new().append(true).create_new(true).open(&path).map_err(|error| local(&path, &error))?;
        file.lock().map_err(|error| local(&path, &error))?;
        (&file).write_all(format!("boot {}\n", boot()).as_bytes()).map_err(|error| local(&path, &error))?;
        let spent = total(&sums);
        let own = Mutex::new(Sum { ended: true, ..Sum::default() });
        Ok((Self { store, prefix, run, path, file: Mutex::new(file), earlier: Mutex::new(sums), own }, spent))
    }

    /// What all other runs spent, or will have spent at most, as the store says now.
    pub(super) async fn others(&self) -> Result<Nanodollars, BudgetError> {
        let mut found = sums(&self.store, &self.prefix).await?;
        found.remove(&self.run);
        let others = total(&found).plus(Nanodollars(lock(&self.own).earlier));
        *lock(&self.earlier) = found;
        Ok(others)
    }

    /// Writes down that a call is about to be made.
    pub(super) fn hold(&self, call: u64, worst: Nanodollars) -> Result<(), BudgetError> {
        let line = format!("hold {call} {}\n", worst.0);
        lock(&self.file).write_all(line.as_bytes()).map_err(|error| local(&self.path, &error))
    }

    /// Writes down what it cost.
    pub(super) fn paid(&self, call: u64, cost: Nanodollars) {
        let line = format!("paid {call} {}\n", cost.0);
        if let Err(error) = lock(&self.file).write_all(line.as_bytes()) {
            tracing::warn!(%error, path = %self.path.display(), "a call's cost isn't written down: it counts with its worst case");
        }
    }

    /// Has the store say what this run spends at most, or spent if it `ended`.
    pub(super) async fn promise(&self, amount: Nanodollars, ended: bool) -> Result<(), BudgetError> {
        // Runs that may still spend, or whose machine may know better, stay on their own.
        let mut taken = lock(&self.earlier).clone();
        let mut sum = lock(&self.own).clone();
        taken.retain(|run, other| other.ended && !sum.of.contains(run));
        sum.earlier = sum.earlier.saturating_add(total(&taken).0);
        sum.of.extend(taken.iter().flat_map(|(run, other)| other.of.iter().chain([run])).cloned());
        (sum.nanodollars, sum.ended) = (amount.0, ended);
        put(&self.store, &self.object(&self.run), &sum).await?;
        *lock(&self.own) = sum.clone();
        for run in &sum.of {
            let path = self.object(run);
            match self.store.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(on_store(&path, &error)),
            }
        }
        lock(&self.earlier).retain(|run, _| !sum.of.contains(run));
        lock(&self.own).of.clear();
        Ok(())
    }

    /// Where the sum of a run lies on the store.
    fn object(&self, run: &str) -> Path {
        self.prefix.clone().join(format!("{run}.json"))
    }

    #[cfg(test)]
    pub(super) fn release_for_test(&self) {
        lock(&self.file).unlock().expect("unlocked");
    }
}

impl Drop for Ledger {
    /// A file whose sum is on the store has nothing more to say.
    fn drop(&mut self) {
        if lock(&self.own).ended {
            // Left behind, it would be read again and say the same.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Brings what the file of an ended run says to the store, and removes it.
async fn adopt(store: &Arc<dyn ObjectStore>, prefix: &Path, path: &FilePath, sums: &mut Sums) -> Result<(), BudgetError> {
    let file = File::open(path).map_err(|error| local(path, &error))?;
    if file.try_lock().is_err() {
        return Ok(());
    }
    let text = std::fs::read_to_string(path).map_err(|error| local(path, &error))?;
    let run = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // Without a sum no call was made. After a power cut lines may be missing that the sum on the store has promised.
    if let Some(sum) = sums.get_mut(&run).filter(|_| text.starts_with(&format!("boot {}\n", boot()))) {
        *sum = Sum { nanodollars: self::sum(&text).0, ended: true, ..sum.clone() };
        put(store, &prefix.clone().join(format!("{run}.json")), sum).await?;
    }
    std::fs::remove_file(path).map_err(|error| local(path, &error))
}

/// The sums on the store, but for those that others have taken in.
async fn sums(store: &Arc<dyn ObjectStore>, prefix: &Path) -> Result<Sums, BudgetError> {
    let found: Vec<_> = store.list(Some(prefix)).try_collect().await.map_err(|error| on_store(prefix, &error))?;
    let mut sums = Sums::new();
    for meta in found {
        let Some(run) = meta.location.filename().and_then(|name| name.strip_suffix(".json")) else { continue };
        // It may have been taken in since it was listed.
        if let Some(sum) = read(store, &meta.location).await? {
            sums.insert(run.to_owned(), sum);
        }
    }
    let taken: BTreeSet<String> = sums.values().flat_map(|sum| sum.of.iter().cloned()).collect();
    sums.retain(|run, _| !taken.contains(run));
    Ok(sums)
}

fn total(sums: &Sums) -> Nanodollars {
    let parts = sums.values().map(|sum| Nanodollars(sum.nanodollars).plus(Nanodollars(sum.earlier)));
    parts.fold(Nanodollars::default(), Nanodollars::plus)
}

async fn read(store: &Arc<dyn ObjectStore>, path: &Path) -> Result<Option<Sum>, BudgetError> {
    let content = match store.get(path).await {
        Ok(found) => found.bytes().await.map_err(|error| on_store(path, &error))?,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(on_store(path, &error)),
    };
    serde_json::from_slice(&content).map(Some).map_err(|error| on_store(path, &format!("it says no sum: {error}")))
}

async fn put(store: &Arc<dyn ObjectStore>, path: &Path, sum: &Sum) -> Result<(), BudgetError> {
    let content = serde_json::to_vec(sum).map_err(|error| on_store(path, &error))?;
    store.put(path, content.into()).await.map_err(|error| on_store(path, &error))?;
    Ok(())
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

/// Tells one start of this machine from another; where it has no such name, each time is another start.
fn boot() -> String {
    let named = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    named.map_or_else(|| nanoseconds().to_string(), |name| name.trim().to_owned())
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

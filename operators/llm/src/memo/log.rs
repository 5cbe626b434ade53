//! The local log: a redb file per process, in which an answer stands before anybody sees it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::oneshot;

use super::MemoError;
use super::key::{Key, hex};

const ANSWERS: TableDefinition<'_, [u8; 32], &str> = TableDefinition::new("answers");

pub(super) type Entries = Vec<(Key, Arc<str>)>;

/// A log that this process writes. One thread owns the file: it takes all answers that wait, commits them with one fsync
/// and then lets all their callers go on, so the rate of answers isn't bound by that of fsyncs.
pub(super) struct Log {
    orders: Option<mpsc::Sender<Order>>,
    /// Gives whether the log ended empty.
    writer: Option<JoinHandle<bool>>,
    path: PathBuf,
    lock_path: PathBuf,
    /// Held as long as the process lives: says to others that the log isn't theirs to adopt.
    _lock: File,
}

struct Order {
    put: Entries,
    remove: Vec<Key>,
    done: oneshot::Sender<Result<(), MemoError>>,
}

impl Log {
    /// Makes a log of this process's own in `folder`. `settled` is told of answers when the disk has them or has refused
    /// them, even where the caller who ordered the write has given up waiting.
    pub(super) fn create(folder: &Path, settled: impl Fn(&Entries) + Send + 'static) -> Result<Self, MemoError> {
        Self::create_with(folder, settled, commit)
    }

    fn create_with(
        folder: &Path,
        settled: impl Fn(&Entries) + Send + 'static,
        commit: impl Fn(&Database, &[Order]) -> Result<(), redb::Error> + Send + 'static,
    ) -> Result<Self, MemoError> {
        std::fs::create_dir_all(folder).map_err(|error| MemoError::local(folder, &error))?;
        let (path, lock_path, lock) = own_name(folder)?;
        let database = Database::create(&path).map_err(|error| MemoError::local(&path, &error))?;
        let (orders, waiting) = mpsc::channel();
        let at = path.clone();
        let writer = std::thread::Builder::new()
            .name("memo-log".to_owned())
            .spawn(move || write_all(&database, &waiting, &at, settled, commit))
            .map_err(|error| MemoError::local(&path, &error))?;
        Ok(Self { orders: Some(orders), writer: Some(writer), path, lock_path, _lock: lock })
    }

    /// A log on a disk that takes nothing.
    #[cfg(test)]
    pub(super) fn full(folder: &Path, settled: impl Fn(&Entries) + Send + 'static) -> Result<Self, MemoError> {
        let full = |_: &Database, orders: &[Order]| match orders.iter().any(|order| !order.put.is_empty()) {
            true => Err(redb::Error::Io(io::Error::other("no space left on device"))),
            false => Err(redb::Error::PreviousIo),
        };
        Self::create_with(folder, settled, full)
    }

    /// Writes `put`, removes `remove`, and returns when the disk has it.
    pub(super) async fn write(&self, put: Entries, remove: Vec<Key>) -> Result<(), MemoError> {
        let stopped = || MemoError::local(&self.path, &"the thread that writes the log has ended");
        let (done, result) = oneshot::channel();
        let orders = self.orders.as_ref().ok_or_else(stopped)?;
        orders.send(Order { put, remove, done }).map_err(|_| stopped())?;
        result.await.map_err(|_| stopped())?
    }
}

impl Drop for Log {
    /// Waits for what was ordered. A log that ends empty takes its files with it; any other stays for the next process.
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(writer) = self.writer.take()
            && let Ok(true) = writer.join()
        {
            remove(&self.path, &self.lock_path);
        }
    }
}

fn write_all(
    database: &Database,
    waiting: &mpsc::Receiver<Order>,
    path: &Path,
    settled: impl Fn(&Entries),
    commit: impl Fn(&Database, &[Order]) -> Result<(), redb::Error>,
) -> bool {
    while let Ok(first) = waiting.recv() {
        let orders: Vec<Order> = std::iter::once(first).chain(waiting.try_iter()).collect();
        let result = commit(database, &orders).map_err(|error| MemoError::local(path, &error));
        for order in orders {
            settled(&order.put);
            // A caller that gave up waiting has no use for the result.
            let _ = order.done.send(result.clone());
        }
    }
    matches!(entries(database), Ok(left) if left.is_empty())
}

fn commit(database: &Database, orders: &[Order]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(ANSWERS)?;
        for order in orders {
            for (key, answer) in &order.put {
                table.insert(*key.as_bytes(), answer.as_ref())?;
            }
            for key in &order.remove {
                table.remove(*key.as_bytes())?;
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

/// A log of a process that ended. Its lock is held until it is dropped.
pub(super) struct Orphan {
    pub(super) entries: Entries,
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Orphan {
    /// Deletes the log. Call it when its answers are on the store.
    pub(super) fn remove(self) {
        remove(&self.path, &self.lock_path);
    }
}

/// The logs in `folder` whose processes are gone. A log that can't be read is left where it is, with a warning: its
/// answers are paid for, and a later version may read them.
pub(super) fn orphans(folder: &Path) -> Result<Vec<Orphan>, MemoError> {
    let mut orphans = Vec::new();
    let listing = std::fs::read_dir(folder).map_err(|error| MemoError::local(folder, &error))?;
    for entry in listing {
        let path = entry.map_err(|error| MemoError::local(folder, &error))?.path();
        if path.extension().is_none_or(|extension| extension != "redb") {
            continue;
        }
        let lock_path = path.with_extension("lock");
        let lock = open_lock(&lock_path).map_err(|error| MemoError::local(&lock_path, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => return Err(MemoError::local(&lock_path, &error)),
        }
        // Another process may have adopted and deleted the log between the listing and the lock.
        if !path.exists() {
            continue;
        }
        match read(&path) {
            Ok(entries) => orphans.push(Orphan { entries, path, lock_path, _lock: lock }),
            Err(error) => {
                tracing::warn!(%error, log = %path.display(), "a log of earlier answers can't be read")
            }
        }
    }
    orphans.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(orphans)
}

/// What stands in the logs in `folder`, of the living and the dead, as far as a copy of them can be read: a look takes no lock
/// and repairs nothing.
pub(super) fn glimpse(folder: &Path) -> Entries {
    let Ok(listing) = std::fs::read_dir(folder) else { return Entries::new() };
    let logs = listing.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|name| name == "redb"));
    let copied = |log: &Path| -> Option<Entries> {
        let copy = tempfile::NamedTempFile::new().ok()?;
        std::fs::copy(log, copy.path()).ok()?;
        read(copy.path()).ok()
    };
    logs.filter_map(|log| copied(&log)).flatten().collect()
}

fn read(path: &Path) -> Result<Entries, redb::Error> {
    entries(&Database::open(path)?)
}

fn entries(database: &Database) -> Result<Entries, redb::Error> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(ANSWERS) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Entries::new()),
        Err(error) => return Err(error.into()),
    };
    let mut entries = Entries::new();
    for entry in table.iter()? {
        let (key, answer) = entry?;
        entries.push((Key::from_bytes(key.value()), Arc::from(answer.value())));
    }
    Ok(entries)
}

/// The log goes first: a lock without a log means nothing, a log without a lock is adopted.
fn remove(path: &Path, lock_path: &Path) {
    for path in [path, lock_path] {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::warn!(%error, file = %path.display(), "a log that is no longer needed can't be deleted");
        }
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path)
}

/// A name that no process, alive or dead, has used in `folder`: path of the log, path of its lock, the lock held.
fn own_name(folder: &Path) -> Result<(PathBuf, PathBuf, File), MemoError> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&std::process::id().to_le_bytes());
        hasher.update(&COUNT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        hasher.update(&now.as_nanos().to_le_bytes());
        let name = hex(&hasher.finalize().as_bytes()[..8]);
        let lock_path = folder.join(format!("{name}.lock"));
        let lock = match OpenOptions::new().create_new(true).write(true).open(&lock_path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(MemoError::local(&lock_path, &error)),
        };
        match lock.try_lock() {
            Ok(()) => return Ok((folder.join(format!("{name}.redb")), lock_path, lock)),
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => return Err(MemoError::local(&lock_path, &error)),
        }
    }
}

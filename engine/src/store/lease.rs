//! Leases: who is at work on what, so that two runs on a store don't do, and pay for, the same work at once.

use std::{
    fs::File,
    path::{Path as FilePath, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tokio::{sync::oneshot, task::JoinHandle};

use super::Store;
use crate::failure::Failure;

/// How often a holder says that it lives.
const BEAT: Duration = Duration::from_secs(15);
/// A holder that hasn't said so for this long, by the clock of the one who waits, is dead.
pub(super) const EXPIRY: Duration = Duration::from_secs(60);
/// Time between two looks at a lease that is held: first and longest.
const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Who holds a lease that another one waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// "process 4711 on build-3"
    pub name: String,
    /// Whether it is known to be at work: it has shown so since this wait began.
    pub is_alive: bool,
}

/// The right to do a piece of work, which other runs on the store respect for as long as the holder lives. It is advisory: results
/// stay right without it, work is done twice.
///
/// It is the object `leases/<name>/<number>.json`, written anew every 15 s. A waiting run takes the next number when it has seen no
/// change for 60 s by its own clock, or at once when it shares the holder's cache folder and finds its lock there free. A lease that
/// is dropped without [`Self::release`] looks like that of a dead process.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    path: Path,
    lock: PathBuf,
    _locked: File,
    end: oneshot::Sender<()>,
    beats: JoinHandle<()>,
}

/// What the object says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    holder: String,
    /// A file that the holder keeps locked; another machine has none of that name.
    lock: PathBuf,
    /// Tells two holders apart that are called the same.
    id: String,
    beat: u64,
}

/// The lease of somebody else, as it was seen last.
struct Seen {
    number: u32,
    content: Bytes,
    since: Instant,
    has_changed: bool,
}

impl Store {
    /// The lease called `name`, as soon as nobody else holds it; `folder` is on the local disk and outlives the run. While
    /// somebody does, `wait` is told about them time and again and says whether to go on waiting: if not, there is no lease.
    ///
    /// # Errors
    /// When the store or the folder fails.
    pub async fn lease(
        &self,
        name: &str,
        folder: &FilePath,
        mut wait: impl FnMut(&Holder) -> bool + Send,
    ) -> Result<Option<Lease>, Failure> {
        let prefix = Path::from_iter(["leases", name]);
        let mut claim = Claim::new(folder)?;
        let mut seen: Option<Seen> = None;
        let mut pause = LOOKS.0;
        loop {
            let others = self.numbers(&prefix).await?;
            let newest = others.last().copied();
            let (dead, holder) = match newest {
                None => (true, None),
                Some(number) => match self.read(&numbered(&prefix, number)).await? {
                    // Released between the two requests.
                    None => continue,
                    Some(content) => {
                        let latest = Seen::again(seen.take(), number, content);
                        let (dead, holder) = latest.judge();
                        seen = Some(latest);
                        (dead, Some(holder))
                    }
                },
            };
            if dead {
                let path = numbered(&prefix, newest.map_or(0, |number| number.saturating_add(1)));
                if let Some(lease) = claim.take(self, &path, &prefix, &others).await? {
                    return Ok(Some(lease));
                }
            } else if let Some(holder) = holder
                && !wait(&holder)
            {
                return Ok(None);
            }
            // Two that gave way to each other don't come back at the same time.
            tokio::time::sleep(pause + claim.jitter()).await;
            pause = (pause * 2).min(LOOKS.1);
        }
    }

    /// The numbers under which the lease was taken and not released, in order.
    async fn numbers(&self, prefix: &Path) -> Result<Vec<u32>, Failure> {
        let found = self.list(prefix).await?;
        let number = |meta: &object_store::ObjectMeta| meta.location.filename()?.strip_suffix(".json")?.parse().ok();
        let mut numbers: Vec<u32> = found.iter().filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}

fn numbered(prefix: &Path, number: u32) -> Path {
    prefix.clone().join(format!("{number:06}.json"))
}

impl Seen {
    fn again(before: Option<Self>, number: u32, content: Bytes) -> Self {
        match before {
            Some(before) if before.number == number && before.content == content => before,
            Some(before) if before.number == number => Self { number, content, since: Instant::now(), has_changed: true },
            _ => Self { number, content, since: Instant::now(), has_changed: false },
        }
    }

    /// Whether the holder is dead, and who it is.
    fn judge(&self) -> (bool, Holder) {
        let record = serde_json::from_slice::<Record>(&self.content).ok();
        let name = record.as_ref().map_or_else(|| "another run".to_owned(), |record| record.holder.clone());
        let is_locked = record.and_then(|record| is_locked(&record.lock));
        let is_alive = is_locked == Some(true) || self.has_changed;
        let dead = is_locked == Some(false) || is_locked.is_none() && self.since.elapsed() >= EXPIRY;
        (dead, Holder { name, is_alive })
    }
}

/// Whether somebody holds the lock at `path`; `None` if there is no such file here.
fn is_locked(path: &FilePath) -> Option<bool> {
    let file = File::open(path).ok()?;
    match file.try_lock_shared() {
        Ok(()) => Some(false),
        Err(std::fs::TryLockError::WouldBlock) => Some(true),
        Err(std::fs::TryLockError::Error(_)) => None,
    }
}

/// What a run says of itself when it takes a lease.
struct Claim {
    record: Record,
    locked: Option<File>,
    /// Whether the store may name the lock: then its file stays, unlocked, and others see at once that nobody holds it.
    is_named: bool,
}

impl Claim {
    fn new(folder: &FilePath) -> Result<Self, Failure> {
        let folder = folder.join("leases");
        let id = uuid::Uuid::now_v7().simple().to_string();
        let lock = folder.join(format!("{id}.lock"));
        let make = || {
            std::fs::create_dir_all(&folder)?;
            let file = File::create(&lock)?;
            file.lock()?;
            Ok(file)
        };
        let made: std::io::Result<File> = make();
        let locked = made.map_err(|error| Failure::external(format!("`{}` can't be locked: {error}", lock.display())))?;
        let lock = std::path::absolute(lock)?;
        let host = sysinfo::System::host_name().unwrap_or_else(|| "this machine".to_owned());
        let holder = format!("process {} on {host}", std::process::id());
        Ok(Self { record: Record { holder, lock, id, beat: 0 }, locked: Some(locked), is_named: false })
    }

    fn jitter(&self) -> Duration {
        let bits = blake3::hash(format!("{}{:?}", self.record.id, Instant::now()).as_bytes()).as_bytes()[0];
        Duration::from_millis(u64::from(bits) / 4)
    }

    /// Takes the lease at `path`, unless somebody else does; `dead` are the numbers that don't count.
    async fn take(&mut self, store: &Store, path: &Path, prefix: &Path, dead: &[u32]) -> Result<Option<Lease>, Failure> {
        self.is_named = true;
        if store.create(path, content(&self.record)?).await?.is_some() {
            self.is_named = false;
            return Ok(None);
        }
        // A run that listed before may have taken another number: whoever sees the other one gives way.
        let alone = store.numbers(prefix).await?.into_iter().map(|number| numbered(prefix, number));
        let old: Vec<Path> = dead.iter().map(|number| numbered(prefix, *number)).collect();
        if alone.into_iter().any(|other| other != *path && !old.contains(&other)) {
            store.delete(vec![path.clone()]).await?;
            self.is_named = false;
            return Ok(None);
        }
        for path in &old {
            let left = store.read(path).await?.and_then(|content| serde_json::from_slice::<Record>(&content).ok());
            if let Some(lock) = left.map(|record| record.lock).filter(|lock| is_ours(lock, &self.record.lock)) {
                // Nobody looks at it any more.
                let _ = std::fs::remove_file(lock);
            }
        }
        store.delete(old).await?;
        let Some(locked) = self.locked.take() else { return Err(Failure::bug("a claim was used twice")) };
        let (end, ended) = oneshot::channel();
        let beats = tokio::spawn(beat(store.clone(), path.clone(), self.record.clone(), ended));
        let lock = self.record.lock.clone();
        Ok(Some(Lease { store: store.clone(), path: path.clone(), lock, _locked: locked, end, beats }))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.locked.is_some() && !self.is_named {
            // If it can't be, it lies there and nobody asks for it.
            let _ = std::fs::remove_file(&self.record.lock);
        }
    }
}

/// Whether a lock file that a record names is one of the folder of `ours`: what lies on a store is not trusted with other names.
fn is_ours(named: &FilePath, ours: &FilePath) -> bool {
    named.parent() == ours.parent() && named.extension() == ours.extension()
}

fn content(record: &Record) -> Result<Bytes, Failure> {
    serde_json::to_vec(record).map(Bytes::from).map_err(|error| Failure::bug(error.to_string()))
}

async fn beat(store: Store, path: Path, mut record: Record, mut ended: oneshot::Receiver<()>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(BEAT) => {}
            _ = &mut ended => return,
        }
        record.beat += 1;
        let Ok(content) = content(&record) else { return };
        if let Err(failure) = store.write(&path, content).await {
            tracing::warn!(%failure, %path, "others may take this run for dead");
        }
    }
}

impl Lease {
    /// Gives the right back.
    ///
    /// # Errors
    /// When the store fails. Others then take the lease when it has expired.
    pub async fn release(self) -> Result<(), Failure> {
        let Self { store, path, lock, end, beats, .. } = self;
        // A beat that is under way would bring the object back.
        let _ = end.send(());
        let _ = beats.await;
        store.delete(vec![path]).await?;
        let _ = std::fs::remove_file(lock);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Buckets;

    async fn store(folder: &FilePath) -> Store {
        Store::open(folder.join("store").to_str().expect("UTF-8"), &Buckets::default()).await.expect("made")
    }

    async fn take(store: &Store, folder: &FilePath) -> Lease {
        store.lease("work", folder, |_| true).await.expect("the store works").expect("waits")
    }

    #[tokio::test]
    async fn one_at_a_time_holds_it_and_nothing_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path()).await;
        let first = take(&store, folder.path()).await;
        let mut told = Vec::new();
        let given_up = store.lease("work", folder.path(), |holder| {
            told.push(holder.clone());
            told.len() < 3
        });
        assert!(given_up.await.expect("the store works").is_none());
        assert_eq!(told.len(), 3);
        assert!(told[0].is_alive && told[0].name.starts_with(&format!("process {} on ", std::process::id())), "{told:?}");
        let second = take(&store, folder.path());
        let (second, released) = tokio::join!(second, first.release());
        released.expect("released");
        second.release().await.expect("released");
        assert!(store.list(&Path::from("leases")).await.expect("listed").is_empty());
        assert_eq!(std::fs::read_dir(folder.path().join("leases")).expect("made").count(), 0);
    }

    #[tokio::test]
    async fn of_many_at_once_each_has_it_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path()).await;
        let inside = std::sync::atomic::AtomicU32::new(0);
        let work = |_| async {
            let lease = take(&store, folder.path()).await;
            assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
            tokio::task::yield_now().await;
            inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            lease.release().await.expect("released");
        };
        futures::future::join_all((0..6).map(work)).await;
    }

    #[tokio::test]
    async fn that_of_a_dead_process_is_taken_over_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path()).await;
        drop(take(&store, folder.path()).await);
        let lease = store.lease("work", folder.path(), |holder| panic!("{holder:?}")).await.expect("the store works");
        assert_eq!(store.list(&Path::from("leases")).await.expect("listed").len(), 1, "the dead one's is gone");
        lease.expect("taken").release().await.expect("released");
    }

    #[tokio::test]
    async fn one_whose_store_failed_while_it_was_taken_is_taken_over_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path()).await;
        let mut claim = Claim::new(folder.path()).expect("locked");
        claim.is_named = true;
        let path = numbered(&Path::from("leases/work"), 0);
        store.create(&path, content(&claim.record).expect("JSON")).await.expect("put");
        drop(claim);
        let lease = store.lease("work", folder.path(), |holder| panic!("{holder:?}")).await.expect("the store works");
        lease.expect("taken").release().await.expect("released");
        assert_eq!(std::fs::read_dir(folder.path().join("leases")).expect("made").count(), 0);
    }

    #[test]
    fn that_of_another_machine_is_taken_over_when_it_has_been_silent() {
        let record = |beat| Record { holder: "process 1 on elsewhere".into(), lock: "/none/x.lock".into(), id: "a".into(), beat };
        let at = |number, beat| Seen::again(None, number, content(&record(beat)).expect("JSON"));
        let mut seen = at(0, 0);
        assert_eq!(seen.judge(), (false, Holder { name: "process 1 on elsewhere".into(), is_alive: false }));
        seen = Seen::again(Some(seen), 0, content(&record(1)).expect("JSON"));
        assert_eq!(seen.judge(), (false, Holder { name: "process 1 on elsewhere".into(), is_alive: true }));
        let Some(long_ago) = Instant::now().checked_sub(EXPIRY) else { return };
        seen.since = long_ago;
        assert!(seen.judge().0);
        assert!(!Seen::again(Some(seen), 0, content(&record(2)).expect("JSON")).judge().0, "it says something again");
    }
}

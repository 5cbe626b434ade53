//! The memo: what teachers have answered, so that nobody pays for it twice.

mod key;
mod log;
mod segment;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};

use self::log::{Entries, Log};
use crate::request::Answer;

pub use self::key::Key;

/// How often answers go to the store without being asked to.
const UPLOAD_EVERY: Duration = Duration::from_secs(60);
/// A segment holds at most so many bytes of answers before compression.
const SEGMENT_BYTES: usize = 64 << 20;
/// Segments fetched at once when the memo is opened.
const FETCHES: usize = 16;

/// Why the memo can't be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MemoError {
    /// The local log.
    #[error("the log of answers at `{}` can't be used: {message}", path.display())]
    Local {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        message: String,
    },
    /// The store.
    #[error("answers at `{path}` on the store can't be used: {message}")]
    Store {
        /// The object or prefix.
        path: String,
        /// What the store says.
        message: String,
    },
}

impl MemoError {
    fn local(path: &std::path::Path, error: &impl std::fmt::Display) -> Self {
        Self::Local { path: path.to_owned(), message: error.to_string() }
    }

    fn store(path: &Path, error: &impl std::fmt::Display) -> Self {
        Self::Store { path: path.to_string(), message: error.to_string() }
    }
}

/// Answers of teachers by [`Key`]: segments on the store, shared by everybody who uses it, and a log on the local disk
/// for what isn't there yet. Cloning is cheap and gives the same memo.
///
/// **Durability.** [`Memo::record`] returns when the local disk has the answer (one fsync for all answers that wait at
/// that moment), so neither kill -9 nor a power cut loses an answer that was seen. Segments reach the store every 60 s
/// and by [`Memo::flush`]. A process that ends without leaves its log behind, and the next [`Memo::open`] on that folder
/// adopts it; operating-system locks tell logs of the living from those of the dead, so any number of processes may share
/// a folder and a store. They see each other's answers when they open, not while they run.
///
/// **Memory.** All answers under the prefix are held as JSON text: about their length plus 100 bytes each, so 300,000
/// answers of 3 KB take 1 GB.
///
/// Where a key was answered twice (by two machines at once), all readers take the earlier answer.
#[derive(Clone)]
pub struct Memo {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    answers: Arc<Mutex<Answers>>,
    /// None in a memo that is only looked at.
    log: Option<Log>,
    /// Two uploads at once would send the same answers twice.
    uploading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Answers {
    all: HashMap<Key, Arc<str>>,
    /// Those that stand in the log only.
    unsent: BTreeMap<Key, Arc<str>>,
}

impl Memo {
    /// Opens the memo under `prefix` of `store`, with its log in the folder `local` (made if need be). Adopts the logs
    /// that ended processes left there and uploads them. Must be called on a tokio runtime, which then uploads now and
    /// then for as long as the memo lives.
    pub async fn open(store: Arc<dyn ObjectStore>, prefix: Path, local: &std::path::Path) -> Result<Self, MemoError> {
        let answers = Arc::new(Mutex::new(Answers::default()));
        let recorded = Arc::clone(&answers);
        let log = Log::create(local, move |entries| {
            let mut answers = locked(&recorded);
            for (key, answer) in entries {
                answers.all.insert(*key, Arc::clone(answer));
                answers.unsent.insert(*key, Arc::clone(answer));
            }
        })?;
        // Orphans first: a process that ends while this one opens has its answers in its log or on the store.
        let orphans = log::orphans(local)?;
        let segments = fetch_all(&store, &prefix).await?;
        {
            let mut answers = locked(&answers);
            for (key, answer) in segments {
                keep_earlier(&mut answers.all, key, answer);
            }
            for (key, answer) in orphans.iter().flat_map(|orphan| &orphan.entries) {
                if !answers.all.contains_key(key) {
                    answers.all.insert(*key, Arc::clone(answer));
                    answers.unsent.insert(*key, Arc::clone(answer));
                }
            }
        }
        let inner = Arc::new(Inner { store, prefix, answers, log: Some(log), uploading: tokio::sync::Mutex::new(()) });
        inner.upload().await?;
        for orphan in orphans {
            orphan.remove();
        }
        let weak = Arc::downgrade(&inner);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(UPLOAD_EVERY).await;
                let Some(inner) = weak.upgrade() else { return };
                if let Err(error) = inner.upload().await {
                    tracing::warn!(%error, "answers stay in the local log for now");
                }
            }
        });
        Ok(Self { inner })
    }

    /// Opens the memo as [`Self::open`] does, to look at it: nothing is written or adopted, and what is recorded isn't kept.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn look(store: Arc<dyn ObjectStore>, prefix: Path, local: &std::path::Path) -> Result<Self, MemoError> {
        let mut answers = Answers::default();
        for (key, answer) in fetch_all(&store, &prefix).await?.into_iter().chain(log::glimpse(local)) {
            keep_earlier(&mut answers.all, key, answer);
        }
        let (answers, uploading) = (Arc::new(Mutex::new(answers)), tokio::sync::Mutex::new(()));
        Ok(Self { inner: Arc::new(Inner { store, prefix, answers, log: None, uploading }) })
    }

    /// The answer under `key`, if anybody recorded one.
    pub fn answer(&self, key: &Key) -> Option<Answer> {
        let json = locked(&self.inner.answers).all.get(key).map(Arc::clone)?;
        match serde_json::from_str(&json) {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::warn!(%error, ?key, "a remembered answer can't be read and is asked for again");
                None
            }
        }
    }

    /// Whether there is an answer under `key`.
    pub fn contains(&self, key: &Key) -> bool {
        locked(&self.inner.answers).all.contains_key(key)
    }

    /// How many answers there are.
    pub fn len(&self) -> usize {
        locked(&self.inner.answers).all.len()
    }

    /// Whether there is no answer at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps an answer, and returns when the local disk has it. If the future is dropped before, the answer is kept all
    /// the same.
    pub async fn record(&self, key: Key, answer: &Answer) -> Result<(), MemoError> {
        let json = serde_json::to_string(answer).map_err(|error| MemoError::store(&self.inner.prefix, &error))?;
        self.inner.write(vec![(key, json.into())], Vec::new()).await
    }

    /// Returns when the local disk has every answer given to [`Self::record`] so far, whoever waits for it.
    pub async fn sync(&self) -> Result<(), MemoError> {
        self.inner.write(Entries::new(), Vec::new()).await
    }

    /// Uploads every answer recorded so far. After an error the answers still stand in the log.
    pub async fn flush(&self) -> Result<(), MemoError> {
        self.sync().await?;
        self.inner.upload().await
    }
}

impl Inner {
    async fn write(&self, put: Entries, remove: Vec<Key>) -> Result<(), MemoError> {
        match &self.log {
            Some(log) => log.write(put, remove).await,
            None => Ok(()),
        }
    }

    async fn upload(&self) -> Result<(), MemoError> {
        let _alone = self.uploading.lock().await;
        let unsent: Entries = locked(&self.answers).unsent.iter().map(|(key, answer)| (*key, Arc::clone(answer))).collect();
        for entries in by_size(unsent) {
            let keys: Vec<Key> = entries.iter().map(|(key, _)| *key).collect();
            let segment = blocking(&self.prefix, move || segment::encode(&entries)).await?;
            let path = self.prefix.clone().join(segment.name.as_str());
            match self.store.put_opts(&path, segment.bytes.into(), PutMode::Create.into()).await {
                // The name says what is in it: another upload of the same answers is as good.
                Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {}
                Err(error) => return Err(MemoError::store(&path, &error)),
            }
            {
                let mut answers = locked(&self.answers);
                keys.iter().for_each(|key| drop(answers.unsent.remove(key)));
            }
            self.write(Entries::new(), keys).await?;
        }
        Ok(())
    }
}

fn locked(answers: &Mutex<Answers>) -> MutexGuard<'_, Answers> {
    answers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cuts sorted entries into runs of at most [`SEGMENT_BYTES`] (or one entry).
fn by_size(entries: Entries) -> Vec<Entries> {
    let mut runs: Vec<Entries> = Vec::new();
    let mut size = 0;
    for entry in entries {
        let bytes = entry.1.len();
        match runs.last_mut() {
            Some(run) if size + bytes <= SEGMENT_BYTES => run.push(entry),
            _ => {
                size = 0;
                runs.push(vec![entry]);
            }
        }
        size += bytes;
    }
    runs
}

async fn fetch_all(store: &Arc<dyn ObjectStore>, prefix: &Path) -> Result<Entries, MemoError> {
    let listed: Vec<_> = store.list(Some(prefix)).try_collect().await.map_err(|error| MemoError::store(prefix, &error))?;
    let segments = listed.into_iter().map(|meta| meta.location).filter(|path| path.as_ref().ends_with(".parquet"));
    stream::iter(segments.map(|path| fetch(store, path)))
        .buffer_unordered(FETCHES)
        .try_fold(Entries::new(), async |mut all, entries| {
            all.extend(entries);
            Ok(all)
        })
        .await
}

/// A segment that can't be decoded counts as empty: its answers are asked for again, the run goes on.
async fn fetch(store: &Arc<dyn ObjectStore>, path: Path) -> Result<Entries, MemoError> {
    let got = store.get(&path).await.map_err(|error| MemoError::store(&path, &error))?;
    let bytes = got.bytes().await.map_err(|error| MemoError::store(&path, &error))?;
    let named = path.filename().map(str::to_owned);
    let decoded = blocking(&path, move || segment::decode(bytes, named.as_deref())).await;
    Ok(decoded.unwrap_or_else(|error| {
        tracing::warn!(%error, "a segment of answers is damaged and left out");
        Entries::new()
    }))
}

async fn blocking<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, MemoError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| MemoError::store(path, &error)),
        Err(error) => Err(MemoError::store(path, &error)),
    }
}

fn keep_earlier(all: &mut HashMap<Key, Arc<str>>, key: Key, answer: Arc<str>) {
    // An answer that can't be read comes after all that can.
    let order = |json: &str| {
        let answer = serde_json::from_str::<Answer>(json).ok();
        (answer.map_or(u64::MAX, |answer| answer.created_ms), json.to_owned())
    };
    match all.get_mut(&key) {
        None => drop(all.insert(key, answer)),
        Some(known) if *known == answer => {}
        Some(known) => {
            if order(&answer) < order(known) {
                *known = answer;
            }
        }
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use tests::Folder;

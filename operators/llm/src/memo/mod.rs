//! The memo: what teachers have answered, so that nobody pays for it twice.

mod cache;
mod compact;
mod forget;
mod index;
mod key;
mod keys;
mod log;
mod segment;
mod segments;
mod turn;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::path::Path;

use self::index::Index;
use self::keys::KeyFiles;
use self::log::{Entries, Log, Orphan};
use self::segment::Row;
use self::segments::{Segments, Trouble};
use self::turn::{Turn, Turns};
use crate::request::Answer;

pub use self::forget::{Remembered, Removed};
pub use self::key::Key;

/// How often answers go to the store without being asked to.
const UPLOAD_EVERY: Duration = Duration::from_secs(60);
/// A segment holds at most so many bytes of answers before compression.
const SEGMENT_BYTES: usize = 64 << 20;
/// A lookup that finds its segment gone looks so often where the answer went.
const LOOKS: usize = 4;

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
/// that moment), so neither kill -9 nor a power cut loses an answer that was seen. Where the disk takes no more, it returns when
/// the store has the answer. Segments reach the store every 60 s and by [`Memo::flush`]. A process that ends without leaves its
/// log behind, and the next [`Memo::open`] or [`Memo::refresh`] on that folder adopts it; operating-system locks tell logs of
/// the living from those of the dead, so any number of processes may share a folder and a store. They see each other's
/// answers when they open and when they refresh.
///
/// **Memory.** 16 bytes for each answer on the store, so 160 MB for 10 million, and some MB for what is known of the segments;
/// besides, answers that aren't on the store yet, as JSON text, and at most 128 MiB of segments that were read whole, with about
/// as much again for those that are being read.
///
/// **Reading.** An answer is read when it is asked for: with two small reads, or from its segment, which is read whole when it
/// is small or when as much was read of it answer by answer. [`Memo::open`] reads the keys, from copies in the folder where it
/// has them; an empty memo costs a listing. Nothing but what was recorded under a key is ever given for it: an answer that is
/// damaged on the store counts as unknown, with a warning.
///
/// Where a key was answered twice (by two machines at once), all readers take the earlier answer.
#[derive(Clone)]
pub struct Memo {
    inner: Arc<Inner>,
}

struct Inner {
    segments: Segments,
    known: Arc<Mutex<Known>>,
    /// None in a memo that is only looked at.
    log: Option<Log>,
    local: PathBuf,
    /// Held by whoever changes which segments there are. Two uploads at once would send the same answers twice.
    storing: tokio::sync::Mutex<()>,
    /// Whether it was said that the log can't be written.
    is_log_missed: AtomicBool,
    turns: Turns,
}

#[derive(Default)]
struct Known {
    /// Answers on the store.
    index: Index,
    /// Answers that stand in a log only.
    unsent: BTreeMap<Key, Arc<str>>,
}

impl Memo {
    /// Opens the memo under `prefix` of `store`, with its log in the folder `local` (made if need be). Adopts the logs
    /// that ended processes left there and uploads them. Must be called on a tokio runtime, which then uploads now and
    /// then for as long as the memo lives.
    ///
    /// # Errors
    /// When the folder can't be written, and when the store fails.
    pub async fn open(store: Arc<dyn ObjectStore>, prefix: Path, local: &std::path::Path) -> Result<Self, MemoError> {
        Self::with_log(store, prefix, local, |known| Log::create(local, known)).await
    }

    async fn with_log(
        store: Arc<dyn ObjectStore>,
        prefix: Path,
        local: &std::path::Path,
        log: impl FnOnce(Box<dyn Fn(&Entries) + Send>) -> Result<Log, MemoError>,
    ) -> Result<Self, MemoError> {
        let known = Arc::new(Mutex::new(Known::default()));
        let recorded = Arc::clone(&known);
        let log = log(Box::new(move |entries| {
            locked(&recorded).unsent.extend(entries.iter().map(|(key, answer)| (*key, Arc::clone(answer))));
        }))?;
        let inner = Arc::new(Inner::new(store, prefix, local, known, Some(log)));
        inner.refresh().await?;
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
        let mut known = Known::default();
        for (key, answer) in log::glimpse(local) {
            let answer = known.unsent.remove(&key).map_or(Arc::clone(&answer), |other| earlier(other, answer));
            known.unsent.insert(key, answer);
        }
        let inner = Inner::new(store, prefix, local, Arc::new(Mutex::new(known)), None);
        inner.refresh().await?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Takes in what other processes uploaded since, and, unless this memo is only looked at, the logs of those that ended. If
    /// there is nothing new it costs a listing.
    ///
    /// # Errors
    /// When the store fails, and when the folder can't be read. What was known is known still.
    pub async fn refresh(&self) -> Result<(), MemoError> {
        self.inner.refresh().await
    }

    /// The answer under `key`, if anybody recorded one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn answer(&self, key: &Key) -> Result<Option<Answer>, MemoError> {
        let Some(json) = self.inner.find(key).await? else { return Ok(None) };
        match serde_json::from_str(&json) {
            Ok(answer) => Ok(Some(answer)),
            Err(error) => {
                tracing::warn!(%error, ?key, "a remembered answer can't be read and is asked for again");
                Ok(None)
            }
        }
    }

    /// Waits until nobody else is about to ask for the answer under `key`, for as long as the turn is kept.
    pub(crate) async fn turn(&self, key: Key) -> Turn {
        Turn::take(&self.inner.turns, key).await
    }

    #[cfg(test)]
    pub(crate) fn is_nobody_asking(&self) -> bool {
        self.inner.turns.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Whether there is an answer under `key`, as far as that is known without reading it.
    pub fn contains(&self, key: &Key) -> bool {
        locked(&self.inner.known).contains(key)
    }

    /// How many answers there are. Takes time that grows with their number.
    pub fn len(&self) -> usize {
        let known = locked(&self.inner.known);
        known.index.len() + known.unsent.keys().filter(|key| !known.index.contains(key)).count()
    }

    /// Whether there is no answer at all.
    pub fn is_empty(&self) -> bool {
        let known = locked(&self.inner.known);
        known.unsent.is_empty() && known.index.is_empty()
    }

    /// Keeps an answer, and returns when the local disk has it; where the disk doesn't take it, when the store does. If the
    /// future is dropped before, the answer is kept all the same.
    ///
    /// # Errors
    /// When neither takes it. It is tried again with the answers that come after it.
    pub async fn record(&self, key: Key, answer: &Answer) -> Result<(), MemoError> {
        self.record_about(key, answer, &[] as &[&str]).await
    }

    /// Keeps an answer, as [`Self::record`] does, and what it was asked about: ids of documents and rows, by which it can be
    /// found when one of them is to be forgotten. They are in no key.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub async fn record_about(&self, key: Key, answer: &Answer, about: &[impl AsRef<str> + Sync]) -> Result<(), MemoError> {
        let json = recorded(answer, about).map_err(|error| MemoError::store(self.inner.segments.prefix(), &error))?;
        self.inner.keep(vec![(key, json.into())]).await
    }

    /// Returns when the local disk, or the store, has every answer given to [`Self::record`] so far, whoever waits for it.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub async fn sync(&self) -> Result<(), MemoError> {
        self.inner.keep(Entries::new()).await
    }

    /// Uploads every answer recorded so far. After an error the answers still stand in the log.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn flush(&self) -> Result<(), MemoError> {
        // What the log refuses is uploaded with the rest.
        let _ = self.inner.write(Entries::new(), Vec::new()).await;
        self.inner.upload().await
    }

    /// Merges segments, if there are more than 64 small ones: each costs requests when the memo is opened. No answer is lost
    /// whoever does the same meanwhile, or if it is interrupted.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn compact(&self) -> Result<(), MemoError> {
        self.inner.compact().await
    }

    /// A segment of answers as an upload writes it: the name of its object, and its bytes. For benches, which can't record
    /// millions of answers one by one.
    ///
    /// # Errors
    /// None that a caller can cause.
    #[doc(hidden)]
    pub fn encoded(answers: Vec<(Key, Answer)>) -> Result<(String, Bytes), MemoError> {
        let json = |(key, answer): (Key, Answer)| serde_json::to_string(&answer).map(|json| (key, json.into()));
        let failed = |error: &dyn std::fmt::Display| MemoError::store(&Path::default(), &error);
        let mut entries: Entries = answers.into_iter().map(json).collect::<Result<_, _>>().map_err(|error| failed(&error))?;
        entries.sort_unstable_by_key(|(key, _)| *key);
        let segment = segment::encode(&entries).map_err(|error| failed(&error))?;
        Ok((segment.name, segment.bytes))
    }
}

impl Known {
    fn contains(&self, key: &Key) -> bool {
        self.unsent.contains_key(key) || self.index.contains(key)
    }
}

impl Inner {
    fn new(
        store: Arc<dyn ObjectStore>,
        prefix: Path,
        local: &std::path::Path,
        known: Arc<Mutex<Known>>,
        log: Option<Log>,
    ) -> Self {
        Self {
            segments: Segments::new(store, prefix, KeyFiles::new(local, log.is_some())),
            known,
            log,
            local: local.to_owned(),
            storing: tokio::sync::Mutex::new(()),
            turns: Turns::default(),
            is_log_missed: AtomicBool::new(false),
        }
    }

    async fn refresh(&self) -> Result<(), MemoError> {
        let _alone = self.storing.lock().await;
        // Orphans first: a process that ends while this one lists has its answers in its log or on the store.
        let orphans = match &self.log {
            Some(_) => log::orphans(&self.local)?,
            None => Vec::new(),
        };
        self.renew().await?;
        match orphans.is_empty() {
            true => Ok(()),
            false => self.adopt(orphans).await,
        }
    }

    /// Takes in which segments there are. `storing` is held.
    async fn renew(&self) -> Result<(), MemoError> {
        let change = self.segments.renew().await?;
        {
            let mut known = locked(&self.known);
            known.index.forget(&change.gone);
            known.index.add(change.added);
        }
        self.segments.forget(&change.gone);
        Ok(())
    }

    /// Uploads what stands in logs of the dead, and deletes them. `storing` is held.
    async fn adopt(&self, orphans: Vec<Orphan>) -> Result<(), MemoError> {
        for (key, answer) in orphans.iter().flat_map(|orphan| &orphan.entries) {
            let is_sent = match self.look_up(key).await {
                Ok(answer) => answer.is_some(),
                Err(Trouble::Gone | Trouble::Damaged(_)) => false,
                Err(Trouble::Store(error)) => return Err(error),
            };
            if !is_sent {
                locked(&self.known).unsent.insert(*key, Arc::clone(answer));
            }
        }
        self.upload_unsent().await?;
        orphans.into_iter().for_each(Orphan::remove);
        Ok(())
    }

    /// The answer under a key, as JSON. Where its segment was merged with others by another process, it is found there.
    async fn find(&self, key: &Key) -> Result<Option<Arc<str>>, MemoError> {
        for _ in 0..LOOKS {
            match self.look_up(key).await {
                Ok(found) => return Ok(found),
                Err(Trouble::Store(error)) => return Err(error),
                Err(Trouble::Damaged(_)) => {}
                Err(Trouble::Gone) => self.renew_without(key).await?,
            }
        }
        Err(MemoError::store(self.segments.prefix(), &"segments come and go faster than they can be read"))
    }

    /// Takes in which segments there are, unless somebody did since one of this key's was found gone.
    async fn renew_without(&self, key: &Key) -> Result<(), MemoError> {
        let places = locked(&self.known).index.places(key);
        let _alone = self.storing.lock().await;
        let is_as_before = locked(&self.known).index.places(key) == places;
        match is_as_before {
            true => self.renew().await,
            false => Ok(()),
        }
    }

    /// What is known under a key: the earliest of the answers, if there are several.
    async fn look_up(&self, key: &Key) -> Result<Option<Arc<str>>, Trouble> {
        let (mut found, places) = {
            let known = locked(&self.known);
            (known.unsent.get(key).map(Arc::clone), known.index.places(key))
        };
        for place in places {
            match self.segments.row(place, key).await {
                Ok(Row::Answer(answer)) => {
                    found = Some(match found {
                        Some(other) => earlier(other, answer),
                        None => answer,
                    });
                }
                Ok(Row::Another) => {}
                Ok(Row::Damaged) => {
                    tracing::warn!(?key, "a remembered answer is damaged and asked for again");
                    locked(&self.known).index.leave_out(place);
                }
                Err(Trouble::Damaged(error)) => {
                    tracing::warn!(%error, "a segment of answers is damaged and left out");
                    locked(&self.known).index.forget(&HashSet::from([place.segment]));
                    self.segments.leave_out(place.segment);
                    return Err(Trouble::Damaged(error));
                }
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(found)
    }

    /// Writes into the log, or onto the store if the log takes nothing.
    async fn keep(&self, put: Entries) -> Result<(), MemoError> {
        let Err(error) = self.write(put.clone(), Vec::new()).await else { return Ok(()) };
        if !self.is_log_missed.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "answers can't be written to the local log and go to the store one by one");
        }
        {
            let mut known = locked(&self.known);
            for (key, answer) in put {
                if !known.contains(&key) {
                    known.unsent.insert(key, answer);
                }
            }
        }
        self.upload().await.map_err(|_| error)
    }

    async fn write(&self, put: Entries, remove: Vec<Key>) -> Result<(), MemoError> {
        match &self.log {
            Some(log) => log.write(put, remove).await,
            None => Ok(()),
        }
    }

    async fn upload(&self) -> Result<(), MemoError> {
        let _alone = self.storing.lock().await;
        self.upload_unsent().await
    }

    /// `storing` is held.
    async fn upload_unsent(&self) -> Result<(), MemoError> {
        if self.log.is_none() {
            return Ok(());
        }
        let unsent: Entries = locked(&self.known).unsent.iter().map(|(key, answer)| (*key, Arc::clone(answer))).collect();
        for entries in by_size(unsent) {
            let (_, places) = self.segments.put(entries.clone()).await?;
            let mut sent = Vec::with_capacity(entries.len());
            {
                let mut known = locked(&self.known);
                known.index.add(places);
                for (key, answer) in entries {
                    // Another answer may have come in its place meanwhile.
                    if known.unsent.get(&key).is_some_and(|now| *now == answer) {
                        known.unsent.remove(&key);
                        sent.push(key);
                    }
                }
            }
            if let Err(error) = self.write(Entries::new(), sent).await {
                tracing::debug!(%error, "answers that are on the store stay in the local log, too");
            }
        }
        Ok(())
    }
}

/// An answer as it stands in logs and segments.
fn recorded(answer: &Answer, about: &[impl AsRef<str>]) -> serde_json::Result<String> {
    let mut json = serde_json::to_value(answer)?;
    if !about.is_empty() {
        json["about"] = about.iter().map(AsRef::as_ref).collect();
    }
    serde_json::to_string(&json)
}

fn locked(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Which of two answers to a key counts. One that can't be read comes after all that can.
fn earlier(one: Arc<str>, other: Arc<str>) -> Arc<str> {
    if one == other {
        return one;
    }
    let created_ms = |json: &str| serde_json::from_str::<Answer>(json).map_or(u64::MAX, |answer| answer.created_ms);
    match (created_ms(&other), &other) < (created_ms(&one), &one) {
        true => other,
        false => one,
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use tests::Folder;

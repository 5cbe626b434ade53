//! Removes answers.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Deserialize;

use super::log::Entries;
use super::segments::{Stored, Trouble};
use super::{Inner, Key, Memo, MemoError, by_size, locked};
use crate::request::Finish;

/// Whoever merges segments meanwhile may bring an answer back that was just removed: so often it is looked again.
const ROUNDS: usize = 4;

/// What the memo knows of an answer, without its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// The id that rows made of it have.
    pub request_id: String,
    /// What it was asked about: ids that were given to [`Memo::record_about`].
    pub about: Vec<String>,
    /// How it ended; `None` where that can't be read.
    pub finish: Option<Finish>,
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Answers.
    pub answers: usize,
    /// Segments that are damaged, and stay as they are: nobody knows what of them is to go.
    pub damaged: usize,
}

impl Remembered {
    fn of(key: &Key, json: &str) -> Self {
        #[derive(Default, Deserialize)]
        struct Head {
            #[serde(default)]
            about: Vec<String>,
            finish: Option<Finish>,
        }
        let head: Head = serde_json::from_str(json).unwrap_or_default();
        Self { request_id: key.request_id(), about: head.about, finish: head.finish }
    }
}

impl Memo {
    /// Removes the answers that `is_meant` says, from the store and from this machine's logs of ended processes. A segment
    /// that holds one is written anew without it before it is deleted, so no other answer is lost whoever does the same
    /// meanwhile, or if this is interrupted; call it again then.
    ///
    /// Processes that have the memo open keep what they know, and what stands in their logs: an answer may come back with them.
    ///
    /// # Errors
    /// When the store fails. What was removed until then is gone.
    pub async fn forget(&self, is_meant: impl Fn(&Remembered) -> bool + Send + Sync) -> Result<Removed, MemoError> {
        // Answers of logs are on the store then, where they are removed with the rest.
        self.flush().await?;
        self.inner.forget(&is_meant).await
    }

    /// How many answers [`Self::forget`] would remove. Reads all there are.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn count(&self, is_meant: impl Fn(&Remembered) -> bool + Send + Sync) -> Result<Removed, MemoError> {
        let mut keys: HashSet<Key> = HashSet::new();
        let unsent: Entries = locked(&self.inner.known).unsent.iter().map(|(key, json)| (*key, Arc::clone(json))).collect();
        keys.extend(unsent.iter().filter(|(key, json)| is_meant(&Remembered::of(key, json))).map(|(key, _)| *key));
        let mut damaged = self.inner.segments.unused();
        for stored in self.inner.segments.all() {
            match self.inner.entries(&stored).await? {
                Some(entries) => {
                    keys.extend(entries.iter().filter(|(key, json)| is_meant(&Remembered::of(key, json))).map(|(key, _)| *key));
                }
                None => damaged += 1,
            }
        }
        Ok(Removed { answers: keys.len(), damaged })
    }
}

impl Inner {
    async fn forget(&self, is_meant: &(impl Fn(&Remembered) -> bool + Send + Sync)) -> Result<Removed, MemoError> {
        let mut gone: HashSet<Key> = HashSet::new();
        let mut damaged = 0;
        for _ in 0..ROUNDS {
            let _alone = self.storing.lock().await;
            self.renew().await?;
            damaged = self.segments.unused();
            let mut is_clean = true;
            for stored in self.segments.all() {
                let Some(entries) = self.entries(&stored).await? else {
                    damaged += 1;
                    continue;
                };
                let (meant, kept): (Entries, Entries) =
                    entries.into_iter().partition(|(key, json)| is_meant(&Remembered::of(key, json)));
                if !meant.is_empty() {
                    is_clean = false;
                    gone.extend(meant.into_iter().map(|(key, _)| key));
                    self.replace(&stored, kept).await?;
                }
            }
            if is_clean {
                break;
            }
        }
        Ok(Removed { answers: gone.len(), damaged })
    }

    /// Puts these entries of a segment in its place. `storing` is held.
    async fn replace(&self, stored: &Stored, kept: Entries) -> Result<(), MemoError> {
        for entries in by_size(kept) {
            let (_, places) = self.segments.put(entries).await?;
            locked(&self.known).index.add(places);
        }
        let number = HashSet::from([stored.number]);
        locked(&self.known).index.forget(&number);
        self.segments.forget(&number);
        self.segments.delete(stored).await
    }

    /// The entries of a segment; `None` if it is damaged, and none if it is gone.
    async fn entries(&self, stored: &Arc<Stored>) -> Result<Option<Entries>, MemoError> {
        let whole = match self.segments.unchanged(stored).await {
            Ok(whole) => whole,
            Err(Trouble::Gone) => return Ok(Some(Entries::new())),
            Err(Trouble::Damaged(error)) => {
                tracing::warn!(%error, segment = stored.name, "a damaged segment of answers stays as it is");
                return Ok(None);
            }
            Err(Trouble::Store(error)) => return Err(error),
        };
        let entries: Result<Entries, _> = whole.entries().map(|entry| entry.map(|(key, json)| (key, json.into()))).collect();
        Ok(entries.ok())
    }
}

//! Merges small segments.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::key::Key;
use super::log::Entries;
use super::segments::{Stored, Trouble};
use super::{Inner, MemoError, SEGMENT_BYTES, by_size, earlier, locked};

/// A segment whose object is smaller is small.
const SMALL: u64 = 8 << 20;
/// So many small segments are fine.
const FEW: usize = 64;

impl Inner {
    /// Merges small segments, if there are many. An answer leaves the store only after a segment that holds it is there, so it
    /// is never lost: not by an interruption, and not by others who merge the same.
    pub(super) async fn compact(&self) -> Result<(), MemoError> {
        if self.log.is_none() || self.small().len() <= FEW {
            return Ok(());
        }
        let _alone = self.storing.lock().await;
        // Somebody else may have merged them.
        self.renew().await?;
        let small = self.small();
        if small.len() <= FEW {
            return Ok(());
        }
        for group in self.groups(small).await? {
            self.merge(&group).await?;
        }
        Ok(())
    }

    fn small(&self) -> Vec<Arc<Stored>> {
        let mut small = self.segments.all();
        small.retain(|stored| stored.size < SMALL);
        small
    }

    /// Divides segments into groups that make one segment each. Those that are nearly full before compression belong to none,
    /// small as they may be after it.
    async fn groups(&self, segments: Vec<Arc<Stored>>) -> Result<Vec<Vec<Arc<Stored>>>, MemoError> {
        let mut sizes = Vec::with_capacity(segments.len());
        for stored in segments {
            match self.segments.answer_bytes(&stored).await {
                Ok(bytes) => sizes.push((bytes, stored)),
                Err(Trouble::Gone | Trouble::Damaged(_)) => {}
                Err(Trouble::Store(error)) => return Err(error),
            }
        }
        sizes.sort_by_key(|(bytes, stored)| (*bytes, stored.number));
        let mut groups: Vec<Vec<Arc<Stored>>> = Vec::new();
        let mut sum = u64::MAX;
        for (bytes, stored) in sizes {
            sum = sum.saturating_add(bytes);
            match groups.last_mut() {
                Some(group) if sum <= SEGMENT_BYTES as u64 => group.push(stored),
                _ => {
                    sum = bytes;
                    groups.push(vec![stored]);
                }
            }
        }
        groups.retain(|group| group.len() > 1);
        Ok(groups)
    }

    async fn merge(&self, group: &[Arc<Stored>]) -> Result<(), MemoError> {
        let mut answers: BTreeMap<Key, Arc<str>> = BTreeMap::new();
        let mut merged = Vec::new();
        for stored in group {
            match self.add(&mut answers, stored).await {
                Ok(()) => merged.push(stored),
                Err(Trouble::Gone) => {}
                // What can be read of it is read where it lies.
                Err(Trouble::Damaged(error)) => {
                    tracing::warn!(%error, segment = stored.name, "a damaged segment of answers stays as it is");
                }
                Err(Trouble::Store(error)) => return Err(error),
            }
        }
        if merged.len() < 2 {
            return Ok(());
        }
        let runs = by_size(Entries::from_iter(answers));
        let mut names = HashSet::new();
        for entries in &runs {
            let (name, places) = self.segments.put(entries.clone()).await?;
            names.insert(name);
            locked(&self.known).index.add(places);
        }
        // One of them may hold all that the others do: it stays.
        let (kept, merged): (Vec<_>, Vec<_>) = merged.into_iter().partition(|stored| names.contains(&stored.name));
        let numbers = merged.iter().map(|stored| stored.number).collect();
        locked(&self.known).index.forget(&numbers);
        self.segments.forget(&numbers);
        for stored in merged {
            if let Err(error) = self.segments.delete(stored).await {
                tracing::warn!(%error, "a segment that was merged with others can't be deleted");
            }
        }
        if !kept.is_empty() {
            // Another process, which writes the same answers as other bytes, may have kept the other one of two.
            for entries in runs {
                self.segments.put(entries).await?;
            }
        }
        Ok(())
    }

    async fn add(&self, answers: &mut BTreeMap<Key, Arc<str>>, stored: &Arc<Stored>) -> Result<(), Trouble> {
        let whole = self.segments.unchanged(stored).await?;
        let entries: Result<Entries, _> = whole.entries().map(|entry| entry.map(|(key, answer)| (key, answer.into()))).collect();
        for (key, answer) in entries.map_err(|error| Trouble::Damaged(error.to_string()))? {
            let answer = match answers.remove(&key) {
                Some(other) => earlier(other, answer),
                None => answer,
            };
            answers.insert(key, answer);
        }
        Ok(())
    }
}

//! What a place promises of what a store needs, found out by trying.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{Error, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, Result, path::Path};

use super::{Buckets, Store, transfer};
use crate::failure::Failure;

/// How a promise stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Holds,
    /// It doesn't, and a run can do without.
    Weak,
    /// It doesn't, and a run can't do without.
    Missing,
}

/// Something that a store is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What it is.
    pub promise: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// What was seen; where the promise doesn't hold, what that means.
    pub seen: String,
}

/// Writers that try to be the first at once.
const WRITERS: usize = 8;
/// Objects that are listed.
const OBJECTS: usize = 12;
/// How far a server's clock may be from ours before files that change are told apart badly.
const CLOCK: Duration = Duration::from_secs(60);
/// A request that takes longer makes a run of many small stages slow.
const SLOW: Duration = Duration::from_millis(500);

/// Tries out what a store at `location` would have to keep, under a prefix of its own that is removed at the end.
///
/// # Errors
/// When the place can't be reached at all, or what was written can't be removed.
pub async fn probe(location: &str, buckets: &Buckets) -> std::result::Result<Vec<Check>, Failure> {
    let made = match location.contains("://") {
        false if !std::path::Path::new(location).exists() => {
            super::make_folder(location)?;
            true
        }
        _ => false,
    };
    let store = Store::at(location, buckets)?;
    let root = Path::from_iter(["doctor", &uuid::Uuid::now_v7().simple().to_string()]);
    let mut probe = Probe { objects: store.objects.clone(), root: root.clone(), checks: Vec::new(), took: Vec::new() };
    let tried = probe.all().await;
    let left: Vec<Path> = match tried {
        Ok(()) => store.list(&root).await?.into_iter().map(|meta| meta.location).collect(),
        Err(_) => store.list(&root).await.unwrap_or_default().into_iter().map(|meta| meta.location).collect(),
    };
    let removed = store.delete(left).await;
    if let Some(folder) = store.local_path(&root) {
        let _ = std::fs::remove_dir_all(&folder);
        let _ = folder.parent().map(std::fs::remove_dir);
        if made {
            let _ = std::fs::remove_dir(location);
        }
    }
    tried?;
    removed?;
    Ok(probe.checks)
}

struct Probe {
    objects: Arc<dyn ObjectStore>,
    root: Path,
    checks: Vec<Check>,
    /// Of single small requests.
    took: Vec<Duration>,
}

impl Probe {
    async fn all(&mut self) -> std::result::Result<(), Failure> {
        // Whatever is wrong with the place itself shows here.
        self.timed(|objects, root| async move { objects.list(Some(&root)).try_collect::<Vec<_>>().await }).await?;
        self.first_put().await?;
        self.racing_puts().await?;
        self.overwriting().await?;
        self.listing().await?;
        self.deleting().await?;
        self.large().await?;
        self.latency();
        Ok(())
    }

    fn say(&mut self, promise: &'static str, verdict: Verdict, seen: impl Into<String>) {
        self.checks.push(Check { promise, verdict, seen: seen.into() });
    }

    fn path(&self, name: &str) -> Path {
        self.root.clone().join(name)
    }

    async fn timed<T, F: Future<Output = Result<T>>>(
        &mut self,
        request: impl FnOnce(Arc<dyn ObjectStore>, Path) -> F,
    ) -> Result<T> {
        let started = Instant::now();
        let result = request(self.objects.clone(), self.root.clone()).await;
        self.took.push(started.elapsed());
        result
    }

    async fn first_put(&mut self) -> Result<()> {
        const PROMISE: &str = "put if absent";
        let path = self.path("first");
        let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
        let at = path.clone();
        if let Err(error) = self.timed(|objects, _| async move { create(&objects, &at, first).await }).await {
            let seen = format!("an object couldn't be put under a new name: {}", Failure::from(error).message);
            self.say(PROMISE, Verdict::Missing, seen);
            return Ok(());
        }
        let again = create(&self.objects, &path, second).await;
        let found = self.objects.get(&path).await?.bytes().await?;
        match again {
            Err(Error::AlreadyExists { .. }) if found == "first" => {
                self.say(PROMISE, Verdict::Holds, "the second put of a name was refused, and the first one's content is there");
            }
            Err(Error::AlreadyExists { .. }) => {
                self.say(PROMISE, Verdict::Missing, "the second put was refused, and yet changed the object");
            }
            Err(error) => {
                let seen = format!("the second put wasn't refused as it should be: {}", Failure::from(error).message);
                self.say(PROMISE, Verdict::Missing, seen);
            }
            Ok(()) => self.say(
                PROMISE,
                Verdict::Missing,
                "the second put overwrote the first: two runs at once would overwrite each other's commits (`If-None-Match: *` is \
                 ignored)",
            ),
        }
        Ok(())
    }

    async fn racing_puts(&mut self) -> Result<()> {
        const PROMISE: &str = "one winner of a race";
        let path = self.path("race");
        let writers = (0..WRITERS).map(|writer| {
            let (objects, path) = (self.objects.clone(), path.clone());
            async move { create(&objects, &path, Bytes::from(writer.to_string())).await.map(|()| writer.to_string()) }
        });
        let results: Vec<Result<String>> = futures::future::join_all(writers).await;
        let winners: Vec<String> = results.into_iter().flatten().collect();
        let found = self.objects.get(&path).await?.bytes().await?;
        match winners.as_slice() {
            [winner] if found == winner.as_bytes() => {
                self.say(PROMISE, Verdict::Holds, format!("of {WRITERS} puts at once one was taken"));
            }
            winners => self.say(
                PROMISE,
                Verdict::Missing,
                format!(
                    "of {WRITERS} puts at once {} were taken: two runs at once would both believe to have committed",
                    winners.len()
                ),
            ),
        }
        Ok(())
    }

    async fn overwriting(&mut self) -> Result<()> {
        let path = self.path("twice");
        for content in ["one", "two"] {
            let at = path.clone();
            self.timed(|objects, _| async move { objects.put(&at, content.into()).await }).await?;
            let at = path.clone();
            let found = self.timed(|objects, _| async move { objects.get(&at).await?.bytes().await }).await?;
            if found != content {
                self.say(
                    "read after write",
                    Verdict::Missing,
                    "what was read wasn't what had just been written: a run would read old records",
                );
                return Ok(());
            }
        }
        self.say("read after write", Verdict::Holds, "new and overwritten objects read as written");
        Ok(())
    }

    async fn listing(&mut self) -> Result<()> {
        const PROMISE: &str = "listing after write";
        let folder = self.path("list");
        let mut absent = 0;
        let mut last: Option<ObjectMeta> = None;
        for n in 0..OBJECTS {
            let path = folder.clone().join(format!("{n:02}"));
            self.objects.put(&path, vec![b'x'; n].into()).await?;
            let listed: Vec<ObjectMeta> = self.objects.list(Some(&folder)).try_collect().await?;
            last = listed.into_iter().find(|meta| meta.location == path && meta.size == n as u64);
            absent += usize::from(last.is_none());
        }
        match absent {
            0 => self.say(PROMISE, Verdict::Holds, format!("each of {OBJECTS} objects was listed, with its size, right after it was put")),
            absent => self.say(
                PROMISE,
                Verdict::Missing,
                format!("{absent} of {OBJECTS} objects weren't listed right after they were put: a run wouldn't see what the last one did"),
            ),
        }
        let Some(meta) = last else { return Ok(()) };
        match meta.e_tag {
            Some(_) => self.say("etags in listings", Verdict::Holds, "a source file that changes is noticed by its etag"),
            None => self.say(
                "etags in listings",
                Verdict::Weak,
                "there are none: a source file that changes is noticed by size and time only",
            ),
        }
        let skew = chrono::Utc::now().signed_duration_since(meta.last_modified).abs().to_std().unwrap_or_default();
        if skew <= CLOCK {
            self.say("clock", Verdict::Holds, format!("within {} s of this machine's", skew.as_secs().max(1)));
        } else {
            let seen = format!(
                "{} s away from this machine's: ages of files are judged wrongly; past 15 minutes a server refuses signed requests",
                skew.as_secs()
            );
            self.say("clock", Verdict::Weak, seen);
        }
        Ok(())
    }

    async fn deleting(&mut self) -> Result<()> {
        let folder = self.path("list");
        let paths = (0..OBJECTS).map(|n| Ok(folder.clone().join(format!("{n:02}"))));
        let deleted: Result<Vec<Path>> =
            self.objects.delete_stream(futures::stream::iter(paths.collect::<Vec<_>>()).boxed()).try_collect().await;
        let left: Vec<ObjectMeta> = self.objects.list(Some(&folder)).try_collect().await?;
        let gone = matches!(self.objects.get(&folder.clone().join("00")).await, Err(Error::NotFound { .. }));
        match deleted {
            Ok(_) if left.is_empty() && gone => {
                self.say("delete", Verdict::Holds, format!("{OBJECTS} objects at once, neither listed nor read afterwards"));
            }
            Ok(_) => self.say("delete", Verdict::Missing, "deleted objects were still listed or read"),
            Err(error) => self.say("delete", Verdict::Missing, Failure::from(error).message),
        }
        Ok(())
    }

    /// Nothing but weights is that large, but they are what takes longest to make.
    async fn large(&mut self) -> std::result::Result<(), Failure> {
        const PROMISE: &str = "objects in pieces";
        let path = self.path("large");
        let content = Bytes::from(vec![7; 2 * transfer::PIECE + 1]);
        let started = Instant::now();
        if let Err(failure) = transfer::put(&self.objects, &path, content.clone()).await {
            self.say(PROMISE, Verdict::Missing, failure.message);
            return Ok(());
        }
        let took = started.elapsed();
        let size = content.len() as u64;
        let found: Result<Vec<(Bytes, ObjectMeta)>> = transfer::pieces(self.objects.clone(), path, size).try_collect().await;
        match found {
            Ok(found) if found.iter().map(|(piece, _)| piece.clone()).collect::<Vec<_>>().concat() == content => {
                let rate = size as f64 / (1 << 20) as f64 / took.as_secs_f64().max(1e-3);
                self.say(
                    PROMISE,
                    Verdict::Holds,
                    format!("{} MiB put in three pieces at {rate:.0} MiB/s and read by ranges", size >> 20),
                );
            }
            Ok(_) => self.say(PROMISE, Verdict::Missing, "an object that was put in pieces didn't read as written"),
            Err(error) => self.say(PROMISE, Verdict::Missing, Failure::from(error).message),
        }
        Ok(())
    }

    fn latency(&mut self) {
        self.took.sort();
        let (Some(median), Some(longest)) = (self.took.get(self.took.len() / 2).copied(), self.took.last().copied()) else {
            return;
        };
        let seen = format!("{:.1} ms, at most {:.1} ms", median.as_secs_f64() * 1e3, longest.as_secs_f64() * 1e3);
        match median <= SLOW {
            true => self.say("time of a request", Verdict::Holds, seen),
            false => self.say("time of a request", Verdict::Weak, format!("{seen}: a cached run makes about four a stage")),
        }
    }
}

async fn create(objects: &Arc<dyn ObjectStore>, path: &Path, content: Bytes) -> Result<()> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    objects.put_opts(path, content.into(), options).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_local_folder_keeps_everything_and_nothing_is_left_in_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("a/store");
        let checks = probe(place.to_str().expect("UTF-8"), &Buckets::default()).await.expect("probed");
        let missing: Vec<&Check> = checks.iter().filter(|check| check.verdict == Verdict::Missing).collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert_eq!(checks.len(), 9);
        assert!(!place.exists());
    }
}

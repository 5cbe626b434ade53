//! Blobs of stores that aren't local, and files that artifacts refer to: kept in a folder that all runs on this machine share.
//!
//! ```text
//! <cache>/blobs/<digest>                a blob, whole, under the blake3 of its content; the last use is its modification time.
//!                                       A file that isn't on a store has a digest of its URL and state instead
//! <cache>/in-use/<process>/<folder>/... blobs under their names, as hard links, for as long as the process lives
//! <cache>/in-use/<process>.lock         locked by the process
//! ```
//!
//! Past a limit, what wasn't used for longest is removed. What a process works with has a second name, which is removed with
//! the process, or by the next one if it was killed.

use std::{
    fs::File,
    io::{ErrorKind, Write},
    path::{Path as FilePath, PathBuf},
    sync::Mutex,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::path::Path;

use super::{Blob, Store, pieces};
use crate::failure::Failure;

/// A blob that was just fetched is on its way to whoever asked for it.
const GRACE: Duration = Duration::from_secs(60);
/// A download of longer ago than this has nobody who goes on with it.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
const FETCH: &str = ".fetch";

/// The blobs on this machine.
#[derive(Debug)]
pub(crate) struct BlobCache {
    cache: PathBuf,
    limit: u64,
    fetching: tokio::sync::Mutex<()>,
    in_use: Mutex<Option<InUse>>,
}

/// What a file holds, in pieces; may be asked for again.
pub(crate) type Content<'a> = &'a (dyn Fn() -> BoxStream<'static, Result<Bytes, Failure>> + Send + Sync);

/// A file that is kept.
struct Kept<'a> {
    /// Its name in the folder: 64 hex digits.
    name: &'a str,
    /// What it is, for messages.
    of: &'a str,
    bytes: u64,
    /// blake3 of its content, hex, where that is known.
    digest: Option<&'a str>,
    content: Content<'a>,
}

/// The folder of this process, with a lock that tells others that it lives.
#[derive(Debug)]
struct InUse {
    folder: tempfile::TempDir,
    lock: PathBuf,
    _locked: File,
}

impl Drop for InUse {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.folder.path());
        let _ = std::fs::remove_file(&self.lock);
    }
}

impl BlobCache {
    /// The blobs under `cache`, of which about `limit` bytes are kept.
    pub(crate) fn new(cache: PathBuf, limit: u64) -> Self {
        Self { cache, limit, fetching: tokio::sync::Mutex::new(()), in_use: Mutex::new(None) }
    }

    /// The content of a blob.
    pub(crate) async fn content(&self, store: &Store, blob: &Blob) -> Result<Bytes, Failure> {
        let content = self.with(store, blob, |file| std::fs::read(file)).await?;
        if blake3::hash(&content).to_hex().as_str() == blob.digest {
            return Ok(content.into());
        }
        // What somebody did to the folder.
        let _ = std::fs::remove_file(self.blobs().join(&blob.digest));
        Ok(self.with(store, blob, |file| std::fs::read(file)).await?.into())
    }

    /// A folder with these blobs, each at its relative path; it lasts as long as `self`, and nothing may be written there.
    ///
    /// `name` tells folders of different blobs apart.
    pub(crate) async fn folder(&self, store: &Store, name: &str, blobs: &[(PathBuf, &Blob)]) -> Result<PathBuf, Failure> {
        let folder = self.own_folder()?.join(name);
        let size = |file: &FilePath| std::fs::metadata(file).map(|meta| meta.len()).ok();
        for (relative, blob) in blobs {
            let place = folder.join(relative);
            if size(&place) == Some(blob.bytes) {
                continue;
            }
            if let Some(parent) = place.parent() {
                std::fs::create_dir_all(parent)?;
            }
            self.with(store, blob, |file| link(file, &place)).await?;
        }
        Ok(folder)
    }

    /// Gives a file that isn't on a store the name `place`, in the folder of this process; it is fetched if need be.
    ///
    /// `name` is 64 hex digits that tell it, in the state that is meant, from every other. `content` ends in an error where it isn't
    /// in that state.
    pub(crate) async fn place(&self, name: &str, bytes: u64, content: Content<'_>, place: &FilePath) -> Result<(), Failure> {
        self.kept(&Kept { name, of: name, bytes, digest: None, content }, |file| link(file, place)).await
    }

    /// Calls `take` with the file of a blob.
    async fn with<T>(&self, store: &Store, blob: &Blob, take: impl Fn(&FilePath) -> std::io::Result<T>) -> Result<T, Failure> {
        if blob.digest.len() != 64 || !blob.digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Failure::external(format!("the digest of `{}` is none", blob.path)));
        }
        let content = || {
            let path = blob.path.clone();
            pieces(store.objects().clone(), Path::from(path.as_str()), blob.bytes)
                .map(move |piece| match piece {
                    Ok((piece, _)) => Ok(piece),
                    Err(object_store::Error::NotFound { .. }) => {
                        Err(Failure::external(format!("`{path}` is missing")).hint("run again: it is made anew"))
                    }
                    Err(error) => Err(error.into()),
                })
                .boxed()
        };
        let (name, of) = (blob.digest.as_str(), blob.path.as_str());
        self.kept(&Kept { name, of, bytes: blob.bytes, digest: Some(name), content: &content }, take).await
    }

    /// Calls `take` with a file, which is fetched if need be. Another process may remove it at any moment: then it is fetched
    /// again.
    async fn kept<T>(&self, kept: &Kept<'_>, take: impl Fn(&FilePath) -> std::io::Result<T>) -> Result<T, Failure> {
        let file = self.blobs().join(kept.name);
        for _ in 0..4 {
            if is_whole(&file, kept.bytes) {
                match used(&file).and_then(|()| take(&file)) {
                    Ok(taken) => return Ok(taken),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(self.unusable(&error)),
                }
            }
            let _alone = self.fetching.lock().await;
            if !is_whole(&file, kept.bytes) {
                self.fetch(kept, &file).await?;
                self.shrink();
            }
        }
        Err(Failure::external(format!("`{}` is removed as soon as it is fetched", file.display()))
            .hint("does something else clean this folder? `INGRAIN_CACHE` names another one"))
    }

    /// Removes what is kept of these blobs, by digest, and what processes left behind that don't live any more. One that lives and
    /// works with such a blob has it until it ends. Gives how many were removed.
    pub(crate) fn remove<'a>(&self, digests: impl IntoIterator<Item = &'a String>) -> usize {
        remove_abandoned(&self.cache.join("in-use"));
        digests.into_iter().filter(|digest| std::fs::remove_file(self.blobs().join(digest)).is_ok()).count()
    }

    async fn fetch(&self, kept: &Kept<'_>, file: &FilePath) -> Result<(), Failure> {
        let folder = self.blobs();
        std::fs::create_dir_all(&folder).map_err(|error| self.unusable(&error))?;
        let staging = tempfile::Builder::new().prefix(FETCH).tempfile_in(&folder);
        let mut staging = staging.map_err(|error| self.unusable(&error))?;
        let mut hasher = blake3::Hasher::new();
        let mut fetched = (kept.content)();
        while let Some(piece) = fetched.try_next().await? {
            hasher.update(&piece);
            staging.write_all(&piece).map_err(|error| self.unusable(&error))?;
        }
        if kept.digest.is_some_and(|digest| hasher.finalize().to_hex().as_str() != digest) {
            return Err(Failure::damaged(kept.of));
        }
        // The size is all that is looked at later: a power cut must not leave a file of the right size with holes.
        staging.as_file().sync_all().map_err(|error| self.unusable(&error))?;
        staging.persist(file).map_err(|error| self.unusable(&error.error))?;
        Ok(())
    }

    /// Removes what wasn't used for longest until the rest is within the limit. Failing to costs disk and nothing else.
    fn shrink(&self) {
        let Ok(entries) = std::fs::read_dir(self.blobs()) else { return };
        let mut files: Vec<(Duration, u64, PathBuf)> = Vec::new();
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if !meta.is_file() {
                continue;
            }
            let age = meta.modified().ok().and_then(|modified| modified.elapsed().ok()).unwrap_or_default();
            if !entry.file_name().to_string_lossy().starts_with(FETCH) {
                files.push((age, meta.len(), entry.path()));
            } else if age > ABANDONED {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        files.sort();
        let mut kept = 0;
        for (age, bytes, file) in files {
            kept += bytes;
            if kept > self.limit && age > GRACE {
                kept -= bytes;
                let _ = std::fs::remove_file(file);
            }
        }
    }

    fn blobs(&self) -> PathBuf {
        self.cache.join("blobs")
    }

    /// The folder of this process. The first call removes those of processes that were killed.
    fn own_folder(&self) -> Result<PathBuf, Failure> {
        let mut in_use = self.in_use.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if in_use.is_none() {
            let parent = self.cache.join("in-use");
            let made = std::fs::create_dir_all(&parent).and_then(|()| {
                remove_abandoned(&parent);
                own(&parent)
            });
            *in_use = Some(made.map_err(|error| self.unusable(&error))?);
        }
        match &*in_use {
            Some(in_use) => Ok(in_use.folder.path().to_owned()),
            None => Err(Failure::bug("a folder that was just made is gone")),
        }
    }

    fn unusable(&self, error: &std::io::Error) -> Failure {
        Failure::external(format!("the cache folder `{}` can't be used: {error}", self.cache.display()))
            .hint("`INGRAIN_CACHE` names another one, `INGRAIN_CACHE_LIMIT` says how much it may hold")
    }
}

fn is_whole(file: &FilePath, bytes: u64) -> bool {
    std::fs::metadata(file).is_ok_and(|meta| meta.len() == bytes)
}

/// Takes note of a use.
fn used(file: &FilePath) -> std::io::Result<()> {
    File::options().write(true).open(file)?.set_modified(SystemTime::now())
}

/// Gives a file a second name; where the file system can't, a copy.
fn link(file: &FilePath, place: &FilePath) -> std::io::Result<()> {
    match std::fs::remove_file(place) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match std::fs::hard_link(file, place) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound || error.kind() == ErrorKind::AlreadyExists => Err(error),
        Err(_) => std::fs::copy(file, place).map(|_| ()),
    }
}

fn own(parent: &FilePath) -> std::io::Result<InUse> {
    let folder = tempfile::Builder::new().prefix("run-").tempdir_in(parent)?;
    // Locked before it has the name that others look for.
    let staging = tempfile::Builder::new().prefix(".lock").tempfile_in(parent)?;
    staging.as_file().lock()?;
    let lock = folder.path().with_extension("lock");
    let locked = staging.persist(&lock).map_err(|error| error.error)?;
    Ok(InUse { folder, lock, _locked: locked })
}

/// Removes the folders of processes that don't live any more.
fn remove_abandoned(parent: &FilePath) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for lock in entries.flatten().map(|entry| entry.path()) {
        if lock.extension().is_none_or(|extension| extension != "lock") {
            continue;
        }
        let is_abandoned = File::open(&lock).is_ok_and(|file| file.try_lock().is_ok());
        if is_abandoned {
            let _ = std::fs::remove_dir_all(lock.with_extension(""));
            let _ = std::fs::remove_file(&lock);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Buckets;

    struct Place {
        folder: tempfile::TempDir,
        store: Store,
    }

    impl Place {
        async fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let location = folder.path().join("store");
            let store = Store::open(location.to_str().expect("UTF-8"), &Buckets::default()).await.expect("made");
            Self { folder, store }
        }

        fn cache(&self, limit: u64) -> BlobCache {
            BlobCache::new(self.folder.path().join("cache"), limit)
        }

        async fn blob(&self, name: &str, content: &[u8]) -> Blob {
            let path = format!("parts/{name}");
            self.store.write(&Path::from(path.as_str()), content.to_vec().into()).await.expect("written");
            let digest = blake3::hash(content).to_hex().to_string();
            Blob { name: name.to_owned(), path, bytes: content.len() as u64, digest }
        }

        fn kept(&self) -> usize {
            std::fs::read_dir(self.folder.path().join("cache/blobs")).expect("a folder").count()
        }

        fn age(&self, blob: &Blob) {
            let file = self.folder.path().join("cache/blobs").join(&blob.digest);
            let file = File::options().write(true).open(file).expect("kept");
            file.set_modified(SystemTime::now() - 2 * GRACE).expect("aged");
        }
    }

    #[tokio::test]
    async fn a_blob_is_fetched_once_and_shared() {
        let place = Place::new().await;
        let blob = place.blob("a", b"weights").await;
        assert_eq!(place.cache(1000).content(&place.store, &blob).await.expect("fetched"), "weights");
        place.store.delete(vec![Path::from(blob.path.as_str())]).await.expect("deleted");
        assert_eq!(place.cache(1000).content(&place.store, &blob).await.expect("kept"), "weights");
    }

    #[tokio::test]
    async fn a_wrong_blob_is_refused_and_a_damaged_copy_fetched_again() {
        let place = Place::new().await;
        let cache = place.cache(1000);
        let blob = place.blob("a", b"weights").await;
        let wrong = Blob { digest: blake3::hash(b"others").to_hex().to_string(), ..blob.clone() };
        assert!(cache.content(&place.store, &wrong).await.expect_err("refused").damaged.is_some());
        assert_eq!(place.kept(), 0);
        cache.content(&place.store, &blob).await.expect("fetched");
        std::fs::write(place.folder.path().join("cache/blobs").join(&blob.digest), b"damaged").expect("written");
        assert_eq!(cache.content(&place.store, &blob).await.expect("fetched again"), "weights");
        let outside = Blob { digest: "../../outside".into(), ..blob };
        assert!(cache.content(&place.store, &outside).await.is_err());
    }

    #[tokio::test]
    async fn the_longest_unused_goes_first_and_what_is_in_use_stays() {
        let place = Place::new().await;
        let cache = place.cache(20);
        let (a, b, c) = (place.blob("a", &[1; 10]).await, place.blob("b", &[2; 10]).await, place.blob("c", &[3; 10]).await);
        let folder = cache.folder(&place.store, "x", &[("model/a".into(), &a)]).await.expect("linked");
        cache.content(&place.store, &b).await.expect("fetched");
        place.age(&a);
        cache.content(&place.store, &c).await.expect("fetched");
        assert_eq!(place.kept(), 2);
        assert!(!place.folder.path().join("cache/blobs").join(&a.digest).exists());
        assert_eq!(std::fs::read(folder.join("model/a")).expect("still there"), [1; 10]);
        drop(cache);
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn folders_of_killed_processes_are_removed() {
        let place = Place::new().await;
        let blob = place.blob("a", b"weights").await;
        let living = place.cache(1000);
        let kept = living.folder(&place.store, "x", &[("a".into(), &blob)]).await.expect("linked");
        let parent = place.folder.path().join("cache/in-use");
        std::fs::create_dir_all(parent.join("run-dead/x")).expect("made");
        std::fs::write(parent.join("run-dead.lock"), b"").expect("written");
        place.cache(1000).folder(&place.store, "x", &[("a".into(), &blob)]).await.expect("linked");
        assert!(!parent.join("run-dead").exists() && !parent.join("run-dead.lock").exists());
        assert!(kept.join("a").exists());
    }
}

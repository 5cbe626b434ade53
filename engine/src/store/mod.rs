//! The store: one `object_store` behind a root, with the few verbs that commits need.

mod bucket;
mod cache;
mod collect;
mod discard;
mod durable;
mod erase;
mod events;
mod faults;
mod forgotten;
#[cfg(test)]
mod fuzz;
mod lease;
mod manifest;
mod probe;
mod refusal;
mod transfer;
mod whole;

use std::{
    collections::BTreeSet,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{
    Error, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, memory::InMemory, path::Path, prefix::PrefixStore,
};
use tokio::sync::OnceCell;

pub use self::{
    bucket::Buckets,
    collect::{Collected, Keep},
    erase::Erased,
    forgotten::{Forgotten, Tombstone, same_source},
    lease::{Holder, Lease},
    manifest::{Action, Blob, Column, Committed, Manifest, Part, PartitionRecord, Reference, TableManifest},
    probe::{Check, Verdict, probe},
};
pub(crate) use self::{
    bucket::{path as key_path, split as split_url},
    cache::BlobCache,
    transfer::pieces,
    whole::{Damaged, part_name},
};
use crate::failure::Failure;

/// The format of what lies on a store. A store with a newer one is refused.
pub const FORMAT: u32 = 1;

/// A store: a local folder or a prefix of a bucket.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    location: String,
    local: Option<PathBuf>,
    is_there: bool,
    /// Parts that were found not to hold what was written.
    damaged: Damaged,
    /// Filled when its server was found to honour conditions.
    has_conditions: Arc<OnceCell<()>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.location)
    }
}

impl Store {
    /// Opens the store at a local path or at an `s3://bucket/prefix` URL for writing. What isn't there is made: a local
    /// folder, and the file that says that this is a store.
    ///
    /// # Errors
    /// When the place can't be used as a store: it is a file, can't be written, was written in a newer format, or is new and its
    /// server doesn't refuse to put an object that is there already.
    pub async fn open(location: &str, buckets: &Buckets) -> Result<Self, Failure> {
        if !location.contains("://") {
            make_folder(location)?;
        }
        let store = Self::at(location, buckets)?;
        let format = Path::from("format.json");
        match store.read(&format).await? {
            Some(found) => store.check_format(&found)?,
            None => {
                if let Some(found) = store.create(&format, format_record()).await? {
                    store.check_format(&found)?;
                }
                store.demand_conditions().await?;
            }
        }
        Ok(Self { is_there: true, ..store })
    }

    /// Sees to it, once, that the store's server refuses to put an object that is there already. Whoever commits needs that; a
    /// run that finds everything cached has no use for it.
    ///
    /// # Errors
    /// When it doesn't refuse, or can't be asked.
    pub(crate) async fn demand_conditions(&self) -> Result<(), Failure> {
        let demand = || async {
            // A server that ignores the condition writes the same bytes again, and is found out.
            if self.local.is_some() || self.refuses(&Path::from("format.json"), format_record()).await? {
                return Ok(());
            }
            Err(Failure::external(format!(
                "the server of the store `{}` overwrites objects that it was asked to leave alone: two runs at once would overwrite \
                 each other's work",
                self.location
            ))
            .hint(refusal::NO_CONDITIONAL_PUT))
        };
        self.has_conditions.get_or_try_init(demand).await.map(|_| ())
    }

    /// Opens the store at `location` for looking at it: nothing is written, and nothing need be there. What isn't there is
    /// an empty store, of which [`Self::is_there`] says so.
    ///
    /// # Errors
    /// When the place is a file, can't be read, or was written in a newer format.
    pub async fn existing(location: &str, buckets: &Buckets) -> Result<Self, Failure> {
        if !location.contains("://") && !FilePath::new(location).exists() {
            let objects = Arc::new(InMemory::new());
            return Ok(Self {
                objects,
                location: location.to_owned(),
                local: None,
                is_there: false,
                damaged: Damaged::default(),
                has_conditions: Arc::default(),
            });
        }
        let store = Self::at(location, buckets)?;
        let found = store.read(&Path::from("format.json")).await?;
        if let Some(found) = &found {
            store.check_format(found)?;
        }
        Ok(Self { is_there: found.is_some(), ..store })
    }

    /// The place, whatever is there.
    fn at(location: &str, buckets: &Buckets) -> Result<Self, Failure> {
        match location.split_once("://") {
            None => Self::local(location),
            Some(("s3", _)) => Self::bucket(location, buckets),
            Some((scheme, _)) => Err(Failure::data(format!("a store can't be at a `{scheme}://` URL"))
                .hint("use a local folder or `s3://bucket/prefix`")),
        }
    }

    fn local(location: &str) -> Result<Self, Failure> {
        if FilePath::new(location).is_file() {
            return Err(is_a_file(location));
        }
        let root = std::fs::canonicalize(location)
            .map_err(|error| Failure::external(format!("the store `{location}` can't be read: {error}")))?;
        let damaged = Damaged::default();
        let objects = faults::Faulty::wrap(Arc::new(durable::Durable::new(root.clone())?), Some(root.clone()))?;
        let objects = Arc::new(whole::Whole::new(objects, damaged.clone()));
        Ok(Self {
            objects,
            location: location.to_owned(),
            local: Some(root),
            is_there: true,
            damaged,
            has_conditions: Arc::default(),
        })
    }

    fn bucket(location: &str, buckets: &Buckets) -> Result<Self, Failure> {
        let location = location.trim_end_matches('/');
        let (bucket, prefix) = split_url(location)?;
        let objects = buckets.open(bucket)?;
        let objects: Arc<dyn ObjectStore> =
            if prefix.is_empty() { objects } else { Arc::new(PrefixStore::new(objects, key_path(prefix)?)) };
        let damaged = Damaged::default();
        let objects = Arc::new(whole::Whole::new(faults::Faulty::wrap(objects, None)?, damaged.clone()));
        Ok(Self { objects, location: location.to_owned(), local: None, is_there: true, damaged, has_conditions: Arc::default() })
    }

    fn check_format(&self, found: &[u8]) -> Result<(), Failure> {
        let format = serde_json::from_slice::<serde_json::Value>(found).ok().and_then(|found| found["format"].as_u64());
        match format {
            Some(format) if format <= u64::from(FORMAT) => Ok(()),
            Some(format) => Err(Failure::data(format!(
                "the store `{}` has format {format}; this program knows formats up to {FORMAT}",
                self.location
            ))
            .hint("use a newer `ingrain`, or another store")),
            None => Err(Failure::data(format!("`format.json` of the store `{}` can't be read", self.location))
                .hint("is this the root of a store? An empty folder or prefix will do")),
        }
    }

    /// The same store for work that is only tried out: what is written is thrown away, and nothing is deleted.
    pub(crate) fn discarding(&self) -> Self {
        Self { objects: Arc::new(discard::Discard(self.objects.clone())), ..self.clone() }
    }

    /// Parts that were found not to hold what was written there, so far.
    pub(crate) fn damaged(&self) -> BTreeSet<String> {
        self.damaged.parts()
    }

    /// Where the store is, as it was given.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Whether a run has made a store of this place.
    pub fn is_there(&self) -> bool {
        self.is_there
    }

    /// The objects below the store's root.
    pub fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.objects
    }

    /// The file that an object is, on a local store.
    pub fn local_path(&self, path: &Path) -> Option<PathBuf> {
        self.local.as_ref().map(|root| path.parts().fold(root.clone(), |folder, part| folder.join(part.as_ref())))
    }

    /// The content of an object; `None` if it isn't there.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn read(&self, path: &Path) -> Result<Option<Bytes>, Failure> {
        match self.objects.get(path).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes an object under a name that nobody else uses, durably.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn write(&self, path: &Path, content: Bytes) -> Result<(), Failure> {
        transfer::put(&self.objects, path, content).await
    }

    /// Copies a local file to an object under a name that nobody else uses, durably and in bounded memory. Gives its size and
    /// the blake3 of its content, hex.
    ///
    /// # Errors
    /// When the file can't be read or the store fails.
    pub async fn upload(&self, path: &Path, file: &FilePath) -> Result<(u64, String), Failure> {
        transfer::upload(&self.objects, path, file).await
    }

    /// Writes an object unless there is one, durably. Gives `None` if the object is now ours, else what lies there: the
    /// content must hold something unique (an attempt's id), since a put whose answer was lost meets itself.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn create(&self, path: &Path, content: Bytes) -> Result<Option<Bytes>, Failure> {
        let mut wait = Duration::from_millis(100);
        for is_last in [false, false, false, false, true] {
            match self.put_if_absent(path, content.clone()).await {
                Ok(()) => return Ok(None),
                Err(Error::AlreadyExists { .. }) => match self.read(path).await? {
                    Some(found) if found == content => return Ok(None),
                    Some(found) => return Ok(Some(found)),
                    // A server also refuses while another put of the name is under way, and that one may come to nothing.
                    None => {}
                },
                Err(error) if !is_last && refusal::is_unanswered(&error) => {}
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        Err(Failure::external(format!("`{path}` was refused as already there, and isn't")))
    }

    async fn put_if_absent(&self, path: &Path, content: Bytes) -> object_store::Result<()> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.objects.put_opts(path, content.into(), options).await.map(|_| ())
    }

    /// Whether the store refuses to put `content` where an object is.
    async fn refuses(&self, path: &Path, content: Bytes) -> Result<bool, Failure> {
        match self.put_if_absent(path, content).await {
            Ok(()) => Ok(false),
            Err(Error::AlreadyExists { .. }) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Every object below `prefix`, with its size.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn list(&self, prefix: &Path) -> Result<Vec<ObjectMeta>, Failure> {
        Ok(self.objects.list(Some(prefix)).try_collect().await?)
    }

    /// Deletes objects; those that aren't there are passed over.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn delete(&self, paths: Vec<Path>) -> Result<(), Failure> {
        let mut results = self.objects.delete_stream(futures::stream::iter(paths.into_iter().map(Ok)).boxed());
        while let Some(result) = results.next().await {
            match result {
                Ok(_) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// What `format.json` says in a store of this program.
fn format_record() -> Bytes {
    serde_json::json!({ "format": FORMAT }).to_string().into()
}

/// Makes the folder of a local store, durably, and sees whether it can be written.
fn make_folder(location: &str) -> Result<(), Failure> {
    let folder = FilePath::new(location);
    if folder.is_file() {
        return Err(is_a_file(location));
    }
    let missing: Vec<&FilePath> =
        folder.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).collect();
    let make = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        for made in missing {
            let parent = made.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(FilePath::new("."));
            std::fs::File::open(parent)?.sync_all()?;
        }
        tempfile::Builder::new().prefix(".writable").tempfile_in(folder)?;
        Ok(())
    };
    make().map_err(|error| {
        Failure::external(format!("the store `{location}` can't be written: {error}"))
            .hint("choose another place with `--store` or `store:`, or mend its permissions")
    })
}

fn is_a_file(location: &str) -> Failure {
    Failure::data(format!("the store `{location}` is a file")).hint("name a folder; it is made if it isn't there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn looking_at_a_store_makes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("a/store");
        let location = place.to_str().expect("UTF-8");
        let store = Store::existing(location, &Buckets::default()).await.expect("an empty store");
        assert!(!store.is_there());
        assert!(store.list(&Path::from("actions")).await.expect("listed").is_empty());
        assert!(!folder.path().join("a").exists());
        Store::open(location, &Buckets::default()).await.expect("made");
        assert!(Store::existing(location, &Buckets::default()).await.expect("opened").is_there());
    }

    #[tokio::test]
    async fn what_is_only_tried_out_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path().to_str().expect("UTF-8"), &Buckets::default()).await.expect("made");
        let (there, new) = (Path::from("a/there"), Path::from("a/new"));
        store.write(&there, Bytes::from_static(b"1")).await.expect("written");
        let tried = store.discarding();
        tried.write(&new, Bytes::from_static(b"2")).await.expect("taken");
        assert_eq!(tried.create(&new, Bytes::from_static(b"2")).await.expect("taken"), None);
        tried.delete(vec![there.clone()]).await.expect("passed over");
        assert_eq!(tried.read(&there).await.expect("read"), Some(Bytes::from_static(b"1")));
        assert_eq!(store.list(&Path::from("a")).await.expect("listed").len(), 1);
    }

    #[tokio::test]
    async fn a_put_that_meets_itself_won_and_one_that_meets_another_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path().to_str().expect("UTF-8"), &Buckets::default()).await.expect("made");
        let path = Path::from("a/b/record.json");
        let mine = Bytes::from_static(b"mine");
        assert_eq!(store.create(&path, mine.clone()).await.expect("put"), None);
        assert_eq!(store.create(&path, mine.clone()).await.expect("put again"), None);
        assert_eq!(store.create(&path, Bytes::from_static(b"theirs")).await.expect("refused"), Some(mine));
    }

    #[tokio::test]
    async fn a_size_that_a_record_claims_takes_no_memory() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path().to_str().expect("UTF-8"), &Buckets::default()).await.expect("made");
        let path = Path::from("parts/s/r/a");
        store.write(&path, Bytes::from_static(b"content")).await.expect("written");
        let read: object_store::Result<Vec<_>> = pieces(store.objects().clone(), path, u64::MAX).try_collect().await;
        assert!(read.is_err());
    }

    #[tokio::test]
    async fn a_file_goes_up_whole_whatever_its_size() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path().join("s").to_str().expect("UTF-8"), &Buckets::default()).await.expect("made");
        for size in [0, 10, transfer::PIECE, 2 * transfer::PIECE + 3, 3 * transfer::PIECE] {
            let content: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            let file = folder.path().join("file");
            std::fs::write(&file, &content).expect("written");
            let path = Path::from(format!("blobs/{size}"));
            let digest = blake3::hash(&content).to_hex().to_string();
            assert_eq!(store.upload(&path, &file).await.expect("uploaded"), (size as u64, digest));
            let found: Vec<Bytes> = pieces(store.objects().clone(), path, size as u64)
                .map_ok(|(piece, _)| piece)
                .try_collect()
                .await
                .expect("read in pieces");
            assert!(found.concat() == content, "{size} bytes");
        }
    }
}

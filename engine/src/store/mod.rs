//! The store: one `object_store` behind a root, with the few verbs that commits need.

mod manifest;

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, local::LocalFileSystem, path::Path, prefix::PrefixStore,
};

pub use self::manifest::{Action, Blob, Column, Manifest, Part, PartitionRecord, TableManifest};
use crate::failure::Failure;

/// The format of what lies on a store. A store with a newer one is refused.
pub const FORMAT: u32 = 1;

/// A store: a local folder or a prefix of a bucket.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    location: String,
    local: Option<PathBuf>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.location)
    }
}

impl Store {
    /// Opens the store at a local path or at an `s3://bucket/prefix` URL, whose endpoint, region and credentials come from
    /// the usual AWS environment variables. A local folder is made if need be.
    ///
    /// # Errors
    /// When the place can't be used as a store: it is a file, can't be written, or was written in a newer format.
    pub async fn open(location: &str) -> Result<Self, Failure> {
        let store = match location.split_once("://") {
            None => Self::local(location)?,
            Some(("s3", _)) => Self::bucket(location)?,
            Some((scheme, _)) => {
                return Err(Failure::data(format!("a store can't be at a `{scheme}://` URL"))
                    .hint("use a local folder or `s3://bucket/prefix`"));
            }
        };
        store.check_format().await?;
        Ok(store)
    }

    fn local(location: &str) -> Result<Self, Failure> {
        let wrong = |error: std::io::Error| {
            let path = std::path::Path::new(location);
            if path.is_file() {
                Failure::data(format!("the store `{location}` is a file")).hint("name a folder; it is made if it isn't there")
            } else {
                Failure::external(format!("the store `{location}` can't be written: {error}"))
                    .hint("choose another place with `--store` or `store:`, or mend its permissions")
            }
        };
        std::fs::create_dir_all(location).map_err(wrong)?;
        let root = std::fs::canonicalize(location).map_err(wrong)?;
        tempfile::Builder::new().prefix(".writable").tempfile_in(&root).map_err(wrong)?;
        let objects = LocalFileSystem::new_with_prefix(&root)?;
        Ok(Self { objects: Arc::new(objects), location: location.to_owned(), local: Some(root) })
    }

    fn bucket(location: &str) -> Result<Self, Failure> {
        let url =
            url::Url::parse(location).map_err(|error| Failure::data(format!("the store `{location}` is no URL: {error}")))?;
        let objects = object_store::aws::AmazonS3Builder::from_env().with_url(location).build()?;
        let objects: Arc<dyn ObjectStore> = match url.path().trim_matches('/') {
            "" => Arc::new(objects),
            prefix => Arc::new(PrefixStore::new(objects, prefix)),
        };
        Ok(Self { objects, location: location.to_owned(), local: None })
    }

    async fn check_format(&self) -> Result<(), Failure> {
        let path = Path::from("format.json");
        let ours = serde_json::json!({ "format": FORMAT });
        let Some(found) = self.read(&path).await? else {
            self.create(&path, Bytes::from(ours.to_string())).await?;
            return Ok(());
        };
        let format = serde_json::from_slice::<serde_json::Value>(&found).ok().and_then(|found| found["format"].as_u64());
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

    /// Where the store is, as it was given.
    pub fn location(&self) -> &str {
        &self.location
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
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes an object under a name that nobody else uses, durably.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn write(&self, path: &Path, content: Bytes) -> Result<(), Failure> {
        self.objects.put(path, content.into()).await?;
        self.settle(path)
    }

    /// Writes an object unless there is one, durably. Gives `None` if the object is now ours, else what lies there: the
    /// content must hold something unique (an attempt's id), since a put whose answer was lost meets itself.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn create(&self, path: &Path, content: Bytes) -> Result<Option<Bytes>, Failure> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.objects.put_opts(path, content.clone().into(), options).await {
            Ok(_) => {
                self.settle(path)?;
                Ok(None)
            }
            Err(object_store::Error::AlreadyExists { .. }) => match self.read(path).await? {
                Some(found) if found == content => Ok(None),
                Some(found) => Ok(Some(found)),
                None => Err(Failure::external(format!("`{path}` was refused as already there, and isn't"))),
            },
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
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// `object_store` 0.13 doesn't fsync local files: a commit must not name what a power cut can take away.
    fn settle(&self, path: &Path) -> Result<(), Failure> {
        if let Some(file) = self.local_path(path) {
            std::fs::File::open(&file)?.sync_all()?;
            if let Some(folder) = file.parent() {
                std::fs::File::open(folder)?.sync_all()?;
            }
        }
        Ok(())
    }
}

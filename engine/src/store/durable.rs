//! A local folder whose objects are on the disk when they are put.

use std::{
    collections::HashSet,
    fmt,
    fs::File,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result, UploadPart, local::LocalFileSystem, path::Path,
};

/// The objects of a local folder. `object_store` 0.13 doesn't fsync: here a put has returned when a power cut can't take it back,
/// neither the file nor the folders up to the root, so that a commit names nothing that may be gone.
#[derive(Debug, Clone)]
pub(super) struct Durable {
    objects: Arc<LocalFileSystem>,
    folder: Arc<Folder>,
}

#[derive(Debug)]
struct Folder {
    root: PathBuf,
    /// Folders whose own entries are on the disk.
    durable: Mutex<HashSet<PathBuf>>,
}

impl Durable {
    /// The objects below `root`, which is there.
    ///
    /// # Errors
    /// When it can't be opened.
    pub(super) fn new(root: PathBuf) -> Result<Self> {
        let objects = Arc::new(LocalFileSystem::new_with_prefix(&root)?);
        Ok(Self { objects, folder: Arc::new(Folder { root, durable: Mutex::default() }) })
    }
}

impl Folder {
    fn settle(&self, location: &Path) -> Result<()> {
        self.sync(location).map_err(|error| Error::Generic { store: "LocalFileSystem", source: Box::new(error) })
    }

    fn sync(&self, location: &Path) -> std::io::Result<()> {
        let file = location.parts().fold(self.root.clone(), |folder, part| folder.join(part.as_ref()));
        File::open(&file)?.sync_all()?;
        let known = || self.durable.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut synced = Vec::new();
        for folder in file.ancestors().skip(1) {
            File::open(folder)?.sync_all()?;
            // Its entry stands in a folder that was synced after it was made.
            let is_durable = known().contains(folder);
            synced.push(folder.to_owned());
            if is_durable || folder == self.root {
                break;
            }
        }
        known().extend(synced);
        Ok(())
    }
}

impl fmt::Display for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Durable {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let put = self.objects.put_opts(location, payload, options).await?;
        self.folder.settle(location)?;
        Ok(put)
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.objects.put_multipart_opts(location, options).await?;
        Ok(Box::new(Upload { upload, folder: self.folder.clone(), location: location.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.objects.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.objects.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await?;
        self.folder.settle(to)
    }
}

#[derive(Debug)]
struct Upload {
    upload: Box<dyn MultipartUpload>,
    folder: Arc<Folder>,
    location: Path,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let put = self.upload.complete().await?;
        self.folder.settle(&self.location)?;
        Ok(put)
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}

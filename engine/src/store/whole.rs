//! Parts are read whole and compared with the digest in their name before a byte of them is given; of other objects, those that
//! end too soon can't be read.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    ops::Range,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};
use tokio::sync::OnceCell;

use crate::failure::Failure;

/// Bytes of parts that are kept, and how many: a scan asks for the footer and the columns of a part one after the other.
const KEPT_BYTES: usize = 64 << 20;
const KEPT_PARTS: usize = 256;

/// Hex digits of the digest in a part's name.
const DIGITS: usize = 32;

/// The name of a part that holds `content`, behind `prefix`.
pub(crate) fn part_name(prefix: &str, number: usize, content: &[u8]) -> String {
    format!("{prefix}{number:04}-{}.parquet", digest(content))
}

fn digest(content: &[u8]) -> String {
    blake3::hash(content).to_hex().as_str()[..DIGITS].to_owned()
}

/// The digest that a part's name promises.
fn promised(location: &Path) -> Option<&str> {
    let (_, digest) = location.as_ref().strip_suffix(".parquet")?.rsplit_once('-')?;
    (digest.len() == DIGITS && digest.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(digest)
}

/// Another store's objects; a part that doesn't hold what its name says can't be read, nor what ends too soon.
#[derive(Debug)]
pub(super) struct Whole {
    objects: Arc<dyn ObjectStore>,
    kept: Mutex<Kept>,
    damaged: Damaged,
}

/// Parts that were found damaged: not every reader hands on the error that it was given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Damaged(Arc<Mutex<BTreeSet<String>>>);

impl Damaged {
    fn add(&self, location: &Path) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(location.to_string());
    }

    /// The parts found so far.
    pub(crate) fn parts(&self) -> BTreeSet<String> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// Parts that were read lately.
#[derive(Debug, Default)]
struct Kept {
    parts: HashMap<Path, (u64, Arc<OnceCell<Part>>)>,
    clock: u64,
}

#[derive(Debug, Clone)]
struct Part {
    content: Bytes,
    meta: ObjectMeta,
}

impl Whole {
    pub(super) fn new(objects: Arc<dyn ObjectStore>, damaged: Damaged) -> Self {
        Self { objects, kept: Mutex::default(), damaged }
    }

    async fn part(&self, location: &Path, promised: &str) -> Result<Part> {
        let cell = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).cell(location);
        let fetch = || async {
            let found = counted(self.objects.get(location).await?, location);
            let meta = found.meta.clone();
            let content = found.bytes().await?;
            if digest(&content) == promised {
                return Ok(Part { content, meta });
            }
            self.damaged.add(location);
            let damaged = Failure::damaged(location.as_ref());
            Err(Error::Generic { store: "ingrain", source: Box::new(damaged) })
        };
        let part = cell.get_or_try_init(fetch).await?.clone();
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).shrink();
        Ok(part)
    }
}

/// What was found, whose content fails where it ends too soon. A record that was cut short would count as broken, and a segment
/// of the memo as empty: its answers would be paid for again.
fn counted(found: GetResult, location: &Path) -> GetResult {
    let GetResult { payload: GetResultPayload::Stream(given), meta, range, attributes } = found else {
        // Reading a file counts its bytes.
        return found;
    };
    let (expected, location) = (range.end - range.start, location.clone());
    let counted = futures::stream::try_unfold((given, 0), move |(mut given, count)| {
        let location = location.clone();
        async move {
            match given.try_next().await? {
                Some(piece) => {
                    let count = count + piece.len() as u64;
                    Ok(Some((piece, (given, count))))
                }
                None if count == expected => Ok(None),
                None => {
                    let what = format!("`{location}` ended after {count} of {expected} bytes");
                    let failure = Failure::external(what).hint("run again: what was done stays");
                    Err(Error::Generic { store: "ingrain", source: Box::new(failure) })
                }
            }
        }
    });
    GetResult { payload: GetResultPayload::Stream(counted.boxed()), meta, range, attributes }
}

impl Kept {
    fn cell(&mut self, location: &Path) -> Arc<OnceCell<Part>> {
        self.clock += 1;
        let (used, cell) = self.parts.entry(location.clone()).or_default();
        *used = self.clock;
        cell.clone()
    }

    /// Forgets the parts that weren't used for longest until the rest is within the limits.
    fn shrink(&mut self) {
        let size = |cell: &OnceCell<Part>| cell.get().map_or(0, |part| part.content.len());
        let mut bytes: usize = self.parts.values().map(|(_, cell)| size(cell)).sum();
        while bytes > KEPT_BYTES || self.parts.len() > KEPT_PARTS {
            let Some(oldest) = self.parts.iter().min_by_key(|(_, (used, _))| *used).map(|(path, _)| path.clone()) else { return };
            bytes -= self.parts.remove(&oldest).map_or(0, |(_, cell)| size(&cell));
        }
    }
}

impl fmt::Display for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Whole {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.objects.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let Some(promised) = promised(location).filter(|_| !options.head) else {
            return Ok(counted(self.objects.get_opts(location, options).await?, location));
        };
        let Part { content, meta } = self.part(location, promised).await?;
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            Some(range) => range
                .as_range(content.len() as u64)
                .map_err(|error| Error::Generic { store: "ingrain", source: Box::new(error) })?,
            None => 0..content.len() as u64,
        };
        let given = content.slice(range.start as usize..range.end as usize);
        let payload = GetResultPayload::Stream(futures::stream::once(std::future::ready(Ok(given))).boxed());
        Ok(GetResult { payload, meta, range, attributes: Default::default() })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if promised(location).is_none() {
            return self.objects.get_ranges(location, ranges).await;
        }
        let mut given = Vec::with_capacity(ranges.len());
        for range in ranges {
            given.push(self.get_range(location, range.clone()).await?);
        }
        Ok(given)
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
        self.objects.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn a_part_is_given_only_if_it_holds_what_its_name_says() {
        let inner = Arc::new(InMemory::new());
        let store = Whole::new(inner.clone(), Damaged::default());
        let name = Path::from(part_name("parts/s/a-default-", 7, b"whole part"));
        assert!(name.as_ref().starts_with("parts/s/a-default-0007-"));
        inner.put(&name, Bytes::from_static(b"whole part").into()).await.expect("put");
        assert_eq!(store.get_range(&name, 6..10).await.expect("read"), "part");
        assert_eq!(store.get_ranges(&name, &[0..5, 6..10]).await.expect("read"), ["whole", "part"]);
        assert_eq!(store.head(&name).await.expect("there").size, 10);
        let damaged = Whole::new(inner.clone(), Damaged::default());
        inner.put(&name, Bytes::from_static(b"whole pert").into()).await.expect("put");
        let failure = Failure::from(damaged.get_range(&name, 0..5).await.expect_err("not whole"));
        assert_eq!(failure.damaged.as_deref(), Some(name.as_ref()));
        let other = Path::from("parts/s/record.json");
        inner.put(&other, Bytes::from_static(b"any").into()).await.expect("put");
        assert_eq!(damaged.get_range(&other, 0..3).await.expect("read"), "any");
    }

    #[tokio::test]
    async fn what_ends_too_soon_is_an_error_and_no_damage() {
        #[derive(Debug)]
        struct Short(InMemory);
        impl fmt::Display for Short {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("short")
            }
        }
        #[async_trait]
        impl ObjectStore for Short {
            async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
                self.0.put_opts(location, payload, options).await
            }
            async fn put_multipart_opts(
                &self,
                location: &Path,
                options: PutMultipartOptions,
            ) -> Result<Box<dyn MultipartUpload>> {
                self.0.put_multipart_opts(location, options).await
            }
            async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
                let found = self.0.get_opts(location, options).await?;
                let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
                let content = found.bytes().await?;
                let cut = content.slice(..content.len() - 1);
                let payload = GetResultPayload::Stream(futures::stream::once(std::future::ready(Ok(cut))).boxed());
                Ok(GetResult { payload, meta, range, attributes })
            }
            fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
                self.0.delete_stream(locations)
            }
            fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
                self.0.list(prefix)
            }
            async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
                self.0.list_with_delimiter(prefix).await
            }
            async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
                self.0.copy_opts(from, to, options).await
            }
        }
        let (inner, damaged) = (Arc::new(Short(InMemory::new())), Damaged::default());
        let store = Whole::new(inner.clone(), damaged.clone());
        for name in ["memo/1.parquet".to_owned(), part_name("parts/s/a-default-", 0, b"content")] {
            let name = Path::from(name);
            inner.put(&name, Bytes::from_static(b"content").into()).await.expect("put");
            let read = async { store.get(&name).await?.bytes().await };
            let failure = Failure::from(read.await.expect_err("cut short"));
            assert_eq!(failure.message, format!("`{name}` ended after 6 of 7 bytes"));
            assert!(failure.damaged.is_none() && damaged.parts().is_empty());
        }
    }

    #[tokio::test]
    async fn few_parts_are_kept() {
        let inner = Arc::new(InMemory::new());
        let store = Whole::new(inner.clone(), Damaged::default());
        for number in 0..KEPT_PARTS + 10 {
            let name = Path::from(part_name("p-", number, b"x"));
            inner.put(&name, Bytes::from_static(b"x").into()).await.expect("put");
            store.get(&name).await.expect("read");
        }
        assert_eq!(store.kept.lock().expect("not poisoned").parts.len(), KEPT_PARTS);
    }
}

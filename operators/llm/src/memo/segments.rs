//! The segments under a prefix of a store: which there are, and how their answers are read.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode};
use parquet::arrow::async_reader::MetadataFetch;
use parquet::errors::ParquetError;
use tokio::sync::{OnceCell, Semaphore};

use super::MemoError;
use super::cache::Cache;
use super::index::{Entry, Place};
use super::key::Key;
use super::keys::KeyFiles;
use super::log::Entries;
use super::segment::{self, Layout, Row, Whole, undecoded};

/// Segments whose keys are fetched at once.
const FETCHES: usize = 8;
/// MiB of objects that are read whole at once: each takes its size on the store and in memory meanwhile.
const LOADS: u32 = 32;
/// What whole segments take in memory, at most.
const CACHE_BYTES: usize = 128 << 20;
/// The end of a file, where its layout stands, is fetched with the first request. A segment that isn't larger is read whole.
const TAIL: u64 = 128 << 10;
/// A lookup reads two pages, which hold as much as about so many rows. When lookups have read as much as the whole segment has,
/// it is read whole: the cost is at most twice the least there could have been. Each further time it takes twice as many.
const ROWS_A_LOOKUP: u32 = 64;

/// Why a segment can't be read.
pub(super) enum Trouble {
    /// It isn't there any more.
    Gone,
    /// It doesn't hold what was written.
    Damaged(String),
    /// The store fails.
    Store(MemoError),
}

impl Trouble {
    fn of(path: &Path, error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { .. } => Self::Gone,
            error => Self::Store(MemoError::store(path, &error)),
        }
    }

    /// What reading Parquet ends in: the store's errors come through it.
    fn of_parquet(path: &Path, error: ParquetError) -> Self {
        match error {
            ParquetError::External(error) => match error.downcast::<object_store::Error>() {
                Ok(error) => Self::of(path, *error),
                Err(error) => Self::Damaged(error.to_string()),
            },
            error => Self::Damaged(error.to_string()),
        }
    }
}

/// A segment on the store.
pub(super) struct Stored {
    pub(super) number: u32,
    pub(super) name: String,
    /// Of the object, in bytes.
    pub(super) size: u64,
    path: Path,
    layout: OnceCell<Arc<Layout>>,
    /// How many answers were read one by one since it was last read whole.
    lookups: AtomicU32,
    /// How often it was read whole.
    loads: AtomicU32,
    /// Held while it is read whole.
    loading: tokio::sync::Mutex<()>,
    /// Whether it can't be read whole, though its rows may be.
    is_broken: AtomicBool,
}

impl Stored {
    fn new(number: u32, path: Path, size: u64) -> Self {
        Self {
            number,
            name: path.filename().unwrap_or_default().to_owned(),
            size,
            path,
            layout: OnceCell::new(),
            lookups: AtomicU32::new(0),
            loads: AtomicU32::new(0),
            loading: tokio::sync::Mutex::new(()),
            is_broken: AtomicBool::new(false),
        }
    }

    fn entries(&self, keys: &[u8]) -> Vec<Entry> {
        let keys = keys.chunks_exact(32).filter_map(|key| <[u8; 32]>::try_from(key).ok()).map(Key::from_bytes);
        keys.zip(0..).map(|(key, row)| Entry::new(&key, self.number, row)).collect()
    }
}

/// What came and what went.
pub(super) struct Change {
    pub(super) added: Vec<Entry>,
    pub(super) gone: HashSet<u32>,
}

/// The segments. [`Self::renew`], [`Self::put`] and [`Self::forget`] must take turns.
pub(super) struct Segments {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    keys: KeyFiles,
    table: Mutex<Table>,
    cache: Mutex<Cache>,
    loads: Semaphore,
}

#[derive(Default)]
struct Table {
    /// By number; `None` is gone, or left out because it is damaged.
    all: Vec<Option<Arc<Stored>>>,
    /// Those that lie on the store, left out or not.
    numbers: HashMap<String, u32>,
}

impl Segments {
    pub(super) fn new(store: Arc<dyn ObjectStore>, prefix: Path, keys: KeyFiles) -> Self {
        let (table, cache) = (Mutex::default(), Mutex::new(Cache::new(CACHE_BYTES)));
        Self { store, prefix, keys, table, cache, loads: Semaphore::new(LOADS as usize) }
    }

    pub(super) fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// Lists what lies on the store, and reads the keys of what is new. A segment that can't be decoded is left out, with a
    /// warning. Segments that are gone are still known until [`Self::forget`].
    pub(super) async fn renew(&self) -> Result<Change, MemoError> {
        let listed = self.list().await?;
        let names: HashSet<&str> = listed.iter().filter_map(|meta| meta.location.filename()).collect();
        let (new, gone) = {
            let table = self.table();
            let new: Vec<&ObjectMeta> =
                listed.iter().filter(|m| m.location.filename().is_some_and(|name| !table.numbers.contains_key(name))).collect();
            let first = u32::try_from(table.all.len()).unwrap_or(u32::MAX);
            let new: Vec<Arc<Stored>> = new
                .into_iter()
                .zip(first..)
                .map(|(m, number)| Arc::new(Stored::new(number, m.location.clone(), m.size)))
                .collect();
            let gone = table.numbers.iter().filter(|(name, _)| !names.contains(name.as_str())).map(|(_, number)| *number);
            (new, gone.collect())
        };
        let (mut added, mut left_out) = (Vec::new(), HashSet::new());
        let mut indexed = stream::iter(new.clone().into_iter().map(|stored| self.index(stored))).buffer_unordered(FETCHES);
        while let Some((stored, entries)) = indexed.next().await {
            match entries {
                Ok(mut entries) => added.append(&mut entries),
                Err(Trouble::Store(error)) => return Err(error),
                Err(Trouble::Gone) => drop(left_out.insert(stored.number)),
                Err(Trouble::Damaged(error)) => {
                    tracing::warn!(segment = %stored.path, %error, "a segment of answers is damaged and left out");
                    left_out.insert(stored.number);
                }
            }
        }
        let mut table = self.table();
        for stored in new {
            table.numbers.insert(stored.name.clone(), stored.number);
            let number = stored.number;
            table.all.push(Some(stored).filter(|_| !left_out.contains(&number)));
        }
        drop(table);
        self.keys.tidy(&names);
        Ok(Change { added, gone })
    }

    async fn list(&self) -> Result<Vec<ObjectMeta>, MemoError> {
        let listing =
            self.store.list(Some(&self.prefix)).try_filter(|m| std::future::ready(m.location.as_ref().ends_with(".parquet")));
        listing.try_collect().await.map_err(|error| MemoError::store(&self.prefix, &error))
    }

    async fn index(&self, stored: Arc<Stored>) -> (Arc<Stored>, Result<Vec<Entry>, Trouble>) {
        let (files, known) = (self.keys.clone(), Arc::clone(&stored));
        let entries = match blocking(move || files.read(&known.name).map(|keys| known.entries(&keys)).ok_or("no file")).await {
            Ok(entries) => Ok(entries),
            Err(_) => self.fetch_keys(&stored).await,
        };
        (stored, entries)
    }

    async fn fetch_keys(&self, stored: &Arc<Stored>) -> Result<Vec<Entry>, Trouble> {
        let mut source = Source::new(&*self.store, stored);
        let layout = self.read_layout(stored, &mut source).await?;
        let chunks = source.chunks(layout.key_ranges()).await?;
        let (files, stored) = (self.keys.clone(), Arc::clone(stored));
        let keys = move || {
            let keys = layout.keys(chunks)?;
            files.write(&stored.name, &keys);
            Ok::<_, ParquetError>(stored.entries(&keys))
        };
        blocking(keys).await.map_err(Trouble::Damaged)
    }

    async fn read_layout(&self, stored: &Stored, source: &mut Source<'_>) -> Result<Arc<Layout>, Trouble> {
        let read = || async move {
            let metadata = Layout::reader().with_prefetch_hint(Some(TAIL as usize)).load_and_finish(source, stored.size);
            // The decoder panics on types that it doesn't know.
            let metadata = AssertUnwindSafe(metadata).catch_unwind().await.unwrap_or_else(|_| Err(undecoded()));
            metadata.and_then(Layout::new).map(Arc::new).map_err(|error| Trouble::of_parquet(&stored.path, error))
        };
        stored.layout.get_or_try_init(read).await.map(Arc::clone)
    }

    async fn layout(&self, stored: &Stored) -> Result<Arc<Layout>, Trouble> {
        match stored.layout.get() {
            Some(layout) => Ok(Arc::clone(layout)),
            None => self.read_layout(stored, &mut Source::new(&*self.store, stored)).await,
        }
    }

    /// What lies at a place under `key`. [`Trouble::Damaged`] means that nothing of the segment can be used.
    pub(super) async fn row(&self, place: Place, key: &Key) -> Result<Row, Trouble> {
        let stored = self.stored(place.segment).ok_or(Trouble::Gone)?;
        if let Some(whole) = self.cache().get(stored.number) {
            return Ok(whole.row(place.row, key));
        }
        if !stored.is_broken.load(Ordering::Relaxed) && self.is_worth_reading(&stored).await? {
            match self.whole(&stored).await {
                Ok(whole) => return Ok(whole.row(place.row, key)),
                Err(Trouble::Damaged(error)) => {
                    if !self.layout(&stored).await?.is_fine() {
                        return Err(Trouble::Damaged(error));
                    }
                    tracing::warn!(segment = %stored.path, %error, "some answers of a segment are damaged");
                    stored.is_broken.store(true, Ordering::Relaxed);
                }
                Err(trouble) => return Err(trouble),
            }
        }
        self.one(&stored, place.row, key).await
    }

    /// Counts a lookup. Whether a segment is to be read whole for it.
    async fn is_worth_reading(&self, stored: &Stored) -> Result<bool, Trouble> {
        if stored.size <= TAIL {
            return Ok(true);
        }
        let layout = self.layout(stored).await?;
        // Who had to let it go again has less use for the whole of it each time.
        let patience = (layout.rows() / ROWS_A_LOOKUP).saturating_mul(1 << stored.loads.load(Ordering::Relaxed).min(16));
        Ok(!layout.is_fine() || stored.lookups.fetch_add(1, Ordering::Relaxed) >= patience)
    }

    async fn one(&self, stored: &Stored, row: u32, key: &Key) -> Result<Row, Trouble> {
        let layout = self.layout(stored).await?;
        let Some(pages) = layout.pages(row).map(Arc::new) else { return Ok(Row::Damaged) };
        let Some([answer, digest]) = self.pages(stored, pages.ranges()).await? else { return Ok(Row::Damaged) };
        let (decoder, at) = (Arc::clone(&layout), Arc::clone(&pages));
        let Ok((answer, digest)) = blocking(move || decoder.row(&at, answer, digest)).await else { return Ok(Row::Damaged) };
        if let Row::Answer(answer) = Row::check(key, &answer, digest, || Err(ParquetError::General(String::new()))) {
            return Ok(Row::Answer(answer));
        }
        let Some([bytes]) = self.pages(stored, [pages.key_range()]).await? else { return Ok(Row::Damaged) };
        let Ok(written) = blocking(move || layout.key(&pages, bytes)).await else { return Ok(Row::Damaged) };
        Ok(Row::check(key, &answer, digest, || Ok(written)))
    }

    /// What lies at some ranges; `None` if they aren't all inside the file.
    async fn pages<const N: usize>(&self, stored: &Stored, ranges: [Range<u64>; N]) -> Result<Option<[Bytes; N]>, Trouble> {
        if ranges.iter().any(|range| range.is_empty() || range.end > stored.size) {
            return Ok(None);
        }
        let pages = self.store.get_ranges(&stored.path, &ranges).await.map_err(|error| Trouble::of(&stored.path, error))?;
        Ok(pages.try_into().ok())
    }

    /// The whole segment, from the cache or the store.
    async fn whole(&self, stored: &Arc<Stored>) -> Result<Arc<Whole>, Trouble> {
        let _alone = stored.loading.lock().await;
        if let Some(whole) = self.cache().get(stored.number) {
            return Ok(whole);
        }
        let mebibytes = u32::try_from(stored.size >> 20).unwrap_or(LOADS).saturating_add(1).min(LOADS);
        let _one_of_few = self.loads.acquire_many(mebibytes).await;
        let bytes = self.get(stored).await?;
        let known = Arc::clone(stored);
        let whole = Arc::new(blocking(move || Whole::decode(bytes, &known.name)).await.map_err(Trouble::Damaged)?);
        stored.lookups.store(0, Ordering::Relaxed);
        stored.loads.fetch_add(1, Ordering::Relaxed);
        self.cache().put(stored.number, Arc::clone(&whole));
        Ok(whole)
    }

    async fn get(&self, stored: &Stored) -> Result<Bytes, Trouble> {
        let got = self.store.get(&stored.path).await.map_err(|error| Trouble::of(&stored.path, error))?;
        got.bytes().await.map_err(|error| Trouble::of(&stored.path, error))
    }

    /// Reads a segment past the cache, if every byte of it is as it was written.
    pub(super) async fn unchanged(&self, stored: &Arc<Stored>) -> Result<Whole, Trouble> {
        let bytes = self.get(stored).await?;
        let known = Arc::clone(stored);
        blocking(move || Whole::decode_unchanged(bytes, &known.name)).await.map_err(Trouble::Damaged)
    }

    /// Bytes of a segment's answers before compression.
    pub(super) async fn answer_bytes(&self, stored: &Stored) -> Result<u64, Trouble> {
        Ok(self.layout(stored).await?.answer_bytes())
    }

    /// Writes entries, which must be sorted by key and unique, as a segment. Gives its name and where its answers are.
    pub(super) async fn put(&self, entries: Entries) -> Result<(String, Vec<Entry>), MemoError> {
        let failed = |error: String| MemoError::store(&self.prefix, &error);
        let encode = move || segment::encode(&entries).map(|segment| (segment, entries));
        let (segment, entries) = blocking(encode).await.map_err(failed)?;
        let path = self.prefix.clone().join(segment.name.as_str());
        let size = segment.bytes.len() as u64;
        match self.store.put_opts(&path, segment.bytes.clone().into(), PutMode::Create.into()).await {
            Ok(_) => {}
            // Another upload of the same answers is as good, unless the object is damaged.
            Err(object_store::Error::AlreadyExists { .. }) => {
                let there = self.get(&Stored::new(0, path.clone(), size)).await;
                if !there.is_ok_and(|there| there == segment.bytes) {
                    self.store.put(&path, segment.bytes.into()).await.map_err(|error| MemoError::store(&path, &error))?;
                }
            }
            Err(error) => return Err(MemoError::store(&path, &error)),
        }
        let stored = {
            let mut table = self.table();
            let known = table.numbers.get(&segment.name).and_then(|number| table.all.get(*number as usize)).cloned().flatten();
            if known.is_some() {
                return Ok((segment.name, Vec::new()));
            }
            let number = u32::try_from(table.all.len()).unwrap_or(u32::MAX);
            let stored = Arc::new(Stored::new(number, path, size));
            table.all.push(Some(Arc::clone(&stored)));
            table.numbers.insert(segment.name.clone(), number);
            stored
        };
        let files = self.keys.clone();
        let keep = move || -> Result<_, String> {
            let keys: Vec<u8> = entries.iter().flat_map(|(key, _)| *key.as_bytes()).collect();
            files.write(&stored.name, &keys);
            Ok(stored.entries(&keys))
        };
        Ok((segment.name, blocking(keep).await.map_err(failed)?))
    }

    /// Deletes a segment from the store.
    pub(super) async fn delete(&self, stored: &Stored) -> Result<(), MemoError> {
        match self.store.delete(&stored.path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(MemoError::store(&stored.path, &error)),
        }
    }

    /// Forgets segments, which the index must have forgotten before.
    pub(super) fn forget(&self, numbers: &HashSet<u32>) {
        if numbers.is_empty() {
            return;
        }
        self.table().numbers.retain(|_, number| !numbers.contains(number));
        numbers.iter().for_each(|number| self.leave_out(*number));
    }

    /// Uses a segment no more, though it lies on the store.
    pub(super) fn leave_out(&self, number: u32) {
        if let Some(stored) = self.table().all.get_mut(number as usize) {
            *stored = None;
        }
        self.cache().remove(number);
    }

    /// The segment with this number, unless it is gone or left out.
    pub(super) fn stored(&self, number: u32) -> Option<Arc<Stored>> {
        self.table().all.get(number as usize).cloned().flatten()
    }

    /// How many lie on the store and aren't used, because they are damaged.
    pub(super) fn unused(&self) -> usize {
        let table = self.table();
        table.numbers.values().filter(|number| table.all.get(**number as usize).is_none_or(Option::is_none)).count()
    }

    /// All that are used.
    pub(super) fn all(&self) -> Vec<Arc<Stored>> {
        self.table().all.iter().flatten().cloned().collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes of an object, of which the piece fetched last is kept: of a small segment it is everything.
struct Source<'a> {
    store: &'a dyn ObjectStore,
    stored: &'a Stored,
    last: (u64, Bytes),
}

impl<'a> Source<'a> {
    fn new(store: &'a dyn ObjectStore, stored: &'a Stored) -> Self {
        Self { store, stored, last: (0, Bytes::new()) }
    }

    fn known(&self, range: &Range<u64>) -> Option<Bytes> {
        let (start, bytes) = &self.last;
        let (from, to) = (range.start.checked_sub(*start)?, range.end.checked_sub(*start)?);
        (from <= to && to <= bytes.len() as u64).then(|| bytes.slice(from as usize..to as usize))
    }

    async fn chunks(&self, ranges: Vec<Range<u64>>) -> Result<Vec<Bytes>, Trouble> {
        if let Some(known) = ranges.iter().map(|range| self.known(range)).collect() {
            return Ok(known);
        }
        if ranges.iter().any(|range| range.end > self.stored.size) {
            return Err(Trouble::Damaged("its keys aren't in it".to_owned()));
        }
        let path = &self.stored.path;
        self.store.get_ranges(path, &ranges).await.map_err(|error| Trouble::of(path, error))
    }
}

impl MetadataFetch for &mut Source<'_> {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        async move {
            if let Some(known) = self.known(&range) {
                return Ok(known);
            }
            if range.is_empty() || range.end > self.stored.size {
                return Err(ParquetError::EOF("the file is shorter".to_owned()));
            }
            let start = range.start;
            let bytes = self.store.get_range(&self.stored.path, range).await;
            let bytes = bytes.map_err(|error| ParquetError::External(Box::new(error)))?;
            self.last = (start, bytes.clone());
            Ok(bytes)
        }
        .boxed()
    }
}

/// Does what takes a while on a thread of its own. A panic is an error: whatever stands in a file, it doesn't end the run.
async fn blocking<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

//! Segments: what the memo keeps on the store. A Parquet file, sorted by key and named by its content, with the columns `key`
//! (32 bytes), `answer` (the answer as JSON) and `digest` (the first 8 bytes of blake3 over key and answer, as a
//! little-endian integer).
//!
//! Pages of answers are small, and where they begin stands in the file's offset index, so that one answer costs the page it lies
//! in. Parquet's own checksums aren't checked by all that read it; the digest is: no other answer can take the place of
//! one that was recorded, whatever happened to the file. Segments without digests are read whole, and checked by name.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeBinaryArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, Type, ZstdLevel};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArrayType, DataType as ParquetType, FixedLenByteArrayType, Int64Type as ParquetInt64};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::ColumnPath;

use super::key::{Key, hex};

/// A page of answers is cut when it has so many bytes before compression: about what a disk and a request read at the price of
/// one byte, and enough for the compression to find repetitions.
const ANSWER_PAGE: usize = 16 << 10;
/// The same for digests, of which a lookup needs 8 bytes.
const DIGEST_PAGE: usize = 4 << 10;
/// The same for keys, which are read all at once.
const KEY_PAGE: usize = 64 << 10;
/// Rows between two looks at whether a page is full: long answers take a page each.
const CUT_EVERY: usize = 4;
/// Rows that are decoded at once.
const BATCH: usize = 8192;

const KEY: &str = "key";
const ANSWER: &str = "answer";
const DIGEST: &str = "digest";

type Result<T> = std::result::Result<T, ParquetError>;

/// A segment as bytes, and the name of its object.
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) bytes: Bytes,
}

/// Encodes entries, which must be sorted by key and unique.
pub(super) fn encode(entries: &[(Key, Arc<str>)]) -> Result<Segment> {
    debug_assert!(entries.is_sorted_by(|a, b| a.0 < b.0));
    let schema = Arc::new(Schema::new(vec![
        Field::new(KEY, DataType::FixedSizeBinary(32), false),
        Field::new(ANSWER, DataType::Utf8, false),
        Field::new(DIGEST, DataType::Int64, false),
    ]));
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, Arc::clone(&schema), Some(properties()?))?;
    // Arrow's text offsets are 32 bits wide: batches of 4,096 answers stay far below 2 GiB.
    for entries in entries.chunks(4096) {
        let keys = FixedSizeBinaryArray::try_from_iter(entries.iter().map(|(key, _)| key.as_bytes()))?;
        let answers = StringArray::from_iter_values(entries.iter().map(|(_, answer)| answer.as_ref()));
        let digests = Int64Array::from_iter_values(entries.iter().map(|(key, answer)| digest(key, answer)));
        let columns: Vec<ArrayRef> = vec![Arc::new(keys), Arc::new(answers), Arc::new(digests)];
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns)?)?;
    }
    writer.close()?;
    Ok(Segment { name: name(&bytes), bytes: bytes.into() })
}

fn properties() -> Result<WriterProperties> {
    let [key, answer, digest] = [KEY, ANSWER, DIGEST].map(ColumnPath::from);
    Ok(WriterProperties::builder()
        .set_created_by("ingrain".to_owned())
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_write_batch_size(CUT_EVERY)
        .set_data_page_row_count_limit(usize::MAX)
        .set_column_data_page_size_limit(key, KEY_PAGE)
        .set_column_data_page_size_limit(answer.clone(), ANSWER_PAGE)
        .set_column_data_page_size_limit(digest, DIGEST_PAGE)
        .set_compression(Compression::UNCOMPRESSED)
        .set_column_compression(answer, Compression::ZSTD(ZstdLevel::try_new(3)?))
        .build())
}

/// The name of a segment: by its content.
pub(super) fn name(bytes: &[u8]) -> String {
    format!("{}.parquet", hex(&blake3::hash(bytes).as_bytes()[..16]))
}

fn digest(key: &Key, answer: &str) -> i64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(key.as_bytes());
    hasher.update(answer.as_bytes());
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    i64::from_le_bytes([a, b, c, d, e, f, g, h])
}

fn wrong(what: &str) -> ParquetError {
    ParquetError::General(format!("not a memo segment: {what}"))
}

/// Decodes something of a file that anybody may have written: the decoder panics on some.
pub(super) fn decoding<T>(decode: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| Err(undecoded()))
}

/// What is said of a file on which the decoder panicked.
pub(super) fn undecoded() -> ParquetError {
    wrong("its decoder gave up")
}

/// What lies at a row.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Row {
    /// The answer under the key that was asked for.
    Answer(Arc<str>),
    /// An answer under another key.
    Another,
    /// Not what was written.
    Damaged,
}

impl Row {
    /// Looks whether `answer` was written under `key`; `written` is the key that stands beside it, which is asked for where
    /// the digest doesn't fit.
    pub(super) fn check(key: &Key, answer: &str, expected: i64, written: impl FnOnce() -> Result<Key>) -> Self {
        if digest(key, answer) == expected {
            return Self::Answer(answer.into());
        }
        match written() {
            Ok(written) if written != *key && digest(&written, answer) == expected => Self::Another,
            Ok(_) | Err(_) => Self::Damaged,
        }
    }
}

/// Where things lie in a segment, from the end of its file.
pub(super) struct Layout {
    metadata: ParquetMetaData,
    rows: u32,
    key: usize,
    answer: usize,
    digest: Option<usize>,
}

/// The pages that hold a row.
pub(super) struct Pages {
    group: usize,
    key: Page,
    answer: Page,
    digest: Page,
}

struct Page {
    range: Range<u64>,
    /// Which of its rows, and how many it has.
    row: usize,
    rows: usize,
}

impl Pages {
    /// Where they are: answer and digest.
    pub(super) fn ranges(&self) -> [Range<u64>; 2] {
        [self.answer.range.clone(), self.digest.range.clone()]
    }

    /// Where the page of the key is.
    pub(super) fn key_range(&self) -> Range<u64> {
        self.key.range.clone()
    }
}

impl Layout {
    /// How to read it: from the last bytes of a file.
    pub(super) fn reader() -> ParquetMetaDataReader {
        ParquetMetaDataReader::new()
            .with_column_index_policy(PageIndexPolicy::Skip)
            .with_offset_index_policy(PageIndexPolicy::Optional)
    }

    /// Checks that it is a segment's.
    pub(super) fn new(metadata: ParquetMetaData) -> Result<Self> {
        let schema = metadata.file_metadata().schema_descr();
        let column = |name: &str, physical: Type| {
            schema.columns().iter().position(|column| {
                let flat = column.max_def_level() == 0 && column.max_rep_level() == 0;
                column.path().parts() == [name] && column.physical_type() == physical && flat
            })
        };
        let key = column(KEY, Type::FIXED_LEN_BYTE_ARRAY).filter(|n| schema.column(*n).type_length() == 32);
        let key = key.ok_or_else(|| wrong("no column `key` of 32 bytes"))?;
        let answer = column(ANSWER, Type::BYTE_ARRAY).ok_or_else(|| wrong("no column `answer` of text"))?;
        let digest = column(DIGEST, Type::INT64).filter(|_| metadata.offset_index().is_some());
        let mut rows = 0u32;
        for group in metadata.row_groups() {
            let more = u32::try_from(group.num_rows()).ok();
            rows = more.and_then(|more| rows.checked_add(more)).ok_or_else(|| wrong("its number of rows"))?;
            let start = |chunk: &ColumnChunkMetaData| chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
            if group.columns().iter().any(|c| start(c) < 0 || c.data_page_offset() < start(c) || c.compressed_size() < 0) {
                return Err(wrong("its offsets"));
            }
        }
        Ok(Self { metadata, rows, key, answer, digest })
    }

    /// How many answers there are.
    pub(super) fn rows(&self) -> u32 {
        self.rows
    }

    /// Whether its rows can be read one by one.
    pub(super) fn is_fine(&self) -> bool {
        self.digest.is_some()
    }

    /// Bytes of the answers before compression.
    pub(super) fn answer_bytes(&self) -> u64 {
        let groups = self.metadata.row_groups().iter();
        groups.map(|group| u64::try_from(group.column(self.answer).uncompressed_size()).unwrap_or(0)).sum()
    }

    /// Where the keys are.
    pub(super) fn key_ranges(&self) -> Vec<Range<u64>> {
        let groups = self.metadata.row_groups().iter();
        groups.map(|group| group.column(self.key).byte_range()).map(|(start, length)| start..start + length).collect()
    }

    /// The keys, one after the other, from what is at [`Self::key_ranges`].
    pub(super) fn keys(&self, chunks: Vec<Bytes>) -> Result<Vec<u8>> {
        decoding(|| self.decoded_keys(chunks))
    }

    fn decoded_keys(&self, chunks: Vec<Bytes>) -> Result<Vec<u8>> {
        // No capacity: how many there are is only what the file says.
        let mut keys = Vec::new();
        let mut batch = Vec::new();
        for (group, chunk) in self.metadata.row_groups().iter().zip(chunks) {
            let column = group.column(self.key);
            let rows = usize::try_from(group.num_rows()).unwrap_or(0);
            let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
            let here = column.clone().into_builder();
            let here = here.set_dictionary_page_offset(column.dictionary_page_offset().map(|_| 0));
            let here = here.set_data_page_offset(column.data_page_offset() - start).build()?;
            let pages = SerializedPageReader::new(Arc::new(chunk), &here, rows, None)?;
            let mut reader = ColumnReaderImpl::<FixedLenByteArrayType>::new(column.column_descr_ptr(), Box::new(pages));
            while reader.read_records(BATCH, None, None, &mut batch)?.0 > 0 {
                batch.drain(..).for_each(|key| keys.extend_from_slice(key.data()));
            }
        }
        match keys.len() == 32 * self.rows as usize {
            true => Ok(keys),
            false => Err(wrong("its number of keys")),
        }
    }

    /// The pages of a row, in a segment that [`Self::is_fine`].
    pub(super) fn pages(&self, row: u32) -> Option<Pages> {
        let mut row = i64::from(row);
        let (group, rows) = self.metadata.row_groups().iter().enumerate().find_map(|(n, group)| {
            let inside = row < group.num_rows();
            if !inside {
                row -= group.num_rows();
            }
            inside.then_some((n, group.num_rows()))
        })?;
        let page = |column: usize| {
            let pages = self.metadata.offset_index()?.get(group)?.get(column)?.page_locations();
            let n = pages.partition_point(|page| page.first_row_index <= row).checked_sub(1)?;
            let (first, end) = (pages[n].first_row_index, pages.get(n + 1).map_or(rows, |next| next.first_row_index));
            let (start, length) = (u64::try_from(pages[n].offset).ok()?, u64::try_from(pages[n].compressed_page_size).ok()?);
            let (row, rows) = (usize::try_from(row - first).ok()?, usize::try_from(end - first).ok()?);
            Some(Page { range: start..start.checked_add(length)?, row, rows })
        };
        Some(Pages { group, key: page(self.key)?, answer: page(self.answer)?, digest: page(self.digest?)? })
    }

    /// The answer and the digest in the pages at [`Pages::ranges`].
    pub(super) fn row(&self, pages: &Pages, answer: Bytes, digest: Bytes) -> Result<(String, i64)> {
        let group = self.metadata.row_group(pages.group);
        let text = value::<ByteArrayType>(group, self.answer, &pages.answer, answer)?;
        let text = std::str::from_utf8(text.data()).map_err(|_| wrong("an answer that isn't text"))?.to_owned();
        let column = self.digest.ok_or_else(|| wrong("no column `digest`"))?;
        Ok((text, value::<ParquetInt64>(group, column, &pages.digest, digest)?))
    }

    /// The key in the page at [`Pages::key_range`].
    pub(super) fn key(&self, pages: &Pages, bytes: Bytes) -> Result<Key> {
        let key = value::<FixedLenByteArrayType>(self.metadata.row_group(pages.group), self.key, &pages.key, bytes)?;
        Ok(Key::from_bytes(key.data().try_into().map_err(|_| wrong("keys are 32 bytes wide"))?))
    }
}

/// One value of a page, which is read as if it were the whole column.
fn value<T: ParquetType>(group: &RowGroupMetaData, column: usize, page: &Page, bytes: Bytes) -> Result<T::T> {
    let chunk = group.column(column);
    let here = chunk.clone().into_builder().set_dictionary_page_offset(None).set_data_page_offset(0);
    let size = i64::try_from(bytes.len()).map_err(|_| wrong("its offsets"))?;
    let here = here.set_total_compressed_size(size).build()?;
    let pages = SerializedPageReader::new(Arc::new(bytes), &here, page.rows, None)?;
    let mut reader = ColumnReaderImpl::<T>::new(chunk.column_descr_ptr(), Box::new(pages));
    let mut values = Vec::with_capacity(1);
    decoding(|| {
        reader.skip_records(page.row)?;
        reader.read_records(1, None, None, &mut values)
    })?;
    values.pop().ok_or_else(|| wrong("a page is too short"))
}

/// A whole segment, decoded.
pub(super) struct Whole {
    batches: Vec<Batch>,
    /// What it takes in memory.
    pub(super) bytes: usize,
}

struct Batch {
    first_row: usize,
    keys: FixedSizeBinaryArray,
    answers: StringArray,
    digests: Option<Int64Array>,
}

impl Whole {
    /// Decodes the segment that is called `named`. A file that isn't one is an error, and so is one without digests that doesn't
    /// hold what its name says.
    pub(super) fn decode(bytes: Bytes, named: &str) -> Result<Self> {
        decoding(|| Self::decoded(bytes, named))
    }

    fn decoded(bytes: Bytes, named: &str) -> Result<Self> {
        let is_named = || named == name(&bytes);
        let mut whole = Self { batches: Vec::new(), bytes: 0 };
        let builder = ParquetRecordBatchReaderBuilder::try_new(bytes.clone())?;
        if builder.schema().column_with_name(DIGEST).is_none() && !is_named() {
            return Err(wrong("its name is that of another content"));
        }
        let mut first_row = 0;
        for batch in builder.with_batch_size(BATCH).build()? {
            let batch = batch?;
            whole.bytes += batch.get_array_memory_size();
            whole.batches.push(Batch::new(&batch, first_row)?);
            first_row += batch.num_rows();
        }
        Ok(whole)
    }

    /// Decodes the segment that is called `named`, if every byte of it is as it was written.
    pub(super) fn decode_unchanged(bytes: Bytes, named: &str) -> Result<Self> {
        match named == name(&bytes) {
            true => Self::decode(bytes, named),
            false => Err(wrong("its name is that of another content")),
        }
    }

    /// What lies at a row.
    pub(super) fn row(&self, row: u32, key: &Key) -> Row {
        let row = row as usize;
        let n = self.batches.partition_point(|batch| batch.first_row <= row);
        let batch = n.checked_sub(1).and_then(|n| self.batches.get(n));
        let Some((batch, row)) = batch.map(|batch| (batch, row - batch.first_row)).filter(|(b, row)| *row < b.answers.len())
        else {
            return Row::Damaged;
        };
        let (written, answer) = (batch.key(row), batch.answers.value(row));
        match &batch.digests {
            Some(digests) => Row::check(key, answer, digests.value(row), || written),
            None if written.is_ok_and(|written| written == *key) => Row::Answer(answer.into()),
            None => Row::Another,
        }
    }

    /// All answers with their keys.
    pub(super) fn entries(&self) -> impl Iterator<Item = Result<(Key, &str)>> {
        let rows = self.batches.iter().flat_map(|batch| (0..batch.answers.len()).map(move |row| (batch, row)));
        rows.map(|(batch, row)| Ok((batch.key(row)?, batch.answers.value(row))))
    }
}

impl Batch {
    fn new(batch: &RecordBatch, first_row: usize) -> Result<Self> {
        let keys = batch.column_by_name(KEY).and_then(|column| column.as_fixed_size_binary_opt());
        let keys = keys.filter(|keys| keys.null_count() == 0).ok_or_else(|| wrong("no column `key` of bytes"))?;
        let answers = batch.column_by_name(ANSWER).and_then(|column| column.as_string_opt::<i32>());
        let answers = answers.filter(|a| a.null_count() == 0).ok_or_else(|| wrong("no column `answer` of text"))?;
        let digests = batch.column_by_name(DIGEST).map(|column| {
            let digests = column.as_primitive_opt::<Int64Type>().filter(|digests| digests.null_count() == 0);
            digests.cloned().ok_or_else(|| wrong("no column `digest` of integers"))
        });
        Ok(Self { first_row, keys: keys.clone(), answers: answers.clone(), digests: digests.transpose()? })
    }

    fn key(&self, row: usize) -> Result<Key> {
        Ok(Key::from_bytes(self.keys.value(row).try_into().map_err(|_| wrong("keys are 32 bytes wide"))?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{key, many, old};
    use super::*;

    fn layout(bytes: &Bytes) -> Layout {
        Layout::new(Layout::reader().parse_and_finish(bytes).expect("a file")).expect("a segment")
    }

    fn slices<const N: usize>(bytes: &Bytes, ranges: [Range<u64>; N]) -> [Bytes; N] {
        ranges.map(|range| bytes.slice(range.start as usize..range.end as usize))
    }

    #[test]
    fn round_trip_with_a_name_by_content() {
        let entries = many(0..5000);
        let segment = encode(&entries).expect("encodes");
        let whole = Whole::decode_unchanged(segment.bytes.clone(), &segment.name).expect("decodes");
        let decoded: Vec<(Key, Arc<str>)> =
            whole.entries().map(|entry| entry.expect("a row")).map(|(k, a)| (k, a.into())).collect();
        assert_eq!(decoded, entries);
        assert_eq!(encode(&entries).expect("encodes").name, segment.name);
        assert_ne!(encode(&entries[1..]).expect("encodes").name, segment.name);
        assert!(Whole::decode(segment.bytes.slice(..100), &segment.name).is_err());
        let mut flipped = segment.bytes.to_vec();
        flipped[200] ^= 1;
        assert!(Whole::decode_unchanged(flipped.into(), &segment.name).is_err(), "whatever it would decode to");
    }

    #[test]
    fn a_row_is_read_from_two_small_pages() {
        let entries = many(0..5000);
        let segment = encode(&entries).expect("encodes");
        let layout = layout(&segment.bytes);
        assert_eq!((layout.rows(), layout.is_fine()), (5000, true));
        let keys = layout.keys(layout.key_ranges().into_iter().flat_map(|range| slices(&segment.bytes, [range])).collect());
        let expected: Vec<u8> = entries.iter().flat_map(|(key, _)| *key.as_bytes()).collect();
        assert!(keys.expect("decodes") == expected);
        for row in (0..5000).step_by(97).chain([4999]) {
            let pages = layout.pages(row).expect("a row");
            assert!(pages.ranges().iter().all(|range| range.end - range.start < 20 << 10), "{:?}", pages.ranges());
            let [answer, digest] = slices(&segment.bytes, pages.ranges());
            let (answer, digest) = layout.row(&pages, answer, digest).expect("decodes");
            let (key, expected) = &entries[row as usize];
            assert_eq!(*answer, **expected);
            assert_eq!(Row::check(key, &answer, digest, || Ok(*key)), Row::Answer(Arc::clone(expected)));
            let [bytes] = slices(&segment.bytes, [pages.key_range()]);
            assert_eq!(layout.key(&pages, bytes).expect("decodes"), *key);
        }
        assert!(layout.pages(5000).is_none());
    }

    #[test]
    fn long_answers_have_pages_of_their_own() {
        let entries: Vec<_> = (0..20).map(|n| (key(n), Arc::from("x".repeat(40_000)))).collect();
        let segment = encode(&entries).expect("encodes");
        let pages = layout(&segment.bytes).pages(7).expect("a row");
        assert!(pages.answer.rows <= CUT_EVERY, "{}", pages.answer.rows);
    }

    #[test]
    fn an_answer_is_given_for_its_own_key_only() {
        let digest = digest(&key(1), "yes");
        let written = || Ok(key(1));
        assert_eq!(Row::check(&key(1), "yes", digest, written), Row::Answer("yes".into()));
        assert_eq!(Row::check(&key(2), "yes", digest, written), Row::Another);
        assert_eq!(Row::check(&key(1), "no", digest, written), Row::Damaged);
        assert_eq!(Row::check(&key(2), "no", digest, written), Row::Damaged);
        assert_eq!(Row::check(&key(1), "no", digest, || Err(wrong("the page of keys"))), Row::Damaged);
    }

    #[test]
    fn a_segment_without_digests_is_checked_by_its_name() {
        let entries = many(0..300);
        let (named, bytes) = old(&entries);
        let layout = layout(&bytes);
        assert!(!layout.is_fine());
        let keys = layout.keys(layout.key_ranges().into_iter().flat_map(|range| slices(&bytes, [range])).collect());
        assert_eq!(keys.expect("decodes").len(), 300 * 32);
        let whole = Whole::decode(bytes.clone(), &named).expect("decodes");
        assert_eq!(whole.row(7, &entries[7].0), Row::Answer(Arc::clone(&entries[7].1)));
        assert_eq!(whole.row(7, &entries[8].0), Row::Another);
        assert_eq!(whole.row(300, &entries[8].0), Row::Damaged);
        assert!(Whole::decode(bytes, "another").is_err());
    }
}

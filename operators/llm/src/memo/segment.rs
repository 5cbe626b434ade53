//! Segments: what the memo keeps on the store. A Parquet file with the columns `key` (32 bytes) and `answer` (the answer
//! as JSON), sorted by key, named by its content.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeBinaryArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::key::{Key, hex};

/// A segment as bytes, and the name of its object.
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) bytes: Bytes,
}

/// Encodes entries, which must be sorted by key and unique.
pub(super) fn encode(entries: &[(Key, Arc<str>)]) -> Result<Segment, parquet::errors::ParquetError> {
    debug_assert!(entries.is_sorted_by(|a, b| a.0 < b.0));
    let schema = Arc::new(Schema::new(vec![
        Field::new("key", DataType::FixedSizeBinary(32), false),
        Field::new("answer", DataType::Utf8, false),
    ]));
    let properties = WriterProperties::builder()
        .set_created_by("ingrain".to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, Arc::clone(&schema), Some(properties))?;
    // Arrow's text offsets are 32 bits wide: batches of 4,096 answers stay far below 2 GiB.
    for entries in entries.chunks(4096) {
        let keys = FixedSizeBinaryArray::try_from_iter(entries.iter().map(|(key, _)| key.as_bytes()))?;
        let answers = StringArray::from_iter_values(entries.iter().map(|(_, answer)| answer.as_ref()));
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(keys) as ArrayRef, Arc::new(answers)])?)?;
    }
    writer.close()?;
    Ok(Segment { name: name(&bytes), bytes: bytes.into() })
}

/// The name of a segment: by its content.
fn name(bytes: &[u8]) -> String {
    format!("{}.parquet", hex(&blake3::hash(bytes).as_bytes()[..16]))
}

/// Decodes the segment that is called `named`. A file that isn't one, or doesn't hold what its name says, is an error; it never
/// panics.
pub(super) fn decode(bytes: Bytes, named: Option<&str>) -> Result<Vec<(Key, Arc<str>)>, parquet::errors::ParquetError> {
    if named.is_some_and(|named| named != name(&bytes)) {
        return Err(wrong("its name is that of another content"));
    }
    // The decoder panics on some files that nobody wrote.
    catch_unwind(AssertUnwindSafe(|| entries(bytes))).unwrap_or_else(|_| Err(wrong("its decoder gave up")))
}

fn wrong(what: &str) -> parquet::errors::ParquetError {
    parquet::errors::ParquetError::General(format!("not a memo segment: {what}"))
}

fn entries(bytes: Bytes) -> Result<Vec<(Key, Arc<str>)>, parquet::errors::ParquetError> {
    let mut entries = Vec::new();
    for batch in ParquetRecordBatchReaderBuilder::try_new(bytes)?.build()? {
        let batch = batch?;
        let keys = batch.column_by_name("key").and_then(|column| column.as_fixed_size_binary_opt());
        let keys = keys.filter(|keys| keys.null_count() == 0).ok_or_else(|| wrong("no column `key` of bytes"))?;
        let answers = batch.column_by_name("answer").and_then(|column| column.as_string_opt::<i32>());
        let answers = answers.filter(|a| a.null_count() == 0).ok_or_else(|| wrong("no column `answer` of text"))?;
        for (key, answer) in (0..batch.num_rows()).map(|row| (keys.value(row), answers.value(row))) {
            let key = key.try_into().map_err(|_| wrong("keys are 32 bytes wide"))?;
            entries.push((Key::from_bytes(key), Arc::from(answer)));
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_with_a_name_by_content() {
        let entries: Vec<_> = (0..5000u32)
            .map(|i| {
                let mut key = [0; 32];
                key[..4].copy_from_slice(&i.to_be_bytes());
                (Key::from_bytes(key), Arc::from(format!("{{\"text\":\"{i}\"}}")))
            })
            .collect();
        let segment = encode(&entries).expect("encodes");
        assert_eq!(decode(segment.bytes.clone(), Some(&segment.name)).expect("decodes"), entries);
        assert_eq!(encode(&entries).expect("encodes").name, segment.name);
        assert_ne!(encode(&entries[1..]).expect("encodes").name, segment.name);
        assert!(decode(segment.bytes.slice(..100), None).is_err());
        let mut flipped = segment.bytes.to_vec();
        flipped[200] ^= 1;
        assert!(decode(flipped.into(), Some(&segment.name)).is_err(), "whatever it would decode to");
    }
}

//! Parquet, a document a row.

use std::{
    fs::File,
    io::{self, BufRead as _, Seek, Write as _},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::DataType,
    json::LineDelimitedWriter,
};
use ingrain_engine::{failure::Failure, run::SourceFile};
use parquet::{
    arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
    file::metadata::ParquetMetaData,
};

use super::{
    Read,
    content::{Content, cut_off},
    document::Document,
    format::{Compression, Places},
    item::{Halt, Sink},
};
use crate::rejects::Reject;

/// Rows are decoded so many at a time that they hold about this many bytes.
const BATCH_BYTES: u64 = 4 << 20;
const BATCH_ROWS: u64 = 1024;
/// Up to here, any growth of a file that is compressed once more is believed.
const BOMB: u64 = 1 << 30;

/// Reads a Parquet file, row group by row group.
///
/// # Errors
/// When it lacks a column or has one of the wrong type, or reading has to stop.
pub(super) fn read(
    settings: &Read,
    compression: Compression,
    file: &SourceFile,
    content: &mut Content,
    sink: &mut Sink,
) -> Result<(), Halt> {
    let source = &file.source;
    let opened = match seekable(compression, file, content)? {
        Ok(opened) => opened,
        Err(error) => return sink.reject(0, cut_off(&format!("`{source}`"), &error)),
    };
    let bad =
        |row: u64, error: &dyn std::fmt::Display| Reject::new("bad_parquet", format!("`{source}` behind row {row}: {error}"));
    let builder = match ParquetRecordBatchReaderBuilder::try_new_with_options(opened, ArrowReaderOptions::new()) {
        Ok(builder) => builder,
        Err(error) => return sink.reject(0, bad(0, &error)),
    };
    let schema = builder.schema().clone();
    let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
    let places = settings.columns.places(source, &names)?;
    let wrong = |ours: &str, place: usize| {
        let field = schema.field(place);
        Failure::data(format!("column `{}` of `{source}` is {}, not text", field.name(), field.data_type()))
            .hint(format!("`columns: {{ {ours}: ... }}` takes it from another column"))
    };
    let kind = |place: usize| schema.field(place).data_type();
    if !is_text(kind(places.text)) {
        return Err(wrong("text", places.text).into());
    }
    if let Some(place) = places.title.filter(|place| !is_text(kind(*place))) {
        return Err(wrong("title", place).into());
    }
    if let Some(place) = places.doc_id.filter(|place| !is_text(kind(*place)) && !kind(*place).is_integer()) {
        return Err(wrong("doc_id", place).into());
    }
    let at_once = rows_at_once(builder.metadata());
    let batches = match builder.with_batch_size(at_once).build() {
        Ok(batches) => batches,
        Err(error) => return sink.reject(0, bad(0, &error)),
    };
    let mut row = 0;
    for batch in batches {
        match batch {
            Ok(batch) => {
                documents(&batch, places, row, sink)?;
                row += batch.num_rows() as u64;
            }
            Err(error) => return sink.reject(row + 1, bad(row, &error)),
        }
    }
    if row == 0 {
        return sink.reject(0, Reject::new("empty", format!("`{source}` has no row")));
    }
    Ok(())
}

/// Rows of a file that are decoded at once.
pub(super) fn rows_at_once(metadata: &ParquetMetaData) -> usize {
    let bytes: i64 = metadata.row_groups().iter().map(|group| group.total_byte_size()).sum();
    let rows = metadata.file_metadata().num_rows().max(1);
    let row_bytes = u64::try_from(bytes / rows).unwrap_or(0).max(1);
    usize::try_from((BATCH_BYTES / row_bytes).clamp(1, BATCH_ROWS)).unwrap_or(1)
}

/// The file where any place of it can be read: a local one where it lies, once it is known to be what was listed; any other
/// in a temporary file. The inner error says that its content is cut off or broken.
///
/// # Errors
/// When it can't be read, or there is no place for the temporary file.
pub(super) fn seekable(
    compression: Compression,
    file: &SourceFile,
    content: &mut Content,
) -> Result<Result<File, io::Error>, Failure> {
    let copied = if compression == Compression::None && !file.url.contains("://") {
        let opened = File::open(&file.url);
        let opened = opened.map_err(|error| Failure::external(format!("`{}` can't be read: {error}", file.source)))?;
        io::copy(content, &mut io::sink()).map(|_| opened)
    } else {
        copy(compression, file, content)?
    };
    match (copied, content.failure()) {
        (Err(_), Some(failure)) => Err(failure),
        (copied, _) => Ok(copied),
    }
}

/// Copies a file, decompressed, to a temporary one.
fn copy(compression: Compression, file: &SourceFile, content: &mut Content) -> Result<Result<File, io::Error>, Failure> {
    let no_place = |error: io::Error| {
        let folder = std::env::temp_dir();
        Failure::external(format!("a copy of `{}` can't be written to `{}`: {error}", file.source, folder.display()))
            .hint("it needs room for the whole file, decompressed; `TMPDIR` names another folder")
    };
    let mut reader = match content.decoded(compression, BOMB) {
        Ok(reader) => reader,
        Err(error) => return Ok(Err(error)),
    };
    let mut copy = tempfile::tempfile().map_err(no_place)?;
    loop {
        let piece = match reader.fill_buf() {
            Ok([]) => break,
            Ok(piece) => piece,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Ok(Err(error)),
        };
        copy.write_all(piece).map_err(no_place)?;
        let count = piece.len();
        reader.consume(count);
    }
    copy.rewind().map_err(no_place)?;
    Ok(Ok(copy))
}

fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// Hands on the documents of a batch, before which the file has `before` rows.
fn documents(batch: &RecordBatch, places: Places, before: u64, sink: &mut Sink) -> Result<(), Halt> {
    let source = sink.source().to_owned();
    let failed = |error: arrow::error::ArrowError| Failure::data(format!("`{source}`: {error}"));
    let text = |place: usize| cast(batch.column(place), &DataType::Utf8).map_err(failed);
    let texts = text(places.text)?;
    let titles = places.title.map(text).transpose()?;
    let doc_ids = places.doc_id.map(text).transpose()?;
    let others: Vec<usize> = (0..batch.num_columns()).filter(|place| !places.ours(*place)).collect();
    let mut metadata = Vec::new();
    if !others.is_empty() {
        let mut writer = LineDelimitedWriter::new(&mut metadata);
        writer.write(&batch.project(&others).map_err(failed)?).map_err(failed)?;
        writer.finish().map_err(failed)?;
    }
    let metadata = String::from_utf8(metadata).map_err(|error| Failure::bug(error.to_string()))?;
    let mut metadata = metadata.lines();
    for row in 0..batch.num_rows() {
        let number = before + row as u64 + 1;
        let metadata = metadata.next().filter(|object| *object != "{}").map(str::to_owned);
        match cell(&texts, row).filter(|text| !text.trim().is_empty()) {
            Some(text) => {
                let doc_id = doc_ids.as_ref().and_then(|ids| cell(ids, row)).filter(|id| !id.is_empty());
                let title = titles.as_ref().and_then(|titles| cell(titles, row)).map(str::trim);
                sink.document(Document {
                    doc_id: doc_id.map_or_else(|| sink.place(number), str::to_owned),
                    title: title.filter(|title| !title.is_empty()).map(str::to_owned),
                    text: text.to_owned(),
                    metadata,
                    pages: Vec::new(),
                })?;
            }
            None => {
                let name = batch.schema_ref().field(places.text).name().clone();
                let reject = Reject::new("empty", format!("`{source}` row {number}: no text in `{name}`"));
                sink.reject(number, reject.raw(metadata.as_deref().unwrap_or_default()))?;
            }
        }
    }
    Ok(())
}

fn cell(texts: &ArrayRef, row: usize) -> Option<&str> {
    let texts = texts.as_string::<i32>();
    texts.is_valid(row).then(|| texts.value(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_text_is_text() {
        let dictionary = |values| DataType::Dictionary(Box::new(DataType::Int32), Box::new(values));
        for kind in [DataType::Utf8, DataType::LargeUtf8, DataType::Utf8View, dictionary(DataType::Utf8View)] {
            assert!(is_text(&kind), "{kind}");
        }
        assert!(!is_text(&DataType::Binary) && !is_text(&dictionary(DataType::Int32)));
    }
}

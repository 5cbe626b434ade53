//! The columns of a source whose files are tables: what stands in the footer of the first one.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path as FilePath,
    sync::Arc,
};

use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use parquet::{
    arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
    errors::ParquetError,
    file::metadata::ParquetMetaDataReader,
};

use super::sources;
use crate::{failure::Failure, operator::Source, plan::SourceColumns, spec::Spec, store::Buckets};

/// Enough for the footer of most files.
const GUESS: u64 = 64 << 10;
/// A footer that is larger isn't read.
const LARGEST: u64 = 256 << 20;

/// The columns of the sources in `spec` that have them in their files. `folder` is where the pipeline file is; under `cache`
/// stands what local files were found to hold.
pub async fn source_columns(spec: &Spec, folder: &FilePath, cache: &FilePath, buckets: &Buckets) -> SourceColumns {
    let mut found = SourceColumns::new();
    for stage in &spec.stages {
        let source = stage.operator.as_ref().and_then(|(_, operator, _)| operator.source());
        if let Some(source) = source.filter(|source| source.columns_in_files) {
            found.insert(stage.name.clone(), columns(&source, folder, cache, buckets).await);
        }
    }
    found
}

pub(super) async fn columns(
    source: &Source,
    folder: &FilePath,
    cache: &FilePath,
    buckets: &Buckets,
) -> Result<SchemaRef, Failure> {
    let files = sources::list(source, folder, cache, buckets).await?;
    if let Some(file) = files.iter().find(|file| is_compressed(&file.path)) {
        return Err(Failure::data(format!("`{}`: a table isn't compressed as a whole", file.source))
            .hint("Parquet compresses its columns itself: decompress the file, or read it as documents"));
    }
    let first = files.first().ok_or_else(|| Failure::bug("a source without files"))?;
    let no_table = |error: &dyn std::fmt::Display| {
        Failure::data(format!("`{}` can't be read as Parquet: {error}", first.source))
            .hint("the columns of a table are those of its Parquet files; read others as documents")
    };
    if first.size == 0 {
        return Err(no_table(&"it is empty"));
    }
    let mut wanted = GUESS;
    loop {
        let length = wanted.min(first.size);
        let tail = first.range(first.size - length..first.size, buckets).await?;
        match schema(&tail, first.size) {
            Ok(schema) => return Ok(schema),
            Err(ParquetError::NeedMoreData(more)) if (more as u64) <= LARGEST.min(first.size) && more as u64 > length => {
                wanted = more as u64;
            }
            Err(error) => return Err(no_table(&error)),
        }
    }
}

/// The columns in the footer that `tail` ends with; of a file of `size` bytes.
fn schema(tail: &Bytes, size: u64) -> Result<SchemaRef, ParquetError> {
    let read = || {
        let mut reader = ParquetMetaDataReader::new();
        reader.try_parse_sized(tail, size)?;
        let metadata = ArrowReaderMetadata::try_new(Arc::new(reader.finish()?), ArrowReaderOptions::new())?;
        Ok(metadata.schema().clone())
    };
    // The reader panics on types that it doesn't know.
    let no_footer = |_| Err(ParquetError::General("its footer makes no sense".to_owned()));
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(no_footer)
}

/// Whether a file's name says that it is compressed as a whole.
fn is_compressed(path: &str) -> bool {
    let extension = path.rsplit('.').next().unwrap_or_default();
    ["gz", "gzip", "zst", "zstd"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_without_a_footer_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let buckets = Buckets::default();
        let write = |name: &str, content: &[u8]| std::fs::write(folder.path().join(name), content).expect("written");
        let said = async || {
            let source = Source { paths: vec!["*.p*".into()], names: &[], exclude: vec![], columns_in_files: true };
            let failure = columns(&source, folder.path(), folder.path(), &buckets).await.expect_err("no table");
            assert!(failure.hint.is_some());
            failure.message
        };
        write("b.parquet", b"PAR1");
        assert!(said().await.starts_with("`b.parquet` can't be read as Parquet: "));
        write("a.parquet", b"");
        assert_eq!(said().await, "`a.parquet` can't be read as Parquet: it is empty");
        write("c.parquet.GZ", b"x");
        assert_eq!(said().await, "`c.parquet.GZ`: a table isn't compressed as a whole");
    }
}

//! The Parquet part writer.

use arrow::{array::RecordBatch, compute::concat_batches, datatypes::SchemaRef};
use bytes::Bytes;
use object_store::path::Path;
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};

use crate::{
    digest::{RowsDigest, add_row_sizes},
    failure::Failure,
    store::{Part, Store, part_name},
};

/// Writes a table as parts that are cut by content: a part ends with the row that takes it to `part_bytes`. What it writes
/// is a pure function of the rows and their order, however they were batched.
pub(crate) struct PartWriter {
    store: Store,
    /// Path prefix of the parts: `<folder>/<attempt>-<output>-`.
    prefix: String,
    schema: SchemaRef,
    part_bytes: u64,
    pending: Vec<RecordBatch>,
    pending_bytes: u64,
    parts: Vec<Part>,
}

impl PartWriter {
    pub(crate) fn new(store: Store, prefix: String, schema: SchemaRef, part_bytes: u64) -> Self {
        Self { store, prefix, schema, part_bytes, pending: Vec::new(), pending_bytes: 0, parts: Vec::new() }
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Appends rows.
    ///
    /// # Errors
    /// When the rows don't have the table's columns, or the store fails.
    pub(crate) async fn write(&mut self, rows: &RecordBatch) -> Result<(), Failure> {
        let rows = RecordBatch::try_new(self.schema.clone(), rows.columns().to_vec())
            .map_err(|error| Failure::bug(format!("rows don't fit the schema of `{}`: {error}", self.prefix)))?;
        let mut sizes = vec![0; rows.num_rows()];
        for column in rows.columns() {
            add_row_sizes(column, &mut sizes);
        }
        let mut start = 0;
        for (row, size) in sizes.into_iter().enumerate() {
            self.pending_bytes += size;
            if self.pending_bytes >= self.part_bytes {
                self.pending.push(rows.slice(start, row + 1 - start));
                start = row + 1;
                self.end_part().await?;
            }
        }
        if start < rows.num_rows() {
            self.pending.push(rows.slice(start, rows.num_rows() - start));
        }
        Ok(())
    }

    async fn end_part(&mut self) -> Result<(), Failure> {
        // Pages are cut by how rows were handed to the Parquet writer: one batch a part makes the bytes a function of content.
        let rows = concat_batches(&self.schema, &self.pending)?;
        self.pending.clear();
        let content_bytes = std::mem::take(&mut self.pending_bytes);
        let mut digest = RowsDigest::default();
        digest.add(&rows)?;
        let file = encode(&rows)?;
        let path = part_name(&self.prefix, self.parts.len(), &file);
        let bytes = file.len() as u64;
        self.store.write(&Path::from(path.as_str()), file).await?;
        self.parts.push(Part { path, bytes, rows: digest.rows, content_bytes, digest: digest.to_text() });
        Ok(())
    }

    /// Writes what is left and gives the parts, none for a table without rows.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn finish(mut self) -> Result<Vec<Part>, Failure> {
        if !self.pending.is_empty() {
            self.end_part().await?;
        }
        Ok(self.parts)
    }
}

fn encode(rows: &RecordBatch) -> Result<Bytes, Failure> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_created_by("ingrain".to_owned())
        .set_max_row_group_row_count(None)
        .build();
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, rows.schema(), Some(properties))?;
    writer.write(rows)?;
    writer.close()?;
    Ok(file.into())
}

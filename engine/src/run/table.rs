//! Tables of committed artifacts, opened.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Component, Path as FilePath, PathBuf},
    sync::Arc,
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::{
    catalog::{Session, TableProvider},
    datasource::{
        listing::PartitionedFile,
        physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource},
        source::DataSourceExec,
    },
    error::DataFusionError,
    execution::{SendableRecordBatchStream, object_store::ObjectStoreUrl},
    logical_expr::{Expr, TableType},
    physical_plan::{ExecutionPlan, stream::RecordBatchStreamAdapter},
};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{context::Environment, reference, session};
use crate::{
    failure::Failure,
    store::{Blob, BlobCache, Buckets, Part, Reference, Store, TableManifest},
};

/// Under which URL the store is known to DataFusion.
pub(crate) const STORE_URL: &str = "ingrain://store/";

/// An output of a committed stage, opened for reading.
#[derive(Debug, Clone)]
pub struct Table {
    store: Store,
    buckets: Buckets,
    cache: Arc<PathBuf>,
    blobs: Arc<BlobCache>,
    schema: SchemaRef,
    manifest: Arc<TableManifest>,
}

impl Table {
    /// The table that `manifest` names. `schema` is what it was bound with.
    pub fn new(environment: &Environment, schema: SchemaRef, manifest: TableManifest) -> Self {
        Self {
            store: environment.store.clone(),
            buckets: environment.buckets.clone(),
            cache: Arc::new(environment.cache.clone()),
            blobs: environment.blobs.clone(),
            schema,
            manifest: Arc::new(manifest),
        }
    }

    /// Its columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// What the store says of it.
    pub fn manifest(&self) -> &TableManifest {
        &self.manifest
    }

    /// Number of rows.
    pub fn rows(&self) -> u64 {
        self.manifest.rows
    }

    /// Digest over rows and schema.
    pub fn digest(&self) -> &str {
        &self.manifest.digest
    }

    /// Its rows, part after part, each in its order.
    ///
    /// # Errors
    /// When a part can't be opened; what fails later comes out of the stream.
    pub async fn stream(&self) -> Result<SendableRecordBatchStream, Failure> {
        let store = self.store.clone();
        let schema = self.schema.clone();
        let parts: Vec<Part> = self.manifest.parts.clone();
        let batches = futures::stream::iter(parts)
            .then(move |part| {
                let (store, schema) = (store.clone(), schema.clone());
                async move { read_part(&store, &part, schema).await }
            })
            .try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), batches)))
    }

    /// All rows at once: for small tables only.
    ///
    /// # Errors
    /// When a part can't be read.
    pub async fn collect(&self) -> Result<Vec<RecordBatch>, Failure> {
        Ok(self.stream().await?.try_collect().await?)
    }

    /// The content of the blob called `name`.
    ///
    /// # Errors
    /// When there is no such blob, or it isn't what the manifest says.
    pub async fn blob(&self, name: &str) -> Result<Bytes, Failure> {
        let blob = self.manifest.blobs.iter().find(|blob| blob.name == name).ok_or_else(|| {
            let names: Vec<_> = self.manifest.blobs.iter().map(|blob| format!("`{}`", blob.name)).collect();
            Failure::data(format!("no file `{name}` in this artifact, which has {}", names.join(", ")))
        })?;
        let path = Path::from(blob.path.as_str());
        if self.store.local_path(&path).is_none() {
            return self.blobs.content(&self.store, blob).await;
        }
        match self.store.read(&path).await? {
            Some(content) if blake3::hash(&content).to_hex().as_str() == blob.digest => Ok(content),
            Some(_) => Err(not_as_listed(blob)),
            None => Err(missing(blob)),
        }
    }

    /// The blobs `name/...` as a local folder, which lasts as long as the run's environment, with the files that the artifact refers
    /// to under such names. Others may share its files: don't write there.
    ///
    /// # Errors
    /// When there are none, or one isn't what the manifest says: a file that is referred to may be gone, or may have changed.
    pub async fn folder(&self, name: &str) -> Result<PathBuf, Failure> {
        let prefix = format!("{name}/");
        let mut blobs: Vec<(PathBuf, &Blob)> = Vec::new();
        let mut hasher = blake3::Hasher::new();
        for blob in &self.manifest.blobs {
            let Some(relative) = relative(&blob.name, &prefix)? else { continue };
            hasher.update(blob.name.as_bytes()).update(&[0]).update(blob.digest.as_bytes());
            blobs.push((relative, blob));
        }
        let mut references: Vec<(PathBuf, &Reference)> = Vec::new();
        for reference in &self.manifest.references {
            let Some(relative) = relative(&reference.name, &prefix)? else { continue };
            hasher.update(reference.name.as_bytes()).update(&[0]).update(reference.version.as_bytes());
            references.push((relative, reference));
        }
        if blobs.is_empty() && references.is_empty() {
            return Err(Failure::data(format!("no folder `{name}` in this artifact")));
        }
        if !references.is_empty() {
            let folder = self.blobs.folder(&self.store, hasher.finalize().to_hex().as_str(), &blobs).await?;
            for (relative, reference) in references {
                reference::put(reference, &folder.join(relative), &self.blobs, &self.buckets, &self.cache).await?;
            }
            return Ok(folder);
        }
        match self.local_folder(&blobs) {
            Some(folder) => {
                for (relative, blob) in blobs {
                    check_file(folder.join(relative), blob).await?;
                }
                Ok(folder)
            }
            None => self.blobs.folder(&self.store, hasher.finalize().to_hex().as_str(), &blobs).await,
        }
    }

    /// The folder in which the blobs lie already under their names: that of the store, if it is local.
    fn local_folder(&self, blobs: &[(PathBuf, &Blob)]) -> Option<PathBuf> {
        let place = |blob: &Blob| self.store.local_path(&Path::from(blob.path.as_str()));
        let (relative, blob) = blobs.first()?;
        let first = place(blob)?;
        let folder = first.ancestors().nth(relative.components().count())?.to_owned();
        blobs.iter().all(|(relative, blob)| place(blob) == Some(folder.join(relative))).then_some(folder)
    }
}

/// The path of a blob or reference called `name` below `prefix`, if it is there.
fn relative(name: &str, prefix: &str) -> Result<Option<PathBuf>, Failure> {
    let Some(relative) = name.strip_prefix(prefix).map(PathBuf::from) else { return Ok(None) };
    if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(Failure::data(format!("the blob name `{name}` leaves its folder")));
    }
    Ok(Some(relative))
}

/// Reads a blob's file from end to end, on a thread of its own: weights take a while.
async fn check_file(file: PathBuf, blob: &Blob) -> Result<(), Failure> {
    let digest = move |file: &FilePath| -> std::io::Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(std::fs::File::open(file)?)?;
        Ok(hasher.finalize())
    };
    let found = tokio::task::spawn_blocking(move || digest(&file)).await;
    match found.map_err(|error| Failure::bug(format!("reading a blob ended: {error}")))? {
        Ok(digest) if digest.to_hex().as_str() == blob.digest => Ok(()),
        Ok(_) => Err(not_as_listed(blob)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(missing(blob)),
        Err(error) => Err(Failure::external(format!("`{}` can't be read: {error}", blob.path))),
    }
}

fn not_as_listed(blob: &Blob) -> Failure {
    Failure::damaged(&blob.path)
}

fn missing(blob: &Blob) -> Failure {
    Failure::external(format!("`{}` is missing", blob.path)).hint("run again: it is made anew")
}

/// Parts are a few MiB of content: one is fetched whole, then decoded batch by batch.
async fn read_part(store: &Store, part: &Part, schema: SchemaRef) -> Result<SendableRecordBatchStream, DataFusionError> {
    let content = store.read(&Path::from(part.path.as_str())).await?;
    let content =
        content.ok_or_else(|| Failure::external(format!("`{}` is missing", part.path)).hint("run again: it is made anew"))?;
    let path = part.path.clone();
    let mut rows = decoding(&path, || Ok(ParquetRecordBatchReaderBuilder::try_new(content)?.with_batch_size(1024).build()?))?;
    let batch_schema = schema.clone();
    let mut is_over = false;
    let rows = std::iter::from_fn(move || {
        let mut next = || rows.next().map(|batch| Ok(RecordBatch::try_new(batch_schema.clone(), batch?.columns().to_vec())?));
        let batch = if is_over { None } else { decoding(&path, || next().transpose()).transpose() };
        is_over = !matches!(batch, Some(Ok(_)));
        batch
    });
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(rows))))
}

/// Decodes something of a part. The decoder panics on some that nobody wrote: these don't hold what they should.
fn decoding<T>(part: &str, decode: impl FnOnce() -> Result<T, DataFusionError>) -> Result<T, DataFusionError> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| Err(Failure::damaged(part).into()))
}

/// A scan over parts: a partition for each group of them. Each part is read whole and in its order.
pub(crate) fn scan(
    schema: SchemaRef,
    groups: Vec<Vec<&Part>>,
    projection: Option<Vec<usize>>,
) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    let groups = groups
        .into_iter()
        .map(|parts| FileGroup::new(parts.into_iter().map(|part| PartitionedFile::new(part.path.clone(), part.bytes)).collect()))
        .collect();
    let config = FileScanConfigBuilder::new(ObjectStoreUrl::parse(STORE_URL)?, Arc::new(ParquetSource::new(schema)))
        .with_file_groups(groups)
        .with_projection_indices(projection)?
        .build();
    Ok(DataSourceExec::from_data_source(config))
}

/// A table that DataFusion queries read: explicit parts, never a listing.
#[derive(Debug)]
pub(crate) struct PartsTable {
    table: Table,
}

/// Files that one scan of a query reads at once.
const SCAN_GROUPS: usize = 8;

#[async_trait]
impl TableProvider for PartsTable {
    fn schema(&self) -> SchemaRef {
        self.table.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let parts = &self.table.manifest.parts;
        let n = parts.len().clamp(1, SCAN_GROUPS);
        let mut groups = vec![Vec::new(); n];
        for (index, part) in parts.iter().enumerate() {
            groups[index % n].push(part);
        }
        if parts.is_empty() {
            let schema = match projection {
                Some(columns) => Arc::new(self.table.schema.project(columns)?),
                None => self.table.schema.clone(),
            };
            return Ok(Arc::new(datafusion::physical_plan::empty::EmptyExec::new(schema)));
        }
        scan(self.table.schema.clone(), groups, projection.cloned())
    }
}

/// Runs a query over tables by port: `name`, or `name_0`, `name_1`, ... where there are several.
///
/// # Errors
/// When the query can't be planned; a failure while it runs comes out of the stream.
pub async fn query(
    environment: &Environment,
    inputs: &BTreeMap<String, Vec<Table>>,
    sql: &str,
) -> Result<SendableRecordBatchStream, Failure> {
    let tables = || inputs.values().flatten();
    let bytes = tables().map(|table| table.manifest.content_bytes()).sum();
    let batch_rows = session::batch_rows(bytes, tables().map(Table::rows).sum());
    let context = session::context(environment, session::partitions(environment, bytes), batch_rows);
    register(&context, inputs)?;
    Ok(context.sql(sql).await?.execute_stream().await?)
}

/// Runs a query over one table, called `rows`, that wants few of its rows: columns that a condition doesn't name are read only
/// where it holds. The order of the rows is none.
///
/// # Errors
/// As [`query`].
pub(crate) async fn look_up(environment: &Environment, table: &Table, sql: &str) -> Result<SendableRecordBatchStream, Failure> {
    let context = session::looking_up(environment);
    register(&context, &[("rows".to_owned(), vec![table.clone()])].into())?;
    Ok(context.sql(sql).await?.execute_stream().await?)
}

/// Registers tables by port: `name`, or `name_0`, `name_1`, ... where a port takes a list.
pub(crate) fn register(
    context: &datafusion::prelude::SessionContext,
    inputs: &BTreeMap<String, Vec<Table>>,
) -> Result<(), Failure> {
    for (port, tables) in inputs {
        for (index, table) in tables.iter().enumerate() {
            let provider = Arc::new(PartsTable { table: table.clone() });
            if tables.len() == 1 {
                context.register_table(quoted(port), provider.clone())?;
            }
            let numbered = format!("{port}_{index}");
            if !inputs.contains_key(&numbered) {
                context.register_table(quoted(&numbered), provider)?;
            }
        }
    }
    Ok(())
}

fn quoted(name: &str) -> datafusion::common::TableReference {
    datafusion::common::TableReference::bare(name.to_owned())
}

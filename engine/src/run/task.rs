//! Tasks: what one writes, and running one.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use futures::FutureExt;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    context::{Counters, Environment, TaskContext},
    node::panicked,
    reference,
    sources::SourceFile,
    table::Table,
    write::PartWriter,
};
use crate::{
    failure::Failure,
    operator::{DEFAULT_OUTPUT, Lowering, REJECTS_OUTPUT},
    schema::{InputSchemas, SchemaBytes},
    store::{Blob, PartitionRecord, Reference, Store, TableManifest},
};

/// Everything that running a task needs beside the [`Environment`]; travels to a child process as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TaskWork {
    pub operator: String,
    pub version: u32,
    pub config: Value,
    pub inputs: InputSchemas,
    pub tables: BTreeMap<String, Vec<TableManifest>>,
    pub outputs: BTreeMap<String, SchemaBytes>,
    /// What a source reads.
    pub source: Vec<SourceFile>,
    /// Digests of the files that the config names, by field.
    pub files: BTreeMap<String, String>,
    pub seed: u64,
    pub refresh: Option<String>,
    /// Where its files go: `parts/<step>/<name>`.
    pub folder: String,
    /// Where under [`progress`] it keeps what it has reached: `<stage key>/<generation>`.
    pub progress: String,
}

/// The local folder of what long tasks have reached.
pub(crate) fn progress(environment: &Environment) -> PathBuf {
    environment.cache.join("progress")
}

/// What a task has written so far.
pub(crate) struct TaskOutputs {
    store: Store,
    folder: String,
    attempt: String,
    writers: BTreeMap<String, PartWriter>,
    blobs: BTreeMap<String, Vec<Blob>>,
    references: BTreeMap<String, Vec<Reference>>,
    counters: Arc<Counters>,
    pub(crate) units: u64,
    pub(crate) device: Option<String>,
}

impl TaskOutputs {
    pub(crate) fn schema(&self, output: &str) -> Result<SchemaRef, Failure> {
        let writer = self.writers.get(output);
        Ok(writer.ok_or_else(|| Failure::bug(format!("no output `{output}` was bound")))?.schema().clone())
    }

    pub(crate) async fn write(&mut self, output: &str, rows: RecordBatch) -> Result<(), Failure> {
        let writer = self.writers.get_mut(output).ok_or_else(|| Failure::bug(format!("no output `{output}` was bound")))?;
        writer.write(&rows).await?;
        match output {
            DEFAULT_OUTPUT => Counters::add(&self.counters.rows, rows.num_rows() as u64),
            REJECTS_OUTPUT => Counters::add(&self.counters.rejects, rows.num_rows() as u64),
            _ => {}
        }
        Ok(())
    }

    pub(crate) async fn put_folder(&mut self, output: &str, name: &str, folder: &FilePath) -> Result<String, Failure> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_file() {
                files.push(path);
            }
        }
        files.sort();
        let mut digest = blake3::Hasher::new();
        for file in files {
            let Some(file_name) = file.file_name().and_then(|name| name.to_str()) else {
                return Err(Failure::bug(format!("a blob's name isn't UTF-8: {}", file.display())));
            };
            // As it comes back from a listing: a name's special characters escaped.
            let path = Path::from(format!("{}/{}-{output}/{name}/{file_name}", self.folder, self.attempt));
            let (bytes, content_digest) = self.store.upload(&path, &file).await?;
            digest.update(file_name.as_bytes()).update(&[0]).update(content_digest.as_bytes());
            self.blobs.entry(output.to_owned()).or_default().push(Blob {
                name: format!("{name}/{file_name}"),
                path: path.to_string(),
                bytes,
                digest: content_digest,
            });
        }
        Ok(digest.finalize().to_hex().to_string())
    }

    pub(crate) fn refer(&mut self, output: &str, name: &str, file: &SourceFile) {
        self.references.entry(output.to_owned()).or_default().push(reference::to(file, name));
    }

    async fn finish(mut self) -> Result<PartitionRecord, Failure> {
        let mut outputs = BTreeMap::new();
        for (output, writer) in std::mem::take(&mut self.writers) {
            outputs.insert(output, writer.finish().await?);
        }
        let Self { attempt, blobs, references, units, device, .. } = self;
        Ok(PartitionRecord { device, attempt, outputs, blobs, references, units })
    }
}

/// Runs a task in this process. What it wrote is named by the record and by nothing else.
pub(crate) async fn run_task(
    work: &TaskWork,
    environment: Arc<Environment>,
    counters: Arc<Counters>,
) -> Result<PartitionRecord, Failure> {
    let operator = environment.registry.operator(&work.operator).filter(|operator| operator.version == work.version);
    let operator = operator.ok_or_else(|| {
        Failure::bug(format!("this program doesn't know operator `{}` version {}", work.operator, work.version))
    })?;
    let (operator, _) = operator.parse(work.config.clone()).map_err(Failure::bug)?;
    let schemas = work.inputs.inputs()?;
    let Lowering::Task(task) = operator.lower(&schemas) else {
        return Err(Failure::bug(format!("`{}` is no task", work.operator)));
    };
    let mut inputs = BTreeMap::new();
    for (port, tables) in &work.tables {
        let opened = schemas.all(port).iter().zip(tables);
        inputs.insert(
            port.clone(),
            opened.map(|(input, table)| Table::new(&environment, input.schema.clone(), table.clone())).collect(),
        );
    }
    let attempt = uuid::Uuid::now_v7().simple().to_string();
    let mut writers = BTreeMap::new();
    for (output, schema) in &work.outputs {
        let prefix = format!("{}/{attempt}-{output}-", work.folder);
        let writer = PartWriter::new(environment.store.clone(), prefix, schema.schema()?, environment.part_bytes);
        writers.insert(output.clone(), writer);
    }
    let mut context = TaskContext {
        seed: work.seed,
        refresh: work.refresh.clone(),
        environment: environment.clone(),
        counters: counters.clone(),
        files: work.files.clone(),
        source: work.source.clone(),
        inputs,
        outputs: TaskOutputs {
            store: environment.store.clone(),
            folder: work.folder.clone(),
            attempt,
            writers,
            blobs: BTreeMap::new(),
            references: BTreeMap::new(),
            counters,
            units: 0,
            device: None,
        },
        scratch: tempfile::tempdir()?,
        progress: progress(&environment).join(&work.progress),
    };
    let result = AssertUnwindSafe(task.run(&mut context)).catch_unwind().await;
    result.unwrap_or_else(|panic| Err(panicked(&work.operator, panic.as_ref())))?;
    environment.sync().await?;
    context.outputs.finish().await
}

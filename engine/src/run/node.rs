//! The one physical node of ours: runs a row transform over each partition of its input and commits what it gives.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::AtomicU64},
};

use arrow::{
    array::{RecordBatch, StringArray},
    compute::SortOptions,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use datafusion::{
    common::tree_node::TreeNodeRecursion,
    datasource::{physical_plan::FileScanConfig, source::DataSourceExec},
    error::{DataFusionError, Result},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{EquivalenceProperties, LexOrdering, OrderingRequirements, PhysicalExpr, PhysicalSortExpr, expressions::col},
    physical_plan::{
        DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
        distribution_requirements::InputDistributionRequirements,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{FutureExt, StreamExt};
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    context::{Counters, Environment, StreamContext},
    gate::Gate,
    table::Table,
    write::PartWriter,
};
use crate::{
    failure::Failure,
    key,
    operator::{DEFAULT_OUTPUT, Lowering, REJECTS_OUTPUT},
    schema::{InputSchemas, SchemaBytes},
    store::{Part, PartitionRecord, TableManifest, Tombstone},
};

/// What a [`StageExec`] carries in its bytes: everything but the live surroundings.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StageWork {
    /// The operator's name.
    pub operator: String,
    /// Its semantics version, so that another build's node is refused.
    pub version: u32,
    /// Its canonical config.
    pub config: Value,
    /// The schemas that it was bound with.
    pub inputs: InputSchemas,
    /// Its outputs by name, `rejects` included.
    pub outputs: BTreeMap<String, SchemaBytes>,
    /// Whether a row transform runs; without one, rows go to `default` as they come.
    pub transform: bool,
    /// The stage's seed.
    pub seed: u64,
    /// The stage's `refresh`, as JSON text.
    pub refresh: Option<String>,
    /// Digests of the files that the config names, by field.
    pub files: BTreeMap<String, String>,
    /// Documents of a source that it must not give.
    pub forgotten: Vec<Tombstone>,
    /// Tables whose blobs the transform opens, by port.
    pub blobs: BTreeMap<String, (SchemaBytes, TableManifest)>,
    /// Hash of the stage key's preimage without its inputs.
    pub step: String,
    /// Which filling of the stage key this is.
    pub generation: u64,
    /// What a partition reads.
    pub partitioning: PartitionSource,
}

/// What a partition of a stage reads, for the name of its record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum PartitionSource {
    /// One input part each, scanned in its order.
    Parts {
        /// Digests of the parts' cells, by path.
        digests: BTreeMap<String, String>,
        /// What else a partition's output follows from: the columns of the parts, and what arrives at the other ports.
        beside: String,
    },
    /// One group of source files each: digests by partition.
    Files(Vec<String>),
    /// The rows of a query's result whose `row_id` falls into the partition's hash bucket, sorted by `row_id`: the digest of
    /// all that the query reads.
    Query(String),
}

/// What a node finds in the session when it runs.
pub(crate) struct StageRuntime {
    pub environment: Arc<Environment>,
    pub counters: Arc<Counters>,
    /// Ends a stage early that pays for rejects.
    pub gate: Option<Arc<Gate>>,
}

/// Runs one partition's transform, writes its outputs and commits the partition's record; gives the record as one row.
///
/// A partition whose record is there is not executed: its input is never started.
#[derive(Debug)]
pub(crate) struct StageExec {
    work: Arc<StageWork>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl StageExec {
    pub(crate) fn new(work: Arc<StageWork>, input: Arc<dyn ExecutionPlan>) -> Self {
        let schema = Arc::new(Schema::new(vec![Field::new("record", DataType::Utf8, false)]));
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(input.output_partitioning().partition_count()),
            EmissionType::Final,
            Boundedness::Bounded,
        ));
        Self { work, input, properties }
    }

    pub(crate) fn work(&self) -> &StageWork {
        &self.work
    }

    /// What partition `partition` reads.
    fn identity(&self, partition: usize) -> Result<Value, Failure> {
        match &self.work.partitioning {
            PartitionSource::Query(digest) => {
                Ok(json!({ "query": digest, "partition": partition, "of": self.input.output_partitioning().partition_count() }))
            }
            PartitionSource::Files(digests) => match digests.get(partition) {
                Some(digest) => Ok(json!({ "files": digest })),
                None => Err(Failure::bug(format!("no group of files is partition {partition}"))),
            },
            PartitionSource::Parts { digests, beside } => {
                let scan = self.input.downcast_ref::<DataSourceExec>();
                let scan = scan.and_then(|scan| {
                    let source: &dyn std::any::Any = scan.data_source().as_ref();
                    source.downcast_ref::<FileScanConfig>()
                });
                let group = scan.and_then(|scan| scan.file_groups.get(partition));
                let group = group.ok_or_else(|| Failure::bug("a stage without a query doesn't scan parts"))?;
                let parts: Option<Vec<&String>> = group.iter().map(|file| digests.get(file.path().as_ref())).collect();
                match parts {
                    Some(parts) => Ok(json!({ "parts": parts, "beside": beside })),
                    None => Err(Failure::bug("a scan reads a part that the stage doesn't know")),
                }
            }
        }
    }
}

impl DisplayAs for StageExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StageExec: {} {}, step {}", self.work.operator, self.work.config, self.work.step)
    }
}

/// `row_id` ascending: the order of every partition that comes out of a query.
pub(crate) fn by_row_id(schema: &Schema) -> Result<LexOrdering> {
    let sort = PhysicalSortExpr::new(col("row_id", schema)?, SortOptions { descending: false, nulls_first: false });
    LexOrdering::new([sort]).ok_or_else(|| DataFusionError::Internal("an ordering of one column".into()))
}

impl ExecutionPlan for StageExec {
    fn name(&self) -> &str {
        "StageExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    // Declared, not only arranged: Ballista's scheduler plans requirements anew and drops a sort that nobody asks for.
    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        let ordering = match self.work.partitioning {
            PartitionSource::Query(_) => by_row_id(&self.input.schema()).ok().map(OrderingRequirements::from),
            PartitionSource::Parts { .. } | PartitionSource::Files(_) => None,
        };
        vec![ordering]
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        let distribution = match self.work.partitioning {
            PartitionSource::Query(_) => match col("row_id", &self.input.schema()) {
                Ok(row_id) => Distribution::KeyPartitioned(vec![row_id]),
                Err(_) => Distribution::UnspecifiedDistribution,
            },
            PartitionSource::Parts { .. } | PartitionSource::Files(_) => Distribution::UnspecifiedDistribution,
        };
        InputDistributionRequirements::new(vec![distribution])
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(self.work.clone(), input))),
            _ => Err(DataFusionError::Internal("a stage has one input".into())),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let runtime = context
            .session_config()
            .get_extension::<StageRuntime>()
            .ok_or_else(|| DataFusionError::Internal("the session knows no stage runtime".into()))?;
        let identity = self.identity(partition)?;
        let (work, input) = (self.work.clone(), self.input.clone());
        let schema = self.schema();
        let result_schema = schema.clone();
        let record = async move {
            let run = AssertUnwindSafe(run_partition(&work, input, partition, identity, context, &runtime)).catch_unwind();
            let record = run.await.unwrap_or_else(|panic| Err(panicked(&work.operator, panic.as_ref())))?;
            let record = serde_json::to_string(&record).map_err(|error| Failure::bug(error.to_string()))?;
            Ok(RecordBatch::try_new(result_schema, vec![Arc::new(StringArray::from(vec![record]))])?)
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, record.into_stream())))
    }
}

/// The failure that a panic is reported as.
pub(crate) fn panicked(operator: &str, panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    Failure::bug(format!("the operator `{operator}` panicked: {text}"))
        .hint("this is a mistake in the operator: please report it")
}

async fn run_partition(
    work: &StageWork,
    input: Arc<dyn ExecutionPlan>,
    partition: usize,
    identity: Value,
    task: Arc<TaskContext>,
    runtime: &StageRuntime,
) -> Result<PartitionRecord, Failure> {
    let environment = &runtime.environment;
    let store = &environment.store;
    let name = key::key("partition", &json!({ "step": work.step, "generation": work.generation, "reads": identity }));
    let folder = format!("parts/{}/{name}", work.step);
    let record_path = Path::from(format!("{folder}.json"));
    if let Some(record) = committed(environment, &record_path).await? {
        let rejects = rows_of(&record, REJECTS_OUTPUT);
        Counters::add(&runtime.counters.rows, rows_of(&record, DEFAULT_OUTPUT));
        Counters::add(&runtime.counters.rejects, rejects);
        Counters::add(&runtime.counters.done, record.units);
        if let Some(gate) = &runtime.gate {
            gate.found(record.units, rejects);
        }
        return Ok(record);
    }

    let attempt = uuid::Uuid::now_v7().simple().to_string();
    let mut writers = BTreeMap::new();
    let mut schemas: BTreeMap<String, SchemaRef> = BTreeMap::new();
    for (output, schema) in &work.outputs {
        let schema = schema.schema()?;
        let prefix = format!("{folder}/{attempt}-{output}-");
        writers.insert(output.clone(), PartWriter::new(store.clone(), prefix, schema.clone(), environment.part_bytes));
        schemas.insert(output.clone(), schema);
    }
    let units = Arc::new(AtomicU64::new(0));
    let read = Arc::new(AtomicU64::new(0));
    let rows = input.execute(partition, task)?;
    let (counted, rows_schema) = (read.clone(), rows.schema());
    let rows = rows.inspect(move |batch| {
        if let Ok(batch) = batch {
            Counters::add(&counted, batch.num_rows() as u64);
        }
    });
    let mut rows: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(rows_schema, rows));

    if work.transform {
        let operator = environment.registry.operator(&work.operator);
        let operator = operator.filter(|operator| operator.version == work.version).ok_or_else(|| {
            Failure::bug(format!("this program doesn't know operator `{}` version {}", work.operator, work.version))
        })?;
        let (operator, _) = operator.parse(work.config.clone()).map_err(Failure::bug)?;
        let Lowering::Rows { stream: Some(transform), .. } = operator.lower(&work.inputs.inputs()?) else {
            return Err(Failure::bug(format!("`{}` has no row transform", work.operator)));
        };
        let mut blobs = BTreeMap::new();
        for (port, (schema, manifest)) in &work.blobs {
            blobs.insert(port.clone(), Table::new(environment, schema.schema()?, manifest.clone()));
        }
        let context = StreamContext {
            seed: work.seed,
            refresh: work.refresh.clone(),
            environment: environment.clone(),
            counters: runtime.counters.clone(),
            files: Arc::new(work.files.clone()),
            forgotten: work.forgotten.clone().into(),
            blobs: Arc::new(blobs),
            schemas: Arc::new(schemas),
            units: units.clone(),
            gate: runtime.gate.clone(),
        };
        let mut given = transform.start(rows, context);
        while let Some(given) = given.next().await {
            let given = given?;
            let writer = writers.get_mut(given.output);
            let writer = writer.ok_or_else(|| Failure::bug(format!("no output `{}` was bound", given.output)))?;
            writer.write(&given.rows).await?;
            match given.output {
                DEFAULT_OUTPUT => Counters::add(&runtime.counters.rows, given.rows.num_rows() as u64),
                REJECTS_OUTPUT => {
                    Counters::add(&runtime.counters.rejects, given.rows.num_rows() as u64);
                    if let Some(gate) = &runtime.gate {
                        gate.reject(&given.rows)?;
                    }
                }
                _ => {}
            }
        }
    } else {
        let writer = writers.get_mut(DEFAULT_OUTPUT).ok_or_else(|| Failure::bug("a query without a default output"))?;
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            writer.write(&batch).await?;
            Counters::add(&runtime.counters.rows, batch.num_rows() as u64);
        }
    }

    let mut outputs = BTreeMap::new();
    for (output, writer) in writers {
        outputs.insert(output, writer.finish().await?);
    }
    // What the rows rely on (answers that were paid for) is durable before the rows count.
    environment.sync().await?;
    let counted = units.load(std::sync::atomic::Ordering::Relaxed);
    let units = if counted > 0 { counted } else { read.load(std::sync::atomic::Ordering::Relaxed) };
    let record = PartitionRecord { device: None, attempt, outputs, blobs: BTreeMap::new(), references: BTreeMap::new(), units };
    let content = serde_json::to_vec(&record).map_err(|error| Failure::bug(error.to_string()))?;
    let Some(winner) = store.create(&record_path, content.into()).await? else { return Ok(record) };
    let winner: PartitionRecord = serde_json::from_slice(&winner)
        .map_err(|_| Failure::external(format!("`{record_path}` can't be read")).hint("delete it and run again"))?;
    store.delete(files(&record)).await?;
    Ok(winner)
}

/// The record at `path`, if it and its files are whole; a broken one is removed, so that its partition runs anew.
pub(super) async fn committed(environment: &Environment, path: &Path) -> Result<Option<PartitionRecord>, Failure> {
    let store = &environment.store;
    let Some(content) = store.read(path).await? else { return Ok(None) };
    let record: Option<PartitionRecord> = serde_json::from_slice(&content).ok();
    if let Some(record) = record {
        // One listing, however many parts there are.
        let folder = Path::from(path.as_ref().trim_end_matches(".json"));
        let is_needed = record.outputs.values().any(|parts| !parts.is_empty());
        let found = if is_needed { store.list(&folder).await? } else { Vec::new() };
        let found: HashMap<Path, u64> = found.into_iter().map(|meta| (meta.location, meta.size)).collect();
        let is_there = |part: &Part| found.get(&Path::from(part.path.as_str())) == Some(&part.bytes);
        if record.outputs.values().flatten().all(is_there) {
            return Ok(Some(record));
        }
    }
    store.delete(vec![path.clone()]).await?;
    Ok(None)
}

fn rows_of(record: &PartitionRecord, output: &str) -> u64 {
    record.outputs.get(output).map_or(0, |parts| parts.iter().map(|part| part.rows).sum())
}

fn files(record: &PartitionRecord) -> Vec<Path> {
    record.outputs.values().flatten().map(|part| Path::from(part.path.as_str())).collect()
}

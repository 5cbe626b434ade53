//! Running one stage: from a lowering to a committed artifact.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
};

use arrow::array::AsArray;
use datafusion::{
    datasource::memory::MemorySourceConfig,
    physical_expr::expressions::col,
    physical_plan::{ExecutionPlan, ExecutionPlanProperties, Partitioning, repartition::RepartitionExec, sorts::sort::SortExec},
};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    codec,
    context::{Counters, Environment},
    gate::Gate,
    node::{PartitionSource, StageExec, StageRuntime, StageWork, by_row_id},
    reference,
    resolve::StageKey,
    session, sources,
    table::{self, Table, scan},
    task::{TaskWork, progress, run_task},
    worker::run_in_child,
};
use crate::{
    failure::Failure,
    key,
    operator::{Lowering, Ports, REJECTS_OUTPUT, Resource},
    plan::{Plan, Stage, StageIndex},
    schema::{InputSchemas, SchemaBytes},
    store::{Action, FORMAT, Manifest, Part, PartitionRecord, TableManifest},
};

/// A stage that is about to run.
pub(crate) struct StageRun<'a> {
    pub plan: &'a Plan,
    pub index: StageIndex,
    pub key: &'a StageKey,
    pub generation: u64,
    pub upstream: &'a HashMap<StageIndex, Arc<Manifest>>,
    pub environment: &'a Arc<Environment>,
    pub counters: Arc<Counters>,
    /// Whether the stage only shows what it would ask: nobody judges what comes of it.
    pub rehearsal: bool,
    /// Whether plans are encoded and decoded before they run.
    pub round_trip: bool,
    pub run: Uuid,
    /// The id of this try.
    pub attempt: Uuid,
}

impl StageRun<'_> {
    fn stage(&self) -> &Stage {
        self.plan.stage(self.index)
    }

    /// Runs the stage and commits what it gives.
    pub(crate) async fn execute(&self) -> Result<Manifest, Failure> {
        let started = std::time::Instant::now();
        let stage = self.stage();
        let (manifest, device) = self.fill().await.map_err(|failure| self.with_damage(failure))?;
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let action = Action {
            format: FORMAT,
            manifest: String::new(),
            preimage: self.key.preimage.clone(),
            filled_by: json!({
                "pipeline": self.plan.pipeline, "stage": stage.name, "run": self.run,
                "attempt": self.attempt, "device": device,
            }),
            usage: json!({
                "seconds": started.elapsed().as_secs_f64(), "calls": load(&counters.calls), "memo_hits": load(&counters.memo_hits),
                "input_tokens": load(&counters.input_tokens), "output_tokens": load(&counters.output_tokens),
            }),
        };
        let committed = self.environment.store.commit(&self.key.key, self.generation, manifest, action).await?;
        // What is left of it costs room on this disk and nothing else.
        if let Err(error) = std::fs::remove_dir_all(progress(self.environment).join(&self.key.key))
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::debug!(%error, "what a task had reached isn't removed");
        }
        Ok(reference::relocated(committed, &self.key.files))
    }

    /// The failure, which is damage if a part that the stage reads was found damaged: not every library hands on our error.
    fn with_damage(&self, failure: Failure) -> Failure {
        if failure.damaged.is_some() {
            return failure;
        }
        let damaged = self.environment.store.damaged();
        let reads = |part: &&String| self.upstream.values().any(|above| above.files().any(|(path, _)| path == part.as_str()));
        damaged.iter().find(reads).map_or(failure, |part| Failure::damaged(part))
    }

    /// Runs the stage; what it gives isn't committed. Says what it was computed on, where a task said so.
    pub(crate) async fn fill(&self) -> Result<(Manifest, Option<String>), Failure> {
        let stage = self.stage();
        let tables = self.tables()?;
        let (records, unique) = match stage.operator.lower(&stage.inputs) {
            Lowering::Task(_) => (vec![self.task(&tables).await?], false),
            Lowering::Rows { query, stream } => {
                let unique = query.as_ref().is_some_and(|query| query.unique) || stage.operator.source().is_some();
                let plan = self.physical(query.map(|query| query.sql), stream.is_some(), &tables).await?;
                (self.partitions(plan, self.batch_rows(&tables)).await?, unique)
            }
        };
        let device = records.iter().find_map(|record| record.device.clone());
        let manifest = self.manifest(records);
        if unique {
            self.check_unique(&manifest).await?;
        }
        Ok((manifest, device))
    }

    fn tables(&self) -> Result<BTreeMap<String, Vec<Table>>, Failure> {
        let stage = self.stage();
        let mut tables: BTreeMap<String, Vec<Table>> = BTreeMap::new();
        for ((port, position), (above, output)) in self.plan.reads(self.index) {
            let manifest = self.upstream.get(&above).and_then(|manifest| manifest.outputs.get(output));
            let input = stage.inputs.all(port).get(position);
            let (Some(manifest), Some(input)) = (manifest, input) else {
                return Err(Failure::bug(format!("nothing is known of what arrives at `{port}`")));
            };
            tables.entry(port.to_owned()).or_default().push(Table::new(self.environment, input.schema.clone(), manifest.clone()));
        }
        Ok(tables)
    }

    fn batch_rows(&self, tables: &BTreeMap<String, Vec<Table>>) -> usize {
        let tables = || tables.values().flatten();
        session::batch_rows(tables().map(|table| table.manifest().content_bytes()).sum(), tables().map(Table::rows).sum())
    }

    fn outputs(&self) -> BTreeMap<String, SchemaBytes> {
        self.stage().outputs.iter().map(|output| (output.name.clone(), SchemaBytes::new(&output.schema))).collect()
    }

    /// What the files that the config names held when the key was made.
    fn files(&self) -> BTreeMap<String, String> {
        let files = self.key.preimage["files"].as_object().into_iter().flatten();
        files.filter_map(|(field, digest)| Some((field.clone(), digest.as_str()?.to_owned()))).collect()
    }

    fn refresh(&self) -> Option<String> {
        self.stage().refresh.as_ref().map(Value::to_string)
    }

    async fn task(&self, tables: &BTreeMap<String, Vec<Table>>) -> Result<PartitionRecord, Failure> {
        let stage = self.stage();
        let name = key::key("task", &json!({ "key": self.key.key, "generation": self.generation }));
        let work = TaskWork {
            operator: stage.operator_type.name.to_owned(),
            version: stage.operator_type.version,
            config: stage.config.clone(),
            inputs: InputSchemas::new(&stage.inputs),
            tables: tables
                .iter()
                .map(|(port, tables)| (port.clone(), tables.iter().map(|table| table.manifest().clone()).collect()))
                .collect(),
            outputs: self.outputs(),
            source: self.key.files.clone(),
            files: self.files(),
            seed: stage.seed,
            refresh: self.refresh(),
            folder: format!("parts/{}/{name}", self.key.step),
            progress: format!("{}/{}", self.key.key, self.generation),
        };
        match stage.operator.resource() {
            Resource::Device => run_in_child(work, self.environment, self.counters.clone()).await,
            Resource::None | Resource::Teacher => {
                // A task of its own: what it computes between two awaits must not hold up the other stages.
                let (environment, counters) = (self.environment.clone(), self.counters.clone());
                Abort(tokio::spawn(async move { run_task(&work, environment, counters).await })).await
            }
        }
    }

    /// The physical plan: a scan of source files, of the first port's parts, or of a query's result, under our node.
    async fn physical(
        &self,
        query: Option<String>,
        transform: bool,
        tables: &BTreeMap<String, Vec<Table>>,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>, Failure> {
        let stage = self.stage();
        let (input, partitioning): (Arc<dyn ExecutionPlan>, _) = if let Some(sql) = query {
            let bytes = tables.values().flatten().map(|table| table.manifest().content_bytes()).sum();
            let partitions = session::partitions(self.environment, bytes);
            let context = session::context(self.environment, partitions, self.batch_rows(tables));
            table::register(&context, tables)?;
            let plan = context.sql(&sql).await?.create_physical_plan().await?;
            // Which partition a row is in follows from its id, whatever plan and scan groups it came through.
            let row_id = col("row_id", &plan.schema())?;
            let plan = Arc::new(RepartitionExec::try_new(plan, Partitioning::Hash(vec![row_id], partitions))?);
            let ordering = by_row_id(&plan.schema())?;
            let sorted = Arc::new(SortExec::new(ordering, plan).with_preserve_partitioning(true));
            (sorted, PartitionSource::Query(key::key("query inputs", &self.key.preimage["inputs"])))
        } else if stage.operator.source().is_some() {
            let groups = sources::group(&self.key.files, &self.key.forgotten, self.environment.part_bytes / 2)?;
            let scan = MemorySourceConfig::try_new_exec(&groups.partitions, groups.schema, None)?;
            (scan, PartitionSource::Files(groups.digests))
        } else {
            let Ports::Named(ports) = stage.operator.ports() else {
                return Err(Failure::bug("an operator with any ports needs a query"));
            };
            let main = ports.first().and_then(|port| tables.get(port.name)).and_then(|tables| tables.first());
            let main = main.ok_or_else(|| Failure::bug("nothing arrives at the first port"))?;
            self.counters.of.store(main.rows(), Ordering::Relaxed);
            let parts = &main.manifest().parts;
            if parts.is_empty() {
                return Ok(None);
            }
            let digests = parts.iter().map(|part| (part.path.clone(), part.digest.clone())).collect();
            let others: BTreeMap<&str, Vec<&str>> = tables
                .iter()
                .filter(|(port, _)| ports.first().is_none_or(|first| first.name != port.as_str()))
                .map(|(port, tables)| (port.as_str(), tables.iter().map(Table::digest).collect()))
                .collect();
            let beside = key::key("beside", &json!({ "columns": main.manifest().columns, "ports": others }));
            let scan = scan(main.schema().clone(), parts.iter().map(|part| vec![part]).collect(), None)?;
            (scan, PartitionSource::Parts { digests, beside })
        };
        let work = StageWork {
            operator: stage.operator_type.name.to_owned(),
            version: stage.operator_type.version,
            config: stage.config.clone(),
            inputs: InputSchemas::new(&stage.inputs),
            outputs: self.outputs(),
            transform,
            seed: stage.seed,
            refresh: self.refresh(),
            files: self.files(),
            forgotten: self.key.forgotten.clone(),
            blobs: tables
                .iter()
                .filter_map(|(port, tables)| Some((port, tables.first()?)))
                .filter(|(_, table)| !table.manifest().blobs.is_empty())
                .map(|(port, table)| (port.clone(), (SchemaBytes::new(table.schema()), table.manifest().clone())))
                .collect(),
            step: self.key.step.clone(),
            generation: self.generation,
            partitioning,
        };
        Ok(Some(Arc::new(StageExec::new(Arc::new(work), input))))
    }

    /// Runs every partition of a stage plan and gives their records in the order of the partitions.
    async fn partitions(&self, plan: Option<Arc<dyn ExecutionPlan>>, batch_rows: usize) -> Result<Vec<PartitionRecord>, Failure> {
        let Some(plan) = plan else { return Ok(Vec::new()) };
        let count = plan.output_partitioning().partition_count();
        // A teacher's rows wait, they don't compute: they need no slot, and rows of few partitions keep it busy.
        let asks = self.stage().operator.resource() == Resource::Teacher;
        let gate = (asks && !self.rehearsal).then(|| Arc::new(Gate::new(self.stage().min_yield)));
        let runtime = StageRuntime { environment: self.environment.clone(), counters: self.counters.clone(), gate };
        let config = session::config(count, batch_rows).with_extension(Arc::new(runtime));
        let session = datafusion::prelude::SessionContext::new_with_config_rt(config, self.environment.runtime.clone());
        let plan = if self.round_trip { codec::round_trip(plan, &session.task_ctx())? } else { plan };
        self.counters.partitions.store(count as u64, Ordering::Relaxed);
        let at_once = if asks { 8 } else { count.max(1) };
        let mut records: Vec<(usize, PartitionRecord)> = futures::stream::iter(0..count)
            .map(|partition| {
                let (plan, context) = (plan.clone(), session.task_ctx());
                async move {
                    let _slot = match asks {
                        true => None,
                        false => Some(
                            self.environment
                                .slots
                                .clone()
                                .acquire_owned()
                                .await
                                .map_err(|error| Failure::bug(error.to_string()))?,
                        ),
                    };
                    let work = async move {
                        let batches: Vec<_> = plan.execute(partition, context)?.try_collect().await?;
                        let text = batches
                            .first()
                            .and_then(|batch| batch.column(0).as_string_opt::<i32>().map(|text| text.value(0).to_owned()));
                        let text = text.ok_or_else(|| Failure::bug("a partition without a record"))?;
                        serde_json::from_str(&text).map_err(|error| Failure::bug(error.to_string()))
                    };
                    let record = Abort(tokio::spawn(work)).await?;
                    Counters::add(&self.counters.partitions_done, 1);
                    Ok::<_, Failure>((partition, record))
                }
            })
            .buffer_unordered(at_once)
            .try_collect()
            .await?;
        records.sort_by_key(|(partition, _)| *partition);
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }

    fn manifest(&self, records: Vec<PartitionRecord>) -> Manifest {
        let units = records.iter().map(|record| record.units).sum();
        let outputs = self
            .stage()
            .outputs
            .iter()
            .map(|output| {
                let parts: Vec<Part> =
                    records.iter().filter_map(|record| record.outputs.get(&output.name)).flatten().cloned().collect();
                let blobs = records.iter().filter_map(|record| record.blobs.get(&output.name)).flatten().cloned().collect();
                let references = records.iter().filter_map(|record| record.references.get(&output.name)).flatten().cloned();
                let table = TableManifest::new(&output.schema, parts, blobs);
                (output.name.clone(), TableManifest { references: references.collect(), ..table })
            })
            .collect();
        Manifest::new(outputs, units)
    }

    /// Row ids that aren't made by an operator from ids that are unique can repeat: then the stage fails and names the rows.
    async fn check_unique(&self, manifest: &Manifest) -> Result<(), Failure> {
        for output in self.stage().outputs.iter().filter(|output| output.name != REJECTS_OUTPUT) {
            let Some(table) = manifest.outputs.get(&output.name) else { continue };
            if output.schema.column_with_name("row_id").is_none() || table.rows < 2 {
                continue;
            }
            let table = Table::new(self.environment, output.schema.clone(), table.clone());
            let inputs: BTreeMap<_, _> = [("rows".to_owned(), vec![table])].into();
            let telling: Vec<&str> = ["doc_id", "question_id", "source"]
                .into_iter()
                .filter(|name| output.schema.column_with_name(name).is_some())
                .collect();
            let extremes: String = telling.iter().map(|name| format!(", min({name}), max({name})")).collect();
            let sql = format!("select row_id{extremes} from rows group by row_id having count(*) > 1 order by row_id limit 3");
            let found: Vec<_> = table::query(self.environment, &inputs, &sql).await?.try_collect().await?;
            let mut rows = Vec::new();
            for batch in &found {
                for row in 0..batch.num_rows() {
                    let cell = |column: usize| arrow::util::display::array_value_to_string(batch.column(column), row);
                    let mut text = Vec::new();
                    for (place, name) in telling.iter().enumerate() {
                        let (low, high) = (cell(1 + 2 * place)?, cell(2 + 2 * place)?);
                        text.push(if low == high { format!("{name} `{low}`") } else { format!("{name} `{low}` and `{high}`") });
                    }
                    text.push(format!("row_id `{}`", cell(0)?));
                    rows.push(text.join(", "));
                }
            }
            if !rows.is_empty() {
                return Err(Failure::data(format!("rows with the same id: {}", rows.join("; ")))
                    .hint("ids must be unique in an output: give the documents or questions ids of their own, or widen `key`"));
            }
        }
        Ok(())
    }
}

/// Awaits a spawned future and aborts it when dropped, so that a cancelled stage stops at once.
struct Abort<T>(tokio::task::JoinHandle<Result<T, Failure>>);

impl<T> Future for Abort<T> {
    type Output = Result<T, Failure>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(context).map(|joined| match joined {
            Ok(result) => result,
            Err(error) => Err(Failure::bug(format!("a partition's thread ended: {error}"))),
        })
    }
}

impl<T> Drop for Abort<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Rows of the stage's main output.
pub(crate) fn main_rows(stage: &Stage, manifest: &Manifest) -> u64 {
    manifest.outputs.get(stage.main_output()).map_or(0, |table| table.rows)
}

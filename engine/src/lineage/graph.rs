//! The graph of artifacts.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde_json::Value;

use crate::{
    failure::Failure,
    operator::{Operator, Ports, Role},
    plan::{Plan, StageIndex},
    run::{Environment, Status, Table, why},
    store::Manifest,
};

/// Artifacts, and who read whose outputs.
pub struct Lineage {
    pub(super) environment: Arc<Environment>,
    artifacts: Vec<Artifact>,
    /// The artifacts that read one, by its place.
    readers: Vec<Vec<usize>>,
}

/// An artifact on the store.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// Its stage's key.
    pub key: String,
    /// Which filling of it.
    pub generation: u64,
    /// Its operator.
    pub operator: String,
    /// The stage whose artifact it is; the one that filled it, where a store is looked at.
    pub name: Name,
    /// What its key is the hash of.
    pub preimage: Value,
    /// Its tables.
    pub manifest: Arc<Manifest>,
    /// The schemas of its outputs; of a store's artifacts only the columns of text.
    pub schemas: BTreeMap<String, SchemaRef>,
    /// What it reads.
    pub reads: Vec<Edge>,
}

/// A stage of a pipeline.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The pipeline.
    pub pipeline: String,
    /// The stage, with its cell.
    pub stage: String,
    /// The run that filled the artifact, where that is known.
    pub run: Option<String>,
}

/// An output that an artifact was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// The port at which it arrived.
    pub port: String,
    /// The place in the port's list.
    pub position: usize,
    /// The artifact, by its place in [`Lineage::artifacts`]. Another artifact of the store may have given the same table.
    pub artifact: usize,
    /// The output.
    pub output: String,
    /// Whether nothing of it counts but which tokens there are: what it says goes no further.
    pub is_vocabulary: bool,
}

impl Lineage {
    /// The artifacts that the stages of a plan have now, and the names of those that have none.
    ///
    /// # Errors
    /// As [`why`].
    pub async fn of_plan(plan: &Plan, environment: &Arc<Environment>) -> Result<(Self, Vec<String>), Failure> {
        let all: HashSet<StageIndex> = plan.stages().map(|(index, _)| index).collect();
        let (mut artifacts, mut missing) = (Vec::new(), Vec::new());
        let mut places: HashMap<StageIndex, usize> = HashMap::new();
        for (index, status) in why(plan, environment, &all, HashSet::new()).await? {
            let stage = plan.stage(index);
            let Status::Hit { key, generation, manifest, filled_by } = status else {
                missing.push(stage.name.clone());
                continue;
            };
            let reads = plan.reads(index).into_iter().filter_map(|((port, position), (above, output))| {
                Some(Edge {
                    port: port.to_owned(),
                    position,
                    artifact: *places.get(&above)?,
                    output: output.to_owned(),
                    is_vocabulary: is_vocabulary(stage.operator.as_ref(), port),
                })
            });
            let reads = reads.collect();
            places.insert(index, artifacts.len());
            artifacts.push(Artifact {
                key: key.key,
                generation,
                operator: stage.operator_type.name.to_owned(),
                name: Name { pipeline: plan.pipeline.clone(), stage: stage.name.clone(), run: filled_by },
                preimage: key.preimage,
                manifest,
                schemas: stage.outputs.iter().map(|output| (output.name.clone(), output.schema.clone())).collect(),
                reads,
            });
        }
        Ok((Self::new(environment, artifacts), missing))
    }

    /// Every artifact on the store, whatever pipeline and run it is of, older fillings included. One whose records can't be read
    /// is left out.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn of_store(environment: &Arc<Environment>) -> Result<Self, Failure> {
        let mut artifacts = Vec::new();
        for (key, generation, action) in environment.store.commits().await? {
            let Some(manifest) = environment.store.manifest(&action.manifest).await? else { continue };
            let text = |of: &Value| of.as_str().unwrap_or_default().to_owned();
            artifacts.push(Artifact {
                key,
                generation: generation.into(),
                operator: text(&action.preimage["operator"]),
                name: Name {
                    pipeline: text(&action.filled_by["pipeline"]),
                    stage: text(&action.filled_by["stage"]),
                    run: action.filled_by["run"].as_str().map(str::to_owned),
                },
                preimage: action.preimage,
                schemas: manifest.outputs.iter().map(|(name, table)| (name.clone(), texts(&table.columns))).collect(),
                manifest: Arc::new(manifest),
                reads: Vec::new(),
            });
        }
        let mut giving: HashMap<String, Vec<(usize, String)>> = HashMap::new();
        for (place, artifact) in artifacts.iter().enumerate() {
            for (output, table) in artifact.manifest.outputs.iter().filter(|(_, table)| table.rows > 0) {
                giving.entry(table.digest.clone()).or_default().push((place, output.clone()));
            }
        }
        for (place, artifact) in artifacts.iter_mut().enumerate() {
            let operator = environment.registry.operator(&artifact.operator);
            let operator = operator.and_then(|operator| operator.parse(artifact.preimage["config"].clone()).ok());
            let mut reads = Vec::new();
            for (port, digests) in artifact.preimage["inputs"].as_object().into_iter().flatten() {
                let is_vocabulary = operator.as_ref().is_some_and(|(operator, _)| is_vocabulary(operator.as_ref(), port));
                let digests = digests.as_array().into_iter().flatten().filter_map(Value::as_str);
                for (position, digest) in digests.enumerate() {
                    for (above, output) in giving.get(digest).into_iter().flatten().filter(|(above, _)| *above != place) {
                        let (port, output) = (port.clone(), output.clone());
                        reads.push(Edge { port, position, artifact: *above, output, is_vocabulary });
                    }
                }
            }
            artifact.reads = reads;
        }
        Ok(Self::new(environment, artifacts))
    }

    pub(super) fn new(environment: &Arc<Environment>, artifacts: Vec<Artifact>) -> Self {
        let mut readers = vec![Vec::new(); artifacts.len()];
        for (place, artifact) in artifacts.iter().enumerate() {
            for edge in &artifact.reads {
                if !readers[edge.artifact].contains(&place) {
                    readers[edge.artifact].push(place);
                }
            }
        }
        Self { environment: environment.clone(), artifacts, readers }
    }

    /// The artifacts; of a plan each after those that it reads.
    pub fn artifacts(&self) -> &[Artifact] {
        &self.artifacts
    }

    /// The places of the artifacts that read one.
    pub fn readers(&self, artifact: usize) -> &[usize] {
        &self.readers[artifact]
    }

    /// The place of a stage's artifact, of a plan.
    pub fn find(&self, stage: &str) -> Option<usize> {
        self.artifacts.iter().position(|artifact| artifact.name.stage == stage)
    }

    /// An output, opened.
    pub fn table(&self, artifact: usize, output: &str) -> Option<Table> {
        let artifact = &self.artifacts[artifact];
        let (schema, table) = (artifact.schemas.get(output)?, artifact.manifest.outputs.get(output)?);
        Some(Table::new(&self.environment, schema.clone(), table.clone()))
    }
}

fn is_vocabulary(operator: &dyn Operator, port: &str) -> bool {
    match operator.ports() {
        Ports::Named(ports) => ports.iter().any(|known| known.name == port && known.role == Role::Vocabulary),
        Ports::Any => false,
    }
}

/// The columns of text.
fn texts(columns: &[crate::store::Column]) -> SchemaRef {
    let text = DataType::Utf8.to_string();
    let columns = columns.iter().filter(|column| column.r#type == text);
    Arc::new(Schema::new(columns.map(|column| Field::new(&column.name, DataType::Utf8, column.nullable)).collect::<Vec<_>>()))
}

//! The checked DAG: every stage bound to its operator, its ports to outputs, its outputs to schemas.

mod bind;
mod leakage;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use arrow::datatypes::SchemaRef;
use petgraph::{Direction, graph::DiGraph, visit::EdgeRef};
use serde_json::Value;

pub use petgraph::graph::NodeIndex as StageIndex;

use crate::{
    diagnostic::Diagnostic,
    failure::Failure,
    operator::{Cell, Cost, DEFAULT_OUTPUT, Inputs, Operator, OperatorType, Output, Price, Registry, Resource},
    spec::Spec,
};

/// By stage, the columns that stand in a source's files ([`crate::operator::Source::columns_in_files`]), or why they can't be
/// had.
pub type SourceColumns = BTreeMap<String, Result<SchemaRef, Failure>>;

/// A pipeline that can run. It is acyclic, every port is served, and every column that a port demands is there.
#[derive(Debug)]
pub struct Plan {
    /// The pipeline's name.
    pub pipeline: String,
    /// The folder that paths in the pipeline file are relative to.
    pub folder: PathBuf,
    /// The entries of `models:`, as written, but for paths, which are absolute; secrets are references.
    pub models: BTreeMap<String, Value>,
    graph: DiGraph<Stage, Edge>,
    order: Vec<StageIndex>,
}

/// A stage of a plan.
#[derive(Debug)]
pub struct Stage {
    /// Its name: that in the file, with the cell behind it (`mixture[arm=mixed]`).
    pub name: String,
    /// Its name in the file, which the cells of a matrix share.
    pub base: String,
    /// Which cell of its matrix it is.
    pub cell: Cell,
    /// Its row of the operator table.
    pub operator_type: &'static OperatorType,
    /// Its operator.
    pub operator: Arc<dyn Operator>,
    /// The operator's config with every default written out.
    pub config: Value,
    /// What arrives, by port.
    pub inputs: Inputs,
    /// What it gives, `rejects` included.
    pub outputs: Vec<Output>,
    /// The stage's seed, or the pipeline's.
    pub seed: u64,
    /// `refresh`, as written.
    pub refresh: Option<Value>,
    /// The share of units that must be accepted.
    pub min_yield: f64,
    /// What the file says it is for.
    pub description: Option<String>,
}

/// An output that arrives at a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// The output of the stage at the edge's tail.
    pub output: String,
    /// The port of the stage at its head.
    pub port: String,
    /// The place in the port's list.
    pub position: usize,
}

impl Stage {
    /// The output called `name`.
    pub fn output(&self, name: &str) -> Option<&Output> {
        self.outputs.iter().find(|output| output.name == name)
    }

    /// The output that stands for the stage where one number is shown: the default one, or else the first.
    pub fn main_output(&self) -> &str {
        match self.output(DEFAULT_OUTPUT) {
            Some(_) => DEFAULT_OUTPUT,
            None => self.outputs.first().map_or(DEFAULT_OUTPUT, |output| &output.name),
        }
    }
}

impl Plan {
    /// Binds a spec, with the columns of its sources as [`crate::run::source_columns`] finds them. Gives a plan only if nothing
    /// is wrong; mistakes downstream of a broken stage are not guessed at.
    pub fn compile(
        spec: &Spec,
        registry: &Registry,
        folder: PathBuf,
        sources: &SourceColumns,
    ) -> (Option<Self>, Vec<Diagnostic>) {
        bind::compile(spec, registry, folder, sources)
    }

    /// The stages, each after those that it reads.
    pub fn stages(&self) -> impl Iterator<Item = (StageIndex, &Stage)> {
        self.order.iter().map(|index| (*index, &self.graph[*index]))
    }

    /// The stage at `index`.
    pub fn stage(&self, index: StageIndex) -> &Stage {
        &self.graph[index]
    }

    /// The stage called `name`.
    pub fn find(&self, name: &str) -> Option<StageIndex> {
        self.order.iter().copied().find(|index| self.graph[*index].name == name)
    }

    /// The stages of the file's stage `base` that have the labels of `cell`: one if it has no matrix, else all cells that fit.
    pub fn cells(&self, base: &str, cell: &Cell) -> Vec<StageIndex> {
        let fits = |stage: &Stage| {
            stage.base == base && cell.0.iter().all(|(axis, label)| stage.cell.label(axis) == Some(label.as_str()))
        };
        self.order.iter().copied().filter(|index| fits(&self.graph[*index])).collect()
    }

    /// What a stage reads: by port and place in the port's list, the stage and its output.
    pub fn reads(&self, index: StageIndex) -> BTreeMap<(&str, usize), (StageIndex, &str)> {
        let edges = self.graph.edges_directed(index, Direction::Incoming);
        edges
            .map(|edge| ((edge.weight().port.as_str(), edge.weight().position), (edge.source(), edge.weight().output.as_str())))
            .collect()
    }

    /// The stages that read this one.
    pub fn readers(&self, index: StageIndex) -> impl Iterator<Item = StageIndex> {
        self.graph.neighbors_directed(index, Direction::Outgoing)
    }

    /// What the model that a stage asks costs, where that is written.
    pub fn price(&self, index: StageIndex, registry: &Registry) -> Option<Price> {
        let models = self.stage(index).operator.models();
        models.iter().find_map(|(_, name)| match (registry.model_cost)(self.models.get(name)?) {
            Cost::Known(price) => Some(price),
            Cost::Free | Cost::Unknown => None,
        })
    }

    /// Whether a stage holds the run's device: one does at a time.
    pub fn holds_device(&self, index: StageIndex, registry: &Registry) -> bool {
        let operator = &self.stage(index).operator;
        let on_device = |name: &String| self.models.get(name).is_some_and(registry.model_on_device);
        operator.resource() == Resource::Device || operator.models().iter().any(|(_, name)| on_device(name))
    }

    /// A stage and all that it depends on.
    pub fn needed_by(&self, index: StageIndex) -> std::collections::HashSet<StageIndex> {
        let reversed = petgraph::visit::Reversed(&self.graph);
        let mut search = petgraph::visit::Dfs::new(reversed, index);
        std::iter::from_fn(|| search.next(reversed)).collect()
    }
}

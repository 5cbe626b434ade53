//! A pipeline as written: parsed, with values put in, each stage checked against its operator's schema, and not yet
//! bound to a graph.

mod credential;
mod expand;
mod from;
mod json_schema;
mod matrix;
mod reader;
mod scalar;
mod schema;
mod size;
mod tree;
mod value;
mod violation;
mod words;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

pub use self::{
    from::{PortSpec, Reference},
    json_schema::json_schema,
    size::Size,
    tree::{Entry, Kind, Node, Place},
};
use crate::{
    diagnostic::{Diagnostic, Source, Span, sorted},
    operator::{Cell, DEFAULT_OUTPUT, Operator, OperatorType, Registry},
};

/// A pipeline as written.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its name; empty if that is missing.
    pub pipeline: String,
    /// What it is for.
    pub description: Option<String>,
    /// Where artifacts are kept, as written.
    pub store: Option<String>,
    /// Dollars that may be spent, over all runs of the pipeline on a store.
    pub budget: Option<f64>,
    /// Where everything that draws starts from.
    pub seed: u64,
    /// Entries of `models`, also those that are refused.
    pub models: BTreeMap<String, Value>,
    /// Entries of `s3`, also those that are refused: how buckets are reached. Secrets are references.
    pub buckets: BTreeMap<String, Value>,
    /// The stages, in the order of the file: one for each cell of a matrix, in the order of its values.
    pub stages: Vec<StageSpec>,
}

/// A stage as written.
#[derive(Debug, Clone)]
pub struct StageSpec {
    /// Its name: that in the file, with the cell behind it (`mixture[arm=mixed]`).
    pub name: String,
    /// Its name in the file.
    pub base: String,
    /// Which cell of its matrix it is.
    pub cell: Cell,
    /// Where the name stands.
    pub name_span: Span,
    /// The word after `op:`; empty if that is missing.
    pub op: String,
    /// Where it stands; the stage's name if it is missing.
    pub op_span: Span,
    /// The whole stage without its name.
    pub span: Span,
    /// Its operator, and the operator's config with every default written out. `None` if something is wrong with the
    /// stage, which has been reported then.
    pub operator: Option<(&'static OperatorType, Arc<dyn Operator>, Value)>,
    /// What it reads.
    pub from: Vec<PortSpec>,
    /// Where its draws start from, instead of the pipeline's seed.
    pub seed: Option<u64>,
    /// A scalar that makes it draw and ask anew when it changes.
    pub refresh: Option<Value>,
    /// The share of rows that has to be accepted, from 0 to 1.
    pub min_yield: f64,
    /// What it is for.
    pub description: Option<String>,
    /// The stage in the file.
    node: Node,
}

impl StageSpec {
    /// The place of a field, given as a JSON pointer below the stage (`/weights/1`). A field that isn't written has the
    /// place of what it would stand in, and the stage itself that of its name.
    pub fn span_of(&self, field_pointer: &str) -> Span {
        let place = self.node.closest(field_pointer);
        if std::ptr::eq(place.node, &self.node) { self.name_span } else { place.node.span }
    }
}

impl Spec {
    /// The stage called `name`.
    pub fn stage(&self, name: &str) -> Option<&StageSpec> {
        self.stages.iter().find(|stage| stage.name == name)
    }

    /// Puts a stage called `name` between the output `of` and those of its readers that `reads` picks. What is wrong with
    /// it is reported at the stage that it stands behind.
    pub fn interpose(
        &mut self,
        of: (&str, &str),
        name: &str,
        operator: (&'static OperatorType, Arc<dyn Operator>, Value),
        port: &str,
        reads: impl Fn(&StageSpec) -> bool,
    ) {
        let Some(behind) = self.stage(of.0).cloned() else { return };
        for stage in self.stages.iter_mut().filter(|stage| reads(stage)) {
            for input in stage.from.iter_mut().flat_map(|port| &mut port.inputs) {
                if (input.stage_name().as_str(), input.output.as_str()) == of {
                    (input.stage, input.cell, input.output) = (name.to_owned(), Cell::default(), DEFAULT_OUTPUT.to_owned());
                }
            }
        }
        let span = behind.name_span;
        let input = Reference { stage: behind.base.clone(), cell: behind.cell.clone(), output: of.1.to_owned(), span };
        self.stages.push(StageSpec {
            name: name.to_owned(),
            base: name.to_owned(),
            cell: Cell::default(),
            op: operator.0.name.to_owned(),
            operator: Some(operator),
            from: vec![PortSpec { port: Some(port.to_owned()), port_span: span, list: false, inputs: vec![input] }],
            refresh: None,
            description: None,
            min_yield: 0.0,
            ..behind
        });
    }
}

/// Reads a pipeline file.
///
/// `overrides` are pairs such as (`vars.tokens`, `10M`); `env` looks up `${env:NAME}`, whose value is always a text.
/// Nothing but `source` and `env` is read. Gives all mistakes, by position, and the pipeline as far as it could be read:
/// `None` only if the file isn't a YAML mapping. What a stage reads is checked for its form, not for whether it exists.
pub fn parse(
    source: &Source,
    registry: &Registry,
    overrides: &[(String, String)],
    env: &dyn Fn(&str) -> Option<String>,
) -> (Option<Spec>, Vec<Diagnostic>) {
    let tree = tree::parse(source);
    let (spec, mut diagnostics) = match tree.root {
        Some(root) => reader::read(source, registry, overrides, env, root, tree.broken),
        None => (None, Vec::new()),
    };
    diagnostics.extend(tree.diagnostics);
    (spec, sorted(diagnostics))
}

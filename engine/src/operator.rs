//! What an operator is: a plain typed config that binds to schemas and lowers itself.
//!
//! The engine knows operators only through [`OperatorType`], one row of the table that the command passes in.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    failure::Failure,
    run::{RowStream, Task},
};

/// The name of the output that `from: stage` means.
pub const DEFAULT_OUTPUT: &str = "default";
/// The output of rows that a stage refused; every stage has one.
pub const REJECTS_OUTPUT: &str = "rejects";

/// All that the engine is given to work with: the operators and what a `models:` entry looks like.
#[derive(Debug, Clone, Copy)]
pub struct Registry {
    /// The operators that are built, in the order in which they are shown.
    pub operators: &'static [OperatorType],
    /// Operators that the design names but that aren't built yet: refused by name.
    pub planned: &'static [&'static str],
    /// JSON Schema of one entry under `models:`.
    pub model_schema: fn() -> schemars::Schema,
    /// A model's entry, with the paths in it made those of files beside the pipeline file, which lies in this folder. All
    /// others get it so.
    pub model_beside: fn(&Value, &Path) -> Value,
    /// Whether a model with this entry can answer; if not, why.
    pub model_ready: fn(&Value) -> Result<(), String>,
    /// What of a model's entry enters keys. What is looked up at length for it is kept in the folder, which is the machine's.
    pub model_identity: fn(&Value, &Path) -> Result<Value, Failure>,
    /// Whether a model with this entry answers on the run's device: one of these or one training holds it at a time.
    pub model_on_device: fn(&Value) -> bool,
    /// What asking a model with this entry costs.
    pub model_cost: fn(&Value) -> Cost,
}

#[cfg(test)]
impl Registry {
    /// No operators, and models that cost nothing.
    pub(crate) const EMPTY: Self = Self {
        operators: &[],
        planned: &[],
        model_schema: schemars::Schema::default,
        model_beside: |entry, _| entry.clone(),
        model_ready: |_| Ok(()),
        model_identity: |entry, _| Ok(entry.clone()),
        model_on_device: |_| false,
        model_cost: |_| Cost::Free,
    };
}

/// What asking a model costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cost {
    /// Nothing.
    Free,
    /// So much.
    Known(Price),
    /// It may cost something, and nobody said how much.
    Unknown,
}

/// What a model costs, in dollars per million tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Price {
    /// For tokens of requests.
    pub input: f64,
    /// For tokens of answers.
    pub output: f64,
}

impl Price {
    /// What so many tokens cost, in dollars.
    pub fn of(self, input_tokens: u64, output_tokens: u64) -> f64 {
        (self.input * input_tokens as f64 + self.output * output_tokens as f64) / 1e6
    }
}

impl Registry {
    /// The operator called `name`.
    pub fn operator(&self, name: &str) -> Option<&'static OperatorType> {
        self.operators.iter().find(|operator| operator.name == name)
    }
}

/// An operator, and its config with every default written out.
pub type Parsed = (Arc<dyn Operator>, Value);

/// One row of the operator table.
#[derive(Clone, Copy)]
pub struct OperatorType {
    /// The word after `op:`.
    pub name: &'static str,
    /// The semantics version, part of every stage key. Raise it when outputs made by older code are no longer right.
    pub version: u32,
    /// Config fields that stay out of the stage key, each with the reason why it can't change the output.
    pub unkeyed: &'static [(&'static str, &'static str)],
    /// Whether a port that reads a matrix stage gets all its cells ([`Input::cell`]) instead of one; the names of the inputs,
    /// which the outputs hold, enter the key then.
    pub gathers: bool,
    /// Whether a run ends with the default output of every stage of this kind.
    pub reported: bool,
    /// Metrics of that output which the end of a run leaves out, with all their splits: they are for a second look.
    pub detail: &'static [&'static str],
    /// Config fields that the design names but that aren't built yet: refused by name.
    pub planned: &'static [&'static str],
    parse: fn(Value) -> Result<Parsed, String>,
    schema: fn() -> schemars::Schema,
}

impl Debug for OperatorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OperatorType({} {})", self.name, self.version)
    }
}

impl OperatorType {
    /// The row for `T`, called `name`, at semantics version `version`.
    pub const fn of<T>(name: &'static str, version: u32) -> Self
    where
        T: Operator + Serialize + DeserializeOwned + JsonSchema + 'static,
    {
        Self {
            name,
            version,
            unkeyed: &[],
            gathers: false,
            reported: false,
            detail: &[],
            planned: &[],
            parse: |value| {
                let operator: T = serde_json::from_value(value).map_err(|error| error.to_string())?;
                let config = serde_json::to_value(&operator).map_err(|error| error.to_string())?;
                Ok((Arc::new(operator), config))
            },
            schema: || {
                schemars::generate::SchemaSettings::draft2020_12()
                    .with(|settings| settings.inline_subschemas = true)
                    .into_generator()
                    .into_root_schema_for::<T>()
            },
        }
    }

    /// Leaves `fields` out of the stage key; each comes with its reason.
    pub const fn unkeyed(mut self, fields: &'static [(&'static str, &'static str)]) -> Self {
        self.unkeyed = fields;
        self
    }

    /// Refuses `fields` by name: the design has them, this version hasn't.
    pub const fn planned(mut self, fields: &'static [&'static str]) -> Self {
        self.planned = fields;
        self
    }

    /// Leaves `metrics` out at the end of a run.
    pub const fn detail(mut self, metrics: &'static [&'static str]) -> Self {
        self.detail = metrics;
        self
    }

    /// Gives its ports all cells of a matrix stage.
    pub const fn gathers(mut self) -> Self {
        self.gathers = true;
        self
    }

    /// Has a run end with the default output of every stage of this kind.
    pub const fn reported(mut self) -> Self {
        self.reported = true;
        self
    }

    /// Reads a config and gives the operator with its canonical form, in which every default is written out.
    ///
    /// # Errors
    /// What serde says of a config that doesn't fit the schema.
    pub fn parse(&self, config: Value) -> Result<Parsed, String> {
        (self.parse)(config)
    }

    /// JSON Schema of the operator's own fields. Its description is the operator's reference page.
    pub fn schema(&self) -> schemars::Schema {
        (self.schema)()
    }
}

/// The work of a stage. The implementing type is the stage's config and nothing more; whatever is live (clients,
/// tokenizers, devices) comes from the context that a stream or a task is run with.
pub trait Operator: Debug + Send + Sync {
    /// The ports, given this config.
    fn ports(&self) -> Ports;

    /// Checks the config against the schemas that arrive and names the schemas of the outputs. Does no I/O.
    ///
    /// `row_id` and, unless the rows come from a source, `parent_id` are part of the schemas; `rejects` is added by the
    /// engine. Columns that a [`Port`] demands have been checked before.
    ///
    /// # Errors
    /// All mistakes at once, each at its field.
    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>>;

    /// How the work is done. Called after a successful bind, with the same inputs.
    fn lower(&self, inputs: &Inputs) -> Lowering;

    /// Whether the outputs depend on the stage's seed, which then enters the key.
    fn draws(&self) -> bool {
        false
    }

    /// The files that a source reads; `None` for everything that reads ports.
    fn source(&self) -> Option<Source> {
        None
    }

    /// Files named in the config, as (field, path): they enter the key by content instead of by path. The engine makes the
    /// paths relative to the pipeline file before the operator is bound.
    fn files(&self) -> Vec<(&'static str, PathBuf)> {
        Vec::new()
    }

    /// Entries of `models:` that the config names, as (field, name): their identity enters the key.
    fn models(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// What the stage needs beside CPU and memory.
    fn resource(&self) -> Resource {
        Resource::None
    }

    /// Whether a stage may question rows that it also trains on (`allow_leakage`).
    fn allows_leakage(&self) -> bool {
        false
    }
}

/// The ports of an operator.
#[derive(Debug, Clone, PartialEq)]
pub enum Ports {
    /// Named ports; the first is the one that `from: stage` means. Empty for a source.
    Named(Vec<Port>),
    /// Any names, each taking one table (`sql`).
    Any,
}

/// A named input.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    /// Its name in `from`.
    pub name: &'static str,
    /// Whether it takes a list of outputs.
    pub many: bool,
    /// Whether it may be left out.
    pub optional: bool,
    /// Columns that every table here must have.
    pub columns: Vec<(&'static str, DataType)>,
    /// What the rows are used for, for the leakage check.
    pub role: Role,
}

impl Port {
    /// A port that takes one table with at least these columns.
    pub fn new(name: &'static str, columns: &[(&'static str, DataType)]) -> Self {
        Self { name, many: false, optional: false, columns: columns.to_vec(), role: Role::Other }
    }

    /// The port takes a list.
    pub fn many(mut self) -> Self {
        self.many = true;
        self
    }

    /// The port may be left out.
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// The port's rows are used for `role`.
    pub fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }
}

/// What a port's rows are used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Weights are trained on them.
    Train,
    /// A model is questioned with them.
    Question,
    /// A model that was trained: training stages above it count as its training data.
    Model,
    /// Nothing of them but which tokens there are.
    Vocabulary,
    /// None of these.
    Other,
}

/// The schemas that arrive, by port, in the order of the list for a port that takes several.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Port name to what arrives there.
    pub ports: BTreeMap<String, Vec<Input>>,
    /// The columns of a source's first file, where [`Source::columns_in_files`] asks for them.
    pub source: Option<SchemaRef>,
}

/// One table that arrives at a port.
#[derive(Debug, Clone)]
pub struct Input {
    /// The stage's output, as it would be written in the file, for messages: `exam[arm=mixed].predictions`.
    pub name: String,
    /// Which cell of its stage's matrix it is; empty for a stage without one.
    pub cell: Cell,
    /// Its columns.
    pub schema: SchemaRef,
}

/// A cell of a matrix: the label of its value on each axis, by the axes' names. A stage without a matrix is one cell
/// without axes.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cell(pub Vec<(String, String)>);

impl Cell {
    /// The label on an axis, if the cell has it.
    pub fn label(&self, axis: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == axis).map(|(_, label)| label.as_str())
    }
}

/// `[arm=mixed,tokens=1M]`; nothing for a stage without a matrix.
impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        let labels: Vec<String> = self.0.iter().map(|(axis, label)| format!("{axis}={label}")).collect();
        write!(f, "[{}]", labels.join(","))
    }
}

impl Inputs {
    /// The first table at `port`, if something arrives there.
    pub fn first(&self, port: &str) -> Option<&Input> {
        self.ports.get(port).and_then(|inputs| inputs.first())
    }

    /// All tables at `port`.
    pub fn all(&self, port: &str) -> &[Input] {
        self.ports.get(port).map_or(&[], Vec::as_slice)
    }
}

/// A table that a stage gives.
#[derive(Debug, Clone)]
pub struct Output {
    /// `default`, `removed`, `predictions`, ...
    pub name: String,
    /// Its columns.
    pub schema: SchemaRef,
    /// The ports whose rows pass through, with their `row_id`; empty where rows are made here. Two outputs of a stage that
    /// pass rows of one port through share none of them.
    pub rows_of: Vec<String>,
}

impl Output {
    /// Rows made by the operator.
    pub fn new(name: &str, fields: Vec<Field>) -> Self {
        Self { name: name.into(), schema: Arc::new(Schema::new(fields)), rows_of: Vec::new() }
    }

    /// Rows that pass through from `port`.
    pub fn of(name: &str, schema: SchemaRef, port: &str) -> Self {
        Self { name: name.into(), schema, rows_of: vec![port.into()] }
    }
}

/// A mistake in a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The field, as a JSON pointer below the stage (`/where`, `/weights/1`); empty for the stage itself.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
}

impl Invalid {
    /// A mistake at `field`.
    pub fn new(field: &str, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), hint: None }
    }

    /// Says what would be right.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// How a stage's work is done.
pub enum Lowering {
    /// An SQL query over the ports, a row transform over what it gives (or over the only port, part by part), or both.
    Rows {
        /// The relational step.
        query: Option<Query>,
        /// The row transform.
        stream: Option<Arc<dyn RowStream>>,
    },
    /// Opened artifacts in, tables and blobs out, on the machine that runs the command.
    Task(Arc<dyn Task>),
}

/// A relational step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// A `SELECT` whose tables are the ports: `documents`, or `sources_0`, `sources_1`, ... for a port that takes a list.
    /// It gives a `row_id`.
    pub sql: String,
    /// Whether a repeated `row_id` is an error that stops the stage. Needed only where a user's SQL makes the ids.
    pub unique: bool,
}

/// The files that a source reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Paths with globs, relative to the pipeline file, or URLs. Folders, where there are `names`.
    pub paths: Vec<String>,
    /// Globs of the names that files directly in the folders have; what else lies there is left alone. Empty: the paths are of
    /// files.
    pub names: &'static [&'static str],
    /// Globs of files to leave out, relative to the fixed part of each path.
    pub exclude: Vec<String>,
    /// Whether the columns are those of the files, which are Parquet then. The footer of the first one is read before the
    /// operator is bound: [`Inputs::source`].
    pub columns_in_files: bool,
}

/// What a stage needs beside CPU and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Nothing.
    None,
    /// A language model that answers over the network or in the process.
    Teacher,
    /// The training device: one stage at a time, in a process of its own.
    Device,
}

/// The columns of every `rejects` output.
pub fn rejects_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("row_id", DataType::Utf8, false),
        Field::new("parent_id", DataType::Utf8, true),
        Field::new("reason", DataType::Utf8, false),
        Field::new("detail", DataType::Utf8, true),
        Field::new("raw", DataType::Utf8, true),
        Field::new("attempts", DataType::Int32, false),
    ]))
}

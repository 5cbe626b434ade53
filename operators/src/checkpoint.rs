//! Checkpoints to start a training from.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Int64Type, SchemaRef},
};
use async_trait::async_trait;
use ingrain_engine::{
    digest::undigested,
    failure::Failure,
    key,
    operator::{DEFAULT_OUTPUT, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports},
    run::{Task, TaskContext},
};
use ingrain_student::{Architecture, CheckpointError, Preset, Random};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    teachers::texts,
    tokenizer::{self, FILE, FOLDER as TOKENIZER_FOLDER},
};

const TOKENIZER: &str = "tokenizer";
/// The folder of blobs beside a checkpoint's row.
pub(crate) const FOLDER: &str = "checkpoint";

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Checkpoint>("checkpoint", 1);

/// Gives a model to start from: a preset's architecture with random weights, which the stage's seed decides, and a tokenizer.
///
/// `preset: tiny` is a Llama of 2 layers of width 128 with 4 heads, feed-forward 336, and tied embeddings. Its weights are
/// normal with deviation 0.02, those of matrices that write into the residual stream divided by the root of twice the layers.
///
/// # Ports
/// - `tokenizer`: the tokenizer, whose number of tokens is the model's vocabulary.
///
/// # Outputs
/// - default: one row: `uri` (of the folder, relative to the artifact), `digest` (of the folder's files), `architecture` (the
///   model's configuration as JSON), `step` and `tokens` (trained so far: 0), `loss` (null), `final` (true). The files lie
///   beside it as `checkpoint/...`, a folder that `transformers` loads. There is no `parent_id`.
/// - `tokenizer`: the tokenizer, as the operator of that name gives it.
///
/// # Example
/// ```yaml
/// base: { op: checkpoint, from: words, preset: tiny }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// An architecture that gets random weights: `tiny`, `small`, `medium` or `large`.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// A folder of a Hugging Face checkpoint. Not built yet.
    #[serde(default)]
    pub path: Option<String>,
}

impl Operator for Checkpoint {
    fn ports(&self) -> Ports {
        Ports::Named(match self.path {
            Some(_) => Vec::new(),
            None => vec![Port::new(TOKENIZER, &[("digest", DataType::Utf8), ("vocabulary", DataType::Int32)])],
        })
    }

    fn bind(&self, _: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        if self.path.is_some() {
            return Err(vec![
                Invalid::new("/path", "checkpoints of one's own aren't built yet").hint("`preset: tiny` with a tokenizer is"),
            ]);
        }
        if self.preset.is_none() {
            return Err(vec![Invalid::new("", "no `preset` is given").hint("write `preset: tiny`")]);
        }
        Ok(vec![Output::new(DEFAULT_OUTPUT, fields(false)), Output::new(TOKENIZER, tokenizer::fields())])
    }

    fn lower(&self, _: &Inputs) -> Lowering {
        Lowering::Task(Arc::new(Make(self.clone())))
    }

    fn draws(&self) -> bool {
        true
    }
}

struct Make(Checkpoint);

#[async_trait]
impl Task for Make {
    async fn run(&self, context: &mut TaskContext) -> Result<(), Failure> {
        let preset = self.0.preset.ok_or_else(|| Failure::bug("a checkpoint without a preset"))?;
        let json = context.table(TOKENIZER)?.blob(&format!("{TOKENIZER_FOLDER}/{FILE}")).await?;
        let tokenizer = ingrain_student::Tokenizer::from_json(&json).map_err(tokenizer::failure)?;
        let architecture = preset.architecture(tokenizer.vocabulary());
        let weights = Random::new(&architecture, context.seed);
        let checkpoint = ingrain_student::Checkpoint::new(architecture, weights, &json).map_err(failure)?;
        let digest = put_files(context, &checkpoint).await?;
        let row = Row {
            row_id: key::row_id("checkpoint", 0, &[&digest], 0, 0),
            parent_id: None,
            digest,
            architecture: described(&checkpoint.architecture)?,
            step: 0,
            tokens: 0,
            loss: None,
        };
        context.write(DEFAULT_OUTPUT, row.batch(context.schema(DEFAULT_OUTPUT)?)?).await?;
        tokenizer::put(context, TOKENIZER, &json).await
    }
}

/// What a checkpoint's error means for a stage.
pub(crate) fn failure(error: CheckpointError) -> Failure {
    match error {
        CheckpointError::Io { .. } => Failure::external(error.to_string()),
        error => Failure::data(error.to_string()),
    }
}

/// Writes a checkpoint's folder as blobs of the default output and gives the folder's digest.
pub(crate) async fn put_files(context: &mut TaskContext, checkpoint: &ingrain_student::Checkpoint) -> Result<String, Failure> {
    let folder = context.scratch().join(FOLDER);
    checkpoint.write(&folder).map_err(failure)?;
    context.put_folder(DEFAULT_OUTPUT, FOLDER, &folder).await
}

/// An architecture as the column of that name holds it.
pub(crate) fn described(architecture: &Architecture) -> Result<String, Failure> {
    serde_json::to_string(architecture).map_err(|error| Failure::bug(error.to_string()))
}

/// The columns of a checkpoint's row; `parent` where it was made from another checkpoint.
pub(crate) fn fields(parent: bool) -> Vec<Field> {
    let mut fields = vec![Field::new("row_id", DataType::Utf8, false)];
    if parent {
        fields.push(Field::new("parent_id", DataType::Utf8, false));
    }
    fields.extend([
        undigested(Field::new("uri", DataType::Utf8, false)),
        Field::new("digest", DataType::Utf8, false),
        Field::new("architecture", DataType::Utf8, false),
        Field::new("step", DataType::Int64, false),
        Field::new("tokens", DataType::Int64, false),
        Field::new("loss", DataType::Float64, true),
        Field::new("final", DataType::Boolean, false),
    ]);
    fields
}

/// The last checkpoint of a stage.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) row_id: String,
    pub(crate) parent_id: Option<String>,
    pub(crate) digest: String,
    pub(crate) architecture: String,
    pub(crate) step: i64,
    pub(crate) tokens: i64,
    pub(crate) loss: Option<f64>,
}

impl Row {
    /// As rows with the columns of [`fields`].
    pub(crate) fn batch(self, schema: SchemaRef) -> Result<RecordBatch, Failure> {
        let text = |value: String| Arc::new(StringArray::from(vec![value])) as ArrayRef;
        let mut columns = vec![text(self.row_id)];
        columns.extend(self.parent_id.map(text));
        columns.extend([
            text(FOLDER.into()),
            text(self.digest),
            text(self.architecture),
            Arc::new(Int64Array::from(vec![self.step])),
            Arc::new(Int64Array::from(vec![self.tokens])),
            Arc::new(Float64Array::from(vec![self.loss])),
            Arc::new(BooleanArray::from(vec![true])),
        ]);
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}

/// Which checkpoint a training starts from, and how far it was trained before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) row_id: String,
    pub(crate) step: i64,
    pub(crate) tokens: i64,
}

impl Start {
    /// The row with `final` among a checkpoint stage's rows.
    pub(crate) fn of(rows: &[RecordBatch]) -> Result<Self, Failure> {
        for batch in rows {
            let last = batch.column_by_name("final").and_then(|column| column.as_boolean_opt());
            let last = last.ok_or_else(|| Failure::bug("a checkpoint without `final`"))?;
            let Some(row) = (0..batch.num_rows()).find(|row| last.is_valid(*row) && last.value(*row)) else { continue };
            let number = |name: &str| {
                let column = batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>());
                column.map(|column| column.value(row)).ok_or_else(|| Failure::bug(format!("a checkpoint without `{name}`")))
            };
            let row_id = texts(batch, "row_id")?.value(row).to_owned();
            return Ok(Self { row_id, step: number("step")?, tokens: number("tokens")? });
        }
        Err(Failure::data("no row with `final` among the checkpoints"))
    }

    /// Whether the weights are random.
    pub(crate) fn is_random(&self) -> bool {
        self.step == 0 && self.tokens == 0
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Schema;
    use serde_json::json;

    use super::*;

    fn config(value: serde_json::Value) -> Checkpoint {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_presets_are_built() {
        let outputs = config(json!({ "preset": "tiny" })).bind(&Inputs::default()).unwrap();
        assert_eq!(outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>(), [DEFAULT_OUTPUT, TOKENIZER]);
        assert_eq!(outputs[1].schema.fields().to_vec(), Schema::new(tokenizer::fields()).fields().to_vec());
        let path = config(json!({ "path": "hf://a/b@c" }));
        assert_eq!(path.ports(), Ports::Named(Vec::new()));
        assert_eq!(path.bind(&Inputs::default()).unwrap_err()[0].field, "/path");
        assert!(config(json!({})).bind(&Inputs::default()).is_err());
        assert!(serde_json::from_value::<Checkpoint>(json!({ "preset": "huge" })).is_err());
    }

    #[test]
    fn a_training_starts_from_the_final_row() {
        let schema = Arc::new(Schema::new(fields(true)));
        let row = |id: &str, step| Row {
            row_id: id.into(),
            parent_id: Some("base".into()),
            digest: "d".into(),
            architecture: "{}".into(),
            step,
            tokens: 2 * step,
            loss: Some(0.5),
        };
        let earlier = row("a", 5).batch(schema.clone()).unwrap();
        let mut columns = earlier.columns().to_vec();
        columns[8] = Arc::new(BooleanArray::from(vec![false]));
        let earlier = RecordBatch::try_new(schema.clone(), columns).unwrap();
        let last = row("b", 9).batch(schema).unwrap();
        let start = Start::of(&[earlier.clone(), last]).unwrap();
        assert_eq!(start, Start { row_id: "b".into(), step: 9, tokens: 18 });
        assert!(!start.is_random());
        assert!(Start::of(&[earlier]).is_err());
        let fresh = row("c", 0).batch(Arc::new(Schema::new(fields(true)))).unwrap();
        assert!(Start::of(&[fresh]).unwrap().is_random());
    }
}

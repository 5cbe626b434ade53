//! Checkpoints to start a training from.

mod given;

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
    operator::{DEFAULT_OUTPUT, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports, Source},
    run::{Task, TaskContext},
};
use ingrain_student::{Architecture, CheckpointError, Preset, Random};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    columns::optional_text,
    render::Render,
    teachers::texts,
    tokenizer::{self, FILE, FOLDER as TOKENIZER_FOLDER},
};

const TOKENIZER: &str = "tokenizer";
/// The folder of blobs beside a checkpoint's row.
pub(crate) const FOLDER: &str = "checkpoint";

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Checkpoint>("checkpoint", 2)
    .unkeyed(&[("path", "the files that are found there are in the key, by name, size and state")]);

/// Gives a model to start from: one in the layout of Hugging Face, with its tokenizer, or a preset's architecture with random
/// weights, which the stage's seed decides.
///
/// `path` names a folder beside the pipeline file, under `s3://bucket/prefix`, or a repository of the hub as
/// `hf://owner/name@revision`. It holds `config.json`, `tokenizer.json`, and `model.safetensors` or
/// `model.safetensors.index.json` with the files that it names; `generation_config.json`, `tokenizer_config.json`,
/// `special_tokens_map.json` and `chat_template.jinja` go along where they are there. `config.json`, the tokenizer and what the
/// weight files say of their tensors are checked when the stage runs. Weights stay where they are: the store gets the small files,
/// and of the weights their place, size and state (on a disk and the hub the digest of their content, on S3 the etag). A stage that
/// computes with them fetches them into a local cache folder; who wants the tokenizer fetches none.
///
/// For the hub, `HF_ENDPOINT`, `HF_TOKEN` (or the file that `hf auth login` writes), `HF_HOME` and `HF_HUB_CACHE` mean what they
/// do elsewhere. A commit as revision is looked up once; a branch or a tag at every run, which runs anew what depends on it when
/// the files behind it have changed.
///
/// `preset: tiny` is a Llama of 2 layers of width 128 with 4 heads, feed-forward 336, and tied embeddings. Its weights are
/// normal with deviation 0.02, those of matrices that write into the residual stream divided by the root of twice the layers.
///
/// # Ports
/// - `tokenizer`: with `preset`, the tokenizer, whose number of tokens is the model's vocabulary. None with `path`.
///
/// # Outputs
/// - default: one row: `uri` (of the folder, relative to the artifact), `digest` (of the folder's files), `architecture` (the
///   model's configuration as JSON), `step` and `tokens` (trained here so far: 0), `loss` (null), `render` (null: no
///   training here gave it a form of questions), `final` (true). The files lie
///   beside it as `checkpoint/...`, a folder that `transformers` loads; weights behind a `path` are only referred to. There is no
///   `parent_id`.
/// - `tokenizer`: the tokenizer, as the operator of that name gives it.
///
/// # Example
/// ```yaml
/// base: { op: checkpoint, path: "hf://meta-llama/Llama-3.1-8B-Instruct@0e9e39f249a16976918f6564b8830bc894c89659" }
/// tiny: { op: checkpoint, from: words, preset: tiny }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// An architecture that gets random weights: `tiny`, `small`, `medium` or `large`.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// A folder with a checkpoint in the layout of Hugging Face: a path relative to the pipeline file, `s3://bucket/prefix`, or
    /// `hf://owner/name@revision`. Not with `preset`.
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
        match (&self.preset, &self.path) {
            (None, None) => {
                let hint = "write `path: hf://owner/name@revision` (or a folder), or `preset: tiny` for random weights";
                return Err(vec![Invalid::new("", "neither `path` nor `preset` is given").hint(hint)]);
            }
            (Some(_), Some(_)) => {
                let hint = "a preset's weights are random: leave one of the two out";
                return Err(vec![Invalid::new("/preset", "`path` names a model already").hint(hint)]);
            }
            (None, Some(path)) => given::check(path).map_err(|mistake| vec![mistake])?,
            (Some(_), None) => {}
        }
        Ok(vec![Output::new(DEFAULT_OUTPUT, fields(false)), Output::new(TOKENIZER, tokenizer::fields())])
    }

    fn lower(&self, _: &Inputs) -> Lowering {
        Lowering::Task(match &self.path {
            Some(path) => Arc::new(given::Take { path: path.clone() }),
            None => Arc::new(Make(self.clone())),
        })
    }

    fn draws(&self) -> bool {
        self.preset.is_some()
    }

    fn source(&self) -> Option<Source> {
        self.path.as_deref().map(given::source)
    }
}

struct Make(Checkpoint);

#[async_trait]
impl Task for Make {
    async fn run(&self, context: &mut TaskContext) -> Result<(), Failure> {
        let preset = self.0.preset.ok_or_else(|| Failure::bug("a checkpoint without a preset"))?;
        let files = tokenizer::small_files(context.table(TOKENIZER)?, TOKENIZER_FOLDER).await?;
        let json = files.get(FILE).ok_or_else(|| Failure::data(format!("no `{FILE}` at the port `{TOKENIZER}`")))?;
        let tokenizer = ingrain_student::Tokenizer::from_json(json).map_err(tokenizer::failure)?;
        let architecture = preset.architecture(tokenizer.vocabulary());
        let weights = Random::new(&architecture, context.seed);
        let mut checkpoint = ingrain_student::Checkpoint::new(architecture, weights, json).map_err(failure)?;
        checkpoint.files.extend(files);
        let digest = put_files(context, &checkpoint).await?;
        let row = Row {
            row_id: Origin::Random.row_id(&digest),
            parent_id: None,
            digest,
            architecture: described(&checkpoint.architecture)?,
            step: 0,
            tokens: 0,
            loss: None,
            render: None,
        };
        context.write(DEFAULT_OUTPUT, row.batch(context.schema(DEFAULT_OUTPUT)?)?).await?;
        tokenizer::put(context, TOKENIZER, &checkpoint.files).await
    }
}

/// Where the weights of a checkpoint come from that no stage here has trained.
#[derive(Debug, Clone, Copy)]
enum Origin {
    /// They are drawn.
    Random,
    /// They were trained elsewhere.
    Given,
}

impl Origin {
    /// The id of the row of a checkpoint with this digest. It tells the origin, so that equal files of two origins, which a training
    /// treats differently, are two rows.
    fn row_id(self, digest: &str) -> String {
        let number = match self {
            Self::Random => 0,
            Self::Given => 1,
        };
        key::row_id("checkpoint", number, &[digest], 0, 0)
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
        Field::new("render", DataType::Utf8, true),
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
    /// In which form it was asked in training, if in any.
    pub(crate) render: Option<Render>,
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
            Arc::new(StringArray::from(vec![self.render.map(Render::as_str)])),
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
    /// Whether the weights are random.
    pub(crate) is_random: bool,
    /// In which form it was asked in training, if in any.
    pub(crate) render: Option<Render>,
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
            let is_random = row_id == Origin::Random.row_id(texts(batch, "digest")?.value(row));
            let render = optional_text(batch, "render", row)?.and_then(Render::from_name);
            return Ok(Self { row_id, step: number("step")?, tokens: number("tokens")?, is_random, render });
        }
        Err(Failure::data("no row with `final` among the checkpoints"))
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
    fn a_model_is_given_or_a_preset() {
        let outputs = config(json!({ "preset": "tiny" })).bind(&Inputs::default()).unwrap();
        assert_eq!(outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>(), [DEFAULT_OUTPUT, TOKENIZER]);
        assert_eq!(outputs[1].schema.fields().to_vec(), Schema::new(tokenizer::fields()).fields().to_vec());
        let path = config(json!({ "path": "hf://a/b@c" }));
        assert_eq!(path.ports(), Ports::Named(Vec::new()));
        assert_eq!(path.bind(&Inputs::default()).unwrap().len(), 2);
        assert!(!path.draws() && path.source().is_some());
        assert!(config(json!({})).bind(&Inputs::default()).is_err());
        let both = config(json!({ "path": "a", "preset": "tiny" }));
        assert_eq!(both.bind(&Inputs::default()).unwrap_err()[0].field, "/preset");
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
            render: Some(Render::Chat),
        };
        let earlier = row("a", 5).batch(schema.clone()).unwrap();
        let mut columns = earlier.columns().to_vec();
        columns[9] = Arc::new(BooleanArray::from(vec![false]));
        let earlier = RecordBatch::try_new(schema.clone(), columns).unwrap();
        let last = row("b", 9).batch(schema).unwrap();
        let start = Start::of(&[earlier.clone(), last]).unwrap();
        assert_eq!(start, Start { row_id: "b".into(), step: 9, tokens: 18, is_random: false, render: Some(Render::Chat) });
        assert!(Start::of(&[earlier]).is_err());
        for (origin, is_random) in [(Origin::Random, true), (Origin::Given, false)] {
            let fresh = row(&origin.row_id("d"), 0).batch(Arc::new(Schema::new(fields(true)))).unwrap();
            assert_eq!(Start::of(&[fresh]).unwrap().is_random, is_random);
        }
    }
}

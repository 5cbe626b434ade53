//! Tokenizers: trained on documents, or read from a file.

use std::{path::PathBuf, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, Int32Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, SchemaRef},
};
use async_trait::async_trait;
use futures::TryStreamExt;
use ingrain_engine::{
    digest::undigested,
    failure::Failure,
    key,
    operator::{DEFAULT_OUTPUT, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports},
    run::{Table, Task, TaskContext},
    spec::Size,
};
use ingrain_student::tokenizer::{SMALLEST_VOCABULARY, TokenizerError, train};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::teachers::texts;

const DOCUMENTS: &str = "documents";
/// The folder of blobs beside a tokenizer's row.
pub(crate) const FOLDER: &str = "tokenizer";
/// The one file in it.
pub(crate) const FILE: &str = "tokenizer.json";
/// Tokens of a tokenizer, where `vocabulary` is left out.
const VOCABULARY: u64 = 2048;

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Tokenizer>("tokenizer", 1);

/// Makes a tokenizer: a byte-level BPE trained on documents, or one that a `tokenizer.json` holds.
///
/// Training counts the words of all documents and joins the pairs of tokens that occur most often; the order of the
/// documents doesn't matter. The documents stream through; what stays in memory is each different word with its number,
/// some 100 bytes a word: about 100 MB for a million different words. Documents that hold too little for the vocabulary
/// asked for are an error that says how many tokens they allow.
///
/// # Ports
/// - `documents`: the documents to train on: `text`. None with `path`.
///
/// # Outputs
/// - default: one row: `uri` (of the file, relative to the artifact), `digest` (BLAKE3 of the file), `vocabulary` (its number of
///   tokens, special ones included). The file lies beside it as `tokenizer/tokenizer.json`. There is no `parent_id`.
///
/// # Example
/// ```yaml
/// words: { op: tokenizer, from: documents, vocabulary: 2048 }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tokenizer {
    /// Tokens of the tokenizer to train, special ones included: at least 259. Default 2048; not with `path`.
    #[serde(default)]
    #[schemars(with = "Option<Size>")]
    pub vocabulary: Option<Size>,
    /// A `tokenizer.json`, relative to the pipeline file, to take instead of training one.
    #[serde(default)]
    pub path: Option<PathBuf>,
}

impl Operator for Tokenizer {
    fn ports(&self) -> Ports {
        Ports::Named(match self.path {
            Some(_) => Vec::new(),
            None => vec![Port::new(DOCUMENTS, &[("text", DataType::Utf8)])],
        })
    }

    fn bind(&self, _: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let mut mistakes = Vec::new();
        match self.vocabulary {
            Some(_) if self.path.is_some() => {
                mistakes.push(
                    Invalid::new("/vocabulary", "is for training, and `path` names a tokenizer").hint("leave one of the two out"),
                );
            }
            Some(Size(size)) if size < SMALLEST_VOCABULARY as u64 => mistakes.push(
                Invalid::new(
                    "/vocabulary",
                    format!("is {size}; 256 bytes and 3 special tokens need at least {SMALLEST_VOCABULARY}"),
                )
                .hint("2048 is a good size for a small student"),
            ),
            Some(Size(size)) if i32::try_from(size).is_err() => {
                mistakes.push(Invalid::new("/vocabulary", format!("is {size}: no model has as many tokens")));
            }
            _ => {}
        }
        if mistakes.is_empty() { Ok(vec![Output::new(DEFAULT_OUTPUT, fields())]) } else { Err(mistakes) }
    }

    fn lower(&self, _: &Inputs) -> Lowering {
        Lowering::Task(Arc::new(Make(self.clone())))
    }

    fn files(&self) -> Vec<(&'static str, PathBuf)> {
        self.path.iter().map(|path| ("path", path.clone())).collect()
    }
}

struct Make(Tokenizer);

#[async_trait]
impl Task for Make {
    async fn run(&self, context: &mut TaskContext) -> Result<(), Failure> {
        let json = match &self.0.path {
            Some(path) => context.file("path", path)?,
            None => {
                let vocabulary = self.0.vocabulary.unwrap_or(Size(VOCABULARY)).0;
                context.counters.say("reading documents");
                trained(context.table(DOCUMENTS)?, usize::try_from(vocabulary).unwrap_or(usize::MAX)).await?
            }
        };
        put(context, DEFAULT_OUTPUT, &json).await
    }
}

/// Trains on the column `text`, which streams through a bounded channel to the thread that counts words.
async fn trained(documents: &Table, vocabulary: usize) -> Result<Vec<u8>, Failure> {
    let (batches, mut arriving) = tokio::sync::mpsc::channel::<StringArray>(2);
    let training = tokio::task::spawn_blocking(move || {
        let texts = std::iter::from_fn(move || arriving.blocking_recv())
            .flat_map(|batch| (0..batch.len()).map(move |row| batch.value(row).to_owned()).collect::<Vec<_>>());
        train(texts, vocabulary)
    });
    let mut rows = documents.stream().await?;
    while let Some(batch) = rows.try_next().await? {
        if batches.send(texts(&batch, "text")?.clone()).await.is_err() {
            break;
        }
    }
    drop(batches);
    match training.await {
        Ok(trained) => Ok(trained.map_err(failure)?.json.into_bytes()),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// What a tokenizer's error means for a stage.
pub(crate) fn failure(error: TokenizerError) -> Failure {
    Failure::data(error.to_string())
}

/// The columns of a tokenizer's row.
pub(crate) fn fields() -> Vec<Field> {
    vec![
        Field::new("row_id", DataType::Utf8, false),
        undigested(Field::new("uri", DataType::Utf8, false)),
        Field::new("digest", DataType::Utf8, false),
        Field::new("vocabulary", DataType::Int32, false),
    ]
}

/// Writes a tokenizer as an output: its file, and its row, which is the same wherever the file is the same.
///
/// # Errors
/// When it isn't a tokenizer, or can't be written.
pub(crate) async fn put(context: &mut TaskContext, output: &str, json: &[u8]) -> Result<(), Failure> {
    let tokenizer = ingrain_student::Tokenizer::from_json(json).map_err(failure)?;
    let folder = context.scratch().join("tokenizer");
    tokio::fs::create_dir_all(&folder).await?;
    tokio::fs::write(folder.join(FILE), json).await?;
    context.put_folder(output, FOLDER, &folder).await?;
    let row = row(context.schema(output)?, json, tokenizer.vocabulary())?;
    context.write(output, row).await
}

fn row(schema: SchemaRef, json: &[u8], vocabulary: usize) -> Result<RecordBatch, Failure> {
    let digest = blake3::hash(json).to_hex().to_string();
    let vocabulary = i32::try_from(vocabulary).map_err(|_| Failure::data(format!("a tokenizer of {vocabulary} tokens")))?;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![key::row_id("tokenizer", 0, &[&digest], 0, 0)])),
        Arc::new(StringArray::from(vec![format!("{FOLDER}/{FILE}")])),
        Arc::new(StringArray::from(vec![digest])),
        Arc::new(Int32Array::from(vec![vocabulary])),
    ];
    Ok(RecordBatch::try_new(schema, columns)?)
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Schema;
    use serde_json::json;

    use super::*;

    fn config(value: serde_json::Value) -> Tokenizer {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_path_takes_the_place_of_documents() {
        assert_eq!(config(json!({ "path": "t.json" })).ports(), Ports::Named(Vec::new()));
        assert_eq!(config(json!({ "path": "t.json" })).files(), [("path", PathBuf::from("t.json"))]);
        let trained = config(json!({ "vocabulary": "4Ki" }));
        assert!(matches!(trained.ports(), Ports::Named(ports) if ports.len() == 1));
        assert!(trained.files().is_empty());
        for wrong in [json!({ "path": "t.json", "vocabulary": 300 }), json!({ "vocabulary": 258 }), json!({ "vocabulary": "9G" })]
        {
            let mistakes = config(wrong).bind(&Inputs::default()).unwrap_err();
            assert_eq!(mistakes[0].field, "/vocabulary");
        }
        assert!(config(json!({})).bind(&Inputs::default()).is_ok());
    }

    #[test]
    fn a_row_is_that_of_its_file() {
        let schema: SchemaRef = Arc::new(Schema::new(fields()));
        let one = row(schema.clone(), b"{}", 300).unwrap();
        assert_eq!(one, row(schema.clone(), b"{}", 300).unwrap());
        assert_ne!(texts(&one, "row_id").unwrap(), texts(&row(schema, b"{} ", 300).unwrap(), "row_id").unwrap());
        assert_eq!(texts(&one, "uri").unwrap().value(0), "tokenizer/tokenizer.json");
    }

    #[test]
    fn documents_that_are_too_small_say_what_they_allow() {
        let error = train(["a b a b"].iter(), 4000).unwrap_err();
        assert!(failure(error).message.contains("only allow"));
    }
}

//! Tokenizers: trained on documents, or read from a file.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

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
use ingrain_student::{
    ChatTemplate,
    chat::{CONFIG, FILE as TEMPLATE},
    tokenizer::{SMALLEST_VOCABULARY, TokenizerError, train},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::teachers::texts;

const DOCUMENTS: &str = "documents";
/// The folder of blobs beside a tokenizer's row.
pub(crate) const FOLDER: &str = "tokenizer";
/// The file in it that is always there.
pub(crate) const FILE: &str = "tokenizer.json";
/// Those that are there where the tokenizer has a chat template.
const CHAT: [&str; 2] = [CONFIG, TEMPLATE];
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
/// - default: one row: `uri` (of the file, relative to the artifact), `digest` (BLAKE3 of the file; with a chat template, of all
///   files), `vocabulary` (its number of tokens, special ones included). The file lies beside it as `tokenizer/tokenizer.json`,
///   with a chat template in `chat_template.jinja` or `tokenizer_config.json`, as in a checkpoint. There is no `parent_id`.
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
    /// A chat template in Hugging Face's form of Jinja, relative to the pipeline file, for `render: chat` of `mix` and `evaluate`:
    /// checkpoints with this tokenizer have it. Its special tokens must be among the tokenizer's; one that is trained here has
    /// `<|begin|>`, `<|end|>` and `<|pad|>`. Default: none.
    #[serde(default)]
    pub chat_template: Option<PathBuf>,
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
        if let Some(path) = &self.chat_template {
            let read = std::fs::read(path).map_err(|error| format!("`{}` can't be read: {error}", path.display()));
            let checked = read.and_then(|source| template(&source).map_err(|error| error.message));
            mistakes.extend(checked.err().map(|wrong| Invalid::new("/chat_template", wrong)));
        }
        if mistakes.is_empty() { Ok(vec![Output::new(DEFAULT_OUTPUT, fields())]) } else { Err(mistakes) }
    }

    fn lower(&self, _: &Inputs) -> Lowering {
        Lowering::Task(Arc::new(Make(self.clone())))
    }

    fn files(&self) -> Vec<(&'static str, PathBuf)> {
        let files = [("path", &self.path), ("chat_template", &self.chat_template)];
        files.into_iter().filter_map(|(field, path)| Some((field, path.clone()?))).collect()
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
        let mut files = BTreeMap::from([(FILE.to_owned(), json)]);
        if let Some(path) = &self.0.chat_template {
            let source = context.file("chat_template", path)?;
            template(&source)?;
            files.insert(CONFIG.to_owned(), special_tokens(&files[FILE])?);
            files.insert(TEMPLATE.to_owned(), source);
        }
        put(context, DEFAULT_OUTPUT, &files).await
    }
}

/// A chat template by its source.
fn template(source: &[u8]) -> Result<Option<ChatTemplate>, Failure> {
    let files = BTreeMap::from([(TEMPLATE.to_owned(), source.to_vec())]);
    ChatTemplate::of(&files).map_err(|error| Failure::data(error.to_string()))
}

/// The `tokenizer_config.json` that tells a template what the tokenizer's special tokens are called.
fn special_tokens(json: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut config = ingrain_student::Tokenizer::from_json(json).map_err(failure)?.config(0);
    if let Some(config) = config.as_object_mut() {
        config.remove("model_max_length");
    }
    serde_json::to_vec_pretty(&config).map_err(|error| Failure::bug(error.to_string()))
}

/// The small files of a tokenizer that lie as blobs under `folder`, by name.
///
/// # Errors
/// When one isn't what the manifest says.
pub(crate) async fn small_files(table: &Table, folder: &str) -> Result<BTreeMap<String, Vec<u8>>, Failure> {
    let mut files = BTreeMap::new();
    for name in [FILE].into_iter().chain(CHAT) {
        let blob = format!("{folder}/{name}");
        if table.manifest().blobs.iter().any(|other| other.name == blob) {
            files.insert(name.to_owned(), table.blob(&blob).await?.to_vec());
        }
    }
    Ok(files)
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

/// Writes the tokenizer among a checkpoint's small files as an output: its file, its chat template if there is one, and its row,
/// which is the same wherever they are the same.
///
/// # Errors
/// When it isn't a tokenizer, or can't be written.
pub(crate) async fn put(context: &mut TaskContext, output: &str, files: &BTreeMap<String, Vec<u8>>) -> Result<(), Failure> {
    let json = files.get(FILE).ok_or_else(|| Failure::bug("a checkpoint without a tokenizer"))?;
    let tokenizer = ingrain_student::Tokenizer::from_json(json).map_err(failure)?;
    let mut kept = vec![(FILE, json)];
    if ChatTemplate::of(files).is_ok_and(|template| template.is_some()) {
        kept.extend(CHAT.into_iter().filter_map(|name| Some((name, files.get(name)?))));
    }
    let folder = context.scratch().join("tokenizer");
    tokio::fs::create_dir_all(&folder).await?;
    for (name, content) in &kept {
        tokio::fs::write(folder.join(name), content).await?;
    }
    context.put_folder(output, FOLDER, &folder).await?;
    let row = row(context.schema(output)?, &kept, tokenizer.vocabulary())?;
    context.write(output, row).await
}

fn row(schema: SchemaRef, files: &[(&str, &Vec<u8>)], vocabulary: usize) -> Result<RecordBatch, Failure> {
    let digest = match files {
        [(_, json)] => blake3::hash(json),
        files => {
            let mut all = blake3::Hasher::new();
            for (name, content) in files {
                all.update(name.as_bytes()).update(&[0]).update(blake3::hash(content).as_bytes());
            }
            all.finalize()
        }
    };
    let digest = digest.to_hex().to_string();
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
        let row = |files: &[(&str, &str)]| {
            let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(name, text)| (*name, text.as_bytes().to_vec())).collect();
            row(schema.clone(), &files.iter().map(|(name, content)| (*name, content)).collect::<Vec<_>>(), 300).unwrap()
        };
        let one = row(&[(FILE, "{}")]);
        assert_eq!(one, row(&[(FILE, "{}")]));
        assert_eq!(texts(&one, "digest").unwrap().value(0), blake3::hash(b"{}").to_hex().as_str());
        for other in [&[(FILE, "{} ")][..], &[(FILE, "{}"), (TEMPLATE, "a")], &[(FILE, "{}"), (TEMPLATE, "b")]] {
            assert_ne!(texts(&one, "row_id").unwrap(), texts(&row(other), "row_id").unwrap());
        }
        assert_eq!(texts(&one, "uri").unwrap().value(0), "tokenizer/tokenizer.json");
    }

    #[test]
    fn documents_that_are_too_small_say_what_they_allow() {
        let error = train(["a b a b"].iter(), 4000).unwrap_err();
        assert!(failure(error).message.contains("only allow"));
    }
}

//! Cuts documents into chunks.

mod boundaries;
mod measure;
mod packing;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int32Builder, Int64Builder, RecordBatch, StringArray, StringBuilder},
    datatypes::{DataType, Field, SchemaRef},
};
use async_trait::async_trait;
use datafusion::execution::SendableRecordBatchStream;
use futures::{StreamExt, TryStreamExt, stream};
use ingrain_engine::{
    failure::Failure,
    key::row_id,
    operator::{DEFAULT_OUTPUT, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports, Role},
    run::{OutputRows, OutputStream, RowStream, Service, StreamContext},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{
    measure::{Counter, Measure, Tokens},
    packing::{Chunk as Cut, Limits, Packer},
};

const DOCUMENTS: &str = "documents";
const TOKENIZER: &str = "tokenizer";
const TOKENIZER_FILE: &str = "tokenizer/tokenizer.json";

/// A batch is given on when it holds this many bytes of text, or this many chunks.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_ROWS: usize = 1024;

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Chunk>("chunk", 2);

/// Cuts documents into chunks at sentences. A chunk takes as many whole sentences as fit; it ends at a paragraph where
/// that leaves it at least half full. A sentence that is too long is cut at lines, words or characters. Each chunk is an
/// exact stretch of its document, without whitespace at its ends. Lengths are counted in tokens, without those that a
/// tokenizer puts around a text, or in characters (Unicode scalar values).
///
/// For generation, let a chunk be as long as what a teacher should see at once, without overlap; for retrieval, small and
/// overlapping.
///
/// # Ports
/// - `documents`: rows with `doc_id`, `title`, `text`.
/// - `tokenizer`: a stage's `tokenizer`. Needed with `max_tokens`, and only then.
///
/// # Outputs
/// - default: `doc_id`, `title`, `text`, `chunk_index` (from 0 in each document), `byte_start` and `byte_end` (where `text`
///   is in the document's `text`, in bytes), `token_count` (null when characters are counted).
///
/// # Example
/// ```yaml
/// units:  { op: chunk, from: { documents: documents, tokenizer: base.tokenizer }, max_tokens: 8192 }
/// pieces: { op: chunk, from: documents, max_characters: 1024, overlap_characters: 128 }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    /// The longest chunk, in tokens. Give this or `max_characters`.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub max_tokens: Option<u32>,
    /// How much of a chunk is repeated at the next one's front: at most this many tokens, in whole sentences, or in words of
    /// the last sentence where not even that fits. Default 0.
    #[serde(default)]
    pub overlap_tokens: Option<u32>,
    /// The longest chunk, in characters. Give this or `max_tokens`.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub max_characters: Option<u32>,
    /// As `overlap_tokens`, in characters. Default 0.
    #[serde(default)]
    pub overlap_characters: Option<u32>,
}

impl Operator for Chunk {
    fn ports(&self) -> Ports {
        let text = |name| (name, DataType::Utf8);
        Ports::Named(vec![
            Port::new(DOCUMENTS, &[text("row_id"), text("doc_id"), text("title"), text("text")]),
            Port::new(TOKENIZER, &[text("uri")]).optional().role(Role::Vocabulary),
        ])
    }

    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let mistakes = self.mistakes(inputs.first(TOKENIZER).is_some());
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let field = |name: &str, data_type: DataType, nullable| Field::new(name, data_type, nullable);
        Ok(vec![Output::new(
            DEFAULT_OUTPUT,
            vec![
                field("row_id", DataType::Utf8, false),
                field("parent_id", DataType::Utf8, false),
                field("doc_id", DataType::Utf8, false),
                field("title", DataType::Utf8, true),
                field("text", DataType::Utf8, false),
                field("chunk_index", DataType::Int32, false),
                field("byte_start", DataType::Int64, false),
                field("byte_end", DataType::Int64, false),
                field("token_count", DataType::Int32, true),
            ],
        )])
    }

    fn lower(&self, _: &Inputs) -> Lowering {
        Lowering::Rows {
            query: None,
            stream: Some(Arc::new(Cutting { limits: self.limits(), tokens: self.max_tokens.is_some() })),
        }
    }
}

impl Chunk {
    fn mistakes(&self, tokenizer: bool) -> Vec<Invalid> {
        let mut mistakes = Vec::new();
        let mut refuse = |field: &str, message: &str, hint: &str| mistakes.push(Invalid::new(field, message).hint(hint));
        match (self.max_tokens, self.max_characters) {
            (None, None) => {
                refuse("", "`max_tokens` or `max_characters` is missing", "`max_tokens: 256`, with a `tokenizer` in `from`")
            }
            (Some(_), Some(_)) => {
                refuse("/max_characters", "`max_tokens` and `max_characters` exclude each other", "leave one out")
            }
            (Some(_), None) if !tokenizer => refuse(
                "/max_tokens",
                "tokens can't be counted without a tokenizer",
                "`from: { documents: …, tokenizer: base.tokenizer }`, or `max_characters`",
            ),
            (None, Some(_)) if tokenizer => {
                refuse(
                    "/from/tokenizer",
                    "characters are counted without a tokenizer",
                    "leave `tokenizer` out, or use `max_tokens`",
                );
            }
            _ => {}
        }
        for (unit, max, overlap, other) in [
            ("tokens", self.max_tokens, self.overlap_tokens, self.max_characters),
            ("characters", self.max_characters, self.overlap_characters, self.max_tokens),
        ] {
            if max == Some(0) {
                refuse(
                    &format!("/max_{unit}"),
                    &format!("`max_{unit}` must be at least 1"),
                    "`256` is a usual size for retrieval",
                );
            }
            let field = format!("/overlap_{unit}");
            match (max, overlap) {
                (None, Some(_)) if other.is_some() => {
                    refuse(&field, &format!("`overlap_{unit}` goes with `max_{unit}`"), "count both in the same unit");
                }
                (Some(max), Some(overlap)) if max > 0 && overlap >= max => {
                    refuse(
                        &field,
                        &format!("an overlap of {overlap} leaves nothing new in a chunk of {max}"),
                        "an eighth of the chunk is usual",
                    );
                }
                _ => {}
            }
        }
        mistakes
    }

    fn limits(&self) -> Limits {
        let size = |tokens: Option<u32>, characters: Option<u32>| tokens.or(characters).unwrap_or(0) as usize;
        Limits { max: size(self.max_tokens, self.max_characters), overlap: size(self.overlap_tokens, self.overlap_characters) }
    }
}

/// The tokenizers of a run, by digest of their file: one takes a second to read.
#[derive(Default)]
struct Tokenizers(Mutex<HashMap<blake3::Hash, Arc<Tokens>>>);

impl Tokenizers {
    fn parsed(&self, json: &[u8]) -> Result<Arc<Tokens>, Failure> {
        let mut parsed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = blake3::hash(json);
        if let Some(tokens) = parsed.get(&digest) {
            return Ok(tokens.clone());
        }
        let tokens = Arc::new(Tokens::parse(json)?);
        parsed.insert(digest, tokens.clone());
        Ok(tokens)
    }
}

#[async_trait]
impl Service for Tokenizers {
    async fn sync(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn close(&self) -> Result<(), Failure> {
        Ok(())
    }
}

#[derive(Debug)]
struct Cutting {
    limits: Limits,
    tokens: bool,
}

impl RowStream for Cutting {
    fn start(&self, rows: SendableRecordBatchStream, context: StreamContext) -> OutputStream {
        let (limits, tokens) = (self.limits, self.tokens);
        let begin = async move {
            let schema = context.schema(DEFAULT_OUTPUT)?;
            let measure = if tokens {
                let json = context.blob(TOKENIZER, TOKENIZER_FILE).await?;
                Measure::Tokens(Counter::new(context.environment.service(Tokenizers::default).parsed(&json)?))
            } else {
                Measure::Characters
            };
            let cutter = Cutter { limits, measure, schema, waiting: Waiting::default(), documents: None };
            Ok::<_, Failure>(chunks(cutter, rows))
        };
        stream::once(begin).try_flatten().boxed()
    }
}

/// Alternates between pulling documents and giving full batches of chunks.
fn chunks(cutter: Cutter, rows: SendableRecordBatchStream) -> OutputStream {
    stream::try_unfold((cutter, rows), |(mut cutter, mut rows)| async move {
        loop {
            if cutter.cut()? {
                return Ok(Some((cutter.take()?, (cutter, rows))));
            }
            match rows.next().await {
                Some(batch) => cutter.documents = Some(Documents::of(&batch?)?),
                None if cutter.waiting.rows > 0 => return Ok(Some((cutter.take()?, (cutter, rows)))),
                None => return Ok(None),
            }
        }
    })
    .boxed()
}

/// Cuts batches of documents into batches of chunks.
struct Cutter {
    limits: Limits,
    measure: Measure,
    schema: SchemaRef,
    waiting: Waiting,
    documents: Option<Documents>,
}

/// Documents that are being cut.
struct Documents {
    row_id: StringArray,
    doc_id: StringArray,
    title: StringArray,
    text: StringArray,
    /// The document that is next, or half done.
    row: usize,
    packer: Option<(Packer, i32)>,
}

impl Documents {
    fn of(rows: &RecordBatch) -> Result<Self, Failure> {
        let text = |name: &str| {
            let column = rows.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
            column.cloned().ok_or_else(|| Failure::bug(format!("no text column `{name}` in the documents")))
        };
        Ok(Self {
            row_id: text("row_id")?,
            doc_id: text("doc_id")?,
            title: text("title")?,
            text: text("text")?,
            row: 0,
            packer: None,
        })
    }
}

impl Cutter {
    /// Cuts until a batch is full, which is `true`, or no document is left.
    fn cut(&mut self) -> Result<bool, Failure> {
        let Some(documents) = &mut self.documents else { return Ok(false) };
        while documents.row < documents.text.len() {
            let row = documents.row;
            let text = if documents.text.is_null(row) { "" } else { documents.text.value(row) };
            let (packer, index) = documents.packer.get_or_insert_with(|| (Packer::new(self.limits), 0));
            while let Some(cut) = packer.next(text, &mut self.measure)? {
                let parent = documents.row_id.value(row);
                let title = documents.title.is_valid(row).then(|| documents.title.value(row));
                let count = matches!(self.measure, Measure::Tokens(_)).then_some(cut.length);
                self.waiting.push(parent, documents.doc_id.value(row), title, *index, text, cut, count);
                *index = index.checked_add(1).ok_or_else(|| {
                    Failure::data(format!("the document `{}` has too many chunks", documents.doc_id.value(row)))
                })?;
                if self.waiting.full() {
                    return Ok(true);
                }
            }
            documents.packer = None;
            documents.row += 1;
        }
        self.documents = None;
        Ok(false)
    }

    fn take(&mut self) -> Result<OutputRows, Failure> {
        Ok(OutputRows { output: DEFAULT_OUTPUT, rows: self.waiting.take(&self.schema)? })
    }
}

/// Chunks of the next batch.
#[derive(Default)]
struct Waiting {
    rows: usize,
    bytes: usize,
    row_id: StringBuilder,
    parent_id: StringBuilder,
    doc_id: StringBuilder,
    title: StringBuilder,
    text: StringBuilder,
    chunk_index: Int32Builder,
    byte_start: Int64Builder,
    byte_end: Int64Builder,
    token_count: Int32Builder,
}

impl Waiting {
    #[expect(clippy::too_many_arguments, reason = "one per column")]
    fn push(&mut self, parent: &str, doc_id: &str, title: Option<&str>, index: i32, text: &str, cut: Cut, count: Option<usize>) {
        self.row_id.append_value(row_id("chunk", 0, &[parent], 0, u64::from(index.unsigned_abs())));
        self.parent_id.append_value(parent);
        self.doc_id.append_value(doc_id);
        self.title.append_option(title);
        self.text.append_value(&text[cut.start..cut.end]);
        self.chunk_index.append_value(index);
        self.byte_start.append_value(cut.start as i64);
        self.byte_end.append_value(cut.end as i64);
        self.token_count.append_option(count.map(|count| i32::try_from(count).unwrap_or(i32::MAX)));
        self.rows += 1;
        self.bytes += cut.end - cut.start;
    }

    fn full(&self) -> bool {
        self.rows >= BATCH_ROWS || self.bytes >= BATCH_BYTES
    }

    fn take(&mut self, schema: &SchemaRef) -> Result<RecordBatch, Failure> {
        (self.rows, self.bytes) = (0, 0);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.row_id.finish()),
            Arc::new(self.parent_id.finish()),
            Arc::new(self.doc_id.finish()),
            Arc::new(self.title.finish()),
            Arc::new(self.text.finish()),
            Arc::new(self.chunk_index.finish()),
            Arc::new(self.byte_start.finish()),
            Arc::new(self.byte_end.finish()),
            Arc::new(self.token_count.finish()),
        ];
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::Int32Array,
        datatypes::{Int32Type, Int64Type, Schema},
    };
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

    use super::*;
    use crate::query::inputs;

    fn chunk(
        max_tokens: Option<u32>,
        overlap_tokens: Option<u32>,
        max_characters: Option<u32>,
        overlap_characters: Option<u32>,
    ) -> Chunk {
        Chunk { max_tokens, overlap_tokens, max_characters, overlap_characters }
    }

    fn documents(texts: &[&str]) -> RecordBatch {
        let field = |name: &str| Field::new(name, DataType::Utf8, true);
        let schema = Arc::new(Schema::new(vec![field("row_id"), field("doc_id"), field("title"), field("text")]));
        let numbered =
            |prefix: &str| Arc::new((0..texts.len()).map(|n| Some(format!("{prefix}{n}"))).collect::<StringArray>()) as ArrayRef;
        let columns =
            vec![numbered("r"), numbered("d"), numbered("Title "), Arc::new(StringArray::from(texts.to_vec())) as ArrayRef];
        RecordBatch::try_new(schema, columns).unwrap()
    }

    fn schema(operator: &Chunk) -> SchemaRef {
        let mut ports = vec![(DOCUMENTS, documents(&[]).schema())];
        if operator.max_tokens.is_some() {
            ports.push((TOKENIZER, Arc::new(Schema::empty())));
        }
        operator.bind(&inputs(&ports)).unwrap().remove(0).schema
    }

    async fn run(operator: &Chunk, measure: Measure, batches: Vec<RecordBatch>) -> Vec<RecordBatch> {
        let rows = RecordBatchStreamAdapter::new(batches[0].schema(), stream::iter(batches.into_iter().map(Ok)));
        let cutter =
            Cutter { limits: operator.limits(), measure, schema: schema(operator), waiting: Waiting::default(), documents: None };
        chunks(cutter, Box::pin(rows)).map_ok(|output| output.rows).try_collect().await.unwrap()
    }

    #[tokio::test]
    async fn spans_are_exact_and_do_not_depend_on_batches() {
        let text = measure::tests::SAMPLE.repeat(40);
        let texts = [text.as_str(), "", "One. Two.", measure::tests::SAMPLE];
        let operator = chunk(Some(40), Some(8), None, None);
        let tokens = Arc::new(Tokens::parse(&measure::tests::trained(measure::tests::gpt2(), false)).unwrap());
        let counter = || Measure::Tokens(Counter::new(tokens.clone()));
        let whole = run(&operator, counter(), vec![documents(&texts)]).await;
        let whole = arrow::compute::concat_batches(&schema(&operator), &whole).unwrap();
        let all = documents(&texts);
        let single = (0..texts.len()).map(|row| all.slice(row, 1)).collect();
        let single = arrow::compute::concat_batches(&schema(&operator), &run(&operator, counter(), single).await).unwrap();
        assert_eq!(whole, single);

        let column = |name: &str| whole.column_by_name(name).unwrap();
        let (start, end) = (column("byte_start").as_primitive::<Int64Type>(), column("byte_end").as_primitive::<Int64Type>());
        let mut counter = counter();
        for row in 0..whole.num_rows() {
            let parent: usize = column("parent_id").as_string::<i32>().value(row)[1..].parse().unwrap();
            let cut = &texts[parent][start.value(row) as usize..end.value(row) as usize];
            assert_eq!(column("text").as_string::<i32>().value(row), cut);
            let count = column("token_count").as_primitive::<Int32Type>().value(row);
            assert_eq!(counter.length(cut).unwrap(), count as usize);
            assert!(count <= 40);
            let index = column("chunk_index").as_primitive::<Int32Type>().value(row);
            let id = row_id("chunk", 0, &[&format!("r{parent}")], 0, index as u64);
            assert_eq!(column("row_id").as_string::<i32>().value(row), id);
        }
        assert_eq!(column("doc_id").as_string::<i32>().iter().filter(|id| *id == Some("d1")).count(), 0);
    }

    #[tokio::test]
    async fn long_documents_come_in_small_batches() {
        let text = "A sentence of some length, to be repeated. ".repeat(100_000);
        let operator = chunk(None, None, Some(200), None);
        let batches = run(&operator, Measure::Characters, vec![documents(&[&text])]).await;
        assert!(batches.len() > 3);
        assert!(batches.iter().all(|batch| batch.num_rows() <= BATCH_ROWS));
        let last = batches.last().unwrap();
        assert!(
            last.column_by_name("token_count").unwrap().as_primitive::<Int32Type>()
                == &Int32Array::from(vec![None; last.num_rows()])
        );
    }

    #[test]
    fn mistakes_are_found_before_anything_runs() {
        let fields = |operator: Chunk, tokenizer: bool| {
            operator.mistakes(tokenizer).into_iter().map(|mistake| mistake.field).collect::<Vec<_>>()
        };
        let none = Vec::<String>::new();
        assert_eq!(fields(chunk(Some(8), Some(7), None, None), true), none);
        assert_eq!(fields(chunk(None, None, Some(8), None), false), none);
        assert_eq!(fields(chunk(None, None, None, None), false), [""]);
        assert_eq!(fields(chunk(Some(8), None, Some(8), None), true), ["/max_characters"]);
        assert_eq!(fields(chunk(Some(8), None, None, None), false), ["/max_tokens"]);
        assert_eq!(fields(chunk(None, None, Some(8), None), true), ["/from/tokenizer"]);
        assert_eq!(fields(chunk(Some(8), Some(8), None, None), true), ["/overlap_tokens"]);
        assert_eq!(fields(chunk(Some(0), Some(8), None, None), true), ["/max_tokens"]);
        assert_eq!(fields(chunk(Some(8), None, None, Some(2)), true), ["/overlap_characters"]);
    }
}

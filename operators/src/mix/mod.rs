//! Mixes sources into what a student is trained on.

mod order;
mod spool;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int32Builder, Int64Builder, RecordBatch, StringBuilder},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use async_trait::async_trait;
use futures::TryStreamExt;
use ingrain_engine::{
    failure::Failure,
    key,
    operator::{DEFAULT_OUTPUT, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports, REJECTS_OUTPUT, Role},
    run::{Table, Task, TaskContext},
    spec::Size,
};
use ingrain_student::{ChatError, Tokenizer};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{
    order::{Entry, Order, Place, Source},
    spool::{Rendered, Slot, Spool, Spooled},
};
use crate::{
    columns::{blocking, is_text, optional_text, text},
    rejects::{Reject, Rejects},
    render::{self, Chat, Render},
    tokenizer,
};

const SOURCES: &str = "sources";
/// The port of general text, and the `kind` of its rows.
pub(crate) const REPLAY: &str = "replay";
/// The share of all tokens that is replay, where there is general text and nothing else is said.
const SHARE: f64 = 0.1;
pub(crate) const TOKENIZER: &str = "tokenizer";

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Mix>("mix", 1);

/// Mixes rows of several sources by tokens into one order, the mixture that a student is trained on.
///
/// Each source has an endless order: repeat 0, 1, … of its rows, each repeat sorted by a hash of seed, source, repeat and
/// `row_id`. The source that is furthest behind its weight gives the next row, counted in tokens and in whole numbers. So
/// the mixture of a smaller budget is the beginning of that of a larger one, a short source is repeated as often as the
/// budget asks for (`repeat` says how often), and a change in one source leaves the order of the others alone.
///
/// A question with its answer becomes text as `render` says; of a document, chunk or rewrite the `text` is taken as it
/// is. With `render: chat` a question is put into the chat template that lies beside the tokenizer, as the user's turn, and the
/// answer is the assistant's; the template's special tokens are tokens, and their names in a question or an answer are text. Rows
/// that the template refuses are rejected (`template`). Rows without text are rejected; for `min_yield`, each row of a source
/// that has a weight counts once.
///
/// # Ports
/// - `sources`: one or several tables, either with `question` and `answer` (and `explanation`) or with `text`. `doc_id` is
///   kept where there is one.
/// - `replay`: general text, which keeps fresh what the model knew before: tables as `sources` are. Perhaps none.
/// - `tokenizer`: `tokenizer`, or the `tokenizer` output of `checkpoint`.
///
/// # Outputs
/// - default: the mixture in its order: `kind` (`qa`, `document` or `replay`), `doc_id`, `prompt` (what of the text stands before
///   the answer, up to `Answer:`; null for documents), `text` (all of it, prompt included), `token_count` (as packed: with
///   the begin token, if the tokenizer has one, and the end token; with the template's tokens and no others), `source` (its
///   place in the list, from 0; -1 for replay), `repeat` (from 0), `position` (from 0). `parent_id` is the
///   row of the source. With `render: chat` also `messages`: the turns as JSON, which is what `train` encodes; null for documents.
///
/// # Memory
/// 40 bytes a row of the sources and 32 more while a repeat is sorted. Texts lie in a temporary file of about their size.
///
/// # Example
/// ```yaml
/// mixture:
///   op: mix
///   from: { sources: [qa_unique, rewrites], tokenizer: base.tokenizer }
///   weights: [1, 1]
///   tokens: 2M
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// The share of each source in the tokens, in the order of the list: numbers of at most nine decimals, whatever they
    /// sum up to. 0 leaves a source out. Default: all 1.
    #[serde(default)]
    pub weights: Option<Vec<f64>>,
    /// How many tokens the mixture has: it ends with the row that reaches this number. Default: every source comes once at
    /// least, so that the one that is largest for its weight comes exactly once.
    #[serde(default)]
    pub tokens: Option<Size>,
    /// The share of all tokens that are rows of the port `replay`, above 0 and below 1, in every part of the mixture. Default 0.1
    /// where that port is given.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub replay: Option<f64>,
    /// How a question and its answer become text: `qa` (`Question: …`, a new line, `Answer: …`), or `chat`, the chat template beside
    /// the tokenizer. Default: `qa`.
    #[serde(default)]
    pub render: Render,
}

impl Operator for Mix {
    fn ports(&self) -> Ports {
        let id = [("row_id", DataType::Utf8)];
        Ports::Named(vec![
            Port::new(SOURCES, &id).many(),
            Port::new(REPLAY, &id).optional(),
            Port::new(TOKENIZER, &[]).role(Role::Vocabulary),
        ])
    }

    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let mut mistakes = Vec::new();
        let sources = inputs.all(SOURCES);
        let places = sources.iter().enumerate().map(|(number, source)| (format!("/from/{SOURCES}/{number}"), source));
        for (place, source) in places.chain(inputs.first(REPLAY).map(|source| (format!("/from/{REPLAY}"), source))) {
            if columns(&source.schema).is_none() {
                let there: Vec<_> = source.schema.fields().iter().map(|field| format!("`{}`", field.name())).collect();
                let message = format!("`{}` has neither `question` and `answer` nor `text`, as text", source.name);
                mistakes.push(Invalid::new(&place, message).hint(format!("it has {}", there.join(", "))));
            }
        }
        if let Err(wrong) = self.integer_weights(sources.len()) {
            mistakes.push(wrong);
        }
        if self.tokens == Some(Size(0)) {
            mistakes.push(Invalid::new("/tokens", "a mixture of 0 tokens has no rows").hint("leave `tokens` out for one pass"));
        }
        if self.replay.is_some() && inputs.first(REPLAY).is_none() {
            mistakes.push(
                Invalid::new("/replay", "there is no general text to replay")
                    .hint(format!("give it as `from: {{ {SOURCES}: …, {REPLAY}: STAGE, … }}`")),
            );
        }
        mistakes.extend(self.share().err());
        match mistakes.is_empty() {
            true => Ok(vec![Output::new(DEFAULT_OUTPUT, fields(self.render))]),
            false => Err(mistakes),
        }
    }

    fn lower(&self, inputs: &Inputs) -> Lowering {
        let names = inputs.all(SOURCES).iter().chain(inputs.first(REPLAY)).map(|source| source.name.clone()).collect();
        Lowering::Task(Arc::new(Mixing { config: self.clone(), names }))
    }

    fn draws(&self) -> bool {
        true
    }
}

impl Mix {
    /// The share of replay in the order's integers.
    fn share(&self) -> Result<u64, Invalid> {
        let share = self.replay.unwrap_or(SHARE);
        order::integer(share).filter(|integer| (1..order::SCALE).contains(integer)).ok_or_else(|| {
            Invalid::new("/replay", format!("`{share}` is no share"))
                .hint("a number above 0 and below 1, with nine decimals at most: the paper's is 0.1")
        })
    }

    fn integer_weights(&self, sources: usize) -> Result<Vec<u64>, Invalid> {
        let weights = self.weights.clone().unwrap_or_else(|| vec![1.0; sources]);
        if weights.len() != sources {
            let message = format!("{} weights for {sources} sources", weights.len());
            return Err(Invalid::new("/weights", message).hint("one for each source, in their order; 0 leaves one out"));
        }
        let mut integers = Vec::with_capacity(sources);
        for (place, weight) in weights.into_iter().enumerate() {
            let integer = order::integer(weight).ok_or_else(|| {
                Invalid::new(&format!("/weights/{place}"), format!("`{weight}` is no weight"))
                    .hint("0 or a positive number up to a billion, with nine decimals at most")
            })?;
            integers.push(integer);
        }
        match integers.iter().all(|weight| *weight == 0) {
            true => Err(Invalid::new("/weights", "all weights are 0").hint("one source at least needs a weight over 0")),
            false => Ok(integers),
        }
    }
}

/// What of a source's rows becomes text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Qa,
    Document,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Qa => "qa",
            Self::Document => "document",
        }
    }
}

fn columns(schema: &Schema) -> Option<Kind> {
    if is_text(schema, "question") && is_text(schema, "answer") {
        Some(Kind::Qa)
    } else {
        is_text(schema, "text").then_some(Kind::Document)
    }
}

fn fields(render: Render) -> Vec<Field> {
    let mut fields = vec![
        Field::new("row_id", DataType::Utf8, false),
        Field::new("parent_id", DataType::Utf8, false),
        Field::new("kind", DataType::Utf8, false),
        Field::new("doc_id", DataType::Utf8, true),
        Field::new("prompt", DataType::Utf8, true),
        Field::new("text", DataType::Utf8, false),
        Field::new("token_count", DataType::Int32, false),
        Field::new("source", DataType::Int32, false),
        Field::new("repeat", DataType::Int32, false),
        Field::new("position", DataType::Int64, false),
    ];
    if render == Render::Chat {
        fields.push(Field::new("messages", DataType::Utf8, true));
    }
    fields
}

/// How rows become text and tokens.
#[derive(Debug, Clone)]
struct Renderer {
    tokenizer: Tokenizer,
    /// The chat template, where questions are put into one.
    chat: Option<Chat>,
}

#[derive(Debug)]
struct Mixing {
    config: Mix,
    names: Vec<String>,
}

#[async_trait]
impl Task for Mixing {
    async fn run(&self, context: &mut TaskContext) -> Result<(), Failure> {
        let files = tokenizer::small_files(context.table(TOKENIZER)?, tokenizer::FOLDER).await?;
        let json = files.get(tokenizer::FILE).ok_or_else(|| Failure::data("no `tokenizer.json` at the port `tokenizer`"))?;
        let tokenizer = Tokenizer::from_json(json).map_err(|error| Failure::data(error.to_string()))?;
        let chat = match self.config.render {
            Render::Qa => None,
            Render::Chat => Some(Chat::of(&files, tokenizer.clone())?),
        };
        let renderer = Renderer { tokenizer, chat };
        let tables = context.tables(SOURCES).to_vec();
        let weights = self.config.integer_weights(tables.len()).map_err(|wrong| Failure::bug(wrong.message))?;
        let share = self.config.share().map_err(|wrong| Failure::bug(wrong.message))?;
        let mut given: Vec<(Table, u32, u64)> =
            tables.into_iter().zip(0..).zip(weights).map(|((table, number), weight)| (table, number, weight)).collect();
        given.extend(context.tables(REPLAY).iter().map(|table| (table.clone(), order::REPLAY, share)));
        let mut spool = Spool::create(&context.scratch().join("rows"))?;
        let (mut sources, mut tables_read) = (Vec::new(), Vec::new());
        for ((table, number, weight), name) in given.into_iter().zip(&self.names).filter(|((_, _, weight), _)| *weight > 0) {
            let kind = columns(table.schema()).ok_or_else(|| Failure::bug(format!("`{name}` has no text")))?;
            context.counters.say(format!("counting the tokens of `{name}`"));
            let mut read = Read { number, kind, entries: Vec::new(), slots: Vec::new() };
            let mut batches = table.stream().await?;
            while let Some(batch) = batches.try_next().await? {
                context.count_units(batch.num_rows() as u64);
                let renderer = renderer.clone();
                let (back, spooled, rejects) = blocking(move || {
                    let rejects = read.add(&batch, &renderer, &mut spool)?;
                    Ok::<_, Failure>((read, spool, rejects))
                })
                .await??;
                (read, spool) = (back, spooled);
                if let Some(rejects) = rejects {
                    context.write(REJECTS_OUTPUT, rejects).await?;
                }
            }
            if read.entries.is_empty() {
                let what = if table.rows() == 0 { "has no rows" } else { "has no row with text" };
                return Err(match number {
                    order::REPLAY => Failure::data(format!("`{name}`, which is to be replayed, {what}"))
                        .hint("leave the port `replay` out, or look at the stage that makes it"),
                    _ => Failure::data(format!("the source `{name}` {what}, and its weight isn't 0"))
                        .hint("give it weight 0, or look at the stage that makes it"),
                });
            }
            sources.push(Source { number, weight, rows: std::mem::take(&mut read.entries) });
            tables_read.push(read);
        }
        let mut spooled = spool.finish()?;
        let (seed, budget) = (context.seed, self.config.tokens.map(|size| size.0));
        let replay = sources.pop_if(|source| source.number == order::REPLAY);
        let order = blocking(move || Order::new(sources, replay, seed, budget)).await?;
        let mut mixture = Mixture { order, tables: tables_read, position: 0, schema: context.schema(DEFAULT_OUTPUT)? };
        loop {
            let (back, file, batch) = blocking(move || {
                let batch = mixture.batch(&mut spooled)?;
                Ok::<_, Failure>((mixture, spooled, batch))
            })
            .await??;
            (mixture, spooled) = (back, file);
            let Some(batch) = batch else { return Ok(()) };
            context.write(DEFAULT_OUTPUT, batch).await?;
        }
    }
}

/// A source while it is read: a length, an id's hash and a place in the file for every row.
#[derive(Debug)]
struct Read {
    /// Its place in the list, or [`order::REPLAY`].
    number: u32,
    kind: Kind,
    entries: Vec<Entry>,
    slots: Vec<Slot>,
}

impl Read {
    /// Renders and counts the rows of a batch, and gives those without text as rejects.
    fn add(&mut self, batch: &RecordBatch, renderer: &Renderer, spool: &mut Spool) -> Result<Option<RecordBatch>, Failure> {
        let rows = (0..batch.num_rows()).into_par_iter().map(|row| rendered(batch, row, self.kind, renderer));
        let rows: Vec<Result<(Rendered, u32), Reject>> = rows.collect::<Result<_, Failure>>()?;
        let ids = text(batch, "row_id")?;
        let mut rejects = Rejects::default();
        for (row, rendered) in rows.into_iter().enumerate() {
            match rendered {
                Ok((rendered, tokens)) => {
                    let mut id = [0; 16];
                    id.copy_from_slice(&blake3::hash(rendered.row_id.as_bytes()).as_bytes()[..16]);
                    self.entries.push(Entry { id, tokens });
                    self.slots.push(spool.push(&rendered)?);
                }
                Err(reject) => {
                    let parent = ids.value(row);
                    let row_id = key::row_id("mix.reject", u64::from(self.number), &[parent], 0, 0);
                    rejects.push(&row_id, Some(parent), &reject, 0);
                }
            }
        }
        if rejects.len() == 0 {
            return Ok(None);
        }
        rejects.take().map(Some)
    }
}

/// The text of a row with its tokens as packed.
fn rendered(
    batch: &RecordBatch,
    row: usize,
    kind: Kind,
    renderer: &Renderer,
) -> Result<Result<(Rendered, u32), Reject>, Failure> {
    let Renderer { tokenizer, chat } = renderer;
    let row_id = text(batch, "row_id")?.value(row).to_owned();
    let doc_id = optional_text(batch, "doc_id", row)?.map(str::to_owned);
    let count = |tokens: usize| {
        u32::try_from(tokens)
            .ok()
            .filter(|tokens| i32::try_from(*tokens).is_ok())
            .ok_or_else(|| Failure::data(format!("row `{row_id}` has {tokens} tokens")).hint("chunk the documents first"))
    };
    let cell = |name: &str| Ok::<_, Failure>(optional_text(batch, name, row)?.filter(|text| !text.trim().is_empty()));
    let (prompt, content) = match kind {
        Kind::Qa => match (cell("question")?, cell("answer")?) {
            (Some(question), Some(answer)) => {
                let answer = render::completion(cell("explanation")?, answer);
                if let Some(chat) = chat {
                    return match chat.exchange(question.trim(), &answer) {
                        Ok(render::Exchange { messages, text, prompt, tokens }) => {
                            let tokens = count(tokens)?;
                            let (prompt, messages) = (Some(prompt), Some(messages));
                            Ok(Ok((Rendered { row_id, doc_id, prompt, messages, text }, tokens)))
                        }
                        Err(ChatError::Tokenizer(error)) => Err(Failure::data(format!("row `{row_id}`: {error}"))),
                        Err(error) => Ok(Err(Reject::new("template", error.to_string()).raw(question))),
                    };
                }
                let prompt = render::prompt(question);
                (Some(prompt.len()), format!("{prompt} {answer}"))
            }
            (None, _) => return Ok(Err(Reject::new("empty", "no `question`"))),
            (_, None) => return Ok(Err(Reject::new("empty", "no `answer`"))),
        },
        Kind::Document => match cell("text")? {
            Some(text) => (None, text.to_owned()),
            None => return Ok(Err(Reject::new("empty", "no `text`"))),
        },
    };
    let tokens = tokenizer.count(&content).map_err(|error| Failure::data(format!("row `{row_id}`: {error}")))?;
    let tokens = count(tokens + 1 + usize::from(tokenizer.begin_id().is_some()))?;
    Ok(Ok((Rendered { row_id, doc_id, prompt, messages: None, text: content }, tokens)))
}

/// The mixture while it is written.
#[derive(Debug)]
struct Mixture {
    order: Order,
    tables: Vec<Read>,
    position: i64,
    schema: SchemaRef,
}

impl Mixture {
    /// The next rows: up to 1,024, or about 4 MiB of text; `None` at the end.
    fn batch(&mut self, spooled: &mut Spooled) -> Result<Option<RecordBatch>, Failure> {
        const ROWS: usize = 1024;
        const BYTES: usize = 4 << 20;
        let mut texts = [(); 6].map(|()| StringBuilder::new());
        let [ids, parents, kinds, documents, prompts, contents] = &mut texts;
        let mut messages = StringBuilder::new();
        let (mut counts, mut numbers, mut repeats) = (Int32Builder::new(), Int32Builder::new(), Int32Builder::new());
        let mut positions = Int64Builder::new();
        let mut bytes = 0;
        while bytes < BYTES && positions.values_slice().len() < ROWS {
            let Some(Place { source, row, repeat, tokens }) = self.order.next() else { break };
            let table = &self.tables[source];
            let rendered = spooled.read(table.slots[row])?;
            ids.append_value(key::row_id("mix", u64::from(table.number), &[&rendered.row_id], u64::from(repeat), 0));
            parents.append_value(&rendered.row_id);
            kinds.append_value(if table.number == order::REPLAY { REPLAY } else { table.kind.as_str() });
            documents.append_option(rendered.doc_id.as_deref());
            prompts.append_option(rendered.prompt.and_then(|end| rendered.text.get(..end)));
            contents.append_value(&rendered.text);
            messages.append_option(rendered.messages.as_deref());
            counts.append_value(tokens as i32);
            // Which is -1 for replay.
            numbers.append_value(table.number as i32);
            repeats.append_value(repeat as i32);
            positions.append_value(self.position);
            self.position += 1;
            bytes += rendered.text.len();
        }
        if positions.values_slice().is_empty() {
            return Ok(None);
        }
        let mut columns: Vec<ArrayRef> = texts.iter_mut().map(|text| Arc::new(text.finish()) as ArrayRef).collect();
        columns.extend([counts, numbers, repeats].map(|mut ints| Arc::new(ints.finish()) as ArrayRef));
        columns.push(Arc::new(positions.finish()));
        if self.schema.fields().len() > columns.len() {
            columns.push(Arc::new(messages.finish()));
        }
        Ok(Some(RecordBatch::try_new(self.schema.clone(), columns)?))
    }
}

#[cfg(test)]
mod tests;

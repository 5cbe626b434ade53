//! Pairs of questions and answers, made by a teacher.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use arrow::{
    array::{Array, ArrayRef, Int32Builder, RecordBatch, StringArray, StringBuilder},
    datatypes::{DataType, Field, SchemaRef},
};
use datafusion::execution::SendableRecordBatchStream;
use futures::{StreamExt, TryStreamExt, stream};
use ingrain_engine::{
    failure::Failure,
    key,
    operator::{
        DEFAULT_OUTPUT, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports, REJECTS_OUTPUT, Resource,
    },
    run::{OutputRows, OutputStream, RowStream, StreamContext},
    spec::Size,
};
use ingrain_llm::{Answer, Client, Decoding, Message, Outcome, Request, Role, parse};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    rejects::{Reject, Rejects},
    route::input,
    teachers::{self, About, prompt, prompt::Prompt, texts},
};

const NAME: &str = "synthesize_qa";
const PORT: &str = "default";
const PROMPT: &str = include_str!("prompt.jinja");
/// Answered requests that are written at once.
const WRITTEN_AT_ONCE: usize = 64;

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<SynthesizeQa>(NAME, 2);

/// Asks a teacher for questions and answers about each row, from which a student learns to use what the row says. Questions
/// stand alone: they name what they are about. An answer is preceded by an explanation that leads to it.
///
/// Each row is asked about `draws` times, in one request a draw. Every answer is remembered on the store before its pairs
/// are written, so that no request is paid for twice: another run, another pipeline and a changed `seed` find it there.
/// An answer that can't be used (a refusal, one that `max_output_tokens` cut off, one without a pair in it) is asked for
/// again, `attempts` times in all, and then is a row of `rejects`. A teacher may give more or fewer pairs than asked for;
/// all that are whole are taken, and an answer with others besides is a row of `rejects`, too (`incomplete`). So is a row
/// that the server refuses (`invalid_request`, with its words) or that doesn't fit into the model's `context` (`too_long`), and
/// one without text, which isn't asked about (`empty`, once for all draws).
///
/// A prompt is a template in Jinja's syntax. It reads the columns of the row by name, `title` (empty where the rows have none),
/// `pairs`, and `draw` (from 0), and it can read nothing else. A null is an empty text.
///
/// # Ports
/// One, of documents or chunks: `doc_id`, `text`, and `title` where there is one.
///
/// # Outputs
/// - default: a row for each pair: `doc_id, question, answer, explanation` (null where the teacher gave none), `draw`,
///   `request_id` (of the answer in the memo). `parent_id` is the row that was asked about.
///
/// # Example
/// ```yaml
/// qa: { op: synthesize_qa, from: units, teacher: llama70b, pairs: 8, draws: 2 }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SynthesizeQa {
    /// The model that is asked: a name under `models`.
    pub teacher: String,
    /// Pairs that a request asks for. Default 8.
    #[serde(default = "eight")]
    #[schemars(range(min = 1, max = 256))]
    pub pairs: u32,
    /// How often each row is asked about. Default 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10_000))]
    pub draws: u32,
    /// Show each draw the questions of those before. Not built yet: `false`.
    #[serde(default)]
    pub avoid_repeats: bool,
    /// A file with a prompt template, relative to the pipeline file. Default: the operator's own.
    #[serde(default)]
    pub prompt: Option<PathBuf>,
    /// Temperature of the teacher's draws; 0 takes the likeliest token. Default 1.
    #[serde(default = "unit")]
    #[schemars(range(min = 0.0, max = 2.0))]
    pub temperature: f64,
    /// The share of probability that the teacher draws from. Default 1.
    #[serde(default = "unit")]
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0))]
    pub top_p: f64,
    /// Tokens after which an answer is cut off (and refused). Default 2048.
    #[serde(default = "output_tokens")]
    #[schemars(extend("minimum" = 1, "maximum" = 4_294_967_295_u32))]
    pub max_output_tokens: Size,
    /// How often a request is asked at most until its answer can be used. Default 3.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 100))]
    pub attempts: u32,
}

fn eight() -> u32 {
    8
}

fn one() -> u32 {
    1
}

fn three() -> u32 {
    3
}

fn unit() -> f64 {
    1.0
}

fn output_tokens() -> Size {
    Size(2048)
}

impl Operator for SynthesizeQa {
    fn ports(&self) -> Ports {
        let columns = [("row_id", DataType::Utf8), ("doc_id", DataType::Utf8), ("text", DataType::Utf8)];
        Ports::Named(vec![Port::new(PORT, &columns)])
    }

    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let rows = input(inputs, PORT)?;
        let mut mistakes = Vec::new();
        if self.avoid_repeats {
            mistakes.push(
                Invalid::new("/avoid_repeats", "isn't built yet").hint("leave it out; `dedup` removes questions that come twice"),
            );
        }
        match Prompt::open(self.prompt.as_deref(), PROMPT) {
            Err(wrong) => mistakes.push(Invalid::new("/prompt", wrong)),
            Ok(prompt) => {
                let columns = rows.schema.fields().iter().map(|field| field.name().as_str());
                let known: BTreeSet<&str> = columns.chain(["title", "pairs", "draw"]).collect();
                mistakes.extend(prompt.unknown("/prompt", &format!("`{}`", rows.name), &known));
            }
        }
        if u32::try_from(self.max_output_tokens.0).is_err() {
            mistakes.push(Invalid::new("/max_output_tokens", "is more than any model gives").hint("`2048` is the default"));
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let doc_id = rows.schema.field_with_name("doc_id").is_ok_and(|field| !field.is_nullable());
        let text = |name: &str, nullable: bool| Field::new(name, DataType::Utf8, nullable);
        Ok(vec![Output::new(
            DEFAULT_OUTPUT,
            vec![
                text("row_id", false),
                text("parent_id", false),
                text("doc_id", !doc_id),
                text("question", false),
                text("answer", false),
                text("explanation", true),
                Field::new("draw", DataType::Int32, false),
                text("request_id", false),
            ],
        )])
    }

    fn lower(&self, _: &Inputs) -> Lowering {
        Lowering::Rows { query: None, stream: Some(Arc::new(Ask(self.clone()))) }
    }

    fn files(&self) -> Vec<(&'static str, PathBuf)> {
        self.prompt.iter().map(|path| ("prompt", path.clone())).collect()
    }

    fn models(&self) -> Vec<(&'static str, String)> {
        vec![("teacher", self.teacher.clone())]
    }

    fn resource(&self) -> Resource {
        Resource::Teacher
    }
}

struct Ask(SynthesizeQa);

impl RowStream for Ask {
    fn start(&self, rows: SendableRecordBatchStream, context: StreamContext) -> OutputStream {
        let config = self.0.clone();
        stream::once(run(config, rows, context)).try_flatten().boxed()
    }
}

async fn run(config: SynthesizeQa, rows: SendableRecordBatchStream, context: StreamContext) -> Result<OutputStream, Failure> {
    let window = teachers::window(&context.environment, &config.teacher)?;
    let client = teachers::client(&context.environment, &config.teacher).await?;
    context.counters.units_per_row.store(config.draws.into(), Ordering::Relaxed);
    let prompt = Prompt::of(&context, config.prompt.as_deref(), PROMPT)?;
    let requests = Arc::new(Requests::new(&config, prompt));
    let schema = context.schema(DEFAULT_OUTPUT)?;
    let units = context.clone();
    let asked = rows
        .map(move |batch| Ok::<_, Failure>(stream::iter(jobs(Arc::clone(&requests), batch?)?.map(Ok::<_, Failure>))))
        .try_flatten()
        .map(move |job| {
            let (client, context, attempts) = (Arc::clone(&client), context.clone(), config.attempts);
            teachers::spawned(async move { job?.ask(&client, &context, attempts).await })
        })
        .buffered(window);
    // How many come together is a matter of timing, and shows in nothing but the sizes of batches.
    let written = asked.ready_chunks(WRITTEN_AT_ONCE).map(move |answered| {
        let answered = answered.into_iter().collect::<Result<Vec<_>, _>>()?;
        // Units that are under way would hide how many of those that came to an end were rejected.
        units.count_units(answered.iter().map(Answered::units).sum());
        Ok::<_, Failure>(stream::iter(batches(&schema, answered)?.into_iter().map(Ok::<_, Failure>)))
    });
    Ok(written.try_flatten().boxed())
}

/// Makes requests of rows.
struct Requests {
    prompt: Prompt,
    pairs: u32,
    draws: u32,
    decoding: Decoding,
}

impl Requests {
    fn new(config: &SynthesizeQa, prompt: Prompt) -> Self {
        Self {
            prompt,
            pairs: config.pairs,
            draws: config.draws,
            decoding: Decoding {
                temperature: config.temperature,
                top_p: config.top_p,
                max_output_tokens: u32::try_from(config.max_output_tokens.0).unwrap_or(u32::MAX),
            },
        }
    }

    fn request(&self, rows: &RecordBatch, row: usize, draw: u32) -> Result<Request, Failure> {
        let mut variables = prompt::cells(rows, row, self.prompt.variables())?;
        let title = rows.column_by_name("title").is_some();
        let title = if title { prompt::cells(rows, row, &["title".to_owned()].into())? } else { BTreeMap::new() };
        let title = title.get("title").cloned().unwrap_or_default();
        variables.extend([
            ("title".to_owned(), title.clone()),
            ("pairs".to_owned(), self.pairs.into()),
            ("draw".to_owned(), draw.into()),
        ]);
        Ok(Request {
            messages: vec![Message { role: Role::User, content: self.prompt.render(&variables)? }],
            decoding: self.decoding,
            response_format: Some(response_format()),
            task: NAME.into(),
            variables: json!({ "title": title, "text": texts(rows, "text")?.value(row), "pairs": self.pairs }),
        })
    }
}

/// The form of an answer, for servers that keep to one. The explanation stands before the answer that it leads to.
fn response_format() -> Value {
    let text = json!({ "type": "string" });
    let pair = json!({
        "type": "object",
        "properties": { "question": text, "explanation": text, "answer": text },
        "required": ["question", "explanation", "answer"],
        "additionalProperties": false,
    });
    let schema = json!({
        "type": "object",
        "properties": { "pairs": { "type": "array", "items": pair } },
        "required": ["pairs"],
        "additionalProperties": false,
    });
    json!({ "type": "json_schema", "json_schema": { "name": "pairs", "strict": true, "schema": schema } })
}

/// One request about one row, before it is rendered.
struct Job {
    requests: Arc<Requests>,
    rows: Arc<RecordBatch>,
    row: usize,
    draw: u32,
}

/// The requests about the rows of a batch: row after row, in each draw after draw. A row without text comes once.
fn jobs(requests: Arc<Requests>, rows: RecordBatch) -> Result<impl Iterator<Item = Job> + Send + 'static, Failure> {
    let text = texts(&rows, "text")?;
    let draws: Vec<u32> = (0..rows.num_rows()).map(|row| if is_blank(text, row) { 1 } else { requests.draws }).collect();
    let rows = Arc::new(rows);
    let places = draws.into_iter().enumerate().flat_map(|(row, draws)| (0..draws).map(move |draw| (row, draw)));
    Ok(places.map(move |(row, draw)| Job { requests: Arc::clone(&requests), rows: Arc::clone(&rows), row, draw }))
}

fn is_blank(texts: &StringArray, row: usize) -> bool {
    texts.is_null(row) || texts.value(row).trim().is_empty()
}

/// What came of a [`Job`]: what was taken, with the request's id, or why nothing was, after how many attempts.
struct Answered {
    row_id: String,
    doc_id: Option<String>,
    draw: u32,
    result: Result<(Taken, String), (Reject, u32)>,
}

impl Answered {
    /// Units of work: what was left out of an answer is one of its own, and rejected.
    fn units(&self) -> u64 {
        1 + u64::from(matches!(&self.result, Ok((Taken { left_out: Some(_), .. }, _))))
    }
}

/// What was taken of an answer.
#[derive(Debug)]
struct Taken {
    pairs: Vec<parse::Pair>,
    /// That the answer holds more, which isn't whole.
    left_out: Option<Reject>,
}

impl Job {
    fn row_id(&self) -> Result<String, Failure> {
        Ok(texts(&self.rows, "row_id")?.value(self.row).to_owned())
    }

    fn doc_id(&self) -> Result<Option<String>, Failure> {
        let doc_ids = texts(&self.rows, "doc_id")?;
        Ok(doc_ids.is_valid(self.row).then(|| doc_ids.value(self.row).to_owned()))
    }

    async fn ask(self, client: &Client, context: &StreamContext, attempts: u32) -> Result<Answered, Failure> {
        let (row_id, doc_id, draw) = (self.row_id()?, self.doc_id()?, self.draw);
        if is_blank(texts(&self.rows, "text")?, self.row) {
            return Ok(Answered { row_id, doc_id, draw, result: Err((Reject::new("empty", "no `text`"), 0)) });
        }
        let admission = client.admit().await.map_err(teachers::outage)?;
        let request = self.requests.request(&self.rows, self.row, self.draw)?;
        let about = About {
            document: doc_id.as_deref().unwrap_or(&row_id),
            shown: &[],
            draw,
            refresh: context.refresh.as_deref(),
            attempts,
        };
        let outcome = teachers::ask(client, &context.counters, &request, about, read).await?;
        drop(admission);
        let result = match outcome {
            Outcome::Accepted { value, request_id, .. } => Ok((value, request_id)),
            Outcome::Rejected { reject, raw, attempts } => Err((Reject::new(reject.reason, reject.detail).raw(&raw), attempts)),
        };
        Ok(Answered { row_id, doc_id, draw, result })
    }
}

fn read(answer: &Answer) -> Result<Taken, ingrain_llm::Reject> {
    let parse::Pairs { whole: pairs, incomplete } = parse::pairs(answer.whole()?)?;
    let left_out = (incomplete > 0).then(|| {
        let detail = format!("{incomplete} more without a whole `question` and `answer`; {} were taken", pairs.len());
        Reject::new("incomplete", detail).raw(&answer.text)
    });
    Ok(Taken { pairs, left_out })
}

/// The rows of some answered requests, in their order.
fn batches(schema: &SchemaRef, answered: Vec<Answered>) -> Result<Vec<OutputRows>, Failure> {
    let mut pairs = Pairs::default();
    let mut rejects = Rejects::default();
    for Answered { row_id, doc_id, draw, result } in answered {
        let reject_id = |ordinal| key::row_id("synthesize_qa.reject", 0, &[&row_id], draw.into(), ordinal);
        match result {
            Ok((taken, request_id)) => {
                for (ordinal, pair) in taken.pairs.iter().enumerate() {
                    pairs.push(&row_id, doc_id.as_deref(), draw, ordinal as u64, pair, &request_id);
                }
                if let Some(reject) = taken.left_out {
                    rejects.push(&reject_id(1), Some(&row_id), &reject, 1);
                }
            }
            Err((reject, attempts)) => {
                rejects.push(&reject_id(0), Some(&row_id), &reject, i32::try_from(attempts).unwrap_or(i32::MAX));
            }
        }
    }
    let mut outputs = Vec::new();
    if pairs.draw.values_slice().is_empty() {
        drop(pairs);
    } else {
        outputs.push(OutputRows { output: DEFAULT_OUTPUT, rows: pairs.finish(schema)? });
    }
    if rejects.len() > 0 {
        outputs.push(OutputRows { output: REJECTS_OUTPUT, rows: rejects.take()? });
    }
    Ok(outputs)
}

#[derive(Default)]
struct Pairs {
    row_id: StringBuilder,
    parent_id: StringBuilder,
    doc_id: StringBuilder,
    question: StringBuilder,
    answer: StringBuilder,
    explanation: StringBuilder,
    draw: Int32Builder,
    request_id: StringBuilder,
}

impl Pairs {
    fn push(&mut self, parent: &str, doc_id: Option<&str>, draw: u32, ordinal: u64, pair: &parse::Pair, request_id: &str) {
        self.row_id.append_value(key::row_id(NAME, 0, &[parent], draw.into(), ordinal));
        self.parent_id.append_value(parent);
        self.doc_id.append_option(doc_id);
        self.question.append_value(&pair.question);
        self.answer.append_value(&pair.answer);
        self.explanation.append_option(Some(&pair.explanation).filter(|explanation| !explanation.is_empty()));
        self.draw.append_value(i32::try_from(draw).unwrap_or(i32::MAX));
        self.request_id.append_value(request_id);
    }

    fn finish(mut self, schema: &SchemaRef) -> Result<RecordBatch, Failure> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.row_id.finish()),
            Arc::new(self.parent_id.finish()),
            Arc::new(self.doc_id.finish()),
            Arc::new(self.question.finish()),
            Arc::new(self.answer.finish()),
            Arc::new(self.explanation.finish()),
            Arc::new(self.draw.finish()),
            Arc::new(self.request_id.finish()),
        ];
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}

#[cfg(test)]
mod tests;

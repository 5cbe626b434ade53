//! Documents rewritten by a teacher.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringBuilder},
    datatypes::{DataType, Field, Int64Type, SchemaRef},
};
use datafusion::execution::SendableRecordBatchStream;
use futures::{StreamExt, TryStreamExt, stream};
use ingrain_engine::{
    failure::Failure,
    key,
    operator::{
        DEFAULT_OUTPUT, Input, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports, Query, REJECTS_OUTPUT,
        Resource,
    },
    run::{OutputRows, OutputStream, RowStream, StreamContext},
    spec::Size,
};
use ingrain_llm::{Answer, Client, Decoding, Message, Outcome, Request, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    rejects::{Reject, Rejects},
    route::input,
    teachers::{self, About, prompt::Prompt, texts},
};

const NAME: &str = "rewrite";
const DOCUMENTS: &str = "documents";
const QUESTIONS: &str = "questions";
const FOCAL: &str = include_str!("focal.jinja");
/// Answered requests that are written at once.
const WRITTEN_AT_ONCE: usize = 64;

/// What a focal prompt may read.
const VARIABLES: [&str; 5] = ["title", "text", "question", "answer", "max_words"];

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Rewrite>(NAME, 2);

/// Asks a teacher to rewrite each document several times, so that a student meets the same facts in many forms.
///
/// With the strategy `focal`, each rewrite serves one question about its document: the teacher chooses a way to learn the
/// document with that question in mind, and writes by it. A question goes with the row that it was asked about
/// (`questions.parent_id` is that row's `row_id`), and each row takes `per_document` of its questions, without
/// replacement: those that come first by a hash of their own `row_id`. So another seed costs no call, and a question that
/// is added or removed changes one rewrite at most.
///
/// Every answer is remembered on the store before its row is written, so that no request is paid for twice. An answer that
/// can't be used (a refusal, one that `max_output_tokens` cut off, one of fewer words than `min_words`) is asked for again,
/// `attempts` times in all, and then is a row of `rejects`. So is a request that the server refuses (`invalid_request`, with
/// its words) or that doesn't fit into the model's `context` (`too_long`), and so are, unasked, a question without its document
/// (`no_document`) and one that is empty, or whose document is (`empty`). When there are questions and none has its document,
/// the stage fails.
///
/// A prompt is a template in Jinja's syntax. It reads `title`, `text`, `question`, `answer` and `max_words` (three quarters
/// of `max_output_tokens`; `title` and `answer` are empty texts where there is none), and it can read nothing else.
///
/// # Ports
/// - `documents`: documents or chunks: `doc_id`, `text`, and `title` where there is one.
/// - `questions`: what they are rewritten for: `question`, and `answer` where there is one.
///
/// # Outputs
/// - default: a row for each rewrite: `doc_id, text, strategy, question_id` (the question's `row_id`), `request_id` (of the
///   answer in the memo). `parent_id` is the document's row.
///
/// # Example
/// ```yaml
/// rewrites: { op: rewrite, from: { documents: units, questions: qa_unique }, strategy: focal, teacher: llama70b, per_document: 8 }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rewrite {
    /// How a document is rewritten. Built so far: `focal`, the default.
    #[serde(default)]
    pub strategy: Strategy,
    /// The model that is asked: a name under `models`.
    pub teacher: String,
    /// Rewrites of each document, at most: one a question. Default 8.
    #[serde(default = "eight")]
    #[schemars(range(min = 1))]
    pub per_document: u32,
    /// A file with a prompt template, relative to the pipeline file. Default: the strategy's own.
    #[serde(default)]
    pub prompt: Option<PathBuf>,
    /// Temperature of the teacher's draws; 0 takes the likeliest token. Default 0.7.
    #[serde(default = "temperature")]
    #[schemars(range(min = 0.0, max = 2.0))]
    pub temperature: f64,
    /// The share of probability that the teacher draws from. Default 0.95.
    #[serde(default = "top_p")]
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0))]
    pub top_p: f64,
    /// Tokens after which a rewrite is cut off (and refused); the teacher is told to stay under three quarters as many words.
    /// A student learns best from rewrites that are no longer than its training sequence. Default 4096.
    #[serde(default = "output_tokens")]
    #[schemars(extend("minimum" = 2, "maximum" = 4_294_967_295_u32))]
    pub max_output_tokens: Size,
    /// Words that a rewrite has at least. A document with fewer words itself may have any rewrite but an empty one.
    /// Default 30.
    #[serde(default = "thirty")]
    pub min_words: u32,
    /// How often a request is asked at most until its answer can be used. Default 5.
    #[serde(default = "five")]
    #[schemars(range(min = 1, max = 100))]
    pub attempts: u32,
}

/// How a document is rewritten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// For one question about it at a time.
    #[default]
    Focal,
    /// By strategies that the teacher proposes for it.
    ActiveReading,
    /// In fixed styles.
    Rephrase,
    /// As relations among its entities.
    Entigraph,
    /// As material to study from.
    StudyGuide,
}

impl Strategy {
    /// The word in the pipeline file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Focal => "focal",
            Self::ActiveReading => "active_reading",
            Self::Rephrase => "rephrase",
            Self::Entigraph => "entigraph",
            Self::StudyGuide => "study_guide",
        }
    }
}

fn eight() -> u32 {
    8
}

fn thirty() -> u32 {
    30
}

fn five() -> u32 {
    5
}

fn temperature() -> f64 {
    0.7
}

fn top_p() -> f64 {
    0.95
}

fn output_tokens() -> Size {
    Size(4096)
}

impl Operator for Rewrite {
    fn ports(&self) -> Ports {
        let text = |names: &[&'static str]| names.iter().map(|name| (*name, DataType::Utf8)).collect::<Vec<_>>();
        Ports::Named(vec![
            Port::new(DOCUMENTS, &text(&["row_id", "doc_id", "text"])),
            Port::new(QUESTIONS, &text(&["row_id", "parent_id", "question"])),
        ])
    }

    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let documents = input(inputs, DOCUMENTS)?;
        input(inputs, QUESTIONS)?;
        let mut mistakes = Vec::new();
        if self.strategy != Strategy::Focal {
            mistakes.push(Invalid::new("/strategy", format!("`{}` isn't built yet", self.strategy.name())).hint("`focal` is"));
        }
        match Prompt::open(self.prompt.as_deref(), FOCAL) {
            Err(wrong) => mistakes.push(Invalid::new("/prompt", wrong)),
            Ok(prompt) => mistakes.extend(prompt.unknown("/prompt", "`rewrite`", &VARIABLES.into())),
        }
        if u32::try_from(self.max_output_tokens.0).is_err() {
            mistakes.push(Invalid::new("/max_output_tokens", "is more than any model gives").hint("`4096` is the default"));
        }
        if u64::from(self.min_words) > u64::from(self.max_words()) {
            mistakes.push(
                Invalid::new(
                    "/min_words",
                    format!("is {}, and `max_output_tokens` leaves room for {} words", self.min_words, self.max_words()),
                )
                .hint("lower `min_words` or raise `max_output_tokens`"),
            );
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let doc_id = documents.schema.field_with_name("doc_id").is_ok_and(|field| !field.is_nullable());
        let text = |name: &str, nullable: bool| Field::new(name, DataType::Utf8, nullable);
        Ok(vec![Output::new(
            DEFAULT_OUTPUT,
            vec![
                text("row_id", false),
                text("parent_id", false),
                text("doc_id", !doc_id),
                text("text", false),
                text("strategy", false),
                text("question_id", false),
                text("request_id", false),
            ],
        )])
    }

    fn lower(&self, inputs: &Inputs) -> Lowering {
        Lowering::Rows { query: Some(Query { sql: self.sql(inputs), unique: false }), stream: Some(Arc::new(Ask(self.clone()))) }
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

impl Rewrite {
    /// Words that the teacher is told to stay under.
    fn max_words(&self) -> u32 {
        u32::try_from(self.max_output_tokens.0.saturating_mul(3) / 4).unwrap_or(u32::MAX)
    }

    /// The questions that are rewritten for, each with its document, and those without one. `matched` is the number of all
    /// questions that have their document, the same in every row: a partition alone can't know that it is 0.
    fn sql(&self, inputs: &Inputs) -> String {
        let has = |port: &str, column: &str| {
            inputs.first(port).is_some_and(|Input { schema, .. }| schema.column_with_name(column).is_some())
        };
        let title = if has(DOCUMENTS, "title") { "documents.title" } else { "cast(null as varchar)" };
        let answer = if has(QUESTIONS, "answer") { "answer" } else { "cast(null as varchar)" };
        format!(
            "select asked.row_id, asked.parent_id, asked.question, asked.answer, \
                documents.row_id as document_id, documents.doc_id, {title} as title, documents.text, matched.n as matched \
             from (select count(*) as n from questions join documents on questions.parent_id = documents.row_id) as matched \
             cross join (select row_id, parent_id, question, {answer} as answer, row_number() over (\
                partition by parent_id order by encode(digest(concat('rewrite;', row_id), 'blake3'), 'hex'), row_id) as place from questions) as asked \
             left join documents on asked.parent_id = documents.row_id \
             where asked.place <= {} or documents.row_id is null",
            self.per_document
        )
    }
}

struct Ask(Rewrite);

impl RowStream for Ask {
    fn start(&self, rows: SendableRecordBatchStream, context: StreamContext) -> OutputStream {
        let config = self.0.clone();
        stream::once(run(config, rows, context)).try_flatten().boxed()
    }
}

async fn run(config: Rewrite, rows: SendableRecordBatchStream, context: StreamContext) -> Result<OutputStream, Failure> {
    let window = teachers::window(&context.environment, &config.teacher)?;
    let client = teachers::client(&context.environment, &config.teacher).await?;
    let prompt = Prompt::of(&context, config.prompt.as_deref(), FOCAL)?;
    let requests = Arc::new(Requests::new(&config, prompt));
    let schema = context.schema(DEFAULT_OUTPUT)?;
    let units = context.clone();
    let asked = rows
        .map(move |batch| Ok::<_, Failure>(stream::iter(jobs(Arc::clone(&requests), batch?)?)))
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
        units.count_units(answered.len() as u64);
        Ok::<_, Failure>(stream::iter(batches(&schema, config.strategy, answered)?.into_iter().map(Ok::<_, Failure>)))
    });
    Ok(written.try_flatten().boxed())
}

/// Makes requests of questions with their documents.
struct Requests {
    prompt: Prompt,
    decoding: Decoding,
    max_words: u32,
    min_words: u32,
}

impl Requests {
    fn new(config: &Rewrite, prompt: Prompt) -> Self {
        Self {
            prompt,
            decoding: Decoding {
                temperature: config.temperature,
                top_p: config.top_p,
                max_output_tokens: u32::try_from(config.max_output_tokens.0).unwrap_or(u32::MAX),
            },
            max_words: config.max_words(),
            min_words: config.min_words,
        }
    }

    fn request(&self, title: Option<&str>, text: &str, question: &str, answer: Option<&str>) -> Result<Request, Failure> {
        let variables: BTreeMap<String, Value> = [
            ("title".to_owned(), title.into()),
            ("text".to_owned(), text.into()),
            ("question".to_owned(), question.into()),
            ("answer".to_owned(), answer.into()),
            ("max_words".to_owned(), self.max_words.into()),
        ]
        .into();
        Ok(Request {
            messages: vec![Message { role: Role::User, content: self.prompt.render(&variables)? }],
            decoding: self.decoding,
            response_format: None,
            task: NAME.into(),
            variables: json!(variables),
        })
    }

    /// How many words a rewrite of `text` needs.
    fn least_words(&self, text: &str) -> usize {
        let least = usize::try_from(self.min_words).unwrap_or(usize::MAX);
        if text.split_whitespace().nth(least.saturating_sub(1)).is_none() { 1 } else { least.max(1) }
    }
}

/// A question with its document, if it has one, before the request is rendered.
struct Job {
    requests: Arc<Requests>,
    rows: Arc<RecordBatch>,
    row: usize,
}

/// The jobs of a batch of the query's rows, in their order.
fn jobs(
    requests: Arc<Requests>,
    rows: RecordBatch,
) -> Result<impl Iterator<Item = Result<Job, Failure>> + Send + 'static, Failure> {
    let matched = rows.column_by_name("matched").and_then(|column| column.as_primitive_opt::<Int64Type>());
    let matched = matched.ok_or_else(|| Failure::bug("no number `matched`"))?;
    if rows.num_rows() > 0 && matched.value(0) == 0 {
        return Err(Failure::data(
            "no question belongs to a document: no `parent_id` of `questions` is a `row_id` of `documents`",
        )
        .hint("give `documents` the same rows that the questions were asked about"));
    }
    let (count, rows) = (rows.num_rows(), Arc::new(rows));
    Ok((0..count).map(move |row| Ok(Job { requests: Arc::clone(&requests), rows: Arc::clone(&rows), row })))
}

/// What came of a [`Job`].
struct Answered {
    question_id: String,
    result: Result<Rewritten, (Reject, u32)>,
}

struct Rewritten {
    document_id: String,
    doc_id: Option<String>,
    text: String,
    request_id: String,
}

impl Job {
    fn cell(&self, name: &str) -> Result<Option<&str>, Failure> {
        let column = texts(&self.rows, name)?;
        Ok(column.is_valid(self.row).then(|| column.value(self.row)))
    }

    fn text(&self, name: &str) -> Result<&str, Failure> {
        Ok(self.cell(name)?.unwrap_or_default())
    }

    /// Why there is nothing to ask, if so.
    fn unasked(&self) -> Result<Option<Reject>, Failure> {
        if self.cell("document_id")?.is_none() {
            let detail = match self.cell("parent_id")? {
                Some(parent) => format!("its `parent_id` {parent} is the `row_id` of no row of `documents`"),
                None => "it has no `parent_id`".into(),
            };
            return Ok(Some(Reject::new("no_document", detail)));
        }
        if self.text("text")?.trim().is_empty() {
            return Ok(Some(Reject::new("empty", "its document has no `text`")));
        }
        if self.text("question")?.trim().is_empty() {
            return Ok(Some(Reject::new("empty", "no `question`")));
        }
        Ok(None)
    }

    /// The request, and how many words its answer needs.
    fn request(&self) -> Result<(Request, usize), Failure> {
        let text = self.text("text")?;
        let request = self.requests.request(self.cell("title")?, text, self.text("question")?, self.cell("answer")?)?;
        Ok((request, self.requests.least_words(text)))
    }

    async fn ask(self, client: &Client, context: &StreamContext, attempts: u32) -> Result<Answered, Failure> {
        let question_id = self.text("row_id")?.to_owned();
        if let Some(reject) = self.unasked()? {
            return Ok(Answered { question_id, result: Err((reject, 0)) });
        }
        let admission = client.admit().await.map_err(teachers::outage)?;
        let (document_id, doc_id) = (self.text("document_id")?.to_owned(), self.cell("doc_id")?.map(str::to_owned));
        let (request, least) = self.request()?;
        let accept = |answer: &Answer| read(answer, least);
        let about = About {
            document: doc_id.as_deref().unwrap_or(&document_id),
            shown: &[],
            draw: 0,
            refresh: context.refresh.as_deref(),
            attempts,
        };
        let outcome = teachers::ask(client, &context.counters, &request, about, accept).await?;
        drop(admission);
        let result = match outcome {
            Outcome::Accepted { value: text, request_id, .. } => Ok(Rewritten { document_id, doc_id, text, request_id }),
            Outcome::Rejected { reject, raw, attempts } => Err((Reject::new(reject.reason, reject.detail).raw(&raw), attempts)),
        };
        Ok(Answered { question_id, result })
    }
}

fn read(answer: &Answer, least: usize) -> Result<String, ingrain_llm::Reject> {
    let text = answer.whole()?.trim();
    let words = text.split_whitespace().count();
    if words < least {
        return Err(ingrain_llm::Reject::new("too_short", format!("{words} words, and at least {least} are needed")));
    }
    Ok(text.to_owned())
}

/// The rows of some answered requests, in their order.
fn batches(schema: &SchemaRef, strategy: Strategy, answered: Vec<Answered>) -> Result<Vec<OutputRows>, Failure> {
    let [mut row_id, mut parent_id, mut doc_id, mut text, mut strategies, mut question, mut request] =
        std::array::from_fn(|_| StringBuilder::new());
    let mut rejects = Rejects::default();
    let mut rewrites = 0;
    for Answered { question_id, result } in answered {
        match result {
            Ok(rewritten) => {
                row_id.append_value(key::row_id(NAME, 0, &[&rewritten.document_id, &question_id], 0, 0));
                parent_id.append_value(&rewritten.document_id);
                doc_id.append_option(rewritten.doc_id.as_deref());
                text.append_value(&rewritten.text);
                strategies.append_value(strategy.name());
                question.append_value(&question_id);
                request.append_value(&rewritten.request_id);
                rewrites += 1;
            }
            Err((reject, attempts)) => {
                let id = key::row_id("rewrite.reject", 0, &[&question_id], 0, 0);
                rejects.push(&id, Some(&question_id), &reject, i32::try_from(attempts).unwrap_or(i32::MAX));
            }
        }
    }
    let mut outputs = Vec::new();
    if rewrites > 0 {
        let columns = [row_id, parent_id, doc_id, text, strategies, question, request];
        let columns = columns.into_iter().map(|mut column| Arc::new(column.finish()) as ArrayRef).collect();
        outputs.push(OutputRows { output: DEFAULT_OUTPUT, rows: RecordBatch::try_new(schema.clone(), columns)? });
    }
    if rejects.len() > 0 {
        outputs.push(OutputRows { output: REJECTS_OUTPUT, rows: rejects.take()? });
    }
    Ok(outputs)
}

#[cfg(test)]
mod tests;

//! Requests about documents, and the rows that come of their answers.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Builder, RecordBatch, StringBuilder},
    datatypes::{Int64Type, SchemaRef},
};
use datafusion::execution::SendableRecordBatchStream;
use futures::{StreamExt, TryStreamExt, stream};
use ingrain_engine::{
    failure::Failure,
    key,
    operator::{DEFAULT_OUTPUT, REJECTS_OUTPUT},
    run::{OutputRows, OutputStream, RowStream, StreamContext},
};
use ingrain_llm::{Answer, Client, Decoding, Message, Outcome, Request, Role};
use serde_json::{Value, json};

use super::{
    NAME, Rewrite, Strategy,
    rephrase::{Style, Turn, turns},
};
use crate::{
    rejects::{Reject, Rejects},
    teachers::{self, About, prompt::Prompt, texts},
};

/// Answered requests that are written at once.
const WRITTEN_AT_ONCE: usize = 64;

/// Asks about each row.
pub(super) struct Ask(pub(super) Rewrite);

impl RowStream for Ask {
    fn start(&self, rows: SendableRecordBatchStream, context: StreamContext) -> OutputStream {
        let config = self.0.clone();
        stream::once(run(config, rows, context)).try_flatten().boxed()
    }
}

async fn run(config: Rewrite, rows: SendableRecordBatchStream, context: StreamContext) -> Result<OutputStream, Failure> {
    let window = teachers::window(&context.environment, &config.teacher)?;
    let client = teachers::client(&context.environment, &config.teacher).await?;
    let prompt = Prompt::of(&context, config.prompt.as_deref(), config.template().0)?;
    let requests = Arc::new(Requests::new(&config, prompt));
    let schema = context.schema(DEFAULT_OUTPUT)?;
    let units = context.clone();
    if config.strategy == Strategy::Rephrase {
        context.counters.units_per_row.store(config.per_document.into(), Ordering::Relaxed);
    }
    let (styles, per_document, strategy) = (config.styles().to_vec(), config.per_document, config.strategy);
    let asked = rows
        .map(move |batch| {
            let jobs = match strategy {
                Strategy::Rephrase => turned(&requests, batch?, &styles, per_document)?,
                _ => jobs(&requests, batch?)?,
            };
            Ok::<_, Failure>(stream::iter(jobs.into_iter().map(Ok::<_, Failure>)))
        })
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
        Ok::<_, Failure>(stream::iter(batches(&schema, strategy, answered)?.into_iter().map(Ok::<_, Failure>)))
    });
    Ok(written.try_flatten().boxed())
}

/// Makes requests of questions with their documents.
pub(super) struct Requests {
    pub(super) prompt: Prompt,
    pub(super) decoding: Decoding,
    pub(super) max_words: u32,
    pub(super) min_words: u32,
}

impl Requests {
    pub(super) fn new(config: &Rewrite, prompt: Prompt) -> Self {
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

    /// The request of a task with these variables, besides `max_words`.
    pub(super) fn request(&self, task: &str, variables: &[(&str, Option<&str>)]) -> Result<Request, Failure> {
        let mut all: BTreeMap<String, Value> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        all.insert("max_words".to_owned(), self.max_words.into());
        Ok(Request {
            messages: vec![Message { role: Role::User, content: self.prompt.render(&all)? }],
            decoding: self.decoding,
            response_format: None,
            task: task.into(),
            variables: json!(all),
        })
    }

    /// How many words a rewrite of `text` needs.
    pub(super) fn least_words(&self, text: &str) -> usize {
        let least = usize::try_from(self.min_words).unwrap_or(usize::MAX);
        if text.split_whitespace().nth(least.saturating_sub(1)).is_none() { 1 } else { least.max(1) }
    }
}

/// What is to be asked, before the request is rendered: a question with its document, if it has one, or a document's turn.
pub(super) struct Job {
    pub(super) requests: Arc<Requests>,
    pub(super) rows: Arc<RecordBatch>,
    pub(super) row: usize,
    /// Of a document that is rephrased; none where it has no text.
    pub(super) turn: Option<Turn>,
    strategy: Strategy,
}

/// The jobs of a batch of the query's rows, in their order.
pub(super) fn jobs(requests: &Arc<Requests>, rows: RecordBatch) -> Result<Vec<Job>, Failure> {
    let matched = rows.column_by_name("matched").and_then(|column| column.as_primitive_opt::<Int64Type>());
    let matched = matched.ok_or_else(|| Failure::bug("no number `matched`"))?;
    if rows.num_rows() > 0 && matched.value(0) == 0 {
        return Err(Failure::data(
            "no question belongs to a document: no `parent_id` of `questions` is a `row_id` of `documents`",
        )
        .hint("give `documents` the same rows that the questions were asked about"));
    }
    let (count, rows) = (rows.num_rows(), Arc::new(rows));
    let job = |row| Job { requests: requests.clone(), rows: rows.clone(), row, turn: None, strategy: Strategy::Focal };
    Ok((0..count).map(job).collect())
}

/// The turns of a batch of documents, in their order; one job for a document without text.
pub(super) fn turned(
    requests: &Arc<Requests>,
    rows: RecordBatch,
    styles: &[Style],
    per_document: u32,
) -> Result<Vec<Job>, Failure> {
    let rows = Arc::new(rows);
    let bodies = texts(&rows, "text")?;
    let mut jobs = Vec::new();
    for row in 0..rows.num_rows() {
        let body = if bodies.is_valid(row) { bodies.value(row) } else { "" };
        let turns = turns(body, styles, per_document);
        let job = |turn| Job { requests: requests.clone(), rows: rows.clone(), row, turn, strategy: Strategy::Rephrase };
        match turns.is_empty() {
            true => jobs.push(job(None)),
            false => jobs.extend(turns.into_iter().map(|turn| job(Some(turn)))),
        }
    }
    Ok(jobs)
}

/// What came of a [`Job`].
pub(super) struct Answered {
    /// The row that was asked about: a question, or a document.
    pub(super) asked_id: String,
    pub(super) turn: Option<Turn>,
    pub(super) result: Result<Rewritten, (Reject, u32)>,
}

pub(super) struct Rewritten {
    pub(super) document_id: String,
    pub(super) doc_id: Option<String>,
    pub(super) text: String,
    pub(super) request_id: String,
}

impl Job {
    pub(super) fn cell(&self, name: &str) -> Result<Option<&str>, Failure> {
        let column = texts(&self.rows, name)?;
        Ok(column.is_valid(self.row).then(|| column.value(self.row)))
    }

    pub(super) fn text(&self, name: &str) -> Result<&str, Failure> {
        Ok(self.cell(name)?.unwrap_or_default())
    }

    /// Why there is nothing to ask, if so.
    pub(super) fn unasked(&self) -> Result<Option<Reject>, Failure> {
        if self.strategy == Strategy::Rephrase {
            return Ok(self.turn.is_none().then(|| Reject::new("empty", "no `text`")));
        }
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
    pub(super) fn request(&self) -> Result<(Request, usize), Failure> {
        let text = self.text("text")?;
        let title = match self.rows.column_by_name("title") {
            Some(_) => self.cell("title")?,
            None => None,
        };
        let Some(turn) = &self.turn else {
            let variables = [
                ("title", title),
                ("text", Some(text)),
                ("question", Some(self.text("question")?)),
                ("answer", self.cell("answer")?),
            ];
            return Ok((self.requests.request(NAME, &variables)?, self.requests.least_words(text)));
        };
        let piece = text.get(turn.span.clone()).ok_or_else(|| Failure::bug("a piece outside of its text"))?;
        let (style, manner) = (turn.style.name(), turn.style.manner());
        let variables = [("title", title), ("text", Some(piece)), ("style", Some(style)), ("manner", Some(manner))];
        Ok((self.requests.request("rephrase", &variables)?, self.requests.least_words(piece)))
    }

    async fn ask(self, client: &Client, context: &StreamContext, attempts: u32) -> Result<Answered, Failure> {
        let asked_id = self.text("row_id")?.to_owned();
        if let Some(reject) = self.unasked()? {
            return Ok(Answered { asked_id, turn: None, result: Err((reject, 0)) });
        }
        let admission = client.admit().await.map_err(teachers::outage)?;
        let document_id = if self.turn.is_some() { asked_id.clone() } else { self.text("document_id")?.to_owned() };
        let doc_id = self.cell("doc_id")?.map(str::to_owned);
        let (request, least) = self.request()?;
        let accept = |answer: &Answer| read(answer, least);
        let about = About {
            document: doc_id.as_deref().unwrap_or(&document_id),
            shown: &[],
            draw: self.turn.as_ref().map_or(0, |turn| turn.draw),
            refresh: context.refresh.as_deref(),
            attempts,
        };
        let outcome = teachers::ask(client, &context.counters, &request, about, accept).await?;
        drop(admission);
        let result = match outcome {
            Outcome::Accepted { value: text, request_id, .. } => Ok(Rewritten { document_id, doc_id, text, request_id }),
            Outcome::Rejected { reject, raw, attempts } => Err((Reject::new(reject.reason, reject.detail).raw(&raw), attempts)),
        };
        Ok(Answered { asked_id, turn: self.turn, result })
    }
}

pub(super) fn read(answer: &Answer, least: usize) -> Result<String, ingrain_llm::Reject> {
    let text = answer.whole()?.trim();
    let words = text.split_whitespace().count();
    if words < least {
        return Err(ingrain_llm::Reject::new("too_short", format!("{words} words, and at least {least} are needed")));
    }
    Ok(text.to_owned())
}

/// The rows of some answered requests, in their order.
pub(super) fn batches(schema: &SchemaRef, strategy: Strategy, answered: Vec<Answered>) -> Result<Vec<OutputRows>, Failure> {
    let [mut row_id, mut parent_id, mut doc_id, mut text, mut strategies, mut served, mut request] =
        std::array::from_fn(|_| StringBuilder::new());
    let [mut start, mut end] = std::array::from_fn(|_| Int64Builder::new());
    let mut rejects = Rejects::default();
    let mut rewrites = 0;
    for Answered { asked_id, turn, result } in answered {
        let (draw, ordinal) = turn.as_ref().map_or((0, 0), |turn| (u64::from(turn.draw), turn.ordinal()));
        match result {
            Ok(rewritten) => {
                let parents: &[&str] = if turn.is_some() { &[&asked_id] } else { &[&rewritten.document_id, &asked_id] };
                row_id.append_value(key::row_id(NAME, 0, parents, draw, ordinal));
                parent_id.append_value(&rewritten.document_id);
                doc_id.append_option(rewritten.doc_id.as_deref());
                text.append_value(&rewritten.text);
                strategies.append_value(strategy.name());
                served.append_value(turn.as_ref().map_or(asked_id.as_str(), |turn| turn.style.name()));
                if let Some(turn) = &turn {
                    start.append_value(i64::try_from(turn.span.start).unwrap_or(i64::MAX));
                    end.append_value(i64::try_from(turn.span.end).unwrap_or(i64::MAX));
                }
                request.append_value(&rewritten.request_id);
                rewrites += 1;
            }
            Err((reject, attempts)) => {
                let id = key::row_id("rewrite.reject", 0, &[&asked_id], draw, ordinal);
                rejects.push(&id, Some(&asked_id), &reject, i32::try_from(attempts).unwrap_or(i32::MAX));
            }
        }
    }
    let mut outputs = Vec::new();
    if rewrites > 0 {
        let texts = [row_id, parent_id, doc_id, text, strategies, served];
        let mut columns: Vec<ArrayRef> = texts.into_iter().map(|mut column| Arc::new(column.finish()) as ArrayRef).collect();
        if strategy == Strategy::Rephrase {
            columns.extend([start, end].map(|mut place| Arc::new(place.finish()) as ArrayRef));
        }
        columns.push(Arc::new(request.finish()));
        outputs.push(OutputRows { output: DEFAULT_OUTPUT, rows: RecordBatch::try_new(schema.clone(), columns)? });
    }
    if rejects.len() > 0 {
        outputs.push(OutputRows { output: REJECTS_OUTPUT, rows: rejects.take()? });
    }
    Ok(outputs)
}

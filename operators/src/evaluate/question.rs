//! What is asked.

use std::collections::{BTreeSet, HashMap};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::Int32Type,
    util::display::array_value_to_string,
};
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;
use ingrain_engine::{
    diagnostic::{nearest, quoted},
    failure::Failure,
};
use serde::Serialize;

use super::refuse;
use crate::{
    columns::{column, optional_text, text, texts},
    rejects::{Reject, Rejects},
};

/// How many fields of the metadata are remembered, to be listed.
const MOST_FIELDS: usize = 50;

/// A question with all that belongs to it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Question {
    /// Its id in its table.
    pub(crate) row_id: String,
    /// The exam's own id, or `row_id`.
    pub(crate) question_id: String,
    /// What is asked.
    pub(crate) question: String,
    /// Two at least for multiple choice, none for an open-ended question.
    pub(crate) options: Vec<String>,
    /// The right option, or the answer.
    pub(crate) answer: String,
    /// Other answers that count as right.
    pub(crate) answers: Vec<String>,
    /// Which part of a split it belongs to.
    pub(crate) group: Option<String>,
    /// What was found for it, the best first.
    pub(crate) contexts: Vec<Context>,
}

/// A text that was found for a question.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Context {
    /// Its title.
    pub(crate) title: Option<String>,
    /// The text itself.
    pub(crate) text: String,
    /// Its `row_id` and its `doc_id`, where it has them.
    #[serde(skip)]
    pub(crate) ids: Vec<String>,
}

impl Question {
    /// The contexts as one text, best last, each under its title; `None` without contexts.
    pub(crate) fn context(&self) -> Option<String> {
        let under_title = |context: &Context| match &context.title {
            Some(title) => format!("{title}\n{}", context.text),
            None => context.text.clone(),
        };
        let texts: Vec<String> = self.contexts.iter().rev().map(under_title).collect();
        (!texts.is_empty()).then(|| texts.join("\n\n"))
    }
}

/// Questions while they are read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Questions {
    questions: Vec<Question>,
    ranks: HashMap<String, Vec<(i32, Context)>>,
    /// Whether there is a table of contexts.
    with_contexts: bool,
    /// The columns.
    columns: BTreeSet<String>,
    /// The fields of the metadata, if a split may go by one of them.
    fields: BTreeSet<String>,
}

impl Questions {
    /// Reads a table of questions. Those that can't be asked become rejects.
    pub(crate) async fn read(
        mut batches: SendableRecordBatchStream,
        by: Option<&str>,
        rejects: &mut Rejects,
    ) -> Result<Self, Failure> {
        let columns = batches.schema().fields().iter().map(|field| field.name().clone()).collect();
        let mut questions = Self { columns, ..Self::default() };
        while let Some(batch) = batches.try_next().await? {
            for row in 0..batch.num_rows() {
                match question(&batch, row, by, &mut questions.fields)? {
                    Ok(question) => questions.questions.push(question),
                    Err(reject) => refuse(rejects, text(&batch, "row_id")?.value(row), &reject, 0),
                }
            }
        }
        Ok(questions)
    }

    /// Checks that the split `by` has parts.
    ///
    /// # Errors
    /// When no question has a value for it.
    pub(crate) fn check_split(&self, by: &str) -> Result<(), Failure> {
        if self.questions.is_empty() || self.questions.iter().any(|question| question.group.is_some()) {
            return Ok(());
        }
        if self.columns.contains(by) || self.fields.contains(by) {
            return Err(Failure::data(format!("`{by}` is null for every question, so no figure can be split by it"))
                .hint("leave `by` out, or look at the stage that reads or makes the questions"));
        }
        let there = match self.fields.is_empty() {
            true => "no question has metadata".to_owned(),
            false => format!("its fields are {}", quoted(self.fields.iter().map(String::as_str))),
        };
        let hint = match nearest(by, self.fields.iter().chain(&self.columns).map(String::as_str)) {
            Some(name) => format!("did you mean `{name}`? {there}"),
            None => there,
        };
        Err(Failure::data(format!("no question has `{by}` in its `metadata`")).hint(hint))
    }

    /// Adds what was found for them.
    pub(crate) async fn add_contexts(&mut self, mut batches: SendableRecordBatchStream) -> Result<(), Failure> {
        self.with_contexts = true;
        while let Some(batch) = batches.try_next().await? {
            let ids = text(&batch, "question_id")?;
            let ranks = column(&batch, "rank")?.as_primitive::<Int32Type>();
            for row in 0..batch.num_rows() {
                let Some(content) = optional_text(&batch, "text", row)?.filter(|text| !text.trim().is_empty()) else { continue };
                let title = optional_text(&batch, "title", row)?.filter(|title| !title.trim().is_empty());
                let mut of = Vec::new();
                for name in ["row_id", "doc_id"] {
                    of.extend(optional_text(&batch, name, row)?.map(str::to_owned));
                }
                let context = Context { title: title.map(str::to_owned), text: content.to_owned(), ids: of };
                self.ranks.entry(ids.value(row).to_owned()).or_default().push((ranks.value(row), context));
            }
        }
        Ok(())
    }

    /// The questions by `row_id`, each with its contexts by rank.
    ///
    /// # Errors
    /// When there is a table of contexts, and nothing in it for any of the questions.
    pub(crate) fn sorted(mut self) -> Result<Vec<Question>, Failure> {
        for question in &mut self.questions {
            // Two rows may ask under one id: both have its contexts.
            let mut contexts = self.ranks.get(&question.question_id).cloned().unwrap_or_default();
            contexts.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.text.cmp(&b.1.text)));
            question.contexts = contexts.into_iter().map(|(_, context)| context).collect();
        }
        let bare = self.questions.iter().all(|question| question.contexts.is_empty());
        if self.with_contexts && bare && !self.questions.is_empty() {
            return Err(match self.ranks.is_empty() {
                true => Failure::data("there are no contexts, so every question would be asked without")
                    .hint("look at the stage that finds them, or leave the port `contexts` out"),
                false => Failure::data("none of the contexts is for one of the questions")
                    .hint("`retrieve` and `evaluate` must read the same questions, told by `question_id`"),
            });
        }
        self.questions.sort_by(|a, b| a.row_id.cmp(&b.row_id));
        Ok(self.questions)
    }
}

fn question(
    batch: &RecordBatch,
    row: usize,
    by: Option<&str>,
    fields: &mut BTreeSet<String>,
) -> Result<Result<Question, Reject>, Failure> {
    let row_id = text(batch, "row_id")?.value(row).to_owned();
    let cell = |name: &str| Ok::<_, Failure>(optional_text(batch, name, row)?.map(str::trim).filter(|text| !text.is_empty()));
    let (Some(question), Some(answer)) = (cell("question")?, cell("answer")?) else {
        return Ok(Err(Reject::new("empty", "no `question` or no `answer`")));
    };
    let trimmed = |texts: Vec<String>| -> Vec<String> { texts.into_iter().map(|text| text.trim().to_owned()).collect() };
    let options = trimmed(texts(batch, "options", row)?);
    if options.len() == 1 || options.iter().any(String::is_empty) {
        return Ok(Err(Reject::new("bad_options", "one option only, or an empty one")));
    }
    if !options.is_empty() && !options.iter().any(|option| option == answer) {
        let detail = format!("the answer `{answer}` is none of the options");
        return Ok(Err(Reject::new("bad_options", detail).raw(&options.join("\n"))));
    }
    Ok(Ok(Question {
        question_id: optional_text(batch, "question_id", row)?.unwrap_or(&row_id).to_owned(),
        question: question.to_owned(),
        answer: answer.to_owned(),
        answers: trimmed(texts(batch, "answers", row)?),
        group: by.map(|by| group(batch, row, by, fields)).transpose()?.flatten(),
        options,
        contexts: Vec::new(),
        row_id,
    }))
}

/// The value of a column, or else of a field of the metadata, as text; `None` where it is null or missing. `fields` takes the
/// names of the metadata's.
fn group(batch: &RecordBatch, row: usize, by: &str, fields: &mut BTreeSet<String>) -> Result<Option<String>, Failure> {
    if let Some(column) = batch.column_by_name(by) {
        return match column.is_null(row) {
            true => Ok(None),
            false => Ok(Some(array_value_to_string(column, row)?)),
        };
    }
    let metadata = optional_text(batch, "metadata", row)?;
    let metadata = metadata.and_then(|metadata| serde_json::from_str(metadata).ok());
    let metadata: serde_json::Map<String, serde_json::Value> = metadata.unwrap_or_default();
    for name in metadata.keys() {
        if (fields.len() < MOST_FIELDS || name == by) && !fields.contains(name) {
            fields.insert(name.clone());
        }
    }
    Ok(match metadata.get(by) {
        None | Some(serde_json::Value::Null) => None,
        Some(serde_json::Value::String(text)) => Some(text.clone()),
        Some(other) => Some(other.to_string()),
    })
}

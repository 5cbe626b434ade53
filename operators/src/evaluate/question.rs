//! What is asked.

use std::collections::HashMap;

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::Int32Type,
    util::display::array_value_to_string,
};
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;
use ingrain_engine::{failure::Failure, key};
use serde::Serialize;

use crate::{
    columns::{column, optional_text, text, texts},
    rejects::{Reject, Rejects},
};

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
}

impl Questions {
    /// Reads a table of questions. Those that can't be asked become rejects.
    pub(crate) async fn read(
        mut batches: SendableRecordBatchStream,
        by: Option<&str>,
        rejects: &mut Rejects,
    ) -> Result<Self, Failure> {
        let mut questions = Self::default();
        while let Some(batch) = batches.try_next().await? {
            for row in 0..batch.num_rows() {
                match question(&batch, row, by)? {
                    Ok(question) => questions.questions.push(question),
                    Err(reject) => {
                        let parent = text(&batch, "row_id")?.value(row);
                        rejects.push(&key::row_id("evaluate.reject", 0, &[parent], 0, 0), Some(parent), &reject, 0);
                    }
                }
            }
        }
        Ok(questions)
    }

    /// Adds what was found for them.
    pub(crate) async fn add_contexts(&mut self, mut batches: SendableRecordBatchStream) -> Result<(), Failure> {
        while let Some(batch) = batches.try_next().await? {
            let ids = text(&batch, "question_id")?;
            let ranks = column(&batch, "rank")?.as_primitive::<Int32Type>();
            for row in 0..batch.num_rows() {
                let Some(content) = optional_text(&batch, "text", row)? else { continue };
                let title = optional_text(&batch, "title", row)?.filter(|title| !title.trim().is_empty());
                let context = Context { title: title.map(str::to_owned), text: content.to_owned() };
                self.ranks.entry(ids.value(row).to_owned()).or_default().push((ranks.value(row), context));
            }
        }
        Ok(())
    }

    /// The questions by `row_id`, each with its contexts by rank.
    ///
    /// # Errors
    /// When contexts were added and none is for any of the questions.
    pub(crate) fn sorted(mut self) -> Result<Vec<Question>, Failure> {
        for question in &mut self.questions {
            // Two rows may ask under one id: both have its contexts.
            let mut contexts = self.ranks.get(&question.question_id).cloned().unwrap_or_default();
            contexts.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.text.cmp(&b.1.text)));
            question.contexts = contexts.into_iter().map(|(_, context)| context).collect();
        }
        if !self.ranks.is_empty() && self.questions.iter().all(|question| question.contexts.is_empty()) {
            return Err(Failure::data("none of the contexts is for one of the questions")
                .hint("`retrieve` and `evaluate` must read the same questions, told by `question_id`"));
        }
        self.questions.sort_by(|a, b| a.row_id.cmp(&b.row_id));
        Ok(self.questions)
    }
}

fn question(batch: &RecordBatch, row: usize, by: Option<&str>) -> Result<Result<Question, Reject>, Failure> {
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
        group: by.map(|by| group(batch, row, by)).transpose()?.flatten(),
        options,
        contexts: Vec::new(),
        row_id,
    }))
}

/// The value of a column, or else of a field of the metadata, as text; `None` where it is null or missing.
fn group(batch: &RecordBatch, row: usize, by: &str) -> Result<Option<String>, Failure> {
    if let Some(column) = batch.column_by_name(by) {
        return match column.is_null(row) {
            true => Ok(None),
            false => Ok(Some(array_value_to_string(column, row)?)),
        };
    }
    let metadata = optional_text(batch, "metadata", row)?;
    let metadata: Option<serde_json::Value> = metadata.and_then(|metadata| serde_json::from_str(metadata).ok());
    Ok(metadata.and_then(|metadata| match metadata.get(by)? {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }))
}

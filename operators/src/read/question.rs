//! Exam questions, and batches of them.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{ArrayRef, BooleanBuilder, ListBuilder, RecordBatch, StringBuilder},
    datatypes::{DataType, Field, SchemaRef},
};
use ingrain_engine::{failure::Failure, key::row_id};
use serde_json::{Map, Value};

use super::line::{text_of, wrong_type};
use crate::rejects::Reject;

/// A question of an exam.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Question {
    /// `None`: named after its place.
    pub(super) question_id: Option<String>,
    pub(super) doc_id: Option<String>,
    pub(super) question: String,
    pub(super) options: Option<Vec<String>>,
    pub(super) answer: String,
    pub(super) answers: Vec<String>,
    pub(super) hard: Option<bool>,
    pub(super) metadata: Option<Map<String, Value>>,
}

/// Columns of the questions that `read` gives.
pub(super) fn fields() -> Vec<Field> {
    let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
    let texts = |name: &str, nullable| Field::new(name, DataType::new_list(DataType::Utf8, true), nullable);
    vec![
        text("row_id", false),
        text("question_id", false),
        text("doc_id", true),
        text("question", false),
        texts("options", true),
        text("answer", false),
        texts("answers", false),
        Field::new("hard", DataType::Boolean, true),
        text("metadata", true),
    ]
}

/// Reads a line that is one question. `choice`: it has options, and the answer is the text of one of them. Fields that no
/// column takes are metadata.
///
/// # Errors
/// The reject, if a field has the wrong type or the question can't be answered; its detail leaves the place to the caller.
pub(super) fn of_object(mut object: Map<String, Value>, choice: bool) -> Result<Question, Reject> {
    let id = |name: &str, value: Option<Value>| match value {
        Some(Value::Number(number)) if number.is_i64() || number.is_u64() => Ok(Some(number.to_string())),
        other => Ok(text_of(name, other)?.filter(|id| !id.is_empty())),
    };
    let question_id = id("question_id", object.shift_remove("question_id"))?;
    let doc_id = id("doc_id", object.shift_remove("doc_id"))?;
    let question = needed("question", object.shift_remove("question"))?;
    let answer = needed("answer", object.shift_remove("answer"))?;
    let answers = texts("answers", object.shift_remove("answers"))?.unwrap_or_default();
    let hard = match object.shift_remove("hard") {
        None | Some(Value::Null) => None,
        Some(Value::Bool(hard)) => Some(hard),
        Some(other) => return Err(wrong_type("hard", "a boolean", &other)),
    };
    let options = texts("options", object.shift_remove("options"))?;
    let options = if choice { Some(checked(options, &answer)?) } else { options };
    let metadata = (!object.is_empty()).then_some(object);
    Ok(Question { question_id, doc_id, question, options, answer, answers, hard, metadata })
}

/// Options of which the answer is one.
///
/// # Errors
/// The reject, if that isn't so.
pub(super) fn checked(options: Option<Vec<String>>, answer: &str) -> Result<Vec<String>, Reject> {
    let bad = |why: String| Err(Reject::new("bad_question", why));
    let Some(options) = options else { return bad("`options` is missing".into()) };
    if options.len() < 2 {
        return bad(format!("a choice needs at least two options, here are {}", options.len()));
    }
    let mut seen = BTreeSet::new();
    if let Some(again) = options.iter().find(|option| !seen.insert(option.as_str())) {
        return bad(format!("the option `{again}` stands there twice"));
    }
    if !seen.contains(answer) {
        return bad(format!(
            "the answer `{answer}` is none of the options; it must be an option's text, not its letter or number"
        ));
    }
    Ok(options)
}

/// A field that must hold text.
///
/// # Errors
/// The reject, if it doesn't.
pub(super) fn needed(field: &str, value: Option<Value>) -> Result<String, Reject> {
    let text = text_of(field, value)?.filter(|text| !text.trim().is_empty());
    text.ok_or_else(|| Reject::new("bad_question", format!("`{field}` is missing or empty")))
}

fn texts(field: &str, value: Option<Value>) -> Result<Option<Vec<String>>, Reject> {
    let items = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong_type(field, "a list of texts", &other)),
    };
    let text = |(n, item)| match item {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(&format!("{field}[{n}]"), "text", &other)),
    };
    items.into_iter().enumerate().map(text).collect::<Result<_, _>>().map(Some)
}

/// Questions of the next batch.
#[derive(Debug, Default)]
pub(super) struct Questions {
    pub(super) rows: usize,
    pub(super) bytes: usize,
    row_id: StringBuilder,
    question_id: StringBuilder,
    doc_id: StringBuilder,
    question: StringBuilder,
    options: ListBuilder<StringBuilder>,
    answer: StringBuilder,
    answers: ListBuilder<StringBuilder>,
    hard: BooleanBuilder,
    metadata: StringBuilder,
}

impl Questions {
    /// Adds a question and gives its row's id.
    pub(super) fn push(&mut self, question_id: &str, question: &Question) -> Result<String, Failure> {
        let id = row_id("read", 0, &[question_id], 0, 0);
        let metadata = question.metadata.as_ref().map(serde_json::to_string).transpose();
        let metadata = metadata.map_err(|error| Failure::bug(error.to_string()))?;
        self.rows += 1;
        self.bytes += question.question.len() + question.answer.len() + metadata.as_ref().map_or(0, String::len);
        self.row_id.append_value(&id);
        self.question_id.append_value(question_id);
        self.doc_id.append_option(question.doc_id.as_deref());
        self.question.append_value(&question.question);
        for option in question.options.iter().flatten() {
            self.options.values().append_value(option);
        }
        self.options.append(question.options.is_some());
        self.answer.append_value(&question.answer);
        for answer in &question.answers {
            self.answers.values().append_value(answer);
        }
        self.answers.append(true);
        self.hard.append_option(question.hard);
        self.metadata.append_option(metadata);
        Ok(id)
    }

    pub(super) fn take(&mut self, schema: &SchemaRef) -> Result<RecordBatch, Failure> {
        (self.rows, self.bytes) = (0, 0);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.row_id.finish()),
            Arc::new(self.question_id.finish()),
            Arc::new(self.doc_id.finish()),
            Arc::new(self.question.finish()),
            Arc::new(self.options.finish()),
            Arc::new(self.answer.finish()),
            Arc::new(self.answers.finish()),
            Arc::new(self.hard.finish()),
            Arc::new(self.metadata.finish()),
        ];
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value, choice: bool) -> Result<Question, Reject> {
        of_object(value.as_object().unwrap().clone(), choice)
    }

    #[test]
    fn a_choice_has_its_answer_among_its_options() {
        let line = json!({"question_id": 4, "question": "Which?", "options": ["a", "b"], "answer": "b", "hard": true, "distractors": "same"});
        let question = read(line, true).unwrap();
        assert_eq!(question.question_id.as_deref(), Some("4"));
        assert_eq!(question.options, Some(vec!["a".into(), "b".into()]));
        assert_eq!((question.answers.len(), question.hard), (0, Some(true)));
        assert_eq!(question.metadata.unwrap()["distractors"], "same");
        for (line, said) in [
            (json!({"question": "q", "options": ["a", "b"], "answer": "B"}), "none of the options"),
            (json!({"question": "q", "options": ["a"], "answer": "a"}), "at least two"),
            (json!({"question": "q", "options": ["a", "a", "b"], "answer": "b"}), "`a` stands there twice"),
            (json!({"question": "q", "answer": "b"}), "`options` is missing"),
            (json!({"question": "q", "options": ["a", "b"]}), "`answer` is missing"),
            (json!({"options": ["a", "b"], "answer": "a"}), "`question` is missing"),
        ] {
            let reject = read(line, true).unwrap_err();
            assert_eq!(reject.reason, "bad_question");
            assert!(reject.detail.contains(said), "{}", reject.detail);
        }
        for (line, said) in [
            (json!({"question": "q", "options": "a, b", "answer": "b"}), "`options` is text, not a list"),
            (json!({"question": "q", "options": [1, 2], "answer": "1"}), "`options[0]` is a number"),
            (json!({"question": "q", "options": ["1", "2"], "answer": 1}), "`answer` is a number"),
            (json!({"question": "q", "options": ["1", "2"], "answer": "1", "hard": "no"}), "`hard` is text"),
        ] {
            let reject = read(line, true).unwrap_err();
            assert_eq!(reject.reason, "wrong_type");
            assert!(reject.detail.contains(said), "{}", reject.detail);
        }
    }

    #[test]
    fn an_open_question_needs_no_options() {
        let question = read(json!({"question": "q", "answer": "a", "answers": ["A", "b"]}), false).unwrap();
        assert_eq!((question.question_id.as_deref(), question.options.as_ref()), (None, None));
        assert_eq!(question.answers, ["A", "b"]);
        let schema = Arc::new(arrow::datatypes::Schema::new(fields()));
        let mut questions = Questions::default();
        questions.push("exam.jsonl#1", &question).unwrap();
        let batch = questions.take(&schema).unwrap();
        assert_eq!((batch.num_rows(), questions.rows), (1, 0));
        assert!(batch.column_by_name("options").unwrap().is_null(0));
    }
}

//! What came of a question.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, Float64Array, Int32Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, SchemaRef},
};
use ingrain_engine::{failure::Failure, key};

use super::question::Question;

/// What came of a question.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Prediction {
    /// The question's id in its table.
    pub(crate) parent_id: String,
    /// The exam's own id.
    pub(crate) question_id: String,
    /// The option that was chosen, or the answer that was given.
    pub(crate) prediction: Option<String>,
    /// Whether the chosen option is the right one.
    pub(crate) correct: Option<bool>,
    /// The chosen option's score, or the answer's log-probability.
    pub(crate) score: Option<f64>,
    /// What the model said of it.
    pub(crate) raw: Option<String>,
    /// What stood in front of the question.
    pub(crate) context: Option<String>,
    /// Whether the choice by summed log-probabilities is right.
    pub(crate) correct_raw: Option<bool>,
    /// Whether the choice by log-probability a token is right.
    pub(crate) correct_normalised: Option<bool>,
    /// Whether the choice by the options alone is right.
    pub(crate) correct_blind: Option<bool>,
    /// Whether an open-ended answer equals one of the right ones.
    pub(crate) exact_match: Option<bool>,
    /// Its best F1 over words with one of the right ones.
    pub(crate) token_f1: Option<f64>,
    /// Tokens of an open-ended answer that was scored.
    pub(crate) answer_tokens: Option<i32>,
    /// Which part of a split the question belongs to.
    pub(crate) group: Option<String>,
    /// Which answer of a reader in the memo it is.
    pub(crate) request_id: Option<String>,
}

impl Prediction {
    /// Nothing yet, but whose it is.
    pub(crate) fn of(question: &Question, context: Option<String>) -> Self {
        Self {
            parent_id: question.row_id.clone(),
            question_id: question.question_id.clone(),
            group: question.group.clone(),
            context,
            ..Self::default()
        }
    }
}

/// The columns of `predictions`.
pub(crate) fn fields() -> Vec<Field> {
    vec![
        Field::new("row_id", DataType::Utf8, false),
        Field::new("parent_id", DataType::Utf8, false),
        Field::new("question_id", DataType::Utf8, false),
        Field::new("prediction", DataType::Utf8, true),
        Field::new("correct", DataType::Boolean, true),
        Field::new("score", DataType::Float64, true),
        Field::new("raw", DataType::Utf8, true),
        Field::new("context", DataType::Utf8, true),
        Field::new("correct_raw", DataType::Boolean, true),
        Field::new("correct_normalised", DataType::Boolean, true),
        Field::new("correct_blind", DataType::Boolean, true),
        Field::new("exact_match", DataType::Boolean, true),
        Field::new("token_f1", DataType::Float64, true),
        Field::new("answer_tokens", DataType::Int32, true),
        Field::new("group", DataType::Utf8, true),
        Field::new("request_id", DataType::Utf8, true),
    ]
}

/// Rows of `predictions`.
pub(crate) fn rows(predictions: &[Prediction], schema: SchemaRef) -> Result<RecordBatch, Failure> {
    let texts =
        |text: fn(&Prediction) -> Option<&str>| Arc::new(predictions.iter().map(text).collect::<StringArray>()) as ArrayRef;
    let flags =
        |flag: fn(&Prediction) -> Option<bool>| Arc::new(predictions.iter().map(flag).collect::<BooleanArray>()) as ArrayRef;
    let numbers =
        |number: fn(&Prediction) -> Option<f64>| Arc::new(predictions.iter().map(number).collect::<Float64Array>()) as ArrayRef;
    let ids = predictions.iter().map(|row| key::row_id("evaluate", 0, &[&row.parent_id], 0, 0));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(ids)),
        texts(|row| Some(&row.parent_id)),
        texts(|row| Some(&row.question_id)),
        texts(|row| row.prediction.as_deref()),
        flags(|row| row.correct),
        numbers(|row| row.score),
        texts(|row| row.raw.as_deref()),
        texts(|row| row.context.as_deref()),
        flags(|row| row.correct_raw),
        flags(|row| row.correct_normalised),
        flags(|row| row.correct_blind),
        flags(|row| row.exact_match),
        numbers(|row| row.token_f1),
        Arc::new(predictions.iter().map(|row| row.answer_tokens).collect::<Int32Array>()),
        texts(|row| row.group.as_deref()),
        texts(|row| row.request_id.as_deref()),
    ];
    Ok(RecordBatch::try_new(schema, columns)?)
}

//! What a model says of the beginnings of held-out rows while it is trained.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int64Builder, RecordBatch, StringBuilder},
    datatypes::{DataType, Field, SchemaRef},
};
use ingrain_engine::{failure::Failure, key};
use ingrain_student::{Event, Row, Seen, Tokenizer};

use super::number;
use crate::tokenizer::failure;

/// The beginning of a row, and the rest of it, as tokens.
pub(super) type Prompt = (Vec<u32>, Vec<u32>);

/// The first halves of the first rows that have two, at most so many rows and so many tokens.
pub(super) fn prompts(rows: &[Row], (count, tokens): (usize, usize)) -> Vec<Prompt> {
    let halves = rows.iter().filter(|row| row.ids.len() >= 4).map(|row| {
        let (beginning, rest) = row.ids.split_at((row.ids.len() / 2).min(tokens));
        (beginning.to_vec(), rest.to_vec())
    });
    halves.take(count).collect()
}

/// Prompts as text.
pub(super) fn texts(tokenizer: &Tokenizer, prompts: &[Prompt]) -> Result<Vec<(String, String)>, Failure> {
    let text = |ids: &[u32]| tokenizer.decode(ids).map_err(failure);
    prompts.iter().map(|(beginning, rest)| Ok((text(beginning)?, text(rest)?))).collect()
}

pub(super) fn fields() -> Vec<Field> {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    vec![
        text("row_id"),
        text("parent_id"),
        Field::new("step", DataType::Int64, false),
        text("prompt"),
        text("text"),
        text("expected"),
    ]
}

/// What was seen before the first step and after others, each with its step.
pub(super) fn seen<'a>(before: Option<&'a Seen>, events: &'a [Event]) -> impl Iterator<Item = (usize, &'a Seen)> {
    let after = events.iter().filter_map(|event| Some((event.step, event.seen.as_ref()?)));
    before.map(|seen| (0, seen)).into_iter().chain(after)
}

/// Rows of `samples`.
pub(super) fn rows<'a>(
    schema: SchemaRef,
    base: &str,
    seen: impl Iterator<Item = (usize, &'a Seen)>,
    prompts: &[(String, String)],
    tokenizer: &Tokenizer,
) -> Result<RecordBatch, Failure> {
    let [mut row_id, mut parent_id, mut prompt, mut text, mut expected] = std::array::from_fn(|_| StringBuilder::new());
    let mut step = Int64Builder::new();
    for (after, seen) in seen {
        for (place, (ids, (beginning, rest))) in seen.samples.iter().zip(prompts).enumerate() {
            row_id.append_value(key::row_id("train.samples", 0, &[base], place as u64, after as u64));
            parent_id.append_value(base);
            step.append_value(number(after as u64));
            prompt.append_value(beginning);
            text.append_value(tokenizer.decode(ids).map_err(failure)?);
            expected.append_value(rest);
        }
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(row_id.finish()),
        Arc::new(parent_id.finish()),
        Arc::new(step.finish()),
        Arc::new(prompt.finish()),
        Arc::new(text.finish()),
        Arc::new(expected.finish()),
    ];
    Ok(RecordBatch::try_new(schema, columns)?)
}

//! What a model says of the beginnings of held-out rows while it is trained.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int64Builder, RecordBatch, StringBuilder},
    datatypes::SchemaRef,
};
use ingrain_engine::{failure::Failure, key};
use ingrain_student::{Event, Row, Tokenizer};

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

/// Rows of `samples`.
pub(super) fn rows(
    schema: SchemaRef,
    base: &str,
    events: &[Event],
    prompts: &[(String, String)],
    tokenizer: &Tokenizer,
) -> Result<RecordBatch, Failure> {
    let [mut row_id, mut parent_id, mut prompt, mut text, mut expected] = std::array::from_fn(|_| StringBuilder::new());
    let mut step = Int64Builder::new();
    for event in events {
        let samples = event.seen.iter().flat_map(|seen| &seen.samples);
        for (place, (ids, (beginning, rest))) in samples.zip(prompts).enumerate() {
            row_id.append_value(key::row_id("train.samples", 0, &[base], place as u64, event.step as u64));
            parent_id.append_value(base);
            step.append_value(number(event.step as u64));
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

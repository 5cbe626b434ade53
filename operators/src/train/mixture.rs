//! The rows of a mixture, as tokens.

use std::collections::BTreeMap;

use arrow::{
    array::{Array, AsArray, RecordBatch, StringArray},
    datatypes::Int64Type,
};
use futures::TryStreamExt;
use ingrain_engine::{
    failure::Failure,
    run::{Table, TaskContext},
};
use ingrain_student::{Example, Row, Tokenizer};
use rayon::prelude::*;

use super::{
    LossOn, MIXTURE, Train, grouped,
    heldout::{HeldOut, Lot},
};
use crate::{
    render::{Chat, Render},
    teachers::texts,
    tokenizer::failure,
};

/// The column of a mixture that holds conversations.
pub(super) const MESSAGES: &str = "messages";
/// The column of a mixture that says what its rows are.
pub(super) const KIND: &str = "kind";

/// How rows become tokens.
#[derive(Debug, Clone)]
pub(super) struct Form {
    pub(super) tokenizer: Tokenizer,
    /// The base's chat template, where the mixture has conversations.
    pub(super) chat: Option<Chat>,
    pub(super) loss_on: LossOn,
}

impl Form {
    /// That of a training on `mixture` from a base with these small files.
    ///
    /// # Errors
    /// When the mixture has conversations, and the base no chat template.
    pub(super) fn new(
        mixture: &Table,
        files: &BTreeMap<String, Vec<u8>>,
        tokenizer: Tokenizer,
        loss_on: LossOn,
    ) -> Result<Self, Failure> {
        let chat = match mixture.schema().field_with_name(MESSAGES) {
            Ok(_) => Some(Chat::of(files, tokenizer.clone())?),
            Err(_) => None,
        };
        Ok(Self { tokenizer, chat, loss_on })
    }

    /// The tokens that end a row: the tokenizer's, and what ends an answer in the chat template.
    ///
    /// # Errors
    /// When the template fails.
    pub(super) fn ends(&self) -> Result<Vec<u32>, Failure> {
        let mut ends = vec![self.tokenizer.end_id()];
        if let Some(chat) = &self.chat {
            ends.push(chat.end_id().map_err(|error| Failure::data(error.to_string()))?);
            ends.dedup();
        }
        Ok(ends)
    }
}

/// A row of the mixture.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Encoded {
    /// Its place in the order.
    position: i64,
    /// Its place in the table.
    pub(super) number: usize,
    lot: Lot,
    row: Row,
}

/// Reads the mixture, and gives the form of its questions, if it has any.
pub(super) async fn read(context: &TaskContext, form: &Form, config: &Train) -> Result<(Divided, Option<Render>), Failure> {
    let mixture = context.table(MIXTURE)?;
    let total = grouped(mixture.rows());
    let mut render = None;
    let say = |batch: &RecordBatch, rows: usize| {
        context.counters.say(format!("{} of {total} rows read", grouped(rows as u64)));
        let has = |name: &str| batch.column_by_name(name).is_some_and(|column| column.null_count() < column.len());
        render = if has(MESSAGES) { Some(Render::Chat) } else { render.or(has("prompt").then_some(Render::Qa)) };
        Ok(())
    };
    let encoded = all(mixture, form, say).await?;
    if encoded.is_empty() {
        return Err(Failure::data("the mixture has no rows").hint("see what its sources gave with `show`"));
    }
    Ok((divide(encoded, config.heldout), render))
}

/// Every row of a mixture as tokens, in the table's order; `each` sees every batch, and how many rows there are with it.
pub(super) async fn all(
    mixture: &Table,
    form: &Form,
    mut each: impl FnMut(&RecordBatch, usize) -> Result<(), Failure>,
) -> Result<Vec<Encoded>, Failure> {
    let mut batches = mixture.stream().await?;
    let mut encoded: Vec<Encoded> = Vec::with_capacity(usize::try_from(mixture.rows()).unwrap_or(0));
    while let Some(batch) = batches.try_next().await? {
        let (form, of) = (form.clone(), batch.clone());
        let rows = tokio::task::spawn_blocking(move || encode(&of, &form)).await;
        let first = encoded.len();
        let rows = rows.map_err(|error| Failure::bug(error.to_string()))??;
        encoded.extend(rows.into_iter().map(|row| Encoded { number: first + row.number, ..row }));
        each(&batch, encoded.len())?;
    }
    Ok(encoded)
}

/// The rows without what they are sorted and divided by.
pub(super) fn tokens(rows: Vec<Encoded>) -> Vec<Row> {
    rows.into_iter().map(|encoded| encoded.row).collect()
}

/// The rows of a batch as tokens. A conversation is what the chat template makes of it, with no token before or behind it.
pub(super) fn encode(batch: &RecordBatch, form: &Form) -> Result<Vec<Encoded>, Failure> {
    let Form { tokenizer, chat, loss_on } = form;
    let conversations: Option<(&StringArray, &Chat)> = match chat {
        Some(chat) => Some((texts(batch, MESSAGES)?, chat)),
        None => None,
    };
    let (ids, prompts, bodies) = (texts(batch, "row_id")?, texts(batch, "prompt")?, texts(batch, "text")?);
    let positions = batch.column_by_name("position").and_then(|column| column.as_primitive_opt::<Int64Type>());
    let positions = positions.ok_or_else(|| Failure::bug("no whole numbers in `position`"))?;
    let encoded = |row: usize, tokens: Row| {
        Ok(Encoded { position: positions.value(row), number: row, lot: Lot::of(batch, row)?, row: tokens })
    };
    let row = |row: usize| {
        if let Some((messages, chat)) = conversations.filter(|(messages, _)| messages.is_valid(row)) {
            let named =
                |failure: Failure| Failure { message: format!("row `{}`: {}", ids.value(row), failure.message), ..failure };
            let Example { ids, prompt, .. } = chat.example(messages.value(row)).map_err(named)?;
            let loss_from = if *loss_on == LossOn::Completion { prompt.max(1) } else { 1 };
            return encoded(row, Row { ids, loss_from });
        }
        let ids = tokenizer.encode(bodies.value(row)).map_err(failure)?;
        let masked = match loss_on {
            LossOn::Completion if prompts.is_valid(row) => shared(&ids, &tokenizer.encode(prompts.value(row)).map_err(failure)?),
            LossOn::Completion | LossOn::All => 0,
        };
        let (prompt, completion) = ids.split_at(masked);
        encoded(row, Row::completion(tokenizer.begin_id(), prompt, completion, tokenizer.end_id()))
    };
    (0..batch.num_rows()).into_par_iter().map(row).collect()
}

/// How many tokens a text and its beginning share, both encoded alone. A token that reaches over the beginning's end belongs
/// to what follows.
fn shared(text: &[u32], beginning: &[u32]) -> usize {
    text.iter().zip(beginning).take_while(|(one, other)| one == other).count()
}

/// What is trained on, and what is only looked at.
pub(super) struct Divided {
    /// In the order of `position`.
    pub(super) rest: Vec<Encoded>,
    pub(super) heldout: Vec<Encoded>,
    /// Held-out rows of replay.
    pub(super) replay: Vec<Encoded>,
}

/// Sorts rows by position, and takes those out that are held out.
pub(super) fn divide(mut rows: Vec<Encoded>, share: f64) -> Divided {
    rows.sort_by_key(|row| row.position);
    let bounds = HeldOut::of(rows.iter().map(|row| row.lot), share);
    let (held, rest): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| bounds.holds(row.lot));
    let (replay, heldout) = held.into_iter().partition(|row| row.lot.is_replay);
    Divided { rest, heldout, replay }
}

#[cfg(test)]
pub(super) fn encoded(position: i64, place: f64) -> Encoded {
    let lot = Lot { place, is_replay: position % 10 == 9 };
    Encoded { position, number: 0, lot, row: Row { ids: vec![u32::try_from(position).unwrap_or(0)], loss_from: 1 } }
}

#[cfg(test)]
pub(super) fn row(encoded: &Encoded) -> &Row {
    &encoded.row
}

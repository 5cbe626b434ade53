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

use super::{LossOn, MIXTURE, Train, grouped};
use crate::{render::Chat, teachers::texts, tokenizer::failure};

/// The column of a mixture that holds conversations.
const MESSAGES: &str = "messages";

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
    /// Where its source row lies in [0, 1): those below the share are held out.
    lot: f64,
    row: Row,
}

/// Reads the mixture: rows to train on in the order of `position`, and rows held out.
pub(super) async fn read(context: &TaskContext, form: &Form, config: &Train) -> Result<(Vec<Row>, Vec<Row>), Failure> {
    let mixture = context.table(MIXTURE)?;
    let total = grouped(mixture.rows());
    let say = |_: &RecordBatch, rows: usize| {
        context.counters.say(format!("{} of {total} rows read", grouped(rows as u64)));
        Ok(())
    };
    let encoded = all(mixture, form, say).await?;
    if encoded.is_empty() {
        return Err(Failure::data("the mixture has no rows").hint("see what its sources gave with `show`"));
    }
    let (rest, heldout) = divide(encoded, config.heldout);
    Ok((tokens(rest), tokens(heldout)))
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
    let (parents, prompts, bodies) = (texts(batch, "parent_id")?, texts(batch, "prompt")?, texts(batch, "text")?);
    let positions = batch.column_by_name("position").and_then(|column| column.as_primitive_opt::<Int64Type>());
    let positions = positions.ok_or_else(|| Failure::bug("no whole numbers in `position`"))?;
    let encoded = |row: usize, tokens: Row| Encoded {
        position: positions.value(row),
        number: row,
        lot: lot(parents.value(row)),
        row: tokens,
    };
    let row = |row: usize| {
        if let Some((messages, chat)) = conversations.filter(|(messages, _)| messages.is_valid(row)) {
            let Example { ids, prompt } = chat.example(messages.value(row))?;
            let loss_from = if *loss_on == LossOn::Completion { prompt.max(1) } else { 1 };
            return Ok(encoded(row, Row { ids, loss_from }));
        }
        let ids = tokenizer.encode(bodies.value(row)).map_err(failure)?;
        let masked = match loss_on {
            LossOn::Completion if prompts.is_valid(row) => shared(&ids, &tokenizer.encode(prompts.value(row)).map_err(failure)?),
            LossOn::Completion | LossOn::All => 0,
        };
        let (prompt, completion) = ids.split_at(masked);
        Ok(encoded(row, Row::completion(tokenizer.begin_id(), prompt, completion, tokenizer.end_id())))
    };
    (0..batch.num_rows()).into_par_iter().map(row).collect()
}

/// How many tokens a text and its beginning share, both encoded alone. A token that reaches over the beginning's end belongs
/// to what follows.
fn shared(text: &[u32], beginning: &[u32]) -> usize {
    text.iter().zip(beginning).take_while(|(one, other)| one == other).count()
}

/// A number in [0, 1) that depends on nothing but `parent`: the upper 53 bits of a hash.
pub(crate) fn lot(parent: &str) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"train heldout").update(parent.as_bytes());
    let mut bits = [0; 8];
    bits.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    (u64::from_le_bytes(bits) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Sorts rows by position, and takes those out that [`heldout_below`] holds out.
pub(super) fn divide(mut rows: Vec<Encoded>, share: f64) -> (Vec<Encoded>, Vec<Encoded>) {
    rows.sort_by_key(|row| row.position);
    let bound = heldout_below(rows.iter().map(|row| row.lot), share);
    let (heldout, rest) = rows.into_iter().partition(|row| row.lot < bound);
    (rest, heldout)
}

/// Below which lot a source row is held out, so that about `share` of them are: at least the one of the lowest lot. When
/// nothing would be left to train on, none are.
pub(crate) fn heldout_below(lots: impl Iterator<Item = f64> + Clone, share: f64) -> f64 {
    let lowest = lots.clone().fold(f64::INFINITY, f64::min);
    let highest = lots.fold(0.0, f64::max);
    let bound = if share > lowest { share } else { lowest.next_up() };
    if share > 0.0 && bound <= highest { bound } else { 0.0 }
}

#[cfg(test)]
pub(super) fn encoded(position: i64, lot: f64) -> Encoded {
    Encoded { position, number: 0, lot, row: Row { ids: vec![u32::try_from(position).unwrap_or(0)], loss_from: 1 } }
}

#[cfg(test)]
pub(super) fn row(encoded: &Encoded) -> &Row {
    &encoded.row
}

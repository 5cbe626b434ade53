//! The rows of a mixture, as tokens.

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::Int64Type,
};
use futures::TryStreamExt;
use ingrain_engine::{failure::Failure, run::TaskContext};
use ingrain_student::{Row, Tokenizer};
use rayon::prelude::*;

use super::{LossOn, MIXTURE, Train, grouped};
use crate::{teachers::texts, tokenizer::failure};

/// A row of the mixture.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Encoded {
    /// Its place in the order.
    position: i64,
    /// Where its source row lies in [0, 1): those below the share are held out.
    lot: f64,
    row: Row,
}

/// Reads the mixture: rows to train on in the order of `position`, and rows held out.
pub(super) async fn read(context: &TaskContext, tokenizer: &Tokenizer, config: &Train) -> Result<(Vec<Row>, Vec<Row>), Failure> {
    let mixture = context.table(MIXTURE)?;
    let mut batches = mixture.stream().await?;
    let mut encoded: Vec<Encoded> = Vec::with_capacity(usize::try_from(mixture.rows()).unwrap_or(0));
    while let Some(batch) = batches.try_next().await? {
        let (tokenizer, loss_on) = (tokenizer.clone(), config.loss_on);
        let rows = tokio::task::spawn_blocking(move || encode(&batch, &tokenizer, loss_on)).await;
        encoded.extend(rows.map_err(|error| Failure::bug(error.to_string()))??);
        context.counters.say(format!("{} of {} rows read", grouped(encoded.len() as u64), grouped(mixture.rows())));
    }
    if encoded.is_empty() {
        return Err(Failure::data("the mixture has no rows").hint("see what its sources gave with `show`"));
    }
    Ok(divide(encoded, config.heldout))
}

/// The rows of a batch as tokens.
pub(super) fn encode(batch: &RecordBatch, tokenizer: &Tokenizer, loss_on: LossOn) -> Result<Vec<Encoded>, Failure> {
    let (parents, prompts, bodies) = (texts(batch, "parent_id")?, texts(batch, "prompt")?, texts(batch, "text")?);
    let positions = batch.column_by_name("position").and_then(|column| column.as_primitive_opt::<Int64Type>());
    let positions = positions.ok_or_else(|| Failure::bug("no whole numbers in `position`"))?;
    let row = |row: usize| {
        let ids = tokenizer.encode(bodies.value(row)).map_err(failure)?;
        let masked = match loss_on {
            LossOn::Completion if prompts.is_valid(row) => shared(&ids, &tokenizer.encode(prompts.value(row)).map_err(failure)?),
            LossOn::Completion | LossOn::All => 0,
        };
        let (prompt, completion) = ids.split_at(masked);
        Ok(Encoded {
            position: positions.value(row),
            lot: lot(parents.value(row)),
            row: Row::completion(tokenizer.begin_id(), prompt, completion, tokenizer.end_id()),
        })
    };
    (0..batch.num_rows()).into_par_iter().map(row).collect()
}

/// How many tokens a text and its beginning share, both encoded alone. A token that reaches over the beginning's end belongs
/// to what follows.
fn shared(text: &[u32], beginning: &[u32]) -> usize {
    text.iter().zip(beginning).take_while(|(one, other)| one == other).count()
}

/// A number in [0, 1) that depends on nothing but `parent`: the upper 53 bits of a hash.
pub(super) fn lot(parent: &str) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"train heldout").update(parent.as_bytes());
    let mut bits = [0; 8];
    bits.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    (u64::from_le_bytes(bits) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Sorts rows by position, and takes those of source rows whose lot lies below `share` out: those of the lowest lot, if
/// none does. When nothing would be left to train on, none are.
pub(super) fn divide(mut rows: Vec<Encoded>, share: f64) -> (Vec<Row>, Vec<Row>) {
    rows.sort_by_key(|row| row.position);
    let lowest = rows.iter().map(|row| row.lot).fold(f64::INFINITY, f64::min);
    let highest = rows.iter().map(|row| row.lot).fold(0.0, f64::max);
    let bound = if share > lowest { share } else { lowest.next_up() };
    let bound = if share > 0.0 && bound <= highest { bound } else { 0.0 };
    let (heldout, rest): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.lot < bound);
    let tokens = |rows: Vec<Encoded>| rows.into_iter().map(|encoded| encoded.row).collect();
    (tokens(rest), tokens(heldout))
}

#[cfg(test)]
pub(super) fn encoded(position: i64, lot: f64) -> Encoded {
    Encoded { position, lot, row: Row { ids: vec![u32::try_from(position).unwrap_or(0)], loss_from: 1 } }
}

#[cfg(test)]
pub(super) fn row(encoded: &Encoded) -> &Row {
    &encoded.row
}

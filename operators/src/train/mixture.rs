//! The rows of a mixture, as tokens.

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::Int64Type,
};
use futures::TryStreamExt;
use ingrain_engine::{
    failure::Failure,
    run::{Table, TaskContext},
};
use ingrain_student::{Row, Tokenizer};
use rayon::prelude::*;

use super::{LossOn, MIXTURE, Train, grouped};
use crate::{teachers::texts, tokenizer::failure};

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
pub(super) async fn read(context: &TaskContext, tokenizer: &Tokenizer, config: &Train) -> Result<(Vec<Row>, Vec<Row>), Failure> {
    let mixture = context.table(MIXTURE)?;
    let total = grouped(mixture.rows());
    let say = |_: &RecordBatch, rows: usize| {
        context.counters.say(format!("{} of {total} rows read", grouped(rows as u64)));
        Ok(())
    };
    let encoded = all(mixture, tokenizer, config.loss_on, say).await?;
    if encoded.is_empty() {
        return Err(Failure::data("the mixture has no rows").hint("see what its sources gave with `show`"));
    }
    let (rest, heldout) = divide(encoded, config.heldout);
    Ok((tokens(rest), tokens(heldout)))
}

/// Every row of a mixture as tokens, in the table's order; `each` sees every batch, and how many rows there are with it.
pub(super) async fn all(
    mixture: &Table,
    tokenizer: &Tokenizer,
    loss_on: LossOn,
    mut each: impl FnMut(&RecordBatch, usize) -> Result<(), Failure>,
) -> Result<Vec<Encoded>, Failure> {
    let mut batches = mixture.stream().await?;
    let mut encoded: Vec<Encoded> = Vec::with_capacity(usize::try_from(mixture.rows()).unwrap_or(0));
    while let Some(batch) = batches.try_next().await? {
        let (tokenizer, of) = (tokenizer.clone(), batch.clone());
        let rows = tokio::task::spawn_blocking(move || encode(&of, &tokenizer, loss_on)).await;
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
            number: row,
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

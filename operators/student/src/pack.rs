//! Packing: rows of tokens into sequences of one length, and sequences into batches.
//!
//! A row is put whole into a sequence, beside others; the model sees where each begins and ends, attends within it only,
//! and counts positions from its start. So packing changes what a step costs and never what a row teaches.

use std::collections::{BTreeMap, BTreeSet};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha12Rng;
use serde::Serialize;

use crate::settings::Settings;

/// A row of tokens to train on, complete: begin and end tokens are in `ids`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The tokens.
    pub ids: Vec<u32>,
    /// The first token that the model is asked to predict. The one at 0 never is: nothing stands before it.
    pub loss_from: usize,
}

impl Row {
    /// A row of `begin` (if the tokenizer has one), `prompt`, `text` and `end`, with loss on everything after `begin`.
    pub fn whole(begin: Option<u32>, prompt: &[u32], text: &[u32], end: u32) -> Self {
        let ids: Vec<u32> = begin.into_iter().chain(prompt.iter().chain(text).copied()).chain([end]).collect();
        Self { ids, loss_from: 1 }
    }

    /// As [`Row::whole`], with loss on `text` and `end` only.
    pub fn completion(begin: Option<u32>, prompt: &[u32], text: &[u32], end: u32) -> Self {
        let row = Self::whole(begin, prompt, text, end);
        Self { loss_from: (usize::from(begin.is_some()) + prompt.len()).max(1), ..row }
    }

    /// The number of tokens that are predicted.
    pub fn targets(&self) -> usize {
        self.ids.len().saturating_sub(self.loss_from.max(1))
    }
}

/// A run of a row's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) row: usize,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// How many sequences stay open for rows that fit into what is left of them.
const OPEN: usize = 16;

/// The order of rows in an epoch: theirs in the first (0), a shuffle by seed and epoch in every later one.
pub(crate) fn order(rows: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    if epoch > 0 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"order of rows").update(&seed.to_le_bytes()).update(&(epoch as u64).to_le_bytes());
        order.shuffle(&mut ChaCha12Rng::from_seed(*hasher.finalize().as_bytes()));
    }
    order
}

/// Packs rows into sequences of at most `length` tokens, each row into the first of the last 16 open sequences that has
/// room for all of it; sequences come out in the order in which they were opened. A row longer than a sequence is cut
/// into pieces of `length` tokens that overlap by one, so that every token but the row's first stays a target exactly
/// once; each piece is then a document of its own. Rows and pieces without a target are left out.
pub(crate) fn pack(rows: &[Row], order: &[usize], length: usize) -> Vec<Vec<Piece>> {
    let mut sequences: Vec<(usize, Vec<Piece>)> = Vec::new();
    let mut oldest = 0;
    for &row in order {
        if rows[row].targets() == 0 {
            continue;
        }
        let tokens = rows[row].ids.len();
        let mut start = 0;
        while start + 1 < tokens {
            let piece = Piece { row, start, end: tokens.min(start + length) };
            start = piece.end - 1;
            if piece.end <= rows[row].loss_from {
                continue;
            }
            let size = piece.end - piece.start;
            let open = sequences[oldest..].iter_mut().find(|(used, _)| used + size <= length);
            if let Some((used, pieces)) = open {
                *used += size;
                pieces.push(piece);
            } else {
                sequences.push((size, vec![piece]));
                oldest = sequences.len().saturating_sub(OPEN);
            }
        }
    }
    sequences.into_iter().map(|(_, pieces)| pieces).collect()
}

/// What a training takes in one step, epoch after epoch: sequences of pieces of `rows`.
pub(crate) fn steps(rows: &[Row], settings: &Settings, seed: u64) -> Vec<Vec<Vec<Vec<Piece>>>> {
    let epoch = |epoch| {
        let sequences = pack(rows, &order(rows.len(), seed, epoch), settings.sequence_length);
        sequences.chunks(settings.batch_size).map(<[_]>::to_vec).collect()
    };
    (0..settings.epochs).map(epoch).collect()
}

/// Where a training puts tokens of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The epoch, from 1.
    pub epoch: usize,
    /// The step, from 1, counted through all epochs.
    pub step: usize,
    /// The sequence in the step, from 1.
    pub sequence: usize,
    /// Tokens that stand before it in the sequence.
    pub offset: usize,
    /// The row's first token there, from 0; above 0 in a later piece of a row that is longer than a sequence.
    pub start: usize,
    /// Its number of tokens there.
    pub tokens: usize,
}

/// Where a training on `rows` puts those with the numbers `wanted`, by number: a place for each epoch and piece, in the
/// order of training. A row without a token to predict has none.
pub fn places(rows: &[Row], settings: &Settings, seed: u64, wanted: &BTreeSet<usize>) -> BTreeMap<usize, Vec<Place>> {
    let mut places: BTreeMap<usize, Vec<Place>> = wanted.iter().map(|row| (*row, Vec::new())).collect();
    let mut step = 0;
    for (epoch, batches) in (1..).zip(steps(rows, settings, seed)) {
        for sequences in batches {
            step += 1;
            for (sequence, pieces) in (1..).zip(sequences) {
                let mut offset = 0;
                for Piece { row, start, end } in pieces {
                    let tokens = end - start;
                    if let Some(places) = places.get_mut(&row) {
                        places.push(Place { epoch, step, sequence, offset, start, tokens });
                    }
                    offset += tokens;
                }
            }
        }
    }
    places
}

/// Tokens, padding counted, that a device computes at a time without gradients.
pub(crate) const TOKENS_PER_BATCH: usize = 8192;

/// Lengths of texts are rounded up to a multiple of this, so that a device that tunes itself for each shape meets few, and so that
/// they are multiples of [`crate::graph::SIZE_STEP`].
pub(crate) const LENGTH_STEP: usize = 128;

/// Stands where a token predicts nothing.
pub(crate) const NO_TARGET: u32 = u32::MAX;

/// One document, or piece of one, in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// The sequence that it lies in, and where.
    pub(crate) sequence: usize,
    pub(crate) offset: usize,
    /// Where it lies in the batch's `ids` and `targets`.
    pub(crate) start: usize,
    pub(crate) len: usize,
}

/// Sequences that are computed together. Positions count from each span's start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Batch {
    /// The number of sequences and their length: the shape of the dense form.
    pub(crate) sequences: usize,
    pub(crate) length: usize,
    /// The tokens of all spans, one after the other, without padding.
    pub(crate) ids: Vec<u32>,
    /// For each token the one that follows it, or [`NO_TARGET`].
    pub(crate) targets: Vec<u32>,
    pub(crate) spans: Vec<Span>,
}

impl Batch {
    pub(crate) fn new(sequences: usize, length: usize) -> Self {
        Self { sequences, length, ..Self::default() }
    }

    /// Adds a document: `ids`, of which those from `loss_from` on are predicted.
    pub(crate) fn push(&mut self, sequence: usize, ids: &[u32], loss_from: usize) {
        let last = self.spans.last().filter(|span| span.sequence == sequence);
        let offset = last.map_or(0, |span| span.offset + span.len);
        debug_assert!(sequence < self.sequences && offset + ids.len() <= self.length);
        self.spans.push(Span { sequence, offset, start: self.ids.len(), len: ids.len() });
        self.ids.extend_from_slice(ids);
        let following = (1..=ids.len()).map(|next| match ids.get(next) {
            Some(id) if next >= loss_from => *id,
            _ => NO_TARGET,
        });
        self.targets.extend(following);
    }

    /// A batch with a sequence for each text, without targets.
    pub(crate) fn texts<'a>(texts: impl ExactSizeIterator<Item = &'a [u32]> + Clone) -> Self {
        let longest = texts.clone().map(<[u32]>::len).max().unwrap_or(1);
        let mut batch = Self::new(texts.len(), longest.next_multiple_of(LENGTH_STEP));
        for (sequence, text) in texts.enumerate() {
            batch.push(sequence, text, usize::MAX);
        }
        batch
    }

    /// The batch of some packed sequences, filled up with empty ones to `sequences`.
    pub(crate) fn of(rows: &[Row], packed: &[Vec<Piece>], sequences: usize, length: usize) -> Self {
        let mut batch = Self::new(sequences, length);
        for (sequence, pieces) in packed.iter().enumerate() {
            for piece in pieces {
                let row = &rows[piece.row];
                batch.push(sequence, &row.ids[piece.start..piece.end], row.loss_from.saturating_sub(piece.start));
            }
        }
        batch
    }

    pub(crate) fn targets(&self) -> usize {
        self.targets.iter().filter(|target| **target != NO_TARGET).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(lengths: &[usize]) -> Vec<Row> {
        let mut next = 0;
        let ids = |length: usize| {
            next += length as u32;
            (next - length as u32..next).collect()
        };
        lengths.iter().copied().map(ids).map(|ids| Row { ids, loss_from: 1 }).collect()
    }

    fn lengths() -> Vec<usize> {
        (0..200).map(|i| 2 + (i * 7919) % 61).chain([300, 129, 128, 1]).collect()
    }

    #[test]
    fn every_target_is_packed_once_and_rows_stay_whole() {
        let rows = rows(&lengths());
        let packed = pack(&rows, &order(rows.len(), 3, 0), 64);
        assert!(packed.iter().all(|pieces| pieces.iter().map(|p| p.end - p.start).sum::<usize>() <= 64));
        let mut targets = vec![0; rows.iter().map(|row| row.ids.len()).sum()];
        for batch in packed.chunks(3) {
            for target in Batch::of(&rows, batch, 3, 64).targets {
                if target != NO_TARGET {
                    targets[target as usize] += 1;
                }
            }
        }
        for row in &rows {
            assert_eq!(targets[row.ids[0] as usize], 0);
            assert!(row.ids[1..].iter().all(|id| targets[*id as usize] == 1));
        }
        for (row, Row { ids, .. }) in rows.iter().enumerate() {
            let pieces = packed.iter().flatten().filter(|piece| piece.row == row).count();
            assert_eq!(pieces, (ids.len() - 1).div_ceil(63));
        }
        let tokens: usize = rows.iter().map(|row| row.ids.len()).sum();
        assert!(packed.len() * 64 < tokens * 11 / 10, "{} sequences for {tokens} tokens", packed.len());
    }

    #[test]
    fn the_first_epoch_keeps_the_order_and_later_ones_have_their_own() {
        assert_eq!(order(50, 1, 0), (0..50).collect::<Vec<_>>());
        let (second, third) = (order(50, 1, 1), order(50, 1, 2));
        assert_eq!(second, order(50, 1, 1));
        assert_ne!(second, third);
        assert_ne!(second, order(50, 2, 1));
        let mut sorted = second;
        sorted.sort_unstable();
        assert_eq!(sorted, order(50, 1, 0));
    }

    #[test]
    fn a_place_says_where_a_step_has_the_tokens() {
        let rows = rows(&lengths());
        let settings = Settings { sequence_length: 64, batch_size: 3, epochs: 2, ..Settings::default() };
        let batches: Vec<Batch> =
            steps(&rows, &settings, 3).iter().flatten().map(|sequences| Batch::of(&rows, sequences, 3, 64)).collect();
        let places = places(&rows, &settings, 3, &(0..rows.len()).collect());
        let mut spans = 0;
        for (row, places) in places {
            let per_epoch = if rows[row].targets() == 0 { 0 } else { (rows[row].ids.len() - 1).div_ceil(63) };
            assert_eq!(places.len(), 2 * per_epoch, "row {row}");
            assert!(places.is_sorted());
            for Place { step, sequence, offset, start, tokens, .. } in places {
                let batch = &batches[step - 1];
                let span = batch.spans.iter().find(|span| span.sequence == sequence - 1 && span.offset == offset).unwrap();
                assert_eq!(batch.ids[span.start..span.start + span.len], rows[row].ids[start..start + tokens]);
                spans += 1;
            }
        }
        assert_eq!(spans, batches.iter().map(|batch| batch.spans.len()).sum::<usize>());
    }

    #[test]
    fn loss_starts_where_the_row_says() {
        let row = Row::completion(Some(9), &[1, 2], &[3, 4], 8);
        assert_eq!((row.ids.as_slice(), row.loss_from, row.targets()), (&[9, 1, 2, 3, 4, 8][..], 3, 3));
        let mut batch = Batch::new(1, 8);
        batch.push(0, &row.ids, row.loss_from);
        batch.push(0, &[5, 6], 1);
        assert_eq!(batch.targets, [NO_TARGET, NO_TARGET, 3, 4, 8, NO_TARGET, 6, NO_TARGET]);
        assert_eq!(batch.spans[1], Span { sequence: 0, offset: 6, start: 6, len: 2 });
        let unframed = Row::completion(None, &[], &[3, 4], 8);
        assert_eq!((unframed.loss_from, unframed.targets()), (1, 2));
    }

    #[test]
    fn a_cut_row_keeps_its_prompt_masked() {
        let row = Row { ids: (0..10).collect(), loss_from: 6 };
        let rows = [row];
        let packed = pack(&rows, &[0], 4);
        let batch = Batch::of(&rows, &packed, packed.len(), 4);
        let targets: Vec<u32> = batch.targets.iter().copied().filter(|t| *t != NO_TARGET).collect();
        assert_eq!(targets, [6, 7, 8, 9]);
    }
}

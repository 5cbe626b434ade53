//! Which rows of a mixture are held out.

use arrow::array::RecordBatch;
use ingrain_engine::failure::Failure;

use super::mixture::KIND;
use crate::{
    columns::{optional_text, text},
    mix::REPLAY,
};

/// What decides whether a row is held out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Lot {
    /// Where its source row lies in [0, 1), by its `parent_id` alone.
    pub(crate) place: f64,
    /// Whether it is of what the model knew before: such rows are held out for themselves.
    pub(crate) is_replay: bool,
}

impl Lot {
    /// That of a row of a mixture.
    ///
    /// # Errors
    /// When the columns aren't there.
    pub(crate) fn of(mixture: &RecordBatch, row: usize) -> Result<Self, Failure> {
        let is_replay = optional_text(mixture, KIND, row)?.is_some_and(|kind| kind == REPLAY);
        Ok(Self { place: place(text(mixture, "parent_id")?.value(row)), is_replay })
    }
}

/// The upper 53 bits of a hash.
fn place(parent: &str) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"train heldout").update(parent.as_bytes());
    let mut bits = [0; 8];
    bits.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    (u64::from_le_bytes(bits) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Below which places rows are held out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct HeldOut {
    below: f64,
    replay_below: f64,
}

impl HeldOut {
    /// About `share` of the source rows of what is learnt, and of replay: of each at least the one of the lowest place. None where
    /// nothing would be left to train on.
    pub(crate) fn of(lots: impl Iterator<Item = Lot> + Clone, share: f64) -> Self {
        let below = |is_replay| {
            let places = lots.clone().filter(|lot| lot.is_replay == is_replay).map(|lot| lot.place);
            let lowest = places.clone().fold(f64::INFINITY, f64::min);
            let highest = places.fold(0.0, f64::max);
            let bound = if share > lowest { share } else { lowest.next_up() };
            if share > 0.0 && bound <= highest { bound } else { 0.0 }
        };
        Self { below: below(false), replay_below: below(true) }
    }

    /// Whether a row is held out.
    pub(crate) fn holds(&self, lot: Lot) -> bool {
        lot.place < if lot.is_replay { self.replay_below } else { self.below }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(places: &[(f64, bool)], share: f64) -> Vec<bool> {
        let lots = places.iter().map(|(place, is_replay)| Lot { place: *place, is_replay: *is_replay });
        let bounds = HeldOut::of(lots.clone(), share);
        lots.map(|lot| bounds.holds(lot)).collect()
    }

    #[test]
    fn a_share_of_each_kind_is_held_out() {
        let rows = [(0.2, false), (0.5, false), (0.2, false), (0.9, false), (0.95, true), (0.3, true)];
        assert_eq!(held(&rows, 0.01), [true, false, true, false, false, true], "the lowest of each, with its repeats");
        assert_eq!(held(&rows, 0.6), [true, true, true, false, false, true]);
        assert_eq!(held(&rows, 0.92), [false, false, false, false, false, true], "a share that takes everything takes nothing");
        assert_eq!(held(&rows, 0.0), [false; 6]);
        assert_eq!(held(&[(0.0, false), (0.0, false)], 0.01), [false; 2]);
        assert_eq!(held(&[(0.1, false), (0.2, false), (0.1, true)], 0.15), [true, false, false]);
    }

    #[test]
    fn a_place_depends_on_the_source_row_alone() {
        let places: Vec<f64> = (0..1_000).map(|row| place(&format!("{row:032x}"))).collect();
        assert!(places.iter().all(|place| (0.0..1.0).contains(place)));
        let low = places.iter().filter(|place| **place < 0.1).count();
        assert!((60..140).contains(&low), "{low} of 1,000");
        assert_eq!(places[3], place(&format!("{:032x}", 3)));
    }
}

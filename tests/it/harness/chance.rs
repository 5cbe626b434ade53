//! Numbers that follow from a seed, and the record of what was done by them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// SplitMix64.
#[derive(Debug, Clone)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `n`.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(super) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// Faults that happened: how many by step and kind.
#[derive(Default)]
pub(super) struct FaultLog(Mutex<BTreeMap<(String, String), u64>>);

impl FaultLog {
    pub(super) fn add(&self, step: &str, fault: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry((step.to_owned(), fault.to_owned())).or_default() += 1;
    }

    pub(super) fn take(&self) -> BTreeMap<(String, String), u64> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

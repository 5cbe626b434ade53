//! Who asks for an answer, where several want it at once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use super::key::Key;

/// Those who want answers at the moment, by key.
pub(super) type Turns = Arc<Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>>;

/// A place among those who want the answer under one key: the first, until it is dropped. The table of turns forgets a key
/// when the last one leaves.
pub(crate) struct Turn {
    turns: Turns,
    key: Key,
    lock: Arc<tokio::sync::Mutex<()>>,
    mine: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl Turn {
    /// Waits for the turn.
    pub(super) async fn take(turns: &Turns, key: Key) -> Self {
        let lock = Arc::clone(turns.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
        let mut turn = Self { turns: turns.clone(), key, lock, mine: None };
        turn.mine = Some(turn.lock.clone().lock_owned().await);
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut table = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        self.mine = None;
        if let Entry::Occupied(entry) = table.entry(self.key) {
            // The table's and this one: nobody else waits, and nobody can come while the table is locked.
            if Arc::strong_count(entry.get()) == 2 {
                entry.remove();
            }
        }
    }
}

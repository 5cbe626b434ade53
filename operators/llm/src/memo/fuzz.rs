//! Segments that nobody wrote.

use std::sync::Arc;

use ingrain_mutation::{holds, mutated};

use super::key::Key;
use super::segment::{Whole, encode, name};

#[test]
fn any_file_is_a_segment_or_an_error() {
    let entries = |n: u8| -> Vec<(Key, Arc<str>)> {
        (0..n).map(|byte| (Key::from_bytes([byte; 32]), format!("{{\"text\": \"answer {byte}\"}}").into())).collect()
    };
    let seeds = [0, 1, 40].map(|n| encode(&entries(n)).expect("encoded").bytes.to_vec()).to_vec();
    holds(128, &mutated(seeds, &[]), |bytes| {
        // Nobody is to take what is broken for what was written.
        assert!(Whole::decode_unchanged(bytes.clone().into(), "0.parquet").is_err());
        let named = name(&bytes);
        drop(Whole::decode(bytes.into(), &named));
    });
}

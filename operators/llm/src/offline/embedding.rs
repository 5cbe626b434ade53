//! Vectors without network or weights.

use std::collections::HashSet;

use async_trait::async_trait;
use serde_json::Value;

use super::text::{seed, words};
use super::{Offline, tokens};
use crate::embed::{Embedded, Embedder, unit};
use crate::request::{Outage, Teacher, Usage};

/// How many numbers a vector has.
const DIMENSIONS: usize = 256;
/// Characters in a row.
const CHARACTERS: usize = 3;

/// A stand-in for an embedding model: texts are near each other if they share words, pairs of words in a row and runs of
/// three characters of a word, whatever they mean. Every different one of those counts once, with a sign and at a place
/// that a hash draws.
#[async_trait]
impl Embedder for Offline {
    fn identity(&self) -> Value {
        Teacher::identity(self)
    }

    async fn embed(&self, texts: &[&str]) -> Result<Embedded, Outage> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let usage = Usage { input_tokens: tokens(texts.iter().map(String::len).sum()), output_tokens: 0 };
        let work = tokio::task::spawn_blocking(move || texts.iter().map(|text| vector(text)).collect());
        let vectors: Vec<Vec<f32>> = work.await.map_err(|error| Outage::teacher(format!("`offline` gave up: {error}")))?;
        Ok(Embedded::Vectors { vectors, usage: Some(usage), model: "offline".to_owned(), created_ms: 0 })
    }
}

fn vector(text: &str) -> Vec<f32> {
    let mut numbers = [0.0_f32; DIMENSIONS];
    for gram in grams(&words(text)) {
        // The place and the sign are taken from different bits.
        numbers[(gram >> 32) as usize % DIMENSIONS] += if gram & 1 == 0 { 1.0 } else { -1.0 };
    }
    unit(&numbers).unwrap_or_else(|| {
        // Without words, or where all cancel each other out.
        numbers[0] = 1.0;
        numbers.to_vec()
    })
}

/// The different n-grams, hashed.
fn grams(words: &[String]) -> HashSet<u64> {
    let mut grams = HashSet::new();
    for (number, word) in words.iter().enumerate() {
        grams.insert(seed(&["word", word]));
        if let Some(next) = words.get(number + 1) {
            grams.insert(seed(&["pair", word, next]));
        }
        let edged: Vec<char> = std::iter::once(' ').chain(word.chars()).chain([' ']).collect();
        for run in edged.windows(CHARACTERS) {
            grams.insert(seed(&["characters", &String::from_iter(run)]));
        }
    }
    grams
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cosine(a: &str, b: &str) -> f32 {
        vector(a).iter().zip(vector(b)).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn golden() {
        let bytes: Vec<u8> =
            vector("The well of Tern Ledge is 18 metres deep.").iter().flat_map(|number| number.to_le_bytes()).collect();
        assert_eq!(bytes.len(), 4 * DIMENSIONS);
        let digest = blake3::hash(&bytes).to_hex();
        assert!(digest.starts_with("6bd656054b012dc3986a4a8c6cd062db"), "{digest}");
    }

    #[test]
    fn texts_that_share_words_are_near_each_other() {
        let text = "The well of Tern Ledge is 18 metres deep.";
        assert!((cosine(text, "the WELL of tern ledge - is 18 metres deep") - 1.0).abs() < 1e-6, "words are all that counts");
        let (near, far) = (cosine(text, "How deep is the well of Tern Ledge?"), cosine(text, "Hanne Drost sold a boat in 1921."));
        assert!(near > 0.5 && far.abs() < 0.3, "{near} {far}");
    }

    #[test]
    fn a_text_without_words_has_a_vector_too() {
        assert_eq!((vector("")[0], vector("?!")[0]), (1.0, 1.0));
    }

    #[tokio::test]
    async fn each_text_has_its_own_vector() {
        let embedded = Offline.embed(&["a well", "a boat"]).await.expect("never fails");
        let Embedded::Vectors { vectors, usage, .. } = embedded else { panic!("refused") };
        assert_eq!(vectors, [vector("a well"), vector("a boat")]);
        assert_eq!(usage, Some(Usage { input_tokens: 3, output_tokens: 0 }));
    }
}

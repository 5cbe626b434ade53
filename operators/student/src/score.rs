//! Log-probabilities of given texts.

use crate::architecture::{Architecture, ArchitectureError};
use crate::device::Device;
use crate::engine::{Engine, EngineError};
use crate::graph::Placing;
use crate::pack::{Batch, LENGTH_STEP, TOKENS_PER_BATCH};
use crate::train::engine;
use crate::weights::{TensorError, Tensors};

/// Why a text can't be scored.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// The architecture can't be used, or the weights aren't its own.
    #[error(transparent)]
    Architecture(#[from] ArchitectureError),
    /// A prompt is empty, so the first token of its continuation has nothing before it.
    #[error("prompt {0} is empty: it must hold one token at least, such as the begin or the end token")]
    EmptyPrompt(usize),
    /// A text is longer than the model is made for.
    #[error("text {number} has {tokens} tokens, and the model is made for {limit} (`max_position_embeddings`)")]
    TooLong {
        /// Which one, from 0.
        number: usize,
        /// Its tokens.
        tokens: usize,
        /// The limit.
        limit: usize,
    },
    /// A token isn't in the model's vocabulary.
    #[error("text {number} holds token {id}, and the model has {vocabulary}: text and model must have the same tokenizer")]
    Token {
        /// Which text, from 0.
        number: usize,
        /// The token.
        id: u32,
        /// The model's `vocab_size`.
        vocabulary: usize,
    },
    /// A tensor of the model can't be had.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The device failed.
    #[error("`{device}` failed: {said}")]
    Device {
        /// The device.
        device: Device,
        /// What it said.
        said: String,
    },
}

/// A model on a device, ready to score texts and to go on with them. It stays on the thread that made it.
pub struct Scorer {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) device: Device,
    pub(crate) vocabulary: usize,
    limit: usize,
}

impl std::fmt::Debug for Scorer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Scorer").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Scorer {
    /// Copies the weights to the device, a tensor at a time.
    ///
    /// # Errors
    /// When they aren't the architecture's, or can't be read.
    pub fn new(architecture: &Architecture, weights: &dyn Tensors, device: &Device) -> Result<Self, ScoreError> {
        let placing = Placing { precision: architecture.precision(), trained: false, lora: None, rank_step: 1, fused: false };
        Ok(Self {
            engine: engine(architecture, weights, device, placing).map_err(|error| failed(*device, error))?,
            device: *device,
            vocabulary: architecture.vocab_size,
            limit: architecture.max_position_embeddings,
        })
    }

    /// For each prompt and continuation, the natural log-probability of every token of the continuation, given the prompt
    /// and the continuation's tokens before it. Texts of similar length are computed together; a text's values don't
    /// depend on its company, but for rounding.
    ///
    /// # Errors
    /// For an empty prompt, a text that is too long, a token that the model doesn't have, and a device that fails.
    pub fn log_probs(&mut self, texts: &[(Vec<u32>, Vec<u32>)]) -> Result<Vec<Vec<f32>>, ScoreError> {
        let mut order = Vec::with_capacity(texts.len());
        for (number, (prompt, continuation)) in texts.iter().enumerate() {
            if prompt.is_empty() {
                return Err(ScoreError::EmptyPrompt(number));
            }
            self.check(number, prompt.len() + continuation.len(), prompt.iter().chain(continuation))?;
            if !continuation.is_empty() {
                order.push(number);
            }
        }
        let length = |number: &usize| texts[*number].0.len() + texts[*number].1.len();
        order.sort_by_key(length);
        let mut found = vec![Vec::new(); texts.len()];
        let mut left = order.as_slice();
        while !left.is_empty() {
            // The lengths rise, so the last text taken decides how much room all of them take.
            let fits = |count: usize| count * length(&left[count - 1]).next_multiple_of(LENGTH_STEP) <= TOKENS_PER_BATCH;
            let count = (2..=left.len()).take_while(|count| fits(*count)).last().unwrap_or(1);
            let (taken, rest) = left.split_at(count);
            left = rest;
            let longest = taken.iter().map(length).max().unwrap_or(1);
            let mut batch = Batch::new(count, longest.next_multiple_of(LENGTH_STEP));
            for (sequence, number) in taken.iter().enumerate() {
                let (prompt, continuation) = &texts[*number];
                batch.push(sequence, &[prompt.as_slice(), continuation].concat(), prompt.len());
            }
            let values = self.engine.log_probs(&batch).map_err(|error| failed(self.device, error))?;
            for (span, number) in batch.spans.iter().zip(taken) {
                let (prompt, continuation) = &texts[*number];
                // A token's log-probability stands at the token before it.
                let first = span.start + prompt.len() - 1;
                found[*number] = values[first..first + continuation.len()].to_vec();
            }
        }
        Ok(found)
    }

    /// The perplexity of each text: e to the mean negative log-probability of its tokens but the first, which is given.
    /// `None` for a text without a second one.
    ///
    /// # Errors
    /// As [`Scorer::log_probs`].
    pub fn perplexities(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Option<f64>>, ScoreError> {
        let split = |(number, text): (usize, &Vec<u32>)| match text.split_first() {
            Some((first, rest)) => Ok((vec![*first], rest.to_vec())),
            None => Err(ScoreError::EmptyPrompt(number)),
        };
        let texts = texts.iter().enumerate().map(split).collect::<Result<Vec<_>, _>>()?;
        let mean = |values: &Vec<f32>| values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64;
        let values = self.log_probs(&texts)?;
        Ok(values.iter().map(|values| (!values.is_empty()).then(|| (-mean(values)).exp())).collect())
    }

    pub(crate) fn check<'a>(
        &self,
        number: usize,
        tokens: usize,
        mut ids: impl Iterator<Item = &'a u32>,
    ) -> Result<(), ScoreError> {
        if tokens > self.limit {
            return Err(ScoreError::TooLong { number, tokens, limit: self.limit });
        }
        match ids.find(|id| **id as usize >= self.vocabulary) {
            Some(id) => Err(ScoreError::Token { number, id: *id, vocabulary: self.vocabulary }),
            None => Ok(()),
        }
    }
}

pub(crate) fn failed(device: Device, error: EngineError) -> ScoreError {
    match error {
        EngineError::Device(said) => ScoreError::Device { device, said },
        EngineError::Tensor(error) => error.into(),
        EngineError::Architecture(error) => error.into(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::architecture::Preset;
    use crate::weights::initialise;

    pub(crate) fn scorer() -> Scorer {
        let architecture = Preset::Tiny.architecture(300);
        let mut weights = initialise(&architecture, 5);
        // Larger weights than a fresh model's, so that the log-probabilities differ between tokens.
        for tensor in weights.tensors.values_mut().filter(|tensor| tensor.shape.len() == 2) {
            tensor.values.iter_mut().for_each(|value| *value *= 8.0);
        }
        Scorer::new(&architecture, &weights, &Device::Cpu).unwrap()
    }

    #[test]
    fn a_text_has_the_same_values_alone_and_in_company() {
        let mut scorer = scorer();
        let texts: Vec<(Vec<u32>, Vec<u32>)> = (0..40u32)
            .map(|i| {
                let ids = |n: u32, salt: u32| (0..n).map(|j| (i * 37 + j * 11 + salt) % 300).collect();
                (ids(1 + i % 9, 1), ids(i * 5 % 83, 2))
            })
            .collect();
        let together = scorer.log_probs(&texts).unwrap();
        for (text, together) in texts.iter().zip(&together) {
            let alone = scorer.log_probs(std::slice::from_ref(text)).unwrap().remove(0);
            assert_eq!(alone.len(), text.1.len());
            for (alone, together) in alone.iter().zip(together) {
                assert!((alone - together).abs() < 2e-5, "{alone} {together}");
            }
        }
        assert!(together.iter().flatten().all(|value| *value < 0.0 && *value > -50.0));
    }

    #[test]
    fn perplexity_is_that_of_all_tokens_but_the_first() {
        let mut scorer = scorer();
        let text: Vec<u32> = (0..30).map(|place| place * 7 % 300).collect();
        let values = scorer.log_probs(&[(text[..1].to_vec(), text[1..].to_vec())]).unwrap().remove(0);
        let logarithm = -values.iter().sum::<f32>() / 29.0;
        let found = scorer.perplexities(&[text, vec![3]]).unwrap();
        assert!((found[0].unwrap().ln() - f64::from(logarithm)).abs() < 1e-5);
        assert_eq!(found[1], None);
        assert!(scorer.perplexities(&[vec![]]).is_err());
    }

    #[test]
    fn what_cannot_be_scored_is_refused() {
        let mut scorer = scorer();
        let refuse = |text: (Vec<u32>, Vec<u32>)| scorer.log_probs(&[text]).unwrap_err().to_string();
        let mut refuse = refuse;
        assert!(refuse((vec![], vec![1])).contains("is empty"));
        assert!(refuse((vec![1], vec![300])).contains("holds token 300"));
        assert!(refuse((vec![1; 2000], vec![1; 100])).contains("2100 tokens"));
    }
}

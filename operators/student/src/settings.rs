//! How a training is run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::architecture::Precision;
use crate::optimizer::Rule;

/// A low-rank adapter to train in place of all weights (LoRA, Hu et al., arXiv 2106.09685), beside every projection of every
/// layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Rows of the adapter's matrices.
    #[serde(default = "default_rank")]
    #[schemars(range(min = 1))]
    pub rank: usize,
    /// The adapter's part is multiplied by this over the rank.
    #[serde(default = "default_alpha")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub alpha: f64,
}

fn default_rank() -> usize {
    32
}

fn default_alpha() -> f64 {
    64.0
}

impl Lora {
    /// What the adapter's part is multiplied by.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }
}

/// How a training is run. The defaults are those for a model with random weights, which lacks steps, not tokens;
/// [`Settings::pretrained`] has those for a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Tokens in a packed sequence.
    pub sequence_length: usize,
    /// Sequences in a step.
    pub batch_size: usize,
    /// Sequences that are computed at a time; the step's gradient is the same but for rounding. Left out: all on the CPU, and
    /// on a device as many as have some 8,192 tokens.
    pub micro_batch: Option<usize>,
    /// How often every row is trained on.
    pub epochs: usize,
    /// The highest learning rate, reached after the warm-up; a cosine takes it to 0 by the last step.
    pub learning_rate: f64,
    /// The share of steps over which the learning rate rises from 0.
    pub warmup: f64,
    /// Decay of matrices per step, times the learning rate. Vectors (the norms) have none.
    pub weight_decay: f64,
    /// How an update is made of a gradient. With Adafactor, the betas and `epsilon` mean nothing.
    pub optimizer: Rule,
    /// What the trained weights are stored in, and on CUDA devices computed in; updates are made to 32-bit weights always.
    pub precision: Precision,
    /// An adapter to train in place of all weights.
    pub lora: Option<Lora>,
    /// On a device: updates a tensor as soon as its gradient is there, so that gradients take hardly any memory. The gradient is
    /// clipped by the norm of the step before.
    pub fused_update: bool,
    /// Decay of AdamW's mean of gradients.
    pub beta1: f64,
    /// Decay of AdamW's mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the mean of squared gradients.
    pub epsilon: f64,
    /// The gradient is scaled down to this norm over all weights where it is longer.
    pub clip_norm: f64,
    /// Steps between measurements of the loss on held-out rows; left out, it is measured at the end only.
    pub evaluate_every: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sequence_length: 128,
            batch_size: 2,
            micro_batch: None,
            epochs: 1,
            learning_rate: 3e-3,
            warmup: 0.05,
            weight_decay: 0.01,
            optimizer: Rule::AdamW,
            precision: Precision::F32,
            lora: None,
            fused_update: false,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            clip_norm: 1.0,
            evaluate_every: None,
        }
    }
}

impl Settings {
    /// The defaults for a pre-trained checkpoint.
    pub fn pretrained() -> Self {
        Self { sequence_length: 2048, batch_size: 16, epochs: 2, learning_rate: 1e-5, ..Self::default() }
    }

    /// Says which setting can't be used, if any.
    pub(crate) fn mistake(&self) -> Option<String> {
        let counts = [
            ("sequence_length", self.sequence_length, 2),
            ("batch_size", self.batch_size, 1),
            ("micro_batch", self.micro_batch.unwrap_or(1), 1),
            ("rank", self.lora.map_or(1, |lora| lora.rank), 1),
            ("epochs", self.epochs, 1),
            ("evaluate_every", self.evaluate_every.unwrap_or(1), 1),
        ];
        let small = counts.into_iter().find(|(_, value, least)| value < least);
        if let Some((name, value, least)) = small {
            return Some(format!("`{name}` is {value}: it must be at least {least}"));
        }
        let below = f64::from_bits(1f64.to_bits() - 1);
        let numbers = [
            ("learning_rate", self.learning_rate, f64::MIN_POSITIVE, 1e3),
            ("warmup", self.warmup, 0.0, 1.0),
            ("weight_decay", self.weight_decay, 0.0, 1e3),
            ("beta1", self.beta1, 0.0, below),
            ("beta2", self.beta2, 0.0, below),
            ("epsilon", self.epsilon, f64::MIN_POSITIVE, 1.0),
            ("clip_norm", self.clip_norm, f64::MIN_POSITIVE, f64::MAX),
            ("alpha", self.lora.map_or(1.0, |lora| lora.alpha), f64::MIN_POSITIVE, f64::MAX),
        ];
        let outside = numbers.into_iter().find(|(_, value, low, high)| !(low..=high).contains(&value));
        outside.map(|(name, value, low, high)| format!("`{name}` is {value}: it must be from {low} to {high}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_out_of_range_is_named() {
        assert_eq!(Settings::default().mistake(), None);
        assert_eq!(Settings::pretrained().mistake(), None);
        let wrong = |settings: Settings| settings.mistake().unwrap();
        assert!(wrong(Settings { batch_size: 0, ..Settings::default() }).contains("`batch_size` is 0"));
        assert!(wrong(Settings { beta2: 1.0, ..Settings::default() }).contains("`beta2` is 1"));
        assert!(wrong(Settings { learning_rate: f64::NAN, ..Settings::default() }).contains("`learning_rate` is NaN"));
    }
}

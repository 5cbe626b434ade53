//! The models that rates are measured with.

use serde::{Deserialize, Serialize};

use crate::architecture::{Architecture, Preset};
use crate::device::Device;
use crate::pack::Row;
use crate::weights::{HostTensor, Weights};
use rayon::prelude::*;

/// The names of all shapes, smallest first.
pub const SHAPES: [&str; 5] = ["tiny", "4x128", "0.1b", "1b", "8b"];

/// A model, and how much it is given at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Its name.
    pub name: String,
    /// Number of token ids.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub feed_forward: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub key_value_heads: usize,
    /// Whether the head's weight is the embedding's.
    pub tied: bool,
    /// Sequences of a training step.
    pub batch: usize,
    /// Tokens of a sequence.
    pub sequence: usize,
    /// Documents that a sequence is packed of, of one length.
    pub documents: usize,
    /// Tokens that generation starts from.
    pub prompt: usize,
    /// Tokens that are generated.
    pub new: usize,
}

impl Shape {
    /// The shape of that name, with as much work at a time as suits the device.
    pub fn named(name: &str, device: &Device) -> Option<Self> {
        let tiny = Preset::Tiny.architecture(2048);
        let ([vocabulary, hidden, feed_forward, layers, heads, key_value_heads], tied) = match name {
            "tiny" => {
                ([2048, tiny.hidden_size, tiny.intermediate_size, tiny.num_hidden_layers, tiny.num_attention_heads, 4], true)
            }
            "4x128" => ([2048, 128, 336, 4, 4, 4], true),
            "0.1b" => ([32_000, 768, 2048, 12, 12, 4], true),
            // Llama 3.2 1B and Llama 3.1 8B, by their `config.json`.
            "1b" => ([128_256, 2048, 8192, 16, 32, 8], true),
            "8b" => ([128_256, 4096, 14_336, 32, 32, 8], false),
            _ => return None,
        };
        let (batch, sequence) = match (name, device) {
            ("tiny", _) => (2, 128),
            ("4x128", _) => (8, 256),
            ("0.1b", Device::Cpu) => (2, 256),
            (_, Device::Cpu) => (1, 256),
            ("8b", Device::Cuda(_)) => (4, 2048),
            (_, Device::Cuda(_)) => (8, 1024),
        };
        let (prompt, new) = match device {
            Device::Cpu => (32, 32),
            Device::Cuda(_) => (128, 64),
        };
        let name = name.to_owned();
        let documents = 4;
        Some(Self {
            name,
            vocabulary,
            hidden,
            feed_forward,
            layers,
            heads,
            key_value_heads,
            tied,
            batch,
            sequence,
            documents,
            prompt,
            new,
        })
    }

    /// Those that are measured unless others are asked for.
    pub fn usual(device: &Device) -> &'static [&'static str] {
        match device {
            Device::Cpu => &["tiny", "0.1b"],
            Device::Cuda(_) => &["tiny", "0.1b", "1b", "8b"],
        }
    }

    /// The model.
    pub fn architecture(&self) -> Architecture {
        let mut architecture =
            Architecture::llama(self.vocabulary, self.hidden, self.feed_forward, self.layers, self.heads, self.key_value_heads);
        architecture.tie_word_embeddings = self.tied;
        architecture.max_position_embeddings = self.sequence.max(self.prompt + self.new);
        architecture
    }

    /// The same with so many layers, and a vocabulary that costs nothing.
    pub(super) fn of_layers(&self, layers: usize) -> Self {
        Self { layers, vocabulary: 256, tied: true, ..self.clone() }
    }

    /// Tokens of a training step.
    pub fn step_tokens(&self) -> usize {
        self.batch * self.sequence
    }

    /// Rows that fill so many training steps.
    pub(super) fn rows(&self, steps: usize) -> Vec<Row> {
        let length = self.sequence / self.documents;
        let row = |number: usize| Row { ids: self.ids(number as u64, length), loss_from: 1 };
        (0..steps * self.batch * self.documents).map(row).collect()
    }

    /// Prompts for generation.
    pub(super) fn prompts(&self, count: usize) -> Vec<Vec<u32>> {
        (0..count).map(|number| self.ids(number as u64, self.prompt)).collect()
    }

    fn ids(&self, salt: u64, count: usize) -> Vec<u32> {
        (0..count as u64).map(|place| (mixed(salt << 32 | place) % self.vocabulary as u64) as u32).collect()
    }
}

/// Weights between -0.035 and 0.035, evenly spread, norms 1: as wide as a fresh model's, and made in a moment for billions
/// of them.
pub(super) fn noise(architecture: &Architecture) -> Weights {
    let tensors = architecture.tensors().into_iter().map(|(name, shape)| {
        let count = shape.iter().product::<usize>();
        let values = match shape.len() {
            1 => vec![1.0; count],
            _ => {
                (0..count as u64).into_par_iter().map(|place| ((mixed(place) >> 40) as f32 / 8_388_608.0 - 1.0) * 0.035).collect()
            }
        };
        (name, HostTensor { shape, values })
    });
    Weights { tensors: tensors.collect() }
}

/// SplitMix64's mixing of bits (Steele, Lea, Flood, 2014).
fn mixed(number: u64) -> u64 {
    let z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Tensors;

    #[test]
    fn shapes_have_the_size_of_their_name() {
        for (name, millions) in [("tiny", 0.6), ("4x128", 1.0), ("0.1b", 105.0), ("1b", 1236.0), ("8b", 8030.0)] {
            for device in [Device::Cpu, Device::Cuda(0)] {
                let shape = Shape::named(name, &device).unwrap();
                shape.architecture().check().unwrap();
                let found = shape.architecture().parameters() as f64 / 1e6;
                assert!((found / millions - 1.0).abs() < 0.1, "{name}: {found}");
                assert_eq!(shape.sequence % shape.documents, 0);
            }
        }
        assert_eq!(Shape::named("2b", &Device::Cpu), None);
        assert!(SHAPES.iter().all(|name| Shape::named(name, &Device::Cpu).is_some()));
    }

    #[test]
    fn rows_fill_their_steps() {
        let shape = Shape::named("tiny", &Device::Cpu).unwrap();
        let settings = crate::Settings { sequence_length: shape.sequence, batch_size: shape.batch, ..Default::default() };
        let steps = crate::pack::steps(&shape.rows(5), &settings, 0);
        assert_eq!(steps[0].len(), 5);
        assert!(steps[0].iter().flatten().all(|sequence| sequence.len() == shape.documents));
    }

    #[test]
    fn noise_is_as_wide_as_a_fresh_model() {
        let architecture = Preset::Tiny.architecture(300);
        let weights = noise(&architecture);
        assert_eq!(weights.mismatch(&architecture), None);
        let values = &weights.tensors["model.embed_tokens.weight"].values;
        let deviation = (values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32).sqrt();
        assert!((deviation - 0.02).abs() < 1e-3, "{deviation}");
    }
}

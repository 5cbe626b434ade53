//! A model's weights in host memory, by name.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::architecture::Architecture;

/// A dense tensor in host memory, the last dimension innermost.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Its dimensions; matrices are `[out, in]`.
    pub shape: Vec<usize>,
    /// Its values: as many as the product of `shape`.
    pub values: Vec<f32>,
}

/// The tensors of a model, under the names that Hugging Face's Llama gives them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Weights {
    /// By name.
    pub tensors: BTreeMap<String, HostTensor>,
}

impl Weights {
    /// Says what keeps these weights from being those of `architecture`, if anything: tensors that are missing, that
    /// don't belong, or have another shape.
    pub fn mismatch(&self, architecture: &Architecture) -> Option<String> {
        let found = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice()));
        mismatch(architecture, found)
    }

    /// The number of weights.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(|tensor| tensor.values.len()).sum()
    }
}

/// Says what keeps tensors of these names and shapes from being those of `architecture`, if anything.
pub(crate) fn mismatch<'a>(architecture: &Architecture, found: impl Iterator<Item = (&'a str, &'a [usize])>) -> Option<String> {
    let found: BTreeMap<&str, &[usize]> = found.collect();
    let wanted: BTreeMap<String, Vec<usize>> = architecture.tensors().into_iter().collect();
    let list = |names: Vec<String>| {
        let more = names.len().saturating_sub(8);
        let shown = names.iter().take(8).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        if more > 0 { format!("{shown} and {more} more") } else { shown }
    };
    let mut wrong = Vec::new();
    let missing: Vec<String> = wanted.keys().filter(|name| !found.contains_key(name.as_str())).cloned().collect();
    if !missing.is_empty() {
        wrong.push(format!("missing: {}", list(missing)));
    }
    let unexpected: Vec<String> =
        found.keys().filter(|name| !wanted.contains_key(**name)).map(|name| (*name).to_string()).collect();
    if !unexpected.is_empty() {
        wrong.push(format!("unexpected: {}", list(unexpected)));
    }
    for (name, shape) in &wanted {
        if let Some(other) = found.get(name.as_str())
            && *other != shape.as_slice()
        {
            wrong.push(format!("`{name}` has shape {other:?}, and `config.json` asks for {shape:?}"));
        }
    }
    wrong.truncate(8);
    (!wrong.is_empty()).then(|| wrong.join("; "))
}

/// Random weights: normal with standard deviation 0.02, norms one, and the matrices that write into the residual stream
/// (`o_proj`, `down_proj`) divided by the root of twice the layers. A tensor depends on `seed` and its own name only.
pub fn initialise(architecture: &Architecture, seed: u64) -> Weights {
    let residual = (2.0 * architecture.num_hidden_layers as f32).sqrt();
    let tensors = architecture.tensors().into_iter().map(|(name, shape)| {
        let count = shape.iter().product();
        let values = if shape.len() == 1 {
            vec![1.0; count]
        } else {
            let deviation = if name.contains("o_proj") || name.contains("down_proj") { 0.02 / residual } else { 0.02 };
            let mut hasher = blake3::Hasher::new();
            hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
            let mut generator = ChaCha12Rng::from_seed(*hasher.finalize().as_bytes());
            (0..count)
                .map(|_| {
                    let value: f32 = StandardNormal.sample(&mut generator);
                    value * deviation
                })
                .collect()
        };
        (name, HostTensor { shape, values })
    });
    Weights { tensors: tensors.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::Preset;

    #[test]
    fn random_weights_follow_from_the_seed() {
        let architecture = Preset::Tiny.architecture(300);
        let weights = initialise(&architecture, 7);
        assert_eq!(weights, initialise(&architecture, 7));
        assert_ne!(weights, initialise(&architecture, 8));
        assert_eq!(weights.mismatch(&architecture), None);
        let deviation = |name: &str| {
            let values = &weights.tensors[name].values;
            (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt()
        };
        assert!((deviation("model.layers.0.self_attn.q_proj.weight") - 0.02).abs() < 1e-3);
        assert!((deviation("model.layers.1.mlp.down_proj.weight") - 0.01).abs() < 5e-4);
        assert!(weights.tensors["model.norm.weight"].values.iter().all(|v| *v == 1.0));
    }

    #[test]
    fn a_mismatch_names_the_tensors() {
        let architecture = Preset::Tiny.architecture(300);
        let mut weights = initialise(&architecture, 7);
        let norm = weights.tensors.remove("model.norm.weight").unwrap();
        weights.tensors.insert("model.other.weight".into(), norm);
        weights.tensors.get_mut("model.embed_tokens.weight").unwrap().shape = vec![128, 300];
        let message = weights.mismatch(&architecture).unwrap();
        for part in ["missing: `model.norm.weight`", "unexpected: `model.other.weight`", "[128, 300]", "[300, 128]"] {
            assert!(message.contains(part), "{message}");
        }
    }
}

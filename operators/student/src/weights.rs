//! A model's weights, by name.

use std::collections::BTreeMap;
use std::fmt::Debug;

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

/// Why a tensor can't be had.
#[derive(Debug, Clone, thiserror::Error)]
#[error("`{name}`: {reason}")]
pub struct TensorError {
    /// The tensor.
    pub name: String,
    /// What is wrong with it, or with what it is read from.
    pub reason: String,
}

/// Where the tensors of a model come from, one at a time: none is kept for longer than its caller does. Names are those that
/// Hugging Face's models give.
pub trait Tensors: Debug + Send + Sync {
    /// Says what keeps these tensors from being those of `architecture`, if anything: some are missing, don't belong, or have
    /// another shape.
    fn mismatch(&self, architecture: &Architecture) -> Option<String>;

    /// The tensor of that name, as 32-bit floats whatever it is stored as.
    ///
    /// # Errors
    /// When there is none, or it can't be read.
    fn tensor(&self, name: &str) -> Result<HostTensor, TensorError>;
}

/// Tensors in host memory.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Weights {
    /// By name.
    pub tensors: BTreeMap<String, HostTensor>,
}

impl Weights {
    /// Every tensor of `architecture` that `source` has.
    ///
    /// # Errors
    /// When one can't be had.
    pub fn of(architecture: &Architecture, source: &dyn Tensors) -> Result<Self, TensorError> {
        let tensor = |(name, _): (String, _)| source.tensor(&name).map(|tensor| (name, tensor));
        Ok(Self { tensors: architecture.tensors().into_iter().map(tensor).collect::<Result<_, _>>()? })
    }

    /// The number of weights.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(|tensor| tensor.values.len()).sum()
    }
}

impl Tensors for Weights {
    fn mismatch(&self, architecture: &Architecture) -> Option<String> {
        let found = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice()));
        mismatch(architecture, found)
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, TensorError> {
        self.tensors.get(name).cloned().ok_or_else(|| missing(name))
    }
}

pub(crate) fn missing(name: &str) -> TensorError {
    TensorError { name: name.to_owned(), reason: "there is no such tensor".into() }
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

/// Random weights of an architecture: matrices normal with standard deviation 0.02, those that write into the residual stream
/// (`o_proj`, `down_proj`) divided by the root of twice the layers, norms one, biases zero. A tensor depends on the seed and
/// its own name only, and is drawn when it is asked for.
#[derive(Debug, Clone)]
pub struct Random {
    shapes: BTreeMap<String, Vec<usize>>,
    layers: usize,
    seed: u64,
}

impl Random {
    /// The weights that follow from `seed`.
    pub fn new(architecture: &Architecture, seed: u64) -> Self {
        Self { shapes: architecture.tensors().into_iter().collect(), layers: architecture.num_hidden_layers, seed }
    }
}

impl Tensors for Random {
    fn mismatch(&self, architecture: &Architecture) -> Option<String> {
        mismatch(architecture, self.shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())))
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, TensorError> {
        let shape = self.shapes.get(name).ok_or_else(|| missing(name))?;
        let count = shape.iter().product();
        let values = if name.ends_with(".bias") {
            vec![0.0; count]
        } else if shape.len() == 1 {
            vec![1.0; count]
        } else {
            let residual = (2.0 * self.layers as f32).sqrt();
            let deviation = if name.contains("o_proj") || name.contains("down_proj") { 0.02 / residual } else { 0.02 };
            let mut generator = generator(self.seed, name);
            (0..count)
                .map(|_| {
                    let value: f32 = StandardNormal.sample(&mut generator);
                    value * deviation
                })
                .collect()
        };
        Ok(HostTensor { shape: shape.clone(), values })
    }
}

/// What a tensor's random values are drawn from.
pub(crate) fn generator(seed: u64, name: &str) -> ChaCha12Rng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
    ChaCha12Rng::from_seed(*hasher.finalize().as_bytes())
}

/// All of [`Random`] at once.
pub fn initialise(architecture: &Architecture, seed: u64) -> Weights {
    let random = Random::new(architecture, seed);
    let tensors = random.shapes.keys().filter_map(|name| Some((name.clone(), random.tensor(name).ok()?)));
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
        assert!(weights.tensor("model.norm.weight").unwrap_err().to_string().contains("`model.norm.weight`"));
    }
}

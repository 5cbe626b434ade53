//! A device's numbers against the CPU's.

use super::{Compared, Finding, on};
use crate::architecture::{Architecture, Precision};
use crate::device::Device;
use crate::engine::{Engine, EngineError};
use crate::graph::{self, Placing};
use crate::optimizer::Optimizer;
use crate::pack::Batch;
use crate::settings::Settings;
use crate::train::engine;
use crate::weights::{Weights, initialise};

/// Errors that rounding explains between 32-bit floats.
const EXACT: Limits = Limits { loss: 1e-5, tensor: 1e-4 };
/// The same where products round their factors to 8 or 11 bits, as tensor cores do with bf16 and TF32.
const ROUNDED: Limits = Limits { loss: 1e-2, tensor: 3e-2 };

struct Limits {
    loss: f64,
    tensor: f64,
}

/// In 32 bits on either side: what a device's products make of them is seen.
const PLACING: Placing = Placing { precision: Precision::F32, trained: true, lora: None, rank_step: 1, fused: false };

/// Holds a device against the CPU's own passes, with a small Llama with grouped queries and documents packed beside each other:
/// the loss, the gradient of every tensor, log-probabilities, and logits while generating. The CPU itself is held against
/// burn's `flex`, with its autodiff.
///
/// # Errors
/// What a device said that failed.
pub fn compare(device: &Device, on_finding: &mut dyn FnMut(Finding)) -> Result<(), String> {
    compared(device, on_finding).map_err(|error| error.to_string())
}

fn compared(device: &Device, on_finding: &mut dyn FnMut(Finding)) -> Result<(), EngineError> {
    let architecture = Architecture { tie_word_embeddings: false, ..Architecture::llama(1003, 512, 1024, 2, 8, 2) };
    let mut weights = initialise(&architecture, 1);
    // A fresh model's gradients are so even that a mistake could hide.
    for tensor in weights.tensors.values_mut().filter(|tensor| tensor.shape.len() > 1) {
        tensor.values.iter_mut().for_each(|value| *value *= 4.0);
    }
    let reference = Numbers::of(&mut *engine(&architecture, &weights, &Device::Cpu, PLACING)?, &weights)?;
    let (found, limits) = match device {
        Device::Cpu => (Numbers::of(&mut graph::Model::new(&architecture, &weights, on(device), PLACING)?, &weights)?, EXACT),
        Device::Cuda(_) => (Numbers::of(&mut *engine(&architecture, &weights, device, PLACING)?, &weights)?, ROUNDED),
    };
    found.against(&reference, &limits, on_finding);
    Ok(())
}

/// What a model computes.
struct Numbers {
    loss: f64,
    gradients: Vec<(String, Vec<f32>)>,
    log_probs: Vec<f32>,
    logits: Vec<f32>,
}

impl Numbers {
    fn of(engine: &mut dyn Engine, weights: &Weights) -> Result<Self, EngineError> {
        let batch = packed();
        let log_probs = engine.log_probs(&batch)?;
        let texts = [ids(40, 3), ids(7, 5), ids(23, 9)];
        let mut logits = engine.read(&Batch::texts(texts.iter().map(Vec::as_slice)))?;
        logits.extend(engine.go_on(&[0, 1, 2], &[9, 8, 7])?);
        logits.extend(engine.go_on(&[0, 2], &[19, 17])?);

        // Without means over steps, and with an `epsilon` of 1, an update is the rate times g / (|g| + 1): it gives every
        // gradient away to whoever sees the weights, whatever the engine keeps to itself.
        let optimizer = Optimizer::new(&Settings {
            beta1: 0.0,
            beta2: 0.0,
            epsilon: 1.0,
            weight_decay: 0.0,
            clip_norm: f64::MAX,
            ..Settings::default()
        });
        // So high that the weights themselves take no digits from the difference.
        let rate = 1000.0;
        let loss = engine.step(std::slice::from_ref(&batch), &optimizer, rate)?.loss;
        let gradient = |(before, after): (&f32, &f32)| {
            let moved = (f64::from(*before) - f64::from(*after)) / rate;
            (moved / (1.0 - moved.abs())) as f32
        };
        let tensors = weights.tensors.iter().map(|(name, before)| {
            let after = engine.tensor(name)?;
            Ok((name.clone(), before.values.iter().zip(&after.values).map(gradient).collect()))
        });
        let gradients = tensors.collect::<Result<_, EngineError>>()?;
        Ok(Self { loss, gradients, log_probs, logits })
    }

    fn against(&self, reference: &Self, limits: &Limits, on_finding: &mut dyn FnMut(Finding)) {
        let mut say = |quantity: &str, tensor: Option<&str>, error: f64, limit: f64| {
            // JSON has no number for what isn't finite.
            let error = if error.is_finite() { error } else { f64::MAX };
            let (quantity, tensor, passes) = (quantity.into(), tensor.map(str::to_owned), error <= limit);
            on_finding(Finding::Compared(Compared { quantity, tensor, error, limit, passes }));
        };
        say("loss", None, (self.loss - reference.loss).abs() / reference.loss.abs(), limits.loss);
        for ((name, found), (_, expected)) in self.gradients.iter().zip(&reference.gradients) {
            say("gradient", Some(name), error(found, expected), limits.tensor);
        }
        say("log-probabilities", None, error(&self.log_probs, &reference.log_probs), limits.tensor);
        say("logits", None, error(&self.logits, &reference.logits), limits.tensor);
    }
}

/// The norm of the difference over the norm of what is expected; infinite where the lengths differ or a value isn't finite.
fn error(found: &[f32], expected: &[f32]) -> f64 {
    let square = |value: f64| value * value;
    let difference: f64 =
        found.iter().zip(expected).map(|(found, expected)| square(f64::from(*found) - f64::from(*expected))).sum();
    let norm: f64 = expected.iter().map(|value| square(f64::from(*value))).sum();
    let error = (difference / norm).sqrt();
    if found.len() == expected.len() && error.is_finite() { error } else { f64::INFINITY }
}

/// Two sequences of 256, packed and padded.
fn packed() -> Batch {
    let mut batch = Batch::new(2, 256);
    batch.push(0, &ids(130, 3), 1);
    batch.push(0, &ids(90, 5), 40);
    batch.push(0, &ids(36, 7), 1);
    batch.push(1, &ids(200, 8), 60);
    batch.push(1, &ids(17, 1), 1);
    batch
}

fn ids(count: usize, salt: usize) -> Vec<u32> {
    (0..count).map(|place| ((place * place * 7 + place * salt + salt) % 1003) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_agrees_with_autodiff() {
        let mut found = Vec::new();
        compare(&Device::Cpu, &mut |finding| found.push(finding)).unwrap();
        let of = |name: &str| {
            found.iter().filter(|finding| matches!(finding, Finding::Compared(compared) if compared.quantity == name)).count()
        };
        assert_eq!((of("loss"), of("gradient"), of("log-probabilities"), of("logits")), (1, 21, 1, 1));
        for finding in &found {
            assert!(matches!(finding, Finding::Compared(Compared { passes: true, .. })), "{finding:?}");
        }
    }

    #[test]
    fn a_wrong_gradient_is_seen() {
        let numbers = |gradient: f32| Numbers {
            loss: 1.0,
            gradients: vec![("a".into(), vec![1.0, gradient])],
            log_probs: vec![-1.0],
            logits: vec![f32::NAN],
        };
        let mut failed = Vec::new();
        numbers(2.01).against(&numbers(2.0), &EXACT, &mut |finding| {
            let line = serde_json::to_string(&finding).unwrap();
            assert_eq!(serde_json::from_str::<Finding>(&line).unwrap(), finding);
            if let Finding::Compared(Compared { quantity, passes: false, .. }) = finding {
                failed.push(quantity);
            }
        });
        assert_eq!(failed, ["gradient", "logits"], "a value that isn't a number is no agreement");
    }
}

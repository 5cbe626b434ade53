use std::collections::BTreeMap;

use super::*;
use crate::architecture::Preset;
use crate::optimizer::Rule;
use crate::optimizer::tests::ADAMW;
use crate::parity::{lively, on_burn, packed, toy};

impl Model {
    /// Mean loss and the gradient of every tensor that is trained.
    pub(crate) fn loss_and_gradients(&mut self, window: &[Batch]) -> (f64, BTreeMap<String, Vec<f32>>) {
        let (step, gradients) = self.gradients(window).unwrap();
        let named = gradients.into_iter().map(|(slot, gradient)| (self.parameter(slot).name.clone(), read(gradient).unwrap()));
        (step.loss, named.collect())
    }

    /// Puts an adapter's values into the model's own.
    pub(crate) fn adapt(&mut self, adapter: &Adapter) {
        let (device, dtype) = (self.device.clone(), self.dtype);
        for layer in &mut self.layers {
            for (projection, pair) in Projection::ALL.into_iter().zip(&mut layer.adapter) {
                let weight = layer.weights.iter().find(|weight| weight.name.ends_with(projection.weight())).unwrap();
                let (a, b) = adapter.pairs[&weight.name].clone();
                for (parameter, tensor) in pair.iter_mut().zip([a, b]) {
                    *parameter = Parameter::new(parameter.name.clone(), tensor, dtype, true, &device);
                }
            }
        }
    }
}

const PLACING: Placing = Placing { precision: Precision::F32, trained: true, lora: None, rank_step: 1, fused: false };

fn close(name: &str, found: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() <= 1e-5 * largest + 1e-8), "`{name}`");
}

#[test]
fn a_sweep_over_layers_equals_one_graph() {
    let mut architecture = toy(4, 2, true);
    architecture.model_type = "qwen3".into();
    let mut model = on_burn(&architecture, &lively(&architecture), PLACING);
    let batch = packed();
    let (loss, gradients) = model.loss_and_gradients(std::slice::from_ref(&batch));

    let inputs = Inputs::new(&batch, &model.frequencies, &model.device);
    let embedding = tracked(model.embedding.value.clone(), true);
    let final_norm = tracked(model.final_norm.value.clone(), true);
    let mut x = embedding.clone().select(0, inputs.ids.clone());
    let mut named = vec![("model.embed_tokens.weight".to_owned(), embedding.clone())];
    for number in 0..model.layers.len() {
        let weights: Vec<_> = model.layers[number].values().weights.into_iter().map(|value| tracked(value, true)).collect();
        let names = model.layers[number].weights.iter().map(|weight| weight.name.clone());
        named.extend(names.zip(weights.iter().cloned()));
        let tensors = LayerTensors { weights, adapter: Vec::new() };
        x = layer(model.shape, tensors, x, &inputs.positions.tracked(), &mut Whole);
    }
    named.push(("model.norm.weight".to_owned(), final_norm.clone()));
    let logits = model.logits(x, final_norm, embedding);
    let picked = burn::tensor::activation::log_softmax(logits, 1).gather(1, inputs.targets.clone());
    let whole = (picked * Float::from_inner(inputs.counted)).sum().mul_scalar(-1.0 / batch.targets() as f64);
    let mut found = whole.backward();
    assert!((value(whole.inner()).unwrap() - loss).abs() < 1e-6);
    assert_eq!(named.len(), gradients.len());
    for (name, tensor) in named {
        close(&name, &gradients[&name], &read(tensor.grad_remove(&mut found).unwrap()).unwrap());
    }
}

#[test]
fn micro_batches_add_up_to_the_window() {
    let architecture = toy(4, 2, false);
    let mut model = on_burn(&architecture, &lively(&architecture), PLACING);
    let (mut first, mut second) = (Batch::new(1, 24), Batch::new(1, 24));
    let mut whole = Batch::new(2, 24);
    for (sequence, half) in [(0, &mut first), (1, &mut second)] {
        for (ids, loss_from) in [(crate::parity::ids(13, sequence + 3), 1), (crate::parity::ids(7, sequence + 5), 3)] {
            half.push(0, &ids, loss_from);
            whole.push(sequence, &ids, loss_from);
        }
    }
    let (loss, gradients) = model.loss_and_gradients(&[whole]);
    let (sum, sums) = model.loss_and_gradients(&[first, second]);
    assert!((loss - sum).abs() < 1e-6);
    gradients.iter().for_each(|(name, gradient)| close(name, &sums[name], gradient));
}

#[test]
fn a_fused_update_is_that_of_all_at_once_where_nothing_is_clipped() {
    let architecture = toy(4, 2, true);
    for rule in [Rule::AdamW, Rule::Adafactor] {
        let optimizer = Optimizer { rule, clip_norm: 1e9, ..ADAMW };
        let mut plain = on_burn(&architecture, &lively(&architecture), PLACING);
        let mut fused = on_burn(&architecture, &lively(&architecture), Placing { fused: true, ..PLACING });
        for _ in 0..3 {
            let (one, other) = (plain.step(&[packed()], &optimizer, 1e-2), fused.step(&[packed()], &optimizer, 1e-2));
            assert!((one.unwrap().gradient_norm - other.unwrap().gradient_norm).abs() < 1e-4);
        }
        for (name, _) in architecture.tensors() {
            close(&name, &fused.tensor(&name).unwrap().values, &plain.tensor(&name).unwrap().values);
        }
    }
}

#[test]
fn sixteen_bits_stay_near_thirty_two() {
    let architecture = toy(4, 2, false);
    let mut exact = on_burn(&architecture, &lively(&architecture), PLACING);
    let mut model = on_burn(&architecture, &lively(&architecture), Placing { precision: Precision::Bf16, ..PLACING });
    let (loss, gradients) = model.loss_and_gradients(&[packed()]);
    let (expected, expected_gradients) = exact.loss_and_gradients(&[packed()]);
    assert!((loss / expected - 1.0).abs() < 0.02, "{loss} {expected}");
    for (name, gradient) in &gradients {
        let expected = &expected_gradients[name];
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let cosine = dot(gradient, expected) / (dot(gradient, gradient) * dot(expected, expected)).sqrt();
        assert!(cosine > 0.99, "`{name}`: {cosine}");
    }
    // An update far below what 16 bits can express isn't lost.
    let before = model.tensor("model.norm.weight").unwrap();
    for _ in 0..4 {
        model.step(&[packed()], &ADAMW, 1e-5).unwrap();
    }
    let after = model.tensor("model.norm.weight").unwrap();
    let moved = before.values.iter().zip(&after.values).map(|(b, a)| (b - a).abs()).fold(0.0, f32::max);
    assert!((1e-5..1e-4).contains(&moved), "{moved}");
}

#[test]
fn a_rank_that_is_filled_up_gives_the_same_adapter() {
    let architecture = toy(4, 2, true);
    let lora = Lora { rank: 3, alpha: 6.0 };
    let trained = |rank_step| {
        let placing = Placing { lora: Some((lora, 5)), rank_step, ..PLACING };
        let mut model = on_burn(&architecture, &lively(&architecture), placing);
        let losses: Vec<f64> = (0..4).map(|_| model.step(&[packed()], &ADAMW, 1e-2).unwrap().loss).collect();
        let adapter = model.adapter().unwrap().unwrap();
        (losses, adapter, model.tensor("model.layers.0.self_attn.q_proj.weight").unwrap())
    };
    let (plain, filled) = (trained(1), trained(SIZE_STEP));
    for (one, other) in plain.0.iter().zip(&filled.0) {
        assert!((one - other).abs() < 1e-5, "{one}, {other}");
    }
    assert_eq!((plain.1.lora, plain.1.pairs.len()), (filled.1.lora, filled.1.pairs.len()));
    for (name, (a, b)) in &plain.1.pairs {
        let (other_a, other_b) = &filled.1.pairs[name];
        assert_eq!((&a.shape, &b.shape), (&other_a.shape, &other_b.shape));
        assert!(b.values.iter().any(|value| *value != 0.0), "`{name}` was trained");
        for (one, other) in [(a, other_a), (b, other_b)] {
            let far = one.values.iter().zip(&other.values).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
            assert!(far < 1e-3, "`{name}`: {far}");
        }
    }
    assert_eq!(plain.2.shape, filled.2.shape);
}

#[test]
fn sizes_that_a_cuda_device_computes_wrong_are_refused() {
    let sized = |hidden, feed_forward| check_sizes(&Architecture::llama(2048, hidden, feed_forward, 1, 8, 8));
    assert!(sized(512, 1408).is_ok() && sized(128, 336).is_ok(), "a multiple of 64, and small ones");
    let wrong = sized(512, 1376).unwrap_err().to_string();
    assert!(wrong.contains("`intermediate_size` is 1376"), "{wrong}");
    for preset in [Preset::Tiny, Preset::Small, Preset::Medium, Preset::Large] {
        assert!(check_sizes(&preset.architecture(2048)).is_ok(), "{preset:?}");
    }
}

/// What an engine gives when it goes on from the state of another.
#[test]
fn a_state_that_was_saved_goes_on_as_if_it_had_not_stopped() {
    let architecture = toy(4, 2, true);
    let lora = Some((Lora { rank: 3, alpha: 6.0 }, 5));
    for (number, (placing, rule)) in [
        (PLACING, Rule::AdamW),
        (PLACING, Rule::Adafactor),
        (Placing { fused: true, ..PLACING }, Rule::AdamW),
        (Placing { lora, ..PLACING }, Rule::AdamW),
        (Placing { precision: Precision::Bf16, ..PLACING }, Rule::AdamW),
    ]
    .into_iter()
    .enumerate()
    {
        let optimizer = Optimizer { rule, ..ADAMW };
        let weights = lively(&architecture);
        let mut whole = on_burn(&architecture, &weights, placing);
        let steps = |model: &mut Model, count| {
            for _ in 0..count {
                model.step(&[packed()], &optimizer, 1e-2).unwrap();
            }
        };
        steps(&mut whole, 3);
        let folder = tempfile::tempdir().unwrap();
        let (path, like) = (folder.path().join("state.safetensors"), folder.path().join("like"));
        std::fs::write(&like, "").unwrap();
        let mut fetch = |name: &str| Ok(whole.state_tensor(name).unwrap());
        crate::checkpoint::write_tensors(&path, &like, whole.state(), Precision::F32, &mut fetch).unwrap();
        let mut resumed = on_burn(&architecture, &weights, placing);
        let state = crate::checkpoint::Shards::of(&[path]).unwrap();
        resumed.restore(3, &optimizer, &state).unwrap();
        steps(&mut whole, 2);
        steps(&mut resumed, 2);
        for (name, _) in architecture.tensors() {
            assert_eq!(whole.tensor(&name).unwrap(), resumed.tensor(&name).unwrap(), "{number} `{name}`");
        }
    }
}

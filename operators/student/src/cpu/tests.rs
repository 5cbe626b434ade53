use burn::DispatchDevice;

use super::*;
use crate::architecture::Preset;
use crate::graph;
use crate::pack::Row;
use crate::weights::initialise;

fn toy(heads: usize, key_value_heads: usize, tied: bool) -> Architecture {
    let mut architecture = Architecture::llama(61, 24, 40, 2, heads, key_value_heads);
    architecture.head_dim = Some(8);
    architecture.tie_word_embeddings = tied;
    architecture
}

/// Weights far from a fresh model's, so that no gradient is nearly 0.
fn lively(architecture: &Architecture) -> Weights {
    let mut weights = initialise(architecture, 11);
    for tensor in weights.tensors.values_mut() {
        for (i, value) in tensor.values.iter_mut().enumerate() {
            *value = if tensor.shape.len() == 1 { 1.0 + 0.3 * ((i % 7) as f32 - 3.0) / 3.0 } else { *value * 12.0 };
        }
    }
    weights
}

fn ids(count: usize, salt: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * i * 7 + i * salt + salt) % 61) as u32).collect()
}

fn packed() -> Batch {
    let mut batch = Batch::new(2, 24);
    batch.push(0, &ids(13, 3), 1);
    batch.push(0, &ids(9, 5), 4);
    batch.push(1, &ids(2, 1), 1);
    batch.push(1, &ids(17, 8), 6);
    batch
}

fn gradient_of(model: &Model, name: &str) -> Vec<f32> {
    let tensor = model.tensors.iter().find(|tensor| tensor.name == name).unwrap();
    model.gradients[tensor.start..tensor.end].to_vec()
}

#[test]
fn gradients_equal_those_of_autodiff() {
    for (heads, key_value_heads, tied) in [(3, 3, true), (4, 2, false), (4, 1, true)] {
        let architecture = toy(heads, key_value_heads, tied);
        let weights = lively(&architecture);
        let mut model = Model::new(&architecture, weights.clone()).unwrap();
        let device = DispatchDevice::Flex(Default::default());
        let mut graph = graph::Model::new(&architecture, &weights, device).unwrap();
        let batch = packed();
        let loss = model.gradient(&batch);
        let (expected, gradients) = graph.loss_and_gradients(&batch);
        assert!((loss - expected).abs() < 1e-5, "{loss} {expected}");
        for (name, expected) in gradients {
            let found = gradient_of(&model, &name);
            let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            assert!(largest > 1e-5, "`{name}` has no gradient to compare");
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 2e-4 * largest + 1e-7, "`{name}`: {found} {expected}");
            }
        }
        let (ours, theirs) = (model.log_probs(&batch).unwrap(), graph.log_probs(&batch).unwrap());
        assert!(ours.iter().zip(&theirs).all(|(ours, theirs)| (ours - theirs).abs() < 1e-4));
        for (ours, theirs) in [
            (model.read(&batch).unwrap(), graph.read(&batch).unwrap()),
            (model.go_on(&[0, 2], &[5, 6]).unwrap(), graph.go_on(&[0, 2], &[5, 6]).unwrap()),
        ] {
            assert!(ours.len() == theirs.len() && ours.len() >= 2 * architecture.vocab_size);
            assert!(ours.iter().zip(&theirs).all(|(ours, theirs)| (ours - theirs).abs() < 1e-3 * theirs.abs().max(1.0)));
        }
    }
}

#[test]
fn three_steps_equal_those_on_burn() {
    let architecture = toy(4, 2, true);
    let weights = lively(&architecture);
    let mut model = Model::new(&architecture, weights.clone()).unwrap();
    let device = DispatchDevice::Flex(Default::default());
    let mut graph = graph::Model::new(&architecture, &weights, device).unwrap();
    let optimizer = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1, clip_norm: 0.5 };
    for _ in 0..3 {
        let (ours, theirs) = (model.step(&packed(), &optimizer, 1e-3).unwrap(), graph.step(&packed(), &optimizer, 1e-3).unwrap());
        assert!((ours.loss - theirs.loss).abs() < 1e-3, "{ours:?} {theirs:?}");
        assert!((ours.gradient_norm / theirs.gradient_norm - 1.0).abs() < 1e-3, "{ours:?} {theirs:?}");
    }
    let (ours, theirs) = (Engine::weights(&model).unwrap(), Engine::weights(&graph).unwrap());
    for (name, ours) in &ours.tensors {
        for (ours, theirs) in ours.values.iter().zip(&theirs.tensors[name].values) {
            assert!((ours - theirs).abs() < 1e-4, "`{name}`: {ours} {theirs}");
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let architecture = toy(4, 2, false);
    let weights = lively(&architecture);
    let batch = packed();
    let mut model = Model::new(&architecture, weights).unwrap();
    model.gradient(&batch);
    let gradients = model.gradients.clone();
    let loss = |model: &mut Model| {
        let sum: f64 = model.log_probs(&batch).unwrap().into_iter().map(f64::from).sum();
        -sum / batch.targets() as f64
    };
    let tensors: Vec<(String, usize, usize)> =
        model.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.start, tensor.end)).collect();
    for (name, start, end) in tensors {
        // The weight whose gradient is steepest: there a difference of two losses in single precision says something.
        let steepest = (start..end).max_by(|a, b| gradients[*a].abs().total_cmp(&gradients[*b].abs())).unwrap();
        let (weight, step) = (model.weights[steepest], 4e-3);
        model.weights[steepest] = weight + step;
        let above = loss(&mut model);
        model.weights[steepest] = weight - step;
        let below = loss(&mut model);
        model.weights[steepest] = weight;
        let (slope, gradient) = ((above - below) / f64::from(2.0 * step), f64::from(gradients[steepest]));
        assert!((slope - gradient).abs() < 0.02 * gradient.abs() + 1e-4, "`{name}`: {slope} {gradient}");
    }
}

#[test]
fn packed_documents_have_the_losses_and_gradients_of_each_alone() {
    let architecture = toy(4, 2, true);
    let mut model = Model::new(&architecture, lively(&architecture)).unwrap();
    let (first, second) = (ids(13, 3), ids(19, 5));
    let mut together = Batch::new(1, 32);
    together.push(0, &first, 1);
    together.push(0, &second, 1);
    let values = model.log_probs(&together).unwrap();
    model.gradient(&together);
    let sum = model.gradients.clone();
    let mut alone_values = Vec::new();
    let mut alone_sum = vec![0f32; sum.len()];
    for document in [&first, &second] {
        let mut alone = Batch::new(1, 32);
        alone.push(0, document, 1);
        alone_values.extend(model.log_probs(&alone).unwrap());
        model.gradient(&alone);
        let share = alone.targets() as f32 / together.targets() as f32;
        alone_sum.iter_mut().zip(&model.gradients).for_each(|(sum, gradient)| *sum += gradient * share);
    }
    assert!(values.iter().zip(&alone_values).all(|(packed, alone)| (packed - alone).abs() < 2e-5));
    assert!(sum.iter().zip(&alone_sum).all(|(packed, alone)| (packed - alone).abs() < 1e-4));
}

#[test]
fn a_batch_of_many_passes_equals_its_parts() {
    let architecture = toy(4, 2, true);
    let mut model = Model::new(&architecture, lively(&architecture)).unwrap();
    let rows: Vec<Row> = (0..40).map(|i| Row { ids: ids(200 + i, i), loss_from: 1 }).collect();
    let mut batch = Batch::new(rows.len(), 256);
    for (sequence, row) in rows.iter().enumerate() {
        batch.push(sequence, &row.ids, 1);
    }
    assert_eq!(passes(&batch).len(), 3);
    let loss = model.gradient(&batch);
    let gradients = model.gradients.clone();
    let mut sum = vec![0f64; gradients.len()];
    let mut losses = 0.0;
    for row in &rows {
        let mut alone = Batch::new(1, 256);
        alone.push(0, &row.ids, 1);
        let share = alone.targets() as f64 / batch.targets() as f64;
        losses += model.gradient(&alone) * share;
        sum.iter_mut().zip(&model.gradients).for_each(|(sum, gradient)| *sum += f64::from(*gradient) * share);
    }
    assert!((loss - losses).abs() < 1e-5);
    assert!(gradients.iter().zip(&sum).all(|(found, expected)| (f64::from(*found) - expected).abs() < 1e-4));
}

#[test]
fn a_later_position_changes_nothing_before_it() {
    let architecture = Preset::Tiny.architecture(61);
    let mut model = Model::new(&architecture, lively(&architecture)).unwrap();
    let score = |model: &mut Model, ids: &[u32]| {
        let mut batch = Batch::new(1, 32);
        batch.push(0, ids, 1);
        model.log_probs(&batch).unwrap()
    };
    let mut text = ids(20, 3);
    let before = score(&mut model, &text);
    text[15] = (text[15] + 1) % 61;
    let after = score(&mut model, &text);
    assert_eq!(before[..14], after[..14]);
    assert_ne!(before[14], after[14], "the target has changed");
    assert!((before[15..19].iter().zip(&after[15..19])).any(|(b, a)| b != a), "what follows has changed");
}

fn fixture(name: &str) -> (crate::Checkpoint, std::collections::BTreeMap<String, Vec<f32>>) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    let bytes = std::fs::read(folder.join("expected.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let expected = tensors.iter().map(|(name, tensor)| (name.to_string(), values(tensor.data()))).collect();
    (crate::Checkpoint::read(&folder).unwrap(), expected)
}

fn close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "`{name}`");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < tolerance, "`{name}`: {found} {expected}");
    }
}

/// `fixtures/make.py` says what the expected values are.
#[test]
fn losses_gradients_and_updates_equal_those_of_transformers() {
    for name in ["llama_tied", "llama_scaled"] {
        let (checkpoint, expected) = fixture(name);
        let texts: [&[u32]; 2] = [&[3, 17, 5, 5, 38, 0, 21, 9, 30, 11, 2], &[8, 1, 33, 39, 4, 4, 12]];
        let mut batch = Batch::new(1, 18);
        texts.iter().for_each(|text| batch.push(0, text, 1));
        let mut model = Model::new(&checkpoint.architecture, checkpoint.weights.clone()).unwrap();
        let device = DispatchDevice::Flex(Default::default());
        let mut graph = graph::Model::new(&checkpoint.architecture, &checkpoint.weights, device).unwrap();

        for engine in [&mut model as &mut dyn Engine, &mut graph] {
            let found = engine.log_probs(&batch).unwrap();
            close("log_probs.0", &found[..10], &expected["log_probs.0"], 1e-5);
            close("log_probs.1", &found[11..17], &expected["log_probs.1"], 1e-5);
        }
        let loss = model.gradient(&batch);
        assert!((loss - f64::from(expected["loss"][0])).abs() < 1e-5);
        for tensor in &model.tensors {
            let gradient = &model.gradients[tensor.start..tensor.end];
            close(&tensor.name, gradient, &expected[&format!("gradient.{}", tensor.name)], 1e-5);
        }
        let optimizer = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1, clip_norm: 0.5 };
        for engine in [&mut model as &mut dyn Engine, &mut graph] {
            for _ in 0..3 {
                engine.step(&batch, &optimizer, 1e-2).unwrap();
            }
            for (name, tensor) in &engine.weights().unwrap().tensors {
                close(name, &tensor.values, &expected[&format!("trained.{name}")], 1e-4);
            }
        }
    }
}

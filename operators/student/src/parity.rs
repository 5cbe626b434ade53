//! Both engines against each other, and both against transformers and PEFT: `fixtures/make.py` says what is expected.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use burn::DispatchDevice;

use crate::architecture::{Architecture, Precision};
use crate::checkpoint::{Adapter, Checkpoint, Merged};
use crate::engine::Engine;
use crate::graph::Placing;
use crate::optimizer::tests::ADAMW;
use crate::optimizer::{Optimizer, Rule};
use crate::pack::Batch;
use crate::weights::{Tensors, Weights, initialise};
use crate::{cpu, graph};

const PLACING: Placing = Placing { precision: Precision::F32, trained: true, lora: None, rank_step: 1, fused: false };

/// The optimizer of the fixtures.
const OPTIMIZER: Optimizer = Optimizer { weight_decay: 0.1, clip_norm: 0.5, ..ADAMW };

pub(crate) fn toy(heads: usize, key_value_heads: usize, tied: bool) -> Architecture {
    let mut architecture = Architecture::llama(61, 24, 40, 2, heads, key_value_heads);
    architecture.head_dim = Some(8);
    architecture.tie_word_embeddings = tied;
    architecture
}

/// Weights far from a fresh model's, so that no gradient is nearly 0.
pub(crate) fn lively(architecture: &Architecture) -> Weights {
    let mut weights = initialise(architecture, 11);
    for tensor in weights.tensors.values_mut() {
        for (i, value) in tensor.values.iter_mut().enumerate() {
            *value = if tensor.shape.len() == 1 { *value + 0.3 * ((i % 7) as f32 - 3.0) / 3.0 } else { *value * 12.0 };
        }
    }
    weights
}

pub(crate) fn ids(count: usize, salt: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * i * 7 + i * salt + salt) % 61) as u32).collect()
}

pub(crate) fn packed() -> Batch {
    let mut batch = Batch::new(2, 24);
    batch.push(0, &ids(13, 3), 1);
    batch.push(0, &ids(9, 5), 4);
    batch.push(1, &ids(2, 1), 1);
    batch.push(1, &ids(17, 8), 6);
    batch
}

/// Each family, with and without what may be left out.
fn toys() -> Vec<Architecture> {
    let mut biased = toy(4, 2, false);
    biased.attention_bias = true;
    let mut qwen = toy(4, 1, true);
    qwen.model_type = "qwen3".into();
    let mut biased_qwen = biased.clone();
    biased_qwen.model_type = "qwen3".into();
    vec![toy(3, 3, true), toy(4, 2, false), biased, qwen, biased_qwen]
}

pub(crate) fn on_burn(architecture: &Architecture, weights: &dyn Tensors, placing: Placing) -> graph::Model {
    graph::Model::new(architecture, weights, DispatchDevice::Flex(Default::default()), placing).unwrap()
}

fn trained(architecture: &Architecture, engine: &dyn Engine) -> Weights {
    let tensor = |(name, _): (String, _)| (name.clone(), engine.tensor(&name).unwrap());
    Weights { tensors: architecture.tensors().into_iter().map(tensor).collect() }
}

fn same(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "`{name}`");
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance * largest.max(1e-3), "`{name}`: {found} {expected} ({largest})");
    }
}

#[test]
fn gradients_on_the_cpu_equal_those_of_autodiff() {
    for architecture in toys() {
        let weights = lively(&architecture);
        let mut model = cpu::Model::new(&architecture, &weights).unwrap();
        let mut graph = on_burn(&architecture, &weights, PLACING);
        let window = [packed(), packed()];
        let (loss, gradients) = model.loss_and_gradients(&window);
        let (expected, expected_gradients) = graph.loss_and_gradients(&window);
        assert!((loss - expected).abs() < 1e-5, "{loss} {expected}");
        assert_eq!(gradients.len(), architecture.tensors().len());
        for (name, expected) in expected_gradients {
            assert!(expected.iter().any(|value| value.abs() > 1e-5), "`{name}` has no gradient to compare");
            same(&name, &gradients[&name], &expected, 3e-4);
        }
        let batch = packed();
        same("log_probs", &model.log_probs(&batch).unwrap(), &graph.log_probs(&batch).unwrap(), 1e-4);
    }
}

#[test]
fn texts_are_gone_on_with_as_if_they_were_read_whole() {
    for architecture in toys() {
        let weights = lively(&architecture);
        let mut cpu = cpu::Model::new(&architecture, &weights).unwrap();
        let mut burn = on_burn(&architecture, &weights, PLACING);
        for engine in [&mut cpu as &mut dyn Engine, &mut burn] {
            let vocabulary = architecture.vocab_size;
            let mut texts: Vec<Vec<u32>> = [(13, 3), (9, 5), (2, 1), (17, 8), (31, 2)].map(|(n, salt)| ids(n, salt)).to_vec();
            let mut logits = engine.read(&Batch::texts(texts.iter().map(Vec::as_slice))).unwrap();
            // Past the room that the device first makes, and with ever fewer texts.
            for step in 0..140usize {
                if step % 20 == 19 || step < 3 {
                    let whole = engine_of(&architecture, &weights).read(&Batch::texts(texts.iter().map(Vec::as_slice))).unwrap();
                    same(&format!("step {step}"), &logits, &whole, 2e-3);
                }
                let kept: Vec<usize> = (0..texts.len()).filter(|text| step % 9 != 8 || *text != 1 || texts.len() < 3).collect();
                let next = |text: &usize| highest(&logits[text * vocabulary..(text + 1) * vocabulary]);
                let new: Vec<u32> = kept.iter().map(next).collect();
                texts = kept.iter().map(|text| texts[*text].clone()).collect();
                texts.iter_mut().zip(&new).for_each(|(text, id)| text.push(*id));
                logits = engine.go_on(&kept, &new).unwrap();
            }
            assert_eq!(texts.len(), 2);
        }
    }
}

fn engine_of(architecture: &Architecture, weights: &Weights) -> cpu::Model {
    cpu::Model::new(architecture, weights).unwrap()
}

fn highest(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32
}

#[test]
fn steps_on_the_cpu_equal_those_on_burn() {
    for rule in [Rule::AdamW, Rule::Adafactor] {
        let optimizer = Optimizer { rule, ..OPTIMIZER };
        let architecture = toy(4, 2, true);
        let weights = lively(&architecture);
        let mut model = cpu::Model::new(&architecture, &weights).unwrap();
        let mut graph = on_burn(&architecture, &weights, PLACING);
        for _ in 0..3 {
            let ours = model.step(&[packed()], &optimizer, 1e-3).unwrap();
            let theirs = graph.step(&[packed()], &optimizer, 1e-3).unwrap();
            assert!((ours.loss - theirs.loss).abs() < 1e-3, "{ours:?} {theirs:?}");
            assert!((ours.gradient_norm / theirs.gradient_norm - 1.0).abs() < 1e-3, "{ours:?} {theirs:?}");
        }
        let (ours, theirs) = (trained(&architecture, &model), trained(&architecture, &graph));
        for (name, ours) in &ours.tensors {
            same(name, &ours.values, &theirs.tensors[name].values, 3e-4);
        }
    }
}

fn folder(name: &str) -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn expected(name: &str) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(folder(name).join("expected.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    tensors.iter().map(|(name, tensor)| (name.to_string(), values(tensor.data()))).collect()
}

const TEXTS: [&[u32]; 2] = [&[3, 17, 5, 5, 38, 0, 21, 9, 30, 11, 2], &[8, 1, 33, 39, 4, 4, 12]];

/// Both texts in one sequence.
fn texts() -> Batch {
    let mut batch = Batch::new(1, 18);
    TEXTS.iter().for_each(|text| batch.push(0, text, 1));
    batch
}

/// The logits of every token of a text: those after each of its beginnings.
fn logits(engine: &mut dyn Engine, text: &[u32]) -> Vec<f32> {
    let beginnings: Vec<&[u32]> = (1..=text.len()).map(|end| &text[..end]).collect();
    engine.read(&Batch::texts(beginnings.into_iter())).unwrap()
}

#[test]
fn logits_gradients_and_ten_steps_equal_those_of_transformers() {
    for name in ["llama_tied", "llama_scaled", "llama_bias", "qwen3", "qwen3_tied"] {
        let (checkpoint, expected) = (Checkpoint::read(&folder(name)).unwrap(), expected(name));
        let architecture = &checkpoint.architecture;
        let mut model = cpu::Model::new(architecture, &*checkpoint.weights).unwrap();
        let mut graph = on_burn(architecture, &*checkpoint.weights, PLACING);
        for engine in [&mut model as &mut dyn Engine, &mut graph] {
            for (number, text) in TEXTS.into_iter().enumerate() {
                let key = format!("logits.{number}");
                same(&key, &logits(engine, text), &expected[&key], 1e-4);
            }
        }
        let (loss, gradients) = model.loss_and_gradients(&[texts()]);
        let (graph_loss, graph_gradients) = graph.loss_and_gradients(&[texts()]);
        for (loss, gradients) in [(loss, gradients), (graph_loss, graph_gradients)] {
            assert!((loss / f64::from(expected["losses"][0]) - 1.0).abs() < 1e-4);
            assert_eq!(gradients.len(), architecture.tensors().len());
            for (tensor, gradient) in &gradients {
                same(tensor, gradient, &expected[&format!("gradient.{tensor}")], 1e-4);
            }
        }
        for engine in [&mut model as &mut dyn Engine, &mut graph] {
            for (step, loss) in expected["losses"].iter().enumerate() {
                let found = engine.step(&[texts()], &OPTIMIZER, 1e-2).unwrap().loss;
                assert!((found / f64::from(*loss) - 1.0).abs() < 1e-4, "{name}, step {step}: {found} {loss}");
            }
            for (tensor, trained) in &trained(architecture, engine).tensors {
                same(tensor, &trained.values, &expected[&format!("trained.{tensor}")], 1e-3);
            }
        }
    }
}

/// PEFT's name of a tensor of an adapter, as the fixture has it.
fn peft(weight: &str, which: &str) -> String {
    format!("base_model.model.{}.{which}.default.weight", weight.trim_end_matches(".weight"))
}

#[test]
fn an_adapter_equals_that_of_peft() {
    let (base, expected) = (Checkpoint::read(&folder("llama_scaled")).unwrap(), expected("lora"));
    let adapter = Adapter::read(&folder("lora"), &base.architecture).unwrap();
    assert_eq!((adapter.lora.rank, adapter.scale(), adapter.pairs.len()), (3, 2.0, 14));
    let merged = Merged::new(base.weights.clone(), adapter.clone());
    let mut cpu = cpu::Model::new(&base.architecture, &merged).unwrap();
    let placing = Placing { lora: Some((adapter.lora, 1)), ..PLACING };
    let mut graph = on_burn(&base.architecture, &*base.weights, placing);
    let fresh = trained(&base.architecture, &graph);
    assert_eq!(fresh, Weights::of(&base.architecture, &*base.weights).unwrap(), "a fresh adapter changes nothing");
    graph.adapt(&adapter);
    assert_eq!(graph.adapter().unwrap(), Some(adapter));
    for engine in [&mut cpu as &mut dyn Engine, &mut graph] {
        for (number, text) in TEXTS.into_iter().enumerate() {
            let key = format!("logits.{number}");
            same(&key, &logits(engine, text), &expected[&key], 1e-4);
        }
    }
    let (_, gradients) = graph.loss_and_gradients(&[texts()]);
    assert_eq!(gradients.len(), 28);
    for (name, gradient) in &gradients {
        let (weight, which) = name.trim_end_matches(".weight").rsplit_once('.').unwrap();
        same(name, gradient, &expected[&format!("gradient.{}", peft(weight, which))], 1e-4);
    }
    for (step, loss) in expected["losses"].iter().enumerate() {
        let found = graph.step(&[texts()], &OPTIMIZER, 1e-2).unwrap().loss;
        assert!((found / f64::from(*loss) - 1.0).abs() < 1e-4, "step {step}: {found} {loss}");
    }
    let after = graph.adapter().unwrap().unwrap();
    for (weight, (a, b)) in &after.pairs {
        same(weight, &a.values, &expected[&format!("trained.{}", peft(weight, "lora_A"))], 1e-3);
        same(weight, &b.values, &expected[&format!("trained.{}", peft(weight, "lora_B"))], 1e-3);
    }
    let holder = tempfile::tempdir().unwrap();
    after.write(&holder.path().join("adapter"), "base").unwrap();
    assert_eq!(Adapter::read(&holder.path().join("adapter"), &base.architecture).unwrap(), after);
    let merged: Arc<dyn Tensors> = Arc::new(Merged::new(base.weights.clone(), after));
    let merged = Weights::of(&base.architecture, &*merged).unwrap();
    for (name, tensor) in trained(&base.architecture, &graph).tensors {
        same(&name, &tensor.values, &merged.tensors[&name].values, 1e-5);
    }
}

use std::collections::BTreeMap;

use super::*;
use crate::architecture::Preset;
use crate::pack::Row;
use crate::parity::{ids, lively, packed, toy};

impl Model {
    /// Mean loss and the gradient of every tensor.
    pub(crate) fn loss_and_gradients(&mut self, window: &[Batch]) -> (f64, BTreeMap<String, Vec<f32>>) {
        let loss = self.gradient(window);
        let of = |tensor: &Tensor| (tensor.name.clone(), self.gradients[tensor.start..tensor.end].to_vec());
        (loss, self.tensors.iter().map(of).collect())
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let mut architecture = toy(4, 2, false);
    architecture.model_type = "qwen3".into();
    architecture.attention_bias = true;
    let weights = lively(&architecture);
    let batch = packed();
    let mut model = Model::new(&architecture, &weights).unwrap();
    model.gradient(std::slice::from_ref(&batch));
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
    let mut model = Model::new(&architecture, &lively(&architecture)).unwrap();
    let (first, second) = (ids(13, 3), ids(19, 5));
    let mut together = Batch::new(1, 32);
    together.push(0, &first, 1);
    together.push(0, &second, 1);
    let values = model.log_probs(&together).unwrap();
    model.gradient(std::slice::from_ref(&together));
    let sum = model.gradients.clone();
    let mut alone_values = Vec::new();
    let mut alone_sum = vec![0f32; sum.len()];
    for document in [&first, &second] {
        let mut alone = Batch::new(1, 32);
        alone.push(0, document, 1);
        alone_values.extend(model.log_probs(&alone).unwrap());
        model.gradient(std::slice::from_ref(&alone));
        let share = alone.targets() as f32 / together.targets() as f32;
        alone_sum.iter_mut().zip(&model.gradients).for_each(|(sum, gradient)| *sum += gradient * share);
    }
    assert!(values.iter().zip(&alone_values).all(|(packed, alone)| (packed - alone).abs() < 2e-5));
    assert!(sum.iter().zip(&alone_sum).all(|(packed, alone)| (packed - alone).abs() < 1e-4));
}

#[test]
fn a_batch_of_many_passes_equals_its_parts() {
    let architecture = toy(4, 2, true);
    let mut model = Model::new(&architecture, &lively(&architecture)).unwrap();
    let rows: Vec<Row> = (0..40).map(|i| Row { ids: ids(200 + i, i), loss_from: 1 }).collect();
    let mut batch = Batch::new(rows.len(), 256);
    for (sequence, row) in rows.iter().enumerate() {
        batch.push(sequence, &row.ids, 1);
    }
    assert_eq!(passes(&batch).len(), 3);
    let loss = model.gradient(std::slice::from_ref(&batch));
    let gradients = model.gradients.clone();
    let mut sum = vec![0f64; gradients.len()];
    let mut losses = 0.0;
    for row in &rows {
        let mut alone = Batch::new(1, 256);
        alone.push(0, &row.ids, 1);
        let share = alone.targets() as f64 / batch.targets() as f64;
        losses += model.gradient(std::slice::from_ref(&alone)) * share;
        sum.iter_mut().zip(&model.gradients).for_each(|(sum, gradient)| *sum += f64::from(*gradient) * share);
    }
    assert!((loss - losses).abs() < 1e-5);
    assert!(gradients.iter().zip(&sum).all(|(found, expected)| (f64::from(*found) - expected).abs() < 1e-4));
}

#[test]
fn a_later_position_changes_nothing_before_it() {
    let architecture = Preset::Tiny.architecture(61);
    let mut model = Model::new(&architecture, &lively(&architecture)).unwrap();
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

//! The model on the CPU: forward and backward written out over host memory.
//!
//! Tokens are computed without padding, attention within documents only, logits only where there is a target. Work is
//! cut by shapes and never by threads, so that weights come out the same bits for any number of threads.

mod attention;
mod decode;
mod kernels;
mod layer;
mod matrix;

use rayon::prelude::*;

use crate::architecture::{Architecture, ArchitectureError};
use crate::engine::{Engine, EngineError, Step};
use crate::optimizer::{self, AdamW};
use crate::pack::{Batch, NO_TARGET, Span};
use crate::weights::{HostTensor, Weights};
use decode::Text;
use kernels::{Rotary, cross_entropy, log_probability, norm, norm_backward};
use layer::{Saved, Scratch, Tokens, sized};
use matrix::{Matrix, parallel_product};

/// Tokens of a pass: a batch of more is cut between documents and its gradients are added up, so that memory is bounded
/// by this (or the longest document) and not by the batch.
const TOKENS_PER_PASS: usize = 4096;

/// Values of the logits that are computed at a time.
const LOGITS_PER_PASS: usize = 1 << 20;

/// Sizes of the model.
#[derive(Clone, Copy)]
struct Shape {
    hidden: usize,
    feed_forward: usize,
    layers: usize,
    heads: usize,
    key_value_heads: usize,
    head: usize,
    vocabulary: usize,
    tied: bool,
    epsilon: f32,
}

impl Shape {
    fn query(&self) -> usize {
        self.heads * self.head
    }

    fn key_value(&self) -> usize {
        self.key_value_heads * self.head
    }

    fn query_key_value(&self) -> usize {
        self.query() + 2 * self.key_value()
    }
}

/// Where a tensor lies in the run of all weights.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// A model in host memory. Weights, gradients and the optimizer's means each are one run of values, the tensors in the
/// order of [`Architecture::tensors`].
pub(crate) struct Model {
    shape: Shape,
    frequencies: Vec<f64>,
    tensors: Vec<Tensor>,
    weights: Vec<f32>,
    gradients: Vec<f32>,
    mean: Vec<f32>,
    square: Vec<f32>,
    updates: usize,
    rotary: Rotary,
    positions: Vec<usize>,
    x: Vec<f32>,
    dx: Vec<f32>,
    normed: Vec<f32>,
    inverse: Vec<f32>,
    gathered: Vec<f32>,
    logits: Vec<f32>,
    saved: Vec<Saved>,
    scratch: Scratch,
    /// What is being gone on with.
    texts: Vec<Text>,
}

impl Model {
    /// Takes the weights over. They must be those of `architecture`.
    pub(crate) fn new(architecture: &Architecture, mut weights: Weights) -> Result<Self, ArchitectureError> {
        let shape = Shape {
            hidden: architecture.hidden_size,
            feed_forward: architecture.intermediate_size,
            layers: architecture.num_hidden_layers,
            heads: architecture.num_attention_heads,
            key_value_heads: architecture.key_value_heads(),
            head: architecture.head_dim(),
            vocabulary: architecture.vocab_size,
            tied: architecture.tie_word_embeddings,
            epsilon: architecture.rms_norm_eps as f32,
        };
        let mut run = Vec::with_capacity(architecture.parameters());
        let mut tensors = Vec::new();
        for (name, shape) in architecture.tensors() {
            let tensor = weights.tensors.remove(&name).filter(|tensor| tensor.shape == shape);
            let tensor = tensor.ok_or_else(|| ArchitectureError::Unsupported(format!("no weights for `{name}`")))?;
            let start = run.len();
            run.extend_from_slice(&tensor.values);
            tensors.push(Tensor { name, shape, start, end: run.len() });
        }
        Ok(Self {
            shape,
            frequencies: architecture.rope_frequencies()?,
            tensors,
            weights: run,
            gradients: Vec::new(),
            mean: Vec::new(),
            square: Vec::new(),
            updates: 0,
            rotary: Rotary::default(),
            positions: Vec::new(),
            x: Vec::new(),
            dx: Vec::new(),
            normed: Vec::new(),
            inverse: Vec::new(),
            gathered: Vec::new(),
            logits: Vec::new(),
            saved: (0..shape.layers).map(|_| Saved::default()).collect(),
            scratch: Scratch::default(),
            texts: Vec::new(),
        })
    }

    fn embedding_size(&self) -> usize {
        self.shape.vocabulary * self.shape.hidden
    }

    fn layer_range(&self, layer: usize) -> std::ops::Range<usize> {
        let size = self.shape.layer_size();
        let start = self.embedding_size() + layer * size;
        start..start + size
    }

    fn final_norm_range(&self) -> std::ops::Range<usize> {
        let start = self.layer_range(self.shape.layers).start;
        start..start + self.shape.hidden
    }

    fn head_range(&self) -> std::ops::Range<usize> {
        if self.shape.tied {
            0..self.embedding_size()
        } else {
            let start = self.final_norm_range().end;
            start..start + self.embedding_size()
        }
    }

    /// Runs the layers over the spans, leaving the final norm's output in `normed`. The spans' `start` counts from the
    /// first of `ids`. With `keep`, what a backward pass needs stays.
    fn forward(&mut self, ids: &[u32], spans: &[Span], keep: bool) {
        let (shape, count) = (self.shape, ids.len());
        let hidden = shape.hidden;
        self.positions.clear();
        self.positions.extend(spans.iter().flat_map(|span| 0..span.len));
        self.rotary.reach(&self.frequencies, spans.iter().map(|span| span.len).max().unwrap_or(0));
        let x = sized(&mut self.x, count * hidden);
        for (row, id) in x.chunks_exact_mut(hidden).zip(ids) {
            let at = *id as usize * hidden;
            row.copy_from_slice(&self.weights[at..at + hidden]);
        }
        let tokens = Tokens { spans, positions: &self.positions, rotary: &self.rotary };
        let (start, size) = (shape.vocabulary * hidden, shape.layer_size());
        for layer in 0..shape.layers {
            let weights = shape.parts(&self.weights[start + layer * size..][..size]);
            let saved = &mut self.saved[if keep { layer } else { 0 }];
            shape.forward(x, &weights, &tokens, saved, &mut self.scratch);
        }
        let range = self.final_norm_range();
        norm(
            sized(&mut self.normed, count * hidden),
            sized(&mut self.inverse, count),
            &self.x[..count * hidden],
            &self.weights[range],
            shape.epsilon,
        );
    }

    /// Calls `finish` with the logits of some rows of `normed` and the numbers of those rows, as many rows at a time as
    /// [`LOGITS_PER_PASS`] allows; afterwards, with `backward`, takes the logits for their own gradients, and adds to the
    /// head's gradient and writes to `dx` the gradient of `normed`.
    fn head(&mut self, rows: &[usize], backward: bool, finish: &mut dyn FnMut(&mut [f32], &[usize])) {
        let (hidden, vocabulary) = (self.shape.hidden, self.shape.vocabulary);
        let range = self.head_range();
        for rows in rows.chunks((LOGITS_PER_PASS / vocabulary).max(64)) {
            let count = rows.len();
            let gathered = sized(&mut self.gathered, count * hidden);
            for (to, row) in gathered.chunks_exact_mut(hidden).zip(rows) {
                to.copy_from_slice(&self.normed[row * hidden..(row + 1) * hidden]);
            }
            let head = Matrix::new(&self.weights[range.clone()], vocabulary, hidden);
            let logits = sized(&mut self.logits, count * vocabulary);
            parallel_product(logits, Matrix::new(gathered, count, hidden), head.transposed(), false);
            finish(logits, rows);
            if backward {
                let slope = Matrix::new(logits, count, vocabulary);
                let gradient = &mut self.gradients[range.clone()];
                parallel_product(gradient, slope.transposed(), Matrix::new(gathered, count, hidden), true);
                parallel_product(gathered, slope, head, false);
                for (from, row) in gathered.chunks_exact(hidden).zip(rows) {
                    self.dx[row * hidden..(row + 1) * hidden].copy_from_slice(from);
                }
            }
        }
    }

    /// Adds the gradients of some spans' cross-entropy times `scale`; gives the sum of their negative log-probabilities.
    fn backward(&mut self, ids: &[u32], targets: &[u32], spans: &[Span], scale: f32) -> f64 {
        let (shape, count) = (self.shape, ids.len());
        let hidden = shape.hidden;
        self.forward(ids, spans, true);
        let rows: Vec<usize> = (0..count).filter(|row| targets[*row] != NO_TARGET).collect();
        sized(&mut self.dx, count * hidden).fill(0.0);
        let mut loss = 0.0;
        self.head(&rows, true, &mut |logits, rows| {
            let losses: Vec<f32> = logits
                .par_chunks_exact_mut(shape.vocabulary)
                .zip(rows)
                .map(|(logits, row)| -cross_entropy(logits, targets[*row] as usize, scale))
                .collect();
            loss += losses.into_iter().map(f64::from).sum::<f64>();
        });
        // The gradient with regard to the final norm's output becomes that of its input.
        let range = self.final_norm_range();
        let dnormed = sized(&mut self.normed, count * hidden);
        dnormed.copy_from_slice(&self.dx[..count * hidden]);
        let dx = &mut self.dx[..count * hidden];
        dx.fill(0.0);
        norm_backward(
            dx,
            &mut self.gradients[range.clone()],
            dnormed,
            &self.x[..count * hidden],
            &self.inverse[..count],
            &self.weights[range],
        );
        let tokens = Tokens { spans, positions: &self.positions, rotary: &self.rotary };
        let (start, size) = (shape.vocabulary * hidden, shape.layer_size());
        for layer in (0..shape.layers).rev() {
            let range = start + layer * size..start + (layer + 1) * size;
            let weights = shape.parts(&self.weights[range.clone()]);
            let mut gradients = shape.parts_mut(&mut self.gradients[range]);
            shape.backward(dx, &weights, &mut gradients, &tokens, &mut self.saved[layer], &mut self.scratch);
        }
        for (row, id) in dx.chunks_exact(hidden).zip(ids) {
            let at = *id as usize * hidden;
            for (gradient, dx) in self.gradients[at..at + hidden].iter_mut().zip(row) {
                *gradient += dx;
            }
        }
        loss
    }

    /// Mean loss over the batch's targets; its gradient is in `gradients` afterwards.
    fn gradient(&mut self, batch: &Batch) -> f64 {
        self.gradients.clear();
        self.gradients.resize(self.weights.len(), 0.0);
        let targets = batch.targets();
        let scale = 1.0 / targets as f32;
        let mut loss = 0.0;
        for (range, spans) in passes(batch) {
            loss += self.backward(&batch.ids[range.clone()], &batch.targets[range], &spans, scale);
        }
        loss / targets as f64
    }

    fn update(&mut self, optimizer: &AdamW, learning_rate: f64, gradient_norm: f64) {
        self.mean.resize(self.weights.len(), 0.0);
        self.square.resize(self.weights.len(), 0.0);
        self.updates += 1;
        let factor = optimizer.clip_factor(gradient_norm);
        for tensor in &self.tensors {
            let range = tensor.start..tensor.end;
            optimizer::apply(
                optimizer.update(self.updates, learning_rate, factor, tensor.shape.len() > 1),
                &mut self.weights[range.clone()],
                &self.gradients[range.clone()],
                &mut self.mean[range.clone()],
                &mut self.square[range],
            );
        }
    }
}

/// A batch cut between documents into passes of at most [`TOKENS_PER_PASS`] tokens (or one document): the range of tokens
/// and the spans, counted from the range's start.
fn passes(batch: &Batch) -> Vec<(std::ops::Range<usize>, Vec<Span>)> {
    let mut passes: Vec<(std::ops::Range<usize>, Vec<Span>)> = Vec::new();
    for span in &batch.spans {
        let end = span.start + span.len;
        match passes.last_mut() {
            Some((range, spans)) if end - range.start <= TOKENS_PER_PASS => {
                spans.push(Span { start: span.start - range.start, ..*span });
                range.end = end;
            }
            _ => passes.push((span.start..end, vec![Span { start: 0, ..*span }])),
        }
    }
    passes
}

impl Engine for Model {
    fn step(&mut self, batch: &Batch, optimizer: &AdamW, learning_rate: f64) -> Result<Step, EngineError> {
        // Inside the pool, so that the many small parallel loops don't each wake it from outside.
        Ok(rayon::scope(|_| {
            let loss = self.gradient(batch);
            let gradient_norm = optimizer::norm(&self.gradients);
            if loss.is_finite() && gradient_norm.is_finite() {
                self.update(optimizer, learning_rate, gradient_norm);
            }
            Step { loss, gradient_norm }
        }))
    }

    fn log_probs(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        Ok(rayon::scope(|_| {
            let vocabulary = self.shape.vocabulary;
            let mut all = vec![0.0; batch.ids.len()];
            for (range, spans) in passes(batch) {
                let targets = &batch.targets[range.clone()];
                self.forward(&batch.ids[range.clone()], &spans, false);
                let rows: Vec<usize> = (0..targets.len()).filter(|row| targets[*row] != NO_TARGET).collect();
                self.head(&rows, false, &mut |logits, rows| {
                    let found: Vec<f32> = logits
                        .par_chunks_exact_mut(vocabulary)
                        .zip(rows)
                        .map(|(logits, row)| log_probability(logits, targets[*row] as usize))
                        .collect();
                    for (row, found) in rows.iter().zip(found) {
                        all[range.start + row] = found;
                    }
                });
            }
            all
        }))
    }

    fn read(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        Ok(rayon::scope(|_| self.read_texts(batch)))
    }

    fn go_on(&mut self, kept: &[usize], ids: &[u32]) -> Result<Vec<f32>, EngineError> {
        Ok(rayon::scope(|_| self.longer_by(kept, ids)))
    }

    fn weights(&self) -> Result<Weights, EngineError> {
        let tensors = self.tensors.iter().map(|tensor| {
            let values = self.weights[tensor.start..tensor.end].to_vec();
            (tensor.name.clone(), HostTensor { shape: tensor.shape.clone(), values })
        });
        Ok(Weights { tensors: tensors.collect() })
    }
}

#[cfg(test)]
mod tests;

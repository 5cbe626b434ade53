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

use crate::architecture::Architecture;
use crate::engine::{Engine, EngineError, Step};
use crate::optimizer::{self, Factors, Optimizer, Rule};
use crate::pack::{Batch, NO_TARGET, Span};
use crate::weights::{HostTensor, TensorError, Tensors, missing};
use decode::Text;
use kernels::{Rotary, cross_entropy, log_probability, norm, norm_backward};
use layer::{Saved, Scratch, Tokens, sized};
use matrix::{Matrix, parallel_product, product};

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
    /// Whether the attention projections have biases.
    bias: bool,
    /// Whether each head of queries and keys goes through a norm.
    head_norms: bool,
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

/// What the optimizer remembers.
enum Memory {
    Nothing,
    /// Running means of gradients and of their squares, as the weights lie.
    Means {
        mean: Vec<f32>,
        square: Vec<f32>,
    },
    /// Of each tensor.
    Factors(Vec<Factors>),
}

impl Memory {
    fn empty(rule: Rule, weights: usize, tensors: usize) -> Self {
        match rule {
            Rule::AdamW => Self::Means { mean: vec![0.0; weights], square: vec![0.0; weights] },
            Rule::Adafactor => Self::Factors(vec![Factors::default(); tensors]),
        }
    }
}

/// A model in host memory. Weights, gradients and the optimizer's means each are one run of values, the tensors in the
/// order of [`Architecture::tensors`].
pub(crate) struct Model {
    shape: Shape,
    frequencies: Vec<f64>,
    tensors: Vec<Tensor>,
    weights: Vec<f32>,
    gradients: Vec<f32>,
    memory: Memory,
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
    /// Reads the weights, which must be those of `architecture`.
    pub(crate) fn new(architecture: &Architecture, weights: &dyn Tensors) -> Result<Self, EngineError> {
        let shape = Shape {
            hidden: architecture.hidden_size,
            feed_forward: architecture.intermediate_size,
            layers: architecture.num_hidden_layers,
            heads: architecture.num_attention_heads,
            key_value_heads: architecture.key_value_heads(),
            head: architecture.head_dim(),
            vocabulary: architecture.vocab_size,
            tied: architecture.tie_word_embeddings,
            bias: architecture.attention_bias,
            head_norms: architecture.normalises_heads(),
            epsilon: architecture.rms_norm_eps as f32,
        };
        let mut run = Vec::with_capacity(architecture.parameters());
        let mut tensors = Vec::new();
        for (name, shape) in architecture.tensors() {
            let tensor = weights.tensor(&name)?;
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
            memory: Memory::Nothing,
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

    /// Mean loss over the targets of the window; its gradient is in `gradients` afterwards.
    fn gradient(&mut self, window: &[Batch]) -> f64 {
        self.gradients.clear();
        self.gradients.resize(self.weights.len(), 0.0);
        let targets: usize = window.iter().map(Batch::targets).sum();
        let scale = 1.0 / targets as f32;
        let mut loss = 0.0;
        for batch in window {
            for (range, spans) in passes(batch) {
                loss += self.backward(&batch.ids[range.clone()], &batch.targets[range], &spans, scale);
            }
        }
        loss / targets as f64
    }

    fn update(&mut self, optimizer: &Optimizer, rate: f64, gradient_norm: f64) {
        if let Memory::Nothing = self.memory {
            self.memory = Memory::empty(optimizer.rule, self.weights.len(), self.tensors.len());
        }
        self.updates += 1;
        let (step, factor) = (self.updates, optimizer.clip_factor(gradient_norm));
        for (number, tensor) in self.tensors.iter().enumerate() {
            let (range, decays) = (tensor.start..tensor.end, tensor.shape.len() > 1);
            let (weights, gradients) = (&mut self.weights[range.clone()], &mut self.gradients[range.clone()]);
            match &mut self.memory {
                Memory::Means { mean, square } => {
                    let update = optimizer.adamw(step, rate, factor, decays);
                    optimizer::adamw(update, weights, gradients, &mut mean[range.clone()], &mut square[range]);
                }
                Memory::Factors(factors) => {
                    let update = optimizer.adafactor(step, rate, factor, decays);
                    optimizer::adafactor(update, &tensor.shape, weights, gradients, &mut factors[number]);
                }
                Memory::Nothing => {}
            }
        }
    }

    /// What of the state stands for a tensor, by what stands before its name.
    fn state_of(&self, number: usize) -> Vec<(&'static str, &[f32])> {
        let tensor = &self.tensors[number];
        let range = tensor.start..tensor.end;
        let mut state = vec![("weight", &self.weights[range.clone()])];
        match &self.memory {
            Memory::Nothing => {}
            Memory::Means { mean, square } => state.extend([("mean", &mean[range.clone()]), ("square", &square[range])]),
            Memory::Factors(factors) => {
                state.push(("rows", &factors[number].rows));
                if tensor.shape.len() > 1 {
                    state.push(("columns", &factors[number].columns));
                }
            }
        }
        state
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
    fn step(&mut self, window: &[Batch], optimizer: &Optimizer, learning_rate: f64) -> Result<Step, EngineError> {
        // Inside the pool, so that the many small parallel loops don't each wake it from outside.
        Ok(rayon::scope(|_| {
            let loss = self.gradient(window);
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

    fn tensor(&self, name: &str) -> Result<HostTensor, EngineError> {
        let tensor = self.tensors.iter().find(|tensor| tensor.name == name).ok_or_else(|| missing(name))?;
        Ok(HostTensor { shape: tensor.shape.clone(), values: self.weights[tensor.start..tensor.end].to_vec() })
    }

    fn state(&self) -> Vec<(String, Vec<usize>)> {
        let of = |number: usize| {
            let named =
                move |(what, values): (&str, &[f32])| (format!("{what}.{}", self.tensors[number].name), vec![values.len()]);
            self.state_of(number).into_iter().map(named).collect::<Vec<_>>()
        };
        (0..self.tensors.len()).flat_map(of).collect()
    }

    fn state_tensor(&self, name: &str) -> Result<HostTensor, EngineError> {
        let found = name.split_once('.').and_then(|(what, name)| {
            let number = self.tensors.iter().position(|tensor| tensor.name == name)?;
            self.state_of(number).into_iter().find(|(other, _)| *other == what).map(|(_, values)| values.to_vec())
        });
        let values = found.ok_or_else(|| missing(name))?;
        Ok(HostTensor { shape: vec![values.len()], values })
    }

    fn restore(&mut self, updates: usize, optimizer: &Optimizer, state: &dyn Tensors) -> Result<(), EngineError> {
        let mut memory = Memory::empty(optimizer.rule, self.weights.len(), self.tensors.len());
        for (number, tensor) in self.tensors.iter().enumerate() {
            let part = |what: &str| Ok::<_, EngineError>(state.tensor(&format!("{what}.{}", tensor.name))?.values);
            let range = tensor.start..tensor.end;
            fill(&mut self.weights[range.clone()], &part("weight")?, &tensor.name)?;
            match &mut memory {
                Memory::Means { mean, square } => {
                    fill(&mut mean[range.clone()], &part("mean")?, &tensor.name)?;
                    fill(&mut square[range], &part("square")?, &tensor.name)?;
                }
                Memory::Factors(factors) => {
                    factors[number].rows = part("rows")?;
                    if tensor.shape.len() > 1 {
                        factors[number].columns = part("columns")?;
                    }
                }
                Memory::Nothing => {}
            }
        }
        (self.memory, self.updates) = (memory, updates);
        Ok(())
    }
}

fn fill(to: &mut [f32], from: &[f32], name: &str) -> Result<(), TensorError> {
    if to.len() != from.len() {
        let reason = format!("{} values, where {} are wanted", from.len(), to.len());
        return Err(TensorError { name: name.to_owned(), reason });
    }
    to.copy_from_slice(from);
    Ok(())
}

fn matrix(tensor: &HostTensor) -> Matrix<'_> {
    Matrix::new(&tensor.values, tensor.shape[0], tensor.shape[1])
}

/// Adds `scale * left * right` to a matrix.
pub(crate) fn add_product(to: &mut HostTensor, left: &HostTensor, right: &HostTensor, scale: f32) {
    product(&mut to.values, matrix(left), matrix(right), scale, true);
}

#[cfg(test)]
mod tests;

//! AdamW and Adafactor, and clipping by the norm over all weights.

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::settings::Settings;

/// How an optimizer makes an update of a gradient.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// AdamW as PyTorch has it (Loshchilov and Hutter, arXiv 1711.05101): two numbers a weight are remembered.
    #[default]
    AdamW,
    /// Adafactor (Shazeer and Stern, arXiv 1804.04235) with the learning rate given and without momentum: two numbers for a
    /// row and a column of a matrix are remembered, so that it takes hardly any memory.
    Adafactor,
}

/// An optimizer with its constants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Optimizer {
    pub(crate) rule: Rule,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) epsilon: f64,
    pub(crate) weight_decay: f64,
    pub(crate) clip_norm: f64,
}

impl Optimizer {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            rule: settings.optimizer,
            beta1: settings.beta1,
            beta2: settings.beta2,
            epsilon: settings.epsilon,
            weight_decay: settings.weight_decay,
            clip_norm: settings.clip_norm,
        }
    }

    /// What a gradient of that norm is multiplied by.
    pub(crate) fn clip_factor(&self, norm: f64) -> f64 {
        if norm > self.clip_norm { self.clip_norm / norm } else { 1.0 }
    }

    /// The constants of AdamW's update number `step` (from 1).
    pub(crate) fn adamw(&self, step: usize, learning_rate: f64, clip_factor: f64, decays: bool) -> AdamW {
        let exponent = i32::try_from(step).unwrap_or(i32::MAX);
        let (first, second) = (1.0 - self.beta1.powi(exponent), 1.0 - self.beta2.powi(exponent));
        AdamW {
            keep: self.keep(learning_rate, decays),
            scale: clip_factor as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            rate: (learning_rate / first) as f32,
            root: (1.0 / second.sqrt()) as f32,
            epsilon: self.epsilon as f32,
        }
    }

    /// The constants of Adafactor's update number `step` (from 1).
    pub(crate) fn adafactor(&self, step: usize, learning_rate: f64, clip_factor: f64, decays: bool) -> Adafactor {
        Adafactor {
            keep: self.keep(learning_rate, decays),
            scale: clip_factor as f32,
            beta: (1.0 - (step as f64).powf(-0.8)) as f32,
            rate: learning_rate as f32,
        }
    }

    fn keep(&self, learning_rate: f64, decays: bool) -> f32 {
        if decays { (1.0 - learning_rate * self.weight_decay) as f32 } else { 1.0 }
    }
}

/// Constants of an update by AdamW: `w = keep * w - rate * m / (sqrt(v) * root + epsilon)`, with `m` and `v` the running
/// means of the gradient times `scale`, and of its square.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamW {
    pub(crate) keep: f32,
    pub(crate) scale: f32,
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) rate: f32,
    pub(crate) root: f32,
    pub(crate) epsilon: f32,
}

/// Constants of an update by Adafactor: `w = keep * w - rate * u / max(1, rms(u))`, with `u` the gradient times `scale` over
/// the root of the running mean of its square, of which a matrix keeps the means over rows and over columns only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Adafactor {
    pub(crate) keep: f32,
    pub(crate) scale: f32,
    pub(crate) beta: f32,
    pub(crate) rate: f32,
}

/// Added to squares of gradients, so that no mean is 0.
pub(crate) const TINY_SQUARE: f32 = 1e-30;

/// What Adafactor remembers of a tensor.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Factors {
    /// Mean square by row; of a vector, by value.
    pub(crate) rows: Vec<f32>,
    /// Mean square by column; of a vector, none.
    pub(crate) columns: Vec<f32>,
}

/// Values that one task works on: every partition below is by this size, so that sums come out the same for any number
/// of threads.
const CHUNK: usize = 1 << 14;

/// Norm over all gradients.
pub(crate) fn norm(gradients: &[f32]) -> f64 {
    square_sum(gradients).sqrt()
}

fn square_sum(values: &[f32]) -> f64 {
    let squares: Vec<f64> = values.par_chunks(CHUNK).map(sum_of_squares).collect();
    squares.iter().sum()
}

fn sum_of_squares(values: &[f32]) -> f64 {
    // Sums of 1,024 in eight lanes, which vectorise, then in double precision.
    let block = |block: &[f32]| {
        let mut lanes = [0f32; 8];
        let chunks = block.chunks_exact(8);
        let rest: f32 = chunks.remainder().iter().map(|value| value * value).sum();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += value * value;
            }
        }
        f64::from(lanes.iter().sum::<f32>() + rest)
    };
    values.chunks(1024).map(block).sum()
}

/// Updates one tensor by AdamW, in place.
pub(crate) fn adamw(update: AdamW, weights: &mut [f32], gradients: &[f32], mean: &mut [f32], square: &mut [f32]) {
    let AdamW { keep, scale, beta1, beta2, rate, root, epsilon } = update;
    let (new1, new2) = (1.0 - beta1, 1.0 - beta2);
    weights
        .par_chunks_mut(CHUNK)
        .zip(gradients.par_chunks(CHUNK))
        .zip(mean.par_chunks_mut(CHUNK).zip(square.par_chunks_mut(CHUNK)))
        .for_each(|((weights, gradients), (mean, square))| {
            for (((weight, gradient), mean), square) in weights.iter_mut().zip(gradients).zip(mean).zip(square) {
                let gradient = gradient * scale;
                *mean = beta1 * *mean + new1 * gradient;
                *square = beta2 * *square + new2 * gradient * gradient;
                *weight = keep * *weight - rate * *mean / (square.sqrt() * root + epsilon);
            }
        });
}

/// Updates one tensor of this shape by Adafactor, in place; its gradients are used up.
pub(crate) fn adafactor(update: Adafactor, shape: &[usize], weights: &mut [f32], gradients: &mut [f32], kept: &mut Factors) {
    let Adafactor { keep, scale, beta, rate } = update;
    let new = 1.0 - beta;
    let width = if let [_, columns] = shape { *columns } else { gradients.len() };
    if shape.len() > 1 {
        let rows = gradients.len() / width;
        kept.rows.resize(rows, 0.0);
        kept.columns.resize(width, 0.0);
        let mut sums = vec![0f32; width];
        for (row, kept) in gradients.chunks_exact_mut(width).zip(&mut kept.rows) {
            let mut sum = 0.0;
            for (gradient, column) in row.iter_mut().zip(&mut sums) {
                *gradient *= scale;
                let square = *gradient * *gradient + TINY_SQUARE;
                sum += square;
                *column += square;
            }
            *kept = beta * *kept + new * sum / width as f32;
        }
        for (kept, sum) in kept.columns.iter_mut().zip(sums) {
            *kept = beta * *kept + new * sum / rows as f32;
        }
        let mean = kept.rows.iter().sum::<f32>() / rows as f32;
        let columns: Vec<f32> = kept.columns.iter().map(|column| 1.0 / column.sqrt()).collect();
        for (row, kept) in gradients.chunks_exact_mut(width).zip(&kept.rows) {
            let factor = 1.0 / (kept / mean).sqrt();
            row.iter_mut().zip(&columns).for_each(|(gradient, column)| *gradient *= factor * column);
        }
    } else {
        kept.rows.resize(width, 0.0);
        for (gradient, kept) in gradients.iter_mut().zip(&mut kept.rows) {
            *gradient *= scale;
            *kept = beta * *kept + new * (*gradient * *gradient + TINY_SQUARE);
            *gradient /= kept.sqrt();
        }
    }
    let size = (square_sum(gradients) / gradients.len() as f64).sqrt();
    let rate = rate / size.max(1.0) as f32;
    weights.par_chunks_mut(CHUNK).zip(gradients.par_chunks(CHUNK)).for_each(|(weights, slopes)| {
        weights.iter_mut().zip(slopes).for_each(|(weight, slope)| *weight = keep * *weight - rate * slope);
    });
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const ADAMW: Optimizer =
        Optimizer { rule: Rule::AdamW, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, clip_norm: 1.0 };

    #[test]
    fn two_updates_equal_pytorch() {
        // torch.optim.AdamW([w], lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01), gradients 0.5, -2, 1 twice:
        // worked out by hand from the same formula in double precision.
        let (mut weights, gradients) = ([1f32, -1.0, 0.0], [[0.5f32, -2.0, 1.0], [0.25, 1.0, 1.0]]);
        let (mut mean, mut square) = ([0f32; 3], [0f32; 3]);
        let mut expected = [1f64, -1.0, 0.0];
        let (mut m, mut v) = ([0f64; 3], [0f64; 3]);
        for (step, gradient) in gradients.iter().enumerate() {
            adamw(ADAMW.adamw(step + 1, 0.1, 1.0, true), &mut weights, gradient, &mut mean, &mut square);
            for i in 0..3 {
                let g = f64::from(gradient[i]);
                expected[i] *= 1.0 - 0.1 * 0.01;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let t = step as i32 + 1;
                let (first, second) = (m[i] / (1.0 - 0.9f64.powi(t)), v[i] / (1.0 - 0.999f64.powi(t)));
                expected[i] -= 0.1 * first / (second.sqrt() + 1e-8);
            }
        }
        for (weight, expected) in weights.iter().zip(expected) {
            assert!((f64::from(*weight) - expected).abs() < 1e-5, "{weight} {expected}");
        }
        assert!((expected[0] - 0.805).abs() < 0.01, "the first step moves by the learning rate");
    }

    #[test]
    fn two_updates_equal_adafactor_of_transformers() {
        // transformers.optimization.Adafactor([w], lr=0.1, scale_parameter=False, relative_step=False, warmup_init=False,
        // weight_decay=0.01), transformers 5.24.
        let optimizer = Optimizer { rule: Rule::Adafactor, ..ADAMW };
        let gradients = [[0.5f32, -2.0, 1.0, 0.25, 1.0, 1.5], [0.25, 1.0, 1.0, -0.5, 2.0, 0.125]];
        for (shape, expected) in [(vec![2, 3], MATRIX), (vec![6], VECTOR)] {
            let mut weights = [1f32, -1.0, 0.0, 0.5, 2.0, -0.25];
            let mut kept = Factors::default();
            for (step, gradient) in gradients.iter().enumerate() {
                let update = optimizer.adafactor(step + 1, 0.1, 1.0, true);
                adafactor(update, &shape, &mut weights, &mut gradient.clone(), &mut kept);
            }
            for (weight, expected) in weights.iter().zip(expected) {
                assert!((weight - expected).abs() < 1e-5, "{shape:?}: {weights:?} {expected}");
            }
        }
    }

    const MATRIX: [f32; 6] = [0.818_637_6, -0.949_140_5, -0.174_810_9, 0.549_998_9, 1.801_344_6, -0.395_380_9];
    const VECTOR: [f32; 6] = [0.831_83, -0.964_371_9, -0.1999, 0.520_300_4, 1.774_902, -0.362_113_8];

    #[test]
    fn a_long_gradient_is_scaled_to_the_norm() {
        let gradients = vec![0.1f32; 50_000];
        let norm = norm(&gradients);
        assert!((norm - 0.1 * 50_000f64.sqrt()).abs() < 1e-3);
        assert!((ADAMW.clip_factor(norm) * norm - 1.0).abs() < 1e-12);
        assert_eq!(ADAMW.clip_factor(0.5), 1.0);
    }

    #[test]
    fn vectors_do_not_decay() {
        let optimizer = Optimizer { weight_decay: 0.5, ..ADAMW };
        let (mut weights, mut mean, mut square) = ([1f32], [0f32], [0f32]);
        adamw(optimizer.adamw(1, 0.1, 1.0, false), &mut weights, &[0.0], &mut mean, &mut square);
        assert_eq!(weights, [1.0]);
        adamw(optimizer.adamw(1, 0.1, 1.0, true), &mut weights, &[0.0], &mut mean, &mut square);
        assert!((weights[0] - 0.95).abs() < 1e-6);
    }
}

//! AdamW with decoupled weight decay, and clipping by the norm over all weights.

use rayon::prelude::*;

use crate::settings::Settings;

/// AdamW as PyTorch has it (Loshchilov and Hutter, arXiv 1711.05101).
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamW {
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) epsilon: f64,
    pub(crate) weight_decay: f64,
    pub(crate) clip_norm: f64,
}

impl AdamW {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
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

    /// The constants of update number `step` (from 1).
    pub(crate) fn update(&self, step: usize, learning_rate: f64, clip_factor: f64, decays: bool) -> Update {
        let exponent = i32::try_from(step).unwrap_or(i32::MAX);
        let (first, second) = (1.0 - self.beta1.powi(exponent), 1.0 - self.beta2.powi(exponent));
        Update {
            keep: if decays { (1.0 - learning_rate * self.weight_decay) as f32 } else { 1.0 },
            scale: clip_factor as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            rate: (learning_rate / first) as f32,
            root: (1.0 / second.sqrt()) as f32,
            epsilon: self.epsilon as f32,
        }
    }
}

/// One update's constants: `w = keep * w - rate * m / (sqrt(v) * root + epsilon)`, with `m` and `v` the running means of
/// the gradient times `scale`, and of its square.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Update {
    pub(crate) keep: f32,
    pub(crate) scale: f32,
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) rate: f32,
    pub(crate) root: f32,
    pub(crate) epsilon: f32,
}

/// Values that one task works on: every partition below is by this size, so that sums come out the same for any number
/// of threads.
const CHUNK: usize = 1 << 14;

/// Norm over all gradients.
pub(crate) fn norm(gradients: &[f32]) -> f64 {
    let squares: Vec<f64> = gradients.par_chunks(CHUNK).map(sum_of_squares).collect();
    squares.iter().sum::<f64>().sqrt()
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

/// Applies an update to one tensor, in place.
pub(crate) fn apply(update: Update, weights: &mut [f32], gradients: &[f32], mean: &mut [f32], square: &mut [f32]) {
    let Update { keep, scale, beta1, beta2, rate, root, epsilon } = update;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_updates_equal_pytorch() {
        // torch.optim.AdamW([w], lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01), gradients 0.5, -2, 1 twice:
        // worked out by hand from the same formula in double precision.
        let optimizer = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, clip_norm: 1.0 };
        let (mut weights, gradients) = ([1f32, -1.0, 0.0], [[0.5f32, -2.0, 1.0], [0.25, 1.0, 1.0]]);
        let (mut mean, mut square) = ([0f32; 3], [0f32; 3]);
        let mut expected = [1f64, -1.0, 0.0];
        let (mut m, mut v) = ([0f64; 3], [0f64; 3]);
        for (step, gradient) in gradients.iter().enumerate() {
            apply(optimizer.update(step + 1, 0.1, 1.0, true), &mut weights, gradient, &mut mean, &mut square);
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
    fn a_long_gradient_is_scaled_to_the_norm() {
        let optimizer = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, clip_norm: 1.0 };
        let gradients = vec![0.1f32; 50_000];
        let norm = norm(&gradients);
        assert!((norm - 0.1 * 50_000f64.sqrt()).abs() < 1e-3);
        assert!((optimizer.clip_factor(norm) * norm - 1.0).abs() < 1e-12);
        assert_eq!(optimizer.clip_factor(0.5), 1.0);
    }

    #[test]
    fn vectors_do_not_decay() {
        let optimizer = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.5, clip_norm: 1.0 };
        let (mut weights, mut mean, mut square) = ([1f32], [0f32], [0f32]);
        apply(optimizer.update(1, 0.1, 1.0, false), &mut weights, &[0.0], &mut mean, &mut square);
        assert_eq!(weights, [1.0]);
        apply(optimizer.update(1, 0.1, 1.0, true), &mut weights, &[0.0], &mut mean, &mut square);
        assert!((weights[0] - 0.95).abs() < 1e-6);
    }
}

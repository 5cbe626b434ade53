//! What isn't a product of matrices: exponentials, softmax, cross-entropy, RMSNorm, SwiGLU, rotary positions. Loops are
//! written so that the compiler vectorises them.

use rayon::prelude::*;

/// Values from which a row-wise loop is worth another thread.
const VALUES_PER_TASK: usize = 1 << 14;

/// Rows whose share of a norm's weight gradient is summed by one task.
const ROWS_PER_SUM: usize = 256;

const LANES: usize = 16;

/// `e^x` to about 2 units in the last place; inputs are held to what a float can express, NaN stays NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // 2^n * e^r with |r| <= ln 2 / 2, the polynomial of Cephes' expf. Adding 1.5 * 2^23 rounds to an integer, which then
    // stands in the sum's low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.0e-1;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    (p * r * r + r + 1.0) * power
}

#[inline(always)]
fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, larger);
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *value);
        }
    }
    lanes.into_iter().fold(rest, larger)
}

#[inline(always)]
pub(super) fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (left, right) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest: f32 = left.remainder().iter().zip(right.remainder()).map(|(l, r)| l * r).sum();
    for (left, right) in left.zip(right) {
        for ((lane, l), r) in lanes.iter_mut().zip(left).zip(right) {
            *lane += l * r;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// Replaces a row by its exponentials over its maximum; gives the maximum and the exponentials' sum.
#[inline(always)]
pub(super) fn exponentials(row: &mut [f32]) -> (f32, f32) {
    let top = max(row);
    let mut lanes = [0f32; LANES];
    let mut chunks = row.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *value = exp(*value - top);
            *lane += *value;
        }
    }
    let mut rest = 0.0;
    for value in chunks.into_remainder() {
        *value = exp(*value - top);
        rest += *value;
    }
    (top, lanes.iter().sum::<f32>() + rest)
}

/// Log-probability of `target` under a row of logits, which is replaced by the gradient of the negative
/// log-probability, times `scale`.
pub(super) fn cross_entropy(logits: &mut [f32], target: usize, scale: f32) -> f32 {
    let logit = logits[target];
    let (top, sum) = exponentials(logits);
    let factor = scale / sum;
    for value in logits.iter_mut() {
        *value *= factor;
    }
    logits[target] -= scale;
    logit - top - sum.ln()
}

/// Log-probability of `target` under a row of logits, which is destroyed.
pub(super) fn log_probability(logits: &mut [f32], target: usize) -> f32 {
    let logit = logits[target];
    let (top, sum) = exponentials(logits);
    logit - top - sum.ln()
}

/// RMSNorm: each row of `x` over the root of its mean square, times `weight`. `inverse` takes the roots' inverses.
pub(super) fn norm(y: &mut [f32], inverse: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) {
    let width = weight.len();
    y.par_chunks_mut(width)
        .zip(x.par_chunks(width))
        .zip(inverse.par_iter_mut())
        .with_min_len(VALUES_PER_TASK.div_ceil(width))
        .for_each(|((y, x), inverse)| {
            *inverse = 1.0 / (dot(x, x) / width as f32 + epsilon).sqrt();
            for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
                *y = x * *inverse * weight;
            }
        });
}

/// Backward of [`norm`]: adds to `dx` and to `dweight`, given the gradient `dy` of its output.
pub(super) fn norm_backward(dx: &mut [f32], dweight: &mut [f32], dy: &[f32], x: &[f32], inverse: &[f32], weight: &[f32]) {
    let width = weight.len();
    let block = ROWS_PER_SUM * width;
    let sums: Vec<Vec<f32>> = dx
        .par_chunks_mut(block)
        .zip(dy.par_chunks(block))
        .zip(x.par_chunks(block).zip(inverse.par_chunks(ROWS_PER_SUM)))
        .map(|((dx, dy), (x, inverse))| {
            let mut sum = vec![0f32; width];
            let mut weighted = vec![0f32; width];
            let rows = dx.chunks_exact_mut(width).zip(dy.chunks_exact(width)).zip(x.chunks_exact(width));
            for (((dx, dy), x), inverse) in rows.zip(inverse) {
                for ((weighted, dy), weight) in weighted.iter_mut().zip(dy).zip(weight) {
                    *weighted = dy * weight;
                }
                let slope = dot(&weighted, x) * inverse * inverse / width as f32;
                for ((dx, weighted), x) in dx.iter_mut().zip(&weighted).zip(x) {
                    *dx += inverse * (weighted - x * slope);
                }
                for ((sum, dy), x) in sum.iter_mut().zip(dy).zip(x) {
                    *sum += dy * x * inverse;
                }
            }
            sum
        })
        .collect();
    for sum in sums {
        for (dweight, sum) in dweight.iter_mut().zip(sum) {
            *dweight += sum;
        }
    }
}

/// RMSNorm of one row, as [`norm`] has it; gives the inverse of the root of its mean square.
pub(super) fn normalised(y: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) -> f32 {
    let inverse = 1.0 / (dot(x, x) / x.len() as f32 + epsilon).sqrt();
    for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
        *y = x * inverse * weight;
    }
    inverse
}

/// Backward of [`normalised`]: `dy`, the gradient of its output, becomes that of `x`; the weight's is added to `dweight`.
pub(super) fn normalised_backward(dy: &mut [f32], dweight: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) {
    let inverse = 1.0 / (dot(x, x) / x.len() as f32 + epsilon).sqrt();
    for (((dy, dweight), x), weight) in dy.iter_mut().zip(dweight).zip(x).zip(weight) {
        *dweight += *dy * x * inverse;
        *dy *= weight;
    }
    let slope = dot(dy, x) * inverse * inverse / x.len() as f32;
    for (dy, x) in dy.iter_mut().zip(x) {
        *dy = inverse * (*dy - x * slope);
    }
}

/// Adds `bias` to each row; nothing where there is none.
pub(super) fn add_to_rows(rows: &mut [f32], bias: &[f32]) {
    if bias.is_empty() {
        return;
    }
    rows.par_chunks_exact_mut(bias.len()).with_min_len(VALUES_PER_TASK.div_ceil(bias.len())).for_each(|row| {
        row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
    });
}

/// Adds the sum of all rows to `sum`, which is as wide as one; nothing where it is empty.
pub(super) fn sum_rows(sum: &mut [f32], rows: &[f32]) {
    if sum.is_empty() {
        return;
    }
    let width = sum.len();
    let blocks: Vec<Vec<f32>> = rows
        .par_chunks(ROWS_PER_SUM * width)
        .map(|rows| {
            let mut sum = vec![0f32; width];
            for row in rows.chunks_exact(width) {
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            sum
        })
        .collect();
    for block in blocks {
        sum.iter_mut().zip(block).for_each(|(sum, value)| *sum += value);
    }
}

/// SwiGLU: `silu(gate) * up`, where a row of `gate_up` holds the gates and then as many ups.
pub(super) fn swiglu(y: &mut [f32], gate_up: &[f32], width: usize) {
    y.par_chunks_mut(width).zip(gate_up.par_chunks(2 * width)).with_min_len(VALUES_PER_TASK.div_ceil(2 * width)).for_each(
        |(y, gate_up)| {
            let (gate, up) = gate_up.split_at(width);
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = gate / (1.0 + exp(-gate)) * up;
            }
        },
    );
}

/// Backward of [`swiglu`]: replaces `gate_up` by its gradient, given the gradient `dy` of its output.
pub(super) fn swiglu_backward(gate_up: &mut [f32], dy: &[f32], width: usize) {
    gate_up.par_chunks_mut(2 * width).zip(dy.par_chunks(width)).with_min_len(VALUES_PER_TASK.div_ceil(2 * width)).for_each(
        |(gate_up, dy)| {
            let (gate, up) = gate_up.split_at_mut(width);
            for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
                let sigmoid = 1.0 / (1.0 + exp(-*gate));
                let silu = *gate * sigmoid;
                let slope = sigmoid + silu * (1.0 - sigmoid);
                (*gate, *up) = (dy * *up * slope, dy * silu);
            }
        },
    );
}

/// Cosines and sines of the rotary angles by position, as wide as half a head.
#[derive(Default)]
pub(super) struct Rotary {
    half: usize,
    positions: usize,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Rotary {
    /// Makes room for positions below `positions`.
    pub(super) fn reach(&mut self, frequencies: &[f64], positions: usize) {
        self.half = frequencies.len();
        for position in self.positions..positions {
            let angles = frequencies.iter().map(|frequency| frequency * position as f64);
            self.cosines.extend(angles.clone().map(|angle| angle.cos() as f32));
            self.sines.extend(angles.map(|angle| angle.sin() as f32));
        }
        self.positions = self.positions.max(positions);
    }

    /// Turns a head's vector as it stands at `position`; `sign` is 1, or -1 to turn it back. Dimension `i` pairs with
    /// dimension `i + half`, as Hugging Face's Llama has it.
    #[inline(always)]
    pub(super) fn turn(&self, to: &mut [f32], from: &[f32], position: usize, sign: f32) {
        let at = position * self.half..(position + 1) * self.half;
        let angles = self.cosines[at.clone()].iter().zip(&self.sines[at]);
        let (to_low, to_high) = to.split_at_mut(self.half);
        let (low, high) = from.split_at(self.half);
        let pairs = to_low.iter_mut().zip(to_high).zip(low.iter().zip(high));
        for (((to_low, to_high), (low, high)), (cosine, sine)) in pairs.zip(angles) {
            *to_low = low * cosine - sign * (high * sine);
            *to_high = high * cosine + sign * (low * sine);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_exact_to_two_units() {
        for i in -8600..8700 {
            let x = i as f32 / 100.0;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) / expected - 1.0).abs() < 2.5e-7, "{x}");
        }
        assert!(exp(-1000.0) < 2e-38 && exp(f32::NEG_INFINITY) < 2e-38);
        assert!(exp(f32::NAN).is_nan() && exp(200.0).is_finite());
    }

    #[test]
    fn cross_entropy_is_softmax_minus_one_at_the_target() {
        let logits: Vec<f32> = (0..37).map(|i| ((i * 7) % 11) as f32 - 3.0).collect();
        let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let mut gradient = logits.clone();
        let log_probability = cross_entropy(&mut gradient, 5, 0.5);
        assert!((f64::from(log_probability) - (f64::from(logits[5]) - sum.ln())).abs() < 1e-5);
        for (i, (gradient, logit)) in gradient.iter().zip(&logits).enumerate() {
            let expected = 0.5 * (f64::from(*logit).exp() / sum - f64::from(u8::from(i == 5)));
            assert!((f64::from(*gradient) - expected).abs() < 1e-6);
        }
        assert!((super::log_probability(&mut logits.clone(), 5) - log_probability).abs() < 1e-6);
    }

    #[test]
    fn turning_back_gives_what_was_turned() {
        let mut rotary = Rotary::default();
        rotary.reach(&[1.0, 0.1], 3);
        rotary.reach(&[1.0, 0.1], 9);
        let (vector, mut turned, mut back) = ([1f32, -2.0, 0.5, 3.0], [0f32; 4], [0f32; 4]);
        rotary.turn(&mut turned, &vector, 7, 1.0);
        let (sine, cosine) = 7f32.sin_cos();
        assert!((turned[0] - (cosine - 0.5 * sine)).abs() < 1e-5 && (turned[2] - (0.5 * cosine + sine)).abs() < 1e-5);
        rotary.turn(&mut back, &turned, 7, -1.0);
        assert!(vector.iter().zip(back).all(|(v, b)| (v - b).abs() < 1e-5));
        rotary.turn(&mut turned, &vector, 0, 1.0);
        assert_eq!(turned, vector);
    }
}

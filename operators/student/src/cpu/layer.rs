//! One layer, forward and backward, over tokens without padding.

use rayon::prelude::*;

use super::Shape;
use super::attention::{self, Sizes};
use super::kernels::{
    Rotary, add_to_rows, norm, norm_backward, normalised, normalised_backward, sum_rows, swiglu, swiglu_backward,
};
use super::matrix::{Matrix, parallel_product};
use crate::pack::Span;

/// Tokens whose share of a head norm's weight gradient is summed by one task.
const TOKENS_PER_SUM: usize = 64;

/// A layer's weights, or their gradients, in the order of [`crate::Architecture::tensors`]: the projections that read the
/// same input lie side by side, so that one product computes them. What a model doesn't have is empty.
pub(super) struct Parts<T> {
    pub(super) attention_norm: T,
    /// `[(heads + 2 * key_value_heads) * head_dim, hidden]`.
    pub(super) query_key_value: T,
    pub(super) query_key_value_bias: T,
    pub(super) query_norm: T,
    pub(super) key_norm: T,
    /// `[hidden, heads * head_dim]`.
    pub(super) output: T,
    pub(super) output_bias: T,
    pub(super) feed_forward_norm: T,
    /// `[2 * feed_forward, hidden]`.
    pub(super) gate_up: T,
    /// `[hidden, feed_forward]`.
    pub(super) down: T,
}

impl<T> Parts<T> {
    fn of(parts: [T; 10]) -> Self {
        let [
            attention_norm,
            query_key_value,
            query_key_value_bias,
            query_norm,
            key_norm,
            output,
            output_bias,
            feed_forward_norm,
            gate_up,
            down,
        ] = parts;
        Self {
            attention_norm,
            query_key_value,
            query_key_value_bias,
            query_norm,
            key_norm,
            output,
            output_bias,
            feed_forward_norm,
            gate_up,
            down,
        }
    }
}

impl Shape {
    fn part_sizes(&self) -> [usize; 10] {
        let (hidden, feed_forward, wide) = (self.hidden, self.feed_forward, self.query_key_value());
        let bias = |size: usize| if self.bias { size } else { 0 };
        let head_norm = if self.head_norms { self.head } else { 0 };
        [
            hidden,
            wide * hidden,
            bias(wide),
            head_norm,
            head_norm,
            hidden * self.query(),
            bias(hidden),
            hidden,
            2 * feed_forward * hidden,
            hidden * feed_forward,
        ]
    }

    /// The number of weights in a layer.
    pub(super) fn layer_size(&self) -> usize {
        self.part_sizes().iter().sum()
    }

    /// A layer's parts of its run of weights.
    pub(super) fn parts<'a>(&self, weights: &'a [f32]) -> Parts<&'a [f32]> {
        let mut rest = weights;
        let mut next = |size: usize| {
            let (part, after) = rest.split_at(size);
            rest = after;
            part
        };
        Parts::of(self.part_sizes().map(&mut next))
    }

    /// As [`Shape::parts`], to be written.
    pub(super) fn parts_mut<'a>(&self, weights: &'a mut [f32]) -> Parts<&'a mut [f32]> {
        let mut rest = weights;
        let mut next = |size: usize| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(size);
            rest = after;
            part
        };
        Parts::of(self.part_sizes().map(&mut next))
    }
}

/// What the backward pass needs of a layer's forward pass.
#[derive(Default)]
pub(super) struct Saved {
    input: Vec<f32>,
    inverse1: Vec<f32>,
    normed1: Vec<f32>,
    /// `[tokens, (heads + 2 * key_value_heads) * head]` before norms and positions, where heads are normalised.
    rows: Vec<f32>,
    query: Vec<f32>,
    /// `[key_value_heads, tokens, head]`, turned to the tokens' positions.
    pub(super) key: Vec<f32>,
    /// As the keys.
    pub(super) value: Vec<f32>,
    attended: Vec<f32>,
    middle: Vec<f32>,
    inverse2: Vec<f32>,
    normed2: Vec<f32>,
    gate_up: Vec<f32>,
    gated: Vec<f32>,
}

/// Room for what no pass keeps.
#[derive(Default)]
pub(super) struct Scratch {
    wide: Vec<f32>,
    heads: Vec<f32>,
    narrow: Vec<f32>,
    gated: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
}

/// The first `length` values of a buffer that only grows.
pub(super) fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}

fn copied<'a>(buffer: &'a mut Vec<f32>, values: &[f32]) -> &'a mut [f32] {
    let buffer = sized(buffer, values.len());
    buffer.copy_from_slice(values);
    buffer
}

/// The tokens of a pass: where each document lies, and each token's position in its own.
pub(super) struct Tokens<'a> {
    pub(super) spans: &'a [Span],
    pub(super) positions: &'a [usize],
    pub(super) rotary: &'a Rotary,
}

impl Shape {
    fn attention_sizes(&self, tokens: usize) -> Sizes {
        Sizes { tokens, group: self.heads / self.key_value_heads, width: self.head }
    }

    /// Copies heads `from..` of each token's row to `[heads, tokens, width]`: through the norm, if there is one, and turned to
    /// their positions, if asked.
    fn split_heads(&self, to: &mut [f32], rows: &[f32], from: usize, tokens: &Tokens<'_>, weight: &[f32], turn: bool) {
        let (width, stride) = (self.head, self.query_key_value());
        to.par_chunks_mut(tokens.positions.len() * width).enumerate().for_each(|(head, to)| {
            let at = (from + head) * width;
            let mut through = vec![0.0; weight.len()];
            for ((to, row), position) in to.chunks_exact_mut(width).zip(rows.chunks_exact(stride)).zip(tokens.positions) {
                let mut row = &row[at..at + width];
                if !weight.is_empty() {
                    normalised(&mut through, row, weight, self.epsilon);
                    row = &through;
                }
                if turn {
                    tokens.rotary.turn(to, row, *position, 1.0);
                } else {
                    to.copy_from_slice(row);
                }
            }
        });
    }

    /// Layer forward: `x`, `[tokens, hidden]`, becomes the layer's output.
    pub(super) fn forward(
        &self,
        x: &mut [f32],
        weights: &Parts<&[f32]>,
        tokens: &Tokens<'_>,
        saved: &mut Saved,
        scratch: &mut Scratch,
    ) {
        let count = tokens.positions.len();
        let (hidden, wide, feed_forward) = (self.hidden, self.query_key_value(), self.feed_forward);
        let weight = |values, rows, columns| Matrix::new(values, rows, columns).transposed();

        let input = copied(&mut saved.input, x);
        let (normed, inverse) = (sized(&mut saved.normed1, count * hidden), sized(&mut saved.inverse1, count));
        norm(normed, inverse, input, weights.attention_norm, self.epsilon);
        let rows = sized(&mut scratch.wide, count * wide);
        parallel_product(rows, Matrix::new(normed, count, hidden), weight(weights.query_key_value, wide, hidden), false);
        add_to_rows(rows, weights.query_key_value_bias);
        if self.head_norms {
            copied(&mut saved.rows, rows);
        }
        let query = sized(&mut saved.query, count * self.query());
        let key = sized(&mut saved.key, count * self.key_value());
        let value = sized(&mut saved.value, count * self.key_value());
        self.split_heads(query, rows, 0, tokens, weights.query_norm, true);
        self.split_heads(key, rows, self.heads, tokens, weights.key_norm, true);
        self.split_heads(value, rows, self.heads + self.key_value_heads, tokens, &[], false);
        let out = sized(&mut scratch.heads, count * self.query());
        attention::forward(out, query, key, value, tokens.spans, self.attention_sizes(count));
        let attended = sized(&mut saved.attended, count * self.query());
        let (head, heads) = (self.head, self.heads);
        for (token, row) in attended.chunks_exact_mut(heads * head).enumerate() {
            for (h, row) in row.chunks_exact_mut(head).enumerate() {
                let at = (h * count + token) * head;
                row.copy_from_slice(&out[at..at + head]);
            }
        }
        let middle = copied(&mut saved.middle, x);
        parallel_product(middle, Matrix::new(attended, count, self.query()), weight(weights.output, hidden, self.query()), true);
        add_to_rows(middle, weights.output_bias);

        let (normed, inverse) = (sized(&mut saved.normed2, count * hidden), sized(&mut saved.inverse2, count));
        norm(normed, inverse, middle, weights.feed_forward_norm, self.epsilon);
        let gate_up = sized(&mut saved.gate_up, count * 2 * feed_forward);
        parallel_product(gate_up, Matrix::new(normed, count, hidden), weight(weights.gate_up, 2 * feed_forward, hidden), false);
        let gated = sized(&mut saved.gated, count * feed_forward);
        swiglu(gated, gate_up, feed_forward);
        x.copy_from_slice(middle);
        parallel_product(x, Matrix::new(gated, count, feed_forward), weight(weights.down, hidden, feed_forward), true);
    }

    /// Layer backward: `dx`, the gradient of the layer's output, becomes that of its input; the weights' gradients are
    /// added to `gradients`. What [`Shape::forward`] saved is used up.
    pub(super) fn backward(
        &self,
        dx: &mut [f32],
        weights: &Parts<&[f32]>,
        gradients: &mut Parts<&mut [f32]>,
        tokens: &Tokens<'_>,
        saved: &mut Saved,
        scratch: &mut Scratch,
    ) {
        let count = tokens.positions.len();
        let (hidden, wide, feed_forward) = (self.hidden, self.query_key_value(), self.feed_forward);

        let slope = Matrix::new(dx, count, hidden);
        let dgated = sized(&mut scratch.gated, count * feed_forward);
        parallel_product(dgated, slope, Matrix::new(weights.down, hidden, feed_forward), false);
        parallel_product(gradients.down, slope.transposed(), Matrix::new(&saved.gated, count, feed_forward), true);
        let gate_up = &mut saved.gate_up[..count * 2 * feed_forward];
        swiglu_backward(gate_up, dgated, feed_forward);
        let slope = Matrix::new(gate_up, count, 2 * feed_forward);
        let dnormed = sized(&mut scratch.narrow, count * hidden);
        parallel_product(dnormed, slope, Matrix::new(weights.gate_up, 2 * feed_forward, hidden), false);
        parallel_product(gradients.gate_up, slope.transposed(), Matrix::new(&saved.normed2, count, hidden), true);
        norm_backward(
            dx,
            gradients.feed_forward_norm,
            dnormed,
            &saved.middle[..count * hidden],
            &saved.inverse2[..count],
            weights.feed_forward_norm,
        );

        let slope = Matrix::new(dx, count, hidden);
        let rows = sized(&mut scratch.wide, count * wide.max(self.query()));
        let dattended = &mut rows[..count * self.query()];
        parallel_product(dattended, slope, Matrix::new(weights.output, hidden, self.query()), false);
        parallel_product(gradients.output, slope.transposed(), Matrix::new(&saved.attended, count, self.query()), true);
        sum_rows(gradients.output_bias, dx);
        let (head, heads) = (self.head, self.heads);
        let dout = sized(&mut scratch.heads, count * self.query());
        for (h, dout) in dout.chunks_exact_mut(count * head).enumerate() {
            for (row, dout) in dattended.chunks_exact(heads * head).zip(dout.chunks_exact_mut(head)) {
                dout.copy_from_slice(&row[h * head..(h + 1) * head]);
            }
        }
        let dquery = sized(&mut scratch.query, count * self.query());
        let dkey = sized(&mut scratch.key, count * self.key_value());
        let dvalue = sized(&mut scratch.value, count * self.key_value());
        attention::backward(
            [dquery, dkey, dvalue],
            dout,
            [&saved.query, &saved.key, &saved.value],
            tokens.spans,
            self.attention_sizes(count),
        );
        let rows = &mut rows[..count * wide];
        let (queries, keys) = (heads, self.key_value_heads);
        rows.par_chunks_mut(wide).enumerate().with_min_len(32).for_each(|(token, row)| {
            let position = tokens.positions[token];
            for (h, row) in row.chunks_exact_mut(head).enumerate() {
                let (from, h, turned) = if h < queries {
                    (&*dquery, h, true)
                } else if h < queries + keys {
                    (&*dkey, h - queries, true)
                } else {
                    (&*dvalue, h - queries - keys, false)
                };
                let at = (h * count + token) * head;
                if turned {
                    tokens.rotary.turn(row, &from[at..at + head], position, -1.0);
                } else {
                    row.copy_from_slice(&from[at..at + head]);
                }
            }
        });
        if self.head_norms {
            let norms = [weights.query_norm, weights.key_norm];
            let [query, key] = self.head_norms_backward(rows, &saved.rows[..count * wide], norms);
            sum_rows(gradients.query_norm, &query);
            sum_rows(gradients.key_norm, &key);
        }
        sum_rows(gradients.query_key_value_bias, rows);
        let slope = Matrix::new(rows, count, wide);
        parallel_product(dnormed, slope, Matrix::new(weights.query_key_value, wide, hidden), false);
        parallel_product(gradients.query_key_value, slope.transposed(), Matrix::new(&saved.normed1, count, hidden), true);
        norm_backward(
            dx,
            gradients.attention_norm,
            dnormed,
            &saved.input[..count * hidden],
            &saved.inverse1[..count],
            weights.attention_norm,
        );
    }
    /// Takes the gradients of normalised queries and keys in `drows` back to those of `rows`, before their norms. Gives the
    /// gradients of the two norms' weights as sums over some tokens each, a row a sum.
    fn head_norms_backward(&self, drows: &mut [f32], rows: &[f32], norms: [&[f32]; 2]) -> [Vec<f32>; 2] {
        let (wide, head, epsilon) = (self.query_key_value(), self.head, self.epsilon);
        let block = TOKENS_PER_SUM * wide;
        let sums: Vec<[Vec<f32>; 2]> = drows
            .par_chunks_mut(block)
            .zip(rows.par_chunks(block))
            .map(|(drows, rows)| {
                let mut sums = [vec![0.0; head], vec![0.0; head]];
                for (drow, row) in drows.chunks_exact_mut(wide).zip(rows.chunks_exact(wide)) {
                    let heads = drow.chunks_exact_mut(head).zip(row.chunks_exact(head));
                    for (number, (drow, row)) in heads.enumerate().take(self.heads + self.key_value_heads) {
                        let which = usize::from(number >= self.heads);
                        normalised_backward(drow, &mut sums[which], row, norms[which], epsilon);
                    }
                }
                sums
            })
            .collect();
        let [mut query, mut key] = [Vec::new(), Vec::new()];
        for [first, second] in sums {
            query.extend(first);
            key.extend(second);
        }
        [query, key]
    }
}

//! Causal attention within each span. Nothing is computed across documents, and the probabilities are computed again in
//! the backward pass instead of kept, so memory grows with the longest span, not with the batch.

use rayon::prelude::*;

use super::kernels::exponentials;
use super::matrix::{Matrix, product};
use crate::pack::Span;

/// Sizes of an attention layer. Queries lie as `[heads, tokens, width]`, keys and values as
/// `[key_value_heads, tokens, width]`; query head `h` uses key and value head `h / group`.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) tokens: usize,
    pub(super) group: usize,
    pub(super) width: usize,
}

impl Sizes {
    fn scale(&self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }

    /// A head's rows of one span.
    fn rows<'a>(&self, values: &'a [f32], head: usize, span: &Span) -> Matrix<'a> {
        let start = (head * self.tokens + span.start) * self.width;
        Matrix::new(&values[start..start + span.len * self.width], span.len, self.width)
    }

    /// Cuts `[heads, tokens, width]` into the rows of each span, head by head.
    fn cut<'a>(&self, values: &'a mut [f32], spans: &[Span]) -> Vec<&'a mut [f32]> {
        let mut cut = Vec::with_capacity(values.len() / (self.tokens * self.width).max(1) * spans.len());
        for mut head in values.chunks_exact_mut(self.tokens * self.width) {
            for span in spans {
                let (rows, rest) = head.split_at_mut(span.len * self.width);
                cut.push(rows);
                head = rest;
            }
        }
        cut
    }
}

fn reserve(buffer: &mut Vec<f32>, length: usize) {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
}

/// Causal softmax of the scaled products of queries and keys: row `i` has `i + 1` probabilities, then zeros.
fn probabilities(scores: &mut [f32], query: Matrix<'_>, key: Matrix<'_>, length: usize, scale: f32) {
    product(scores, query, key.transposed(), scale, false);
    for (i, row) in scores[..length * length].chunks_exact_mut(length).enumerate() {
        let (seen, hidden) = row.split_at_mut(i + 1);
        let (_, sum) = exponentials(seen);
        let inverse = 1.0 / sum;
        seen.iter_mut().for_each(|value| *value *= inverse);
        hidden.fill(0.0);
    }
}

/// Attention of every query head: `out` lies as the queries do.
pub(super) fn forward(out: &mut [f32], query: &[f32], key: &[f32], value: &[f32], spans: &[Span], sizes: Sizes) {
    sizes.cut(out, spans).into_par_iter().enumerate().for_each_init(Vec::new, |scores, (task, out)| {
        let (head, span) = (task / spans.len(), &spans[task % spans.len()]);
        let shared = head / sizes.group;
        reserve(scores, span.len * span.len);
        let queries = sizes.rows(query, head, span);
        probabilities(scores, queries, sizes.rows(key, shared, span), span.len, sizes.scale());
        product(out, Matrix::new(scores, span.len, span.len), sizes.rows(value, shared, span), 1.0, false);
    });
}

/// Gradients of queries, keys and values, all written, given the gradient `dout` of the output.
pub(super) fn backward(
    [dquery, dkey, dvalue]: [&mut [f32]; 3],
    dout: &[f32],
    [query, key, value]: [&[f32]; 3],
    spans: &[Span],
    sizes: Sizes,
) {
    // One task per key head and span: it alone adds up what the query heads of the group give to their shared head.
    let count = spans.len();
    let mut queries: Vec<Option<&mut [f32]>> = sizes.cut(dquery, spans).into_iter().map(Some).collect();
    let tasks: Vec<_> = sizes
        .cut(dkey, spans)
        .into_iter()
        .zip(sizes.cut(dvalue, spans))
        .enumerate()
        .map(|(task, (dkey, dvalue))| {
            let (shared, span) = (task / count, task % count);
            let heads = shared * sizes.group..(shared + 1) * sizes.group;
            let dqueries: Vec<_> = heads.filter_map(|head| Some((head, queries[head * count + span].take()?))).collect();
            (shared, &spans[span], dqueries, dkey, dvalue)
        })
        .collect();
    tasks.into_par_iter().for_each_init(
        || (Vec::new(), Vec::new()),
        |(scores, slopes), (shared, span, dqueries, dkey, dvalue)| {
            let length = span.len;
            reserve(scores, length * length);
            reserve(slopes, length * length);
            let (keys, values) = (sizes.rows(key, shared, span), sizes.rows(value, shared, span));
            for (i, (head, dquery)) in dqueries.into_iter().enumerate() {
                let (queries, dout) = (sizes.rows(query, head, span), sizes.rows(dout, head, span));
                probabilities(scores, queries, keys, length, sizes.scale());
                product(dvalue, Matrix::new(scores, length, length).transposed(), dout, 1.0, i > 0);
                product(slopes, dout, values.transposed(), 1.0, false);
                for (row, (slopes, scores)) in
                    slopes.chunks_exact_mut(length).zip(scores.chunks_exact(length)).take(length).enumerate()
                {
                    let (seen, hidden) = slopes.split_at_mut(row + 1);
                    let mean: f32 = seen.iter().zip(scores).map(|(slope, score)| slope * score).sum();
                    for (slope, score) in seen.iter_mut().zip(scores) {
                        *slope = score * (*slope - mean);
                    }
                    hidden.fill(0.0);
                }
                let slopes = Matrix::new(slopes, length, length);
                product(dquery, slopes, keys, sizes.scale(), false);
                product(dkey, slopes.transposed(), queries, sizes.scale(), i > 0);
            }
        },
    );
}

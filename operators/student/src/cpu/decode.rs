//! Going on with texts token by token. Keys and values of what was read stay, so a token costs the same however long the
//! text before it is, but for its attention.

use rayon::prelude::*;

use super::kernels::{add_to_rows, dot, exponentials, norm, normalised, swiglu};
use super::matrix::{Matrix, thin_product};
use super::{Model, passes};
use crate::pack::Batch;

/// A text that was read.
pub(super) struct Text {
    /// Its tokens.
    length: usize,
    /// `[length, head]` for each layer and key and value head.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl Model {
    /// Reads the batch's spans as texts; gives the logits after each.
    pub(super) fn read_texts(&mut self, batch: &Batch) -> Vec<f32> {
        let (heads, width) = (self.shape.key_value_heads, self.shape.head);
        self.texts.clear();
        let mut all = Vec::with_capacity(batch.spans.len() * self.shape.vocabulary);
        for (range, spans) in passes(batch) {
            let count = range.len();
            self.forward(&batch.ids[range], &spans, true);
            for span in &spans {
                let cut = |values: &[f32], head: usize| {
                    let at = (head * count + span.start) * width;
                    values[at..at + span.len * width].to_vec()
                };
                let layers = || self.saved.iter().flat_map(|saved| (0..heads).map(move |head| (saved, head)));
                self.texts.push(Text {
                    length: span.len,
                    keys: layers().map(|(saved, head)| cut(&saved.key, head)).collect(),
                    values: layers().map(|(saved, head)| cut(&saved.value, head)).collect(),
                });
            }
            let rows: Vec<usize> = spans.iter().map(|span| span.start + span.len - 1).collect();
            self.head(&rows, false, &mut |logits, _| all.extend_from_slice(logits));
        }
        all
    }

    /// Makes each kept text longer by a token; gives the logits after each.
    pub(super) fn longer_by(&mut self, kept: &[usize], ids: &[u32]) -> Vec<f32> {
        let mut place = 0;
        self.texts.retain(|_| {
            place += 1;
            kept.binary_search(&(place - 1)).is_ok()
        });
        let (shape, count) = (self.shape, ids.len());
        let (hidden, wide, feed_forward) = (shape.hidden, shape.query_key_value(), shape.feed_forward);
        let longest = self.texts.iter().map(|text| text.length).max().unwrap_or(0);
        self.rotary.reach(&self.frequencies, longest + 1);
        let mut x = vec![0.0; count * hidden];
        for (row, id) in x.chunks_exact_mut(hidden).zip(ids) {
            let at = *id as usize * hidden;
            row.copy_from_slice(&self.weights[at..at + hidden]);
        }
        let mut normed = vec![0.0; count * hidden];
        let mut inverse = vec![0.0; count];
        let mut rows = vec![0.0; count * wide];
        let mut attended = vec![0.0; count * shape.query()];
        let mut gate_up = vec![0.0; count * 2 * feed_forward];
        let mut gated = vec![0.0; count * feed_forward];
        let (start, size) = (shape.vocabulary * hidden, shape.layer_size());
        for layer in 0..shape.layers {
            let weights = shape.parts(&self.weights[start + layer * size..][..size]);
            norm(&mut normed, &mut inverse, &x, weights.attention_norm, shape.epsilon);
            let lhs = Matrix::new(&normed, count, hidden);
            thin_product(&mut rows, lhs, Matrix::new(weights.query_key_value, wide, hidden), false);
            add_to_rows(&mut rows, weights.query_key_value_bias);
            let rotary = &self.rotary;
            let texts = self.texts.par_iter_mut().zip(rows.par_chunks_exact(wide));
            texts.zip(attended.par_chunks_exact_mut(shape.query())).for_each_init(
                || (vec![0.0; shape.head], vec![0.0; shape.head], Vec::new()),
                |(through, turned, scores), ((text, row), attended)| {
                    let head_of = |number: usize| &row[number * shape.head..(number + 1) * shape.head];
                    let mut turn = |turned: &mut [f32], number: usize, weight: &[f32]| {
                        if weight.is_empty() {
                            rotary.turn(turned, head_of(number), text.length, 1.0);
                        } else {
                            normalised(through, head_of(number), weight, shape.epsilon);
                            rotary.turn(turned, through, text.length, 1.0);
                        }
                    };
                    for head in 0..shape.key_value_heads {
                        let at = layer * shape.key_value_heads + head;
                        turn(turned, shape.heads + head, weights.key_norm);
                        text.keys[at].extend_from_slice(turned);
                        text.values[at].extend_from_slice(head_of(shape.heads + shape.key_value_heads + head));
                    }
                    let group = shape.heads / shape.key_value_heads;
                    for (head, out) in attended.chunks_exact_mut(shape.head).enumerate() {
                        let at = layer * shape.key_value_heads + head / group;
                        turn(turned, head, weights.query_norm);
                        attend(out, turned, &text.keys[at], &text.values[at], scores);
                    }
                },
            );
            let lhs = Matrix::new(&attended, count, shape.query());
            thin_product(&mut x, lhs, Matrix::new(weights.output, hidden, shape.query()), true);
            add_to_rows(&mut x, weights.output_bias);
            norm(&mut normed, &mut inverse, &x, weights.feed_forward_norm, shape.epsilon);
            let lhs = Matrix::new(&normed, count, hidden);
            thin_product(&mut gate_up, lhs, Matrix::new(weights.gate_up, 2 * feed_forward, hidden), false);
            swiglu(&mut gated, &gate_up, feed_forward);
            let lhs = Matrix::new(&gated, count, feed_forward);
            thin_product(&mut x, lhs, Matrix::new(weights.down, hidden, feed_forward), true);
        }
        for text in &mut self.texts {
            text.length += 1;
        }
        let range = self.final_norm_range();
        norm(&mut normed, &mut inverse, &x, &self.weights[range], shape.epsilon);
        let mut logits = vec![0.0; count * shape.vocabulary];
        let head = Matrix::new(&self.weights[self.head_range()], shape.vocabulary, hidden);
        thin_product(&mut logits, Matrix::new(&normed, count, hidden), head, false);
        logits
    }
}

/// Attention of one query over keys and values, `[length, head]` each.
fn attend(out: &mut [f32], query: &[f32], keys: &[f32], values: &[f32], scores: &mut Vec<f32>) {
    let scale = 1.0 / (query.len() as f32).sqrt();
    scores.clear();
    scores.extend(keys.chunks_exact(query.len()).map(|key| dot(query, key) * scale));
    let (_, sum) = exponentials(scores);
    out.fill(0.0);
    for (score, value) in scores.iter().zip(values.chunks_exact(query.len())) {
        let share = score / sum;
        for (out, value) in out.iter_mut().zip(value) {
            *out += share * value;
        }
    }
}

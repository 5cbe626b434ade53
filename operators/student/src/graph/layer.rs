//! The layers' function, of tensors alone: with tracked ones it makes a graph, with others none.

use burn::Dispatch;
use burn::tensor::activation::{sigmoid, softmax};
use burn::tensor::{Bool, DType, FloatDType, Tensor};

use super::Float;
use super::inputs::Positions;
use crate::architecture::Architecture;

/// Hides a score: far below any score, and finite, so that no difference of two hidden ones is NaN.
const HIDDEN: f32 = -1e30;

/// Sizes and constants of the layers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) heads: usize,
    pub(super) key_value_heads: usize,
    pub(super) head: usize,
    bias: bool,
    head_norms: bool,
    pub(super) epsilon: f64,
    /// What `B * A` of an adapter is multiplied by.
    pub(super) scale: f64,
}

impl Shape {
    pub(super) fn new(architecture: &Architecture) -> Self {
        Self {
            heads: architecture.num_attention_heads,
            key_value_heads: architecture.key_value_heads(),
            head: architecture.head_dim(),
            bias: architecture.attention_bias,
            head_norms: architecture.normalises_heads(),
            epsilon: architecture.rms_norm_eps,
            scale: 1.0,
        }
    }
}

/// A layer's tensors in the order of [`Architecture::tensors`], and the pairs of an adapter in the order of
/// [`crate::checkpoint::Projection::ALL`], or none. Vectors are kept as one row.
pub(super) struct LayerTensors {
    pub(super) weights: Vec<Float<2>>,
    pub(super) adapter: Vec<[Float<2>; 2]>,
}

/// A projection: its weight, `[out, in]`, its bias, and what an adapter adds to it.
struct Linear {
    weight: Float<2>,
    bias: Option<Float<2>>,
    adapter: Option<[Float<2>; 2]>,
    scale: f64,
}

impl Linear {
    /// `[tokens, in]` to `[tokens, out]`.
    fn of(self, x: Float<2>) -> Float<2> {
        let mut y = linear(x.clone(), self.weight);
        if let Some(bias) = self.bias {
            y = y + bias;
        }
        if let Some([a, b]) = self.adapter {
            y = y + linear(linear(x, a), b).mul_scalar(self.scale);
        }
        y
    }
}

/// What a layer computes with: keys and values of a text before this one may stand in front of its own.
pub(super) trait Memory {
    /// Takes the new keys and values, `[sequences, key_value_heads, length, head]`, and gives all that may be looked at.
    fn with(&mut self, key: Float<4>, value: Float<4>) -> (Float<4>, Float<4>);
}

/// No memory: a text is whole.
pub(super) struct Whole;

impl Memory for Whole {
    fn with(&mut self, key: Float<4>, value: Float<4>) -> (Float<4>, Float<4>) {
        (key, value)
    }
}

/// A layer: `x`, `[tokens, hidden]`, to the same shape, where tokens are `positions`' sequences times their length.
pub(super) fn layer(
    shape: Shape,
    tensors: LayerTensors,
    x: Float<2>,
    positions: &Positions,
    memory: &mut dyn Memory,
) -> Float<2> {
    let (mut weights, mut adapter) = (tensors.weights.into_iter(), tensors.adapter.into_iter());
    // Both yield as many as the architecture has.
    let mut weight = || weights.next().expect("a layer has the tensors of its architecture");
    let attention_norm = weight();
    let projections = [weight(), weight(), weight()];
    let mut biases: [Option<Float<2>>; 3] = if shape.bias { [0; 3].map(|_| Some(weight())) } else { [None, None, None] };
    let head_norms = if shape.head_norms { Some([weight(), weight()]) } else { None };
    let output = weight();
    let output_bias = shape.bias.then(&mut weight);
    let feed_forward_norm = weight();
    let [gate, up, down] = [weight(), weight(), weight()];
    let mut number = 0;
    let [query, key, value] = projections.map(|weight| {
        number += 1;
        Linear { weight, bias: biases[number - 1].take(), adapter: adapter.next(), scale: shape.scale }
    });
    let mut plain = |weight, bias| Linear { weight, bias, adapter: adapter.next(), scale: shape.scale };
    let output = plain(output, output_bias);
    let [gate, up, down] = [gate, up, down].map(|weight| plain(weight, None));

    let normed = norm(x.clone(), attention_norm, shape.epsilon);
    let attended = attention(shape, normed, [query, key, value], head_norms, positions, memory);
    let x = x + output.of(attended);
    let normed = norm(x.clone(), feed_forward_norm, shape.epsilon);
    let gate = gate.of(normed.clone());
    x + down.of(gate.clone() * sigmoid(gate) * up.of(normed))
}

/// RMSNorm over the last dimension, inside in 32 bits, as transformers has it.
pub(super) fn norm<const D: usize>(x: Float<D>, weight: Float<2>, epsilon: f64) -> Float<D> {
    let dtype = x.dtype();
    let x = cast(x, DType::F32);
    let inverse = x.clone().square().mean_dim(D - 1).add_scalar(epsilon).sqrt().recip();
    cast(x * inverse, dtype) * weight.unsqueeze()
}

/// `x * weight^T`, the weight as `[out, in]`.
pub(super) fn linear(x: Float<2>, weight: Float<2>) -> Float<2> {
    x.matmul(weight.transpose())
}

pub(super) fn cast<const D: usize>(x: Float<D>, dtype: DType) -> Float<D> {
    match dtype {
        _ if x.dtype() == dtype => x,
        DType::BF16 => x.cast(FloatDType::BF16),
        _ => x.cast(FloatDType::F32),
    }
}

/// `[tokens, hidden]` to `[tokens, heads * head]`.
fn attention(
    shape: Shape,
    x: Float<2>,
    [query, key, value]: [Linear; 3],
    head_norms: Option<[Float<2>; 2]>,
    positions: &Positions,
    memory: &mut dyn Memory,
) -> Float<2> {
    let [sequences, length, _, _] = positions.cosines.dims();
    let (heads, shared, width) = (shape.heads, shape.key_value_heads, shape.head);
    let group = heads / shared;
    let split = |projection: Linear, heads| projection.of(x.clone()).reshape([sequences, length, heads, width]);
    let (mut query, mut key) = (split(query, heads), split(key, shared));
    if let Some([query_norm, key_norm]) = head_norms {
        query = norm(query, query_norm, shape.epsilon);
        key = norm(key, key_norm, shape.epsilon);
    }
    let query = turn(query, positions).swap_dims(1, 2);
    let key = turn(key, positions).swap_dims(1, 2);
    let value = split(value, shared).swap_dims(1, 2);
    let (key, value) = memory.with(key, value);
    let keys = key.dims()[2];
    // The query heads of a group lie one after the other, so keys and values need no copies for them.
    let query = query.reshape([sequences, shared, group * length, width]);
    let scores = query.matmul(key.swap_dims(2, 3)).reshape([sequences, heads, length, keys]);
    let dtype = scores.dtype();
    let scores = cast(scores, DType::F32).mul_scalar(1.0 / (width as f64).sqrt());
    let hidden: Tensor<Dispatch, 4, Bool> = positions.hidden.clone().expand([sequences, heads, length, keys]);
    let probabilities = cast(softmax(scores.mask_fill(hidden, HIDDEN), 3), dtype);
    let attended = probabilities.reshape([sequences, shared, group * length, keys]).matmul(value);
    let attended = attended.reshape([sequences, heads, length, width]).swap_dims(1, 2);
    attended.reshape([sequences * length, heads * width])
}

/// Rotary positions: dimension `i` pairs with `i + head / 2`, as Hugging Face's Llama has it.
fn turn(x: Float<4>, positions: &Positions) -> Float<4> {
    let dtype = x.dtype();
    let x = cast(x, DType::F32);
    let half = x.dims()[3] / 2;
    let (low, high) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let (cosines, sines) = (&positions.cosines, &positions.sines);
    let turned_low = low.clone() * cosines.clone() - high.clone() * sines.clone();
    let turned_high = high * cosines.clone() + low * sines.clone();
    cast(Tensor::cat(vec![turned_low, turned_high], 3), dtype)
}

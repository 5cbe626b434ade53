//! Single operations, through burn.

use std::time::Instant;

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Distribution, Tensor, TensorData};
use burn::{Dispatch, DispatchDevice};

use super::clock::timed;
use super::shape::Shape;
use super::{Finding, Rate, on};
use crate::device::Device;

type Float<const D: usize> = Tensor<Dispatch, D>;

/// A product whose result is known: where a driver or a compiler is broken, it is wrong, or ends the process.
///
/// # Errors
/// What is wrong.
pub fn try_out(device: &Device) -> Result<Finding, String> {
    const SIZE: usize = 64;
    let start = Instant::now();
    let tensors = on(device);
    let ramp = |step: usize| -> Vec<f32> { (0..SIZE * SIZE).map(|i| ((i * step) % 17) as f32 - 8.0).collect() };
    let (left, right) = (ramp(3), ramp(5));
    let on_device =
        |values: &[f32]| Float::<2>::from_data(TensorData::new(values.to_vec(), [SIZE, SIZE]), (&tensors, DType::F32));
    let product = on_device(&left).matmul(on_device(&right));
    Dispatch::sync(&tensors).map_err(|error| format!("{error:?}"))?;
    let found: Vec<f32> =
        product.try_into_data().map_err(|error| format!("{error:?}"))?.into_vec().map_err(|error| format!("{error:?}"))?;
    for (place, found) in found.into_iter().enumerate() {
        let (row, column) = (place / SIZE, place % SIZE);
        // Whole numbers so small are exact in any format, and so are their sums.
        let expected: f32 = (0..SIZE).map(|k| left[row * SIZE + k] * right[k * SIZE + column]).sum();
        if found != expected {
            return Err(format!("a product of matrices has {found} where it should have {expected}"));
        }
    }
    Ok(Finding::Right { seconds: start.elapsed().as_secs_f64() })
}

fn random<const D: usize>(shape: [usize; D], device: &DispatchDevice, dtype: DType) -> Float<D> {
    Float::random(shape, Distribution::Normal(0.0, 1.0), (device, DType::F32)).cast(dtype)
}

/// Waits for the device. An error shows when the next result is read, or is none of the clock's business.
fn finish(device: &DispatchDevice) {
    let _ = Dispatch::sync(device);
}

/// The largest product of a layer: a step's tokens times the feed-forward's matrix, which is `[out, in]` as checkpoints have
/// it.
pub(super) fn gemm(device: &DispatchDevice, shape: &Shape, dtype: DType, seconds: f64) -> Rate {
    let (tokens, hidden, feed_forward) = (shape.step_tokens(), shape.hidden, shape.feed_forward);
    let x = random([tokens, hidden], device, dtype);
    let weight = random([feed_forward, hidden], device, dtype);
    let times = timed(seconds, || drop(x.clone().matmul(weight.clone().transpose())), || finish(device));
    let operations = 2.0 * tokens as f64 * hidden as f64 * feed_forward as f64;
    let detail = format!("{tokens} x {hidden} by {hidden} x {feed_forward}");
    Rate::new(shape, "gemm", detail, &times, "TFLOP/s", |time| operations / time / 1e12).of(dtype)
}

/// Attention with every score kept, forward and backward, without projections.
pub(super) fn attention(device: &DispatchDevice, shape: &Shape, dtype: DType, seconds: f64) -> Rate {
    let (batch, length, shared) = (shape.batch, shape.sequence, shape.key_value_heads);
    let (width, group) = (shape.hidden / shape.heads, shape.heads / shape.key_value_heads);
    let query = random([batch, shared, group * length, width], device, dtype);
    let key = random([batch, shared, length, width], device, dtype);
    let value = random([batch, shared, length, width], device, dtype);
    let hidden = Tensor::<Dispatch, 2, burn::tensor::Bool>::tril_mask([length, length], 0, device);
    let hidden = hidden.reshape([1, 1, 1, length, length]).expand([batch, shared, group, length, length]);
    let work = || {
        let tracked = |tensor: &Float<4>| Float::from_inner(tensor.clone()).require_grad();
        let (query, key, value) = (tracked(&query), tracked(&key), tracked(&value));
        let scores = query.clone().matmul(key.clone().swap_dims(2, 3)).mul_scalar(1.0 / (width as f64).sqrt());
        let scores = scores.reshape([batch, shared, group, length, length]).mask_fill(hidden.clone(), -1e30);
        let probabilities = softmax(scores, 4).reshape([batch, shared, group * length, length]);
        let mut gradients = probabilities.matmul(value.clone()).sum().backward();
        for tensor in [query, key, value] {
            drop(tensor.grad_remove(&mut gradients));
        }
    };
    let times = timed(seconds, work, || finish(device));
    let detail = format!("{batch} x {length} tokens, {} heads of {width} on {shared}, forward and backward", shape.heads);
    Rate::new(shape, "attention", detail, &times, "ms", |time| time * 1e3).of(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_multiplies() {
        assert!(matches!(try_out(&Device::Cpu), Ok(Finding::Right { seconds }) if seconds > 0.0));
    }
}

//! The final norm, the head and the loss, over some tokens at a time: logits of a whole batch would be the largest tensor
//! of all.

use burn::Dispatch;
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Tensor};

use super::inputs::Inputs;
use super::layer::{cast, linear, norm};
use super::{Float, Model, add, device_said, read, tracked};
use crate::engine::EngineError;

/// Logits that are computed at a time, 4 bytes each and several times over.
const LOGITS: usize = 1 << 28;

/// What the head gives of a pass.
pub(super) struct Found {
    /// The sum of the losses times the scale, `[1]`.
    pub(super) loss: Tensor<Dispatch, 1>,
    /// The gradient of the last layer's output.
    pub(super) slope: Float<2>,
    /// Those of the final norm and of the head, in 32 bits, where they are trained.
    pub(super) gradients: Option<(Float<2>, Float<2>)>,
}

impl Model {
    /// `[rows, vocabulary]`, in 32 bits, of the last layer's output.
    pub(super) fn logits(&self, x: Float<2>, final_norm: Float<2>, head: Float<2>) -> Float<2> {
        cast(linear(norm(x, final_norm, self.shape.epsilon), head), DType::F32)
    }

    fn rows(&self) -> usize {
        (LOGITS / self.vocabulary).max(64)
    }

    /// The cross-entropy of a pass, each loss times `scale`, and its gradients.
    pub(super) fn head_backward(&self, x: Float<2>, inputs: &Inputs, scale: f64) -> Result<Found, EngineError> {
        let (mut loss, mut slopes, mut norm, mut head) = (None, Vec::new(), None, None);
        let (tokens, all) = (x.dims()[0], self.lora.is_none());
        for start in (0..tokens).step_by(self.rows()) {
            let count = self.rows().min(tokens - start);
            let x = Float::from_inner(x.clone().narrow(0, start, count)).require_grad();
            let final_norm = tracked(self.final_norm.value.clone(), all);
            let weight = tracked(self.head().value.clone(), all);
            let logits = self.logits(x.clone(), final_norm.clone(), weight.clone());
            let picked = log_softmax(logits, 1).gather(1, inputs.targets.clone().narrow(0, start, count));
            let counted = Float::from_inner(inputs.counted.clone().narrow(0, start, count));
            let part = (picked * counted).sum().mul_scalar(-scale);
            let mut gradients = part.backward();
            add(&mut loss, part.inner());
            let mut gradient = |tensor: &Float<2>| {
                tensor.grad_remove(&mut gradients).ok_or_else(|| device_said("burn gave no gradient for the head"))
            };
            slopes.push(gradient(&x)?);
            if all {
                add(&mut norm, cast(gradient(&final_norm)?, DType::F32));
                add(&mut head, cast(gradient(&weight)?, DType::F32));
            }
        }
        let slope = Tensor::cat(slopes, 0);
        let loss = loss.ok_or_else(|| device_said("a batch without tokens"))?;
        Ok(Found { loss, slope, gradients: norm.zip(head) })
    }

    /// Log-probability of each token's target, of the last layer's output, `[tokens]`.
    pub(super) fn picked(&self, x: Float<2>, inputs: &Inputs) -> Result<Vec<f32>, EngineError> {
        let tokens = x.dims()[0];
        let mut found = Vec::with_capacity(tokens);
        for start in (0..tokens).step_by(self.rows()) {
            let count = self.rows().min(tokens - start);
            let x = x.clone().narrow(0, start, count);
            let logits = self.logits(x, self.final_norm.value.clone(), self.head().value.clone());
            found.extend(read(log_softmax(logits, 1).gather(1, inputs.targets.clone().narrow(0, start, count)))?);
        }
        Ok(found)
    }
}

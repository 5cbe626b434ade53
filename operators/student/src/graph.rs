//! The model on burn, with its autodiff: for CUDA devices, and the yardstick for the CPU's own passes.
//!
//! All tensors of a model belong to the thread that made it: burn's memory pools and streams are per thread.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::activation::{log_softmax, sigmoid, softmax};
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use burn::{Dispatch, DispatchDevice};

use crate::architecture::{Architecture, ArchitectureError};
use crate::engine::{Engine, EngineError, Step};
use crate::optimizer::AdamW;
use crate::pack::{Batch, LENGTH_STEP, NO_TARGET, TOKENS_PER_BATCH};
use crate::weights::{HostTensor, Weights};

type Float<const D: usize> = Tensor<Dispatch, D>;

/// Hides a score: far below any score, and finite, so that no difference of two hidden ones is NaN.
const HIDDEN: f32 = -1e30;

/// A tensor of the model. Vectors are kept as one row.
struct Parameter {
    name: String,
    shape: Vec<usize>,
    value: Float<2>,
    mean: Option<Float<2>>,
    square: Option<Float<2>>,
}

/// A model on a device that burn knows.
pub(crate) struct Model {
    architecture: Architecture,
    frequencies: Vec<f64>,
    device: DispatchDevice,
    parameters: Vec<Parameter>,
    updates: usize,
    /// What is being gone on with.
    texts: Vec<Vec<u32>>,
}

/// A batch in dense form: `[sequences, length]`, padded.
struct Inputs {
    sequences: usize,
    length: usize,
    ids: Tensor<Dispatch, 1, Int>,
    targets: Tensor<Dispatch, 2, Int>,
    /// 1 where there is a target, else 0: `[tokens, 1]`.
    counted: Float<2>,
    /// `[sequences, length, 1, head_dim / 2]`.
    cosines: Float<4>,
    sines: Float<4>,
    /// True where a position may not look: `[sequences, 1, length, length]`.
    hidden: Tensor<Dispatch, 4, Bool>,
}

impl Inputs {
    fn tracked(self) -> Self {
        Self {
            counted: Float::from_inner(self.counted),
            cosines: Float::from_inner(self.cosines),
            sines: Float::from_inner(self.sines),
            ..self
        }
    }
}

impl Model {
    /// Copies the weights to the device. They must be those of `architecture`.
    pub(crate) fn new(architecture: &Architecture, weights: &Weights, device: DispatchDevice) -> Result<Self, ArchitectureError> {
        let mut parameters = Vec::new();
        for (name, shape) in architecture.tensors() {
            let tensor = weights.tensors.get(&name).filter(|tensor| tensor.shape == shape);
            let tensor = tensor.ok_or_else(|| ArchitectureError::Unsupported(format!("no weights for `{name}`")))?;
            let rows = if shape.len() == 1 { 1 } else { shape[0] };
            let data = TensorData::new(tensor.values.clone(), [rows, tensor.values.len() / rows]);
            let value = Float::from_data(data, (&device, DType::F32));
            parameters.push(Parameter { name, shape, value, mean: None, square: None });
        }
        Ok(Self {
            architecture: architecture.clone(),
            frequencies: architecture.rope_frequencies()?,
            device,
            parameters,
            updates: 0,
            texts: Vec::new(),
        })
    }

    fn inputs(&self, batch: &Batch) -> Inputs {
        let (sequences, length) = (batch.sequences, batch.length);
        let (tokens, half) = (sequences * length, self.frequencies.len());
        let mut ids = vec![0i32; tokens];
        let mut targets = vec![0i32; tokens];
        let mut counted = vec![0f32; tokens];
        let mut cosines = vec![1f32; tokens * half];
        let mut sines = vec![0f32; tokens * half];
        let mut hidden = vec![true; tokens * length];
        for at in 0..tokens {
            // Padding sees itself, so that its softmax is defined.
            hidden[at * length + at % length] = false;
        }
        for span in &batch.spans {
            for position in 0..span.len {
                let at = span.sequence * length + span.offset + position;
                let from = span.start + position;
                ids[at] = batch.ids[from] as i32;
                if batch.targets[from] != NO_TARGET {
                    targets[at] = batch.targets[from] as i32;
                    counted[at] = 1.0;
                }
                for (pair, frequency) in self.frequencies.iter().enumerate() {
                    let (sine, cosine) = (frequency * position as f64).sin_cos();
                    cosines[at * half + pair] = cosine as f32;
                    sines[at * half + pair] = sine as f32;
                }
                hidden[at * length + span.offset..=at * length + span.offset + position].fill(false);
            }
        }
        let device = &self.device;
        let angles = |values| Float::from_data(TensorData::new(values, [sequences, length, 1, half]), (device, DType::F32));
        Inputs {
            sequences,
            length,
            ids: Tensor::from_data(TensorData::new(ids, [tokens]), (device, DType::I32)),
            targets: Tensor::from_data(TensorData::new(targets, [tokens, 1]), (device, DType::I32)),
            counted: Float::from_data(TensorData::new(counted, [tokens, 1]), (device, DType::F32)),
            cosines: angles(cosines),
            sines: angles(sines),
            hidden: Tensor::from_data(TensorData::new(hidden, [sequences, 1, length, length]), device),
        }
    }

    /// Logits of every position, `[tokens, vocabulary]`.
    /// The logits of the token after each text. Every text is computed anew: nothing of it is kept on the device.
    fn following(&self) -> Result<Vec<f32>, EngineError> {
        let longest = self.texts.iter().map(Vec::len).max().unwrap_or(1).next_multiple_of(LENGTH_STEP);
        let mut all = Vec::with_capacity(self.texts.len() * self.architecture.vocab_size);
        for texts in self.texts.chunks((TOKENS_PER_BATCH / longest).max(1)) {
            let batch = Batch::texts(texts.iter().map(Vec::as_slice));
            all.extend(guarded(|| {
                let last: Vec<i32> =
                    batch.spans.iter().map(|span| (span.sequence * batch.length + span.len - 1) as i32).collect();
                let count = last.len();
                let last = Tensor::from_data(TensorData::new(last, [count]), (&self.device, DType::I32));
                read(self.logits(&self.values(), &self.inputs(&batch)).select(0, last))
            })?);
        }
        Ok(all)
    }

    fn logits(&self, weights: &[Float<2>], inputs: &Inputs) -> Float<2> {
        let mut next = weights.iter().cloned();
        // The iterator yields the tensors in the order of `Architecture::tensors`, as many as there are.
        let mut weight = || next.next().expect("a model has the tensors of its architecture");
        let embedding = weight();
        let mut x = embedding.clone().select(0, inputs.ids.clone());
        for _ in 0..self.architecture.num_hidden_layers {
            let normed = self.norm(x.clone(), weight());
            let (query, key, value) = (weight(), weight(), weight());
            let attended = self.attention(normed, [query, key, value], inputs);
            x = x + linear(attended, weight());
            let normed = self.norm(x.clone(), weight());
            let gate = linear(normed.clone(), weight());
            let up = linear(normed, weight());
            x = x + linear(gate.clone() * sigmoid(gate) * up, weight());
        }
        let x = self.norm(x, weight());
        linear(x, if self.architecture.tie_word_embeddings { embedding } else { weight() })
    }

    fn norm(&self, x: Float<2>, weight: Float<2>) -> Float<2> {
        let mean = x.clone().square().mean_dim(1);
        x * mean.add_scalar(self.architecture.rms_norm_eps).sqrt().recip() * weight
    }

    /// `[tokens, hidden]` to `[tokens, heads * head_dim]`.
    fn attention(&self, x: Float<2>, [query, key, value]: [Float<2>; 3], inputs: &Inputs) -> Float<2> {
        let (sequences, length) = (inputs.sequences, inputs.length);
        let (heads, shared) = (self.architecture.num_attention_heads, self.architecture.key_value_heads());
        let (width, group) = (self.architecture.head_dim(), heads / shared);
        let split = |weight, heads| linear(x.clone(), weight).reshape([sequences, length, heads, width]);
        let query = turn(split(query, heads), inputs).swap_dims(1, 2);
        let key = turn(split(key, shared), inputs).swap_dims(1, 2);
        let value = split(value, shared).swap_dims(1, 2);
        // The query heads of a group lie one after the other, so keys and values need no copies for them.
        let query = query.reshape([sequences, shared, group * length, width]);
        let scores = query.matmul(key.swap_dims(2, 3)).mul_scalar(1.0 / (width as f64).sqrt());
        let scores = scores.reshape([sequences, heads, length, length]);
        let hidden = inputs.hidden.clone().expand([sequences, heads, length, length]);
        let probabilities = softmax(scores.mask_fill(hidden, HIDDEN), 3);
        let attended = probabilities.reshape([sequences, shared, group * length, length]).matmul(value);
        let attended = attended.reshape([sequences, heads, length, width]).swap_dims(1, 2);
        attended.reshape([sequences * length, heads * width])
    }

    fn values(&self) -> Vec<Float<2>> {
        self.parameters.iter().map(|parameter| parameter.value.clone()).collect()
    }

    /// Mean loss over the targets, and the gradients in the order of the parameters.
    fn gradient(&self, batch: &Batch) -> Result<(f64, Vec<Float<2>>), EngineError> {
        let tracked: Vec<Float<2>> = self.values().into_iter().map(|value| Float::from_inner(value).require_grad()).collect();
        let inputs = self.inputs(batch).tracked();
        let logits = self.logits(&tracked, &inputs);
        let picked = log_softmax(logits, 1).gather(1, inputs.targets);
        let loss = (picked * inputs.counted).sum().mul_scalar(-1.0 / batch.targets() as f64);
        let mut gradients = loss.backward();
        let gradients = tracked
            .iter()
            .zip(&self.parameters)
            .map(|(tracked, parameter)| {
                let missing = || EngineError(format!("burn gave no gradient for `{}`", parameter.name));
                tracked.grad_remove(&mut gradients).ok_or_else(missing)
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok((f64::from(read(loss.inner())?[0]), gradients))
    }

    fn update(&mut self, gradients: Vec<Float<2>>, optimizer: &AdamW, learning_rate: f64, gradient_norm: f64) {
        self.updates += 1;
        let factor = optimizer.clip_factor(gradient_norm);
        for (parameter, gradient) in self.parameters.iter_mut().zip(gradients) {
            let update = optimizer.update(self.updates, learning_rate, factor, parameter.shape.len() > 1);
            let gradient = gradient.mul_scalar(update.scale);
            let decayed = |mean: Option<Float<2>>, beta: f32, new: Float<2>| {
                let new = new.mul_scalar(1.0 - beta);
                match mean {
                    Some(mean) => mean.mul_scalar(beta) + new,
                    None => new,
                }
            };
            let mean = decayed(parameter.mean.take(), update.beta1, gradient.clone());
            let square = decayed(parameter.square.take(), update.beta2, gradient.square());
            let slope = mean.clone() / square.clone().sqrt().mul_scalar(update.root).add_scalar(update.epsilon);
            parameter.value = parameter.value.clone().mul_scalar(update.keep) - slope.mul_scalar(update.rate);
            parameter.mean = Some(mean);
            parameter.square = Some(square);
        }
    }
}

/// `x * weight^T`, the weight as `[out, in]`.
fn linear(x: Float<2>, weight: Float<2>) -> Float<2> {
    x.matmul(weight.transpose())
}

/// Rotary positions: dimension `i` pairs with `i + head_dim / 2`, as Hugging Face's Llama has it.
fn turn(x: Float<4>, inputs: &Inputs) -> Float<4> {
    let half = x.dims()[3] / 2;
    let (low, high) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let (cosines, sines) = (&inputs.cosines, &inputs.sines);
    let turned_low = low.clone() * cosines.clone() - high.clone() * sines.clone();
    let turned_high = high * cosines.clone() + low * sines.clone();
    Tensor::cat(vec![turned_low, turned_high], 3)
}

fn read<const D: usize>(tensor: Float<D>) -> Result<Vec<f32>, EngineError> {
    let data = tensor.try_into_data().map_err(|error| EngineError(format!("{error:?}")))?;
    data.into_vec().map_err(|error| EngineError(format!("{error:?}")))
}

/// burn reports most failures of a device, running out of memory first of all, by a panic.
fn guarded<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(EngineError(said(&*panic))))
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "burn panicked".into())
}

impl Engine for Model {
    fn step(&mut self, batch: &Batch, optimizer: &AdamW, learning_rate: f64) -> Result<Step, EngineError> {
        guarded(|| {
            let (loss, gradients) = self.gradient(batch)?;
            let squares = gradients.iter().map(|gradient| gradient.clone().square().sum());
            let sum = squares.reduce(|sum, square| sum + square);
            let gradient_norm = match sum {
                Some(sum) => f64::from(read(sum)?[0]).sqrt(),
                None => 0.0,
            };
            if loss.is_finite() && gradient_norm.is_finite() {
                self.update(gradients, optimizer, learning_rate, gradient_norm);
            }
            Ok(Step { loss, gradient_norm })
        })
    }

    fn log_probs(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        guarded(|| {
            let inputs = self.inputs(batch);
            let logits = self.logits(&self.values(), &inputs);
            let dense = read(log_softmax(logits, 1).gather(1, inputs.targets))?;
            let mut found = vec![0.0; batch.ids.len()];
            for span in &batch.spans {
                let at = span.sequence * batch.length + span.offset;
                for position in 0..span.len {
                    if batch.targets[span.start + position] != NO_TARGET {
                        found[span.start + position] = dense[at + position];
                    }
                }
            }
            Ok(found)
        })
    }

    fn read(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        self.texts = batch.spans.iter().map(|span| batch.ids[span.start..span.start + span.len].to_vec()).collect();
        self.following()
    }

    fn go_on(&mut self, kept: &[usize], ids: &[u32]) -> Result<Vec<f32>, EngineError> {
        let mut texts = std::mem::take(&mut self.texts);
        let longer = |(number, id): (&usize, &u32)| {
            let mut text = std::mem::take(&mut texts[*number]);
            text.push(*id);
            text
        };
        self.texts = kept.iter().zip(ids).map(longer).collect();
        self.following()
    }

    fn weights(&self) -> Result<Weights, EngineError> {
        guarded(|| {
            let tensors = self.parameters.iter().map(|parameter| {
                let values = read(parameter.value.clone())?;
                Ok((parameter.name.clone(), HostTensor { shape: parameter.shape.clone(), values }))
            });
            Ok(Weights { tensors: tensors.collect::<Result<_, EngineError>>()? })
        })
    }
}

#[cfg(test)]
impl Model {
    /// Mean loss and the gradient of every tensor, for comparison with the CPU's own.
    pub(crate) fn loss_and_gradients(&self, batch: &Batch) -> (f64, Vec<(String, Vec<f32>)>) {
        let (loss, gradients) = self.gradient(batch).unwrap();
        let named = self.parameters.iter().zip(gradients);
        (loss, named.map(|(parameter, gradient)| (parameter.name.clone(), read(gradient).unwrap())).collect())
    }
}

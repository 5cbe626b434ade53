//! The model on burn, with its autodiff: for CUDA devices, for adapters on any device, and the yardstick for the CPU's own
//! passes.
//!
//! A step makes no graph of the whole model. The layers run forward without one, keeping their inputs; then, from the last to
//! the first, each runs again on a graph of its own, which the gradient of its output is put through. So no more than one
//! layer's intermediate results are in memory, and a layer's gradients can be used and dropped before those of the one below
//! are computed.
//!
//! All tensors of a model belong to the thread that made it: burn's memory pools and streams are per thread.

mod decode;
mod fault;
mod head;
mod inputs;
mod layer;
mod update;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{DType, IndexingUpdateOp, Tensor};
use burn::{Dispatch, DispatchDevice};
use rand::RngExt;

use self::decode::Texts;
use self::inputs::{Inputs, Positions};
use self::layer::{LayerTensors, Shape, Whole, cast, layer};
use self::update::{Parameter, square_sum, value};
use crate::architecture::{Architecture, ArchitectureError, Precision};
use crate::checkpoint::{Adapter, Projection};
use crate::engine::{Engine, EngineError, Step};
use crate::optimizer::Optimizer;
use crate::pack::{Batch, NO_TARGET};
use crate::settings::Lora;
use crate::weights::{HostTensor, Tensors, generator, missing};

type Float<const D: usize> = Tensor<Dispatch, D>;

/// How a model is put on a device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placing {
    /// What it is computed in.
    pub(crate) precision: Precision,
    /// Whether it is trained: all of it, or an adapter.
    pub(crate) trained: bool,
    /// An adapter to train, whose random half follows from the seed, in place of the model's own weights.
    pub(crate) lora: Option<(Lora, u64)>,
    /// An adapter's rank is filled up with zeros to a multiple of this, which stay zeros: see [`SIZE_STEP`].
    pub(crate) rank_step: usize,
    /// Whether a tensor is updated as soon as its gradient is there, so that no two layers' gradients are in memory.
    pub(crate) fused: bool,
}

struct Layer {
    weights: Vec<Parameter>,
    /// `A` and `B` of each projection, in the order of [`Projection::ALL`]; none without an adapter.
    adapter: Vec<[Parameter; 2]>,
}

impl Layer {
    fn values(&self) -> LayerTensors {
        LayerTensors {
            weights: self.weights.iter().map(|parameter| parameter.value.clone()).collect(),
            adapter: self.adapter.iter().map(|pair| pair.each_ref().map(|parameter| parameter.value.clone())).collect(),
        }
    }
}

/// A tensor of the model that is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Embedding,
    Weight { layer: usize, place: usize },
    Adapter { layer: usize, projection: usize, which: usize },
    FinalNorm,
    Head,
}

/// A model on a device that burn knows.
pub(crate) struct Model {
    shape: Shape,
    vocabulary: usize,
    frequencies: Vec<f64>,
    device: DispatchDevice,
    dtype: DType,
    lora: Option<Lora>,
    fused: bool,
    embedding: Parameter,
    layers: Vec<Layer>,
    final_norm: Parameter,
    /// None where the embedding is the head, too.
    own_head: Option<Parameter>,
    updates: usize,
    /// The last step's gradient norm, by which a fused update is clipped.
    last_norm: Option<f64>,
    texts: Option<Texts>,
}

/// A batch on its way through a step.
struct Pass {
    inputs: Inputs,
    /// The input of each layer and of the final norm, `[tokens, hidden]`.
    kept: Vec<Float<2>>,
}

impl Model {
    /// Copies the weights to the device, a tensor at a time. They must be those of `architecture`.
    pub(crate) fn new(
        architecture: &Architecture,
        weights: &dyn Tensors,
        device: DispatchDevice,
        placing: Placing,
    ) -> Result<Self, EngineError> {
        if matches!(device, DispatchDevice::Cuda(_)) {
            fault::watch();
        }
        let dtype = match placing.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        };
        let all_trained = placing.trained && placing.lora.is_none();
        let load = |name: String| {
            let tensor = weights.tensor(&name)?;
            guarded(|| Ok(Parameter::new(name, tensor, dtype, all_trained, &device)))
        };
        let embedding = load("model.embed_tokens.weight".into())?;
        let layers = (0..architecture.num_hidden_layers).map(|number| {
            let prefix = format!("model.layers.{number}.");
            let names = architecture.layer_tensors().into_iter().map(|(name, _)| format!("{prefix}{name}"));
            let weights = names.map(load).collect::<Result<Vec<_>, _>>()?;
            let adapter = match placing.lora {
                Some((lora, seed)) => {
                    let pair = |projection: Projection| {
                        let name = format!("{prefix}{}", projection.weight());
                        let shape = weights.iter().find(|weight| weight.name == name).map(|weight| weight.shape.clone());
                        let shape = shape.ok_or_else(|| missing(&name))?;
                        let rank = lora.rank.next_multiple_of(placing.rank_step);
                        guarded(|| Ok(adapter_pair(&name, &shape, (lora.rank, rank), seed, dtype, &device)))
                    };
                    Projection::ALL.into_iter().map(pair).collect::<Result<_, EngineError>>()?
                }
                None => Vec::new(),
            };
            Ok::<_, EngineError>(Layer { weights, adapter })
        });
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let final_norm = load("model.norm.weight".into())?;
        let own_head = if architecture.tie_word_embeddings { None } else { Some(load("lm_head.weight".into())?) };
        let lora = placing.lora.map(|(lora, _)| lora);
        let mut shape = Shape::new(architecture);
        shape.scale = lora.map_or(1.0, |lora| lora.scale());
        Ok(Self {
            shape,
            vocabulary: architecture.vocab_size,
            frequencies: architecture.rope_frequencies()?,
            device,
            dtype,
            lora,
            fused: placing.fused,
            embedding,
            layers,
            final_norm,
            own_head,
            updates: 0,
            last_norm: None,
            texts: None,
        })
    }

    fn head(&self) -> &Parameter {
        self.own_head.as_ref().unwrap_or(&self.embedding)
    }

    /// Runs the layers without a graph; keeps each one's input if asked, and the last one's output always.
    fn forward(&self, batch: &Batch, keep: bool) -> Pass {
        let inputs = Inputs::new(batch, &self.frequencies, &self.device);
        let mut x = self.embedding.value.clone().select(0, inputs.ids.clone());
        let mut kept = Vec::new();
        for number in 0..self.layers.len() {
            if keep {
                kept.push(x.clone());
            }
            x = layer(self.shape, self.layers[number].values(), x, &inputs.positions, &mut Whole);
        }
        kept.push(x);
        Pass { inputs, kept }
    }

    /// Puts the gradient `slope` of a layer's output through the layer. Gives the gradient of its input, and those of its
    /// tensors that are trained, in their order.
    fn layer_backward(
        &self,
        number: usize,
        x: Float<2>,
        positions: &Positions,
        slope: Float<2>,
    ) -> Result<(Float<2>, Vec<Float<2>>), EngineError> {
        let x = Float::from_inner(x).require_grad();
        let LayerTensors { weights, adapter } = self.layers[number].values();
        let all = self.lora.is_none();
        let weights: Vec<Float<2>> = weights.into_iter().map(|value| tracked(value, all)).collect();
        let adapter: Vec<[Float<2>; 2]> = adapter.into_iter().map(|pair| pair.map(|value| tracked(value, true))).collect();
        let trained: Vec<Float<2>> = if all { weights.clone() } else { adapter.iter().flatten().cloned().collect() };
        let tensors = LayerTensors { weights, adapter };
        let y = layer(self.shape, tensors, x.clone(), &positions.tracked(), &mut Whole);
        let mut gradients = (y * Float::from_inner(slope)).sum().backward();
        let mut gradient = |tensor: &Float<2>| {
            let missing = || device_said(format!("burn gave no gradient for a tensor of layer {number}"));
            tensor.grad_remove(&mut gradients).ok_or_else(missing)
        };
        let dx = gradient(&x)?;
        Ok((dx, trained.iter().map(gradient).collect::<Result<_, _>>()?))
    }

    /// Mean loss over the targets of the window; `take` gets the gradient of each tensor that is trained, once, and may
    /// change the tensor.
    fn sweep(&mut self, window: &[Batch], take: &mut dyn FnMut(&mut Self, Slot, Float<2>)) -> Result<f64, EngineError> {
        let targets: usize = window.iter().map(Batch::targets).sum();
        let mut passes: Vec<Pass> =
            window.iter().filter(|batch| batch.targets() > 0).map(|batch| self.forward(batch, true)).collect();
        let mut slopes = Vec::with_capacity(passes.len());
        let (mut loss, mut norm, mut head) = (None, None, None);
        for pass in &mut passes {
            let Some(x) = pass.kept.pop() else { continue };
            let found = self.head_backward(x, &pass.inputs, 1.0 / targets as f64)?;
            add(&mut loss, found.loss);
            slopes.push(found.slope);
            if let Some((norm_gradient, head_gradient)) = found.gradients {
                add(&mut norm, norm_gradient);
                add(&mut head, head_gradient);
            }
        }
        if let Some(norm) = norm {
            take(self, Slot::FinalNorm, norm);
        }
        if self.own_head.is_some()
            && let Some(head) = head.take()
        {
            take(self, Slot::Head, head);
        }
        for number in (0..self.layers.len()).rev() {
            let mut sums: Vec<Option<Float<2>>> = Vec::new();
            for (pass, slope) in passes.iter_mut().zip(&mut slopes) {
                let Some(x) = pass.kept.pop() else { continue };
                let (dx, gradients) = self.layer_backward(number, x, &pass.inputs.positions, slope.clone())?;
                *slope = dx;
                sums.resize(gradients.len(), None);
                sums.iter_mut().zip(gradients).for_each(|(sum, gradient)| add(sum, cast(gradient, DType::F32)));
            }
            for (place, sum) in sums.into_iter().enumerate() {
                let slot = match self.lora {
                    None => Slot::Weight { layer: number, place },
                    Some(_) => Slot::Adapter { layer: number, projection: place / 2, which: place % 2 },
                };
                if let Some(sum) = sum {
                    take(self, slot, sum);
                }
            }
        }
        if self.lora.is_none() {
            // A tied head's gradient is the embedding's, too.
            let shape = self.embedding.value.dims();
            let mut sum = head.unwrap_or_else(|| Tensor::zeros(shape, (&self.device, DType::F32)));
            for (pass, slope) in passes.iter().zip(slopes) {
                sum = sum.select_assign(0, pass.inputs.ids.clone(), cast(slope, DType::F32), IndexingUpdateOp::Add);
            }
            take(self, Slot::Embedding, sum);
        }
        match loss {
            Some(loss) => value(loss),
            None => Ok(0.0),
        }
    }

    /// As [`Model::sweep`], with all gradients at the end, and their norm.
    fn gradients(&mut self, window: &[Batch]) -> Result<(Step, Vec<(Slot, Float<2>)>), EngineError> {
        let (mut gradients, mut squares) = (Vec::new(), None);
        let loss = self.sweep(window, &mut |_, slot, gradient| {
            add(&mut squares, square_sum(&gradient));
            gradients.push((slot, gradient));
        })?;
        let gradient_norm = squares.map_or(Ok(0.0), value)?.sqrt();
        Ok((Step { loss, gradient_norm }, gradients))
    }

    /// A step in which a tensor is updated as soon as its gradient is there. What clips it is the last step's norm, since its
    /// own isn't known before the last gradient is; the first step's is computed beforehand.
    fn fused_step(&mut self, window: &[Batch], optimizer: &Optimizer, rate: f64) -> Result<Step, EngineError> {
        let last_norm = match self.last_norm {
            Some(norm) => norm,
            None => {
                let mut squares = None;
                self.sweep(window, &mut |_, _, gradient| add(&mut squares, square_sum(&gradient)))?;
                squares.map_or(Ok(0.0), value)?.sqrt()
            }
        };
        self.updates += 1;
        let (step, factor) = (self.updates, optimizer.clip_factor(last_norm));
        let mut squares = None;
        let loss = self.sweep(window, &mut |model, slot, gradient| {
            add(&mut squares, square_sum(&gradient));
            model.parameter(slot).update(gradient, optimizer, step, rate, factor);
        })?;
        let gradient_norm = squares.map_or(Ok(0.0), value)?.sqrt();
        self.last_norm = Some(gradient_norm);
        Ok(Step { loss, gradient_norm })
    }

    fn parameter(&mut self, slot: Slot) -> &mut Parameter {
        match slot {
            Slot::Embedding => &mut self.embedding,
            Slot::Weight { layer, place } => &mut self.layers[layer].weights[place],
            Slot::Adapter { layer, projection, which } => &mut self.layers[layer].adapter[projection][which],
            Slot::FinalNorm => &mut self.final_norm,
            Slot::Head => self.own_head.as_mut().unwrap_or(&mut self.embedding),
        }
    }

    /// The parameters that are trained.
    fn trained(&self) -> Vec<&Parameter> {
        if self.lora.is_some() {
            return self.layers.iter().flat_map(|layer| layer.adapter.iter().flatten()).collect();
        }
        let layers = self.layers.iter().flat_map(|layer| &layer.weights);
        std::iter::once(&self.embedding).chain(layers).chain([&self.final_norm]).chain(&self.own_head).collect()
    }

    fn merged(&self, name: &str) -> Result<HostTensor, EngineError> {
        let found = [&self.embedding, &self.final_norm].into_iter().chain(&self.own_head).find(|other| other.name == name);
        if let Some(found) = found {
            return found.host();
        }
        for layer in &self.layers {
            let Some(weight) = layer.weights.iter().find(|weight| weight.name == name) else { continue };
            let mut tensor = weight.host()?;
            let place = Projection::ALL.iter().position(|projection| name.ends_with(projection.weight()));
            if let Some([a, b]) = place.and_then(|place| layer.adapter.get(place)) {
                crate::cpu::add_product(&mut tensor, &b.host()?, &a.host()?, self.shape.scale as f32);
            }
            return Ok(tensor);
        }
        Err(missing(name).into())
    }
}

fn tracked(value: Float<2>, trained: bool) -> Float<2> {
    let value = Float::from_inner(value);
    if trained { value.require_grad() } else { value }
}

/// `A`, uniform within one over the root of its columns, and `B`, zero, as PEFT starts them; of a rank that is `filled` up with
/// zeros.
fn adapter_pair(
    name: &str,
    shape: &[usize],
    (rank, filled): (usize, usize),
    seed: u64,
    dtype: DType,
    device: &DispatchDevice,
) -> [Parameter; 2] {
    let (rows, columns) = (shape[0], shape[1]);
    let name = |which: &str| format!("{}.{which}.weight", name.trim_end_matches(".weight"));
    let bound = 1.0 / (columns as f32).sqrt();
    let mut random = generator(seed, &name("lora_A"));
    let mut values: Vec<f32> = (0..rank * columns).map(|_| random.random_range(-bound..bound)).collect();
    values.resize(filled * columns, 0.0);
    let parameter = |which: &str, tensor| Parameter::new(name(which), tensor, dtype, true, device);
    [
        parameter("lora_A", HostTensor { shape: vec![filled, columns], values }),
        parameter("lora_B", HostTensor { shape: vec![rows, filled], values: vec![0.0; rows * filled] }),
    ]
}

/// The first columns of a matrix.
fn columns(tensor: &HostTensor, count: usize) -> HostTensor {
    let rows = tensor.values.chunks(tensor.shape[1].max(1));
    HostTensor { shape: vec![tensor.shape[0], count], values: rows.flat_map(|row| &row[..count]).copied().collect() }
}

/// The first rows of a matrix.
fn rows(mut tensor: HostTensor, count: usize) -> HostTensor {
    tensor.values.truncate(count * tensor.shape[1]);
    HostTensor { shape: vec![count, tensor.shape[1]], ..tensor }
}

/// Sizes that products of matrices are summed over must be multiples of this on a CUDA device: kernels of cubek 0.2 that compute
/// two stages of 32 at a time read past the end where the number of stages is odd, and what they read is added
/// (<https://github.com/tracel-ai/cubek/issues/434>).
pub(crate) const SIZE_STEP: usize = 64;

/// Whether a CUDA device computes a model right.
///
/// # Errors
/// For sizes that aren't multiples of [`SIZE_STEP`], where products are large enough for those kernels.
pub(crate) fn check_sizes(architecture: &Architecture) -> Result<(), ArchitectureError> {
    /// Smaller products have kernels of their own.
    const LARGE: usize = 512;
    let sizes = [
        ("hidden_size", architecture.hidden_size),
        ("intermediate_size", architecture.intermediate_size),
        ("vocab_size", architecture.vocab_size),
    ];
    match sizes.into_iter().find(|(_, size)| *size >= LARGE && size % SIZE_STEP == SIZE_STEP / 2) {
        Some((name, size)) => Err(ArchitectureError::Unsupported(format!(
            "`{name}` is {size}: on a CUDA device a multiple of {} isn't computed right unless it is one of {SIZE_STEP}",
            SIZE_STEP / 2
        ))),
        None => Ok(()),
    }
}

fn add<const D: usize>(sum: &mut Option<Float<D>>, more: Float<D>) {
    *sum = Some(match sum.take() {
        Some(sum) => sum + more,
        None => more,
    });
}

fn read<const D: usize>(tensor: Float<D>) -> Result<Vec<f32>, EngineError> {
    let data = cast(tensor, DType::F32).try_into_data().map_err(|error| device_said(format!("{error:?}")))?;
    data.into_vec().map_err(|error| device_said(format!("{error:?}")))
}

fn device_said(text: impl Into<String>) -> EngineError {
    EngineError::Device(text.into())
}

/// burn reports failures of a device by a panic, some on this thread and some on one of its own (see [`fault`]).
fn guarded<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(device_said(said(&*panic))))
}

impl Model {
    /// As [`guarded`], and with what the device's own threads said. After one of those the device computes with what its memory
    /// held before, so that everything fails from then on.
    fn on_device<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, EngineError>) -> Result<T, EngineError> {
        let done = guarded(|| work(self));
        match &self.device {
            DispatchDevice::Cuda(_) => fault::found().map_or(done, |said| Err(device_said(said))),
            _ => done,
        }
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "burn panicked".into())
}

impl Engine for Model {
    fn step(&mut self, window: &[Batch], optimizer: &Optimizer, learning_rate: f64) -> Result<Step, EngineError> {
        self.on_device(|model| {
            if model.fused {
                return model.fused_step(window, optimizer, learning_rate);
            }
            let (step, gradients) = model.gradients(window)?;
            if step.loss.is_finite() && step.gradient_norm.is_finite() {
                model.updates += 1;
                let (number, factor) = (model.updates, optimizer.clip_factor(step.gradient_norm));
                for (slot, gradient) in gradients {
                    model.parameter(slot).update(gradient, optimizer, number, learning_rate, factor);
                }
            }
            Ok(step)
        })
    }

    fn log_probs(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        self.on_device(|model| {
            let mut pass = model.forward(batch, false);
            let x = pass.kept.pop().ok_or_else(|| device_said("no output"))?;
            let dense = model.picked(x, &pass.inputs)?;
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
        self.on_device(|model| model.read_texts(batch))
    }

    fn go_on(&mut self, kept: &[usize], ids: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.on_device(|model| model.longer_by(kept, ids))
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, EngineError> {
        let tensor = guarded(|| self.merged(name))?;
        match &self.device {
            DispatchDevice::Cuda(_) => fault::found().map_or(Ok(tensor), |said| Err(device_said(said))),
            _ => Ok(tensor),
        }
    }

    fn adapter(&self) -> Result<Option<Adapter>, EngineError> {
        let Some(lora) = self.lora else { return Ok(None) };
        let mut pairs = std::collections::BTreeMap::new();
        for layer in &self.layers {
            for (projection, [a, b]) in Projection::ALL.into_iter().zip(&layer.adapter) {
                let weight = layer.weights.iter().find(|weight| weight.name.ends_with(projection.weight()));
                let name = weight.map(|weight| weight.name.clone()).ok_or_else(|| missing(projection.weight()))?;
                let (a, b) = guarded(|| Ok((a.host()?, b.host()?)))?;
                pairs.insert(name, (rows(a, lora.rank), columns(&b, lora.rank)));
            }
        }
        Ok(Some(Adapter { lora, pairs }))
    }

    fn state(&self) -> Vec<(String, Vec<usize>)> {
        let trained = self.trained().into_iter().flat_map(Parameter::state);
        trained.chain(self.last_norm.map(|_| (LAST_NORM.to_owned(), vec![1]))).collect()
    }

    fn state_tensor(&self, name: &str) -> Result<HostTensor, EngineError> {
        if let (LAST_NORM, Some(norm)) = (name, self.last_norm) {
            return Ok(HostTensor { shape: vec![1], values: vec![norm as f32] });
        }
        let found = name.split_once('.').and_then(|(what, name)| {
            let parameter = self.trained().into_iter().find(|parameter| parameter.name == name)?;
            parameter.state_tensor(what)
        });
        found.unwrap_or_else(|| Err(missing(name).into()))
    }

    fn restore(&mut self, updates: usize, optimizer: &Optimizer, state: &dyn Tensors) -> Result<(), EngineError> {
        guarded(|| {
            let device = self.device.clone();
            let (rule, lora) = (optimizer.rule, self.lora.is_some());
            for layer in &mut self.layers {
                let adapter = layer.adapter.iter_mut().flatten();
                let weights = layer.weights.iter_mut().filter(|_| !lora);
                adapter.chain(weights).try_for_each(|parameter| parameter.restore(rule, state, &device))?;
            }
            if !lora {
                let rest = [&mut self.embedding, &mut self.final_norm].into_iter().chain(&mut self.own_head);
                for parameter in rest {
                    parameter.restore(rule, state, &device)?;
                }
            }
            self.updates = updates;
            if self.fused {
                self.last_norm = state.tensor(LAST_NORM)?.values.first().map(|norm| f64::from(*norm));
            }
            Ok(())
        })
    }
}

/// The name of the last step's gradient norm in the state.
const LAST_NORM: &str = "last_norm";

#[cfg(test)]
mod tests;

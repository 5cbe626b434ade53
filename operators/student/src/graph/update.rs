//! Updates on the device: 32-bit weights and means, whatever the model is computed in.

use burn::tensor::{DType, Tensor, TensorData};
use burn::{Dispatch, DispatchDevice};

use super::layer::cast;
use super::{Float, device_said, read};
use crate::engine::EngineError;
use crate::optimizer::{Adafactor, AdamW, Optimizer, Rule, TINY_SQUARE};
use crate::weights::{HostTensor, Tensors};

/// A tensor of the model. Vectors are kept as one row.
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    /// In what the model is computed in.
    pub(super) value: Float<2>,
    /// In 32 bits, where `value` isn't: rounded each time, small updates would be lost.
    master: Option<Float<2>>,
    memory: Memory,
}

/// What the optimizer remembers of a tensor.
#[derive(Default)]
enum Memory {
    #[default]
    Nothing,
    /// Running means of the gradient and of its square.
    Means { mean: Float<2>, square: Float<2> },
    /// Running means of squares, `[rows, 1]` and `[1, columns]`; of a vector, `[1, values]` and nothing.
    Factors { rows: Float<2>, columns: Option<Float<2>> },
}

impl Parameter {
    pub(super) fn new(name: String, tensor: HostTensor, dtype: DType, trained: bool, device: &DispatchDevice) -> Self {
        let HostTensor { shape, values } = tensor;
        let full = upload(&shape, values, device);
        let value = cast(full.clone(), dtype);
        let master = (trained && dtype != DType::F32).then_some(full);
        Self { name, shape, value, master, memory: Memory::Nothing }
    }

    fn full(&self) -> Float<2> {
        self.master.clone().unwrap_or_else(|| cast(self.value.clone(), DType::F32))
    }

    /// The weights in 32 bits.
    pub(super) fn host(&self) -> Result<HostTensor, EngineError> {
        Ok(HostTensor { shape: self.shape.clone(), values: read(self.full())? })
    }

    /// Takes one step against `gradient`, which is of the shape of `value`. `step` counts from 1.
    pub(super) fn update(&mut self, gradient: Float<2>, optimizer: &Optimizer, step: usize, rate: f64, clip_factor: f64) {
        let decays = self.shape.len() > 1;
        let gradient = cast(gradient, DType::F32);
        // One reference to each buffer, so that it can be written in place.
        let (full, memory) = (self.take_full(), std::mem::take(&mut self.memory));
        let (full, memory) = match optimizer.rule {
            Rule::AdamW => adamw(optimizer.adamw(step, rate, clip_factor, decays), full, gradient, memory),
            Rule::Adafactor => adafactor(optimizer.adafactor(step, rate, clip_factor, decays), full, gradient, memory, decays),
        };
        self.memory = memory;
        let dtype = self.value.dtype();
        self.value = cast(full.clone(), dtype);
        self.master = (dtype != DType::F32).then_some(full);
    }

    fn take_full(&mut self) -> Float<2> {
        match self.master.take() {
            Some(full) => full,
            None => {
                let device = self.value.device();
                let none = Tensor::zeros([1, 1], (&device, DType::F32));
                std::mem::replace(&mut self.value, none)
            }
        }
    }

    /// Names and shapes of what decides how a training goes on with this tensor.
    pub(super) fn state(&self) -> Vec<(String, Vec<usize>)> {
        let named = |what: &str, shape: Vec<usize>| (format!("{what}.{}", self.name), shape);
        let of = |what, tensor: &Float<2>| named(what, tensor.dims().to_vec());
        let mut state = vec![named("weight", self.shape.clone())];
        match &self.memory {
            Memory::Nothing => {}
            Memory::Means { mean, square } => state.extend([of("mean", mean), of("square", square)]),
            Memory::Factors { rows, columns } => {
                state.push(of("rows", rows));
                state.extend(columns.as_ref().map(|columns| of("columns", columns)));
            }
        }
        state
    }

    /// A part of the state by what stands before the name.
    pub(super) fn state_tensor(&self, what: &str) -> Option<Result<HostTensor, EngineError>> {
        let tensor = match (&self.memory, what) {
            (_, "weight") => return Some(self.host()),
            (Memory::Means { mean, .. }, "mean") => mean,
            (Memory::Means { square, .. }, "square") => square,
            (Memory::Factors { rows, .. }, "rows") => rows,
            (Memory::Factors { columns: Some(columns), .. }, "columns") => columns,
            _ => return None,
        };
        let shape = tensor.dims().to_vec();
        Some(read(tensor.clone()).map(|values| HostTensor { shape, values }))
    }

    pub(super) fn restore(&mut self, rule: Rule, state: &dyn Tensors, device: &DispatchDevice) -> Result<(), EngineError> {
        let part = |what: &str| {
            let HostTensor { shape, values } = state.tensor(&format!("{what}.{}", self.name))?;
            Ok::<_, EngineError>(upload(&shape, values, device))
        };
        let full = part("weight")?;
        self.memory = match rule {
            Rule::AdamW => Memory::Means { mean: part("mean")?, square: part("square")? },
            Rule::Adafactor => {
                let columns = if self.shape.len() > 1 { Some(part("columns")?) } else { None };
                Memory::Factors { rows: part("rows")?, columns }
            }
        };
        let dtype = self.value.dtype();
        self.value = cast(full.clone(), dtype);
        self.master = (dtype != DType::F32).then_some(full);
        Ok(())
    }
}

/// A tensor of one or two dimensions as one of two.
pub(super) fn upload(shape: &[usize], values: Vec<f32>, device: &DispatchDevice) -> Float<2> {
    let rows = if shape.len() == 1 { 1 } else { shape[0] };
    let columns = values.len() / rows.max(1);
    Float::from_data(TensorData::new(values, [rows, columns]), (device, DType::F32))
}

fn adamw(update: AdamW, full: Float<2>, gradient: Float<2>, memory: Memory) -> (Float<2>, Memory) {
    let gradient = gradient.mul_scalar(update.scale);
    let (mean, square) = (gradient.clone().mul_scalar(1.0 - update.beta1), gradient.square().mul_scalar(1.0 - update.beta2));
    let (mean, square) = match memory {
        Memory::Means { mean: old_mean, square: old_square } => {
            (old_mean.mul_scalar(update.beta1) + mean, old_square.mul_scalar(update.beta2) + square)
        }
        _ => (mean, square),
    };
    let slope = mean.clone() / square.clone().sqrt().mul_scalar(update.root).add_scalar(update.epsilon);
    let full = full.mul_scalar(update.keep) - slope.mul_scalar(update.rate);
    (full, Memory::Means { mean, square })
}

fn adafactor(update: Adafactor, full: Float<2>, gradient: Float<2>, memory: Memory, matrix: bool) -> (Float<2>, Memory) {
    let gradient = gradient.mul_scalar(update.scale);
    let squares = gradient.clone().square().add_scalar(TINY_SQUARE);
    let mixed = |old: Option<Float<2>>, new: Float<2>| {
        let new = new.mul_scalar(1.0 - update.beta);
        match old {
            Some(old) => old.mul_scalar(update.beta) + new,
            None => new,
        }
    };
    let (old_rows, old_columns) = match memory {
        Memory::Factors { rows, columns } => (Some(rows), columns),
        _ => (None, None),
    };
    let (slope, memory) = if matrix {
        let rows = mixed(old_rows, squares.clone().mean_dim(1));
        let columns = mixed(old_columns, squares.mean_dim(0));
        let row_factor = (rows.clone() / rows.clone().mean_dim(0)).sqrt().recip();
        let slope = gradient * row_factor * columns.clone().sqrt().recip();
        (slope, Memory::Factors { rows, columns: Some(columns) })
    } else {
        let rows = mixed(old_rows, squares);
        (gradient / rows.clone().sqrt(), Memory::Factors { rows, columns: None })
    };
    let size = slope.clone().square().mean_dim(1).mean_dim(0).sqrt().clamp_min(1.0);
    let full = full.mul_scalar(update.keep) - (slope / size).mul_scalar(update.rate);
    (full, memory)
}

/// The sum of squares of all values, `[1]`.
pub(super) fn square_sum(tensor: &Float<2>) -> Tensor<Dispatch, 1> {
    cast(tensor.clone(), DType::F32).square().sum()
}

/// The one value of a sum.
pub(super) fn value(sum: Tensor<Dispatch, 1>) -> Result<f64, EngineError> {
    read(sum)?.first().map(|value| f64::from(*value)).ok_or_else(|| device_said("an empty sum"))
}

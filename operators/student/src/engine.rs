//! What training and scoring ask of a device.

use crate::architecture::ArchitectureError;
use crate::checkpoint::Adapter;
use crate::optimizer::Optimizer;
use crate::pack::Batch;
use crate::weights::{HostTensor, TensorError, Tensors};

/// Why a device gives nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// What it said when it failed.
    #[error("{0}")]
    Device(String),
    /// A tensor of the model can't be had.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The model can't be computed.
    #[error(transparent)]
    Architecture(#[from] ArchitectureError),
}

/// What a step measured, before its update.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// Mean cross-entropy over the targets of the window, in nats.
    pub(crate) loss: f64,
    /// Norm of the gradient over all weights that are trained, before it is clipped.
    pub(crate) gradient_norm: f64,
}

/// A model on a device.
pub(crate) trait Engine {
    /// Gradient of the mean cross-entropy over the targets of all batches of the window, clipped, and one update. Nothing is
    /// updated when the loss or the norm isn't finite, but where updates are fused. The window must have a target.
    fn step(&mut self, window: &[Batch], optimizer: &Optimizer, learning_rate: f64) -> Result<Step, EngineError>;

    /// Log-probability of each token's target, 0 where it has none; as many as `batch.ids`.
    fn log_probs(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError>;

    /// Reads texts to go on from, each a span of the batch: the logits of the token after each, `[spans, vocabulary]`.
    fn read(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError>;

    /// Goes on with some of the texts of the last call: `kept` are their numbers in it, rising, and `ids` the token that
    /// each of them is longer by. Gives the logits of the token after each; the texts are numbered anew.
    fn go_on(&mut self, kept: &[usize], ids: &[u32]) -> Result<Vec<f32>, EngineError>;

    /// A tensor of the model as it is, an adapter merged into it.
    fn tensor(&self, name: &str) -> Result<HostTensor, EngineError>;

    /// The adapter that is trained, if one is.
    fn adapter(&self) -> Result<Option<Adapter>, EngineError> {
        Ok(None)
    }

    /// Names and shapes of everything that decides how a training goes on, beside the number of updates: the weights that are
    /// trained and what the optimizer remembers of them. Known from the first update on.
    fn state(&self) -> Vec<(String, Vec<usize>)>;

    /// A part of the state.
    fn state_tensor(&self, name: &str) -> Result<HostTensor, EngineError>;

    /// Takes up the state of a training after so many updates. The model must be one that the training began with.
    fn restore(&mut self, updates: usize, optimizer: &Optimizer, state: &dyn Tensors) -> Result<(), EngineError>;
}

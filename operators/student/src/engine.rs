//! What training and scoring ask of a device.

use crate::optimizer::AdamW;
use crate::pack::Batch;
use crate::weights::Weights;

/// What a device said when it failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct EngineError(pub(crate) String);

/// What a step measured, before its update.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// Mean cross-entropy over the batch's targets, in nats.
    pub(crate) loss: f64,
    /// Norm of the gradient over all weights, before it is clipped.
    pub(crate) gradient_norm: f64,
}

/// A model on a device.
pub(crate) trait Engine {
    /// Gradient of the mean cross-entropy over the batch's targets, clipped, and one update of AdamW. Nothing is updated
    /// when the loss or the norm isn't finite. The batch must have a target.
    fn step(&mut self, batch: &Batch, optimizer: &AdamW, learning_rate: f64) -> Result<Step, EngineError>;

    /// Log-probability of each token's target, 0 where it has none; as many as `batch.ids`.
    fn log_probs(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError>;

    /// Reads texts to go on from, each a span of the batch: the logits of the token after each, `[spans, vocabulary]`.
    fn read(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError>;

    /// Goes on with some of the texts of the last call: `kept` are their numbers in it, rising, and `ids` the token that
    /// each of them is longer by. Gives the logits of the token after each; the texts are numbered anew.
    fn go_on(&mut self, kept: &[usize], ids: &[u32]) -> Result<Vec<f32>, EngineError>;

    /// The weights as they are.
    fn weights(&self) -> Result<Weights, EngineError>;
}

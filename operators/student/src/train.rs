//! Training.

use std::ops::ControlFlow;
use std::time::Instant;

use crate::architecture::{Architecture, ArchitectureError};
use crate::device::Device;
use crate::engine::{Engine, EngineError};
use crate::optimizer::AdamW;
use crate::pack::{Batch, Row, order, pack, steps};
use crate::schedule::learning_rate;
use crate::settings::Settings;
use crate::weights::Weights;
use crate::{cpu, graph};

/// Everything that decides what a training gives, but the device.
#[derive(Debug, Clone)]
pub struct Job {
    /// The model's shape.
    pub architecture: Architecture,
    /// Its weights at the start.
    pub weights: Weights,
    /// What it is trained on; the first epoch takes them in this order, later ones in orders of their own.
    pub rows: Vec<Row>,
    /// Rows whose loss is measured and never trained on.
    pub heldout: Vec<Row>,
    /// How it is trained.
    pub settings: Settings,
    /// Decides the order of rows after the first epoch.
    pub seed: u64,
}

/// What a step measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Event {
    /// Steps done; the last event's is [`Event::steps`].
    pub step: usize,
    /// Steps of the whole training.
    pub steps: usize,
    /// Tokens trained on so far, padding not counted, repeated epochs counted again.
    pub tokens: u64,
    /// Mean cross-entropy over the step's targets, in nats, before its update.
    pub loss: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// Norm of the step's gradient over all weights, before it was clipped.
    pub gradient_norm: f64,
    /// Tokens per second so far, measurements of held-out rows not counted.
    pub tokens_per_second: f64,
    /// Mean cross-entropy over the targets of all held-out rows, after this step, where it was measured.
    pub heldout_loss: Option<f64>,
}

/// What a training gave.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The weights after the last step.
    pub weights: Weights,
    /// Steps done: fewer than planned if an event's receiver broke off.
    pub steps: usize,
    /// Whether every planned step was done.
    pub finished: bool,
    /// Tokens trained on, padding not counted, repeated epochs counted again.
    pub tokens: u64,
    /// Mean loss over the last tenth of the steps (at least one).
    pub loss: f64,
}

/// Why a training stopped, or never began.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A setting can't be used.
    #[error("{0}")]
    Settings(String),
    /// The architecture can't be used, or the weights aren't its own.
    #[error(transparent)]
    Architecture(#[from] ArchitectureError),
    /// There is nothing to learn.
    #[error("nothing to train on: of {rows} row(s), none has a token to predict")]
    Empty {
        /// How many rows there were.
        rows: usize,
    },
    /// A row's token isn't in the model's vocabulary.
    #[error("row {row} holds token {id}, and the model has {vocabulary}: rows and model must have the same tokenizer")]
    Token {
        /// The row's number, from 0; held-out rows count after the others.
        row: usize,
        /// The token.
        id: u32,
        /// The model's `vocab_size`.
        vocabulary: usize,
    },
    /// The loss or the gradient isn't a finite number.
    #[error(
        "the {what} is {value} at step {step} of {steps} (learning rate {learning_rate:.2e}): a lower `learning_rate` or a longer `warmup` usually helps; weights that hold such values themselves don't train at all"
    )]
    NotFinite {
        /// `loss` or `gradient`.
        what: &'static str,
        /// What it was.
        value: f64,
        /// The step, from 1.
        step: usize,
        /// Steps of the whole training.
        steps: usize,
        /// That step's learning rate.
        learning_rate: f64,
    },
    /// The device failed.
    #[error("`{device}` failed: {said} (if memory ran out, lower `batch_size` or `sequence_length`)")]
    Device {
        /// The device.
        device: Device,
        /// What it said.
        said: String,
    },
}

/// Trains on one thread (the CPU's passes use rayon's global pool). `on_event` hears of every step; when it breaks,
/// training stops after that step and what it gave is returned.
///
/// On the CPU the weights are the same bits for any number of threads.
///
/// # Errors
/// For settings, weights or rows that can't be used, a loss that isn't finite, and a device that fails.
pub fn train(job: Job, device: &Device, on_event: &mut dyn FnMut(Event) -> ControlFlow<()>) -> Result<Trained, TrainError> {
    let Job { architecture, weights, rows, heldout, settings, seed } = job;
    if let Some(mistake) = settings.mistake() {
        return Err(TrainError::Settings(mistake));
    }
    if settings.sequence_length > architecture.max_position_embeddings {
        return Err(TrainError::Settings(format!(
            "`sequence_length` is {}, and the model is made for at most {} (`max_position_embeddings`)",
            settings.sequence_length, architecture.max_position_embeddings
        )));
    }
    check_rows(&rows, &heldout, &architecture)?;
    let mut engine = engine(&architecture, weights, device)?;
    let failed = |error: EngineError| TrainError::Device { device: *device, said: error.0 };

    let (length, batch_size) = (settings.sequence_length, settings.batch_size);
    let epochs = steps(&rows, &settings, seed);
    let steps: usize = epochs.iter().map(Vec::len).sum();
    if steps == 0 {
        return Err(TrainError::Empty { rows: rows.len() });
    }
    let heldout_batches: Vec<Batch> = pack(&heldout, &order(heldout.len(), seed, 0), length)
        .chunks(batch_size)
        .map(|sequences| Batch::of(&heldout, sequences, batch_size, length))
        .collect();

    let optimizer = AdamW::new(&settings);
    let (mut step, mut tokens, mut seconds) = (0, 0u64, 0.0);
    let mut losses = Vec::with_capacity(steps);
    let mut stopped = false;
    'training: for batches in epochs {
        for sequences in batches {
            let start = Instant::now();
            let batch = Batch::of(&rows, &sequences, batch_size, length);
            let rate = learning_rate(step, steps, settings.learning_rate, settings.warmup);
            let measured = engine.step(&batch, &optimizer, rate).map_err(failed)?;
            step += 1;
            for (what, value) in [("loss", measured.loss), ("gradient", measured.gradient_norm)] {
                if !value.is_finite() {
                    return Err(TrainError::NotFinite { what, value, step, steps, learning_rate: rate });
                }
            }
            tokens += batch.ids.len() as u64;
            seconds += start.elapsed().as_secs_f64();
            losses.push(measured.loss);
            let due = step == steps || settings.evaluate_every.is_some_and(|every| step.is_multiple_of(every));
            let heldout_loss = if due { mean_loss(&mut *engine, &heldout_batches).map_err(failed)? } else { None };
            let event = Event {
                step,
                steps,
                tokens,
                loss: measured.loss,
                learning_rate: rate,
                gradient_norm: measured.gradient_norm,
                tokens_per_second: tokens as f64 / seconds,
                heldout_loss,
            };
            if on_event(event).is_break() {
                stopped = true;
                break 'training;
            }
        }
    }
    let last = &losses[losses.len() - losses.len().div_ceil(10)..];
    Ok(Trained {
        weights: engine.weights().map_err(failed)?,
        steps: step,
        finished: !stopped || step == steps,
        tokens,
        loss: last.iter().sum::<f64>() / last.len() as f64,
    })
}

/// The model on the device.
pub(crate) fn engine(
    architecture: &Architecture,
    weights: Weights,
    device: &Device,
) -> Result<Box<dyn Engine>, ArchitectureError> {
    architecture.check()?;
    if let Some(reason) = weights.mismatch(architecture) {
        return Err(ArchitectureError::Unsupported(format!("the weights don't fit: {reason}")));
    }
    Ok(match device {
        Device::Cpu => Box::new(cpu::Model::new(architecture, weights)?),
        Device::Cuda(number) => {
            let device = burn::DispatchDevice::Cuda(burn::backend::cuda::CudaDevice { index: *number });
            Box::new(graph::Model::new(architecture, &weights, device)?)
        }
    })
}

fn check_rows(rows: &[Row], heldout: &[Row], architecture: &Architecture) -> Result<(), TrainError> {
    let vocabulary = architecture.vocab_size;
    for (number, row) in rows.iter().chain(heldout).enumerate() {
        if let Some(id) = row.ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(TrainError::Token { row: number, id: *id, vocabulary });
        }
    }
    Ok(())
}

/// Mean loss over the targets of all batches; none if there are none.
fn mean_loss(engine: &mut dyn Engine, batches: &[Batch]) -> Result<Option<f64>, EngineError> {
    let (mut sum, mut targets) = (0.0, 0);
    for batch in batches {
        targets += batch.targets();
        sum -= engine.log_probs(batch)?.into_iter().map(f64::from).sum::<f64>();
    }
    Ok((targets > 0).then(|| sum / targets as f64))
}

#[cfg(test)]
mod tests;

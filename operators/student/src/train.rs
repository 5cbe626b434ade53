//! Training.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use burn::DispatchDevice;
use burn::backend::cuda::CudaDevice;
use serde::{Deserialize, Serialize};

use crate::architecture::{Architecture, ArchitectureError, Precision};
use crate::checkpoint::{Adapter, CheckpointError, write_folder};
use crate::device::Device;
use crate::engine::{Engine, EngineError, Step};
use crate::generate::{Generation, greedily};
use crate::graph::Placing;
use crate::optimizer::Optimizer;
use crate::pack::{Batch, Piece, Row, TOKENS_PER_BATCH, order, pack, steps};
use crate::progress::{Progress, Reached, Saver, digest};
use crate::schedule::learning_rate;
use crate::settings::Settings;
use crate::weights::{HostTensor, TensorError, Tensors, Weights};
use crate::{cpu, graph};

/// Windows of batches that are made ready while the device computes.
const READY: usize = 2;

/// Everything that decides what a training gives, but the device.
#[derive(Debug, Clone)]
pub struct Job {
    /// The model's shape.
    pub architecture: Architecture,
    /// Its weights at the start.
    pub weights: Arc<dyn Tensors>,
    /// What it is trained on; the first epoch takes them in this order, later ones in orders of their own.
    pub rows: Vec<Row>,
    /// What is looked at, and never trained on.
    pub watched: Watched,
    /// How it is trained.
    pub settings: Settings,
    /// Decides the order of rows after the first epoch, and the start of an adapter.
    pub seed: u64,
    /// Where what it has reached is kept until it is done; with none, a training that is killed begins anew.
    pub progress: Option<Progress>,
}

/// What a training is watched by: before its first step, every [`Settings::evaluate_every`] steps and at its end.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// Rows of what is trained on whose loss is measured: whether it learns or memorises.
    pub heldout: Vec<Row>,
    /// Rows of what the model knew before, whose loss is measured, too: whether it forgets.
    pub replay: Vec<Row>,
    /// Texts that the model goes on with, greedily.
    pub prompts: Vec<Vec<u32>>,
    /// Tokens that end what it says.
    pub stop: Vec<u32>,
}

/// New tokens of what a model says of a prompt.
const SAMPLE_TOKENS: usize = 48;

/// What a step measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Steps done; the last event's is [`Event::steps`].
    pub step: usize,
    /// Steps of the whole training.
    pub steps: usize,
    /// Tokens trained on so far, padding not counted, repeated epochs counted again.
    pub tokens: u64,
    /// Mean cross-entropy over the step's targets, in nats, before its update.
    #[serde(with = "exact")]
    pub loss: f64,
    /// The step's learning rate.
    #[serde(with = "exact")]
    pub learning_rate: f64,
    /// Norm of the step's gradient over all weights, before it was clipped.
    #[serde(with = "exact")]
    pub gradient_norm: f64,
    /// Tokens per second since the training was started or gone on with, measurements not counted.
    #[serde(with = "exact")]
    pub tokens_per_second: f64,
    /// What was watched, where it was.
    pub seen: Option<Seen>,
}

impl Watched {
    /// Whether there is nothing to look at.
    fn is_empty(&self) -> bool {
        self.heldout.is_empty() && self.replay.is_empty() && self.prompts.is_empty()
    }
}

/// What was seen after a step, or before the first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Mean cross-entropy over the targets of all held-out rows of what is trained on.
    #[serde(with = "exact::optional")]
    pub heldout_loss: Option<f64>,
    /// Mean cross-entropy over the targets of all rows of what the model knew before.
    #[serde(with = "exact::optional")]
    pub replay_loss: Option<f64>,
    /// The new tokens of each prompt.
    pub samples: Vec<Vec<u32>>,
}

/// Numbers as their bits: what was saved is read back exactly.
mod exact {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.to_bits().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        u64::deserialize(deserializer).map(f64::from_bits)
    }

    pub(super) mod optional {
        use super::{Deserialize, Deserializer, Serialize, Serializer};

        pub(in super::super) fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
            value.map(f64::to_bits).serialize(serializer)
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
            Ok(Option::<u64>::deserialize(deserializer)?.map(f64::from_bits))
        }
    }
}

/// What a training gave, still on its device.
pub struct Trained {
    engine: Box<dyn Engine>,
    device: Device,
    architecture: Architecture,
    /// Steps done: fewer than planned if an event's receiver broke off.
    pub steps: usize,
    /// Whether every planned step was done.
    pub finished: bool,
    /// Tokens trained on, padding not counted, repeated epochs counted again.
    pub tokens: u64,
    /// Mean loss over the last tenth of the steps (at least one).
    pub loss: f64,
    /// What was seen before the first step, if anything is watched.
    pub before: Option<Seen>,
    /// What each step measured, those before it was gone on with included.
    pub events: Vec<Event>,
}

impl fmt::Debug for Trained {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Trained").field("steps", &self.steps).field("loss", &self.loss).finish_non_exhaustive()
    }
}

impl Trained {
    /// The trained model's configuration: the start's, in the precision of the settings.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Writes the model as a checkpoint folder with these other files, a tensor at a time, as [`crate::Checkpoint::write`]
    /// does. An adapter is merged into it.
    ///
    /// # Errors
    /// When it exists, the file system refuses, or the device fails.
    pub fn write(&self, folder: &Path, files: &BTreeMap<String, Vec<u8>>) -> Result<(), CheckpointError> {
        write_folder(folder, &self.architecture, files, &mut |name| self.tensor(name))
    }

    /// The adapter, if one was trained.
    ///
    /// # Errors
    /// When the device fails.
    pub fn adapter(&self) -> Result<Option<Adapter>, TrainError> {
        self.engine.adapter().map_err(|error| failed(self.device, error))
    }

    /// All weights in host memory.
    ///
    /// # Errors
    /// When the device fails.
    pub fn weights(&self) -> Result<Weights, TensorError> {
        let tensor = |(name, _): (String, _)| self.tensor(&name).map(|tensor| (name, tensor));
        Ok(Weights { tensors: self.architecture.tensors().into_iter().map(tensor).collect::<Result<_, _>>()? })
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, TensorError> {
        self.engine.tensor(name).map_err(|error| match error {
            EngineError::Tensor(error) => error,
            other => TensorError { name: name.to_owned(), reason: other.to_string() },
        })
    }
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
    /// A tensor of the start can't be had.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// What was reached can't be kept.
    #[error("what the training has reached can't be kept: {0}")]
    Progress(#[from] CheckpointError),
    /// There is nothing to learn.
    #[error("nothing to train on: of {rows} row(s), none has a token to predict")]
    Empty {
        /// How many rows there were.
        rows: usize,
    },
    /// A row's token isn't in the model's vocabulary.
    #[error("row {row} holds token {id}, and the model has {vocabulary}: rows and model must have the same tokenizer")]
    Token {
        /// The row's number, from 0; rows that are only watched count after the others.
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
    #[error("`{device}` failed: {said}")]
    Device {
        /// The device.
        device: Device,
        /// What it said.
        said: String,
    },
}

fn failed(device: Device, error: EngineError) -> TrainError {
    match error {
        EngineError::Device(said) => TrainError::Device { device, said },
        EngineError::Tensor(error) => error.into(),
        EngineError::Architecture(error) => error.into(),
    }
}

/// Trains on one thread (the CPU's passes use rayon's global pool); another makes batches ready. `on_event` hears of every
/// step; when it breaks, training stops after that step and what it gave is returned.
///
/// On the CPU the weights are the same bits for any number of threads, and for a training that was killed and gone on with.
///
/// # Errors
/// For settings, weights or rows that can't be used, a loss that isn't finite, and a device that fails.
pub fn train(job: Job, device: &Device, on_event: &mut dyn FnMut(&Event) -> ControlFlow<()>) -> Result<Trained, TrainError> {
    let Job { mut architecture, weights, rows, watched, settings, seed, progress } = job;
    if let Some(mistake) = settings.mistake() {
        return Err(TrainError::Settings(mistake));
    }
    if settings.sequence_length > architecture.max_position_embeddings {
        return Err(TrainError::Settings(format!(
            "`sequence_length` is {}, and the model is made for at most {} (`max_position_embeddings`)",
            settings.sequence_length, architecture.max_position_embeddings
        )));
    }
    check_rows(rows.iter().chain(&watched.heldout).chain(&watched.replay), &architecture)?;
    architecture.set_precision(settings.precision);
    let windows: Vec<Vec<Vec<Piece>>> = steps(&rows, &settings, seed).into_iter().flatten().collect();
    if windows.is_empty() {
        return Err(TrainError::Empty { rows: rows.len() });
    }
    let mut saver = match progress {
        Some(progress) => Saver::open(progress, digest(&architecture, &settings, &rows, seed))?,
        None => None,
    };
    let placing = Placing {
        precision: settings.precision,
        trained: true,
        lora: settings.lora.map(|lora| (lora, seed)),
        rank_step: if matches!(device, Device::Cuda(_)) { graph::SIZE_STEP } else { 1 },
        fused: settings.fused_update,
    };
    let mut engine = engine(&architecture, &*weights, device, placing).map_err(|error| failed(*device, error))?;
    let optimizer = Optimizer::new(&settings);
    let mut reached = Reached::default();
    if let Some((saved, state)) = saver.as_ref().and_then(Saver::resumed) {
        engine.restore(saved.steps, &optimizer, &state).map_err(|error| failed(*device, error))?;
        reached = saved;
    }
    let micro = micro_batch(&settings, device);
    let shape = (settings.sequence_length, micro);
    let watch = (!watched.is_empty()).then(|| Watch::new(watched, shape, architecture.vocab_size, seed));
    let look = |engine: &mut dyn Engine| {
        watch.as_ref().map(|watch| watch.look(engine)).transpose().map_err(|error| failed(*device, error))
    };
    if reached.steps == 0 {
        reached.before = look(&mut *engine)?;
    }
    let (steps, length) = (windows.len(), settings.sequence_length);
    let begun = (Instant::now(), reached.tokens);
    let mut watching = 0.0;
    let mut stopped = false;

    std::thread::scope(|scope| {
        let (ready, windows_ready) = sync_channel(READY);
        let (rows, windows, first) = (&rows, &windows, reached.steps);
        scope.spawn(move || {
            for window in &windows[first..] {
                let batches: Vec<Batch> =
                    window.chunks(micro).map(|sequences| Batch::of(rows, sequences, micro, length)).collect();
                // The trainer has ended: nobody wants more.
                if ready.send(batches).is_err() {
                    break;
                }
            }
        });
        for window in windows_ready {
            let rate = learning_rate(reached.steps, steps, settings.learning_rate, settings.warmup);
            let Step { loss, gradient_norm } = engine.step(&window, &optimizer, rate).map_err(|error| failed(*device, error))?;
            reached.steps += 1;
            let step = reached.steps;
            for (what, value) in [("loss", loss), ("gradient", gradient_norm)] {
                if !value.is_finite() {
                    return Err(TrainError::NotFinite { what, value, step, steps, learning_rate: rate });
                }
            }
            reached.tokens += window.iter().map(|batch| batch.ids.len() as u64).sum::<u64>();
            let seconds = begun.0.elapsed().as_secs_f64() - watching;
            let due = step == steps || settings.evaluate_every.is_some_and(|every| step.is_multiple_of(every));
            let since = Instant::now();
            let seen = if due { look(&mut *engine)? } else { None };
            let event = Event {
                step,
                steps,
                tokens: reached.tokens,
                loss,
                learning_rate: rate,
                gradient_norm,
                tokens_per_second: (reached.tokens - begun.1) as f64 / seconds,
                seen,
            };
            let answer = on_event(&event);
            reached.events.push(event);
            if let Some(saver) = saver.as_mut().filter(|saver| step < steps && saver.is_due(step)) {
                saver.save(&*engine, &reached)?;
            }
            watching += since.elapsed().as_secs_f64();
            if answer.is_break() {
                stopped = true;
                break;
            }
        }
        Ok(())
    })?;
    let Reached { steps: done, tokens, before, events, .. } = reached;
    let last = &events[events.len() - events.len().div_ceil(10)..];
    let loss = last.iter().map(|event| event.loss).sum::<f64>() / last.len() as f64;
    let finished = !stopped || done == steps;
    Ok(Trained { engine, device: *device, architecture, steps: done, finished, tokens, loss, before, events })
}

/// Sequences that are computed at a time.
fn micro_batch(settings: &Settings, device: &Device) -> usize {
    let fitting = match device {
        Device::Cpu => settings.batch_size,
        Device::Cuda(_) => (TOKENS_PER_BATCH / settings.sequence_length).max(1),
    };
    settings.micro_batch.unwrap_or(fitting).min(settings.batch_size)
}

/// The model on the device.
pub(crate) fn engine(
    architecture: &Architecture,
    weights: &dyn Tensors,
    device: &Device,
    placing: Placing,
) -> Result<Box<dyn Engine>, EngineError> {
    architecture.check()?;
    if let Some(reason) = weights.mismatch(architecture) {
        return Err(ArchitectureError::Unsupported(format!("the weights don't fit: {reason}")).into());
    }
    let (device, placing) = match device {
        Device::Cpu if placing.lora.is_none() => return Ok(Box::new(cpu::Model::new(architecture, weights)?)),
        // The processor computes in 32 bits; 16 would only be converted back and forth.
        Device::Cpu => (DispatchDevice::Flex(Default::default()), Placing { precision: Precision::F32, ..placing }),
        Device::Cuda(number) => {
            graph::check_sizes(architecture)?;
            (DispatchDevice::Cuda(CudaDevice { index: *number }), placing)
        }
    };
    Ok(Box::new(graph::Model::new(architecture, weights, device, placing)?))
}

fn check_rows<'a>(rows: impl Iterator<Item = &'a Row>, architecture: &Architecture) -> Result<(), TrainError> {
    let vocabulary = architecture.vocab_size;
    for (number, row) in rows.enumerate() {
        if let Some(id) = row.ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(TrainError::Token { row: number, id: *id, vocabulary });
        }
    }
    Ok(())
}

/// What is watched, ready to be looked at.
struct Watch {
    heldout: Vec<Batch>,
    replay: Vec<Batch>,
    prompts: Vec<Vec<u32>>,
    sampling: Generation,
    vocabulary: usize,
}

impl Watch {
    /// `length` tokens in a sequence, and `size` sequences at a time.
    fn new(watched: Watched, (length, size): (usize, usize), vocabulary: usize, seed: u64) -> Self {
        let batches = |rows: &[Row]| -> Vec<Batch> {
            let sequences = pack(rows, &order(rows.len(), seed, 0), length);
            sequences.chunks(size).map(|sequences| Batch::of(rows, sequences, size, length)).collect()
        };
        Self {
            heldout: batches(&watched.heldout),
            replay: batches(&watched.replay),
            prompts: watched.prompts,
            sampling: Generation::greedy(SAMPLE_TOKENS, watched.stop),
            vocabulary,
        }
    }

    fn look(&self, engine: &mut dyn Engine) -> Result<Seen, EngineError> {
        Ok(Seen {
            heldout_loss: mean_loss(engine, &self.heldout)?,
            replay_loss: mean_loss(engine, &self.replay)?,
            samples: match self.prompts.is_empty() {
                true => Vec::new(),
                false => {
                    let said = greedily(engine, self.vocabulary, &self.prompts, &self.sampling)?;
                    said.into_iter().map(|generated| generated.ids).collect()
                }
            },
        })
    }
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

//! Trains a student on a mixture.

mod adapter;
mod heldout;
mod line;
mod metrics;
mod mixture;
mod samples;
mod seen;

use std::{collections::BTreeMap, ops::ControlFlow, path::PathBuf, sync::Arc, time::Duration};

use arrow::datatypes::DataType;
use async_trait::async_trait;
use ingrain_engine::{
    failure::Failure,
    key,
    operator::{DEFAULT_OUTPUT, Inputs, Invalid, Lowering, Operator, OperatorType, Output, Port, Ports, Resource, Role},
    run::{Counters, Task, TaskContext},
    spec::Size,
};
pub use ingrain_student::Place;
use ingrain_student::{
    Architecture, Device, DeviceError, Event, Every, Job, Lora, Precision, Progress, Rule, Seen, Settings, TrainError, Trained,
    Watched,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use self::heldout::{HeldOut, Lot};
pub use self::seen::{Fate, Training};
use self::{
    line::{Line, grouped},
    mixture::Divided,
};
use crate::{
    checkpoint::{self, FOLDER, Row, Start},
    columns::is_text,
    tokenizer,
};

/// The port of what is trained on.
pub const MIXTURE: &str = "mixture";
/// The port of the checkpoint to start from.
pub const BASE: &str = "base";
const METRICS: &str = "metrics";
const SAMPLES: &str = "samples";
const ADAPTER: &str = "adapter";
const TOKENIZER: &str = "tokenizer";

/// What a training has reached is saved after this time, where no steps are given.
const SAVE_AFTER: Duration = Duration::from_secs(120);
/// Held-out rows that the model is asked to go on with, and the most tokens of each that it is shown.
const PROMPTS: (usize, usize) = (3, 32);

/// The row of the operator table.
pub const TYPE: OperatorType = OperatorType::of::<Train>("train", 3)
    .unkeyed(&[("save_every", "it decides how much of a training that was killed is done again, and nothing of what it gives")]);

/// Trains a checkpoint on a mixture: all its weights, or an adapter beside them. A linear warm-up, then a cosine to 0.
///
/// Rows are trained on in the mixture's order in the first epoch, and in orders of their own, by seed, in every later one.
/// A row is the begin token (if the tokenizer has one), `text` and the end token; one with `messages` is what the base's chat
/// template makes of them, and no other token. It is put whole into a sequence beside others where it fits, cut where it is
/// longer. The model sees where each row begins and ends: attention stays within a row, and positions count from its start. So packing decides what a step costs, and nothing else.
///
/// Where a field is left out, its default depends on the base. Random weights (a preset's) lack steps, not tokens:
///
/// | field | random weights | trained before |
/// |---|---|---|
/// | `epochs` | 1 | 2 |
/// | `learning_rate` | 3e-3 | 1e-5 |
/// | `sequence` | 128 | 2,048 |
/// | `batch` | 2 | 16 |
///
/// The loss that shows whether a student learns or memorises is measured on rows that are never trained on: `heldout` is
/// their share, and all rows with one `parent_id` are held out together, repeats included. Which they are depends on the
/// `parent_id` alone: neither the seed nor the budget moves one. Rows of replay are held out for themselves, by the same share.
///
/// A training that was killed goes on from what it saved last, in the local cache folder, and gives the same as one that wasn't: on the
/// CPU to the bit. Updates are made to 32-bit weights, whatever the precision; on the CPU everything is computed in 32 bits, and
/// `precision` is that of the files.
///
/// What doesn't fit into a device's memory may fit with a smaller `micro_batch` or `sequence` (what is computed at a time). In 16-bit
/// precision, a weight takes 2 bytes, 4 for its 32-bit master, 8 for AdamW's means (hardly any with `optimizer: adafactor`) and 4 for
/// its gradient (hardly any with `fused_update`); with `lora`, the 2 bytes and no more.
///
/// The stage runs where `--device` says, in a process of its own. On the CPU the weights come out the same for any number of
/// threads; on a GPU they differ in their last digits from run to run. Beside the model, the tokens of the mixture are in
/// memory: 4 bytes each, and some 60 bytes a row.
///
/// # Ports
/// - `mixture`: `text`, `prompt` (what of the text stands before the answer, or null), `position`, `parent_id`, and perhaps
///   `messages` and `kind`, as `mix` gives them.
/// - `base`: the checkpoint to start from.
///
/// # Outputs
/// - default: the trained checkpoint, as `checkpoint` gives it, with `parent_id` (the base's row): `step` and `tokens` count
///   what the base was trained on before, too; `loss` is the mean over the last tenth of the steps (a mean of cross-entropies
///   in nats over tokens, as every loss here); `render` is the form of the mixture's questions, or the base's where it has none.
/// - `metrics`: a row for each step: `step`, `tokens` (trained on until then, repeats counted, padding not), `loss` (before
///   the step's update), `learning_rate`, `gradient_norm` (before it is clipped), `heldout_loss` (null where it wasn't measured),
///   `replay_loss` (of held-out rows of the mixture's `kind` `replay`: what the model knew before; e to its power is their
///   perplexity). Where rows are held out, the base's losses stand in a row with `step` 0: what is forgotten is the rise from there.
/// - `samples`: how the model goes on with the beginnings of three held-out rows, wherever their loss is measured: `step`,
///   `prompt` (the beginning), `text` (what the model says, the likeliest token each time), `expected` (what the row says).
/// - `adapter`, with `lora`: one row, `uri`, `digest` (of the folder's files), `rank`, `alpha`. The folder, as PEFT reads it, lies
///   beside it as `adapter/...`. The default output is the model with the adapter merged into it.
/// - `tokenizer`: the base's.
///
/// # Example
/// ```yaml
/// student: { op: train, from: { mixture: mixture, base: base }, epochs: 2, learning_rate: 1.0e-5 }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// How often every row is trained on. Default 1 for random weights, 2 for others.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub epochs: Option<u32>,
    /// The highest learning rate, reached after the warm-up. Default 3e-3 for random weights, 1e-5 for others.
    #[serde(default)]
    #[schemars(range(max = 1000.0), extend("exclusiveMinimum" = 0))]
    pub learning_rate: Option<f64>,
    /// Tokens in a sequence: at least 2, at most what the model is made for. Default 128 for random weights, 2048 for others.
    #[serde(default)]
    pub sequence: Option<Size>,
    /// Sequences in a step. Default 2 for random weights, 16 for others.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub batch: Option<u32>,
    /// Sequences that are computed at a time; the gradient of a step is theirs together. Default: all of a step on the CPU, and on
    /// a device as many as have some 8,192 tokens.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub micro_batch: Option<u32>,
    /// How an update is made of a gradient. Default `adamw`.
    #[serde(default)]
    pub optimizer: Rule,
    /// What the trained weights are stored in, and on a CUDA device computed in: `f32` or `bf16`. Default: the base's.
    #[serde(default)]
    pub precision: Option<Precision>,
    /// Trains an adapter of this rank beside every projection, in place of all weights: `{ rank: 32, alpha: 64 }`.
    #[serde(default)]
    pub lora: Option<Lora>,
    /// On a device, updates each tensor as soon as its gradient is there; the gradient is then clipped by the norm of the step
    /// before. Default false.
    #[serde(default)]
    pub fused_update: bool,
    /// The share of steps over which the learning rate rises from 0. Default 0.05.
    #[serde(default = "twentieth")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub warmup: f64,
    /// Decay of the weights in matrices per step, times the learning rate. Default 0.01.
    #[serde(default = "hundredth")]
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub weight_decay: f64,
    /// Decay of AdamW's mean of gradients. Default 0.9.
    #[serde(default = "beta1")]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub beta1: f64,
    /// Decay of AdamW's mean of squared gradients. Default 0.999.
    #[serde(default = "beta2")]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub beta2: f64,
    /// Added to the root of AdamW's mean of squared gradients. Default 1e-8.
    #[serde(default = "epsilon")]
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0))]
    pub epsilon: f64,
    /// A gradient whose norm over all weights is longer is scaled down to this. Default 1.
    #[serde(default = "unit")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub clip: f64,
    /// Which tokens the model learns to predict. Default `all`.
    #[serde(default)]
    pub loss_on: LossOn,
    /// The share of the mixture's source rows that is held out, at least one of them; 0 holds none out. Default 0.01.
    #[serde(default = "hundredth")]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub heldout: f64,
    /// Steps between measurements of the losses on held-out rows. Left out, they are measured before the first step and after the
    /// last only.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub evaluate_every: Option<u32>,
    /// Steps between two savings of what the training has reached. Left out: every two minutes, or less often where saving takes
    /// long.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub save_every: Option<u32>,
}

/// Which tokens a model learns to predict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    /// Every token.
    #[default]
    All,
    /// Those after `prompt`: the answer with its explanation. In a row without one, every token.
    Completion,
}

fn twentieth() -> f64 {
    0.05
}

fn hundredth() -> f64 {
    0.01
}

fn beta1() -> f64 {
    0.9
}

fn beta2() -> f64 {
    0.999
}

fn epsilon() -> f64 {
    1e-8
}

fn unit() -> f64 {
    1.0
}

impl Operator for Train {
    fn ports(&self) -> Ports {
        let mixture = [
            ("row_id", DataType::Utf8),
            ("parent_id", DataType::Utf8),
            ("prompt", DataType::Utf8),
            ("text", DataType::Utf8),
            ("position", DataType::Int64),
        ];
        let base = [
            ("row_id", DataType::Utf8),
            ("architecture", DataType::Utf8),
            ("step", DataType::Int64),
            ("tokens", DataType::Int64),
            ("final", DataType::Boolean),
        ];
        Ports::Named(vec![Port::new(MIXTURE, &mixture).role(Role::Train), Port::new(BASE, &base)])
    }

    fn bind(&self, inputs: &Inputs) -> Result<Vec<Output>, Vec<Invalid>> {
        let mut mistakes = Vec::new();
        if let Some(mixture) = inputs.first(MIXTURE) {
            let other = |name: &&str| mixture.schema.field_with_name(name).is_ok() && !is_text(&mixture.schema, name);
            for name in [mixture::KIND, mixture::MESSAGES].iter().filter(|name| other(name)) {
                let message = format!("the column `{name}` of `{}` isn't text", mixture.name);
                mistakes.push(Invalid::new(&format!("/from/{MIXTURE}"), message).hint(
                    "`mix` gives kinds by name and conversations as JSON; leave the column out if it means something else",
                ));
            }
        }
        if self.sequence.is_some_and(|Size(sequence)| sequence < 2) {
            mistakes.push(Invalid::new("/sequence", "must be at least 2: a token is predicted from the one before it"));
        }
        let open = [("/beta1", self.beta1), ("/beta2", self.beta2), ("/heldout", self.heldout)];
        for (field, value) in open.into_iter().filter(|(_, value)| !(0.0..1.0).contains(value)) {
            mistakes.push(Invalid::new(field, format!("is {value}; it lies from 0 up to, and not at, 1")));
        }
        let positive = [("/epsilon", self.epsilon), ("/clip", self.clip), ("/learning_rate", self.learning_rate.unwrap_or(1.0))];
        for (field, value) in positive.into_iter().filter(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            mistakes.push(Invalid::new(field, format!("is {value}; it must be above 0")));
        }
        if let Some(lora) = self.lora {
            if lora.rank == 0 {
                mistakes.push(Invalid::new("/lora/rank", "is 0; it must be at least 1"));
            }
            if !(lora.alpha.is_finite() && lora.alpha > 0.0) {
                mistakes.push(Invalid::new("/lora/alpha", format!("is {}; it must be above 0", lora.alpha)));
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let mut outputs = vec![
            Output::new(DEFAULT_OUTPUT, checkpoint::fields(true)),
            Output::new(METRICS, metrics::fields()),
            Output::new(SAMPLES, samples::fields()),
            Output::new(TOKENIZER, tokenizer::fields()),
        ];
        outputs.extend(self.lora.map(|_| Output::new(ADAPTER, adapter::fields())));
        Ok(outputs)
    }

    fn lower(&self, _: &Inputs) -> Lowering {
        Lowering::Task(Arc::new(Learn(self.clone())))
    }

    fn draws(&self) -> bool {
        true
    }

    fn resource(&self) -> Resource {
        Resource::Device
    }
}

impl Train {
    /// The settings for a base with random weights, or another, of that precision.
    pub(crate) fn settings(&self, random: bool, precision: Precision) -> Settings {
        let defaults = if random { Settings::default() } else { Settings::pretrained() };
        let count = |given: Option<u32>, default: usize| given.map_or(default, |given| given as usize);
        Settings {
            sequence_length: self.sequence.map_or(defaults.sequence_length, |size| usize::try_from(size.0).unwrap_or(usize::MAX)),
            batch_size: count(self.batch, defaults.batch_size),
            epochs: count(self.epochs, defaults.epochs),
            learning_rate: self.learning_rate.unwrap_or(defaults.learning_rate),
            warmup: self.warmup,
            weight_decay: self.weight_decay,
            micro_batch: self.micro_batch.map(|sequences| sequences as usize),
            optimizer: self.optimizer,
            precision: self.precision.unwrap_or(precision),
            lora: self.lora,
            fused_update: self.fused_update,
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            clip_norm: self.clip,
            evaluate_every: self.evaluate_every.map(|steps| steps as usize),
        }
    }
}

struct Learn(Train);

#[async_trait]
impl Task for Learn {
    async fn run(&self, context: &mut TaskContext) -> Result<(), Failure> {
        let device = device(&context.environment.device)?;
        context.computed_on(device);
        let table = context.table(BASE)?;
        let start = Start::of(&table.collect().await?)?;
        context.counters.say("fetching the base");
        let base = ingrain_student::Checkpoint::read(&table.folder(FOLDER).await?).map_err(checkpoint::failure)?;
        let settings = self.0.settings(start.is_random, base.architecture.precision());
        let longest = base.architecture.max_position_embeddings;
        if settings.sequence_length > longest {
            return Err(Failure::data(format!(
                "`sequence` is {}, and the model is made for at most {longest}",
                settings.sequence_length
            )));
        }
        let tokenizer = base.tokenizer().map_err(checkpoint::failure)?;
        let form = mixture::Form::new(context.table(MIXTURE)?, &base.files, tokenizer.clone(), self.0.loss_on)?;
        let (Divided { rest, heldout, replay }, render) = mixture::read(context, &form, &self.0).await?;
        let (rows, heldout, replay) = (mixture::tokens(rest), mixture::tokens(heldout), mixture::tokens(replay));
        let prompts = samples::prompts(&heldout, PROMPTS);
        let expected = samples::texts(&tokenizer, &prompts)?;

        let files = base.files;
        let every = self.0.save_every.map_or(Every::Time(SAVE_AFTER), |steps| Every::Steps(steps as usize));
        let job = Job {
            architecture: base.architecture,
            weights: base.weights,
            rows,
            watched: Watched {
                heldout,
                replay,
                prompts: prompts.into_iter().map(|(prompt, _)| prompt).collect(),
                stop: form.ends()?,
            },
            settings,
            seed: context.seed,
            progress: Some(Progress { folder: context.progress().to_path_buf(), every }),
        };
        let folders = Folders {
            checkpoint: context.scratch().join(FOLDER),
            adapter: context.scratch().join(ADAPTER),
            base: start.row_id.clone(),
            files: files.clone(),
        };
        let Learnt { before, events, tokens, steps, loss, architecture } =
            learn(job, device, context.counters.clone(), folders).await?;

        let digest = context.put_folder(DEFAULT_OUTPUT, FOLDER, &context.scratch().join(FOLDER)).await?;
        let step = start.step + number(steps as u64);
        let row = Row {
            row_id: key::row_id("train", 0, &[&start.row_id], 0, step as u64),
            parent_id: Some(start.row_id.clone()),
            digest,
            architecture: checkpoint::described(&architecture)?,
            step,
            tokens: start.tokens + number(tokens),
            loss: Some(loss),
            render: render.or(start.render),
        };
        context.write(DEFAULT_OUTPUT, row.batch(context.schema(DEFAULT_OUTPUT)?)?).await?;
        context.write(METRICS, metrics::rows(context.schema(METRICS)?, &start.row_id, before.as_ref(), &events)?).await?;
        let seen = samples::seen(before.as_ref(), &events);
        context.write(SAMPLES, samples::rows(context.schema(SAMPLES)?, &start.row_id, seen, &expected, &tokenizer)?).await?;
        if let Some(lora) = self.0.lora {
            let digest = context.put_folder(ADAPTER, ADAPTER, &context.scratch().join(ADAPTER)).await?;
            context.write(ADAPTER, adapter::row(context.schema(ADAPTER)?, &start.row_id, digest, lora)?).await?;
        }
        tokenizer::put(context, TOKENIZER, &files).await
    }
}

/// Where a trained model is written.
struct Folders {
    checkpoint: PathBuf,
    adapter: PathBuf,
    /// What an adapter calls its base.
    base: String,
    /// The small files of the checkpoint.
    files: BTreeMap<String, Vec<u8>>,
}

/// What is left of a training when its model is written.
struct Learnt {
    before: Option<Seen>,
    events: Vec<Event>,
    tokens: u64,
    steps: usize,
    loss: f64,
    architecture: Architecture,
}

/// Trains on a thread of its own, which says how far it is, and writes the model from there: tensors of a device belong to one thread.
async fn learn(job: Job, device: Device, counters: Arc<Counters>, folders: Folders) -> Result<Learnt, Failure> {
    let training = tokio::task::spawn_blocking(move || {
        let mut line = Line::new(&job, device);
        let trained = ingrain_student::train(job, &device, &mut |event| {
            counters.say(line.of(event));
            counters.progress(event.step as u64, event.steps as u64);
            ControlFlow::Continue(())
        })
        .map_err(train_failure)?;
        trained.write(&folders.checkpoint, &folders.files).map_err(checkpoint::failure)?;
        if let Some(adapter) = trained.adapter().map_err(train_failure)? {
            adapter.write(&folders.adapter, &folders.base).map_err(checkpoint::failure)?;
        }
        let architecture = trained.architecture().clone();
        let Trained { before, events, tokens, steps, loss, .. } = trained;
        Ok(Learnt { before, events, tokens, steps, loss, architecture })
    });
    match training.await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(Failure::bug(error.to_string())),
    }
}

/// The device called `name`: `auto`, `cpu`, `cuda:0`.
///
/// # Errors
/// For a name that means nothing, and for a device that can't be had: what is missing.
pub fn device(name: &str) -> Result<Device, Failure> {
    Device::resolve(name).map_err(|error| match error {
        DeviceError::Unknown(_) => Failure::data(error.to_string()),
        DeviceError::Cuda { .. } => Failure::external(error.to_string()).hint("`--device cpu` trains on the processor"),
    })
}

fn train_failure(error: TrainError) -> Failure {
    match error {
        TrainError::Device { device, said } => Failure::external(format!("`{device}` failed: {said}"))
            .hint("if its memory ran out: lower `micro_batch` or `sequence`, set `fused_update: true`, or train a `lora`"),
        TrainError::Token { .. } => {
            Failure::bug(error.to_string()).hint("the checkpoint's tokenizer gives tokens that the model doesn't have")
        }
        error => Failure::data(error.to_string()),
    }
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;

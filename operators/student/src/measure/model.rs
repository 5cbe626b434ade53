//! Training and generating, as stages do it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use super::clock::{FEWEST, Times, WARM_UP, enough};
use super::memory::Watch;
use super::shape::{Shape, noise};
use super::{Measured, Rate};
use crate::architecture::Precision;
use crate::device::Device;
use crate::generate::Generation;
use crate::score::Scorer;
use crate::settings::Settings;
use crate::train::{Job, Watched, train};

/// Layers that are put on top of one, to see what a layer takes.
const MORE_LAYERS: usize = 4;

/// Tokens that are made up for a training at most: it ends sooner or later.
const MOST_TOKENS: usize = 8 << 20;

/// What models are computed in: what people train them in there.
fn precision(device: &Device) -> Precision {
    match device {
        Device::Cpu => Precision::F32,
        Device::Cuda(_) => Precision::Bf16,
    }
}

/// Training steps: tokens per second, and the most memory taken.
pub(super) fn training(device: &Device, shape: &Shape, seconds: f64) -> Measured {
    let watch = Watch::start(device);
    let times = steps(device, shape, seconds)?;
    let memory = watch.stop();
    let tokens = shape.step_tokens() as f64;
    let detail = format!("{} x {} tokens a step", shape.batch, shape.sequence);
    let mut rates = vec![Rate::new(shape, "training", detail.clone(), &times, "tokens/s", |time| tokens / time)];
    rates.extend(memory.map(|bytes| Rate::memory(shape, "training memory", detail, bytes)));
    Ok(rates)
}

/// What a layer adds to a training step.
pub(super) fn layer(device: &Device, shape: &Shape, seconds: f64) -> Measured {
    let one = steps(device, &shape.of_layers(1), seconds)?;
    let several = steps(device, &shape.of_layers(1 + MORE_LAYERS), seconds)?;
    let value = (several.median() - one.median()) / MORE_LAYERS as f64 * 1e3;
    let detail = format!("{} x {} tokens; forward, backward and update", shape.batch, shape.sequence);
    let of_step = Rate::new(shape, "layer", detail, &several, "ms", |time| time * 1e3);
    Ok(vec![Rate { value, range: None, ..of_step }])
}

/// Times of training steps.
fn steps(device: &Device, shape: &Shape, seconds: f64) -> Result<Times, String> {
    let architecture = shape.architecture();
    let most = (MOST_TOKENS / shape.step_tokens()).clamp(WARM_UP + FEWEST, 1000);
    let job = Job {
        weights: Arc::new(noise(&architecture)),
        architecture,
        rows: shape.rows(most),
        watched: Watched::default(),
        settings: Settings {
            precision: precision(device),
            fused_update: matches!(device, Device::Cuda(_)),
            sequence_length: shape.sequence,
            batch_size: shape.batch,
            learning_rate: 1e-5,
            ..Settings::default()
        },
        seed: 0,
        progress: None,
    };
    let (mut all, mut last, mut warm) = (Vec::new(), Instant::now(), Instant::now());
    train(job, device, &mut |event| {
        let now = Instant::now();
        match event.step {
            step if step < WARM_UP => {}
            WARM_UP => warm = now,
            _ => all.push((now - last).as_secs_f64()),
        }
        last = now;
        if enough(all.len(), warm, seconds) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .map_err(|error| error.to_string())?;
    Ok(Times::new(all))
}

/// Tokens per second of generating `batch` texts at once, without the time that reading the prompts takes; and the most
/// memory taken, weights included.
pub(super) fn decode(device: &Device, shape: &Shape, batch: usize, seconds: f64) -> Measured {
    let watch = Watch::start(device);
    let mut architecture = shape.architecture();
    architecture.set_precision(precision(device));
    let mut scorer = Scorer::new(&architecture, &noise(&architecture), device).map_err(|error| error.to_string())?;
    let prompts = shape.prompts(batch);
    let mut once = |new: usize| {
        let start = Instant::now();
        let texts = scorer.generate(&prompts, &Generation::greedy(new, Vec::new())).map_err(|error| error.to_string())?;
        debug_assert!(texts.iter().all(|text| text.ids.len() == new));
        Ok::<_, String>(start.elapsed().as_secs_f64())
    };
    let (mut all, mut warm) = (Vec::new(), Instant::now());
    for repetition in 0.. {
        // The first token comes with the prompt.
        let (first, whole) = (once(1)?, once(shape.new)?);
        match repetition + 1 {
            done if done < WARM_UP => {}
            WARM_UP => warm = Instant::now(),
            _ => all.push((whole - first).max(1e-9)),
        }
        if enough(all.len(), warm, seconds) {
            break;
        }
    }
    let memory = watch.stop();
    let tokens = (batch * (shape.new - 1)) as f64;
    let detail = format!("batch {batch}, {} tokens after {}", shape.new, shape.prompt);
    let rate = Rate::new(shape, "decode", detail.clone(), &Times::new(all), "tokens/s", |time| tokens / time);
    let mut rates = vec![Rate { batch: Some(batch), ..rate }];
    rates.extend(memory.map(|bytes| Rate { batch: Some(batch), ..Rate::memory(shape, "decode memory", detail, bytes) }));
    Ok(rates)
}

//! What a device computes, and how fast: whether its numbers are the CPU's, and rates with models of known shapes.
//!
//! Rates of training and generation are those of [`crate::train`] and [`crate::Scorer`], whatever these do on the device.
//! Products and attention are plain operations of burn (`flex` on the CPU): what the device gives to those who do no more.

mod clock;
mod memory;
mod model;
mod numerics;
mod products;
mod shape;

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::DispatchDevice;
use burn::tensor::DType;
use serde::{Deserialize, Serialize};

pub use self::memory::peak_memory;
pub use self::numerics::compare;
pub use self::products::try_out;
pub use self::shape::{SHAPES, Shape};

use self::clock::Times;
use crate::device::{Description, Device, DeviceError};

/// What was found out about a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Finding {
    /// What it is.
    Device(Description),
    /// A small product was right.
    Right {
        /// Seconds for it, the device's start included.
        seconds: f64,
    },
    /// A quantity was held against the CPU's.
    Compared(Compared),
    /// What the rates that follow are measured with.
    Shape(Shape),
    /// A rate.
    Rate(Rate),
    /// Something wasn't measured.
    Skipped {
        /// With which shape.
        shape: String,
        /// What.
        what: String,
        /// Why not.
        reason: String,
    },
}

/// A quantity of a small model on a device and on the CPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// `loss`, `gradient`, `log-probabilities`, `logits`.
    pub quantity: String,
    /// Of which tensor, for a gradient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// The norm of the difference over the norm of the CPU's; the largest number there is where either isn't finite.
    pub error: f64,
    /// The largest error that rounding explains.
    pub limit: f64,
    /// Whether the error is within it.
    pub passes: bool,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// The shape's name.
    pub shape: String,
    /// `gemm`, `attention`, `layer`, `training`, `decode`, `training memory`, `decode memory`.
    pub what: String,
    /// How much was done at a time.
    pub detail: String,
    /// What numbers were in, where that is chosen here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Texts that were generated at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// The median.
    pub value: f64,
    /// `TFLOP/s`, `ms`, `tokens/s`, `MiB`.
    pub unit: String,
    /// The least and the most, where single repetitions have a value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<[f64; 2]>,
    /// Repetitions that counted; those that warm up don't.
    pub repetitions: usize,
}

impl Rate {
    /// A rate that is `value` of a repetition's time.
    fn new(shape: &Shape, what: &str, detail: String, times: &Times, unit: &str, value: impl Fn(f64) -> f64) -> Self {
        let (one, other) = (value(times.least()), value(times.most()));
        Self {
            shape: shape.name.clone(),
            what: what.into(),
            detail,
            dtype: None,
            batch: None,
            value: value(times.median()),
            unit: unit.into(),
            range: Some([one.min(other), one.max(other)]),
            repetitions: times.count(),
        }
    }

    /// The most memory that something took.
    fn memory(shape: &Shape, what: &str, detail: String, bytes: u64) -> Self {
        let value = bytes as f64 / f64::from(1 << 20);
        let (what, unit) = (what.into(), "MiB".into());
        Self { shape: shape.name.clone(), what, detail, dtype: None, batch: None, value, unit, range: None, repetitions: 1 }
    }

    fn of(self, dtype: DType) -> Self {
        let name = if dtype == DType::BF16 { "bf16" } else { "f32" };
        Self { dtype: Some(name.into()), ..self }
    }
}

/// A row of the table, or why there is none.
type Measured = Result<Vec<Rate>, String>;

/// Bytes that training takes for each weight at the least: two for it, four each for the copy that is updated and AdamW's two
/// means, where the gradient is let go layer by layer.
const TRAINING_BYTES: u64 = 14;
/// Bytes that generating takes for each weight at the least.
const DECODE_BYTES: u64 = 2;
/// On the CPU all are 32-bit floats.
const CPU_TRAINING_BYTES: u64 = 16;
const CPU_DECODE_BYTES: u64 = 4;

/// Measures a shape on a device; `on_finding` hears of every row when it is there. A row takes about `seconds`, when kernels
/// are tuned, or three repetitions. What fails, or surely wouldn't fit, is told as [`Finding::Skipped`].
///
/// # Errors
/// When the device can't be had.
pub fn measure(device: &Device, shape: &Shape, seconds: f64, on_finding: &mut dyn FnMut(Finding)) -> Result<(), DeviceError> {
    let free = device.describe()?.free;
    on_finding(Finding::Shape(shape.clone()));
    let mut row = |what: &str, needed: u64, work: &mut dyn FnMut() -> Measured| {
        let skipped = |reason| Finding::Skipped { shape: shape.name.clone(), what: what.into(), reason };
        if needed > free {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            return on_finding(skipped(format!("needs {:.1} GiB at the least, and {:.1} are free", gib(needed), gib(free))));
        }
        // burn reports most failures of a device by a panic.
        match catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(said(&*panic))) {
            Ok(rates) => rates.into_iter().for_each(|rate| on_finding(Finding::Rate(rate))),
            Err(reason) => on_finding(skipped(reason)),
        }
    };
    let weights = shape.architecture().parameters() as u64;
    let (training, decode) = match device {
        Device::Cpu => (CPU_TRAINING_BYTES, CPU_DECODE_BYTES),
        Device::Cuda(_) => (TRAINING_BYTES, DECODE_BYTES),
    };
    let tensors = on(device);
    let types: &[DType] = if matches!(device, Device::Cpu) { &[DType::F32] } else { &[DType::BF16, DType::F32] };
    for dtype in types {
        row("gemm", 0, &mut || Ok(vec![products::gemm(&tensors, shape, *dtype, seconds)]));
        row("attention", 0, &mut || Ok(vec![products::attention(&tensors, shape, *dtype, seconds)]));
    }
    row("layer", 0, &mut || model::layer(device, shape, seconds));
    row("training", weights * training, &mut || model::training(device, shape, seconds));
    for batch in [1, 32] {
        row("decode", weights * decode, &mut || model::decode(device, shape, batch, seconds));
    }
    Ok(())
}

/// Where burn keeps the tensors of a device.
fn on(device: &Device) -> DispatchDevice {
    match device {
        Device::Cpu => DispatchDevice::Flex(Default::default()),
        Device::Cuda(number) => DispatchDevice::Cuda(burn::backend::cuda::CudaDevice { index: *number }),
    }
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panicked".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(device: &Device, shape: &Shape) -> Vec<Finding> {
        let mut found = Vec::new();
        measure(device, shape, 0.0, &mut |finding| found.push(finding)).unwrap();
        found
    }

    #[test]
    fn every_rate_is_a_number() {
        let shape = Shape { batch: 1, sequence: 32, new: 4, ..Shape::named("tiny", &Device::Cpu).unwrap() };
        let found = found(&Device::Cpu, &shape);
        assert_eq!(found[0], Finding::Shape(shape));
        let mut names = Vec::new();
        for finding in &found[1..] {
            let Finding::Rate(rate) = finding else { panic!("{finding:?}") };
            names.push(rate.what.as_str());
            // With so few repetitions the difference that a layer makes may drown.
            assert!(rate.value.is_finite() && (rate.value > 0.0 || rate.what == "layer" || rate.unit == "MiB"), "{rate:?}");
            assert!(rate.range.is_none_or(|[least, most]| least <= rate.value && rate.value <= most), "{rate:?}");
        }
        let measured = ["gemm", "attention", "layer", "training"];
        assert!(measured.iter().all(|name| names.contains(name)), "{names:?}");
        assert_eq!(names.iter().filter(|name| **name == "decode").count(), 2);
        let line = serde_json::to_string(&found[1]).unwrap();
        assert_eq!(serde_json::from_str::<Finding>(&line).unwrap(), found[1]);
    }

    #[test]
    fn what_surely_does_not_fit_is_skipped() {
        // Only rows that hold the whole model see the vocabulary.
        let small = Shape { batch: 1, sequence: 32, ..Shape::named("tiny", &Device::Cpu).unwrap() };
        let found = found(&Device::Cpu, &Shape { vocabulary: 1 << 36, ..small });
        let skipped: Vec<&Finding> = found.iter().filter(|finding| matches!(finding, Finding::Skipped { .. })).collect();
        assert_eq!(skipped.len(), 3, "{skipped:?}");
    }
}

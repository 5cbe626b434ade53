//! What a training says of itself while it runs.

use std::time::{Duration, Instant};

use ingrain_student::{Device, Event, Job, Precision, measure::peak_memory};

/// A device is asked for its memory no more often.
const ASKED_EVERY: Duration = Duration::from_secs(5);

/// Says how far a training is.
#[derive(Debug)]
pub(super) struct Line {
    flops_per_token: f64,
    device: Device,
    /// What the device computes a second at most, in the precision of the training, where that is known.
    peak: Option<f64>,
    /// Bytes of the device's memory in use, and when that was asked.
    used: Option<(Instant, u64)>,
}

impl Line {
    pub(super) fn new(job: &Job, device: Device) -> Self {
        let described = matches!(device, Device::Cuda(_)).then(|| device.describe().ok()).flatten();
        // An adapter's training computes no gradients of the weights, which the rate counts.
        let comparable = job.settings.precision == Precision::Bf16 && job.settings.lora.is_none();
        let peak = described.filter(|_| comparable).and_then(|described| described.bf16_flops());
        Self { flops_per_token: job.architecture.training_flops(job.settings.sequence_length), device, peak, used: None }
    }

    /// "step 120 of 2,344, loss 2.31, held-out loss 2.40, general text 3.20, learning rate 2.9e-3, gradient 0.41, 4,100 tokens/s,
    /// 412.0 TFLOP/s (41.7 % of the device), 61.2 GB". Of the CPU the most memory that the process had, of a device what is in use.
    pub(super) fn of(&mut self, event: &Event) -> String {
        let seen = |name: &str, loss: Option<f64>| loss.map(|loss| format!(", {name} {loss:.2}")).unwrap_or_default();
        let heldout = seen("held-out loss", event.seen.as_ref().and_then(|seen| seen.heldout_loss));
        let replay = seen("general text", event.seen.as_ref().and_then(|seen| seen.replay_loss));
        let memory = self.memory().map(|bytes| format!(", {:.1} GB", bytes as f64 / 1e9)).unwrap_or_default();
        format!(
            "step {} of {}, loss {:.2}{heldout}{replay}, learning rate {:.1e}, gradient {:.2}, {} tokens/s, {}{memory}",
            grouped(event.step as u64),
            grouped(event.steps as u64),
            event.loss,
            event.learning_rate,
            event.gradient_norm,
            grouped(event.tokens_per_second.max(0.0) as u64),
            rate(event.tokens_per_second.max(0.0) * self.flops_per_token, self.peak),
        )
    }

    fn memory(&mut self) -> Option<u64> {
        match self.device {
            Device::Cpu => peak_memory(),
            Device::Cuda(_) => {
                if self.used.is_none_or(|(asked, _)| asked.elapsed() >= ASKED_EVERY) {
                    let described = self.device.describe().ok()?;
                    self.used = Some((Instant::now(), described.memory.saturating_sub(described.free)));
                }
                self.used.map(|(_, used)| used)
            }
        }
    }
}

/// "21.0 GFLOP/s", "412.0 TFLOP/s (41.7 % of the device)"
fn rate(flops: f64, peak: Option<f64>) -> String {
    let share = peak.map(|peak| format!(" ({:.1} % of the device)", 100.0 * flops / peak)).unwrap_or_default();
    match flops {
        _ if flops >= 1e12 => format!("{:.1} TFLOP/s{share}", flops / 1e12),
        _ => format!("{:.1} GFLOP/s{share}", flops / 1e9),
    }
}

/// A number with a comma between thousands.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use ingrain_student::Seen;

    use super::*;

    /// A step of 2,344, of 100 tokens each.
    pub(in crate::train) fn event(step: usize, seen: Option<Seen>) -> Event {
        Event {
            step,
            steps: 2344,
            tokens: 100 * step as u64,
            loss: 2.306,
            learning_rate: 1e-3,
            gradient_norm: 0.5,
            tokens_per_second: 4100.7,
            seen,
        }
    }

    #[test]
    fn a_step_is_said_in_a_line() {
        let mut line = Line { flops_per_token: 5e6, device: Device::Cpu, peak: None, used: None };
        let said = line.of(&event(120, None));
        let start = "step 120 of 2,344, loss 2.31, learning rate 1.0e-3, gradient 0.50, 4,100 tokens/s, 20.5 GFLOP/s";
        assert!(said.starts_with(start), "{said}");
        let seen = Seen { heldout_loss: Some(1.5), replay_loss: Some(3.25), samples: vec![] };
        assert!(line.of(&event(2344, Some(seen))).contains("loss 2.31, held-out loss 1.50, general text 3.25, "));
        assert_eq!(rate(2.5e13, None), "25.0 TFLOP/s");
        assert_eq!(rate(4.125e14, Some(9.9e14)), "412.5 TFLOP/s (41.7 % of the device)");
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}

//! The most memory that something takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::device::Device;
use crate::device::cuda::Driver;

/// Between looks at a CUDA device. burn's pools keep what they took, so that little is missed.
const PAUSE: Duration = Duration::from_millis(10);

/// Watches a device's memory.
pub(super) enum Watch {
    /// The process's resident memory when it began; its peak is counted anew from there.
    Cpu(u64),
    Cuda {
        began: u64,
        most: Arc<AtomicU64>,
        done: Arc<AtomicBool>,
        thread: JoinHandle<()>,
    },
    /// This system doesn't tell.
    Blind,
}

impl Watch {
    pub(super) fn start(device: &Device) -> Self {
        match device {
            Device::Cpu => {
                // 5 sets the peak back to what is resident now (proc(5)).
                let reset = std::fs::write("/proc/self/clear_refs", "5");
                match (reset, status("VmRSS:")) {
                    (Ok(()), Some(resident)) => Self::Cpu(resident),
                    _ => Self::Blind,
                }
            }
            Device::Cuda(number) => Self::device(*number).unwrap_or(Self::Blind),
        }
    }

    fn device(number: usize) -> Option<Self> {
        let used = move |driver: &Driver| driver.memory(number).ok().map(|memory| memory.total - memory.free);
        let began = used(&Driver::load().ok()?)?;
        let (most, done) = (Arc::new(AtomicU64::new(began)), Arc::new(AtomicBool::new(false)));
        let (seen, stop) = (most.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            let Ok(driver) = Driver::load() else { return };
            while !stop.load(Ordering::Relaxed) {
                seen.fetch_max(used(&driver).unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(PAUSE);
            }
            seen.fetch_max(used(&driver).unwrap_or(0), Ordering::Relaxed);
        });
        Some(Self::Cuda { began, most, done, thread })
    }

    /// Bytes that were in use at most, over those at the start.
    pub(super) fn stop(self) -> Option<u64> {
        match self {
            Self::Cpu(began) => Some(peak_memory()?.saturating_sub(began)),
            Self::Cuda { began, most, done, thread } => {
                done.store(true, Ordering::Relaxed);
                thread.join().ok()?;
                Some(most.load(Ordering::Relaxed) - began)
            }
            Self::Blind => None,
        }
    }
}

/// The most memory that this process has had resident, in bytes, where the system says so.
pub fn peak_memory() -> Option<u64> {
    status("VmHWM:")
}

/// A size in `/proc/self/status`, in bytes.
fn status(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_counts() {
        let watch = Watch::start(&Device::Cpu);
        let taken = vec![1u8; 256 << 20];
        assert_eq!(taken.iter().map(|byte| u64::from(*byte)).sum::<u64>(), 256 << 20);
        drop(taken);
        let most = watch.stop().unwrap();
        // Other tests may have given some back meanwhile.
        assert!(most >= 128 << 20, "{most}");
    }
}

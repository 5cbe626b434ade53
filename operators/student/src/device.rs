//! Where tensors are computed.

pub(crate) mod cuda;

use std::fmt;

use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use self::cuda::Driver;

/// Where a model is trained or run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The processor, with as many threads as rayon's global pool has.
    Cpu,
    /// A CUDA device by its number.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(number) => write!(formatter, "cuda:{number}"),
        }
    }
}

/// Why a device can't be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The name means nothing.
    #[error("`{0}` is no device: write `auto`, `cpu` or `cuda:0`")]
    Unknown(String),
    /// CUDA lacks something on this machine.
    #[error("`cuda:{number}` can't be used: {missing}")]
    Cuda {
        /// The device asked for.
        number: usize,
        /// What is missing.
        missing: String,
    },
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// As [`Device`] is written.
    pub device: String,
    /// What its maker calls it.
    pub name: String,
    /// Threads that compute at once, on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Bytes of memory that it has.
    pub memory: u64,
    /// Bytes of memory that nobody uses.
    pub free: u64,
}

/// What tensor cores compute a second at most in bf16, dense, by words of the device's name, from NVIDIA's data sheets; of two
/// entries whose words are in a name the first counts.
const BF16_FLOPS: [(&[&str], f64); 13] = [
    (&["B200"], 2.25e15),
    (&["H200"], 9.89e14),
    (&["H100", "PCIe"], 7.56e14),
    (&["H100", "NVL"], 8.35e14),
    (&["H100"], 9.89e14),
    (&["A100"], 3.12e14),
    (&["A40"], 1.497e14),
    (&["L40S"], 3.62e14),
    (&["L40"], 1.81e14),
    (&["L4"], 1.21e14),
    (&["RTX", "5090"], 2.095e14),
    (&["RTX", "4090"], 1.652e14),
    (&["RTX", "3090"], 7.1e13),
];

impl Description {
    /// What the device computes a second at most in bf16, dense, where it is known.
    pub fn bf16_flops(&self) -> Option<f64> {
        let words: Vec<&str> = self.name.split([' ', '-']).collect();
        let known = BF16_FLOPS.into_iter().find(|(parts, _)| parts.iter().all(|part| words.contains(part)));
        known.map(|(_, flops)| flops)
    }
}

impl Device {
    /// How many CUDA devices can be used.
    ///
    /// # Errors
    /// What CUDA lacks on this machine.
    pub fn cuda_count() -> Result<usize, String> {
        cuda::devices()
    }

    /// What the device is, and its memory. A CUDA device is initialised for that.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn describe(&self) -> Result<Description, DeviceError> {
        match self {
            Self::Cpu => {
                let what = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
                let system = System::new_with_specifics(what.with_cpu(CpuRefreshKind::nothing()));
                let name = system.cpus().first().map(|cpu| cpu.brand().trim().to_owned()).filter(|name| !name.is_empty());
                Ok(Description {
                    device: self.to_string(),
                    name: name.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
                    threads: Some(rayon::current_num_threads()),
                    memory: system.total_memory(),
                    free: system.available_memory(),
                })
            }
            Self::Cuda(number) => {
                let refused = |missing| DeviceError::Cuda { number: *number, missing };
                let driver = Driver::load().map_err(refused)?;
                let memory = driver.memory(*number).map_err(refused)?;
                let name = driver.name(*number).map_err(refused)?;
                Ok(Description { device: self.to_string(), name, threads: None, memory: memory.total, free: memory.free })
            }
        }
    }

    /// The device of that name: `auto` is the first CUDA device where everything that CUDA needs is there, and the CPU
    /// anywhere else; `cuda` is `cuda:0`.
    ///
    /// # Errors
    /// For an unknown name, and for a CUDA device that can't be had: the message says what is missing.
    pub fn resolve(name: &str) -> Result<Self, DeviceError> {
        match name {
            "cpu" => Ok(Self::Cpu),
            "auto" => Ok(if cuda::devices().is_ok_and(|count| count > 0) { Self::Cuda(0) } else { Self::Cpu }),
            _ => {
                let number = match name.strip_prefix("cuda") {
                    Some("") => 0,
                    Some(rest) => rest
                        .strip_prefix(':')
                        .and_then(|number| number.parse().ok())
                        .ok_or_else(|| DeviceError::Unknown(name.into()))?,
                    None => return Err(DeviceError::Unknown(name.into())),
                };
                let missing = match cuda::devices() {
                    Ok(count) if number < count => return Ok(Self::Cuda(number)),
                    Ok(count) => format!("the driver shows {count} device(s)"),
                    Err(missing) => missing,
                };
                Err(DeviceError::Cuda { number, missing })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood_or_refused() {
        assert_eq!(Device::resolve("cpu").unwrap(), Device::Cpu);
        for name in ["gpu", "cuda:", "cuda:x", "cuda0", ""] {
            assert!(matches!(Device::resolve(name), Err(DeviceError::Unknown(_))), "{name}");
        }
        assert_eq!(Device::Cuda(3).to_string(), "cuda:3");
    }

    #[test]
    fn a_known_device_says_what_it_computes_at_most() {
        let of = |name: &str| {
            let described = Description { device: "cuda:0".into(), name: name.into(), threads: None, memory: 0, free: 0 };
            described.bf16_flops()
        };
        assert_eq!(of("NVIDIA H100 80GB HBM3"), Some(9.89e14));
        assert_eq!(of("NVIDIA H100 PCIe"), Some(7.56e14));
        assert_eq!(of("NVIDIA L40S"), Some(3.62e14));
        assert_eq!(of("NVIDIA A100-SXM4-80GB"), Some(3.12e14));
        for unknown in ["NVIDIA T400", "NVIDIA RTX A1000", "NVIDIA RTX A4000", "NVIDIA A10G"] {
            assert_eq!(of(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn the_processor_is_described() {
        let found = Device::Cpu.describe().unwrap();
        assert_eq!(found.device, "cpu");
        assert!(!found.name.is_empty() && found.memory >= found.free && found.free > 0, "{found:?}");
    }

    #[test]
    fn what_cuda_lacks_is_said_and_auto_goes_without() {
        let auto = Device::resolve("auto").unwrap();
        match Device::resolve("cuda:4096") {
            Err(DeviceError::Cuda { number: 4096, missing }) => assert!(!missing.is_empty()),
            other => panic!("{other:?}"),
        }
        match Device::resolve("cuda:0") {
            Ok(device) => assert_eq!(auto, device),
            Err(DeviceError::Cuda { .. }) => assert_eq!(auto, Device::Cpu),
            Err(other) => panic!("{other}"),
        }
    }
}

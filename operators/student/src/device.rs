//! Where tensors are computed.

use std::ffi::c_int;
use std::fmt;
use std::path::PathBuf;

use libloading::Library;

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

impl Device {
    /// The device of that name: `auto` is the first CUDA device where everything that CUDA needs is there, and the CPU
    /// anywhere else; `cuda` is `cuda:0`.
    ///
    /// # Errors
    /// For an unknown name, and for a CUDA device that can't be had: the message says what is missing.
    pub fn resolve(name: &str) -> Result<Self, DeviceError> {
        match name {
            "cpu" => Ok(Self::Cpu),
            "auto" => Ok(if cuda_devices().is_ok_and(|count| count > 0) { Self::Cuda(0) } else { Self::Cpu }),
            _ => {
                let number = match name.strip_prefix("cuda") {
                    Some("") => 0,
                    Some(rest) => rest
                        .strip_prefix(':')
                        .and_then(|number| number.parse().ok())
                        .ok_or_else(|| DeviceError::Unknown(name.into()))?,
                    None => return Err(DeviceError::Unknown(name.into())),
                };
                let missing = match cuda_devices() {
                    Ok(count) if number < count => return Ok(Self::Cuda(number)),
                    Ok(count) => format!("the driver shows {count} device(s)"),
                    Err(missing) => missing,
                };
                Err(DeviceError::Cuda { number, missing })
            }
        }
    }
}

/// The number of CUDA devices, or what is missing. burn's own initialisation panics where the driver, the run-time
/// compiler or the toolkit's headers aren't there, so each is looked for first, where cudarc and cubecl look.
fn cuda_devices() -> Result<usize, String> {
    let count = driver_devices()?;
    let compilers = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11"];
    if !compilers.iter().any(|name| open(name).is_ok()) {
        return Err(format!(
            "the run-time compiler isn't in the loader's path (`{}`): install CUDA's NVRTC, or add its folder to `LD_LIBRARY_PATH`",
            compilers.join("`, `")
        ));
    }
    let toolkit = std::env::var_os("CUDA_PATH").map(PathBuf::from).or_else(|| {
        let known = [("/usr/local/cuda", "/usr/local/cuda"), ("/opt/cuda", "/opt/cuda"), ("/usr/bin/nvcc", "/usr")];
        known.iter().find(|(mark, _)| std::fs::exists(mark).unwrap_or(false)).map(|(_, folder)| PathBuf::from(folder))
    });
    let Some(toolkit) = toolkit else {
        return Err(
            "the toolkit's headers weren't found: set `CUDA_PATH` to the folder that holds `include/cuda_runtime.h`".into()
        );
    };
    let header = toolkit.join("include/cuda_runtime.h");
    if !header.is_file() {
        return Err(format!("`{}` is missing: `CUDA_PATH` must name a toolkit with headers", header.display()));
    }
    Ok(count)
}

fn driver_devices() -> Result<usize, String> {
    let library = open("libcuda.so.1").or_else(|_| open("libcuda.so")).map_err(|_| {
        "the driver's library `libcuda.so.1` isn't in the loader's path: is an NVIDIA driver installed?".to_string()
    })?;
    let failed = |name: &str, code: c_int| format!("the driver answered `{name}` with error {code}");
    // SAFETY: these are the driver API's functions with the signatures of `cuda.h`, unchanged since CUDA 2; `cuInit`
    // comes first, and `count` outlives the call that writes it.
    #[allow(unsafe_code)]
    unsafe {
        let init =
            library.get::<unsafe extern "C" fn(u32) -> c_int>(b"cuInit\0").map_err(|error| format!("`libcuda.so.1`: {error}"))?;
        let device_count = library
            .get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDeviceGetCount\0")
            .map_err(|error| format!("`libcuda.so.1`: {error}"))?;
        let code = init(0);
        if code != 0 {
            return Err(failed("cuInit", code));
        }
        let mut count: c_int = 0;
        let code = device_count(&raw mut count);
        // The driver isn't made to be unloaded once it is initialised.
        std::mem::forget(library);
        if code != 0 {
            return Err(failed("cuDeviceGetCount", code));
        }
        Ok(usize::try_from(count).unwrap_or(0))
    }
}

fn open(name: &str) -> Result<Library, libloading::Error> {
    // SAFETY: only NVIDIA's driver and compiler libraries are opened, which have no initialisers that touch our state.
    #[allow(unsafe_code)]
    unsafe {
        Library::new(name)
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

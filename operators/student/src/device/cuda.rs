//! What is asked of NVIDIA's driver without burn: how many devices there are, their names, and their memory.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::PathBuf;

use libloading::Library;

/// The number of devices, or what is missing. burn's own initialisation panics where the driver, the run-time compiler or
/// the toolkit's headers aren't there, so each is looked for first, where cudarc and cubecl look.
pub(super) fn devices() -> Result<usize, String> {
    let count = Driver::load()?.count()?;
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

/// The driver's library, initialised. It isn't made to be unloaded after that, and never is.
pub(crate) struct Driver(ManuallyDrop<Library>);

/// A device as the driver numbers it, and a context on it.
type DeviceId = c_int;
type Context = *mut c_void;

/// Memory of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) free: u64,
    pub(crate) total: u64,
}

impl Driver {
    pub(crate) fn load() -> Result<Self, String> {
        let library = open("libcuda.so.1").or_else(|_| open("libcuda.so")).map_err(|_| {
            "the driver's library `libcuda.so.1` isn't in the loader's path: is an NVIDIA driver installed?".to_string()
        })?;
        let driver = Self(ManuallyDrop::new(library));
        // SAFETY: see `function`.
        #[allow(unsafe_code)]
        let code = unsafe { driver.function::<unsafe extern "C" fn(u32) -> c_int>("cuInit")?(0) };
        said("cuInit", code)?;
        Ok(driver)
    }

    /// A function of the driver's API.
    ///
    /// # Safety
    /// `F` must be the function's signature in `cuda.h`; those used here are unchanged since CUDA 3.2. Pointers passed to it
    /// must outlive the call.
    #[allow(unsafe_code)]
    unsafe fn function<F: Copy>(&self, name: &str) -> Result<F, String> {
        // SAFETY: the caller vouches for the signature.
        let symbol = unsafe { self.0.get::<F>(format!("{name}\0").as_bytes()) };
        symbol.map(|symbol| *symbol).map_err(|error| format!("`libcuda.so.1`: {error}"))
    }

    pub(crate) fn count(&self) -> Result<usize, String> {
        let mut count: c_int = 0;
        // SAFETY: see `function`.
        #[allow(unsafe_code)]
        let code = unsafe { self.function::<unsafe extern "C" fn(*mut c_int) -> c_int>("cuDeviceGetCount")?(&raw mut count) };
        said("cuDeviceGetCount", code)?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    pub(crate) fn name(&self, number: usize) -> Result<String, String> {
        let device = self.device(number)?;
        let mut text: [c_char; 256] = [0; 256];
        // SAFETY: see `function`; the driver ends the name with 0 within the length given.
        #[allow(unsafe_code)]
        unsafe {
            let name = self.function::<unsafe extern "C" fn(*mut c_char, c_int, DeviceId) -> c_int>("cuDeviceGetName")?;
            said("cuDeviceGetName", name(text.as_mut_ptr(), 255, device))?;
            Ok(CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned())
        }
    }

    /// What the device has and what is free of it, whoever uses the rest. Makes the device's primary context the current one
    /// of this thread, which costs some 500 MiB of the device if the process hasn't it yet.
    pub(crate) fn memory(&self, number: usize) -> Result<Memory, String> {
        let device = self.device(number)?;
        let mut context: Context = std::ptr::null_mut();
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: see `function`; the context lasts as long as the process, for it is never released.
        #[allow(unsafe_code)]
        unsafe {
            let retain = self.function::<unsafe extern "C" fn(*mut Context, DeviceId) -> c_int>("cuDevicePrimaryCtxRetain")?;
            said("cuDevicePrimaryCtxRetain", retain(&raw mut context, device))?;
            let set = self.function::<unsafe extern "C" fn(Context) -> c_int>("cuCtxSetCurrent")?;
            said("cuCtxSetCurrent", set(context))?;
            let info = self.function::<unsafe extern "C" fn(*mut usize, *mut usize) -> c_int>("cuMemGetInfo_v2")?;
            said("cuMemGetInfo", info(&raw mut free, &raw mut total))?;
        }
        Ok(Memory { free: free as u64, total: total as u64 })
    }

    fn device(&self, number: usize) -> Result<DeviceId, String> {
        let mut device: DeviceId = 0;
        let ordinal = c_int::try_from(number).map_err(|_| format!("no device has the number {number}"))?;
        // SAFETY: see `function`.
        #[allow(unsafe_code)]
        let code = unsafe {
            self.function::<unsafe extern "C" fn(*mut DeviceId, c_int) -> c_int>("cuDeviceGet")?(&raw mut device, ordinal)
        };
        said("cuDeviceGet", code)?;
        Ok(device)
    }
}

fn said(name: &str, code: c_int) -> Result<(), String> {
    match code {
        0 => Ok(()),
        code => Err(format!("the driver answered `{name}` with error {code}")),
    }
}

fn open(name: &str) -> Result<Library, libloading::Error> {
    // SAFETY: only NVIDIA's driver and compiler libraries are opened, which have no initialisers that touch our state.
    #[allow(unsafe_code)]
    unsafe {
        Library::new(name)
    }
}

//! NVIDIA GPUs: what this machine has for them, or what exactly it lacks, and where their compiled kernels are kept.
//!
//! The backend loads everything at run time and ends the program where something is missing. Here all of it is found and
//! compared first: driver, GPU, compiler (NVRTC) and headers; and, where they are there, NVIDIA's libraries of matrix products
//! and attention.

#[cfg(feature = "cuda")]
mod cache;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod library;
mod paths;
#[cfg(feature = "cuda")]
mod pools;
#[cfg(feature = "cuda")]
mod toolkit;
#[cfg(feature = "cuda")]
mod vendor;

pub use paths::Paths;
#[cfg(feature = "cuda")]
pub use vendor::{Library, library, loaded, paths};

use std::{fmt, path::PathBuf};

use burn::tensor::Device;

use crate::error::{Error, Result};

/// A version of CUDA, such as 13.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The number before the point.
    pub major: u32,
    /// The number after it.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The NVIDIA driver and what it drives.
#[derive(Clone, Debug)]
pub struct Driver {
    /// The newest CUDA whose programs it runs.
    pub cuda: Version,
    /// Its own number, such as `580.159.03`, where the system tells.
    pub release: Option<String>,
    /// In the order of their numbers.
    pub gpus: Vec<Gpu>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// As the driver calls it, such as `NVIDIA H200`.
    pub name: String,
    /// Bytes in all.
    pub memory: u64,
    /// Its compute capability.
    pub capability: Version,
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {:.1} GiB, compute capability {}",
            self.name,
            self.memory as f64 / f64::powi(2.0, 30),
            self.capability
        )
    }
}

/// The driver and its GPUs.
///
/// # Errors
/// This build has no CUDA in it, or the driver is missing, broken or finds no GPU.
pub fn driver() -> Result<Driver> {
    #[cfg(feature = "cuda")]
    return driver::find();
    #[cfg(not(feature = "cuda"))]
    Err(Error::setting("device cuda", "this build of kiln does not include CUDA")
        .hint("build it with `cargo build --release --features cuda`, or use `device cpu`"))
}

/// The GPU `number`, counted from 0, with its compiled kernels and measurements kept in the folder `cache`, and NVIDIA's
/// libraries for what `paths` names.
///
/// To be called before other threads run: it may set `CUDA_PATH` in this process.
///
/// # Errors
/// As [`driver`]; there is no GPU of that number; the compiler or the headers are missing, or do not fit the driver, the GPU
/// or each other; `cache` was named and cannot be made.
pub fn open(number: usize, cache: Option<PathBuf>, paths: Paths) -> Result<Device> {
    let (found, memory) = examine(number, cache, paths)?;
    tracing::debug!("cuda:{number} is {found}");
    #[cfg(feature = "cuda")]
    {
        pools::set(number, memory);
        Ok(Device::cuda(number))
    }
    #[cfg(not(feature = "cuda"))]
    unreachable!("without CUDA there is no driver, nor {memory} bytes")
}

/// Makes everything ready that [`open`] needs, and says what was found: the GPU, the driver, the compiler, NVIDIA's libraries
/// and the folder of the kernels.
///
/// # Errors
/// As [`open`].
pub fn ready(number: usize, cache: Option<PathBuf>, paths: Paths) -> Result<String> {
    examine(number, cache, paths).map(|(found, _)| found)
}

/// What [`ready`] says, and the memory of the GPU in bytes.
fn examine(number: usize, cache: Option<PathBuf>, paths: Paths) -> Result<(String, u64)> {
    let driver = driver()?;
    let Some(gpu) = driver.gpus.get(number) else {
        let gpus = driver.gpus.iter().enumerate().map(|(number, gpu)| format!("\n  cuda:{number}: {gpu}"));
        let problem = format!("there is no such GPU, only{}", gpus.collect::<String>());
        return Err(Error::setting(format!("device cuda:{number}"), problem));
    };
    #[cfg(feature = "cuda")]
    {
        let roots = library::roots();
        let toolkit = toolkit::find(&roots, driver.cuda, gpu)?;
        let kept = cache::keep(cache, gpu)?;
        let vendor = vendor::find(paths, &roots, driver.cuda, gpu);
        let release = driver.release.as_deref().unwrap_or("of unknown number");
        let found = format!("{gpu}; driver {release} for CUDA {}; {toolkit}; {vendor}; kernels in {kept}", driver.cuda);
        Ok((found, gpu.memory))
    }
    #[cfg(not(feature = "cuda"))]
    unreachable!("without CUDA there is no driver: {gpu} {cache:?} {paths:?}")
}

/// The memory of the GPU `number` that no program holds, in bytes; `None` where the driver does not say.
pub fn free(number: usize) -> Option<u64> {
    #[cfg(feature = "cuda")]
    return driver::free(number);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = number;
        None
    }
}

/// The number of the GPU that `device` is; none of the CPU.
pub fn number(device: &Device) -> Option<usize> {
    #[cfg(feature = "cuda")]
    if let burn::backend::DispatchDevice::Cuda(gpu) = device.clone().inner().as_dispatch() {
        return Some(gpu.index);
    }
    #[cfg(not(feature = "cuda"))]
    let _ = device;
    None
}

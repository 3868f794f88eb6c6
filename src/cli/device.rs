//! `--device`: from a word to a device that is there.

use std::{fmt, str::FromStr};

use burn::tensor::Device;

use crate::error::{Error, Result};

/// What `--device` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// All cores of this machine.
    Cpu,
    /// The NVIDIA GPU of this number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(word: &str) -> std::result::Result<Self, String> {
        match word.split_once(':').map_or((word, "0"), |(kind, number)| (kind, number)) {
            ("cpu", "0") if word == "cpu" => Ok(Self::Cpu),
            ("cuda", number) => number.parse().map(Self::Cuda).map_err(|_| format!("`{number}` is no device number")),
            _ => Err("use `cpu`, `cuda` or `cuda:N`".into()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// The GPU was asked for, but this build, the machine or the driver has none of that number.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::flex()),
            Self::Cuda(number) => cuda(number),
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda(_number: usize) -> Result<Device> {
    Err(Error::setting("--device cuda", "this build of kiln has no CUDA in it")
        .hint("build it with `cargo build --release --features cuda`, or use `--device cpu`"))
}

#[cfg(feature = "cuda")]
fn cuda(number: usize) -> Result<Device> {
    let option = format!("--device cuda:{number}");
    match count_gpus().and_then(|count| find_compiler().map(|()| count)) {
        Ok(count) if number < count => Ok(Device::cuda(number)),
        Ok(0) => Err(Error::setting(option, "the NVIDIA driver finds no GPU").hint("use `--device cpu`")),
        Ok(count) => Err(Error::setting(option, format!("there are {count} GPUs, counted from 0"))),
        Err(problem) => Err(Error::setting(option, problem)
            .hint("install the NVIDIA driver (`nvidia-smi` must work) and the CUDA toolkit, whose library folder must be in LD_LIBRARY_PATH; or use `--device cpu`")),
    }
}

/// The GPUs that the driver offers, asked through its C interface: the backend would end the program if there is none.
#[cfg(feature = "cuda")]
fn count_gpus() -> std::result::Result<usize, String> {
    use libloading::{Library, Symbol};
    const DRIVER: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
    // SAFETY: the driver library has no start-up code that asks anything of us, and both functions have the signatures
    // of cuda.h: `CUresult cuInit(unsigned)` and `CUresult cuDeviceGetCount(int *)`, with 0 for success.
    unsafe {
        let driver = Library::new(DRIVER).map_err(|e| format!("the NVIDIA driver cannot be loaded: {e}"))?;
        let absent = |e| format!("the NVIDIA driver lacks a function: {e}");
        let init: Symbol<unsafe extern "C" fn(u32) -> i32> = driver.get(b"cuInit\0").map_err(absent)?;
        let get_count: Symbol<unsafe extern "C" fn(*mut i32) -> i32> =
            driver.get(b"cuDeviceGetCount\0").map_err(absent)?;
        let mut count = 0;
        match (init(0), get_count(&mut count)) {
            (100, _) => Ok(0), // CUDA_ERROR_NO_DEVICE
            (0, 0) => Ok(count as usize),
            (failed, _) => Err(format!("the NVIDIA driver does not start (error {failed} of cuInit)")),
        }
    }
}

/// NVRTC, which compiles the kernels when they are first used.
#[cfg(feature = "cuda")]
fn find_compiler() -> std::result::Result<(), String> {
    let names = match cfg!(windows) {
        true => ["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"],
        false => ["libnvrtc.so", "libnvrtc.so.13"],
    };
    // SAFETY: NVIDIA's compiler library has no start-up code that asks anything of us.
    let found = names.iter().any(|name| unsafe { libloading::Library::new(*name) }.is_ok());
    match found {
        true => Ok(()),
        false => Err(format!("NVRTC, the compiler in the CUDA toolkit, cannot be loaded ({})", names[0])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_others_refused() {
        let read = |word: &str| word.parse::<DeviceChoice>();
        assert_eq!(read("cpu"), Ok(DeviceChoice::Cpu));
        assert_eq!([read("cuda"), read("cuda:0"), read("cuda:3")], [0, 0, 3].map(|n| Ok(DeviceChoice::Cuda(n))));
        for word in ["", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1"] {
            assert!(read(word).is_err(), "{word}");
        }
    }
}

//! The choice of the device: from a word to a device, and from a device to its name and its dtype.

use std::{fmt, path::PathBuf, str::FromStr};

use burn::tensor::{DType, Device, FloatDType};
use serde::{Deserialize, Serialize};

use crate::{cuda, error::Result};

/// A device by its word: `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// All cores of this machine.
    Cpu,
    /// The NVIDIA GPU of this number.
    Cuda(usize),
}

/// As [`DeviceChoice`] reads it.
impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(word: &str) -> std::result::Result<Self, String> {
        match word.split_once(':').map_or((word, "0"), |(kind, number)| (kind, number)) {
            ("cpu", "0") if word == "cpu" => Ok(Self::Cpu),
            ("cuda", number) => {
                number.parse().map(Self::Cuda).map_err(|_| format!("`{number}` is not a device number"))
            }
            _ => Err("use `cpu`, `cuda` or `cuda:N`".into()),
        }
    }
}

impl DeviceChoice {
    /// Opens the device. Kernels compiled for a GPU are kept in the folder `kernel_cache`, or in the user's; NVIDIA's libraries
    /// compute there what `paths` names.
    ///
    /// # Errors
    /// As [`cuda::open`].
    pub fn open(self, kernel_cache: Option<PathBuf>, paths: cuda::Paths) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::flex()),
            Self::Cuda(number) => cuda::open(number, kernel_cache, paths),
        }
    }
}

/// Whether the device is the CPU, whose tensors are host memory.
pub fn is_cpu(device: &Device) -> bool {
    cuda::number(device).is_none()
}

/// The word for a device, as [`DeviceChoice`] reads it.
pub fn name(device: &Device) -> String {
    cuda::number(device).map_or("cpu".into(), |number| format!("cuda:{number}"))
}

/// The dtype to run a network in where none is asked for: bf16 on a GPU, f32 on the CPU, which converts bf16 to compute with
/// it.
pub fn dtype(device: &Device) -> Dtype {
    if is_cpu(device) { Dtype::F32 } else { Dtype::Bf16 }
}

/// The dtype of weights, and of encoded images in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits with the range of f32.
    #[default]
    Bf16,
}

impl Dtype {
    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

impl From<Dtype> for FloatDType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::BF16,
        }
    }
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        FloatDType::from(dtype).into()
    }
}

/// The hardware behind a device, as a table of results names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// The GPU with its memory and compute capability, or the processor with the threads that this program may use.
    pub name: String,
    /// NVIDIA's driver and the newest CUDA it runs; `None` on the CPU.
    pub driver: Option<String>,
}

impl Hardware {
    /// The hardware behind `device`.
    pub fn of(device: &Device) -> Self {
        let found = cuda::number(device).and_then(|number| Some((number, cuda::driver().ok()?)));
        let gpu = found.as_ref().and_then(|(number, driver)| driver.gpus.get(*number));
        let driver = found.as_ref().map(|(_, driver)| {
            format!("{} for CUDA {}", driver.release.as_deref().unwrap_or("of unknown number"), driver.cuda)
        });
        Self { name: gpu.map_or_else(processor, cuda::Gpu::to_string), driver }
    }
}

/// The processor and how many of its threads this program may use.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {threads} threads", line.map_or("a CPU", |(_, name)| name.trim()))
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

    #[test]
    fn a_device_is_called_by_the_word_that_opens_it() {
        let cpu = DeviceChoice::Cpu.open(None, cuda::Paths::default()).unwrap();
        assert!(is_cpu(&cpu) && is_cpu(&cpu.clone().autodiff()));
        assert_eq!((name(&cpu).parse(), dtype(&cpu)), (Ok(DeviceChoice::Cpu), Dtype::F32));
        assert!(Hardware::of(&cpu).name.ends_with("threads") && Hardware::of(&cpu).driver.is_none());
    }
}

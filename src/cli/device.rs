//! `--device`: from a word to a device that is there.

use std::{path::PathBuf, str::FromStr};

use burn::tensor::Device;

use crate::{cuda, error::Result};

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

impl DeviceChoice {
    /// Opens the device. What is compiled for a GPU is kept in the folder `cache`, or in the user's; NVIDIA's libraries
    /// compute there what `paths` names.
    ///
    /// # Errors
    /// As [`cuda::open`].
    pub fn open(self, cache: Option<PathBuf>, paths: cuda::Paths) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::flex()),
            Self::Cuda(number) => cuda::open(number, cache, paths),
        }
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

//! The source of a part's tensors: files or a seed.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use burn::{
    backend::DispatchDevice,
    tensor::{Device, FloatDType, Tensor, TensorData},
};

use super::{
    TensorFile,
    kept::keep,
    random::{self, Spread},
};
use crate::rng::Seed;

/// The tensors of a part, which of them were taken, and the problems found.
#[derive(Debug)]
pub(super) struct Source {
    pub path: PathBuf,
    pub content: Content,
    pub device: Device,
    pub dtype: Option<FloatDType>,
    pub taken: Mutex<BTreeMap<String, Vec<usize>>>,
    /// The quantized matrices among those taken, with their sizes in bytes.
    pub packed: Mutex<BTreeMap<String, u64>>,
    pub problems: Mutex<Vec<String>>,
}

#[derive(Debug)]
pub(super) enum Content {
    Files { files: Vec<TensorFile>, home: BTreeMap<String, usize> },
    Random(Seed, Spread),
}

impl Source {
    pub(super) fn taken(&self) -> MutexGuard<'_, BTreeMap<String, Vec<usize>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn packed_bytes(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.packed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn problems(&self) -> MutexGuard<'_, Vec<String>> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The size of one value of a tensor on the device, in bytes.
    pub(super) fn size(&self, name: &str) -> u64 {
        let stored = match (&self.dtype, &self.content) {
            (Some(FloatDType::F64), _) => "F64",
            (Some(FloatDType::F16 | FloatDType::BF16), _) => "F16",
            (None, Content::Files { files, home }) => {
                &home.get(name).and_then(|&file| files[file].dtype(name)).unwrap_or_default()
            }
            _ => "F32",
        };
        match stored {
            "F64" => 8,
            "F16" | "BF16" => 2,
            _ => 4,
        }
    }

    /// Checks the shape and dtype of a tensor, from the header only.
    pub(super) fn check(&self, name: &str, shape: &[usize]) -> std::result::Result<(), String> {
        if let Content::Files { files, home } = &self.content {
            let &file = home.get(name).ok_or_else(|| format!("tensor `{name}` is missing"))?;
            self.taken().insert(name.into(), shape.into());
            let found = files[file].shape(name).expect("the index was made from the files");
            if found != shape {
                return Err(format!("tensor `{name}` has shape {found:?}, expected {shape:?}"));
            }
            let dtype = files[file].dtype(name).expect("it has a shape");
            if !["F32", "F64", "BF16", "F16", "F8_E4M3", "F8_E5M2"].contains(&dtype.as_str()) {
                return Err(format!("tensor `{name}` has dtype {dtype}, expected a floating-point dtype"));
            }
        } else {
            self.taken().insert(name.into(), shape.into());
        }
        Ok(())
    }

    pub(super) fn read<const D: usize>(&self, name: &str, shape: [usize; D]) -> std::result::Result<Tensor<D>, String> {
        self.check(name, &shape)?;
        let data = match &self.content {
            Content::Random(seed, spread) => {
                let dtype = self.dtype.unwrap_or(FloatDType::F32);
                match (self.device.as_dispatch(), spread) {
                    (DispatchDevice::Flex(_), _) | (_, Spread::Calm(_)) => {
                        random::on_host(*seed, *spread, name, &shape)
                    }
                    _ => return Ok(random::on_device(&self.device, *seed, name, shape, dtype.into())),
                }
            }
            Content::Files { files, home } => {
                let file = &files[home[name]];
                let is_fp8 = file.dtype(name).is_some_and(|dtype| dtype.starts_with("F8"));
                let dims = [shape[0], shape[1..].iter().product()];
                // It may have a scale beside it.
                match is_fp8.then(|| self.quantized(name, dims)).flatten() {
                    Some(found) => TensorData::new(found?.values(), shape),
                    None => file.read(name).map_err(|e| e.message())?,
                }
            }
        };
        Ok(self.put(data))
    }

    /// Uploads `data` to the device, in the requested dtype.
    pub(super) fn put<const D: usize>(&self, data: TensorData) -> Tensor<D> {
        let dtype = data.dtype;
        let device = &self.device;
        let upload = |data| Tensor::<D>::from_data(data, (device, dtype));
        match self.dtype {
            // The tensor in the file's dtype is freed after the conversion.
            Some(wanted) if dtype != wanted.into() => keep(device, upload(data), |tensor| tensor.cast(wanted)),
            _ => keep(device, data, upload),
        }
    }
}

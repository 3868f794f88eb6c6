//! Writes safetensors files atomically.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    path::Path,
};

use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::tensor::{Dtype, View};

use crate::{
    disk::replace,
    error::{Error, Result},
};

/// A tensor to write. Its bytes are requested when their turn comes, so that only one tensor's are in host memory.
pub trait TensorBytes {
    /// Its dtype in the file.
    fn dtype(&self) -> DType;

    /// Its shape in the file.
    fn shape(&self) -> &[usize];

    /// Its elements in order.
    fn bytes(&self) -> Cow<'_, [u8]>;

    /// Whether the elements, of one byte each, are fp8 (e4m3), for which the backend has no dtype.
    fn is_fp8(&self) -> bool {
        false
    }
}

/// For tensors in host memory.
impl TensorBytes for TensorData {
    fn dtype(&self) -> DType {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        self.shape.as_slice()
    }
    fn bytes(&self) -> Cow<'_, [u8]> {
        self.as_bytes().into()
    }
}

/// The values of one tensor, on the device where they were computed.
#[derive(Clone, Debug)]
pub struct FlatTensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, flattened.
    pub values: Tensor<1>,
}

impl TensorBytes for FlatTensor {
    fn dtype(&self) -> DType {
        self.values.dtype()
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn bytes(&self) -> Cow<'_, [u8]> {
        self.values.to_data().as_bytes().to_vec().into()
    }
}

/// Puts them on the CPU.
impl From<TensorData> for FlatTensor {
    fn from(mut data: TensorData) -> Self {
        let (shape, dtype) = (data.shape.to_vec(), data.dtype);
        data.shape = [data.num_elements()].into();
        Self { shape, values: Tensor::from_data(data, (&Device::flex(), dtype)) }
    }
}

/// A tensor whose dtype the file format supports.
struct Typed<'a, T>(&'a T, Dtype);

impl<T: TensorBytes> View for Typed<'_, T> {
    fn dtype(&self) -> Dtype {
        self.1
    }
    fn shape(&self) -> &[usize] {
        self.0.shape()
    }
    fn data(&self) -> Cow<'_, [u8]> {
        self.0.bytes()
    }
    fn data_len(&self) -> usize {
        self.0.shape().iter().product::<usize>() * self.0.dtype().size()
    }
}

/// Writes `tensors` and `metadata` as one safetensors file: to a temporary name first, synced, then renamed, so that
/// `path` is always either the old file or the whole new one.
///
/// # Errors
/// A tensor's dtype is not one of f32, f64, bf16, f16, i64, i32, i8, u8, fp8; or writing fails.
pub fn write_tensors<T: TensorBytes>(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, T>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let path = path.as_ref();
    let mut entries = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            DType::I64 => Dtype::I64,
            DType::I32 => Dtype::I32,
            DType::I8 => Dtype::I8,
            DType::U8 if tensor.is_fp8() => Dtype::F8_E4M3,
            DType::U8 => Dtype::U8,
            other => return Err(Error::file(path, format!("tensor `{name}` of dtype {other:?} cannot be stored"))),
        };
        entries.push((name, Typed(tensor, dtype)));
    }
    let metadata: HashMap<_, _> = metadata.clone().into_iter().collect();
    replace(path, |partial| {
        safetensors::serialize_to_file(entries, Some(metadata), partial)
            .map_err(|e| Error::file(path, format!("cannot be written ({e})")))
    })
}

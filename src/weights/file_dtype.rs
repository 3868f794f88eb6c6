//! The types of number in which kiln writes files for other programs.

use burn::tensor::DType;

/// The dtype of the tensors in an exported file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileDtype {
    /// 32 bits: nothing is rounded.
    #[default]
    F32,
    /// 16 bits with the range of f32.
    Bf16,
    /// 16 bits with more digits, up to 65504.
    F16,
}

impl From<FileDtype> for DType {
    fn from(dtype: FileDtype) -> Self {
        match dtype {
            FileDtype::F32 => Self::F32,
            FileDtype::Bf16 => Self::BF16,
            FileDtype::F16 => Self::F16,
        }
    }
}

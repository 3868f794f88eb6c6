//! The position and dtype of a tensor in a file.

use std::{fmt, ops::Range};

use safetensors::tensor::Dtype;

use crate::quantization::Ggml;

/// One tensor of a file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub element: Element,
    pub shape: Vec<usize>,
    /// The byte range of its data in the file.
    pub range: Range<usize>,
}

/// The encoding of a tensor's bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Element {
    /// One value after the other.
    Plain(Dtype),
    /// Blocks of quantized values.
    Ggml(Ggml),
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Plain(dtype) => dtype.fmt(f),
            Self::Ggml(kind) => f.write_str(kind.name()),
        }
    }
}

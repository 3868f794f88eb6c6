//! The formats in which kiln writes quantized weights.

use serde::Serialize;

/// The format of quantized weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantizedTo {
    /// Four bits, with an 8-bit scale per 64 values, as in bitsandbytes: 4.13 bits per value.
    Nf4,
    /// Eight bits, with a scale per row, as in bitsandbytes.
    Int8,
    /// Eight-bit floats (e4m3), with a scale per tile of 128 × 128, as in transformers.
    Fp8,
}

impl QuantizedTo {
    /// As the command line and files spell it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Int8 => "int8",
            Self::Fp8 => "fp8",
        }
    }
}

//! Matrices stored in eight bits per value or less: the published formats and how they are decoded.
//!
//! | format | one value | beside it |
//! |---|---|---|
//! | nf4, fp4 | the index of one of 16 levels, two per byte | the largest magnitude of each block of 64, itself in 8 bits |
//! | int8 | an integer from -127 to 127 | the largest magnitude of each row |
//! | fp8 | an 8-bit float | a scale for the matrix, per row, or per square block |
//! | Q4_0 … Q8_0 | a 4- to 8-bit integer | scales in the same block of bytes |
//!
//! This module has no tensors: computing with the bytes on a device is in [`kernels`](crate::kernels), finding them in files in
//! [`weights`](crate::weights). Values are decoded to f32; the f32 factors of each value are multiplied in the order that its
//! format defines, so that the bits equal those of other programs.

mod bytes;
mod dynamic;
mod fp8;
mod eight_bit;
mod four_bit;
mod ggml;

use std::ops::Range;

use rayon::prelude::*;

pub use bytes::SharedBytes;
pub use dynamic::{DynamicMap, MOMENT_BLOCK};
pub use eight_bit::{EightBit, EightBitKind, Scales, quantize_fp8, quantize_int8};
pub use four_bit::{Absmax, BLOCK, FourBit, FourBitKind, NESTED_BLOCK, Nested, absmax, nested, quantize_nf4};
pub use fp8::{E4M3, E5M2, to_e4m3};
pub use ggml::Ggml;

/// The number of values per parallel task: whole blocks of every format, and even.
const PIECE: usize = 16 * 1024;

/// Columns and rows that one task transposes at a time.
const BAND: usize = 256;
const RUN: usize = 16;

/// A quantized matrix `[out, in]`. Cheap to clone: bytes are shared.
#[derive(Clone, Debug)]
pub struct Packed {
    /// `[out, in]`.
    pub dims: [usize; 2],
    /// The values.
    pub code: Code,
}

/// Values in their format, in row-major order.
#[derive(Clone, Debug)]
pub enum Code {
    /// 16 levels and a scale for each block of values.
    FourBit(FourBit),
    /// 256 levels and a grid of scales.
    EightBit(EightBit),
    /// Blocks of one of ggml's formats; each row is a whole number of blocks.
    Ggml(Ggml, SharedBytes),
}

impl Packed {
    /// The common name of its format: `nf4`, `int8`, `fp8`, `Q4_K`, …
    pub fn format(&self) -> &'static str {
        match &self.code {
            Code::FourBit(code) => code.kind.name(),
            Code::EightBit(code) => code.kind.name(),
            Code::Ggml(kind, _) => kind.name(),
        }
    }

    /// Its size in bytes, in a file or in memory.
    pub fn bytes(&self) -> usize {
        match &self.code {
            Code::FourBit(code) => code.values.len() + code.absmax.bytes(),
            Code::EightBit(code) => code.values.len() + 4 * code.scales.values.len(),
            Code::Ggml(_, bytes) => bytes.len(),
        }
    }

    /// Decodes the values from `start` on to f32, in row-major order. In ggml's formats `start` must be the first value of a block.
    ///
    /// # Panics
    /// If `out` extends past the last value.
    pub fn decode(&self, start: usize, out: &mut [f32]) {
        match &self.code {
            Code::FourBit(code) => code.decode(start, out),
            Code::EightBit(code) => code.decode(self.dims[1], start, out),
            Code::Ggml(kind, bytes) => {
                let first = start / kind.values() * kind.bytes();
                kind.decode(&bytes[first..], out);
            }
        }
    }

    /// Some of its rows, as a matrix; `None` if they begin or end inside a block of values.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn rows(&self, rows: Range<usize>) -> Option<Self> {
        assert!(rows.start <= rows.end && rows.end <= self.dims[0], "rows of the matrix");
        let columns = self.dims[1];
        let values = rows.start * columns..rows.end * columns;
        let code = match &self.code {
            Code::FourBit(code) => Code::FourBit(code.part(values)?),
            Code::EightBit(code) => Code::EightBit(code.part(rows.clone(), self.dims)?),
            Code::Ggml(kind, bytes) => {
                let at = |value: usize| value / kind.values() * kind.bytes();
                Code::Ggml(*kind, bytes.part(at(values.start)..at(values.end)))
            }
        };
        Some(Self { dims: [rows.len(), columns], code })
    }

    /// Decodes all values to f32 in column-major order, on all cores: the layout for products that run along rows.
    pub fn to_f32_by_columns(&self) -> Vec<f32> {
        let [rows, columns] = self.dims;
        let mut values = vec![0.0; rows * columns];
        // Bands of columns aligned to the blocks of every format, a few rows at a time: these stay in the L1 cache and are written
        // contiguously.
        values.par_chunks_mut((BAND * rows).max(1)).enumerate().for_each(|(band, out)| {
            let width = out.len() / rows;
            let mut few = vec![0.0; RUN * width];
            for first in (0..rows).step_by(RUN) {
                let count = RUN.min(rows - first);
                for (row, values) in few.chunks_exact_mut(width).take(count).enumerate() {
                    self.decode((first + row) * columns + band * BAND, values);
                }
                for (column, out) in out.chunks_exact_mut(rows).enumerate() {
                    for (row, value) in out[first..first + count].iter_mut().enumerate() {
                        *value = few[row * width + column];
                    }
                }
            }
        });
        values
    }

    /// Decodes all values to f32 in row-major order, on all cores.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.dims[0] * self.dims[1]];
        values.par_chunks_mut(PIECE).enumerate().for_each(|(piece, out)| self.decode(piece * PIECE, out));
        values
    }
}

//! Matrices that are stored in eight bits a value or less, as bytes: the published formats, and what their codes stand for.
//!
//! | format | a value | beside it |
//! |---|---|---|
//! | nf4, fp4 | a number of one of 16 levels, two in a byte | the largest magnitude of each block of 64, itself in 8 bits |
//! | int8 | an integer from -127 to 127 | the largest magnitude of each row |
//! | fp8 | a float of 8 bits | a scale for the matrix, for each row, or for each square block |
//! | Q4_0 … Q8_0 | an integer of 4 to 8 bits | scales in the same block of bytes |
//!
//! Here are no tensors: what a device makes of the bytes is in [`kernels`](crate::kernels), where they lie in files in
//! [`weights`](crate::weights). Values are decoded to f32; each is the product of f32 numbers that its format says, in its order,
//! so that every program has the same bits.

mod bytes;
mod dynamic;
mod fp8;
mod eight_bit;
mod four_bit;
mod ggml;

use std::ops::Range;

use rayon::prelude::*;

pub use bytes::Shared;
pub use dynamic::{DynamicMap, MOMENT_BLOCK};
pub use eight_bit::{EightBit, EightBitKind, Scales, quantize_fp8, quantize_int8};
pub use four_bit::{Absmax, BLOCK, FourBit, FourBitKind, NESTED_BLOCK, Nested, absmax, nested, quantize_nf4};
pub use fp8::{E4M3, E5M2, to_e4m3};
pub use ggml::Ggml;

/// Values that one task decodes: whole blocks of every format, and an even number.
const PIECE: usize = 16 * 1024;

/// Columns and rows that one task turns around at a time.
const BAND: usize = 256;
const RUN: usize = 16;

/// A quantized matrix `[out, in]`, as its bytes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Packed {
    /// `[out, in]`.
    pub dims: [usize; 2],
    /// The values.
    pub code: Code,
}

/// Values by their format, row after row.
#[derive(Clone, Debug)]
pub enum Code {
    /// 16 levels and a scale for each block of values.
    FourBit(FourBit),
    /// 256 levels and a grid of scales.
    EightBit(EightBit),
    /// Blocks of bytes of one of ggml's formats, which divide the rows.
    Ggml(Ggml, Shared),
}

impl Packed {
    /// Its format, as people call it: `nf4`, `int8`, `fp8`, `Q4_K`, …
    pub fn format(&self) -> &'static str {
        match &self.code {
            Code::FourBit(code) => code.kind.name(),
            Code::EightBit(code) => code.kind.name(),
            Code::Ggml(kind, _) => kind.name(),
        }
    }

    /// The bytes that it takes, in a file or in memory.
    pub fn bytes(&self) -> usize {
        match &self.code {
            Code::FourBit(code) => code.values.len() + code.absmax.bytes(),
            Code::EightBit(code) => code.values.len() + 4 * code.scales.values.len(),
            Code::Ggml(_, bytes) => bytes.len(),
        }
    }

    /// Writes the values from `start` on, row after row, as f32. In ggml's formats `start` is the first value of a block.
    ///
    /// # Panics
    /// They go beyond the last one.
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

    /// Some of its rows, as a matrix of its own; nothing where they begin or end inside of a block of values.
    ///
    /// # Panics
    /// There are no such rows.
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

    /// All values, column after column, on all cores: what a product wants that runs along rows.
    pub fn to_f32_by_columns(&self) -> Vec<f32> {
        let [rows, columns] = self.dims;
        let mut values = vec![0.0; rows * columns];
        // Bands of columns that begin with a block of every format, a few rows of them at a time: these stay in the nearest cache,
        // and are written in runs.
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

    /// All values, row after row, on all cores.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.dims[0] * self.dims[1]];
        values.par_chunks_mut(PIECE).enumerate().for_each(|(piece, out)| self.decode(piece * PIECE, out));
        values
    }
}

//! 8-bit formats: one byte per value, and a grid of scales.

use std::{
    ops::Range,
    sync::{Arc, LazyLock},
};

use rayon::prelude::*;

use super::{E4M3, E5M2, SharedBytes, to_e4m3};

/// The encoding of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EightBitKind {
    /// An integer from -128 to 127.
    Int8,
    /// A float with four bits of exponent.
    E4m3,
    /// A float with five bits of exponent.
    E5m2,
}

static INT8: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|byte| f32::from(byte as u8 as i8)));

impl EightBitKind {
    /// Its common name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::E4m3 => "fp8",
            Self::E5m2 => "fp8 (e5m2)",
        }
    }

    /// The value of each byte.
    pub fn levels(self) -> &'static [f32; 256] {
        match self {
            Self::Int8 => &INT8,
            Self::E4m3 => &E4M3,
            Self::E5m2 => &E5M2,
        }
    }
}

/// Values in one byte each: `levels[byte]·scale·factor`.
#[derive(Clone, Debug)]
pub struct EightBit {
    /// The encoding of a byte.
    pub kind: EightBitKind,
    /// The bytes, in row-major order.
    pub values: SharedBytes,
    /// The scales, applied first.
    pub scales: Scales,
    /// A common factor, applied last: 1/127 for integers whose scale is the largest magnitude.
    pub factor: f32,
}

/// One scale per block of a matrix, in row-major order; the last blocks in either direction may be smaller.
#[derive(Clone, Debug)]
pub struct Scales {
    /// The scales.
    pub values: Arc<[f32]>,
    /// Rows and columns of a block.
    pub block: [usize; 2],
}

impl Scales {
    /// The number of blocks that a matrix of this shape has in either direction.
    pub fn grid(&self, dims: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|axis| dims[axis].div_ceil(self.block[axis]))
    }
}

/// 1/127 in f32, as bitsandbytes writes it.
pub(super) const INT8_FACTOR: f32 = 7.874_016e-3;

impl EightBit {
    /// bitsandbytes' int8, with the largest magnitude of each row.
    pub fn int8(values: SharedBytes, absmax: Arc<[f32]>, columns: usize) -> Self {
        let scales = Scales { values: absmax, block: [1, columns.max(1)] };
        Self { kind: EightBitKind::Int8, values, scales, factor: INT8_FACTOR }
    }

    /// Some rows of the matrix of shape `dims`, if they begin at a block of scales.
    pub(super) fn part(&self, rows: Range<usize>, dims: [usize; 2]) -> Option<Self> {
        let [high, wide] = self.scales.block;
        let [_, across] = self.scales.grid(dims);
        // A block that covers all rows covers any of them.
        let bands = if high >= dims[0] { 0..1 } else { rows.start / high..rows.end.div_ceil(high) };
        if high < dims[0] && !rows.start.is_multiple_of(high) {
            return None;
        }
        let values = self.values.part(rows.start * dims[1]..rows.end * dims[1]);
        let scales = self.scales.values[bands.start * across..bands.end * across].into();
        Some(Self { values, scales: Scales { values: scales, block: [high, wide] }, ..self.clone() })
    }

    pub(super) fn decode(&self, columns: usize, start: usize, out: &mut [f32]) {
        let [high, wide] = self.scales.block;
        let across = columns.div_ceil(wide);
        let levels = self.kind.levels();
        let mut at = start;
        let mut out = &mut *out;
        while !out.is_empty() {
            let (row, column) = (at / columns, at % columns);
            let run = (wide - column % wide).min(columns - column).min(out.len());
            let (own, rest) = out.split_at_mut(run);
            let scale = self.scales.values[row / high * across + column / wide];
            for (value, byte) in own.iter_mut().zip(&self.values[at..]) {
                *value = levels[usize::from(*byte)] * scale * self.factor;
            }
            at += run;
            out = rest;
        }
    }
}

/// Quantizes a matrix with rows of `columns` values to int8: the bytes, and the largest magnitude of each row.
pub fn quantize_int8(values: &[f32], columns: usize) -> (Vec<u8>, Vec<f32>) {
    let rows: Vec<_> = values
        .par_chunks(columns.max(1))
        .map(|row| {
            let largest = row.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
            // A row of zeros stays zero.
            let scale = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let bytes = row.iter().map(|value| (value * scale).round_ties_even() as i8 as u8);
            (bytes.collect::<Vec<u8>>(), largest)
        })
        .collect();
    let (bytes, absmax): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    (bytes.concat(), absmax)
}

/// Quantizes a matrix with rows of `columns` values to fp8 e4m3: the bytes, and a scale per tile of `side` × `side` values, in
/// row-major order, which maps the largest magnitude of the tile to the largest value of e4m3.
pub fn quantize_fp8(values: &[f32], columns: usize, side: usize) -> (Vec<u8>, Vec<f32>) {
    let across = columns.div_ceil(side);
    let bands: Vec<_> = values
        .par_chunks((side * columns).max(1))
        .map(|band| {
            let mut largest = vec![0f32; across];
            for row in band.chunks(columns) {
                for (largest, run) in largest.iter_mut().zip(row.chunks(side)) {
                    *largest = run.iter().fold(*largest, |largest, value| largest.max(value.abs()));
                }
            }
            let scales: Vec<f32> =
                largest.iter().map(|&largest| if largest > 0.0 { largest / 448.0 } else { 1.0 }).collect();
            let rows = band.chunks(columns).flat_map(|row| row.chunks(side).zip(&scales));
            let bytes = rows.flat_map(|(run, &scale)| run.iter().map(move |&value| to_e4m3(value / scale)));
            (bytes.collect::<Vec<u8>>(), scales)
        })
        .collect();
    let (bytes, scales): (Vec<_>, Vec<_>) = bands.into_iter().unzip();
    (bytes.concat(), scales.concat())
}

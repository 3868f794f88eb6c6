//! bitsandbytes' 4-bit formats (Dettmers et al. 2023, "QLoRA"): 16 levels, a scale per block of values, and the scales themselves
//! quantized to eight bits.

use std::{ops::Range, sync::Arc};

use rayon::prelude::*;

use super::{
    SharedBytes,
    dynamic::{DynamicMap, MOMENT_BLOCK},
};

/// The number of values that share one scale.
pub const BLOCK: usize = 64;

/// The number of scales that share one scale.
pub const NESTED_BLOCK: usize = MOMENT_BLOCK;

/// The levels of nf4: quantiles of the normal distribution, scaled to [-1, 1] (QLoRA, appendix E).
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The set of 16 levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FourBitKind {
    /// Quantiles of the normal distribution.
    Nf4,
    /// 4-bit floats.
    Fp4,
}

impl FourBitKind {
    /// Its name in bitsandbytes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }
}

/// Values in four bits each.
#[derive(Clone, Debug)]
pub struct FourBit {
    /// The name of the set of levels.
    pub kind: FourBitKind,
    /// The codes, two per byte, the first in the upper half.
    pub values: SharedBytes,
    /// The levels, from -1 to 1.
    pub levels: [f32; 16],
    /// The number of values that share one scale.
    pub block: usize,
    /// The scale of each block: the largest magnitude in it.
    pub absmax: Absmax,
}

/// The scales of blocks.
#[derive(Clone, Debug)]
pub enum Absmax {
    /// Scales in f32.
    Plain(Arc<[f32]>),
    /// Scales in eight bits.
    Nested(Nested),
}

/// Scales in eight bits: `levels[code]·scale + offset`.
#[derive(Clone, Debug)]
pub struct Nested {
    /// One code per scale.
    pub codes: SharedBytes,
    /// The value of each code.
    pub levels: Arc<[f32; 256]>,
    /// The number of codes that share one scale.
    pub block: usize,
    /// The scale of each block of codes.
    pub scales: Arc<[f32]>,
    /// Added to every decoded scale.
    pub offset: f32,
}

impl Absmax {
    fn at(&self, block: usize) -> f32 {
        match self {
            Self::Plain(scales) => scales[block],
            Self::Nested(Nested { codes, levels, block: each, scales, offset }) => {
                levels[usize::from(codes[block])] * scales[block / each] + offset
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Plain(scales) => 4 * scales.len(),
            Self::Nested(nested) => nested.codes.len() + 4 * nested.scales.len(),
        }
    }
}

impl FourBit {
    /// Some of the values, if they are whole blocks, except perhaps the last one.
    pub(super) fn part(&self, values: Range<usize>) -> Option<Self> {
        if !values.start.is_multiple_of(self.block) {
            return None;
        }
        let blocks = values.start / self.block..values.end.div_ceil(self.block);
        let absmax = Absmax::Plain(blocks.map(|block| self.absmax.at(block)).collect());
        let values = self.values.part(values.start / 2..values.end.div_ceil(2));
        Some(Self { values, absmax, ..self.clone() })
    }

    /// Decodes the values from `start` on: `levels[code]·absmax`.
    pub(super) fn decode(&self, start: usize, out: &mut [f32]) {
        // If `start` is odd, the second value of the first byte.
        let odd = usize::from(!start.is_multiple_of(2)).min(out.len());
        let (first, mut out) = out.split_at_mut(odd);
        if let [first] = first {
            *first = self.levels[usize::from(self.values[start / 2] & 15)] * self.absmax.at(start / self.block);
        }
        let mut at = start + odd;
        while !out.is_empty() {
            let block = at / self.block;
            let (own, rest) = out.split_at_mut(out.len().min((block + 1) * self.block - at));
            let absmax = self.absmax.at(block);
            let levels = self.levels.map(|level| level * absmax);
            let bytes = &self.values[at / 2..];
            let (pairs, last) = own.as_chunks_mut();
            for ([high, low], byte) in pairs.iter_mut().zip(bytes) {
                *high = levels[usize::from(byte >> 4)];
                *low = levels[usize::from(byte & 15)];
            }
            if let [value] = last {
                *value = levels[usize::from(bytes[pairs.len()] >> 4)];
            }
            at += own.len();
            out = rest;
        }
    }
}

/// The largest magnitude in each block of 64 values.
pub fn absmax(values: &[f32]) -> Vec<f32> {
    let blocks = values.par_chunks(BLOCK).map(|block| {
        let largest = block.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        // As bitsandbytes does for an incomplete last block.
        if block.len() < BLOCK { largest.max(TINY) } else { largest }
    });
    blocks.collect()
}

/// The divisor that bitsandbytes uses instead of zero.
const TINY: f32 = 1e-38;

/// The nearest of 16 levels for each of `values`, relative to the largest magnitude of its block; two codes per byte.
pub fn quantize_nf4(values: &[f32], absmax: &[f32]) -> Vec<u8> {
    let bounds: [f32; 15] = std::array::from_fn(|i| (NF4[i] + NF4[i + 1]) / 2.0);
    let code = |value: f32| bounds.iter().filter(|&&bound| bound < value).count() as u8;
    // Blocks are even, so only the last byte can hold a single value.
    let packed = values.par_chunks(BLOCK).zip(absmax).flat_map_iter(|(block, &largest)| {
        let scaled = move |value: f32| match block.len() {
            BLOCK => value * (1.0 / largest.max(TINY)),
            _ => value / largest,
        };
        block.chunks(2).map(move |pair| {
            let [high, low] = [0, 1].map(|i| pair.get(i).map_or(0.0, |&value| scaled(value).clamp(-1.0, 1.0)));
            code(high) << 4 | code(low)
        })
    });
    packed.collect()
}

/// Quantizes scales to eight bits in blocks of 256, after subtracting their mean.
pub fn nested(absmax: &[f32]) -> Nested {
    let offset = (absmax.iter().map(|&scale| f64::from(scale)).sum::<f64>() / absmax.len() as f64) as f32;
    let centred: Vec<f32> = absmax.iter().map(|scale| scale - offset).collect();
    let (codes, scales) = DynamicMap::Signed.encode(&centred);
    let levels = *DynamicMap::Signed.levels();
    Nested { codes: codes.into(), levels: Arc::new(levels), block: NESTED_BLOCK, scales: scales.into(), offset }
}

impl FourBitKind {
    /// The levels of nf4, as stored in files.
    pub fn nf4_levels() -> [f32; 16] {
        NF4
    }
}

//! Convolutions as matrix products: `y = W·patches`, where a column of patches holds what one place of the output sees.
//!
//! All patches of a picture would be `k²` pictures. Only a few rows of places and a few channels are laid out at a time, so
//! that they stay in the cache; the places of all samples stand in one line, so that small pictures make wide products.

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use super::{
    gemm::{Matrix, Onto, Target, product},
    shared::Shared,
    simd::vectorized,
};

/// The sizes of a convolution; pairs are height and width.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub batch: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub from: [usize; 2],
    pub to: [usize; 2],
    pub kernel: [usize; 2],
    pub stride: usize,
    pub padding: usize,
}

/// Places whose patches are laid out at a time; at least one row of the output.
const PLACES: usize = 256;
/// Numbers of one patch that are laid out at a time.
const DEPTH: usize = 512;
/// Pieces of work to aim for: enough for many cores. A constant, so that no sum depends on the number of cores.
const PIECES: usize = 16;
/// The least numbers of patches, and the least channels of the output, that make a product worth a piece of work.
const LEAST: usize = 128;

impl Sizes {
    /// Numbers of a kernel.
    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Rows of places, all samples.
    fn rows(&self) -> usize {
        self.batch * self.to[0]
    }

    /// Rows of places that are laid out at a time.
    fn rows_at_a_time(&self) -> usize {
        (PLACES / self.to[1].max(1)).clamp(1, self.rows())
    }

    /// Channels of the input whose gradients are one piece of work.
    fn channels_at_a_time(&self) -> usize {
        // The product is fastest if its sides are multiples of 64.
        let numbers = (self.inputs * self.taps()).div_ceil(PIECES).next_multiple_of(64).max(LEAST);
        (numbers / self.taps()).clamp(1, self.inputs.max(1))
    }

    /// The same places, each seeing only itself: for laying out the gradient of the output.
    fn pointwise(&self) -> Self {
        Self { inputs: self.outputs, from: self.to, kernel: [1, 1], stride: 1, padding: 0, ..*self }
    }
}

/// `y` `[B, out, H', W']` of `x` `[B, in, H, W]` and the weight `[out, in, k, k]`, in order.
pub(super) fn forward(sizes: &Sizes, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let [height, width] = sizes.to;
    let (at_a_time, taps) = (sizes.rows_at_a_time(), sizes.taps());
    let tiles = sizes.rows().div_ceil(at_a_time);
    let channels = (DEPTH / taps).clamp(1, sizes.inputs);
    // Where there are few tiles, several pieces of work lay out the same one for different channels of the output.
    let outputs = sizes.outputs.div_ceil(PIECES.div_ceil(tiles)).max(LEAST).min(sizes.outputs);
    let groups = sizes.outputs.div_ceil(outputs);
    let weight = Matrix::new(weight, sizes.outputs, sizes.inputs * taps);
    let count = sizes.outputs * sizes.rows() * width;
    let mut y = Vec::with_capacity(count);
    let place = Shared::new(&mut y);
    let piece = |(patches, sums): &mut (Vec<f32>, Vec<f32>), piece: usize| {
        let (tile, first) = (piece / groups, piece % groups * outputs);
        let rows = tile * at_a_time..sizes.rows().min((tile + 1) * at_a_time);
        let outputs = outputs.min(sizes.outputs - first);
        let places = rows.len() * width;
        sums.resize(outputs * places, 0.0);
        for start in (0..sizes.inputs).step_by(channels) {
            let channels = start..sizes.inputs.min(start + channels);
            let (depth, offset) = (channels.len() * taps, start * taps);
            lay_out(sizes, x, channels, rows.clone(), patches);
            let onto = if start == 0 { Onto::Nothing } else { Onto::Sum };
            let (a, b) = (weight.rows(first, outputs).columns(offset, depth), Matrix::new(patches, depth, places));
            // SAFETY: the sums are borrowed mutably and have the size of the product.
            unsafe { product(Target::new(sums, places), onto, 1.0, a, b, Parallelism::None) };
        }
        for (output, sums) in (first..).zip(sums.chunks_exact(places.max(1))) {
            let bias = bias.map_or(0.0, |bias| bias[output]);
            for (row, sums) in rows.clone().zip(sums.chunks_exact(width.max(1))) {
                let at = ((row / height * sizes.outputs + output) * height + row % height) * width;
                // SAFETY: inside `y`; a row of a channel belongs to one piece.
                let y = unsafe { place.fresh(at, width) };
                y.iter_mut().zip(sums).for_each(|(y, sum)| {
                    y.write(sum + bias);
                });
            }
        }
    };
    (0..tiles * groups).into_par_iter().for_each_init(Default::default, piece);
    // SAFETY: every row of every channel was written.
    unsafe { y.set_len(count) };
    y
}

/// The gradient `[B, in, H, W]` of `x` from that of `y`: what each place of the output saw gets its share.
pub(super) fn input_gradient(sizes: &Sizes, g: &[f32], weight: &[f32]) -> Vec<f32> {
    let [height, width] = sizes.from;
    let (at_a_time, taps) = (sizes.rows_at_a_time(), sizes.taps());
    let channels = sizes.channels_at_a_time();
    let weight = Matrix::new(weight, sizes.outputs, sizes.inputs * taps);
    let mut dx = vec![0.0; sizes.batch * sizes.inputs * height * width];
    let place = Shared::new(&mut dx);
    let piece = |(patches, laid): &mut (Vec<f32>, Vec<f32>), piece: usize| {
        let channels = piece * channels..sizes.inputs.min((piece + 1) * channels);
        let depth = channels.len() * taps;
        let weight = weight.columns(channels.start * taps, depth);
        for start in (0..sizes.rows()).step_by(at_a_time) {
            let rows = start..sizes.rows().min(start + at_a_time);
            let places = rows.len() * sizes.to[1];
            lay_out(&sizes.pointwise(), g, 0..sizes.outputs, rows.clone(), laid);
            patches.resize(depth * places, 0.0);
            let g = Matrix::new(laid, sizes.outputs, places);
            // SAFETY: the patches are borrowed mutably and have the size of the product.
            unsafe { product(Target::new(patches, places), Onto::Nothing, 1.0, weight.t(), g, Parallelism::None) };
            visit(sizes, channels.clone(), rows, |at, patch| {
                if let Some(Run { place: at, first, count }) = at {
                    // SAFETY: inside `dx`; a channel belongs to one piece of work.
                    let dx = unsafe { place.numbers(at, (count.max(1) - 1) * sizes.stride + count.min(1)) };
                    let patches = &patches[patch + first..][..count];
                    dx.iter_mut().step_by(sizes.stride).zip(patches).for_each(|(dx, patch)| *dx += patch);
                }
            });
        }
    };
    let pieces = sizes.inputs.div_ceil(channels);
    (0..pieces).into_par_iter().for_each_init(Default::default, piece);
    dx
}

/// The gradient of the weight, `[out, in, k, k]`: `Σ g·patchesᵀ` over all places, tile after tile.
pub(super) fn weight_gradient(sizes: &Sizes, x: &[f32], g: &[f32]) -> Vec<f32> {
    let (at_a_time, taps) = (sizes.rows_at_a_time(), sizes.taps());
    let channels = sizes.channels_at_a_time();
    let columns = sizes.inputs * taps;
    let mut dw = vec![0.0; sizes.outputs * columns];
    let place = Shared::new(&mut dw);
    let piece = |(patches, laid): &mut (Vec<f32>, Vec<f32>), piece: usize| {
        let channels = piece * channels..sizes.inputs.min((piece + 1) * channels);
        let depth = channels.len() * taps;
        for start in (0..sizes.rows()).step_by(at_a_time) {
            let rows = start..sizes.rows().min(start + at_a_time);
            let places = rows.len() * sizes.to[1];
            lay_out(&sizes.pointwise(), g, 0..sizes.outputs, rows.clone(), laid);
            lay_out(sizes, x, channels.clone(), rows, patches);
            let (g, patches) = (Matrix::new(laid, sizes.outputs, places), Matrix::new(patches, depth, places));
            // SAFETY: these columns of `dw` belong to this piece of work.
            unsafe {
                let target = place.target(channels.start * taps, columns);
                product(target, Onto::Sum, 1.0, g, patches.t(), Parallelism::None);
            }
        }
    };
    let pieces = sizes.inputs.div_ceil(channels);
    (0..pieces).into_par_iter().for_each_init(Default::default, piece);
    dw
}

/// The patches of some channels and rows of places, `[channels·k·k, places]`.
fn lay_out(sizes: &Sizes, x: &[f32], channels: Range<usize>, rows: Range<usize>, patches: &mut Vec<f32>) {
    let width = sizes.to[1];
    patches.resize(channels.len() * sizes.taps() * rows.len() * width, 0.0);
    visit(
        sizes,
        channels,
        rows,
        #[inline(always)]
        |run, patch| {
            let Some(Run { place, first, count }) = run else {
                return patches[patch..][..width].fill(0.0);
            };
            let x = &x[place..];
            let places = &mut patches[patch + first..];
            if sizes.stride > 1 {
                let count = count.min(places.len());
                places[..count].iter_mut().zip(x.iter().step_by(sizes.stride)).for_each(|(place, x)| *place = *x);
            } else if count <= SHORT && x.len() >= SHORT && places.len() >= SHORT {
                // A short row is copied as one of fixed length; what is too much is overwritten by the next rows.
                places[..SHORT].copy_from_slice(&x[..SHORT]);
            } else {
                places[..count].copy_from_slice(&x[..count]);
            }
            let patches = &mut patches[patch..][..width];
            patches[..first].iter_mut().for_each(|place| *place = 0.0);
            patches[first + count..].iter_mut().for_each(|place| *place = 0.0);
        },
    );
}

/// Numbers that are copied faster than it is found out how many to copy.
const SHORT: usize = 16;

/// What one number of the kernel sees from one row of places: `count` numbers of the picture from `place` on, a stride apart,
/// from the `first` place of the row on. The other places see zeros.
struct Run {
    place: usize,
    first: usize,
    count: usize,
}

/// Calls `f` for each channel, number of the kernel and row of places, with what is seen and where it stands in the patches.
#[inline(always)]
fn visit(sizes: &Sizes, channels: Range<usize>, rows: Range<usize>, mut f: impl FnMut(Option<Run>, usize)) {
    let &Sizes { inputs, from: [height, width], to, kernel, stride, padding, .. } = sizes;
    // The places that see something other than zeros, at this distance from the edge, and what the first of them sees.
    let inside = |at: usize, length: usize, places: usize| {
        let first = padding.saturating_sub(at).div_ceil(stride).min(places);
        let end = if length + padding > at { ((length + padding - at - 1) / stride + 1).min(places) } else { first };
        (first, end.max(first) - first)
    };
    vectorized(
        #[inline(always)]
        || {
            // The sample and the first line that the kernel sees of each row, found once: divisions are slow.
            let rows: Vec<(usize, usize)> = rows.map(|row| (row / to[0] * inputs, row % to[0] * stride)).collect();
            let mut patch = 0;
            for channel in channels {
                for down in 0..kernel[0] {
                    for across in 0..kernel[1] {
                        let (first, count) = inside(across, width, to[1]);
                        let at = (first * stride + across).wrapping_sub(padding);
                        for &(planes, line) in &rows {
                            let line = line + down;
                            let seen = (padding..padding + height).contains(&line) && count > 0;
                            let run = seen.then(|| Run {
                                place: ((planes + channel) * height + line - padding) * width + at,
                                first,
                                count,
                            });
                            f(run, patch);
                            patch += to[1];
                        }
                    }
                }
            }
        },
    );
}

//! Convolutions as matrix products: `y = W·patches`, where a column of patches holds the input window of one output pixel.
//!
//! A full im2col buffer is `k²` times the input. It is built in cache-sized tiles (a few output rows × a few channels), and the
//! pixels of all samples are concatenated, so that small feature maps still give wide products.

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use super::{
    disjoint_slice::DisjointSlice,
    gemm::{NARROW, Onto, SHORT_SUMS, Target, product},
    matrix::Matrix,
    simd::vectorized,
};

/// The sizes of a convolution; pairs are height and width.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub batch: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub from: [usize; 2],
    pub to: [usize; 2],
    pub kernel: [usize; 2],
    pub stride: usize,
    /// Zeros above and below, and at the left and right.
    pub padding: [usize; 2],
    pub company: Company,
    /// The number of pairs of output rows, of all samples or, if results must not depend on the batch, of one whole image: it decides
    /// between this method and Winograd's.
    pub pairs: usize,
}

/// Which other rows of the same product the bits of an output row may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// On all samples and rows.
    Any,
    /// On the rows of the same sample: each sample gets the same bits as alone.
    OfSample,
    /// On none: a band of an image, whose whole output has this height, gets the same bits as in the whole image.
    None {
        /// In pixels.
        height: usize,
    },
}

impl Company {
    fn is_none(self) -> bool {
        matches!(self, Self::None { .. })
    }
}

/// The maximum number of patch elements that exist at a time, unless one output row needs more.
const AT_A_TIME: usize = 2 << 20;
/// Output pixels and channels per task.
const PLACES: usize = 256;
const OUTPUTS: usize = 64;
/// Patch elements whose gradients are one task: products are fastest if their sides are multiples of 64.
const DEPTH: usize = 128;

impl Sizes {
    /// The number of elements of a kernel.
    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// The number of output rows of all samples.
    fn lines(&self) -> usize {
        self.batch * self.to[0]
    }

    /// The columns of a product for `places` pixels: padded, where necessary, so that its sums do not depend on their number.
    fn columns(&self, places: usize) -> usize {
        match self.company.is_none() && self.has_long_sums() {
            true => places.max(NARROW + 1),
            false => places,
        }
    }

    /// Whether the sums of a product depend on how many pixels it has.
    fn has_long_sums(&self) -> bool {
        self.inputs * self.taps() > SHORT_SUMS
    }

    /// The number of output rows that a task may multiply together: several if samples are narrow, but few enough to keep the
    /// product narrow where that matters.
    fn rows_together(&self) -> usize {
        let (places, rows) = (self.to[0] * self.to[1], PLACES / self.to[1].max(1));
        match self.company == Company::OfSample && self.has_long_sums() && places <= NARROW {
            true => NARROW / places.max(1) * self.to[0],
            false => rows.max(1),
        }
    }

    /// Bands of output rows, as large as their patches and the gradients of the output allow.
    fn bands(&self) -> impl Iterator<Item = Range<usize>> {
        let numbers = (self.inputs * self.taps()).max(self.outputs) * self.to[1];
        let each = (AT_A_TIME / numbers.max(1)).max(1);
        // Bands begin at a sample if products must not contain part of one.
        let rows = self.to[0].max(1);
        let (each, run) = match self.company == Company::OfSample && self.has_long_sums() {
            true if rows * self.to[1] <= NARROW && rows <= each => (each / rows * rows, self.lines()),
            true => (each, rows),
            false => (each, self.lines()),
        };
        bands(self.lines(), run, each)
    }

    /// The number of input channels whose gradients are one task.
    fn channels_at_a_time(&self) -> usize {
        (DEPTH / self.taps()).clamp(1, self.inputs.max(1))
    }

    /// The same sizes with a 1×1 kernel: for the layout of the output's gradient.
    fn pointwise(&self) -> Self {
        Self { inputs: self.outputs, from: self.to, kernel: [1, 1], stride: 1, padding: [0; 2], ..*self }
    }
}

/// Divides `lines` in order into bands of at most `each`, none of which crosses a multiple of `run`.
pub fn bands(lines: usize, run: usize, each: usize) -> impl Iterator<Item = Range<usize>> {
    (0..lines).step_by(run.max(1)).flat_map(move |first| {
        let end = lines.min(first + run);
        (first..end).step_by(each).map(move |start| start..end.min(start + each))
    })
}

/// `y` `[B, out, H', W']` from `x` `[B, in, H, W]` and the weight `[out, in, k, k]`, all contiguous.
pub fn forward(sizes: &Sizes, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let [height, width] = sizes.to;
    let weight = Matrix::new(weight, sizes.outputs, sizes.inputs * sizes.taps());
    let count = sizes.outputs * sizes.lines() * width;
    let mut y = Vec::with_capacity(count);
    let place = DisjointSlice::new(&mut y);
    let groups = sizes.outputs.div_ceil(OUTPUTS);
    let each = sizes.rows_together();
    let mut patches = Patches::default();
    for band in sizes.bands() {
        patches.lay_out(sizes, x, band.clone());
        let piece = |sums: &mut Vec<f32>, piece: usize| {
            let first = piece % groups * OUTPUTS;
            let outputs = OUTPUTS.min(sizes.outputs - first);
            let start = piece / groups * each;
            let rows = start..band.len().min(start + each);
            let places = rows.len() * width;
            let columns = sizes.columns(places);
            sums.resize(outputs * columns, 0.0);
            let (a, b) = (weight.rows(first, outputs), patches.matrix().columns(start * width, columns));
            // SAFETY: the sums are borrowed mutably and have the size of the product.
            unsafe { product(Target::new(sums, columns), Onto::Nothing, 1.0, a, b, Parallelism::None) };
            for (output, sums) in (first..).zip(sums.chunks_exact(columns.max(1))) {
                let bias = bias.map_or(0.0, |bias| bias[output]);
                for (row, sums) in rows.clone().zip(sums.chunks_exact(width.max(1))) {
                    let row = band.start + row;
                    let at = ((row / height * sizes.outputs + output) * height + row % height) * width;
                    // SAFETY: inside `y`; a row of a channel belongs to one task.
                    let y = unsafe { place.uninit(at, width) };
                    y.iter_mut().zip(sums).for_each(|(y, sum)| {
                        y.write(sum + bias);
                    });
                }
            }
        };
        let pieces = band.len().div_ceil(each) * groups;
        (0..pieces).into_par_iter().for_each_init(Vec::new, piece);
    }
    // SAFETY: every row of every channel was written.
    unsafe { y.set_len(count) };
    y
}

/// The gradient `[B, in, H, W]` of `x` from that of `y`: each output pixel contributes to its window.
pub fn input_gradient(sizes: &Sizes, g: &[f32], weight: &[f32]) -> Vec<f32> {
    let plane = sizes.from[0] * sizes.from[1];
    let weight = Matrix::new(weight, sizes.outputs, sizes.inputs * sizes.taps());
    let mut dx = vec![0.0; sizes.batch * sizes.inputs * plane];
    let place = DisjointSlice::new(&mut dx);
    let each = (PLACES / sizes.to[1].max(1)).max(1);
    let channels = sizes.channels_at_a_time();
    let mut laid = Patches::default();
    for band in sizes.bands() {
        laid.lay_out(&sizes.pointwise(), g, band.clone());
        let piece = |patches: &mut Vec<f32>, piece: usize| {
            let channels = piece * channels..sizes.inputs.min((piece + 1) * channels);
            let depth = channels.len() * sizes.taps();
            let weight = weight.columns(channels.start * sizes.taps(), depth);
            for start in (0..band.len()).step_by(each) {
                let rows = start..band.len().min(start + each);
                let places = rows.len() * sizes.to[1];
                patches.resize(depth * places, 0.0);
                let g = laid.matrix().columns(start * sizes.to[1], places);
                // SAFETY: the patches are borrowed mutably and have the size of the product.
                unsafe { product(Target::new(patches, places), Onto::Nothing, 1.0, weight.t(), g, Parallelism::None) };
                let rows = band.start + rows.start..band.start + rows.end;
                for (channel, patches) in channels.clone().zip(patches.chunks_exact(sizes.taps() * places)) {
                    visit(
                        sizes,
                        channel,
                        rows.clone(),
                        places,
                        #[inline(always)]
                        |run, patch| {
                            let Some(Run { place: at, first, count }) = run else { return };
                            // SAFETY: inside `dx`, and `count` is positive; a channel belongs to one task.
                            let dx = unsafe { place.values(at, (count - 1) * sizes.stride + 1) };
                            let patches = &patches[patch + first..][..count];
                            if sizes.stride == 1 {
                                dx.iter_mut().zip(patches).for_each(|(dx, patch)| *dx += patch);
                            } else {
                                dx.iter_mut().step_by(sizes.stride).zip(patches).for_each(|(dx, patch)| *dx += patch);
                            }
                        },
                    );
                }
            }
        };
        (0..sizes.inputs.div_ceil(channels)).into_par_iter().for_each_init(Vec::new, piece);
    }
    dx
}

/// The gradient of the weight, `[out, in, k, k]`: `Σ g·patchesᵀ` over all pixels, band after band.
pub fn weight_gradient(sizes: &Sizes, x: &[f32], g: &[f32]) -> Vec<f32> {
    let columns = sizes.inputs * sizes.taps();
    let mut dw = vec![0.0; sizes.outputs * columns];
    let place = DisjointSlice::new(&mut dw);
    let (mut patches, mut laid) = (Patches::default(), Patches::default());
    for band in sizes.bands() {
        patches.lay_out(sizes, x, band.clone());
        laid.lay_out(&sizes.pointwise(), g, band);
        let piece = |start: usize| {
            let depth = DEPTH.min(columns - start);
            let patches = patches.matrix().rows(start, depth).t();
            // SAFETY: these columns of `dw` belong to this task.
            unsafe { product(place.target(start, columns), Onto::Sum, 1.0, laid.matrix(), patches, Parallelism::None) };
        };
        (0..columns.div_ceil(DEPTH)).into_par_iter().for_each(|i| piece(i * DEPTH));
    }
    dw
}

/// The patches of some output rows, `[channels·k·k, pixels]`.
#[derive(Default)]
struct Patches {
    data: Vec<f32>,
    depth: usize,
    places: usize,
    /// Padding columns after the pixels. They are read, but have no effect.
    room: usize,
}

impl Patches {
    fn lay_out(&mut self, sizes: &Sizes, x: &[f32], rows: Range<usize>) {
        self.depth = sizes.inputs * sizes.taps();
        self.places = rows.len() * sizes.to[1];
        self.room = if sizes.company.is_none() { NARROW + SHORT } else { SHORT };
        let pitch = self.pitch();
        self.data.resize(self.depth * pitch, 0.0);
        let channels = self.data.par_chunks_mut((sizes.taps() * pitch).max(1)).enumerate();
        channels.for_each(|(channel, patches)| lay_out_channel(sizes, x, channel, rows.clone(), pitch, patches));
    }

    /// The distance between rows: padded, because rows that are a power of two apart evict each other from the cache, and for
    /// the [padding columns](Sizes::columns) of a product.
    fn pitch(&self) -> usize {
        self.places + self.room
    }

    fn matrix(&self) -> Matrix<'_> {
        Matrix { data: &self.data, rows: self.depth, columns: self.places, strides: (self.pitch(), 1) }
    }
}

/// A fixed length that is copied faster than a variable number of elements.
const SHORT: usize = 16;

/// The patches of one channel.
fn lay_out_channel(sizes: &Sizes, x: &[f32], channel: usize, rows: Range<usize>, pitch: usize, patches: &mut [f32]) {
    let width = sizes.to[1];
    visit(
        sizes,
        channel,
        rows,
        pitch,
        #[inline(always)]
        |run, patch| {
            let Some(Run { place, first, count }) = run else {
                return patches[patch..][..width].fill(0.0);
            };
            let (x, places) = (&x[place..], &mut patches[patch + first..]);
            if sizes.stride > 1 {
                places[..count].iter_mut().zip(x.iter().step_by(sizes.stride)).for_each(|(place, x)| *place = *x);
            } else if count <= SHORT && x.len() >= SHORT && places.len() >= SHORT {
                // A short row is copied with a fixed length; the excess is overwritten by the next row.
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

/// What one kernel element sees for one output row: `count` input pixels from `place` on, a stride apart, for the output pixels
/// from `first` on. The other pixels see zeros.
struct Run {
    place: usize,
    first: usize,
    count: usize,
}

/// Calls `f` for each kernel element (their patches are `pitch` apart) and output row, with what is seen of one channel and its
/// position in the patches.
#[inline(always)]
fn visit(sizes: &Sizes, channel: usize, rows: Range<usize>, pitch: usize, mut f: impl FnMut(Option<Run>, usize)) {
    let &Sizes { inputs, from: [height, width], to, kernel, stride, padding, .. } = sizes;
    let [above, beside] = padding;
    // The pixels that see something other than zeros, at this distance from the edge.
    let inside = |at: usize, length: usize, places: usize| {
        let padding = beside;
        let first = padding.saturating_sub(at).div_ceil(stride).min(places);
        let end = if length + padding > at { ((length + padding - at - 1) / stride + 1).min(places) } else { first };
        (first, end.max(first) - first)
    };
    vectorized(
        #[inline(always)]
        || {
            for down in 0..kernel[0] {
                for across in 0..kernel[1] {
                    let (first, count) = inside(across, width, to[1]);
                    let at = (first * stride + across).wrapping_sub(beside);
                    let mut patch = (down * kernel[1] + across) * pitch;
                    let (mut sample, mut line) = (rows.start / to[0], rows.start % to[0]);
                    for _ in rows.clone() {
                        let seen = line * stride + down;
                        let run = ((above..above + height).contains(&seen) && count > 0).then(|| Run {
                            place: ((sample * inputs + channel) * height + seen - above) * width + at,
                            first,
                            count,
                        });
                        f(run, patch);
                        patch += to[1];
                        line += 1;
                        if line == to[0] {
                            (sample, line) = (sample + 1, 0);
                        }
                    }
                }
            }
        },
    );
}

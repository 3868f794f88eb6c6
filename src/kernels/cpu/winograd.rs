//! Convolutions of 3×3 with 4 multiplications where the definition has 9 (Winograd's F(2×2, 3×3); Lavin & Gray 2015).
//!
//! A tile is 2×2 adjacent pixels of the output and sees 4×4 of the input. With
//!
//! ```text
//!      1  0 −1  0         2  0  0          1  1  1  0
//! Bᵀ = 0  1  1  0    2G = 1  1  1     Aᵀ = 0  1 −1 −1
//!      0 −1  1  0         1 −1  1
//!      0  1  0 −1         0  0  2
//! ```
//!
//! the transforms `v = BᵀxB` of a tile's input and `u = GwGᵀ` of a kernel give `y = Aᵀ(Σ u∘v)A`, summed over the channels:
//! 16 matrix products, one for each element of the transforms. The gradients are `dw = Gᵀ(Σ (A·dy·Aᵀ)∘v)G`, summed over the
//! tiles, and for `x` the convolution of `dy` with the kernels rotated by 180°. The factors are 0, ±1 and ½: the result is as
//! accurate as that of the definition.

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use super::{
    disjoint_slice::DisjointSlice,
    gemm::{Onto, SHORT_SUMS, Target, product},
    loops::Uninit,
    matrix::Matrix,
    patches::{Company, Sizes, bands},
    simd::vectorized,
    transforms::{self, LANES, Lanes},
};

/// The number of elements of a transform.
const POINTS: usize = 16;
/// The maximum number of transformed elements that exist at a time, unless one row of tiles has more.
const AT_A_TIME: usize = 4 << 20;
/// Output channels and tiles per task.
const OUTPUTS: usize = 64;
const TILES: usize = 128;
/// Below this many tiles, or with more kernels than fit the cache, transforming the kernels costs more than it saves; below this
/// many channels, transforming the input does.
const FEWEST_TILES: usize = 128;
pub const MOST_KERNELS: usize = 1 << 20;
const FEWEST_CHANNELS: usize = 16;

/// The distance between the elements of one point and the next, if there are `count` of each: padded, because addresses that
/// are a power of two apart evict each other from the cache.
fn apart(count: usize) -> usize {
    count.next_multiple_of(1024) + 2 * LANES
}

/// Images `[B, C, H, W]` as rows of tiles.
#[derive(Clone, Copy)]
struct Tiles {
    batch: usize,
    height: usize,
    width: usize,
    /// The number of input rows: as many as output rows, or two more if nothing is padded above and below.
    seen: usize,
    /// Whether a product must not contain tiles of two samples.
    apart: bool,
}

impl Tiles {
    fn of(sizes: &Sizes) -> Self {
        let apart = sizes.company == Company::OfSample && sizes.inputs > SHORT_SUMS;
        Self { batch: sizes.batch, height: sizes.to[0], width: sizes.to[1], seen: sizes.from[0], apart }
    }

    /// Tiles in a row.
    fn across(self) -> usize {
        self.width.div_ceil(2)
    }

    /// Rows of tiles in a sample.
    fn down(self) -> usize {
        self.height.div_ceil(2)
    }

    fn rows(self) -> usize {
        self.batch * self.down()
    }

    /// Bands of rows of tiles, as large as their transforms for this many channels allow.
    fn bands(self, channels: usize) -> impl Iterator<Item = Range<usize>> {
        let each = (AT_A_TIME / (POINTS * channels * self.across())).max(1);
        let run = if self.apart { self.down() } else { self.rows() };
        bands(self.rows(), run, each)
    }
}

/// Whether this method is the faster one.
pub fn suits(sizes: &Sizes) -> bool {
    sizes.kernel == [3, 3]
        && sizes.stride == 1
        && sizes.padding[0] <= 1
        && sizes.padding[1] == 1
        && sizes.pairs * Tiles::of(sizes).across() >= FEWEST_TILES
        && sizes.inputs.min(sizes.outputs) >= FEWEST_CHANNELS
        && sizes.inputs * sizes.outputs <= MOST_KERNELS
}

/// Whether this method supports gradients: not without padding above and below.
pub fn suits_gradients(sizes: &Sizes) -> bool {
    suits(sizes) && sizes.padding == [1, 1]
}

/// `y` `[B, out, H, W]` from `x` `[B, in, H, W]` and the weight `[out, in, 3, 3]`, all contiguous.
pub fn forward(sizes: &Sizes, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let kernels = transform_weight(weight, sizes.inputs);
    let step = apart(sizes.outputs * sizes.inputs);
    let kernel = |point: usize| Matrix::new(&kernels[point * step..], sizes.outputs, sizes.inputs);
    convolve(Tiles::of(sizes), [sizes.inputs, sizes.outputs], x, kernel, bias)
}

/// The gradient `[B, in, H, W]` of `x` from that of `y`.
pub fn input_gradient(sizes: &Sizes, g: &[f32], weight: &[f32]) -> Vec<f32> {
    let kernels = transform_weight(weight, sizes.inputs);
    let step = apart(sizes.outputs * sizes.inputs);
    // A kernel rotated by 180° has the same transform with its first and last rows and columns swapped.
    let turned = |i: usize| [3, 1, 2, 0][i];
    let kernel = |point: usize| {
        let point = turned(point / 4) * 4 + turned(point % 4);
        Matrix::new(&kernels[point * step..], sizes.outputs, sizes.inputs).t()
    };
    convolve(Tiles::of(sizes), [sizes.outputs, sizes.inputs], g, kernel, None)
}

/// Computes `y` from its input; `kernel` returns the transformed kernels of a point, `[outputs, inputs]`.
fn convolve<'a>(
    tiles: Tiles,
    [inputs, outputs]: [usize; 2],
    x: &[f32],
    kernel: impl Fn(usize) -> Matrix<'a> + Sync,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let count = tiles.batch * outputs * tiles.height * tiles.width;
    let mut y = Vec::with_capacity(count);
    let place = DisjointSlice::new(&mut y);
    let groups = outputs.div_ceil(OUTPUTS);
    let each = (TILES / tiles.across()).max(1);
    let mut seen = Transformed::default();
    for band in tiles.bands(inputs) {
        seen.fill(tiles, inputs, x, band.clone(), transforms::input);
        let piece = |sums: &mut Vec<f32>, piece: usize| {
            let first = piece % groups * OUTPUTS;
            let channels = first..outputs.min(first + OUTPUTS);
            let start = piece / groups * each;
            let rows = start..band.len().min(start + each);
            let count = rows.len() * tiles.across();
            let step = apart(channels.len() * count);
            sums.resize(POINTS * step, 0.0);
            for (point, sums) in sums.chunks_exact_mut(step).enumerate() {
                let a = kernel(point).rows(first, channels.len());
                let b = seen.point(point).columns(start * tiles.across(), count);
                // SAFETY: the sums are borrowed mutably and have the size of the product.
                unsafe { product(Target::new(sums, count), Onto::Nothing, 1.0, a, b, Parallelism::None) };
            }
            vectorized(
                #[inline(always)]
                || {
                    for (i, channel) in channels.clone().enumerate() {
                        let bias = bias.map_or(0.0, |bias| bias[channel]);
                        for (j, row) in rows.clone().enumerate() {
                            let row = band.start + row;
                            let (sample, line) = (row / tiles.down(), row % tiles.down() * 2);
                            let at = ((sample * outputs + channel) * tiles.height + line) * tiles.width;
                            let lines = (tiles.height - line).min(2);
                            // SAFETY: these lines of `y` belong to this task, which writes all of them.
                            let y = unsafe { place.uninit(at, lines * tiles.width) };
                            let sums = &sums[i * count + j * tiles.across()..];
                            write_lines(tiles.width, sums, step, bias, y);
                        }
                    }
                },
            );
        };
        let pieces = band.len().div_ceil(each) * groups;
        (0..pieces).into_par_iter().for_each_init(Vec::new, piece);
    }
    // SAFETY: all lines of all tiles of all channels were written.
    unsafe { y.set_len(count) };
    y
}

/// The gradient of the weight, `[out, in, 3, 3]`, band after band.
pub fn weight_gradient(sizes: &Sizes, x: &[f32], g: &[f32]) -> Vec<f32> {
    let tiles = Tiles::of(sizes);
    let &Sizes { inputs, outputs, .. } = sizes;
    let step = apart(outputs * inputs);
    let mut sums = vec![0.0; POINTS * step];
    let (mut seen, mut pulled) = (Transformed::default(), Transformed::default());
    for band in tiles.bands(inputs.max(outputs)) {
        seen.fill(tiles, inputs, x, band.clone(), transforms::input);
        pulled.fill(tiles, outputs, g, band, transforms::gradient);
        let add = |sums: &mut [f32], point: usize, first: usize| {
            let g = pulled.point(point).rows(first, OUTPUTS.min(outputs - first));
            // SAFETY: the sums are borrowed mutably and have the size of the product.
            unsafe {
                let target = Target::new(sums, inputs);
                product(target, Onto::Sum, 1.0, g, seen.point(point).t(), Parallelism::None);
            }
        };
        sums.par_chunks_mut(step).enumerate().for_each(|(point, sums)| {
            let groups = sums[..outputs * inputs].par_chunks_mut(OUTPUTS * inputs).enumerate();
            groups.for_each(|(group, sums)| add(sums, point, group * OUTPUTS));
        });
    }
    gather_weight(&sums, outputs, inputs)
}

/// The transforms of a band of tiles, `[POINTS, channels, pitch]`.
#[derive(Default)]
struct Transformed {
    data: Vec<f32>,
    channels: usize,
    columns: usize,
    /// The number of columns, padded by one vector.
    pitch: usize,
}

impl Transformed {
    /// The matrix of a point, `[channels, tiles]`.
    fn point(&self, point: usize) -> Matrix<'_> {
        let data = &self.data[point * apart(self.channels * self.pitch)..];
        Matrix { data, rows: self.channels, columns: self.columns, strides: (self.pitch, 1) }
    }

    /// Applies `transform` to the `N`×`N` elements of `x` `[B, C, H, W]` around each tile; images are
    /// padded with zeros.
    fn fill<const N: usize>(
        &mut self,
        tiles: Tiles,
        channels: usize,
        x: &[f32],
        band: Range<usize>,
        transform: impl Fn(&[[Lanes; N]; N]) -> [[Lanes; 4]; 4] + Sync,
    ) {
        let across = tiles.across();
        self.channels = channels;
        self.columns = band.len() * across;
        self.pitch = self.columns + LANES;
        let pitch = self.pitch;
        let step = apart(channels * pitch);
        self.data.resize(POINTS * step, 0.0);
        let place = DisjointSlice::new(&mut self.data);
        // The number of elements, and of lines, before the first of a tile.
        let before = N / 2 - 1;
        let above = if N == 2 { 0 } else { 1 - (tiles.seen - tiles.height) / 2 };
        let seen = if N == 2 { tiles.height } else { tiles.seen };
        // A line split into elements at even and at odd positions, padded to whole vectors.
        let half = across.next_multiple_of(LANES) + LANES;
        let fill = |lines: &mut Vec<f32>, channel: usize| {
            vectorized(
                #[inline(always)]
                || {
                    lines.clear();
                    lines.resize(N * 2 * half, 0.0);
                    for (at, row) in band.clone().enumerate() {
                        let (sample, first) = (row / tiles.down(), row % tiles.down() * 2);
                        let plane = &x[(sample * channels + channel) * seen * tiles.width..];
                        for (i, line) in lines.chunks_exact_mut(2 * half).enumerate() {
                            let inside = (above..above + seen).contains(&(first + i));
                            let x = inside.then(|| &plane[(first + i - above) * tiles.width..][..tiles.width]);
                            part(x, before, line.split_at_mut(half));
                        }
                        for start in (0..across).step_by(LANES) {
                            let mut seen = [[[0.0; LANES]; N]; N];
                            for (i, seen) in seen.iter_mut().enumerate() {
                                for (j, seen) in seen.iter_mut().enumerate() {
                                    let from = (2 * i + j % 2) * half + start + j / 2;
                                    seen.copy_from_slice(&lines[from..from + LANES]);
                                }
                            }
                            for (point, lanes) in transform(&seen).as_flattened().iter().enumerate() {
                                let at = point * step + channel * pitch + at * across + start;
                                // SAFETY: inside this channel's row, which is one task. What a vector writes beyond a
                                // row of tiles belongs to the next row, which is written later, or to the padding.
                                unsafe { place.values(at, LANES) }.copy_from_slice(lanes);
                            }
                        }
                    }
                },
            )
        };
        (0..channels).into_par_iter().for_each_init(Vec::new, fill);
    }
}

/// The elements of a line, or zeros, at even and at odd positions, preceded by `before` zeros (none or one).
#[inline(always)]
fn part(x: Option<&[f32]>, before: usize, (even, odd): (&mut [f32], &mut [f32])) {
    let Some(x) = x else {
        even.fill(0.0);
        odd.fill(0.0);
        return;
    };
    let (firsts, seconds) = if before == 0 { (even, odd) } else { (odd, &mut even[1..]) };
    let pairs = x.chunks_exact(2);
    if let [last] = pairs.remainder() {
        firsts[x.len() / 2] = *last;
    }
    for ((first, second), pair) in firsts.iter_mut().zip(seconds).zip(pairs) {
        (*first, *second) = (pair[0], pair[1]);
    }
}

/// One or two lines of `y` from a row of products, in which points are `step` apart.
#[inline(always)]
fn write_lines(width: usize, sums: &[f32], step: usize, bias: f32, y: &mut Uninit) {
    for start in (0..width).step_by(2 * LANES) {
        let mut m = [[[0.0; LANES]; 4]; 4];
        for (point, m) in m.as_flattened_mut().iter_mut().enumerate() {
            m.copy_from_slice(&sums[point * step + start / 2..][..LANES]);
        }
        let tile = transforms::output(&m);
        for (down, y) in y.chunks_exact_mut(width).enumerate() {
            let mut line = [0.0; 2 * LANES];
            for i in 0..LANES {
                line[2 * i] = tile[down][0][i] + bias;
                line[2 * i + 1] = tile[down][1][i] + bias;
            }
            let y = &mut y[start..width.min(start + 2 * LANES)];
            y.write_copy_of_slice(&line[..y.len()]);
        }
    }
}

/// `u = GwGᵀ` of all kernels `[out, in, 3, 3]`: `[POINTS, out, in]`.
fn transform_weight(weight: &[f32], inputs: usize) -> Vec<f32> {
    let kernels = weight.len() / 9;
    let step = apart(kernels);
    let mut all = vec![0.0; POINTS * step];
    let place = DisjointSlice::new(&mut all);
    let output = |output: usize| {
        vectorized(
            #[inline(always)]
            || {
                let weight = &weight[output * inputs * 9..][..inputs * 9];
                for start in (0..inputs).step_by(LANES) {
                    let count = LANES.min(inputs - start);
                    let mut some = [0.0; 9 * LANES];
                    some[..9 * count].copy_from_slice(&weight[start * 9..][..9 * count]);
                    let mut w = [[[0.0; LANES]; 3]; 3];
                    for (k, w) in w.as_flattened_mut().iter_mut().enumerate() {
                        for (i, w) in w.iter_mut().enumerate() {
                            *w = some[9 * i + k];
                        }
                    }
                    for (point, u) in transforms::kernel(&w).as_flattened().iter().enumerate() {
                        // SAFETY: the kernels of one output channel are one task.
                        let place = unsafe { place.values(point * step + output * inputs + start, count) };
                        place.copy_from_slice(&u[..count]);
                    }
                }
            },
        )
    };
    (0..kernels / inputs.max(1)).into_par_iter().for_each(output);
    all
}

/// `GᵀuG` of the gradients of all transformed kernels `[POINTS, out, in]`: `[out, in, 3, 3]`.
fn gather_weight(u: &[f32], outputs: usize, inputs: usize) -> Vec<f32> {
    let step = apart(outputs * inputs);
    let mut dw = vec![0.0; outputs * inputs * 9];
    dw.par_chunks_mut(inputs.max(1) * 9).enumerate().for_each(|(output, dw)| {
        vectorized(
            #[inline(always)]
            || {
                for (start, dw) in (0..inputs).step_by(LANES).zip(dw.chunks_mut(LANES * 9)) {
                    let count = dw.len() / 9;
                    let mut du = [[[0.0; LANES]; 4]; 4];
                    for (point, du) in du.as_flattened_mut().iter_mut().enumerate() {
                        du[..count].copy_from_slice(&u[point * step + output * inputs + start..][..count]);
                    }
                    let w = transforms::kernel_gradient(&du);
                    for (i, dw) in dw.chunks_exact_mut(9).enumerate() {
                        for (dw, w) in dw.iter_mut().zip(w.as_flattened()) {
                            *dw = w[i];
                        }
                    }
                }
            },
        )
    });
    dw
}

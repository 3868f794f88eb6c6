//! Images in bands of rows, for the largest of which only a few rows of each intermediate result exist at a time.
//!
//! The result is that of the whole image, not of tiles that are joined. A convolution sees the rows around those that it makes,
//! and zeros only beyond the edges of the image. A norm's statistics are those of the whole image: they are gathered from all
//! bands first, then the bands are rebuilt and normalized. Between two blocks an image is kept whole, in bands, each of which
//! goes when the next image's bands need it no more. Inside of a block it is kept where that takes no more memory than the
//! largest image that must be kept, and otherwise computed twice.
//!
//! On the CPU in f32 the pixels have the same bits as without bands, at any size and number of rows: a row of a convolution, and
//! what is added up for a norm, do not depend on what comes together ([`kernels::conv2d_rows`](crate::kernels::conv2d_rows)).
//! Elsewhere they differ by rounding, as the backend may add up otherwise.

use std::{collections::VecDeque, ops::Range};

use burn::tensor::Tensor;

use crate::nn::{Conv2d, GroupNorm, pad_bottom_right, upsample_nearest};

/// The division of an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Rows per band.
    each: usize,
    /// Values that may be kept of whole images.
    pub keep: usize,
}

impl Plan {
    /// Bands of `rows`, and as much memory as the image `[B, C, H, W]` that must be kept takes.
    pub fn new(rows: usize, largest: [usize; 4]) -> Self {
        // Even, as are the rows that a convolution makes together.
        Self { each: rows.max(1).next_multiple_of(2), keep: largest.iter().product() }
    }

    /// The bands of an image.
    pub fn bands(self, height: usize) -> impl Iterator<Item = Range<usize>> {
        (0..height).step_by(self.each).map(move |first| first..height.min(first + self.each))
    }
}

/// The rows that a 3×3 convolution sees for these rows of an image. It makes pairs of rows.
pub(super) fn seen(rows: &Range<usize>, height: usize) -> Range<usize> {
    (rows.start / 2 * 2).saturating_sub(1)..height.min(rows.end + 1)
}

/// Some rows of an image.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    /// `[B, C, rows, W]`.
    pub x: Tensor<4>,
    /// The number of the first.
    pub first: usize,
    /// The height of the whole image.
    pub height: usize,
}

impl Rows {
    pub fn range(&self) -> Range<usize> {
        self.first..self.first + self.x.dims()[2]
    }

    /// Some of them.
    pub fn some(&self, rows: &Range<usize>) -> Self {
        match *rows == self.range() {
            true => self.clone(),
            false => {
                let x = self.x.clone().narrow(2, rows.start - self.first, rows.len());
                Self { x, first: rows.start, height: self.height }
            }
        }
    }

    /// The same rows after `f`, which treats each by itself.
    pub fn map(self, f: impl FnOnce(Tensor<4>) -> Tensor<4>) -> Self {
        Self { x: f(self.x), ..self }
    }

    /// A convolution that keeps the size: its `rows`, for which these are all that are [`seen`].
    pub fn conv(self, conv: &Conv2d, rows: &Range<usize>) -> Self {
        let (Range { start, end }, height, around) = (self.range(), self.height, conv.padding());
        if around == 0 {
            return self.some(rows).map(|x| conv.forward_rows(x, height));
        }
        let first = if start == 0 { 0 } else { (start + around).next_multiple_of(2) };
        let from = first.saturating_sub(around);
        // The input is dropped as soon as it was read.
        let x = if from == start { self.x } else { self.x.narrow(2, from - start, end - from) };
        let [batch, channels, _, width] = x.dims();
        let zeros = Tensor::zeros([batch, channels, around, width], (&x.device(), x.dtype()));
        let above = (start == 0).then(|| zeros.clone());
        let below = (end == height).then_some(zeros);
        let x = match (&above, &below) {
            (None, None) => x,
            _ => Tensor::cat(above.into_iter().chain([x]).chain(below).collect(), 2),
        };
        Self { x: conv.forward_rows(x, height), first, height }.some(rows)
    }

    /// The rows of the image with twice the sides.
    fn doubled(self) -> Self {
        Self { x: upsample_nearest(self.x), first: 2 * self.first, height: 2 * self.height }
    }

    /// A convolution that halves the sides, with a column of zeros at the right and a row at the bottom of the image.
    fn halved(self, conv: &Conv2d) -> Self {
        let (rows, height) = (self.range(), self.height);
        let padded = pad_bottom_right(self.x);
        let x = if rows.end == height { padded } else { padded.narrow(2, 0, rows.len()) };
        Self { x: conv.forward_rows(x, height / 2), first: rows.start / 2, height: height / 2 }
    }
}

/// An image as rows one below the other.
#[derive(Clone, Debug)]
pub(super) struct Bands {
    shape: [usize; 4],
    bands: VecDeque<Rows>,
}

impl Bands {
    /// The image `[B, C, H, W]` as one band.
    pub fn whole(x: Tensor<4>) -> Self {
        let shape @ [_, _, height, _] = x.dims();
        Self { shape, bands: [Rows { x, first: 0, height }].into() }
    }

    /// The image of all bands in their order, one or more.
    pub fn of(bands: impl Iterator<Item = Rows>) -> Self {
        let bands: VecDeque<_> = bands.collect();
        let [batch, channels, _, width] = bands[0].x.dims();
        Self { shape: [batch, channels, bands[0].height, width], bands }
    }

    /// `[B, C, H, W]`, of the whole image.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// These rows.
    ///
    /// # Panics
    /// Some were forgotten.
    pub fn rows(&self, rows: &Range<usize>) -> Rows {
        let parts = self.bands.iter().filter_map(|band| {
            let own = band.range();
            let part = rows.start.max(own.start)..rows.end.min(own.end);
            (!part.is_empty()).then(|| band.some(&part).x)
        });
        let mut parts: Vec<_> = parts.collect();
        let x = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 2) };
        assert_eq!(x.dims()[2], rows.len(), "rows {rows:?} are there");
        Rows { x, first: rows.start, height: self.shape[2] }
    }

    /// Drops bands that end before this row.
    pub fn forget(&mut self, before: usize) {
        while self.bands.front().is_some_and(|band| band.range().end <= before) {
            self.bands.pop_front();
        }
    }

    /// The whole image.
    pub fn into_tensor(self) -> Tensor<4> {
        let all = 0..self.shape[2];
        self.rows(&all).x
    }

    /// The image after a convolution that halves its sides.
    pub fn halved(mut self, conv: &Conv2d, plan: Plan) -> Self {
        let height = self.shape[2];
        Self::of(plan.bands(height / 2).map(|band| {
            self.forget(2 * band.start);
            self.rows(&(2 * band.start..height.min(2 * band.end + 1))).halved(conv)
        }))
    }

    /// The image after `norm`, SiLU and the convolution, which keep its size.
    pub fn finish(mut self, norm: &GroupNorm, conv: &Conv2d, plan: Plan) -> Self {
        let height = self.shape[2];
        let mut statistics = norm.statistics(self.shape);
        plan.bands(height).for_each(|band| statistics.add(self.rows(&band).x, band.start));
        let statistics = statistics.finish();
        Self::of(plan.bands(height).map(|band| {
            let rows = seen(&band, height);
            self.forget(rows.start);
            self.rows(&rows).map(|x| norm.forward_silu_rows(x, &statistics)).conv(conv, &band)
        }))
    }
}

/// An image that goes into a block.
#[derive(Clone, Debug)]
pub(super) enum Picture<'a> {
    /// Already computed.
    Kept(Bands),
    /// Computed on demand: an image of twice the sides after a convolution.
    Doubled(Bands, &'a Conv2d),
}

impl<'a> Picture<'a> {
    /// `half` with its sides doubled and a convolution after that; kept if the plan says so.
    pub fn doubled(half: Bands, conv: &'a Conv2d, plan: Plan) -> Self {
        let mut picture = Self::Doubled(half, conv);
        let [batch, channels, height, width] = picture.shape();
        if batch * channels * height * width > plan.keep {
            return picture;
        }
        Self::Kept(Bands::of(plan.bands(height).map(|band| {
            picture.forget(band.start);
            picture.rows(&band)
        })))
    }

    /// `[B, C, H, W]`.
    pub fn shape(&self) -> [usize; 4] {
        match self {
            Self::Kept(bands) => bands.shape(),
            Self::Doubled(half, conv) => {
                let [batch, _, height, width] = half.shape();
                [batch, conv.outputs(), 2 * height, 2 * width]
            }
        }
    }

    /// Values that it keeps.
    pub fn kept(&self) -> usize {
        let (Self::Kept(bands) | Self::Doubled(bands, _)) = self;
        bands.shape().iter().product()
    }

    /// These rows.
    pub fn rows(&self, rows: &Range<usize>) -> Rows {
        match self {
            Self::Kept(bands) => bands.rows(rows),
            Self::Doubled(half, conv) => {
                let seen = seen(rows, self.shape()[2]);
                half.rows(&(seen.start / 2..seen.end.div_ceil(2))).doubled().conv(conv, rows)
            }
        }
    }

    /// Drops data that is only needed for rows before this one.
    pub fn forget(&mut self, before: usize) {
        match self {
            Self::Kept(bands) => bands.forget(before),
            Self::Doubled(half, _) => half.forget((before / 2 * 2).saturating_sub(1) / 2),
        }
    }
}

//! The statistics of group norm, at once or accumulated from bands of images.

use burn::tensor::{FloatDType, Tensor};
use rayon::prelude::*;

use super::{
    cpu::{Gathered, Statistics, contiguous, values, vectorized},
    dispatch::by_way,
};

/// A summary of some rows: the number of values per group, and their means and variances, each `[B, G, 1, 1]`, f32.
#[derive(Clone, Debug)]
struct Part {
    count: usize,
    mean: Tensor<4>,
    squares: Tensor<4>,
}

/// The statistics of each sample and group of channels, for `group_norm_rows`: every row is [added](Self::add) once, then they
/// are [finished](Self::finish).
#[derive(Clone, Debug)]
pub struct GroupStatistics {
    groups: usize,
    epsilon: f64,
    shape: [usize; 4],
    state: State,
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // a few at a time, never moved
enum State {
    /// For f32 on the CPU: the values of each group of each sample.
    Gathering(Vec<Gathered>),
    Parts(Vec<Part>),
    Known(Vec<Statistics>),
    /// The mean and the reciprocal of the standard deviation, `[B, G, 1, 1]`.
    Tensors([Tensor<4>; 2]),
}

const MISFIT: &str = "rows are normalized by the statistics of pictures like them, which are finished";

impl GroupStatistics {
    /// Empty statistics for images of `shape` `[B, C, H, W]`; `groups` divides `C`.
    pub fn new(shape: [usize; 4], groups: usize, epsilon: f64) -> Self {
        Self { groups, epsilon, shape, state: State::Parts(Vec::new()) }
    }

    /// Adds the rows `x` `[B, C, rows, W]`, which begin at row `first` of the images.
    ///
    /// # Panics
    /// If the rows do not fit the images, or the statistics are finished.
    pub fn add(&mut self, x: Tensor<4>, first: usize) {
        let [batch, channels, height, width] = self.shape;
        let [of, each, rows, across] = x.dims();
        assert!(
            [of, each, across] == [batch, channels, width] && first + rows <= height,
            "rows {:?} from {first} on are none of {:?}",
            x.dims(),
            self.shape
        );
        let each = channels / self.groups;
        by_way!([x.into_dispatch()],
            Cpu([x]) => {
                if matches!(&self.state, State::Parts(parts) if parts.is_empty()) {
                    let empty = Gathered::new(each * height * width);
                    self.state = State::Gathering(vec![empty; batch * self.groups]);
                }
                let State::Gathering(groups) = &mut self.state else { panic!("all rows are of one kind") };
                let x = contiguous(x);
                let planes = values(&x).par_chunks_exact((each * rows * width).max(1));
                groups.par_iter_mut().zip(planes).for_each(|(group, planes)| {
                    vectorized(
                        #[inline(always)]
                        || {
                            for (channel, plane) in planes.chunks_exact(rows * width).enumerate() {
                                group.add((channel * height + first) * width, plane);
                            }
                        },
                    )
                });
            },
            Composed([x]) => {
                let State::Parts(parts) = &mut self.state else { panic!("all rows are of one kind") };
                let x = Tensor::<4>::from_dispatch(x).cast(FloatDType::F32);
                let x = x.reshape([batch, self.groups, each * rows, width]);
                // Means of means: one sum over millions of values would lose digits.
                let mean = |x: Tensor<4>| x.mean_dim(3).mean_dim(2);
                let middle = mean(x.clone());
                let squares = mean((x - middle.clone()).square());
                parts.push(Part { count: each * rows * width, mean: middle, squares });
            },
        )
    }

    /// Finishes the statistics for use.
    ///
    /// # Panics
    /// If a row was not added.
    pub fn finish(self) -> Self {
        let [_, channels, height, width] = self.shape;
        let state = match self.state {
            State::Gathering(groups) => State::Known(groups.iter().map(|group| group.finish(self.epsilon)).collect()),
            State::Parts(parts) => {
                let all = channels / self.groups * height * width;
                assert_eq!(
                    parts.iter().map(|part| part.count).sum::<usize>(),
                    all,
                    "all rows of the pictures were added"
                );
                let weighted = |f: &dyn Fn(&Part) -> Tensor<4>| {
                    let parts = parts.iter().map(|part| f(part) * (part.count as f64 / all as f64));
                    parts.reduce(|sum, part| sum + part).expect("pictures have rows")
                };
                let mean = weighted(&|part| part.mean.clone());
                let variance = weighted(&|part| part.squares.clone() + (part.mean.clone() - mean.clone()).square());
                State::Tensors([mean, (variance + self.epsilon).sqrt().recip()])
            }
            known => known,
        };
        Self { state, ..self }
    }

    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    /// The statistics of each group of each sample, on the CPU in f32.
    pub(super) fn known(&self) -> &[Statistics] {
        let State::Known(statistics) = &self.state else { panic!("{MISFIT}") };
        statistics
    }

    /// The mean and the reciprocal of the standard deviation for each channel, `[B, C, 1, 1]`, f32; not for f32 on the CPU.
    pub(super) fn of_channels(&self, channels: usize) -> [Tensor<4>; 2] {
        let State::Tensors(tensors) = &self.state else { panic!("{MISFIT}") };
        let (batch, each) = (self.shape[0], channels / self.groups);
        let spread = |t: &Tensor<4>| t.clone().expand([batch, self.groups, each, 1]).reshape([batch, channels, 1, 1]);
        tensors.each_ref().map(spread)
    }
}

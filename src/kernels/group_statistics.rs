//! The statistics of group norm, at once or from parts of pictures that come one after the other.

use std::collections::BTreeMap;

use burn::tensor::{FloatDType, Tensor};
use rayon::prelude::*;

use super::{
    cpu,
    simd::{sum, vectorized},
};

/// Numbers that are added up in f32, which stay in the nearest cache meanwhile; such sums are added up in f64. A group of a
/// large picture has millions of numbers.
pub(super) const CHUNK: usize = 4096;

/// The mean of a group and 1 over its deviation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Statistics {
    pub mean: f32,
    pub inverse: f32,
}

impl Statistics {
    /// In one pass over memory.
    #[inline(always)]
    pub fn of(group: &[f32], epsilon: f64) -> Self {
        Self::joined(group.chunks(CHUNK).map(Chunk::of), epsilon)
    }

    /// Of the chunks of a group in their order, by the formula of Chan, Golub & LeVeque 1983.
    #[inline(always)]
    fn joined(chunks: impl Iterator<Item = Chunk>, epsilon: f64) -> Self {
        let (mut n, mut mean, mut squares) = (0.0, 0.0, 0.0);
        for Chunk { count, middle, inside } in chunks {
            let away = middle - mean;
            squares += inside + away * away * n * count / (n + count);
            n += count;
            mean += away * count / n;
        }
        Self { mean: mean as f32, inverse: (1.0 / (squares / n + epsilon).sqrt()) as f32 }
    }
}

/// What is known of a chunk of numbers: how many they are, their mean, and the sum of the squares of their distances from it.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    count: f64,
    middle: f64,
    inside: f64,
}

impl Chunk {
    #[inline(always)]
    fn of(chunk: &[f32]) -> Self {
        let count = chunk.len() as f64;
        let total = sum(
            [chunk],
            #[inline(always)]
            |[x]| x,
        );
        let middle = f64::from(total) / count;
        let centre = middle as f32;
        let inside = sum(
            [chunk],
            #[inline(always)]
            |[x]| (x - centre) * (x - centre),
        );
        Self { count, middle, inside: f64::from(inside) }
    }
}

/// The numbers of one group as they come, in chunks that are the same whatever comes together.
#[derive(Clone, Debug)]
struct Gathered {
    /// How many there will be.
    total: usize,
    /// Of each chunk that is complete.
    chunks: Vec<Option<Chunk>>,
    /// The numbers of those that are not, by number, and how many of them are there.
    open: BTreeMap<usize, (Vec<f32>, usize)>,
}

impl Gathered {
    fn new(total: usize) -> Self {
        Self { total, chunks: vec![None; total.div_ceil(CHUNK)], open: BTreeMap::new() }
    }

    /// Takes `numbers`, which stand at `at` in the group.
    #[inline(always)]
    fn add(&mut self, mut at: usize, mut numbers: &[f32]) {
        while !numbers.is_empty() {
            let (number, within) = (at / CHUNK, at % CHUNK);
            let length = CHUNK.min(self.total - number * CHUNK);
            let (some, rest) = numbers.split_at(numbers.len().min(length - within));
            if some.len() == length {
                self.chunks[number] = Some(Chunk::of(some));
            } else {
                let (chunk, count) = self.open.entry(number).or_insert_with(|| (vec![0.0; length], 0));
                chunk[within..within + some.len()].copy_from_slice(some);
                *count += some.len();
                if *count == length {
                    self.chunks[number] = Some(Chunk::of(chunk));
                    self.open.remove(&number);
                }
            }
            at += some.len();
            numbers = rest;
        }
    }

    fn finish(&self, epsilon: f64) -> Statistics {
        let chunks = self.chunks.iter().map(|chunk| chunk.expect("all rows of the pictures were added"));
        Statistics::joined(chunks, epsilon)
    }
}

/// What is known of some rows: how many numbers of a group they have, the mean, and the mean square distance from it, each
/// `[B, G, 1, 1]`, f32.
#[derive(Clone, Debug)]
struct Part {
    count: usize,
    mean: Tensor<4>,
    squares: Tensor<4>,
}

/// The statistics of each sample and group of channels of pictures, for [`group_norm_rows`](super::group_norm_rows): all rows are
/// [added](Self::add), each once, then it is [finished](Self::finish).
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
    /// In f32 on the CPU: of each group of each sample.
    Gathering(Vec<Gathered>),
    Parts(Vec<Part>),
    Known(Vec<Statistics>),
    /// The mean and 1 over the deviation, `[B, G, 1, 1]`.
    Tensors([Tensor<4>; 2]),
}

impl GroupStatistics {
    /// Of pictures `shape` `[B, C, H, W]`; `groups` divides `C`.
    pub fn new(shape: [usize; 4], groups: usize, epsilon: f64) -> Self {
        Self { groups, epsilon, shape, state: State::Parts(Vec::new()) }
    }

    /// Takes the rows `x` `[B, C, rows, W]` from row `first` of the pictures on.
    ///
    /// # Panics
    /// They are other pictures' rows, or it was finished.
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
        match cpu::floats([x.into_dispatch()]) {
            Ok([x]) => {
                if matches!(&self.state, State::Parts(parts) if parts.is_empty()) {
                    let empty = Gathered::new(each * height * width);
                    self.state = State::Gathering(vec![empty; batch * self.groups]);
                }
                let State::Gathering(groups) = &mut self.state else { panic!("all rows are of one kind") };
                let x = cpu::in_order(x);
                let planes = cpu::numbers(&x).par_chunks_exact((each * rows * width).max(1));
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
            }
            Err([x]) => {
                let State::Parts(parts) = &mut self.state else { panic!("all rows are of one kind") };
                let x = Tensor::<4>::from_dispatch(x).cast(FloatDType::F32);
                let x = x.reshape([batch, self.groups, each * rows, width]);
                // Means of means: one sum over millions of numbers would lose digits.
                let mean = |x: Tensor<4>| x.mean_dim(3).mean_dim(2);
                let middle = mean(x.clone());
                let squares = mean((x - middle.clone()).square());
                parts.push(Part { count: each * rows * width, mean: middle, squares });
            }
        }
    }

    /// The same, ready for use.
    ///
    /// # Panics
    /// A row was not added.
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

    /// Of each group of each sample, on the CPU in f32.
    pub(super) fn known(&self) -> Option<&[Statistics]> {
        match &self.state {
            State::Known(statistics) => Some(statistics),
            _ => None,
        }
    }

    /// The mean and 1 over the deviation for each channel, `[B, C, 1, 1]`, f32; elsewhere than on the CPU in f32.
    pub(super) fn of_channels(&self, channels: usize) -> [Tensor<4>; 2] {
        let State::Tensors(tensors) = &self.state else { panic!("the statistics are finished before they are used") };
        let (batch, each) = (self.shape[0], channels / self.groups);
        let spread = |t: &Tensor<4>| t.clone().expand([batch, self.groups, each, 1]).reshape([batch, channels, 1, 1]);
        tensors.each_ref().map(spread)
    }
}

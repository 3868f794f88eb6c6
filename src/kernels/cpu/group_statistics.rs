//! The statistics of groups of values, at once or accumulated from parts.

use std::collections::BTreeMap;

use super::simd::sum;

/// The number of values that are summed in f32, which fit in the L1 cache; these sums are summed in f64.
pub const CHUNK: usize = 4096;

/// The mean of a group and the reciprocal of its standard deviation.
#[derive(Clone, Copy, Debug)]
pub struct Statistics {
    pub mean: f32,
    pub inverse: f32,
}

impl Statistics {
    /// Computes them in one pass over memory.
    #[inline(always)]
    pub fn of(group: &[f32], epsilon: f64) -> Self {
        Self::joined(group.chunks(CHUNK).map(Chunk::of), epsilon)
    }

    /// Combines the chunks of a group in order, by the formula of Chan, Golub & LeVeque 1983.
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

/// A summary of a chunk of values: their number, their mean, and the sum of squared deviations from it.
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

/// Accumulates the values of one group in chunks that do not depend on how the values arrive.
#[derive(Clone, Debug)]
pub struct Gathered {
    /// The total number of values.
    total: usize,
    /// The summary of each complete chunk.
    chunks: Vec<Option<Chunk>>,
    /// The values of incomplete chunks, by index, and how many are present.
    open: BTreeMap<usize, (Vec<f32>, usize)>,
}

impl Gathered {
    pub fn new(total: usize) -> Self {
        Self { total, chunks: vec![None; total.div_ceil(CHUNK)], open: BTreeMap::new() }
    }

    /// Adds `numbers`, which are at position `at` of the group.
    #[inline(always)]
    pub fn add(&mut self, mut at: usize, mut numbers: &[f32]) {
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

    pub fn finish(&self, epsilon: f64) -> Statistics {
        let chunks = self.chunks.iter().map(|chunk| chunk.expect("all rows of the pictures were added"));
        Statistics::joined(chunks, epsilon)
    }
}

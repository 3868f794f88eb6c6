//! The statistics of groups of numbers, at once or from parts.

use std::collections::BTreeMap;

use super::simd::sum;

/// large picture has millions of numbers.
pub const CHUNK: usize = 4096;

/// The mean of a group and 1 over its deviation.
#[derive(Clone, Copy, Debug)]
pub struct Statistics {
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
pub struct Gathered {
    /// How many there will be.
    total: usize,
    /// Of each chunk that is complete.
    chunks: Vec<Option<Chunk>>,
    /// The numbers of those that are not, by number, and how many of them are there.
    open: BTreeMap<usize, (Vec<f32>, usize)>,
}

impl Gathered {
    pub fn new(total: usize) -> Self {
        Self { total, chunks: vec![None; total.div_ceil(CHUNK)], open: BTreeMap::new() }
    }

    /// Takes `numbers`, which stand at `at` in the group.
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

//! Parallel loops over slices.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::simd::vectorized;

/// Below this many elements, work is not worth another core.
const SERIAL: usize = 16 * 1024;
/// The number of elements per parallel task. A constant, so that sums over tasks never depend on the number of cores.
const PIECE: usize = 16 * 1024;

/// Uninitialized elements that a loop is about to write.
pub type Uninit = [MaybeUninit<f32>];

/// Builds `count` elements in rows of `width`, of which the last may be shorter. `write` gets the index and the memory of a row,
/// runs vectorized, and must write all of it.
pub fn build(count: usize, width: usize, write: impl Fn(usize, &mut Uninit) + Sync) -> Vec<f32> {
    build_noting(count, width, write).0
}

/// As [`build`], also collecting what `write` returns for each row.
pub fn build_noting<T: Send>(
    count: usize,
    width: usize,
    write: impl Fn(usize, &mut Uninit) -> T + Sync,
) -> (Vec<f32>, Vec<T>) {
    let mut data = Vec::with_capacity(count);
    let fresh = &mut data.spare_capacity_mut()[..count];
    let width = width.max(1);
    let each = (PIECE / width).max(1);
    let piece = |(piece, place): (usize, &mut Uninit)| {
        let mut notes = Vec::with_capacity(place.len().div_ceil(width));
        vectorized(
            #[inline(always)]
            || {
                for (row, place) in place.chunks_mut(width).enumerate() {
                    notes.push(write(piece * each + row, place));
                }
            },
        );
        notes
    };
    let notes = if count <= SERIAL {
        piece((0, fresh))
    } else {
        let notes: Vec<Vec<T>> = fresh.par_chunks_mut(each * width).enumerate().map(piece).collect();
        notes.into_iter().flatten().collect()
    };
    // SAFETY: every row was passed to `write`, which writes all of it.
    unsafe { data.set_len(count) };
    (data, notes)
}

/// The sums over rows of what `add` adds to its `columns` sums; the order of the additions is fixed.
pub fn column_sums(rows: usize, columns: usize, add: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let each = (PIECE / columns.max(1)).max(1);
    let piece = |piece: usize| {
        let mut sums = vec![0.0; columns];
        vectorized(
            #[inline(always)]
            || (piece * each..rows.min((piece + 1) * each)).for_each(|row| add(row, &mut sums)),
        );
        sums
    };
    let pieces = rows.div_ceil(each);
    let partial: Vec<Vec<f32>> = if rows * columns <= SERIAL {
        (0..pieces).map(piece).collect()
    } else {
        (0..pieces).into_par_iter().map(piece).collect()
    };
    let mut partial = partial.into_iter();
    let mut sums = partial.next().unwrap_or_else(|| vec![0.0; columns]);
    for part in partial {
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    sums
}

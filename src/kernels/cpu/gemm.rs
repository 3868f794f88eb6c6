//! Matrix products on slices.

use std::mem::MaybeUninit;

use gemm::Parallelism;
use rayon::prelude::*;

use super::{loops::build, matrix::Matrix};

/// Products sum in another order if both sides are at most [`NARROW`] and each element is a sum of more than this many terms.
/// Otherwise the bits of a row do not depend on how many rows are multiplied with it, unless it is alone: a product with a
/// single row takes another path.
pub const SHORT_SUMS: usize = 512;
pub const NARROW: usize = 64;

/// The destination of a product: rows `stride` elements apart.
pub struct Target {
    pub data: *mut f32,
    pub stride: usize,
}

impl Target {
    /// Uninitialized memory, row-major with `columns` columns.
    pub fn uninit(data: &mut [MaybeUninit<f32>], columns: usize) -> Self {
        Self { data: data.as_mut_ptr().cast(), stride: columns }
    }

    /// Initialized memory, row-major with `columns` columns.
    pub fn new(data: &mut [f32], columns: usize) -> Self {
        Self { data: data.as_mut_ptr(), stride: columns }
    }
}

/// What happens to the values in the target.
#[derive(Clone, Copy, PartialEq)]
pub enum Onto {
    /// They are overwritten, and may be uninitialized.
    Nothing,
    /// The product is added to them.
    Sum,
}

/// `target (+)= scale·a·b`, on all cores or on this one.
///
/// # Safety
/// `target` has `a.rows` rows of `b.columns` elements that nothing else reads or writes at the same time.
pub unsafe fn product(target: Target, onto: Onto, scale: f32, a: Matrix, b: Matrix, threads: Parallelism) {
    assert!(a.columns == b.rows && a.fits() && b.fits(), "the factors of a product fit each other and their memory");
    let stride = |n: usize| n as isize;
    // SAFETY: the factors lie inside their slices (asserted); the caller guarantees the target.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            target.data,
            1,
            stride(target.stride),
            onto == Onto::Sum,
            a.data.as_ptr(),
            stride(a.strides.1),
            stride(a.strides.0),
            b.data.as_ptr(),
            stride(b.strides.1),
            stride(b.strides.0),
            1.0,
            scale,
            false,
            false,
            false,
            threads,
        );
    }
}

/// `scale·a·b` as a new row-major matrix, on all cores.
pub fn matmul(a: Matrix, b: Matrix, scale: f32) -> Vec<f32> {
    let count = a.rows * b.columns;
    let mut data = Vec::with_capacity(count);
    let target = Target::uninit(&mut data.spare_capacity_mut()[..count], b.columns);
    // SAFETY: the target is owned and of that size; the product writes all of it.
    unsafe {
        product(target, Onto::Nothing, scale, a, b, Parallelism::Rayon(0));
        data.set_len(count);
    }
    data
}

/// `a·b + bias` as a new row-major matrix, on all cores. The rows of `a` belong to `samples` samples, equally many of each;
/// each sample gets the same bits as alone.
///
/// The product is more than twice as fast if `b` is row-major, and transposing it takes a small part of that time; so it is
/// transposed if necessary.
pub fn affine(a: Matrix, b: Matrix, bias: Option<&[f32]>, samples: usize) -> Vec<f32> {
    let turned;
    let b = if b.strides.1 == 1 {
        b
    } else {
        turned = transposed(b.t());
        Matrix::new(&turned, b.rows, b.columns)
    };
    let together = together(a.rows / samples.max(1), a.rows, b);
    let Some(bias) = bias else {
        return if together == a.rows { matmul(a, b, 1.0) } else { by_parts(a, b, together) };
    };
    let mut y = build(a.rows * b.columns, b.columns, |_, y| {
        y.write_copy_of_slice(bias);
    });
    match together == a.rows {
        true => add_matmul(&mut y, a, b, 1.0),
        false => y.par_chunks_mut(together * b.columns).enumerate().for_each(|(part, y)| {
            add_matmul(y, a.rows(part * together, y.len() / b.columns), b, 1.0);
        }),
    }
    y
}

/// How many of `rows` rows can go into one product with `b` such that each gets the same bits as in a product with `alone` of
/// them.
fn together(alone: usize, rows: usize, b: Matrix) -> usize {
    if alone == 1 || b.columns == 1 {
        alone
    } else if b.rows > SHORT_SUMS && b.columns <= NARROW && alone <= NARROW {
        (NARROW / alone * alone).min(rows)
    } else {
        rows
    }
}

/// `a·b` with `each` rows of `a` at a time.
fn by_parts(a: Matrix, b: Matrix, each: usize) -> Vec<f32> {
    let count = a.rows * b.columns;
    let mut data = Vec::with_capacity(count);
    let parts = data.spare_capacity_mut()[..count].par_chunks_mut(each * b.columns).enumerate();
    parts.for_each(|(part, place)| {
        let a = a.rows(part * each, place.len() / b.columns);
        // SAFETY: the memory is owned and of that size; the product writes all of it.
        unsafe { product(Target::uninit(place, b.columns), Onto::Nothing, 1.0, a, b, Parallelism::Rayon(0)) };
    });
    // SAFETY: all parts were written.
    unsafe { data.set_len(count) };
    data
}

/// The transpose as a new row-major matrix.
pub fn transposed(matrix: Matrix) -> Vec<f32> {
    // A few rows at a time: they are read from the L1 cache and written contiguously.
    const RUN: usize = 16;
    let Matrix { data, rows, columns, strides: (stride, 1) } = matrix else {
        unreachable!("only row-major matrices are turned around")
    };
    build(
        columns * rows,
        rows * RUN,
        #[inline(always)]
        |band, place| {
            let first = band * RUN;
            for start in (0..rows).step_by(RUN) {
                let count = RUN.min(rows - start);
                for (i, place) in place.chunks_exact_mut(rows).enumerate() {
                    for (row, place) in place[start..start + count].iter_mut().enumerate() {
                        place.write(data[(start + row) * stride + first + i]);
                    }
                }
            }
        },
    )
}

/// `sum += scale·a·b` on a row-major matrix, on all cores.
pub fn add_matmul(sum: &mut [f32], a: Matrix, b: Matrix, scale: f32) {
    assert_eq!(sum.len(), a.rows * b.columns, "the sum has the shape of the product");
    // SAFETY: `sum` is borrowed mutably and of that size.
    unsafe { product(Target::new(sum, b.columns), Onto::Sum, scale, a, b, Parallelism::Rayon(0)) }
}

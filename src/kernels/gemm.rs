//! Matrix products on numbers in memory.

use std::mem::MaybeUninit;

use gemm::Parallelism;

use super::{cpu, simd::sum};

/// A matrix in a slice: element `(i, j)` is at `i·strides.0 + j·strides.1`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub columns: usize,
    pub strides: (usize, usize),
}

impl<'a> Matrix<'a> {
    /// Row after row.
    pub(super) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, strides: (columns, 1) }
    }

    /// The transpose, without moving anything.
    pub(super) fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, strides: (self.strides.1, self.strides.0), ..self }
    }

    /// The rows from `start`, `count` of them.
    pub(super) fn rows(self, start: usize, count: usize) -> Self {
        Self { data: &self.data[start * self.strides.0..], rows: count, ..self }
    }

    fn fits(&self) -> bool {
        let last = self.rows.saturating_sub(1) * self.strides.0 + self.columns.saturating_sub(1) * self.strides.1;
        self.rows * self.columns == 0 || last < self.data.len()
    }
}

/// Where a product goes: rows of `stride` numbers.
pub(super) struct Target {
    pub data: *mut f32,
    pub stride: usize,
}

impl Target {
    /// Fresh memory, row after row of `columns` numbers.
    pub(super) fn fresh(data: &mut [MaybeUninit<f32>], columns: usize) -> Self {
        Self { data: data.as_mut_ptr().cast(), stride: columns }
    }

    /// Numbers in memory, row after row of `columns` numbers.
    pub(super) fn new(data: &mut [f32], columns: usize) -> Self {
        Self { data: data.as_mut_ptr(), stride: columns }
    }
}

/// What happens to the numbers that are already in the target.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Onto {
    /// They are overwritten, and may be uninitialized.
    Nothing,
    /// The product is added to them.
    Sum,
}

/// `target (+)= scale·a·b`, on all cores or on this one.
///
/// # Safety
/// `target` holds `a.rows` rows of `b.columns` numbers that nothing else reads or writes meanwhile.
pub(super) unsafe fn product(target: Target, onto: Onto, scale: f32, a: Matrix, b: Matrix, threads: Parallelism) {
    assert!(a.columns == b.rows && a.fits() && b.fits(), "the factors of a product fit each other and their memory");
    let stride = |n: usize| n as isize;
    // SAFETY: the factors lie inside their slices (asserted), the target is the caller's promise.
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
pub(super) fn matmul(a: Matrix, b: Matrix, scale: f32) -> Vec<f32> {
    let count = a.rows * b.columns;
    let mut data = Vec::with_capacity(count);
    let target = Target::fresh(&mut data.spare_capacity_mut()[..count], b.columns);
    // SAFETY: the target is ours and of that size; the product writes all of it.
    unsafe {
        product(target, Onto::Nothing, scale, a, b, Parallelism::Rayon(0));
        data.set_len(count);
    }
    data
}

/// `bias + x·wᵀ` of row-major matrices as a new one, on all cores.
pub(super) fn affine(x: Matrix, w: Matrix, bias: Option<&[f32]>) -> Vec<f32> {
    // With a few rows the weight is read once and each of its rows is multiplied out on the spot.
    const FEW: usize = 8;
    if x.rows <= FEW {
        let by_output = cpu::build(
            w.rows * x.rows,
            x.rows.max(1),
            #[inline(always)]
            |output, place| {
                let start = bias.map_or(0.0, |bias| bias[output]);
                let w = &w.data[output * w.columns..][..w.columns];
                for (row, place) in place.iter_mut().enumerate() {
                    let x = &x.data[row * x.columns..][..x.columns];
                    let product = sum(
                        [x, w],
                        #[inline(always)]
                        |[x, w]| x * w,
                    );
                    place.write(start + product);
                }
            },
        );
        return transposed(Matrix::new(&by_output, w.rows, x.rows));
    }
    // The product runs at more than twice the speed on a weight that lies the other way round, and turning it around takes
    // a small part of that. Keeping it turned around would double the memory of the model.
    let turned = transposed(w);
    let w = Matrix::new(&turned, w.columns, w.rows);
    match bias {
        None => matmul(x, w, 1.0),
        Some(bias) => {
            let mut y = cpu::build(x.rows * w.columns, w.columns, |_, y| {
                y.write_copy_of_slice(bias);
            });
            add_matmul(&mut y, x, w, 1.0);
            y
        }
    }
}

/// The transpose as a new row-major matrix.
pub(super) fn transposed(matrix: Matrix) -> Vec<f32> {
    // A few rows at a time: they are read from the nearest cache, and written in runs.
    const RUN: usize = 16;
    let Matrix { data, rows, columns, strides: (stride, 1) } = matrix else {
        unreachable!("only row-major matrices are turned around")
    };
    cpu::build(
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
pub(super) fn add_matmul(sum: &mut [f32], a: Matrix, b: Matrix, scale: f32) {
    assert_eq!(sum.len(), a.rows * b.columns, "the sum has the shape of the product");
    // SAFETY: `sum` is borrowed mutably and of that size.
    unsafe { product(Target::new(sum, b.columns), Onto::Sum, scale, a, b, Parallelism::Rayon(0)) }
}

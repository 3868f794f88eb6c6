//! The rows of a tensor with any strides.

use burn_flex::FlexTensor;

use super::matrix::Matrix;

/// The rows of a tensor of up to four axes whose [rows are contiguous](in_rows).
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    storage: &'a [f32],
    start: usize,
    strides: [usize; 3],
    pub width: usize,
}

impl<'a> Rows<'a> {
    pub fn new(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let (outer, last) = layout.strides().split_at(layout.num_dims() - 1);
        assert_eq!(last, [1], "the tensor was brought in rows");
        let mut strides = [0; 3];
        for (to, &from) in strides.iter_mut().rev().zip(outer.iter().rev()) {
            *to = from as usize;
        }
        let width = layout.shape()[layout.num_dims() - 1];
        Self { storage: tensor.storage(), start: layout.start_offset(), strides, width }
    }

    /// The row at these indices of the axes before the last; tensors with fewer axes are padded with leading ones.
    #[inline(always)]
    pub fn row(&self, [i, j, k]: [usize; 3]) -> &'a [f32] {
        let start = self.start + i * self.strides[0] + j * self.strides[1] + k * self.strides[2];
        &self.storage[start..start + self.width]
    }

    /// The rows `[i, j, 0..count]` as a matrix.
    pub fn matrix(&self, i: usize, j: usize, count: usize) -> Matrix<'a> {
        let start = self.start + i * self.strides[0] + j * self.strides[1];
        Matrix { data: &self.storage[start..], rows: count, columns: self.width, strides: (self.strides[2], 1) }
    }
}

//! Matrices in slices.

use burn_flex::FlexTensor;

use super::tensor::dims;

/// A matrix in a slice: element `(i, j)` is at `i·strides.0 + j·strides.1`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub columns: usize,
    pub strides: (usize, usize),
}

impl<'a> Matrix<'a> {
    /// A row-major or column-major tensor with two axes.
    pub fn of(tensor: &'a FlexTensor) -> Self {
        let [rows, columns] = dims(tensor);
        let layout = tensor.layout();
        let [down, across] = [0, 1].map(|axis| layout.strides()[axis] as usize);
        Self { data: &tensor.storage()[layout.start_offset()..], rows, columns, strides: (down, across) }
    }

    /// A row-major matrix.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, strides: (columns, 1) }
    }

    /// The transpose, as a view.
    pub fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, strides: (self.strides.1, self.strides.0), ..self }
    }

    /// `count` rows from `start` on.
    pub fn rows(self, start: usize, count: usize) -> Self {
        Self { data: &self.data[start * self.strides.0..], rows: count, ..self }
    }

    /// `count` columns from `start` on.
    pub fn columns(self, start: usize, count: usize) -> Self {
        Self { data: &self.data[start * self.strides.1..], columns: count, ..self }
    }

    /// Whether it lies within its slice.
    pub fn fits(&self) -> bool {
        let last = self.rows.saturating_sub(1) * self.strides.0 + self.columns.saturating_sub(1) * self.strides.1;
        self.rows * self.columns == 0 || last < self.data.len()
    }
}

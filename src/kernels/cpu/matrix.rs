//! Matrices in memory.

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
    /// A tensor of two axes whose numbers lie row after row or column after column.
    pub fn of(tensor: &'a FlexTensor) -> Self {
        let [rows, columns] = dims(tensor);
        let layout = tensor.layout();
        let [down, across] = [0, 1].map(|axis| layout.strides()[axis] as usize);
        Self { data: &tensor.storage()[layout.start_offset()..], rows, columns, strides: (down, across) }
    }

    /// Row after row.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, strides: (columns, 1) }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, strides: (self.strides.1, self.strides.0), ..self }
    }

    /// The rows from `start`, `count` of them.
    pub fn rows(self, start: usize, count: usize) -> Self {
        Self { data: &self.data[start * self.strides.0..], rows: count, ..self }
    }

    /// The columns from `start`, `count` of them.
    pub fn columns(self, start: usize, count: usize) -> Self {
        Self { data: &self.data[start * self.strides.1..], columns: count, ..self }
    }

    /// Whether it lies within its slice.
    pub fn fits(&self) -> bool {
        let last = self.rows.saturating_sub(1) * self.strides.0 + self.columns.saturating_sub(1) * self.strides.1;
        self.rows * self.columns == 0 || last < self.data.len()
    }
}

//! Small matrices on the host, for splitting, joining and comparing adapters.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::kernels;

/// A row-major matrix of f32.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Matrix {
    pub rows: usize,
    pub columns: usize,
    pub values: Vec<f32>,
}

impl Matrix {
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: vec![0.0; rows * columns] }
    }

    pub fn from_tensor(tensor: &Tensor<2>) -> Self {
        Self::from_data(tensor.to_data())
    }

    /// Takes floating-point `data` of any width. All axes but the first are flattened; a vector is one column.
    pub fn from_data(data: TensorData) -> Self {
        let shape = data.shape.as_slice();
        let rows = shape.first().copied().unwrap_or(1);
        let columns = shape.iter().skip(1).product();
        let values = data.convert_dtype(DType::F32).into_vec().expect("the elements were made f32 in this line");
        Self { rows, columns, values }
    }

    pub fn into_data(self) -> TensorData {
        TensorData::new(self.values, [self.rows, self.columns])
    }

    /// A tensor on the CPU.
    pub fn into_tensor(self) -> Tensor<2> {
        Tensor::from_data(self.into_data(), (&Device::flex(), DType::F32))
    }

    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }

    pub fn column(&self, column: usize) -> impl Iterator<Item = f32> {
        self.values.iter().skip(column).step_by(self.columns.max(1)).copied()
    }

    /// The block at `rows` and `columns`.
    pub fn block(&self, rows: Range<usize>, columns: Range<usize>) -> Self {
        let values = rows.clone().flat_map(|row| &self.row(row)[columns.clone()]).copied().collect();
        Self { rows: rows.len(), columns: columns.len(), values }
    }

    /// Writes `block` into this matrix, with its corner at `row`, `column`.
    pub fn put(&mut self, row: usize, column: usize, block: &Matrix) {
        for i in 0..block.rows {
            let start = (row + i) * self.columns + column;
            self.values[start..start + block.columns].copy_from_slice(block.row(i));
        }
    }

    /// These rows.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        self.block(rows, 0..self.columns)
    }

    pub fn transposed(&self) -> Self {
        let values = (0..self.columns).flat_map(|column| self.column(column)).collect();
        Self { rows: self.columns, columns: self.rows, values }
    }

    /// `self · other`, if their sizes fit.
    pub fn product(&self, other: &Self) -> Option<Self> {
        let product = || kernels::matmul(self.clone().into_tensor(), other.clone().into_tensor());
        (self.columns == other.rows && self.columns > 0).then(|| Self::from_tensor(&product()))
    }

    /// Each element times the other's, if both are of one size.
    pub fn elementwise(mut self, other: &Self) -> Option<Self> {
        let fits = (self.rows, self.columns) == (other.rows, other.columns);
        self.values.iter_mut().zip(&other.values).for_each(|(v, other)| *v *= other);
        fits.then_some(self)
    }

    /// Every row times every row of the other, element by element, if both are equally wide: row (i, j) is row i of this times row j.
    pub fn rows_times_rows(&self, other: &Self) -> Option<Self> {
        let product = |i, j| self.row(i).iter().zip(other.row(j)).map(|(one, other)| one * other).collect::<Vec<_>>();
        let pairs = (0..self.rows).flat_map(|i| (0..other.rows).map(move |j| (i, j)));
        let values = pairs.flat_map(|(i, j)| product(i, j)).collect();
        let result = Self { rows: self.rows * other.rows, columns: self.columns, values };
        (self.columns == other.columns).then_some(result)
    }

    /// The Kronecker product: the block at (i, j) is `self[i, j] · other`.
    pub fn kronecker(&self, other: &Self) -> Self {
        let mut result = Self::zeros(self.rows * other.rows, self.columns * other.columns);
        for i in 0..self.rows {
            for (j, &factor) in self.row(i).iter().enumerate() {
                result.put(i * other.rows, j * other.columns, &other.clone().scaled(f64::from(factor)));
            }
        }
        result
    }

    /// Swaps the upper and the lower half of the rows.
    pub fn halves_swapped(mut self) -> Self {
        let half = self.rows / 2 * self.columns;
        self.values.rotate_left(half);
        self
    }

    /// Every element times `factor`.
    pub fn scaled(mut self, factor: f64) -> Self {
        if factor != 1.0 {
            self.values.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
        }
        self
    }

    pub fn is_finite(&self) -> bool {
        self.values.iter().all(|v| v.is_finite())
    }

    /// The largest magnitude.
    pub fn largest(&self) -> f32 {
        self.values.iter().fold(0.0, |largest, v| v.abs().max(largest))
    }

    /// The product with a vector, in f64.
    pub fn times(&self, x: &[f64]) -> Vec<f64> {
        let dot = |row| self.row(row).iter().zip(x).map(|(&a, x)| f64::from(a) * x).sum();
        (0..self.rows).map(dot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_cut_and_put_at_their_place() {
        let counting = Matrix { rows: 4, columns: 3, values: (0..12).map(|v| v as f32).collect() };
        let block = counting.block(1..3, 1..3);
        assert_eq!(block.values, [4.0, 5.0, 7.0, 8.0]);
        let mut whole = Matrix::zeros(4, 3);
        whole.put(1, 1, &block);
        assert_eq!(whole.values, [0.0, 0.0, 0.0, 0.0, 4.0, 5.0, 0.0, 7.0, 8.0, 0.0, 0.0, 0.0]);
        assert_eq!(counting.column(1).collect::<Vec<_>>(), [1.0, 4.0, 7.0, 10.0]);
        assert_eq!(counting.halves_swapped().row(0), [6.0, 7.0, 8.0]);
        assert_eq!(block.times(&[1.0, 10.0]), [54.0, 87.0]);
    }
}

//! Lookup tables.

use burn::tensor::{Int, Tensor, TensorData};

use crate::weights::Weights;

/// A table with one vector per id.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// `[rows, D]`.
    weight: Tensor<2>,
}

impl Embedding {
    /// Takes `weight` `[rows, width]`.
    pub fn load(weights: &Weights, rows: usize, width: usize) -> Self {
        Self { weight: weights.tensor("weight", [rows, width]) }
    }

    /// The rows of `ids`, in their order: `[ids, D]`. Every id must be below the number of rows.
    pub fn forward(&self, ids: &[i64]) -> Tensor<2> {
        let ids = TensorData::new(ids.to_vec(), [ids.len()]);
        self.weight.clone().select(0, Tensor::<1, Int>::from_data(ids, &self.weight.device()))
    }
}

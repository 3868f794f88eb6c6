//! Changes of weights and biases in the forms that adapters use. They act on activations; the full matrix `[out, in]` is built only for
//! merging.

use std::sync::{Arc, OnceLock};

use burn::tensor::{DType, Device, FloatDType, Tensor};

use crate::kernels;

/// A change `ΔW` of a weight `[out, in]`, or of a bias `[out]`. All tensors are f32.
#[derive(Clone, Debug)]
pub enum Delta {
    /// `B·A` (LoRA, Hu et al. 2021).
    LowRank {
        /// `[rank, in]`.
        a: Tensor<2>,
        /// `[out, rank]`.
        b: Tensor<2>,
    },
    /// The Kronecker product `L ⊗ R` (LoKr, Yeh et al. 2023): the block at (i, j) is `L[i, j]·R`.
    Kronecker {
        /// `[out₁, in₁]`.
        left: Tensor<2>,
        /// `[out₂, in₂]`.
        right: Tensor<2>,
    },
    /// The matrix itself, `[out, in]`.
    Dense(Tensor<2>),
    /// A change of the bias, `[1, out]`; the weight stays as it is.
    Bias(Tensor<2>),
}

impl Delta {
    /// The number of the layer's outputs.
    pub fn outputs(&self) -> usize {
        match self {
            Self::LowRank { b, .. } => b.dims()[0],
            Self::Kronecker { left, right } => left.dims()[0] * right.dims()[0],
            Self::Dense(delta) => delta.dims()[0],
            Self::Bias(bias) => bias.dims()[1],
        }
    }

    /// The number of the layer's inputs; a change of the bias fits any.
    pub fn inputs(&self) -> Option<usize> {
        match self {
            Self::LowRank { a, .. } => Some(a.dims()[1]),
            Self::Kronecker { left, right } => Some(left.dims()[1] * right.dims()[1]),
            Self::Dense(delta) => Some(delta.dims()[1]),
            Self::Bias(_) => None,
        }
    }

    /// The number of its parameters.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|tensor| tensor.shape().num_elements()).sum()
    }

    /// The full matrix `ΔW` `[out, in]`; of a change of the bias, `[1, out]`.
    pub fn dense(&self) -> Tensor<2> {
        match self {
            Self::LowRank { a, b } => kernels::matmul(b.clone(), a.clone()),
            Self::Kronecker { left, right } => {
                let ([out_1, in_1], [out_2, in_2]) = (left.dims(), right.dims());
                let product = left.clone().reshape([out_1, 1, in_1, 1]) * right.clone().reshape([1, out_2, 1, in_2]);
                product.reshape([out_1 * out_2, in_1 * in_2])
            }
            Self::Dense(delta) | Self::Bias(delta) => delta.clone(),
        }
    }

    /// Applies `change` to each of its tensors.
    pub fn map(self, mut change: impl FnMut(Tensor<2>) -> Tensor<2>) -> Self {
        match self {
            Self::LowRank { a, b } => Self::LowRank { a: change(a), b: change(b) },
            Self::Kronecker { left, right } => Self::Kronecker { left: change(left), right: change(right) },
            Self::Dense(delta) => Self::Dense(change(delta)),
            Self::Bias(bias) => Self::Bias(change(bias)),
        }
    }

    fn tensors(&self) -> Vec<&Tensor<2>> {
        match self {
            Self::LowRank { a, b } => vec![a, b],
            Self::Kronecker { left, right } => vec![left, right],
            Self::Dense(delta) | Self::Bias(delta) => vec![delta],
        }
    }

    /// `y + scale·x·ΔWᵀ`, or `y + scale·Δb`: `y` `[M, out]`, `x` `[M, in]`.
    pub(super) fn add(&self, y: Tensor<2>, x: Tensor<2>, scale: f64) -> Tensor<2> {
        match self {
            Self::LowRank { a, b } => kernels::low_rank(y, x, a.clone(), b.clone(), scale),
            Self::Kronecker { .. } | Self::Dense(_) | Self::Bias(_) => y + self.product(x, scale),
        }
    }

    /// The same, with `between` applied to `x·Aᵀ` `[M, rank]` of a low-rank pair.
    pub(super) fn add_with(
        &self,
        y: Tensor<2>,
        x: Tensor<2>,
        scale: f64,
        between: impl FnOnce(Tensor<2>) -> Tensor<2>,
    ) -> Tensor<2> {
        let Self::LowRank { a, b } = self else { return self.add(y, x, scale) };
        let dtype: FloatDType = x.dtype().into();
        let u = kernels::matmul(x, a.clone().cast(dtype).transpose());
        y + kernels::matmul(between(u), b.clone().cast(dtype).transpose()) * scale
    }

    /// `scale·x·ΔWᵀ`: `x` `[M, in]` → `[M, out]`; of a change of the bias, `scale·Δb` `[1, out]`.
    pub(super) fn product(&self, x: Tensor<2>, scale: f64) -> Tensor<2> {
        let dtype: FloatDType = x.dtype().into();
        let times = |x: Tensor<2>, w: &Tensor<2>| kernels::matmul(x, w.clone().cast(dtype).transpose());
        let product = match self {
            Self::LowRank { a, b } => times(times(x, a), b),
            Self::Kronecker { left, right } => {
                let ([out_1, in_1], [out_2, in_2], rows) = (left.dims(), right.dims(), x.dims()[0]);
                // (L ⊗ R)·vec(X) = vec(L·X·Rᵀ), where X is `[in₁, in₂]`.
                let right = times(x.reshape([rows * in_1, in_2]), right);
                let turned = right.reshape([rows, in_1, out_2]).swap_dims(1, 2).reshape([rows * out_2, in_1]);
                times(turned, left).reshape([rows, out_2, out_1]).swap_dims(1, 2).reshape([rows, out_1 * out_2])
            }
            Self::Dense(delta) => times(x, delta),
            Self::Bias(bias) => bias.clone().cast(dtype),
        };
        product * scale
    }
}

/// `bias` `[out]` plus `change` `[1, out]`, in `dtype`: computed in f32.
pub(super) fn add_to_bias(bias: Option<Tensor<1>>, change: Tensor<2>, dtype: DType) -> Tensor<1> {
    let change = change.squeeze_dim::<1>(0);
    match bias {
        Some(bias) => (bias.cast(DType::F32) + change).cast(dtype),
        None => change.cast(dtype),
    }
}

/// The norms of a weight's rows after a change (DoRA, Liu et al. 2024): `W' = m·(W + ΔW) / ‖W + ΔW‖`, by rows. The gain of each
/// row depends on the weight and is computed on first use, so a value of this type belongs to one model.
#[derive(Clone, Debug)]
pub struct Magnitude {
    /// `m` `[out]`, f32.
    lengths: Tensor<1>,
    gain: Arc<OnceLock<Tensor<1>>>,
}

impl Magnitude {
    /// Takes `m` `[out]`, f32.
    pub fn new(lengths: Tensor<1>) -> Self {
        Self { lengths, gain: Arc::default() }
    }

    /// Moves it to `device`.
    pub fn to_device(self, device: &Device) -> Self {
        Self::new(self.lengths.to_device(device))
    }

    /// `m / ‖W + scale·ΔW‖` `[out]`, f32; `changed` returns the changed weight `[out, in]` in f32.
    pub(super) fn gain(&self, changed: impl FnOnce() -> Tensor<2>) -> Tensor<1> {
        let compute = || self.lengths.clone() / changed().powi_scalar(2).sum_dim(1).sqrt().squeeze_dim::<1>(1);
        self.gain.get_or_init(compute).clone()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::rng::{Purpose, Seed};

    fn draw(name: &str, rows: usize, columns: usize) -> Tensor<2> {
        let values = Seed(1).named(Purpose::Noise, name).normal(rows * columns);
        Tensor::from_data(TensorData::new(values, [rows, columns]), &Device::flex())
    }

    #[test]
    fn acting_on_activations_is_the_product_with_the_matrix() {
        let x = draw("x", 5, 12);
        for delta in [
            Delta::LowRank { a: draw("a", 2, 12), b: draw("b", 8, 2) },
            Delta::Kronecker { left: draw("l", 4, 3), right: draw("r", 2, 4) },
            Delta::Dense(draw("d", 8, 12)),
        ] {
            assert_eq!((delta.outputs(), delta.inputs()), (8, Some(12)));
            assert_eq!(delta.dense().dims(), [8, 12]);
            let y = draw("y", 5, 8);
            let expected = y.clone() + kernels::matmul(x.clone(), delta.dense().transpose()) * 0.5;
            let apart: f32 = (delta.add(y, x.clone(), 0.5) - expected).abs().max().into_scalar();
            assert!(apart < 1e-5, "{delta:?}: {apart}");
        }
    }

    #[test]
    fn blocks_of_a_kronecker_product_are_the_right_matrix() {
        let (left, right) = (draw("l", 2, 2), draw("r", 3, 2));
        let dense = Delta::Kronecker { left: left.clone(), right: right.clone() }.dense();
        let factor: f32 = left.slice([1..2, 0..1]).into_scalar();
        let block = dense.slice([3..6, 0..2]);
        let apart: f32 = (block - right * factor).abs().max().into_scalar();
        assert!(apart < 1e-6);
    }
}

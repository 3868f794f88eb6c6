//! The matrix of a linear layer.

use burn::tensor::{DType, Device, FloatDType, Tensor};

use super::{Parameter, Parameters};
use crate::{kernels, weights::Weights};

/// A matrix `[out, in]` in the dtype of the base model. How it is stored is its own business: outside of layers it is changed
/// and saved, not looked into.
///
/// Today it is dense. A quantized one would become dense here, for one product at a time.
#[derive(Clone, Debug)]
pub struct Weight {
    dense: Tensor<2>,
    /// What the checkpoint says it has, also where only headers were read.
    dims: [usize; 2],
}

impl Weight {
    /// Takes `weight` `[outputs, inputs]`, or `[outputs, inputs, 1, 1]`.
    ///
    /// On the CPU one that is kept is laid out for its products once and for all. One that is lent for a while stays as it lies
    /// in the file: the product of a forward pass turns it around, which costs what laying it out at every loan would, and that
    /// of a backward pass takes it as it is.
    pub(super) fn load(weights: &Weights, [outputs, inputs]: [usize; 2], pointwise: bool) -> Self {
        let dense = match pointwise {
            true => weights.tensor("weight", [outputs, inputs, 1, 1]).flatten(1, 3),
            false => weights.tensor("weight", [outputs, inputs]),
        };
        let dense = if weights.are_kept() { kernels::laid_out(dense) } else { dense };
        Self { dense, dims: [outputs, inputs] }
    }

    /// This matrix.
    pub fn new(dense: Tensor<2>) -> Self {
        Self { dims: dense.dims(), dense }
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// The type in which products are computed.
    pub fn dtype(&self) -> DType {
        self.dense.dtype()
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.dense.device()
    }

    /// `x·Wᵀ + b`: `x` `[M, in]`, `bias` `[out]` → `[M, out]`.
    pub(super) fn product(&self, x: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
        kernels::linear(x, self.dense.clone(), bias)
    }

    /// The matrix with `change` `[out, in]` added: computed in f32, rounded once to its dtype.
    pub(super) fn add(&mut self, change: Tensor<2>) {
        let dtype: FloatDType = self.dense.dtype().into();
        self.dense = kernels::laid_out((self.dense.clone().cast(FloatDType::F32) + change).cast(dtype));
    }
}

/// Itself, under the name of its layer.
impl Parameters for Weight {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        visit(path, Parameter::Matrix(&mut self.dense));
    }
}

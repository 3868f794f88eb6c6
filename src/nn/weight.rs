//! The matrix of a linear layer.

use burn::tensor::{DType, Device, FloatDType, Tensor};

use super::{Parameter, Parameters};
use crate::{
    kernels::{self, Activation, PackedMatrix},
    weights::{Matrix, Weights},
};

/// A matrix `[out, in]` in the dtype of the base model, or quantized. Its storage is private: outside of layers it can be changed
/// and saved, not inspected.
#[derive(Clone, Debug)]
pub struct Weight {
    form: Form,
    /// The shape in the checkpoint, known even if only headers were read.
    dims: [usize; 2],
}

#[derive(Clone, Debug)]
enum Form {
    Dense(Tensor<2>),
    /// Dequantized for one product at a time; cannot be trained.
    Packed(PackedMatrix),
}

impl Weight {
    /// Takes `weight` `[outputs, inputs]`, quantized or not, or `[outputs, inputs, 1, 1]`.
    ///
    /// On the CPU a resident dense matrix is prepacked once for its products. A streamed one keeps the layout of the file: the
    /// forward product transposes it, which costs as much as prepacking it at every loan, and the backward product uses it
    /// directly.
    pub(super) fn load(weights: &Weights, [outputs, inputs]: [usize; 2], pointwise: bool) -> Self {
        let dims = [outputs, inputs];
        let dense = match pointwise {
            true => weights.tensor("weight", [outputs, inputs, 1, 1]).flatten(1, 3),
            false => match weights.matrix("weight", dims) {
                Matrix::Dense(dense) => dense,
                Matrix::Packed(packed) => {
                    let make = if weights.are_unread() { PackedMatrix::unread } else { PackedMatrix::new };
                    let packed = make(packed, weights.device(), weights.dtype());
                    return Self { form: Form::Packed(packed), dims };
                }
            },
        };
        let dense = if weights.are_kept() { kernels::prepack_weight(dense) } else { dense };
        Self { form: Form::Dense(dense), dims }
    }

    /// Takes a dense matrix.
    pub fn new(dense: Tensor<2>) -> Self {
        Self { dims: dense.dims(), form: Form::Dense(dense) }
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// The dtype in which products are computed.
    pub fn dtype(&self) -> DType {
        match &self.form {
            Form::Dense(dense) => dense.dtype(),
            Form::Packed(packed) => packed.dtype().into(),
        }
    }

    /// The device of its values.
    pub fn device(&self) -> Device {
        match &self.form {
            Form::Dense(dense) => dense.device(),
            Form::Packed(packed) => packed.device().clone(),
        }
    }

    /// Its format, if it is quantized: `nf4`, `int8`, `fp8`, `Q4_K`, …
    pub fn quantized(&self) -> Option<&'static str> {
        match &self.form {
            Form::Dense(_) => None,
            Form::Packed(packed) => Some(packed.format()),
        }
    }

    /// `x·Wᵀ + b`: `x` `[M, in]`, `bias` `[out]` → `[M, out]`. `samples` is the number of samples in the rows of `x` if each must get
    /// the same bits as alone, else 1.
    pub(super) fn product(&self, x: Tensor<2>, bias: Option<Tensor<1>>, samples: usize) -> Tensor<2> {
        match &self.form {
            Form::Dense(dense) => kernels::linear_by_sample(x, dense.clone(), bias, samples),
            Form::Packed(packed) => kernels::linear_packed_by_sample(x, packed, bias, samples),
        }
    }

    /// The activation of [`product`](Self::product), in a `shape` whose last axis is `out` and the others together `M`.
    pub(super) fn product_activated<const D: usize>(
        &self,
        x: Tensor<2>,
        bias: Option<Tensor<1>>,
        samples: usize,
        kind: Activation,
        shape: [usize; D],
    ) -> Tensor<D> {
        match &self.form {
            Form::Dense(dense) => kernels::linear_activated(x, dense.clone(), bias, samples, kind, shape),
            Form::Packed(_) => kernels::activated(self.product(x, bias, samples).reshape(shape), kind),
        }
    }

    /// The matrix in f32, `[out, in]`.
    pub(super) fn to_f32(&self) -> Tensor<2> {
        let dense = match &self.form {
            Form::Dense(dense) => dense.clone(),
            Form::Packed(packed) => packed.dense(),
        };
        dense.cast(FloatDType::F32)
    }

    /// Adds `change` `[out, in]`: computed in f32, rounded once to the matrix's dtype. A quantized matrix becomes dense.
    pub(super) fn add(&mut self, change: Tensor<2>) {
        let dtype: FloatDType = self.dtype().into();
        self.form = Form::Dense(kernels::prepack_weight((self.to_f32() + change).cast(dtype)));
    }
}

/// The matrix itself, under the name of its layer. A quantized one has no parameters.
impl Parameters for Weight {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        if let Form::Dense(dense) = &mut self.form {
            visit(path, Parameter::Matrix(dense));
        }
    }
}

//! The matrix of a linear layer.

use burn::tensor::{DType, Device, FloatDType, Tensor};

use super::{Parameter, Parameters};
use crate::{
    kernels::{self, PackedMatrix},
    weights::{Matrix, Weights},
};

/// A matrix `[out, in]` in the dtype of the base model, or quantized. How it is stored is its own business: outside of layers it
/// is changed and saved, not looked into.
#[derive(Clone, Debug)]
pub struct Weight {
    form: Form,
    /// What the checkpoint says it has, also where only headers were read.
    dims: [usize; 2],
}

#[derive(Clone, Debug)]
enum Form {
    Dense(Tensor<2>),
    /// Becomes dense for one product at a time. It cannot be trained.
    Packed(PackedMatrix),
}

impl Weight {
    /// Takes `weight` `[outputs, inputs]`, quantized or not, or `[outputs, inputs, 1, 1]`.
    ///
    /// On the CPU a dense one that is kept is laid out for its products once and for all. One that is lent for a while stays as
    /// it lies in the file: the product of a forward pass turns it around, which costs what laying it out at every loan would,
    /// and that of a backward pass takes it as it is.
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
        let dense = if weights.are_kept() { kernels::laid_out(dense) } else { dense };
        Self { form: Form::Dense(dense), dims }
    }

    /// This matrix.
    pub fn new(dense: Tensor<2>) -> Self {
        Self { dims: dense.dims(), form: Form::Dense(dense) }
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// The type in which products are computed.
    pub fn dtype(&self) -> DType {
        match &self.form {
            Form::Dense(dense) => dense.dtype(),
            Form::Packed(packed) => packed.dtype().into(),
        }
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        match &self.form {
            Form::Dense(dense) => dense.device(),
            Form::Packed(packed) => packed.device().clone(),
        }
    }

    /// How it is stored, if it is quantized: `nf4`, `int8`, `fp8`, `Q4_K`, …
    pub fn quantized(&self) -> Option<&'static str> {
        match &self.form {
            Form::Dense(_) => None,
            Form::Packed(packed) => Some(packed.format()),
        }
    }

    /// `x·Wᵀ + b`: `x` `[M, in]`, `bias` `[out]` → `[M, out]`. The rows of `x` are those of `samples` samples if each is to have
    /// the bits that it has alone; else `samples` is 1.
    pub(super) fn product(&self, x: Tensor<2>, bias: Option<Tensor<1>>, samples: usize) -> Tensor<2> {
        match &self.form {
            Form::Dense(dense) => kernels::linear_by_sample(x, dense.clone(), bias, samples),
            Form::Packed(packed) => kernels::linear_packed_by_sample(x, packed, bias, samples),
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

    /// The matrix with `change` `[out, in]` added: computed in f32, rounded once to its dtype. A quantized one is dense from then
    /// on.
    pub(super) fn add(&mut self, change: Tensor<2>) {
        let dtype: FloatDType = self.dtype().into();
        self.form = Form::Dense(kernels::laid_out((self.to_f32() + change).cast(dtype)));
    }
}

/// Itself, under the name of its layer. A quantized one has no parameters.
impl Parameters for Weight {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        if let Form::Dense(dense) = &mut self.form {
            visit(path, Parameter::Matrix(dense));
        }
    }
}

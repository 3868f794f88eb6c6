//! Objectives: the loss a model learns from a batch.

mod denoising;
mod flow_matching;

use burn::tensor::{FloatDType, Tensor};

use crate::kernels::on_tape_of;
pub use denoising::Denoising;
pub use flow_matching::FlowMatching;

/// One batch, ready for a model that is called with `I`.
#[derive(Clone, Debug)]
pub struct Example<I> {
    /// What the model is called with.
    pub inputs: I,
    /// What it should predict, in the prediction's shape, f32.
    pub target: Tensor<4>,
    /// How much each sample counts, `[B]`, f32.
    pub weight: Tensor<1>,
}

impl<I> Example<I> {
    /// The mean squared error of each sample, in f32: `[B]`.
    pub fn errors(&self, prediction: Tensor<4>) -> Tensor<1> {
        let prediction = prediction.cast(FloatDType::F32);
        let difference = prediction.clone() - on_tape_of(self.target.clone(), &prediction);
        difference.square().flatten::<2>(1, 3).mean_dim(1).squeeze_dim(1)
    }

    /// The weighted mean of [`errors`](Self::errors): a scalar `[1]`.
    pub fn loss(&self, prediction: Tensor<4>) -> Tensor<1> {
        let errors = self.errors(prediction);
        (errors.clone() * on_tape_of(self.weight.clone(), &errors)).mean()
    }
}

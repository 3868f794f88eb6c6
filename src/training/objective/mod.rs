//! Objectives: from a batch to a loss.

mod draw;
mod denoising;
mod flow_matching;

use burn::tensor::{Device, FloatDType, Tensor};

use crate::{
    data::Batch,
    kernels::on_tape_of,
    models::Network,
    pipelines::Pipeline,
    rng::{Purpose, Seed},
};
pub use denoising::Denoising;
pub(in crate::training) use denoising::originals;
pub use draw::Draw;
pub use flow_matching::FlowMatching;

/// The objective of the denoiser of a pipeline `P`. Only here does a batch become an [`Example`]: for a run, its validation, and a
/// benchmark.
pub trait Objective<P: Pipeline> {
    /// The denoiser.
    type Model: Network;

    /// The name of a noise level: `sigma` or `timestep`.
    const LEVEL: &'static str;

    /// The denoiser of a pipeline.
    fn model(pipeline: &P) -> &Self::Model;

    /// The same, mutable.
    fn model_mut(pipeline: &mut P) -> &mut Self::Model;

    /// The noise level of a sample of latents `shape` `[B, C, h, w]`: a function of seed, step and sample number.
    fn draw_level(&self, seed: Seed, step: u64, sample: u64, shape: [usize; 4]) -> f64;

    /// The noise of the samples from `first` on, `[B, C, h, w]`: by default standard normal.
    fn draw_noise(&self, seed: Seed, step: u64, first: u64, shape: [usize; 4], device: &Device) -> Tensor<4> {
        draw::draw_normal(seed, Purpose::Noise, step, first, shape, device)
    }

    /// A batch at the given noise, as inputs and target of this pipeline's denoiser.
    fn batch_example(&self, pipeline: &P, batch: Batch, draw: Draw) -> Example<<Self::Model as Network>::Inputs>;
}

/// A batch as inputs `I` of a model, with the target.
#[derive(Clone, Debug)]
pub struct Example<I> {
    /// The inputs of the model.
    pub inputs: I,
    /// The target, in the shape of the prediction, f32.
    pub target: Tensor<4>,
    /// The weight of each sample, `[B]`, f32.
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

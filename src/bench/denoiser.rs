//! A denoiser with random inputs: what is trained, and what samples.

use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};

use super::SEED;
use crate::{
    device,
    error::Result,
    models::{Network, draw_noise},
    rng::Purpose,
    training::objective::Example,
};

/// What a model is called with.
pub type InputsOf<M> = <M as Network>::Inputs;

/// A denoiser and a batch of random inputs for it.
pub trait Denoiser: 'static {
    /// Its network.
    type Model: Network;

    /// The network.
    fn model(&self) -> &Self::Model;

    /// The same, to be changed.
    fn model_mut(&mut self) -> &mut Self::Model;

    /// A batch at noise and noise levels drawn for `step`.
    fn example(&self, step: u64) -> Example<InputsOf<Self::Model>>;

    /// Denoises random latents in `steps` steps, as `kiln generate` does; returns their sum, `[1]`.
    ///
    /// # Errors
    /// The process is asked to stop.
    fn sample(&self, steps: usize) -> Result<Tensor<1>>;
}

/// Standard normal numbers that depend on `name`, drawn as [`Weights::random`](crate::weights::Weights::random) does.
pub(super) fn normal<const D: usize>(name: &str, shape: [usize; D], device: &Device, dtype: FloatDType) -> Tensor<D> {
    if !device::is_cpu(device) {
        device.seed(SEED.derive(name).0);
        return Tensor::random(shape, Distribution::Normal(0.0, 1.0), (device, DType::from(dtype)));
    }
    let values = SEED.named(Purpose::Weights, name).normal(shape.iter().product());
    Tensor::<1>::from_floats(values.as_slice(), device).reshape(shape).cast(dtype)
}

/// What training draws for the samples of a step, `[B, C, h, w]`.
pub(super) fn draw(purpose: Purpose, step: u64, shape: [usize; 4], device: &Device) -> Tensor<4> {
    draw_noise((0..).map(|row| SEED.draw(purpose, step, row)), shape, device)
}

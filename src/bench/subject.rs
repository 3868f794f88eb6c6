//! The subject of a benchmark: a pipeline with random weights, and random inputs for it.

use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};

use super::SEED;
use crate::{
    data::Batch,
    device,
    error::Result,
    lora,
    pipelines::{Pipeline, Request},
    rng::Purpose,
};

/// A pipeline with random weights and its objective, with random inputs of one size.
pub(super) struct Subject<P, O> {
    /// The pipeline. Its VAE is unused, so the weights of the VAE are never drawn.
    pub pipeline: P,
    /// The kind of its denoiser.
    pub denoiser: lora::Denoiser,
    /// Its objective.
    pub objective: O,
    /// A batch of training data.
    pub batch: Batch,
    /// A sampling request, for any number of steps.
    pub request: Request,
}

impl<P: Pipeline, O> Subject<P, O> {
    /// Denoises random latents in `steps` steps, as `kiln generate` does; returns their sum, `[1]`.
    ///
    /// # Errors
    /// The process is asked to stop.
    pub fn sample(&self, steps: usize) -> Result<Tensor<1>> {
        let request = Request { steps, ..self.request.clone() };
        Ok(self.pipeline.generate(&request, &mut |_| ())?.sum())
    }
}

/// Standard normal values that depend on `name`, drawn as [`Weights::random`](crate::weights::Weights::random) does.
pub fn normal<const D: usize>(name: &str, shape: [usize; D], device: &Device, dtype: FloatDType) -> Tensor<D> {
    if !device::is_cpu(device) {
        device.seed(SEED.derive(name).0);
        return Tensor::random(shape, Distribution::Normal(0.0, 1.0), (device, DType::from(dtype)));
    }
    let values = SEED.named(Purpose::Weights, name).normal(shape.iter().product());
    Tensor::<1>::from_floats(values.as_slice(), device).reshape(shape).cast(dtype)
}

//! The UNet of InstructPix2Pix with random weights and inputs.

use burn::tensor::{Device, FloatDType, Tensor};

use super::{
    CLIP_TOKENS, Case, Denoiser, SEED, Trained,
    denoiser::{draw, normal},
    shape,
};
use crate::{
    lending::Residence,
    models::unet::{UNet, UNetInputs},
    rng::Purpose,
    schedulers::{SchedulerConfig, SchedulerName},
    training::{
        InstructPix2PixConfig,
        objective::{Denoising, Example},
    },
    weights::Weights,
};

/// A UNet, latents of one size beside those of a picture, and instructions.
pub struct UNetBench {
    model: UNet,
    objective: Denoising,
    scheduler: SchedulerConfig,
    /// What sampling starts from, `[B, 4, h, w]`.
    noise: Tensor<4>,
    picture: Tensor<4>,
    text: Tensor<3>,
    device: Device,
    dtype: FloatDType,
}

impl UNetBench {
    /// The UNet of a case on `device`; one that is trained whole is in f32.
    pub fn new(case: &Case, device: &Device) -> Self {
        let config = shape::unet(case);
        let dtype = if case.targets == Some(Trained::Full) { FloatDType::F32 } else { case.float() };
        let latent = case.size.expect("a case of a denoiser has a size") / 8;
        let shape = [case.batch, 4, latent, latent];
        let scheduler = shape::noise_schedule();
        let objective = Denoising {
            config: InstructPix2PixConfig::default(),
            schedule: scheduler.noise_schedule(),
            prediction: scheduler.prediction_type,
        };
        Self {
            objective,
            scheduler,
            noise: normal("noise", shape, device, FloatDType::F32),
            picture: normal("picture", shape, device, dtype),
            text: normal("text", [case.batch, CLIP_TOKENS, config.cross_attention_dim], device, dtype),
            model: UNet::load(&Weights::random(SEED, device, Some(dtype)), config, Residence::Resident),
            device: device.clone(),
            dtype,
        }
    }
}

impl Denoiser for UNetBench {
    type Model = UNet;

    fn model(&self) -> &UNet {
        &self.model
    }

    fn model_mut(&mut self) -> &mut UNet {
        &mut self.model
    }

    fn batch(&self) -> usize {
        self.text.dims()[0]
    }

    fn example(&self, step: u64) -> Example<UNetInputs> {
        let draw = |purpose| draw(purpose, step, self.noise.dims(), &self.device);
        let timestep = |sample| self.objective.draw_timestep(SEED, step, sample);
        let timesteps: Vec<i64> = (0..self.batch() as u64).map(timestep).collect();
        let (latents, condition, noise) = (draw(Purpose::Posterior), draw(Purpose::Condition), draw(Purpose::Noise));
        self.objective.example(latents, condition, self.text.clone(), noise, &timesteps, self.dtype)
    }

    /// Every row is a prediction of its own: a picture edited with both guidance scales is a batch of three.
    fn sample(&self, steps: usize) -> Tensor<1> {
        let named = self.scheduler.with_name(SchedulerName::EulerAncestral);
        let mut sampler = named.scheduler(steps).expect("fewer steps than timesteps");
        let mut latents = self.noise.clone() * sampler.init_noise_sigma();
        for (index, timestep) in sampler.timesteps().to_vec().into_iter().enumerate() {
            let input = sampler.scale_model_input(latents.clone(), index).cast(self.dtype);
            let prediction = self.model.forward(&UNetInputs {
                sample: Tensor::cat(vec![input, self.picture.clone()], 1),
                timestep: Tensor::full([self.batch()], timestep, &self.device),
                text: self.text.clone(),
            });
            let mut fresh = || self.noise.clone();
            latents = sampler.step(prediction.cast(FloatDType::F32), index, latents, &mut fresh);
        }
        latents.sum()
    }
}

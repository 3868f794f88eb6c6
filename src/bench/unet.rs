//! The UNet of InstructPix2Pix with random weights and inputs.

use burn::tensor::{Device, FloatDType, Tensor};

use super::{
    CLIP_TOKENS, Case, Denoiser, SEED, TrainTarget,
    denoiser::{draw, normal},
    shape,
};
use crate::{
    error::Result,
    lending::Residence,
    models::{
        text::PromptEmbeds,
        unet::{UNet, UNetInputs},
        vae::AutoencoderKl,
    },
    pipelines::{InstructPix2PixPipeline, Pipeline, Request},
    rng::Purpose,
    schedulers::SchedulerName,
    training::{
        InstructPix2PixConfig,
        objective::{Denoising, Example},
    },
    weights::Weights,
};

/// An editing pipeline, noise of one size beside the latents of an original, and instructions.
pub struct UNetBench {
    pipeline: InstructPix2PixPipeline,
    objective: Denoising,
    /// What sampling starts from, `[B, 4, h, w]`.
    noise: Tensor<4>,
    original: Tensor<4>,
    text: PromptEmbeds,
}

impl UNetBench {
    /// The UNet of a case on `device`; one that is trained whole is in f32.
    pub fn new(case: &Case, device: &Device) -> Self {
        let config = shape::unet(case);
        let dtype = if case.targets == Some(TrainTarget::Full) { FloatDType::F32 } else { case.float() };
        let latent = case.size.expect("a case of a denoiser has a size") / 8;
        let (batch, shape) = (case.batch, [case.batch, 4, latent, latent]);
        let scheduler = shape::noise_schedule();
        let objective = Denoising {
            config: InstructPix2PixConfig::default(),
            schedule: scheduler.noise_schedule(),
            prediction: scheduler.prediction_type,
        };
        let text = PromptEmbeds {
            prompt: normal("text", [batch, CLIP_TOKENS, config.cross_attention_dim], device, dtype),
            pooled: Tensor::zeros([batch, 1], device), // nothing reads it
        };
        let weights = Weights::random(SEED, device, Some(dtype));
        let unet = UNet::load(&weights, config, Residence::Resident);
        // The VAE is not used here, so its weights are never drawn.
        let vae = AutoencoderKl::load(&weights.at("vae"), shape::unet_vae(), Residence::Streamed);
        Self {
            pipeline: InstructPix2PixPipeline::new(unet, vae, scheduler, dtype),
            objective,
            noise: normal("noise", shape, device, FloatDType::F32),
            original: normal("picture", shape, device, FloatDType::F32),
            text,
        }
    }
}

impl Denoiser for UNetBench {
    type Model = UNet;

    fn model(&self) -> &UNet {
        &self.pipeline.unet
    }

    fn model_mut(&mut self) -> &mut UNet {
        &mut self.pipeline.unet
    }

    fn example(&self, step: u64) -> Example<UNetInputs> {
        let shape = self.noise.dims();
        let draw = |purpose| draw(purpose, step, shape, Pipeline::device(&self.pipeline));
        let timestep = |sample| self.objective.draw_timestep(SEED, step, sample);
        let timesteps: Vec<i64> = (0..shape[0] as u64).map(timestep).collect();
        let (latents, condition, noise) = (draw(Purpose::Posterior), draw(Purpose::Condition), draw(Purpose::Noise));
        let (text, dtype) = (self.text.prompt.clone(), self.pipeline.dtype());
        self.objective.example(latents, condition, text, noise, &timesteps, dtype)
    }

    /// Every row is a prediction of its own: an image edited with both guidance scales is a batch of three.
    fn sample(&self, steps: usize) -> Result<Tensor<1>> {
        let seeds = vec![SEED.0; self.noise.dims()[0]];
        let request = Request {
            original: Some((self.original.clone(), 1.0)),
            scheduler: Some(SchedulerName::EulerAncestral),
            ..Request::new(self.text.clone(), self.noise.clone(), seeds, steps)
        };
        Ok(self.pipeline.generate(&request, &mut |_| ())?.sum())
    }
}

//! FLUX.1 with random weights and inputs.

use burn::tensor::{Device, FloatDType, Tensor};

use super::{
    Case, Denoiser, SEED,
    denoiser::{draw, normal},
    shape,
};
use crate::{
    error::Result,
    lending::Residence,
    models::{
        flux::{FluxInputs, FluxTransformer},
        text::PromptEmbeds,
        vae::AutoencoderKl,
    },
    pipelines::{FluxPipeline, Pipeline, Request},
    rng::Purpose,
    schedulers::FlowMatchEuler,
    training::{
        FlowMatchingConfig,
        objective::{Example, FlowMatching},
    },
    weights::Weights,
};

/// Of a usual run.
const GUIDANCE: f64 = 3.5;

/// A FLUX pipeline, noise of one size and prompts.
pub struct FluxBench {
    pipeline: FluxPipeline,
    objective: FlowMatching,
    text: PromptEmbeds,
    /// What sampling starts from, `[B, C, h, w]`.
    noise: Tensor<4>,
}

impl FluxBench {
    /// The transformer of a case on `device`.
    pub fn new(case: &Case, device: &Device) -> Self {
        let (config, dtype, batch) = (shape::flux(case), case.float(), case.batch);
        let latent = case.size.expect("a case of a denoiser has a size") / 8;
        let text = PromptEmbeds {
            prompt: normal("prompt", [batch, case.text_tokens, config.joint_attention_dim], device, dtype),
            pooled: normal("pooled", [batch, config.pooled_projection_dim], device, dtype),
        };
        let noise = normal("noise", [batch, config.in_channels / 4, latent, latent], device, FloatDType::F32);
        let objective = FlowMatching {
            config: FlowMatchingConfig { guidance: GUIDANCE, ..Default::default() },
            scheduler: FlowMatchEuler::default(),
        };
        let weights = Weights::random(SEED, device, Some(dtype));
        let transformer = FluxTransformer::load(&weights, config, Residence::Resident);
        // The VAE is not used here, so its weights are never drawn.
        let vae = AutoencoderKl::load(&weights.at("vae"), shape::vae(case), Residence::Streamed);
        let pipeline = FluxPipeline::new(transformer, vae, FlowMatchEuler::default(), dtype);
        Self { pipeline, objective, text, noise }
    }
}

impl Denoiser for FluxBench {
    type Model = FluxTransformer;

    fn model(&self) -> &FluxTransformer {
        &self.pipeline.transformer
    }

    fn model_mut(&mut self) -> &mut FluxTransformer {
        &mut self.pipeline.transformer
    }

    fn example(&self, step: u64) -> Example<FluxInputs> {
        let (shape, transformer) = (self.noise.dims(), self.model());
        let [batch, _, height, width] = shape;
        let draw = |purpose| draw(purpose, step, shape, self.pipeline.device());
        let sigma = |sample| self.objective.draw_sigma(SEED, step, sample, height / 2 * (width / 2));
        let sigmas: Vec<f32> = (0..batch as u64).map(sigma).collect();
        let (latents, noise) = (draw(Purpose::Posterior), draw(Purpose::Noise));
        let (config, dtype) = (&transformer.config, self.pipeline.dtype());
        self.objective.example(config, latents, self.text.clone(), noise, &sigmas, dtype)
    }

    fn sample(&self, steps: usize) -> Result<Tensor<1>> {
        let seeds = vec![SEED.0; self.noise.dims()[0]];
        let request =
            Request { guidance: GUIDANCE, ..Request::new(self.text.clone(), self.noise.clone(), seeds, steps) };
        Ok(self.pipeline.generate(&request, &mut |_| ())?.sum())
    }
}

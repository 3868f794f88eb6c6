//! FLUX.1 with random weights and inputs.

use burn::tensor::{Device, FloatDType, Tensor};

use super::{
    Case, Denoiser, SEED,
    denoiser::{draw, normal},
    shape,
};
use crate::{
    lending::Residence,
    models::{
        flux::{FluxInputs, FluxTransformer},
        text::PromptEmbeds,
    },
    rng::Purpose,
    schedulers::{FlowMatchEuler, flow_match},
    training::{
        FlowMatchingConfig,
        objective::{Example, FlowMatching},
    },
    weights::Weights,
};

/// Of a usual run.
const GUIDANCE: f64 = 3.5;

/// A FLUX transformer, latents of one size and prompts.
pub struct FluxBench {
    model: FluxTransformer,
    objective: FlowMatching,
    /// What sampling starts from.
    inputs: FluxInputs,
    /// Height and width of the latents.
    latent: usize,
    device: Device,
    dtype: FloatDType,
}

impl FluxBench {
    /// The transformer of a case on `device`.
    pub fn new(case: &Case, device: &Device) -> Self {
        let (config, dtype, batch) = (shape::flux(case), case.float(), case.batch);
        let latent = case.size.expect("a case of a denoiser has a size") / 8;
        let normal = |name: &str, tokens, width| normal(name, [batch, tokens, width], device, dtype);
        let inputs = FluxInputs {
            img: normal("noise", (latent / 2).pow(2), config.in_channels),
            txt: normal("prompt", case.text_tokens, config.joint_attention_dim),
            pooled: normal("pooled", 1, config.pooled_projection_dim).squeeze_dim(1),
            sigma: Tensor::ones([batch], device),
            guidance: Tensor::full([batch], GUIDANCE, device),
            rope: config.rope(case.text_tokens, latent, latent, device),
        };
        let objective = FlowMatching {
            config: FlowMatchingConfig { guidance: GUIDANCE, ..Default::default() },
            scheduler: FlowMatchEuler::default(),
        };
        let model = FluxTransformer::load(&Weights::random(SEED, device, Some(dtype)), config, Residence::Resident);
        Self { model, objective, inputs, latent, device: device.clone(), dtype }
    }
}

impl Denoiser for FluxBench {
    type Model = FluxTransformer;

    fn model(&self) -> &FluxTransformer {
        &self.model
    }

    fn model_mut(&mut self) -> &mut FluxTransformer {
        &mut self.model
    }

    fn batch(&self) -> usize {
        self.inputs.img.dims()[0]
    }

    fn example(&self, step: u64) -> Example<FluxInputs> {
        let batch = self.batch();
        let shape = [batch, self.model.config.in_channels / 4, self.latent, self.latent];
        let tokens = (self.latent / 2).pow(2);
        let draw = |purpose| draw(purpose, step, shape, &self.device);
        let sigma = |sample| self.objective.draw_sigma(SEED, step, sample, tokens);
        let sigmas: Vec<f32> = (0..batch as u64).map(sigma).collect();
        let text = PromptEmbeds { prompt: self.inputs.txt.clone(), pooled: self.inputs.pooled.clone() };
        let (latents, noise) = (draw(Purpose::Posterior), draw(Purpose::Noise));
        self.objective.example(&self.model.config, latents, text, noise, &sigmas, self.dtype)
    }

    fn sample(&self, steps: usize) -> Tensor<1> {
        let batch = self.batch();
        let sigmas = FlowMatchEuler::default().inference_sigmas(steps, (self.latent / 2).pow(2));
        let noise = self.inputs.img.clone().cast(FloatDType::F32);
        let img = sigmas.windows(2).fold(noise, |img, pair| {
            let velocity = self.model.forward(&FluxInputs {
                img: img.clone().cast(self.dtype),
                sigma: Tensor::full([batch], pair[0], &self.device),
                ..self.inputs.clone()
            });
            flow_match::step(img, velocity.cast(FloatDType::F32), pair[0], pair[1])
        });
        img.sum()
    }
}

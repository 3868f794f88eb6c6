//! FLUX.1 with random weights and inputs.

use burn::tensor::{Device, FloatDType::F32};

use super::{
    Case, SEED, shape,
    subject::{Subject, normal},
};
use crate::{
    data::Batch,
    lending::Residence,
    lora::Denoiser,
    models::{flux::FluxTransformer, text::PromptEmbeds, vae::AutoencoderKl},
    pipelines::{FluxPipeline, Request},
    schedulers::FlowMatchEuler,
    training::{FlowMatchingConfig, objective::FlowMatching},
    weights::Weights,
};

/// The rank of a usual run.
const GUIDANCE: f64 = 3.5;

/// The transformer of a case on `device`, latents of one size, and prompts.
pub(super) fn subject(case: &Case, device: &Device) -> Subject<FluxPipeline, FlowMatching> {
    let (config, dtype, rows) = (shape::flux(case), case.float(), case.batch);
    let latent = case.size.expect("a case of a denoiser has a size") / 8;
    let channels = config.in_channels / 4;
    let batch = Batch {
        moments: normal("moments", [rows, 2 * channels, latent, latent], device, F32),
        original: None,
        prompt: normal("prompt", [rows, case.text_tokens, config.joint_attention_dim], device, F32),
        pooled: normal("pooled", [rows, config.pooled_projection_dim], device, F32),
        samples: Vec::new(),
    };
    let text = PromptEmbeds { prompt: batch.prompt.clone().cast(dtype), pooled: batch.pooled.clone().cast(dtype) };
    let noise = normal("noise", [rows, channels, latent, latent], device, F32);
    let request = Request { guidance: GUIDANCE, ..Request::new(text, noise, vec![SEED.0; rows], 1) };
    let objective = FlowMatching {
        config: FlowMatchingConfig { guidance: GUIDANCE, ..Default::default() },
        scheduler: FlowMatchEuler::default(),
    };
    let weights = Weights::random(SEED, device, Some(dtype));
    let transformer = FluxTransformer::load(&weights, config, Residence::Resident);
    let vae = AutoencoderKl::load(&weights.at("vae"), shape::vae(case), Residence::Streamed);
    let pipeline = FluxPipeline::new(transformer, vae, FlowMatchEuler::default(), dtype);
    Subject { pipeline, denoiser: Denoiser::Transformer, objective, batch, request }
}

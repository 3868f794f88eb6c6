//! The UNet of InstructPix2Pix with random weights and inputs.

use burn::tensor::{Device, FloatDType::F32, Tensor};

use super::{
    CLIP_TOKENS, Case, SEED, TrainTarget, shape,
    subject::{Subject, normal},
};
use crate::{
    data::Batch,
    lending::Residence,
    lora::Denoiser,
    models::{
        text::PromptEmbeds,
        unet::UNet,
        vae::{AutoencoderKl, Moments},
    },
    pipelines::{InstructPix2PixPipeline, Request},
    schedulers::SchedulerName,
    training::{InstructPix2PixConfig, objective::Denoising},
    weights::Weights,
};

/// The UNet of a case on `device`, in f32 if all of it is trained; latents of pairs of one size, and instructions.
///
/// Every row is a separate prediction: an image edited with both guidance scales is a batch of three.
pub(super) fn subject(case: &Case, device: &Device) -> Subject<InstructPix2PixPipeline, Denoising> {
    let (config, rows) = (shape::unet(case), case.batch);
    let dtype = if case.targets == Some(TrainTarget::Full) { F32 } else { case.float() };
    let latent = case.size.expect("a case of a denoiser has a size") / 8;
    let original = normal("picture", [rows, 8, latent, latent], device, F32);
    let batch = Batch {
        moments: normal("moments", [rows, 8, latent, latent], device, F32),
        original: Some(original.clone()),
        prompt: normal("text", [rows, CLIP_TOKENS, config.cross_attention_dim], device, F32),
        pooled: Tensor::zeros([rows, 1], device), // nothing reads it
        samples: Vec::new(),
    };
    let text = PromptEmbeds { prompt: batch.prompt.clone().cast(dtype), pooled: batch.pooled.clone() };
    let noise = normal("noise", [rows, 4, latent, latent], device, F32);
    let request = Request {
        original: Some((Moments::from_tensor(original).mode(), 1.0)),
        scheduler: Some(SchedulerName::EulerAncestral),
        ..Request::new(text, noise, vec![SEED.0; rows], 1)
    };
    let scheduler = shape::noise_schedule();
    let objective = Denoising {
        config: InstructPix2PixConfig::default(),
        schedule: scheduler.noise_schedule(),
        prediction: scheduler.prediction_type,
    };
    let weights = Weights::random(SEED, device, Some(dtype));
    let unet = UNet::load(&weights, config, Residence::Resident);
    let vae = AutoencoderKl::load(&weights.at("vae"), shape::unet_vae(), Residence::Streamed);
    let pipeline = InstructPix2PixPipeline::new(unet, vae, scheduler, dtype);
    Subject { pipeline, denoiser: Denoiser::Unet, objective, batch, request }
}

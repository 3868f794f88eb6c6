//! Complete sampling runs of four steps, from diffusers' initial noise to the image, with the denoiser in the tested dtype.

use std::{collections::VecDeque, ops::ControlFlow};

use burn::tensor::{FloatDType, Tensor};

use super::{Golden, Sink};
use crate::{
    error::Result,
    models::{
        flux::{pack, unpack},
        text::PromptEmbeds,
    },
    pipelines::{FluxPipeline, Pipeline, Request, StableDiffusionPipeline},
};

/// Text to image with FLUX.1.
///
/// # Errors
/// Model or golden are incomplete, or `found` refuses.
pub fn flux(golden: &Golden, dtype: FloatDType, found: Sink) -> Result<()> {
    let section = "pipe.txt2img";
    let pipeline = FluxPipeline::open(&golden.model, &golden.device, dtype)?;
    let of = |name: &str| format!("{section}.{name}");
    let number = |key: &str| golden.number(section, key);
    let side = |key: &str| Ok(number(key)? as usize / pipeline.vae.downsampling());
    let noise = unpack(golden.tensor(&of("latents"))?, side("height")?, side("width")?);
    let text = PromptEmbeds {
        prompt: golden.tensor(&of("prompt_embeds"))?,
        pooled: golden.tensor(&of("pooled_prompt_embeds"))?,
    };
    let request = Request {
        guidance: number("guidance_scale")?,
        ..Request::new(text, noise, vec![0], number("num_inference_steps")? as usize)
    };
    let mut steps = Vec::new();
    let latents = pipeline.generate(&request, &mut |step| steps.push(pack(step.latents.clone())))?;
    found(&of("steps"), Tensor::stack::<4>(steps, 0).into_data())?;
    found(&of("output"), pack(latents.clone()).into_data())?;
    found(&of("decoded_image"), picture(&pipeline, latents).into_data())
}

/// The inputs of InstructPix2Pix in a section.
///
/// # Errors
/// The section lacks a tensor or a number.
pub fn edit_request(golden: &Golden, section: &str, pipeline: &StableDiffusionPipeline) -> Result<Request> {
    let of = |name: &str| format!("{section}.{name}");
    let number = |key: &str| golden.number(section, key);
    let embeds = |kind: &str| {
        let prompt: Tensor<3> = golden.tensor(&of(&format!("{kind}prompt_embeds")))?;
        Ok(PromptEmbeds { pooled: Tensor::zeros([prompt.dims()[0], 1], &golden.device), prompt })
    };
    let original = pipeline.vae.encode(golden.tensor::<4>(&of("image"))? * 2.0 - 1.0).mode();
    let steps = number("num_inference_steps")? as usize;
    Ok(Request {
        negative: Some((embeds("negative_")?, number("guidance_scale")?)),
        original: Some((original, number("image_guidance_scale")?)),
        ..Request::new(embeds("")?, golden.tensor(&of("latents"))?, vec![0], steps)
    })
}

/// An edit with InstructPix2Pix, guided by text and image.
///
/// # Errors
/// As [`flux`].
pub fn edit(golden: &Golden, dtype: FloatDType, found: Sink) -> Result<()> {
    let section = "pipe.ip2p";
    let pipeline = StableDiffusionPipeline::open(&golden.model, &golden.device, dtype)?;
    let request = edit_request(golden, section, &pipeline)?;
    let of = |name: &str| format!("{section}.{name}");
    let drawn = golden.names(&of("noise."));
    let mut drawn = drawn.iter().map(|name| golden.tensor::<4>(name)).collect::<Result<VecDeque<_>>>()?;
    let mut noise = || drawn.pop_front().unwrap_or_else(|| request.noise.zeros_like());
    let mut steps = Vec::new();
    let latents = pipeline.generate_with(&request, &mut noise, &mut |step| {
        steps.push(step.latents.clone());
        ControlFlow::Continue(())
    })?;
    let latents = latents.finished().expect("nobody cancelled it");
    found(&of("steps"), Tensor::stack::<5>(steps, 0).into_data())?;
    found(&of("output"), latents.clone().into_data())?;
    found(&of("decoded_image"), picture(&pipeline, latents).into_data())
}

/// Scaled latents as an image, in [0, 1].
fn picture(pipeline: &dyn Pipeline, latents: Tensor<4>) -> Tensor<4> {
    let raw = pipeline.vae().latent_scale().denormalize(latents);
    ((pipeline.vae().decode(raw) + 1.0) / 2.0).clamp(0.0, 1.0)
}

//! FLUX.1: a transformer, CLIP and T5.

use std::path::Path;

use burn::tensor::{Device, FloatDType};
use serde::Deserialize;

use super::{
    Architecture, Component, Defaults, Family, ObjectiveKind,
    components::{SCHEDULER, TEXT_ENCODER, TEXT_ENCODER_2, TOKENIZER, TOKENIZER_2, TRANSFORMER, VAE},
    parts::{self, Widths},
};
use crate::{
    error::Result,
    lora::Denoiser,
    models::{
        flux::FluxConfig,
        text::{ClipTextConfig, T5Config},
        vae::VaeConfig,
    },
    pipelines::{FluxPipeline, ImageSizes, Pipeline, Placement},
    rng::Seed,
    schedulers::FlowMatchEuler,
    weights::{TrainedPart, read_json},
};

/// FLUX.1-dev, FLUX.1-schnell, and models derived from them.
#[derive(Clone, Copy, Debug)]
pub struct Flux;

/// T5 tokens of FLUX.1-dev, and of the models without guidance (schnell).
const T5_TOKENS: [usize; 2] = [512, 256];

impl Family for Flux {
    fn name(&self) -> &'static str {
        "FLUX.1"
    }

    fn classes(&self) -> &'static [&'static str] {
        &["FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"]
    }

    fn components(&self) -> &'static [Component] {
        &[SCHEDULER, TEXT_ENCODER, TEXT_ENCODER_2, TOKENIZER, TOKENIZER_2, TRANSFORMER, VAE]
    }

    fn denoiser(&self) -> Denoiser {
        Denoiser::Transformer
    }

    fn check_parts(&self, model: &Path) -> Result<()> {
        let flux = FluxConfig::open(model.join("transformer"))?;
        let (clip, t5) =
            (ClipTextConfig::open(model.join("text_encoder"))?, T5Config::open(model.join("text_encoder_2"))?);
        let widths = [
            Widths {
                key: "joint_attention_dim",
                wanted: flux.joint_attention_dim,
                encoder: "text_encoder_2",
                given: t5.d_model,
            },
            Widths {
                key: "pooled_projection_dim",
                wanted: flux.pooled_projection_dim,
                encoder: "text_encoder",
                given: clip.hidden_size,
            },
        ];
        parts::check(model, self.denoiser().folder(), &widths)
    }

    /// The limit of its tokenizer, at most that of its training.
    fn t5_tokens(&self, model: &Path) -> Result<usize> {
        #[derive(Deserialize)]
        struct TokenizerConfig {
            model_max_length: Option<f64>, // "no limit" is written as 1e30
        }
        let config = FluxConfig::open(model.join("transformer"))?;
        let tokenizer: TokenizerConfig = read_json(model.join("tokenizer_2/tokenizer_config.json"))?;
        let trained = T5_TOKENS[usize::from(!config.guidance_embeds)];
        Ok(tokenizer.model_max_length.map_or(trained, |own| trained.min(own as usize)))
    }

    fn defaults(&self) -> Defaults {
        Defaults { steps: 28, guidance: 3.5, true_guidance: Some(4.0), image_guidance: None }
    }

    fn sizes(&self, model: &Path) -> Result<ImageSizes> {
        Ok(FluxPipeline::image_sizes(&VaeConfig::open(model.join("vae"))?))
    }

    fn check_schedule(&self, model: &Path, steps: Option<usize>) -> Result<()> {
        let scheduler = FlowMatchEuler::open(model.join("scheduler"))?;
        steps.map_or(Ok(()), |steps| scheduler.check_steps(steps))
    }

    fn packs_latents(&self) -> bool {
        true
    }

    fn open(&self, place: Placement, model: &Path, device: &Device, dtype: FloatDType) -> Result<Box<dyn Pipeline>> {
        Ok(Box::new(FluxPipeline::open_as(place, model, device, dtype)?))
    }

    fn untrained(&self, place: Placement, model: &Path, seed: Seed, device: &Device) -> Result<Box<dyn Pipeline>> {
        Ok(Box::new(FluxPipeline::untrained(place, model, seed, device)?))
    }

    fn architecture(&self, model: &Path) -> Result<Architecture> {
        let guided = FluxConfig::open(model.join("transformer"))?.guidance_embeds;
        Ok(Architecture {
            name: if guided { "flux-1-dev" } else { "flux-1-schnell" },
            implementation: "https://github.com/black-forest-labs/flux",
            version: "flux1",
        })
    }

    fn objective(&self) -> ObjectiveKind {
        ObjectiveKind::FlowMatching
    }

    fn trained_part(&self) -> TrainedPart {
        TrainedPart { folder: self.denoiser().folder(), widened: None, pointwise: |_, _| false }
    }
}

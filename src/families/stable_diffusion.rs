//! Stable Diffusion 1.x and 2.x, and InstructPix2Pix: the same folders and layers, distinguished by the input channels of the UNet.

use std::path::Path;

use burn::tensor::{Device, FloatDType};

use super::{
    Architecture, Component, Defaults, Family, ObjectiveKind, TO_EDIT,
    components::{self, SCHEDULER, TEXT_ENCODER, TOKENIZER, VAE},
    parts::{self, Widths},
};
use crate::{
    error::{Error, Result},
    lora::Denoiser,
    models::{text::ClipTextConfig, unet::UNetConfig, vae::VaeConfig},
    pipelines::{ImageSizes, Pipeline, Placement, StableDiffusionPipeline},
    rng::Seed,
    schedulers::{PredictionType, SchedulerConfig},
    weights::{TrainedPart, Widened},
};

/// A UNet and CLIP. The input of the UNet is noisy latents; in InstructPix2Pix (Brooks et al. 2023) also those of the original.
#[derive(Clone, Copy, Debug)]
pub struct StableDiffusion {
    edits: bool,
}

/// Stable Diffusion, which generates images from text.
pub const STABLE_DIFFUSION: StableDiffusion = StableDiffusion { edits: false };

/// InstructPix2Pix, which edits images by instruction.
pub const INSTRUCT_PIX2PIX: StableDiffusion = StableDiffusion { edits: true };

const UNET: &str = "unet";

const EDITING: &str = "StableDiffusionInstructPix2PixPipeline";

fn unet(model: &Path) -> Result<UNetConfig> {
    UNetConfig::open(model.join(UNET))
}

impl Family for StableDiffusion {
    fn name(&self) -> &'static str {
        if self.edits { "InstructPix2Pix" } else { "Stable Diffusion" }
    }

    fn classes(&self) -> &'static [&'static str] {
        match self.edits {
            true => &[EDITING],
            false => &["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"],
        }
    }

    /// Folders of both may have the class of either, so the UNet decides.
    fn claims(&self, model: &Path, class: &str) -> Result<bool> {
        let classes = [STABLE_DIFFUSION, INSTRUCT_PIX2PIX].map(|family| family.classes()).concat();
        Ok(classes.contains(&class) && unet(model)?.edits() == self.edits)
    }

    fn components(&self) -> &'static [Component] {
        &[SCHEDULER, TEXT_ENCODER, TOKENIZER, components::UNET, VAE]
    }

    fn denoiser(&self) -> Denoiser {
        Denoiser::Unet
    }

    fn check_parts(&self, model: &Path) -> Result<()> {
        let clip = ClipTextConfig::open(model.join("text_encoder"))?;
        let (key, wanted) = ("cross_attention_dim", unet(model)?.cross_attention_dim);
        parts::check(model, UNET, &[Widths { key, wanted, encoder: "text_encoder", given: clip.hidden_size }])
    }

    fn defaults(&self) -> Defaults {
        let (steps, image_guidance) = if self.edits { (20, Some(1.5)) } else { (30, None) };
        Defaults { steps, guidance: 7.5, true_guidance: None, image_guidance }
    }

    fn sizes(&self, model: &Path) -> Result<ImageSizes> {
        Ok(StableDiffusionPipeline::image_sizes(&unet(model)?, &VaeConfig::open(model.join("vae"))?))
    }

    fn scheduler(&self, model: &Path) -> Result<Option<SchedulerConfig>> {
        SchedulerConfig::open(model.join("scheduler")).map(Some)
    }

    fn edits(&self) -> bool {
        self.edits
    }

    fn other_purpose(&self, model: &Path) -> Error {
        let UNetConfig { in_channels, out_channels, .. } = match unet(model) {
            Ok(config) => config,
            Err(error) => return error,
        };
        let (problem, hint) = match self.edits {
            true => ("this UNet edits images by instruction".into(), "use `kiln edit`"),
            false => (format!("to read an image to edit it must be {}", 2 * out_channels), TO_EDIT),
        };
        Error::file(model.join(UNET).join("config.json"), format!("`in_channels` is {in_channels}: {problem}"))
            .hint(hint)
    }

    fn open(&self, place: Placement, model: &Path, device: &Device, dtype: FloatDType) -> Result<Box<dyn Pipeline>> {
        Ok(Box::new(StableDiffusionPipeline::open_as(place, model, device, dtype)?))
    }

    fn untrained(&self, place: Placement, model: &Path, seed: Seed, device: &Device) -> Result<Box<dyn Pipeline>> {
        Ok(Box::new(StableDiffusionPipeline::untrained(place, model, seed, device)?))
    }

    /// Version 2 has OpenCLIP's wider embeddings; one variant of it predicts the velocity, for larger images.
    fn architecture(&self, model: &Path) -> Result<Architecture> {
        let velocity = || {
            Ok::<_, Error>(
                SchedulerConfig::open(model.join("scheduler"))?.prediction_type == PredictionType::VPrediction,
            )
        };
        let (name, version) = match unet(model)?.cross_attention_dim {
            1024 if velocity()? => ("stable-diffusion-v2-768-v", "sd_v2"),
            1024 => ("stable-diffusion-v2-512", "sd_v2"),
            _ => ("stable-diffusion-v1", "sd_v1"),
        };
        Ok(Architecture { name, implementation: "diffusers", version })
    }

    /// A generating model learns to edit by widening its UNet.
    fn objective(&self) -> ObjectiveKind {
        ObjectiveKind::InstructPix2Pix
    }

    /// Eight input channels (four of noisy latents, four of the original's) identify InstructPix2Pix.
    fn trained_part(&self) -> TrainedPart {
        let class = |channels| (channels == 8).then_some(EDITING);
        TrainedPart {
            folder: UNET,
            widened: Some(Widened { weight: "conv_in.weight", class }),
            // The projections about the blocks of an attention: convolutions in Stable Diffusion 1, matrices in 2.
            pointwise: |name, config| {
                let linear = config.get("use_linear_projection").is_some_and(|value| value == true);
                !linear && (name.ends_with(".proj_in.weight") || name.ends_with(".proj_out.weight"))
            },
        }
    }
}

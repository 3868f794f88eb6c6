//! What a model folder holds.

use std::path::Path;

use serde::Deserialize;

use crate::{
    error::{Error, Result},
    weights::read_json,
};

/// The kinds of models that kiln knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// FLUX.1: a transformer, CLIP and T5.
    Flux,
    /// Stable Diffusion 1.x or 2.x: a UNet of 4 input channels, CLIP.
    StableDiffusion,
    /// Stable Diffusion that edits a picture by instruction: a UNet of 8 input channels, CLIP.
    InstructPix2Pix,
}

impl ModelKind {
    /// The kind of a model in the layout of diffusers: what the `_class_name` in its `model_index.json` says.
    ///
    /// # Errors
    /// There is no such file, or its class is of another kind.
    pub fn of(model: impl AsRef<Path>) -> Result<Self> {
        #[derive(Deserialize)]
        struct ModelIndex {
            #[serde(rename = "_class_name")]
            class_name: String,
        }
        let path = model.as_ref().join("model_index.json");
        let index: ModelIndex = read_json(&path)?;
        // diffusers names the class that saved the folder; those for one model differ in what they do, not in what is saved.
        match index.class_name.as_str() {
            "FluxPipeline" | "FluxImg2ImgPipeline" | "FluxInpaintPipeline" => Ok(Self::Flux),
            "StableDiffusionPipeline" | "StableDiffusionImg2ImgPipeline" | "StableDiffusionInpaintPipeline" => {
                Ok(Self::StableDiffusion)
            }
            "StableDiffusionInstructPix2PixPipeline" => Ok(Self::InstructPix2Pix),
            other => Err(Error::file(path, format!("`_class_name` is {other}, which kiln does not know")).hint(
                "use a model of FluxPipeline, StableDiffusionPipeline or StableDiffusionInstructPix2PixPipeline",
            )),
        }
    }
}

//! CLIP (Radford et al. 2021): images and texts as vectors that can be compared, named like transformers' `CLIPModel`.

mod layer;
mod processor;
mod text;
mod vision;

use std::path::Path;

use burn::tensor::{Device, FloatDType, Tensor};
use serde::Deserialize;

use crate::{
    error::{Error, Result},
    nn::Linear,
    weights::{Weights, read_json},
};
pub use layer::ClipActivation;
pub use processor::ClipImageProcessor;
pub use text::{ClipClass, ClipOutput, ClipTextConfig, ClipTextModel};
pub use vision::{ClipVisionConfig, ClipVisionModel, ClipVisionOutput};

/// `config.json` of a CLIP model; what is missing takes transformers' values.
#[derive(Clone, Debug)]
pub struct ClipConfig {
    /// The text tower.
    pub text: ClipTextConfig,
    /// The vision tower.
    pub vision: ClipVisionConfig,
    /// The width P of the vectors.
    pub projection_dim: usize,
}

/// The class in a `config.json`.
#[derive(Deserialize)]
struct Class {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
}

/// The raw file.
#[derive(Deserialize)]
struct Written {
    text_config: Option<ClipTextConfig>,
    vision_config: Option<ClipVisionConfig>,
    /// In older files, such as OpenAI's. If present, transformers ignores the one above.
    text_config_dict: Option<ClipTextConfig>,
    vision_config_dict: Option<ClipVisionConfig>,
    #[serde(default = "projection")]
    projection_dim: usize,
}

fn projection() -> usize {
    512
}

impl ClipConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// The file is missing or broken, or describes another class of model, or impossible sizes.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join("config.json");
        // Checked first, because the settings of another class need not make sense here.
        let Class { architectures, model_type } = read_json(&path)?;
        let class = architectures.and_then(|names| names.into_iter().next()).or(model_type);
        let class = class.as_deref().unwrap_or("no class of model");
        if !["CLIPModel", "clip"].contains(&class) {
            return Err(Error::file(path, format!("describes {class}, not a CLIPModel"))
                .hint("what is needed has text and vision in one, such as openai/clip-vit-large-patch14"));
        }
        let written: Written = read_json(&path)?;
        let config = Self {
            text: written.text_config_dict.or(written.text_config).unwrap_or_default(),
            vision: written.vision_config_dict.or(written.vision_config).unwrap_or_default(),
            projection_dim: written.projection_dim,
        };
        for (part, check) in [("text_config", config.text.layer().check()), ("vision_config", config.vision.check())] {
            check.map_err(|problem| Error::file(&path, format!("`{part}`: {problem}")))?;
        }
        Ok(config)
    }
}

/// Both towers, with the projections that make their outputs comparable.
#[derive(Clone, Debug)]
pub struct ClipModel {
    /// Its configuration.
    pub config: ClipConfig,
    text: ClipTextModel,
    vision: ClipVisionModel,
    text_projection: Linear,
    visual_projection: Linear,
}

impl ClipModel {
    /// Opens the folder of a transformers `CLIPModel`. With `dtype`, the weights are converted to it.
    ///
    /// # Errors
    /// Files are missing, the config describes another model, or config and weights do not fit.
    pub fn open(folder: impl AsRef<Path>, device: &Device, dtype: Option<FloatDType>) -> Result<Self> {
        let config = ClipConfig::open(&folder)?;
        Weights::load_model(folder, device, dtype, |weights| Self::load(weights, config))
    }

    /// Takes the model's tensors.
    pub fn load(weights: &Weights, config: ClipConfig) -> Self {
        // The temperature of training is not used.
        weights.ignore("logit_scale");
        let projection = |name: &str, width| Linear::load_without_bias(&weights.at(name), width, config.projection_dim);
        Self {
            text: ClipTextModel::load(weights, config.text.clone()),
            vision: ClipVisionModel::load(&weights.at("vision_model"), config.vision.clone()),
            text_projection: projection("text_projection", config.text.hidden_size),
            visual_projection: projection("visual_projection", config.vision.hidden_size),
            config,
        }
    }

    /// Token ids, all of one length → one unnormalized embedding for each text, `[B, P]`.
    pub fn text_features(&self, ids: &[&[i64]]) -> Tensor<2> {
        self.text_projection.forward(self.text.forward(ids).pooled)
    }

    /// Images `[B, 3, S, S]`, as [`ClipImageProcessor`] makes them → one unnormalized embedding for each, `[B, P]`.
    pub fn image_features(&self, pixels: Tensor<4>) -> Tensor<2> {
        self.visual_projection.forward(self.vision.forward(pixels).pooled)
    }
}

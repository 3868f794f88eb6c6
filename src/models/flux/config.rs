//! `transformer/config.json`.

use std::path::Path;

use burn::tensor::Device;
use serde::Deserialize;

use super::rope::Rope;
use crate::{
    error::{Error, Result},
    weights::{read_config, read_json},
};

/// `transformer/config.json`. What is missing there takes the values of FLUX.1-dev.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct FluxConfig {
    /// Features of a packed image token, four times the latent channels.
    pub in_channels: usize,
    /// Features of a predicted token; as `in_channels` if not given.
    pub out_channels: Option<usize>,
    /// Pixels of a token's side before packing; only 1 is known.
    pub patch_size: usize,
    /// Double blocks.
    pub num_layers: usize,
    /// Single blocks.
    pub num_single_layers: usize,
    /// `K`.
    pub attention_head_dim: usize,
    /// `N`.
    pub num_attention_heads: usize,
    /// Width of the T5 embeddings.
    pub joint_attention_dim: usize,
    /// Width of the pooled CLIP embedding.
    pub pooled_projection_dim: usize,
    /// Whether the model has a distilled guidance input (dev) or not (schnell).
    pub guidance_embeds: bool,
    /// The number of a head's `K` features that each position axis rotates.
    pub axes_dims_rope: Vec<usize>,
}

impl Default for FluxConfig {
    fn default() -> Self {
        Self {
            in_channels: 64,
            out_channels: None,
            patch_size: 1,
            num_layers: 19,
            num_single_layers: 38,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: true,
            axes_dims_rope: vec![16, 56, 56],
        }
    }
}

/// The fields of [`FluxConfig`].
const SETTINGS: [&str; 11] = [
    "in_channels",
    "out_channels",
    "patch_size",
    "num_layers",
    "num_single_layers",
    "attention_head_dim",
    "num_attention_heads",
    "joint_attention_dim",
    "pooled_projection_dim",
    "guidance_embeds",
    "axes_dims_rope",
];

impl FluxConfig {
    /// Reads `config.json` of a `transformer/` folder.
    ///
    /// # Errors
    /// The file is missing, or describes a model that kiln does not know.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        #[derive(Deserialize)]
        struct Class {
            #[serde(rename = "_class_name")]
            name: Option<String>,
        }
        let path = folder.as_ref().join("config.json");
        let Class { name } = read_json(&path)?;
        if let Some(name) = name.filter(|name| name != "FluxTransformer2DModel") {
            let problem = format!("`_class_name` is {name}, which is not supported, only FluxTransformer2DModel");
            return Err(Error::file(path, problem).hint("kiln knows the transformers of FLUX.1-dev and FLUX.1-schnell"));
        }
        let config: Self = read_config(&path, &SETTINGS)?;
        config.check().map_err(|problem| Error::file(path, problem))?;
        Ok(config)
    }

    /// `D`.
    pub fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// The rotation of `text_tokens` prompt tokens followed by those of latents of size `height` × `width`.
    pub fn rope(&self, text_tokens: usize, height: usize, width: usize, device: &Device) -> Rope {
        let ids = super::position_ids(text_tokens, height, width);
        Rope::new(&ids, &self.axes_dims_rope, 10_000.0, device)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let rotated: usize = self.axes_dims_rope.iter().sum();
        if self.axes_dims_rope.len() != 3
            || rotated != self.attention_head_dim
            || self.axes_dims_rope.iter().any(|d| d % 2 != 0)
        {
            return Err(format!(
                "`axes_dims_rope` {:?} must be three even numbers that add up to `attention_head_dim` {}",
                self.axes_dims_rope, self.attention_head_dim
            ));
        }
        for (field, value) in [
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("joint_attention_dim", self.joint_attention_dim),
            ("pooled_projection_dim", self.pooled_projection_dim),
            ("in_channels", self.in_channels),
        ] {
            if value == 0 {
                return Err(format!("`{field}` must not be zero"));
            }
        }
        if let Some(outputs) = self.out_channels.filter(|&outputs| outputs != self.in_channels) {
            return Err(format!("`out_channels` {outputs} is not as many as `in_channels` {}", self.in_channels));
        }
        if self.patch_size != 1 || !self.in_channels.is_multiple_of(4) {
            return Err(format!(
                "`patch_size` {} with `in_channels` {} is not known",
                self.patch_size, self.in_channels
            ));
        }
        Ok(())
    }
}

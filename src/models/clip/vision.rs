//! CLIP's vision transformer (Dosovitskiy et al. 2021; Radford et al. 2021), named like transformers' `CLIPVisionModel`.

use burn::tensor::{FloatDType, Tensor};
use serde::Deserialize;

use super::layer::{ClipActivation, Layer, LayerShape};
use crate::{
    nn::{Conv2d, LayerNorm},
    weights::Weights,
};

/// `vision_config` of a CLIP model; what is missing takes transformers' values.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    /// The width D.
    pub hidden_size: usize,
    /// The width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads N of each block.
    pub num_attention_heads: usize,
    /// The channels of the images.
    pub num_channels: usize,
    /// The side S of the images, which are square.
    pub image_size: usize,
    /// The side of a patch: one token.
    pub patch_size: usize,
    /// The activation in the feed-forward part.
    pub hidden_act: ClipActivation,
    /// The epsilon of every layer norm.
    pub layer_norm_eps: f64,
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: ClipActivation::default(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl ClipVisionConfig {
    /// The configuration of every block.
    pub(super) fn layer(&self) -> LayerShape {
        LayerShape {
            width: self.hidden_size,
            inner: self.intermediate_size,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            epsilon: self.layer_norm_eps,
        }
    }

    /// # Errors
    /// Impossible settings.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.num_channels != 3 {
            return Err("`num_channels` is not 3");
        }
        if self.patch_size == 0 || self.patch_size > self.image_size {
            return Err("`patch_size` does not fit into `image_size`");
        }
        self.layer().check()
    }
}

/// A transformer over patches and a class token, with full attention.
#[derive(Clone, Debug)]
pub struct ClipVisionModel {
    /// Its configuration.
    pub config: ClipVisionConfig,
    patches: Conv2d,
    class: Tensor<1>,
    positions: Tensor<2>,
    first_norm: LayerNorm,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
}

/// The outputs of a CLIP vision model for a batch of images.
#[derive(Clone, Debug)]
pub struct ClipVisionOutput {
    /// After the last block, without the final norm: the class token, then the patches row by row, `[B, L, D]`.
    pub last_hidden_state: Tensor<3>,
    /// The class token after the final norm, `[B, D]`.
    pub pooled: Tensor<2>,
}

impl ClipVisionModel {
    /// Takes the model's tensors, those below `vision_model` in a whole CLIP model.
    pub fn load(weights: &Weights, config: ClipVisionConfig) -> Self {
        let (width, patch) = (config.hidden_size, config.patch_size);
        let norm = |name: &str| LayerNorm::load(&weights.at(name), width, config.layer_norm_eps);
        let embeddings = weights.at("embeddings");
        // 0, 1, 2, …: a buffer that older releases of transformers saved.
        embeddings.ignore("position_ids");
        let patches = (config.image_size / patch).pow(2);
        Self {
            patches: Conv2d::load_patches(&embeddings.at("patch_embedding"), config.num_channels, width, patch),
            class: embeddings.tensor("class_embedding", [width]),
            positions: embeddings.tensor("position_embedding.weight", [patches + 1, width]),
            first_norm: norm("pre_layrnorm"), // the name in every published file
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::load(&weights.at(format!("encoder.layers.{i}")), config.layer()))
                .collect(),
            final_norm: norm("post_layernorm"),
            config,
        }
    }

    /// Encodes images `[B, 3, S, S]`, normalized by the model's preprocessor.
    pub fn forward(&self, pixels: Tensor<4>) -> ClipVisionOutput {
        let dtype: FloatDType = self.class.dtype().into();
        let patches = self.patches.forward(pixels.cast(dtype)).flatten::<3>(2, 3).swap_dims(1, 2);
        let [batch, _, width] = patches.dims();
        let class = self.class.clone().reshape([1, 1, width]).expand([batch, 1, width]);
        let x = Tensor::cat(vec![class, patches], 1) + self.positions.clone().unsqueeze();
        let mut x = self.first_norm.forward(x);
        for layer in &self.layers {
            x = layer.forward(x, None);
        }
        let class = x.clone().narrow(1, 0, 1).reshape([batch, width]);
        ClipVisionOutput { last_hidden_state: x, pooled: self.final_norm.forward(class) }
    }
}

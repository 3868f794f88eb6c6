//! `vae/config.json`.

use std::path::Path;

use serde::Deserialize;

use crate::{
    error::{Error, Result},
    weights::read_config,
};

/// `vae/config.json`. Classes and options that kiln does not know are refused while reading.
#[derive(Clone, Debug, Deserialize)]
pub struct VaeConfig {
    /// The diffusers class.
    #[serde(rename = "_class_name")]
    pub class: VaeClass,
    /// Channels of the encoder's images.
    #[serde(default = "three")]
    pub in_channels: usize,
    /// Channels of the decoder's images.
    #[serde(default = "three")]
    pub out_channels: usize,
    /// 16 for FLUX.1, 4 for SD 1.x.
    #[serde(default = "four")]
    pub latent_channels: usize,
    /// The channels of each level, from full resolution down.
    pub block_out_channels: Vec<usize>,
    /// The kind of each level of the encoder.
    pub down_block_types: Vec<DownBlockType>,
    /// The kind of each level of the decoder.
    pub up_block_types: Vec<UpBlockType>,
    /// Residual blocks in each level of the encoder; the decoder has one more.
    #[serde(default = "one")]
    pub layers_per_block: usize,
    /// The number of groups of every group norm.
    #[serde(default = "thirty_two")]
    pub norm_num_groups: usize,
    /// After every group norm.
    #[serde(default)]
    pub act_fn: VaeActivation,
    /// See [`LatentScale::factor`](super::LatentScale::factor).
    #[serde(default = "sd_factor")]
    pub scaling_factor: f64,
    /// See [`LatentScale::shift`](super::LatentScale::shift); missing or null is zero.
    pub shift_factor: Option<f64>,
    /// Whether a 1×1 convolution follows the encoder.
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// Whether a 1×1 convolution precedes the decoder.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// Whether the middle blocks contain attention.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
    /// A scale for each channel; kiln knows no model that has one.
    pub latents_mean: Option<Vec<f64>>,
    /// As [`latents_mean`](Self::latents_mean).
    pub latents_std: Option<Vec<f64>>,
}

/// The autoencoders kiln knows.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub enum VaeClass {
    /// That of FLUX.1, SD 1.x and SD 2.x.
    #[serde(rename = "AutoencoderKL")]
    AutoencoderKl,
}

/// The encoder levels kiln knows.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub enum DownBlockType {
    /// Residual blocks, then a strided convolution.
    DownEncoderBlock2D,
}

/// The decoder levels kiln knows.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub enum UpBlockType {
    /// Residual blocks, then nearest-neighbour doubling and a convolution.
    UpDecoderBlock2D,
}

/// The activations kiln knows here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VaeActivation {
    /// `x·sigmoid(x)`.
    #[default]
    #[serde(alias = "swish")]
    Silu,
}

fn one() -> usize {
    1
}
fn three() -> usize {
    3
}
fn four() -> usize {
    4
}
fn thirty_two() -> usize {
    32
}
fn sd_factor() -> f64 {
    0.18215
}
fn yes() -> bool {
    true
}

/// The fields of [`VaeConfig`], and what does not change what the model computes here: it always runs in f32, at any size.
const SETTINGS: [&str; 18] = [
    "in_channels",
    "out_channels",
    "latent_channels",
    "block_out_channels",
    "down_block_types",
    "up_block_types",
    "layers_per_block",
    "norm_num_groups",
    "act_fn",
    "scaling_factor",
    "shift_factor",
    "use_quant_conv",
    "use_post_quant_conv",
    "mid_block_add_attention",
    "latents_mean",
    "latents_std",
    "force_upcast",
    "sample_size",
];

/// More levels than any autoencoder has: each halves the sides.
const MOST_LEVELS: usize = 8;

impl VaeConfig {
    /// Reads `config.json` of a `vae/` folder.
    ///
    /// # Errors
    /// The file is missing, or describes a model that kiln does not know.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join("config.json");
        let config: Self = read_config(&path, &SETTINGS)?;
        match config.problem() {
            Some(problem) => Err(Error::file(path, problem)),
            None => Ok(config),
        }
    }

    /// The number of pixels along each side of a latent pixel.
    pub fn downsampling(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    fn problem(&self) -> Option<String> {
        let (channels, groups) = (&self.block_out_channels, self.norm_num_groups);
        let levels = channels.len();
        if levels == 0 || self.down_block_types.len() != levels || self.up_block_types.len() != levels {
            return Some("`block_out_channels`, `down_block_types` and `up_block_types` must be of one length".into());
        }
        if let Some(odd) = channels.iter().find(|&&c| c == 0 || groups == 0 || c % groups != 0) {
            return Some(format!("`norm_num_groups` {groups} does not divide the {odd} of `block_out_channels`"));
        }
        if levels > MOST_LEVELS {
            return Some(format!("`block_out_channels` has {levels} levels, more than {MOST_LEVELS}"));
        }
        if (self.in_channels, self.out_channels) != (3, 3) || self.latent_channels == 0 {
            return Some("`in_channels` and `out_channels` must be 3, and `latent_channels` not zero".into());
        }
        if self.latents_mean.is_some() || self.latents_std.is_some() {
            return Some("`latents_mean` and `latents_std` are not supported".into());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(change: &str) -> Result<VaeConfig> {
        let folder = tempfile::tempdir().unwrap();
        let whole = r#"{"_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [4, 8],
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"], "norm_num_groups": 4, "shift_factor": null}"#;
        let (from, to) = change.split_once("=>").unwrap_or_default();
        std::fs::write(folder.path().join("config.json"), whole.replace(from, to)).unwrap();
        VaeConfig::open(folder.path())
    }

    #[test]
    fn missing_options_have_the_defaults_of_diffusers() {
        let config = config("=>").unwrap();
        assert!(config.use_quant_conv && config.use_post_quant_conv && config.mid_block_add_attention);
        assert_eq!((config.latent_channels, config.layers_per_block, config.shift_factor), (4, 1, None));
    }

    #[test]
    fn unknown_classes_and_options_are_refused_by_name() {
        for (change, named) in [
            ("AutoencoderKL=>AutoencoderTiny", "AutoencoderTiny"),
            ("silu=>relu", "relu"),
            (r#"["DownEncoderBlock2D", =>["AttnDownEncoderBlock2D", "#, "AttnDownEncoderBlock2D"),
            ("[4, 8]=>[4, 6]", "the 6 of `block_out_channels`"),
            ("[4, 8]=>[4]", "one length"),
        ] {
            let error = config(change).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("config.json"), "{error}");
        }
    }
}

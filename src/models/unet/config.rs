//! `unet/config.json`.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Value, json};

use crate::{
    error::{Error, Result},
    weights::{read_config, read_json},
};

/// `unet/config.json`. Missing settings take the defaults of diffusers; settings that kiln does not know are refused.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct UNetConfig {
    /// The channels of `sample`: 4, or 8 for InstructPix2Pix, 9 for inpainting.
    pub in_channels: usize,
    /// The channels of the prediction.
    pub out_channels: usize,
    /// Height and width of the native latents; nothing in the network depends on it. Null or missing is that of Stable Diffusion 1; one
    /// number is both.
    #[serde(deserialize_with = "sides")]
    pub sample_size: [usize; 2],
    /// Whether the sample is mapped from [0, 1] to [-1, 1] first.
    pub center_input_sample: bool,
    /// The channels of each level, from full resolution down.
    pub block_out_channels: Vec<usize>,
    /// The kind of each level of the way down.
    pub down_block_types: Vec<DownBlockType>,
    /// The kind of the middle, at the lowest resolution; null is none.
    pub mid_block_type: Option<MidBlockType>,
    /// The kind of each level of the way up, which starts at the lowest resolution.
    pub up_block_types: Vec<UpBlockType>,
    /// Residual blocks in each level of the way down; the way up has one more in each.
    pub layers_per_block: PerLevel<usize>,
    /// Transformer blocks in each attention.
    pub transformer_layers_per_block: PerLevel<usize>,
    /// `N`, in spite of its name (diffusers#2011).
    pub attention_head_dim: PerLevel<usize>,
    /// Width of the text embeddings.
    #[serde(deserialize_with = "width")]
    pub cross_attention_dim: usize,
    /// Whether attention is computed in f32 in models of a lower precision.
    pub upcast_attention: bool,
    /// The number of groups of every group norm.
    pub norm_num_groups: usize,
    /// The epsilon of the group norms outside attention.
    pub norm_eps: f64,
    /// Whether cosines come before sines in the embedding of the timestep.
    pub flip_sin_to_cos: bool,
    /// Subtracted from the number of frequencies in their spacing.
    pub freq_shift: f64,
    /// Width of the embedded timestep; null is four times the channels of the first level.
    pub time_embedding_dim: Option<usize>,
    /// Size of the first convolution.
    pub conv_in_kernel: usize,
    /// Size of the last convolution.
    pub conv_out_kernel: usize,
}

/// A number for all levels, or one for each, from full resolution down.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected a number, or a list with one for each level")]
pub enum PerLevel<T> {
    /// The same at each.
    One(T),
    /// One for each.
    Each(Vec<T>),
}

impl<T: Copy> PerLevel<T> {
    /// The value of a level.
    pub fn at(&self, level: usize) -> T {
        match self {
            Self::One(value) => *value,
            Self::Each(values) => values[level],
        }
    }
}

/// The levels of the way down that kiln knows.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub enum DownBlockType {
    /// Residual blocks with attention.
    CrossAttnDownBlock2D,
    /// Residual blocks.
    DownBlock2D,
}

/// The middles that kiln knows.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub enum MidBlockType {
    /// Residual block, attention, residual block.
    UNetMidBlock2DCrossAttn,
}

/// The levels of the way up that kiln knows.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub enum UpBlockType {
    /// Residual blocks with attention.
    CrossAttnUpBlock2D,
    /// Residual blocks.
    UpBlock2D,
}

/// One width for the whole model, though it may be written once for each level.
fn width<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<usize, D::Error> {
    match PerLevel::deserialize(from)? {
        PerLevel::One(width) => Ok(width),
        PerLevel::Each(widths) => match widths.first() {
            Some(&first) if widths.iter().all(|&width| width == first) => Ok(first),
            _ => Err(D::Error::custom(format!("`cross_attention_dim` {widths:?} must be one width, that of the text"))),
        },
    }
}

/// None, one number for both sides, or height and width.
fn sides<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<[usize; 2], D::Error> {
    match Option::<PerLevel<usize>>::deserialize(from)? {
        None => Ok(UNetConfig::default().sample_size),
        Some(PerLevel::One(side)) => Ok([side; 2]),
        Some(PerLevel::Each(sides)) => sides.try_into().map_err(|sides| {
            D::Error::custom(format!("`sample_size` {sides:?} must be a number, or height and width"))
        }),
    }
}

impl Default for UNetConfig {
    fn default() -> Self {
        use {DownBlockType::*, UpBlockType::*};
        Self {
            in_channels: 4,
            out_channels: 4,
            sample_size: [64; 2],
            center_input_sample: false,
            block_out_channels: vec![320, 640, 1280, 1280],
            down_block_types: vec![CrossAttnDownBlock2D, CrossAttnDownBlock2D, CrossAttnDownBlock2D, DownBlock2D],
            mid_block_type: Some(MidBlockType::UNetMidBlock2DCrossAttn),
            up_block_types: vec![UpBlock2D, CrossAttnUpBlock2D, CrossAttnUpBlock2D, CrossAttnUpBlock2D],
            layers_per_block: PerLevel::One(2),
            transformer_layers_per_block: PerLevel::One(1),
            attention_head_dim: PerLevel::One(8),
            cross_attention_dim: 1280,
            upcast_attention: false,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            time_embedding_dim: None,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
        }
    }
}

/// Options of diffusers' class that the U-Nets of Stable Diffusion do not use: fields that must have one value, or be missing or
/// null.
fn fixed() -> [(&'static str, Value); 25] {
    [
        ("_class_name", json!("UNet2DConditionModel")),
        ("act_fn", json!("silu")),
        ("addition_embed_type", Value::Null),
        ("attention_type", json!("default")),
        ("class_embed_type", Value::Null),
        ("class_embeddings_concat", json!(false)),
        ("cross_attention_norm", Value::Null),
        ("downsample_padding", json!(1)),
        ("dropout", json!(0)),
        ("dual_cross_attention", json!(false)),
        ("encoder_hid_dim", Value::Null),
        ("encoder_hid_dim_type", Value::Null),
        ("mid_block_only_cross_attention", json!(false)),
        ("mid_block_scale_factor", json!(1)),
        ("num_attention_heads", Value::Null),
        ("num_class_embeds", Value::Null),
        ("only_cross_attention", json!(false)),
        ("resnet_out_scale_factor", json!(1)),
        ("resnet_skip_time_act", json!(false)),
        ("resnet_time_scale_shift", json!("default")),
        ("reverse_transformer_layers_per_block", Value::Null),
        ("time_cond_proj_dim", Value::Null),
        ("time_embedding_act_fn", Value::Null),
        ("time_embedding_type", json!("positional")),
        ("timestep_post_act", Value::Null),
    ]
}

/// More levels than any U-Net has: each halves the sides.
const MOST_LEVELS: usize = 8;

/// The fields of [`UNetConfig`], and what belongs to settings that must be off, or shows in the shapes of the weights.
const SETTINGS: [&str; 24] = [
    "in_channels",
    "out_channels",
    "sample_size",
    "center_input_sample",
    "block_out_channels",
    "down_block_types",
    "mid_block_type",
    "up_block_types",
    "layers_per_block",
    "transformer_layers_per_block",
    "attention_head_dim",
    "cross_attention_dim",
    "upcast_attention",
    "norm_num_groups",
    "norm_eps",
    "flip_sin_to_cos",
    "freq_shift",
    "time_embedding_dim",
    "conv_in_kernel",
    "conv_out_kernel",
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "use_linear_projection",
];

impl UNetConfig {
    /// Reads `config.json` of a `unet/` folder.
    ///
    /// # Errors
    /// The file is missing, or describes a model that kiln does not know.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::read(&folder.as_ref().join("config.json"))
            .map_err(|error| error.hint("kiln knows the U-Nets of Stable Diffusion 1.x and 2.x"))
    }

    fn read(path: &Path) -> Result<Self> {
        let fields: BTreeMap<String, Value> = read_json(path)?;
        let same = |a: &Value, b: &Value| a == b || a.as_f64().is_some_and(|a| b.as_f64() == Some(a));
        for (field, known) in fixed() {
            if let Some(found) = fields.get(field).filter(|found| !found.is_null() && !same(found, &known)) {
                return Err(Error::file(path, format!("`{field}` is {found}, which is not supported, only {known}")));
            }
        }
        let fixed = fixed().map(|(field, _)| field);
        let config: Self = read_config(path, &[&fixed[..], &SETTINGS].concat())?;
        config.problem().map_or(Ok(config), |problem| Err(Error::file(path, problem)))
    }

    fn problem(&self) -> Option<String> {
        let (channels, groups) = (&self.block_out_channels, self.norm_num_groups);
        let levels = channels.len();
        if levels > MOST_LEVELS {
            return Some(format!("`block_out_channels` has {levels} levels, more than {MOST_LEVELS}"));
        }
        if self.in_channels == 0 || self.out_channels == 0 || self.cross_attention_dim == 0 {
            return Some("`in_channels`, `out_channels` and `cross_attention_dim` must not be zero".into());
        }
        if levels == 0 || self.down_block_types.len() != levels || self.up_block_types.len() != levels {
            return Some("`block_out_channels`, `down_block_types` and `up_block_types` must be of one length".into());
        }
        for (field, values) in [
            ("layers_per_block", &self.layers_per_block),
            ("transformer_layers_per_block", &self.transformer_layers_per_block),
            ("attention_head_dim", &self.attention_head_dim),
        ] {
            if matches!(values, PerLevel::Each(values) if values.len() != levels) {
                return Some(format!("`{field}` must have one value for each of the {levels} `block_out_channels`"));
            }
            if (0..levels).any(|level| values.at(level) == 0) {
                return Some(format!("`{field}` must not be zero"));
            }
        }
        for (level, &channels) in channels.iter().enumerate() {
            let heads = self.attention_head_dim.at(level);
            for (field, divisor) in [("norm_num_groups", groups), ("attention_head_dim", heads)] {
                if channels == 0 || divisor == 0 || !channels.is_multiple_of(divisor) {
                    return Some(format!("`{field}` {divisor} does not divide the {channels} of `block_out_channels`"));
                }
            }
        }
        if !channels[0].is_multiple_of(2) {
            return Some(format!("the first of `block_out_channels`, {}, must be even", channels[0]));
        }
        if self.sample_size.contains(&0) {
            return Some("`sample_size` must not be zero".into());
        }
        let even = |kernel: usize| kernel.is_multiple_of(2);
        (even(self.conv_in_kernel) || even(self.conv_out_kernel))
            .then(|| "`conv_in_kernel` and `conv_out_kernel` must be odd".into())
    }

    /// Whether the network also takes latents of an image to edit (Brooks et al. 2023).
    pub fn edits(&self) -> bool {
        self.in_channels == 2 * self.out_channels
    }

    /// Width of the embedded timestep.
    pub fn time_width(&self) -> usize {
        self.time_embedding_dim.unwrap_or(4 * self.block_out_channels[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(change: &str) -> Result<UNetConfig> {
        let folder = tempfile::tempdir().unwrap();
        let whole = r#"{"_class_name": "UNet2DConditionModel", "act_fn": "silu", "block_out_channels": [8, 12],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "attention_head_dim": [2, 3], "dropout": 0.0,
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "norm_num_groups": 4, "class_embed_type": null}"#;
        let (from, to) = change.split_once("=>").unwrap_or_default();
        assert!(whole.contains(from), "{from}");
        std::fs::write(folder.path().join("config.json"), whole.replacen(from, to, 1)).unwrap();
        UNetConfig::open(folder.path())
    }

    #[test]
    fn missing_options_have_the_defaults_of_diffusers() {
        let config = config("=>").unwrap();
        assert_eq!((config.in_channels, config.layers_per_block.at(1), config.time_width()), (4, 2, 32));
        assert_eq!((config.attention_head_dim.at(1), config.cross_attention_dim), (3, 1280));
        assert_eq!(config.mid_block_type, Some(MidBlockType::UNetMidBlock2DCrossAttn));
    }

    #[test]
    fn numbers_may_be_given_for_each_level() {
        let widths = |list: &str| config(&format!("\"act_fn\"=>\"cross_attention_dim\": {list}, \"act_fn\""));
        assert_eq!(widths("[24, 24]").unwrap().cross_attention_dim, 24);
        assert!(widths("[24, 32]").unwrap_err().to_string().contains("`cross_attention_dim` [24, 32]"));
        assert!(config(r#""act_fn"=>"mid_block_type": null, "act_fn""#).unwrap().mid_block_type.is_none());
    }

    #[test]
    fn a_sample_size_may_have_two_sides_or_none() {
        let size =
            |size: &str| config(&format!("\"act_fn\"=>\"sample_size\": {size}, \"act_fn\"")).map(|c| c.sample_size);
        for (given, sides) in [("96", [96, 96]), ("[32, 48]", [32, 48]), ("null", [64, 64])] {
            assert_eq!(size(given).unwrap(), sides);
        }
        for wrong in ["[32]", "0", "[]"] {
            assert!(size(wrong).unwrap_err().to_string().contains("`sample_size`"), "{wrong}");
        }
    }

    #[test]
    fn unknown_classes_and_options_are_refused_by_name() {
        for (change, named) in [
            ("UNet2DConditionModel=>UNetMotionModel", "UNetMotionModel"),
            ("silu=>gelu", "`act_fn` is \"gelu\""),
            ("\"class_embed_type\": null=>\"class_embed_type\": \"timestep\"", "`class_embed_type` is \"timestep\""),
            ("\"class_embed_type\": null=>\"addition_embed_type\": \"text_time\"", "`addition_embed_type`"),
            ("\"dropout\": 0.0=>\"dropout\": 0.1", "`dropout` is 0.1"),
            ("[\"CrossAttnDownBlock2D\"=>[\"KDownBlock2D\"", "KDownBlock2D"),
            ("[2, 3]=>[2, 3, 4]", "`attention_head_dim` must have one value"),
            ("[2, 3]=>5", "`attention_head_dim` 5 does not divide the 8"),
            ("[2, 3]=>[2, 0]", "`attention_head_dim` must not be zero"),
            ("[8, 12]=>[8, 10]", "the 10 of `block_out_channels`"),
            ("[8, 12]=>[8]", "one length"),
        ] {
            let error = config(change).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("config.json"), "{error}");
            assert!(error.contains("Stable Diffusion 1.x and 2.x"), "{error}");
        }
    }
}

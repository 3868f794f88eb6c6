//! CLIP's text transformer (Radford et al. 2021), named like transformers' `CLIPTextModel`.

use std::path::Path;

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use serde::Deserialize;

use super::layer::{ClipActivation, Layer, LayerShape};
use crate::{
    error::{Error, Result},
    nn::{Embedding, LayerNorm, Linear, Linears, below},
    weights::{Weights, read_config},
};

/// `text_encoder/config.json`, or `text_config` of a whole CLIP model; what is missing takes transformers' values. Classes and
/// activations that kiln does not know are refused while reading.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// The transformers class.
    pub architectures: Option<Vec<ClipClass>>,
    /// The vocabulary size.
    pub vocab_size: usize,
    /// The width D.
    pub hidden_size: usize,
    /// The width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads N of each block.
    pub num_attention_heads: usize,
    /// The longest prompt, in tokens.
    pub max_position_embeddings: usize,
    /// The activation in the feed-forward part.
    pub hidden_act: ClipActivation,
    /// The epsilon of every layer norm.
    pub layer_norm_eps: f64,
    /// The id of the token of the pooled output; see [`ClipTextModel::forward`].
    pub eos_token_id: i64,
}

/// The text models kiln knows for `text_encoder/`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub enum ClipClass {
    /// Without a projection.
    #[serde(rename = "CLIPTextModel")]
    ClipTextModel,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            architectures: None,
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: ClipActivation::default(),
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

/// The fields of [`ClipTextConfig`], and what does not change what the model computes: training, and dtypes. The projection is
/// of a class of its own.
const SETTINGS: [&str; 23] = [
    "architectures",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "eos_token_id",
    "attention_dropout",
    "bos_token_id",
    "dropout",
    "dtype",
    "gradient_checkpointing",
    "initializer_factor",
    "initializer_range",
    "model_type",
    "pad_token_id",
    "projection_dim",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

impl ClipTextConfig {
    /// Reads `config.json` of a `text_encoder/` folder.
    ///
    /// # Errors
    /// The file is missing, or describes another model, or impossible sizes.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join("config.json");
        let config: Self = read_config(&path, &SETTINGS)?;
        config.layer().check().map_err(|problem| Error::file(path, problem))?;
        Ok(config)
    }

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
}

/// The text model of SD 1.x, SD 2.x and FLUX.1.
#[derive(Clone, Debug)]
pub struct ClipTextModel {
    /// Its configuration.
    pub config: ClipTextConfig,
    tokens: Embedding,
    positions: Embedding,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
}

/// The outputs of a CLIP text model for a batch of prompts.
#[derive(Clone, Debug)]
pub struct ClipOutput {
    /// After the last block and the final norm, `[B, L, D]`.
    pub last_hidden_state: Tensor<3>,
    /// The input of the last block, without the final norm ("clip skip 2"), `[B, L, D]`.
    pub hidden_state_before_last: Tensor<3>,
    /// The row of `last_hidden_state` at the end token, `[B, D]`.
    pub pooled: Tensor<2>,
}

impl ClipTextModel {
    /// Opens a `text_encoder/` folder. With `dtype`, the weights are converted to it.
    ///
    /// # Errors
    /// Files are missing, the config describes another model, or config and weights do not fit.
    pub fn open(folder: impl AsRef<Path>, device: &Device, dtype: Option<FloatDType>) -> Result<Self> {
        let config = ClipTextConfig::open(&folder)?;
        Weights::load_model(folder, device, dtype, |weights| Self::load(weights, config))
    }

    /// Takes the model's tensors, with or without the prefix `text_model`.
    pub fn load(weights: &Weights, config: ClipTextConfig) -> Self {
        let weights = weights.at_any(&["text_model", ""]);
        let width = config.hidden_size;
        // 0, 1, 2, …: a buffer that older releases of transformers saved.
        weights.ignore("embeddings.position_ids");
        Self {
            tokens: Embedding::load(&weights.at("embeddings.token_embedding"), config.vocab_size, width),
            positions: Embedding::load(
                &weights.at("embeddings.position_embedding"),
                config.max_position_embeddings,
                width,
            ),
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::load(&weights.at(format!("encoder.layers.{i}")), config.layer()))
                .collect(),
            final_norm: LayerNorm::load(&weights.at("final_layer_norm"), width, config.layer_norm_eps),
            config,
        }
    }

    /// Encodes token ids, all of one length. Attention is causal, including padding.
    ///
    /// The pooled output is taken at the first end token. Published configs say `"eos_token_id": 2` where the real one is
    /// the highest id of the vocabulary; transformers takes such a 2 to mean "the highest id of the prompt", and so do we.
    pub fn forward(&self, ids: &[&[i64]]) -> ClipOutput {
        let (batch, length, width) = (ids.len(), ids.first().map_or(0, |ids| ids.len()), self.config.hidden_size);
        let places: Vec<i64> = (0..length as i64).collect();
        let mut x = self.tokens.forward(&ids.concat()).reshape([batch, length, width])
            + self.positions.forward(&places).unsqueeze();
        let mask = causal_mask(length, &x.device());
        let mut before_last = x.clone();
        for layer in &self.layers {
            before_last = x.clone();
            x = layer.forward(x, Some(mask.clone()));
        }
        let last_hidden_state = self.final_norm.forward(x);
        let ends = ids.iter().enumerate().map(|(i, ids)| (i * length + self.end_position(ids)) as i64);
        let ends = Tensor::<1, Int>::from_data(
            TensorData::new(ends.collect::<Vec<_>>(), [batch]),
            &last_hidden_state.device(),
        );
        ClipOutput {
            pooled: last_hidden_state.clone().reshape([batch * length, width]).select(0, ends),
            last_hidden_state,
            hidden_state_before_last: before_last,
        }
    }

    fn end_position(&self, ids: &[i64]) -> usize {
        let end = match self.config.eos_token_id {
            2 => ids.iter().copied().max(),
            end => Some(end),
        };
        ids.iter().position(|&id| Some(id) == end).unwrap_or(0)
    }
}

/// Names are those of checkpoints without `text_model.`, which only some have.
impl Linears for ClipTextModel {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.linears(&below(path, &format!("encoder.layers.{i}")), visit);
        }
    }
}

/// Minus infinity where a key comes after its query, `[1, 1, L, L]`.
fn causal_mask(length: usize, device: &Device) -> Tensor<4> {
    let row = |query: usize| (0..length).map(move |key| if key > query { f32::NEG_INFINITY } else { 0.0 });
    let mask: Vec<f32> = (0..length).flat_map(row).collect();
    Tensor::from_data(TensorData::new(mask, [1, 1, length, length]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Seed;

    fn model(change: &str) -> ClipTextModel {
        let mut config: serde_json::Value = serde_json::from_str(
            r#"{"vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
                "num_attention_heads": 2, "max_position_embeddings": 5, "eos_token_id": 2}"#,
        )
        .unwrap();
        let change: serde_json::Value = serde_json::from_str(change).unwrap();
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let weights = Weights::random(Seed(1), &Device::flex(), None);
        ClipTextModel::load(&weights, serde_json::from_value(config).unwrap())
    }

    #[test]
    fn pooling_takes_the_highest_id_or_the_first_end_token() {
        let ids = [5, 7, 19, 6, 19];
        assert_eq!(model("{}").end_position(&ids), 2);
        assert_eq!(model(r#"{"eos_token_id": 6}"#).end_position(&ids), 3);
        let output = model("{}").forward(&[&ids]);
        output
            .pooled
            .into_data()
            .assert_eq(&output.last_hidden_state.narrow(1, 2, 1).reshape([1, 8]).into_data(), true);
    }

    #[test]
    fn tokens_do_not_see_those_after_them() {
        let state = |ids: &[i64]| model("{}").forward(&[ids]).last_hidden_state.narrow(1, 0, 3).into_data();
        state(&[1, 2, 3, 4, 5]).assert_eq(&state(&[1, 2, 3, 9, 9]), true);
    }

    #[test]
    fn other_classes_and_activations_are_refused_by_name() {
        for (class, activation) in [("CLIPTextModelWithProjection", "gelu"), ("CLIPTextModel", "relu6")] {
            let folder = tempfile::tempdir().unwrap();
            let config = format!(r#"{{"architectures": ["{class}"], "hidden_act": "{activation}"}}"#);
            std::fs::write(folder.path().join("config.json"), config).unwrap();
            let error = ClipTextModel::open(folder.path(), &Device::flex(), None).unwrap_err().to_string();
            let named = if activation == "gelu" { class } else { activation };
            assert!(error.contains(named) && error.contains("config.json"), "{error}");
        }
    }

    #[test]
    fn activations_differ() {
        let state = |change: &str| {
            let output = model(change).forward(&[&[1, 2, 3]]);
            output.last_hidden_state.into_data().into_vec::<f32>().unwrap()
        };
        assert_ne!(state(r#"{"hidden_act": "quick_gelu"}"#), state(r#"{"hidden_act": "gelu"}"#));
    }
}

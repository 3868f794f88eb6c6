//! The encoder half of T5 (Raffel et al. 2020), named like transformers' `T5EncoderModel`.

use std::path::Path;

use burn::tensor::{Device, FloatDType, Tensor, activation};
use serde::Deserialize;

use super::TextSizes;
use crate::{
    error::{Error, Result},
    kernels,
    lending::{Lender, Part, Residence},
    models::{heads, join_heads},
    nn::{Adapters, Embedding, Linear, Linears, Parameter, Parameters, RmsNorm, below},
    weights::{Weights, read_config},
};

/// `text_encoder_2/config.json`. Other models and unknown feed-forward parts are refused while reading.
#[derive(Clone, Debug, Deserialize)]
pub struct T5Config {
    /// The family of models.
    pub model_type: T5Type,
    /// The vocabulary size.
    pub vocab_size: usize,
    /// The width D.
    pub d_model: usize,
    /// The size K of a head; heads times this need not be the width.
    pub d_kv: usize,
    /// The width inside the feed-forward part.
    pub d_ff: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Heads N of each block.
    pub num_heads: usize,
    /// The number of buckets of relative positions.
    #[serde(default = "buckets")]
    pub relative_attention_num_buckets: usize,
    /// The distance from which on all positions are in one bucket.
    #[serde(default = "distance")]
    pub relative_attention_max_distance: usize,
    /// The epsilon of every norm.
    #[serde(default = "epsilon")]
    pub layer_norm_epsilon: f64,
    /// The kind of feed-forward part.
    #[serde(default)]
    pub feed_forward_proj: FeedForwardKind,
}

/// The families kiln knows.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum T5Type {
    /// T5 and T5 v1.1.
    T5,
}

/// The feed-forward parts of T5 models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeedForwardKind {
    /// `relu(x·W)`: the first T5.
    #[default]
    Relu,
    /// `gelu(x·W₀)·(x·W₁)`: T5 v1.1, which FLUX.1 uses.
    GatedGelu,
}

fn buckets() -> usize {
    32
}
fn distance() -> usize {
    128
}
fn epsilon() -> f64 {
    1e-6
}

/// The second text encoder of FLUX.1.
#[derive(Clone, Debug)]
pub struct T5Encoder {
    /// Its configuration.
    pub config: T5Config,
    tokens: Embedding,
    distances: Embedding,
    layers: Lender<Layer>,
    final_norm: RmsNorm,
    /// The bytes of the resident part.
    rest: u64,
    /// The adapters of the blocks.
    adapters: Adapters,
}

/// The fields of [`T5Config`], and what does not change what the encoder computes: the decoder, training, and dtypes.
const SETTINGS: [&str; 34] = [
    "model_type",
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
    "feed_forward_proj",
    "architectures",
    "classifier_dropout",
    "decoder_start_token_id",
    "dense_act_fn",
    "dropout_rate",
    "dtype",
    "eos_token_id",
    "gradient_checkpointing",
    "initializer_factor",
    "is_decoder",
    "is_encoder_decoder",
    "is_gated_act",
    "n_positions",
    "num_decoder_layers",
    "output_past",
    "pad_token_id",
    "scale_decoder_outputs",
    "task_specific_params",
    "tie_word_embeddings",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

impl T5Config {
    /// Reads `config.json` of a `text_encoder_2/` folder.
    ///
    /// # Errors
    /// The file is missing, or describes a model that kiln does not know, or impossible sizes.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join("config.json");
        let config: Self = read_config(&path, &SETTINGS)?;
        let Self { relative_attention_num_buckets: buckets, relative_attention_max_distance: distance, .. } = config;
        let problem = if [config.vocab_size, config.d_model, config.d_kv, config.d_ff, config.num_heads].contains(&0) {
            "`vocab_size`, `d_model`, `d_kv`, `d_ff` and `num_heads` must not be zero"
        } else if buckets < 4 || distance <= buckets / 4 {
            "`relative_attention_num_buckets` must be at least 4, and `relative_attention_max_distance` above a quarter of it"
        } else {
            return Ok(config);
        };
        Err(Error::file(path, problem))
    }
}

impl T5Encoder {
    /// Opens a `text_encoder_2/` folder. With `dtype`, the weights are converted to it.
    ///
    /// # Errors
    /// Files are missing, the config describes another model, or config and weights do not fit.
    pub fn open(folder: impl AsRef<Path>, device: &Device, dtype: Option<FloatDType>) -> Result<Self> {
        Self::open_as(Residence::Resident, folder, device, dtype)
    }

    /// The same with unused blocks where `residence` says.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_as(
        residence: Residence,
        folder: impl AsRef<Path>,
        device: &Device,
        dtype: Option<FloatDType>,
    ) -> Result<Self> {
        let config = T5Config::open(&folder)?;
        Weights::load_model(folder, device, dtype, |weights| Self::load(weights, config, residence))
    }

    /// The bytes of the encoder in a folder on the device, from its headers.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn sizes(folder: &Path, device: &Device, dtype: FloatDType) -> Result<TextSizes> {
        let config = T5Config::open(folder)?;
        let unread = |weights: &Weights| Self::load(&weights.unread(), config, Residence::Streamed);
        let model = Weights::load_model(folder, device, Some(dtype), unread)?;
        Ok(TextSizes { kept: model.rest, blocks: model.layers.sizes() })
    }

    /// Takes the model's tensors. Files name the token table `shared`, `encoder.embed_tokens` or, as two copies, both.
    pub fn load(weights: &Weights, config: T5Config, residence: Residence) -> Self {
        let tokens = weights.at_any(&["shared", "encoder.embed_tokens"]);
        weights.ignore("encoder.embed_tokens.weight");
        let distances = weights.at("encoder.block.0.layer.0.SelfAttention.relative_attention_bias");
        let tokens = Embedding::load(&tokens, config.vocab_size, config.d_model);
        let distances = Embedding::load(&distances, config.relative_attention_num_buckets, config.num_heads);
        let norm = weights.at("encoder.final_layer_norm");
        let final_norm = RmsNorm::load(&norm, config.d_model, config.layer_norm_epsilon);
        let (rest, of) = (weights.bytes(), config.clone());
        let load = move |weights: &Weights, index| Layer::load(weights, &of, index);
        let layers = Lender::new(weights, residence, config.num_layers, load);
        Self { tokens, distances, layers, final_norm, rest, config, adapters: Adapters::default() }
    }

    /// Attaches adapters, in place of the previous ones.
    pub fn wear(&mut self, adapters: Adapters) {
        self.adapters = adapters;
    }

    /// Encodes token ids, all of one length, to `[B, L, D]`; padding is attended to, as in FLUX.1's training.
    pub fn forward(&self, ids: &[&[i64]]) -> Tensor<3> {
        let (batch, length) = (ids.len(), ids.first().map_or(0, |ids| ids.len()));
        let mut x = self.tokens.forward(&ids.concat()).reshape([batch, length, self.config.d_model]);
        let bias = self.position_bias(length);
        for layer in self.layers.walk(0..self.layers.len(), Some(&self.adapters)) {
            x = layer.forward(x, bias.clone());
        }
        self.final_norm.forward(x)
    }

    /// The relative position bias of every block's attention scores, in f32: `[1, N, L, L]`.
    fn position_bias(&self, length: usize) -> Tensor<4> {
        let kind = |query: i64, key: i64| {
            let (count, far) =
                (self.config.relative_attention_num_buckets, self.config.relative_attention_max_distance);
            bucket(key - query, count, far)
        };
        let length_i64 = length as i64;
        let kinds: Vec<i64> = (0..length_i64).flat_map(|q| (0..length_i64).map(move |k| kind(q, k))).collect();
        let bias = self.distances.forward(&kinds).cast(FloatDType::F32);
        bias.reshape([1, length, length, self.config.num_heads]).permute([0, 3, 1, 2])
    }
}

/// # Panics
/// Its blocks are streamed.
impl Linears for T5Encoder {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        for layer in self.layers.parts_mut() {
            let name = below(path, layer.name());
            layer.linears(&name, visit);
        }
    }
}

/// The bucket of the distance `offset` (key minus query): half of the `count` buckets are for keys after the query; each half has one
/// bucket for each of the nearest distances, then buckets that grow logarithmically up to distance `far`.
fn bucket(offset: i64, count: usize, far: usize) -> i64 {
    let half = count as i64 / 2;
    let exact = half / 2;
    let distance = offset.abs();
    let kind = if distance < exact {
        distance
    } else {
        // In f32 as in transformers, so that distances on a border fall into the same bucket.
        let steps = (distance as f32 / exact as f32).ln() / (far as f64 / exact as f64).ln() as f32;
        (exact + (steps * (half - exact) as f32) as i64).min(half - 1)
    };
    kind + if offset > 0 { half } else { 0 }
}

/// Attention, then a feed-forward part, each with a norm before it and added to its input. No biases.
#[derive(Clone, Debug)]
struct Layer {
    name: String,
    norm1: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    norm2: RmsNorm,
    /// `wi_0`, whose activation the rest is multiplied with; of gated feed-forward parts only.
    gate: Option<Linear>,
    /// `wi_1` of gated feed-forward parts, else `wi`.
    wi: Linear,
    wo: Linear,
    heads: usize,
}

impl Layer {
    fn load(weights: &Weights, config: &T5Config, index: usize) -> Self {
        let name = format!("encoder.block.{index}.layer");
        let weights = &weights.at(&name);
        let (width, inner, hidden) = (config.d_model, config.num_heads * config.d_kv, config.d_ff);
        let (attention, dense) = (weights.at("0.SelfAttention"), weights.at("1.DenseReluDense"));
        let gated = config.feed_forward_proj == FeedForwardKind::GatedGelu;
        let widen = |name: &str| Linear::load_without_bias(&dense.at(name), width, hidden);
        let norm = |name: &str| RmsNorm::load(&weights.at(name), width, config.layer_norm_epsilon);
        Self {
            name,
            norm1: norm("0.layer_norm"),
            q: Linear::load_without_bias(&attention.at("q"), width, inner),
            k: Linear::load_without_bias(&attention.at("k"), width, inner),
            v: Linear::load_without_bias(&attention.at("v"), width, inner),
            o: Linear::load_without_bias(&attention.at("o"), inner, width),
            norm2: norm("1.layer_norm"),
            gate: gated.then(|| widen("wi_0")),
            wi: widen(if gated { "wi_1" } else { "wi" }),
            wo: Linear::load_without_bias(&dense.at("wo"), hidden, width),
            heads: config.num_heads,
        }
    }

    /// `[B, L, D]` → `[B, L, D]`.
    fn forward(&self, x: Tensor<3>, bias: Tensor<4>) -> Tensor<3> {
        let h = self.norm1.forward(x.clone());
        let head = |linear: &Linear| heads(linear.forward(h.clone()), self.heads);
        // Scores are not divided by √K, which T5's initialization accounts for.
        let h = kernels::attention_biased(head(&self.q), head(&self.k), head(&self.v), Some(bias), 1.0);
        let x = x + self.o.forward(join_heads(h));
        let h = self.norm2.forward(x.clone());
        let wide = self.wi.forward(h.clone());
        let h = match &self.gate {
            Some(gate) => kernels::gelu_tanh(gate.forward(h)) * wide,
            None => activation::relu(wide),
        };
        x + self.wo.forward(h)
    }
}

impl Part for Layer {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Linears for Layer {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        let Self { q, k, v, o, .. } = self;
        for (name, layer) in [("q", q), ("k", k), ("v", v), ("o", o)] {
            visit(&format!("{path}.0.SelfAttention.{name}"), layer);
        }
        let wi = if self.gate.is_some() { "wi_1" } else { "wi" };
        let gate = self.gate.as_mut().map(|gate| ("wi_0", gate));
        for (name, layer) in gate.into_iter().chain([(wi, &mut self.wi), ("wo", &mut self.wo)]) {
            visit(&format!("{path}.1.DenseReluDense.{name}"), layer);
        }
    }
}

/// It is not trained.
impl Parameters for Layer {
    fn parameters(&mut self, _: &str, _: &mut dyn FnMut(&str, Parameter<'_>)) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_change_kind_where_they_do_in_transformers() {
        let kinds: Vec<i64> = (0..600).map(|distance| bucket(-distance, 32, 128)).collect();
        let starts: Vec<usize> = (1..600).filter(|&d| kinds[d] != kinds[d - 1]).collect();
        assert_eq!(starts, [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]);
        assert_eq!((kinds[0], kinds[599]), (0, 15));
        assert_eq!((bucket(1, 32, 128), bucket(599, 32, 128)), (17, 31));
    }

    #[test]
    fn other_families_and_feed_forward_parts_are_refused_by_name() {
        for (kind, feed_forward, named) in [("umt5", "relu", "umt5"), ("t5", "gated-silu", "gated-silu")] {
            let config = format!(
                r#"{{"model_type": "{kind}", "feed_forward_proj": "{feed_forward}", "vocab_size": 9, "d_model": 4,
                    "d_kv": 2, "d_ff": 4, "num_layers": 1, "num_heads": 2}}"#
            );
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("config.json"), config).unwrap();
            let error = T5Encoder::open(folder.path(), &Device::flex(), None).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("config.json"), "{error}");
        }
    }
}

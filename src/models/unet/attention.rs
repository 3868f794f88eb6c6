//! The spatial transformer: self-attention over the positions of an image, and cross-attention to the text.

use burn::tensor::{FloatDType, Tensor};

use super::UNetConfig;
use crate::{
    kernels,
    limits::Limits,
    models::{by_tokens, heads, join_heads},
    nn::{GroupNorm, LayerNorm, Linear, Linears, Parameter, Parameters},
    weights::Weights,
};

/// The epsilon of the group norm before an attention, which is not in the configuration.
const GROUP_EPSILON: f64 = 1e-6;

/// The epsilon of the layer norms, which is not in the configuration.
const LAYER_EPSILON: f64 = 1e-5;

/// Attention with projections before and after it.
#[derive(Clone, Debug)]
struct Attention {
    /// Heads, and projections of queries, keys, values and output.
    layers: [Linear; 4],
    heads: usize,
    upcast: bool,
}

impl Attention {
    const NAMES: [&str; 4] = ["to_q", "to_k", "to_v", "to_out.0"];

    /// `width` is that of the queries' input, `source` that of keys and values.
    fn load(weights: &Weights, config: &UNetConfig, level: usize, width: usize, source: usize) -> Self {
        let [q, k, v, out] = Self::NAMES.map(|name| weights.at(name));
        let plain = Linear::load_without_bias;
        Self {
            layers: [
                plain(&q, width, width),
                plain(&k, source, width),
                plain(&v, source, width),
                Linear::load(&out, width, width),
            ],
            heads: config.attention_head_dim.at(level),
            upcast: config.upcast_attention,
        }
    }

    /// `x` `[B, L, D]`, `source` `[B, S, E]` → `[B, L, D]`.
    fn forward(&self, x: Tensor<3>, source: Tensor<3>, limits: &Limits) -> Tensor<3> {
        let dtype: FloatDType = x.dtype().into();
        let [q, k, v, out] = &self.layers;
        let head = |y: Tensor<3>| {
            let y = heads(y, self.heads);
            if self.upcast { y.cast(FloatDType::F32) } else { y }
        };
        let (q, k, v) = (q.forward(x), k.forward(source.clone()), v.forward(source));
        let y = kernels::attention_within(head(q), head(k), head(v), limits.attention_scores);
        out.forward(join_heads(y).cast(dtype))
    }
}

impl Linears for Attention {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        for (name, layer) in Self::NAMES.iter().zip(&mut self.layers) {
            visit(&format!("{path}.{name}"), layer);
        }
    }
}

/// Self-attention, cross-attention to the text, feed-forward; each with a norm before it and added to its input.
#[derive(Clone, Debug)]
struct Block {
    norms: [LayerNorm; 3],
    attn1: Attention,
    attn2: Attention,
    feed_forward: [Linear; 2],
}

impl Block {
    fn load(weights: &Weights, config: &UNetConfig, level: usize, width: usize) -> Self {
        let attention = |name, source| Attention::load(&weights.at(name), config, level, width, source);
        let inner = 4 * width;
        Self {
            norms: ["norm1", "norm2", "norm3"].map(|name| LayerNorm::load(&weights.at(name), width, LAYER_EPSILON)),
            attn1: attention("attn1", width),
            attn2: attention("attn2", config.cross_attention_dim),
            feed_forward: [
                Linear::load(&weights.at("ff.net.0.proj"), width, 2 * inner),
                Linear::load(&weights.at("ff.net.2"), inner, width),
            ],
        }
    }

    /// `x` `[B, L, D]`, `text` `[B, T, E]` → `[B, L, D]`.
    fn forward(&self, x: Tensor<3>, text: Tensor<3>, limits: &Limits) -> Tensor<3> {
        let y = self.norms[0].forward(x.clone());
        let x = self.attn1.forward(y.clone(), y, limits) + x;
        let x = self.attn2.forward(self.norms[1].forward(x.clone()), text, limits) + x;
        let [widen, narrow] = &self.feed_forward;
        let feed_forward = |y| narrow.forward(kernels::geglu(widen.forward(y)));
        by_tokens(self.norms[2].forward(x.clone()), limits, [widen, narrow], feed_forward) + x
    }
}

impl Linears for Block {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        self.attn1.linears(&format!("{path}.attn1"), visit);
        self.attn2.linears(&format!("{path}.attn2"), visit);
        let [first, second] = &mut self.feed_forward;
        visit(&format!("{path}.ff.net.0.proj"), first);
        visit(&format!("{path}.ff.net.2"), second);
    }
}

impl Parameters for Block {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        for (i, norm) in self.norms.iter_mut().enumerate() {
            norm.parameters(&format!("{path}.norm{}", i + 1), visit);
        }
        self.linears(path, &mut |name, layer| layer.parameters(name, visit));
    }
}

/// Transformer blocks over the positions of an image, with a projection on either side, added to the input
/// (`Transformer2DModel`). The checkpoints of SD 1.x store the projections as 1×1 convolutions, those of SD 2.x do not
/// (`use_linear_projection`); the maths is the same.
#[derive(Clone, Debug)]
pub(super) struct SpatialTransformer {
    norm: GroupNorm,
    proj_in: Linear,
    blocks: Vec<Block>,
    proj_out: Linear,
}

impl SpatialTransformer {
    /// With the channels, heads and blocks of `level`.
    pub(super) fn load(weights: &Weights, config: &UNetConfig, level: usize) -> Self {
        let channels = config.block_out_channels[level];
        let projection = |name| Linear::load(&weights.at(name), channels, channels);
        let block = |i| Block::load(&weights.at(format!("transformer_blocks.{i}")), config, level, channels);
        Self {
            norm: GroupNorm::load(&weights.at("norm"), channels, config.norm_num_groups, GROUP_EPSILON),
            proj_in: projection("proj_in"),
            blocks: (0..config.transformer_layers_per_block.at(level)).map(block).collect(),
            proj_out: projection("proj_out"),
        }
    }

    /// `x` `[B, C, h, w]`, `text` `[B, T, E]` → `[B, C, h, w]`.
    pub(super) fn forward(&self, x: Tensor<4>, text: &Tensor<3>, limits: &Limits) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let y = self.norm.forward(x.clone()).reshape([batch, channels, height * width]).swap_dims(1, 2);
        let y = self.blocks.iter().fold(self.proj_in.forward(y), |y, block| block.forward(y, text.clone(), limits));
        self.proj_out.forward(y).swap_dims(1, 2).reshape([batch, channels, height, width]) + x
    }
}

impl Linears for SpatialTransformer {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        visit(&format!("{path}.proj_in"), &mut self.proj_in);
        for (i, block) in self.blocks.iter_mut().enumerate() {
            block.linears(&format!("{path}.transformer_blocks.{i}"), visit);
        }
        visit(&format!("{path}.proj_out"), &mut self.proj_out);
    }
}

impl Parameters for SpatialTransformer {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        self.norm.parameters(&format!("{path}.norm"), visit);
        self.proj_in.parameters(&format!("{path}.proj_in"), visit);
        for (i, block) in self.blocks.iter_mut().enumerate() {
            block.parameters(&format!("{path}.transformer_blocks.{i}"), visit);
        }
        self.proj_out.parameters(&format!("{path}.proj_out"), visit);
    }
}

//! The transformer block that CLIP's two towers share, named like transformers' `CLIPEncoderLayer`.

use burn::tensor::{Tensor, activation};
use serde::Deserialize;

use crate::{
    kernels,
    models::{heads, join_heads},
    nn::{LayerNorm, Linear, Linears},
    weights::Weights,
};

/// The activations of CLIP models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipActivation {
    /// `x·sigmoid(1.702·x)`: OpenAI's models (SD 1.x, FLUX.1).
    #[default]
    QuickGelu,
    /// `x·Φ(x)`: OpenCLIP's models (SD 2.x).
    Gelu,
}

/// The common configuration of a tower's blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerShape {
    /// D.
    pub width: usize,
    /// The width inside the feed-forward part.
    pub inner: usize,
    /// N, which divides the width.
    pub heads: usize,
    /// The activation in the feed-forward part.
    pub activation: ClipActivation,
    /// The epsilon of every layer norm.
    pub epsilon: f64,
}

impl LayerShape {
    /// # Errors
    /// The heads do not divide the width.
    pub fn check(&self) -> Result<(), &'static str> {
        match self.heads > 0 && self.width > 0 && self.width.is_multiple_of(self.heads) {
            true => Ok(()),
            false => Err("`num_attention_heads` does not divide `hidden_size`"),
        }
    }
}

/// Attention, then a feed-forward part, each with a norm before it and added to its input.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    activation: ClipActivation,
}

impl Layer {
    pub fn load(weights: &Weights, shape: LayerShape) -> Self {
        let LayerShape { width, inner, heads, activation, epsilon } = shape;
        let projection = |name: &str| Linear::load(&weights.at(format!("self_attn.{name}")), width, width);
        Self {
            norm1: LayerNorm::load(&weights.at("layer_norm1"), width, epsilon),
            q_proj: projection("q_proj"),
            k_proj: projection("k_proj"),
            v_proj: projection("v_proj"),
            out_proj: projection("out_proj"),
            norm2: LayerNorm::load(&weights.at("layer_norm2"), width, epsilon),
            fc1: Linear::load(&weights.at("mlp.fc1"), width, inner),
            fc2: Linear::load(&weights.at("mlp.fc2"), inner, width),
            heads,
            activation,
        }
    }

    /// `[B, L, D]` → `[B, L, D]`; `mask` `[1, 1, L, L]` is added to the scores, and without it every token sees every other.
    pub fn forward(&self, x: Tensor<3>, mask: Option<Tensor<4>>) -> Tensor<3> {
        let h = self.norm1.forward(x.clone());
        let head = |linear: &Linear| heads(linear.forward(h.clone()), self.heads);
        let (q, k, v) = (head(&self.q_proj), head(&self.k_proj), head(&self.v_proj));
        let h = match mask {
            Some(mask) => {
                let scale = 1.0 / (q.dims()[3] as f64).sqrt();
                kernels::attention_biased(q, k, v, Some(mask), scale)
            }
            None => kernels::attention(q, k, v),
        };
        let x = x + self.out_proj.forward(join_heads(h));
        let h = self.fc1.forward(self.norm2.forward(x.clone()));
        let h = match self.activation {
            ClipActivation::QuickGelu => h.clone() * activation::sigmoid(h * 1.702),
            ClipActivation::Gelu => activation::gelu(h),
        };
        x + self.fc2.forward(h)
    }
}

impl Linears for Layer {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        for (name, layer) in [
            ("self_attn.q_proj", &mut self.q_proj),
            ("self_attn.k_proj", &mut self.k_proj),
            ("self_attn.v_proj", &mut self.v_proj),
            ("self_attn.out_proj", &mut self.out_proj),
            ("mlp.fc1", &mut self.fc1),
            ("mlp.fc2", &mut self.fc2),
        ] {
            visit(&format!("{path}.{name}"), layer);
        }
    }
}

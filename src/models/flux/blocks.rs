//! The two kinds of transformer block.

use std::ops::Range;

use burn::tensor::Tensor;

use super::{FluxConfig, rope::Rope};
use crate::{
    kernels::{attention_within, gated_add, layer_norm_modulate, rms_norm_rope},
    limits::Limits,
    models::{by_tokens, join_heads, token_parts},
    nn::{Linear, Linears, Parameter, Parameters},
    weights::Weights,
};

/// The epsilon of every norm in the transformer.
pub(super) const EPSILON: f64 = 1e-6;

/// The queries, keys and values of one stream: three projections and the norms of queries and keys.
#[derive(Clone, Debug)]
struct Qkv {
    names: [&'static str; 3],
    norm_names: [&'static str; 2],
    project: [Linear; 3],
    query_norm: Tensor<1>,
    key_norm: Tensor<1>,
    heads: usize,
}

/// The stream, which decides the names of tensors.
const IMAGE: ([&str; 3], [&str; 2]) = (["to_q", "to_k", "to_v"], ["norm_q", "norm_k"]);
const TEXT: ([&str; 3], [&str; 2]) = (["add_q_proj", "add_k_proj", "add_v_proj"], ["norm_added_q", "norm_added_k"]);

impl Qkv {
    fn load(weights: &Weights, config: &FluxConfig, (names, norms): ([&'static str; 3], [&'static str; 2])) -> Self {
        let width = config.width();
        let norm = |name: &str| weights.at(name).tensor("weight", [config.attention_head_dim]);
        Self {
            names,
            norm_names: norms,
            project: names.map(|name| Linear::load(&weights.at(name), width, width)),
            query_norm: norm(norms[0]),
            key_norm: norm(norms[1]),
            heads: config.num_attention_heads,
        }
    }

    /// `x` `[B, L, D]` → three times `[B, N, L, K]`, queries and keys rotated by `rope`.
    fn forward(&self, x: Tensor<3>, rope: &Rope) -> [Tensor<4>; 3] {
        let [batch, tokens, width] = x.dims();
        let heads = |y: Tensor<3>| y.reshape([batch, tokens, self.heads, width / self.heads]);
        let turn = |y: Tensor<4>, norm: &Tensor<1>| {
            rms_norm_rope(y, norm.clone(), rope.cos.clone(), rope.sin.clone(), EPSILON)
        };
        let [q, k, v] = [0, 1, 2].map(|i| heads(self.project[i].forward(x.clone())));
        [turn(q, &self.query_norm), turn(k, &self.key_norm), v.swap_dims(1, 2)]
    }

    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        for (name, layer) in self.names.iter().zip(&mut self.project) {
            visit(&format!("{path}.{name}"), layer);
        }
    }

    /// The weights of its norms.
    fn norms(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        for (name, weight) in self.norm_names.iter().zip([&mut self.query_norm, &mut self.key_norm]) {
            visit(&format!("{path}.{name}.weight"), Parameter::Vector(weight));
        }
    }
}

/// A linear layer makes `count` modulation vectors `[B, D]` out of `vec` `[B, D]`.
fn modulation(linear: &Linear, vec: &Tensor<2>, count: usize) -> Vec<Tensor<2>> {
    linear.forward(vec.clone()).chunk(count, 1)
}

/// The weights of one stream of a double block.
#[derive(Clone, Debug)]
struct Stream {
    names: [&'static str; 4],
    norm1: Linear,
    qkv: Qkv,
    to_out: Linear,
    feed_forward: [Linear; 2],
}

impl Stream {
    fn load(weights: &Weights, config: &FluxConfig, image: bool) -> Self {
        let names = match image {
            true => ["norm1.linear", "attn.to_out.0", "ff.net.0.proj", "ff.net.2"],
            false => ["norm1_context.linear", "attn.to_add_out", "ff_context.net.0.proj", "ff_context.net.2"],
        };
        let width = config.width();
        let linear = |i: usize, inputs, outputs| Linear::load(&weights.at(names[i]), inputs, outputs);
        Self {
            names,
            norm1: linear(0, width, 6 * width),
            qkv: Qkv::load(&weights.at("attn"), config, if image { IMAGE } else { TEXT }),
            to_out: linear(1, width, width),
            feed_forward: [linear(2, width, 4 * width), linear(3, 4 * width, width)],
        }
    }

    /// The second half of the block: `x` plus the attention's result plus the feed-forward's. `modulation` are the last
    /// four of the six vectors.
    fn finish(&self, x: Tensor<3>, attended: Tensor<3>, modulation: &[Tensor<2>], limits: &Limits) -> Tensor<3> {
        let [attention_gate, shift, scale, gate] = [0, 1, 2, 3].map(|i| modulation[i].clone());
        let x = gated_add(x, attention_gate, self.to_out.forward(attended));
        let normed = layer_norm_modulate(x.clone(), shift, scale, EPSILON);
        let [widen, narrow] = &self.feed_forward;
        let y = by_tokens(normed, limits, [widen, narrow], |x| narrow.forward(widen.forward_gelu(x)));
        gated_add(x, gate, y)
    }

    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        visit(&format!("{path}.{}", self.names[0]), &mut self.norm1);
        self.qkv.linears(&format!("{path}.attn"), visit);
        visit(&format!("{path}.{}", self.names[1]), &mut self.to_out);
        for (name, layer) in self.names[2..].iter().zip(&mut self.feed_forward) {
            visit(&format!("{path}.{name}"), layer);
        }
    }
}

/// `transformer_blocks.N`: text and image keep weights of their own and meet in one attention.
#[derive(Clone, Debug)]
pub struct DoubleBlock {
    img: Stream,
    txt: Stream,
}

impl DoubleBlock {
    pub(super) fn load(weights: &Weights, config: &FluxConfig) -> Self {
        Self { img: Stream::load(weights, config, true), txt: Stream::load(weights, config, false) }
    }

    /// `img` `[B, L, D]`, `txt` `[B, T, D]`, `vec` `[B, D]` → the new `(img, txt)`.
    pub fn forward(
        &self,
        img: Tensor<3>,
        txt: Tensor<3>,
        vec: &Tensor<2>,
        rope: &Rope,
        limits: &Limits,
    ) -> (Tensor<3>, Tensor<3>) {
        let text_tokens = txt.dims()[1];
        let (txt_rope, img_rope) = rope.split(text_tokens);
        let img_modulation = modulation(&self.img.norm1, vec, 6);
        let txt_modulation = modulation(&self.txt.norm1, vec, 6);
        let qkv = |stream: &Stream, x: &Tensor<3>, m: &[Tensor<2>], rope: &Rope| {
            stream.qkv.forward(layer_norm_modulate(x.clone(), m[0].clone(), m[1].clone(), EPSILON), rope)
        };
        let [img_q, img_k, img_v] = qkv(&self.img, &img, &img_modulation, &img_rope);
        let [txt_q, txt_k, txt_v] = qkv(&self.txt, &txt, &txt_modulation, &txt_rope);
        let join = |txt, img| Tensor::cat(vec![txt, img], 2);
        let [q, k, v] = [join(txt_q, img_q), join(txt_k, img_k), join(txt_v, img_v)];
        let attended = join_heads(attention_within(q, k, v, limits.attention_scores));
        let image_tokens = img.dims()[1];
        let txt_attended = attended.clone().narrow(1, 0, text_tokens);
        let img_attended = attended.narrow(1, text_tokens, image_tokens);
        (
            self.img.finish(img, img_attended, &img_modulation[2..], limits),
            self.txt.finish(txt, txt_attended, &txt_modulation[2..], limits),
        )
    }
}

/// All linear layers, then the norms of both streams.
impl Parameters for DoubleBlock {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        self.linears(path, &mut |name, layer| layer.parameters(name, visit));
        let path = format!("{path}.attn");
        self.img.qkv.norms(&path, visit);
        self.txt.qkv.norms(&path, visit);
    }
}

impl Linears for DoubleBlock {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        self.img.linears(path, visit);
        self.txt.linears(path, visit);
    }
}

/// `single_transformer_blocks.N`: one stream, with attention and feed-forward side by side.
#[derive(Clone, Debug)]
pub struct SingleBlock {
    norm: Linear,
    qkv: Qkv,
    proj_mlp: Linear,
    proj_out: Linear,
}

impl SingleBlock {
    pub(super) fn load(weights: &Weights, config: &FluxConfig) -> Self {
        let width = config.width();
        Self {
            norm: Linear::load(&weights.at("norm.linear"), width, 3 * width),
            qkv: Qkv::load(&weights.at("attn"), config, IMAGE),
            proj_mlp: Linear::load(&weights.at("proj_mlp"), width, 4 * width),
            proj_out: Linear::load(&weights.at("proj_out"), 5 * width, width),
        }
    }

    /// `x` `[B, T+L, D]` (text first), `vec` `[B, D]` → `[B, T+L, D]`.
    pub fn forward(&self, x: Tensor<3>, vec: &Tensor<2>, rope: &Rope, limits: &Limits) -> Tensor<3> {
        let [shift, scale, gate] = modulation(&self.norm, vec, 3).try_into().expect("chunk(3) gives three");
        let normed = layer_norm_modulate(x.clone(), shift, scale, EPSILON);
        let inner = |x| self.proj_mlp.forward_gelu(x);
        let attended = |x| {
            let [q, k, v] = self.qkv.forward(x, rope);
            join_heads(attention_within(q, k, v, limits.attention_scores))
        };
        let out = |attended, inner| self.proj_out.forward(Tensor::cat(vec![attended, inner], 2));
        let y = match token_parts(&normed, limits, [&self.proj_mlp, &self.proj_out]) {
            None => {
                // This order is that of the sum of `normed`'s gradient.
                let inner = inner(normed.clone());
                out(attended(normed), inner)
            }
            Some(parts) => {
                let attended = attended(normed.clone());
                let some = |t: &Tensor<3>, part: &Range<usize>| t.clone().narrow(1, part.start, part.len());
                let each = parts.iter().map(|part| out(some(&attended, part), inner(some(&normed, part))));
                Tensor::cat(each.collect(), 1)
            }
        };
        gated_add(x, gate, y)
    }
}

/// All linear layers, then the norms.
impl Parameters for SingleBlock {
    fn parameters(&mut self, path: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        self.linears(path, &mut |name, layer| layer.parameters(name, visit));
        self.qkv.norms(&format!("{path}.attn"), visit);
    }
}

impl Linears for SingleBlock {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        visit(&format!("{path}.norm.linear"), &mut self.norm);
        self.qkv.linears(&format!("{path}.attn"), visit);
        visit(&format!("{path}.proj_mlp"), &mut self.proj_mlp);
        visit(&format!("{path}.proj_out"), &mut self.proj_out);
    }
}

//! The two ends of the transformer.

use burn::tensor::{FloatDType, Tensor};

use super::{FluxConfig, FluxInputs, blocks::EPSILON};
use crate::{
    kernels::{layer_norm_modulate, silu},
    models::embedding::{frequencies, waves},
    nn::{Linear, Linears},
    weights::Weights,
};

/// Two linear layers with a SiLU between them: one of the embedders under `time_text_embed`.
#[derive(Clone, Debug)]
struct Embedder {
    name: &'static str,
    layers: [Linear; 2],
}

impl Embedder {
    fn load(weights: &Weights, name: &'static str, inputs: usize, width: usize) -> Self {
        let at = weights.at(name);
        let layers = [Linear::load(&at.at("linear_1"), inputs, width), Linear::load(&at.at("linear_2"), width, width)];
        Self { name, layers }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.layers[1].forward(silu(self.layers[0].forward(x)))
    }

    fn linears(&mut self, visit: &mut dyn FnMut(&str, &mut Linear)) {
        for (i, layer) in self.layers.iter_mut().enumerate() {
            visit(&format!("time_text_embed.{}.linear_{}", self.name, i + 1), layer);
        }
    }
}

/// Channels of the sinusoidal embedding of noise level and guidance.
const SINUSOID: usize = 256;

/// The embedding of noise levels or guidance, which FLUX.1 counts in thousandths: `t` `[B]` → `[B, 256]`.
fn sinusoid(t: Tensor<1>) -> Tensor<2> {
    let frequencies = frequencies(SINUSOID / 2, 0.0, &t.device().inner());
    waves(t * 1000.0, frequencies, true)
}

/// Everything before the first block.
#[derive(Clone, Debug)]
pub(super) struct Stem {
    x_embedder: Linear,
    context_embedder: Linear,
    timestep_embedder: Embedder,
    guidance_embedder: Option<Embedder>,
    text_embedder: Embedder,
}

impl Stem {
    pub(super) fn load(weights: &Weights, config: &FluxConfig) -> Self {
        let (width, embed) = (config.width(), weights.at("time_text_embed"));
        Self {
            x_embedder: Linear::load(&weights.at("x_embedder"), config.in_channels, width),
            context_embedder: Linear::load(&weights.at("context_embedder"), config.joint_attention_dim, width),
            timestep_embedder: Embedder::load(&embed, "timestep_embedder", SINUSOID, width),
            guidance_embedder: config
                .guidance_embeds
                .then(|| Embedder::load(&embed, "guidance_embedder", SINUSOID, width)),
            text_embedder: Embedder::load(&embed, "text_embedder", config.pooled_projection_dim, width),
        }
    }

    /// `MLP(sigma) + MLP(guidance) + MLP(pooled)`: `[B, D]`.
    fn embed(&self, inputs: &FluxInputs) -> Tensor<2> {
        let dtype: FloatDType = inputs.img.dtype().into();
        let time = self.timestep_embedder.forward(sinusoid(inputs.sigma.clone()).cast(dtype));
        let time = match &self.guidance_embedder {
            Some(embedder) => time + embedder.forward(sinusoid(inputs.guidance.clone()).cast(dtype)),
            None => time,
        };
        time + self.text_embedder.forward(inputs.pooled.clone())
    }

    /// `img` `[B, L, D]`, `txt` `[B, T, D]`, and `vec` `[B, D]`: every block takes the SiLU of the embedding, so it is taken once.
    pub(super) fn forward(&self, inputs: &FluxInputs) -> (Tensor<3>, Tensor<3>, Tensor<2>) {
        let vec = silu(self.embed(inputs));
        (self.x_embedder.forward(inputs.img.clone()), self.context_embedder.forward(inputs.txt.clone()), vec)
    }
}

impl Linears for Stem {
    fn linears(&mut self, _: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        self.timestep_embedder.linears(visit);
        if let Some(embedder) = &mut self.guidance_embedder {
            embedder.linears(visit);
        }
        self.text_embedder.linears(visit);
        visit("context_embedder", &mut self.context_embedder);
        visit("x_embedder", &mut self.x_embedder);
    }
}

/// Everything after the last block.
#[derive(Clone, Debug)]
pub(super) struct Head {
    norm_out: Linear,
    proj_out: Linear,
}

impl Head {
    pub(super) fn load(weights: &Weights, config: &FluxConfig) -> Self {
        let (width, outputs) = (config.width(), config.out_channels.unwrap_or(config.in_channels));
        Self {
            norm_out: Linear::load(&weights.at("norm_out.linear"), width, 2 * width),
            proj_out: Linear::load(&weights.at("proj_out"), width, outputs),
        }
    }

    /// `img` `[B, L, D]`, `vec` `[B, D]` → the velocity `[B, L, 4·C]`.
    pub(super) fn forward(&self, img: Tensor<3>, vec: Tensor<2>) -> Tensor<3> {
        // Here, unlike in the blocks, the scale comes first.
        let [scale, shift] = self.norm_out.forward(vec).chunk(2, 1).try_into().expect("chunk(2) gives two");
        self.proj_out.forward(layer_norm_modulate(img, shift, scale, EPSILON))
    }
}

impl Linears for Head {
    fn linears(&mut self, _: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        visit("norm_out.linear", &mut self.norm_out);
        visit("proj_out", &mut self.proj_out);
    }
}

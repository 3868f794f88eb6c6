//! The whole transformer: configuration, stem, blocks, head.

use std::path::Path;

use burn::tensor::{Device, FloatDType, Tensor};
use serde::Deserialize;

use super::{
    blocks::{DoubleBlock, EPSILON, SingleBlock},
    rope::Rope,
};
use crate::{
    error::{Error, Result},
    kernels::{layer_norm_modulate, silu},
    models::{Inputs, Segment, Segmented, State},
    nn::{Linear, Linears, Parameter, Parameters},
    weights::{Weights, read_json},
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
    /// Whether the model was distilled to take a guidance strength (dev) or not (schnell).
    pub guidance_embeds: bool,
    /// How many of the `K` numbers of a head each position axis rotates.
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

impl FluxConfig {
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
        if self.patch_size != 1 || !self.in_channels.is_multiple_of(4) {
            return Err(format!(
                "`patch_size` {} with `in_channels` {} is not known",
                self.patch_size, self.in_channels
            ));
        }
        Ok(())
    }
}

/// What one call of the transformer takes.
#[derive(Clone, Debug)]
pub struct FluxInputs {
    /// Packed noisy latents `[B, L, 4·C]`.
    pub img: Tensor<3>,
    /// T5 embeddings `[B, T, joint_attention_dim]`.
    pub txt: Tensor<3>,
    /// Pooled CLIP embedding `[B, pooled_projection_dim]`.
    pub pooled: Tensor<2>,
    /// The noise level `[B]`, in [0, 1], f32.
    pub sigma: Tensor<1>,
    /// Guidance strength `[B]`, f32; models without a guidance embedding ignore it.
    pub guidance: Tensor<1>,
    /// The rotation of all `T + L` tokens.
    pub rope: Rope,
}

impl Inputs for FluxInputs {
    fn tracked(&self) -> Self {
        Self {
            img: Tensor::from_inner(self.img.clone()),
            txt: Tensor::from_inner(self.txt.clone()),
            pooled: Tensor::from_inner(self.pooled.clone()),
            sigma: Tensor::from_inner(self.sigma.clone()),
            guidance: Tensor::from_inner(self.guidance.clone()),
            rope: Rope {
                cos: Tensor::from_inner(self.rope.cos.clone()),
                sin: Tensor::from_inner(self.rope.sin.clone()),
            },
        }
    }
}

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

/// `[cos(1000·t·f₀) … | sin(1000·t·f₀) …]` with `fᵢ = 10000^(-i/128)`: `t` `[B]` → `[B, 256]` (Vaswani et al. 2017).
///
/// The frequencies are computed in f32, in diffusers' order of operations: at 1000·t their rounding shows in the output.
fn sinusoid(t: Tensor<1>) -> Tensor<2> {
    let half = SINUSOID / 2;
    let exponent = |i| -(10_000f64.ln() as f32) * i as f32 / half as f32;
    let frequencies: Vec<f32> = (0..half).map(|i| exponent(i).exp()).collect();
    let frequencies = Tensor::<1>::from_floats(frequencies.as_slice(), &t.device().inner());
    let frequencies = crate::kernels::lift(frequencies, &t);
    let angles = (t * 1000.0).unsqueeze_dim::<2>(1) * frequencies.unsqueeze();
    Tensor::cat(vec![angles.clone().cos(), angles.sin()], 1)
}

/// Everything before the first block.
#[derive(Clone, Debug)]
pub struct Stem {
    x_embedder: Linear,
    context_embedder: Linear,
    timestep_embedder: Embedder,
    guidance_embedder: Option<Embedder>,
    text_embedder: Embedder,
}

impl Stem {
    fn load(weights: &Weights, config: &FluxConfig) -> Self {
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
    pub fn embed(&self, inputs: &FluxInputs) -> Tensor<2> {
        let dtype: FloatDType = inputs.img.dtype().into();
        let time = self.timestep_embedder.forward(sinusoid(inputs.sigma.clone()).cast(dtype));
        let time = match &self.guidance_embedder {
            Some(embedder) => time + embedder.forward(sinusoid(inputs.guidance.clone()).cast(dtype)),
            None => time,
        };
        time + self.text_embedder.forward(inputs.pooled.clone())
    }

    fn run(&self, inputs: &FluxInputs) -> State {
        // Every block takes the SiLU of the embedding, so it is taken once.
        let vec = silu(self.embed(inputs));
        State {
            streams: vec![
                self.x_embedder.forward(inputs.img.clone()).unsqueeze_dim(1),
                self.context_embedder.forward(inputs.txt.clone()).unsqueeze_dim(1),
            ],
            shared: vec![vec],
        }
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
pub struct Head {
    norm_out: Linear,
    proj_out: Linear,
}

impl Head {
    fn load(weights: &Weights, config: &FluxConfig) -> Self {
        let (width, outputs) = (config.width(), config.out_channels.unwrap_or(config.in_channels));
        Self {
            norm_out: Linear::load(&weights.at("norm_out.linear"), width, 2 * width),
            proj_out: Linear::load(&weights.at("proj_out"), width, outputs),
        }
    }

    fn run(&self, x: Tensor<3>, vec: Tensor<2>) -> Tensor<3> {
        // Here, unlike in the blocks, the scale comes first.
        let [scale, shift] = self.norm_out.forward(vec).chunk(2, 1).try_into().expect("chunk(2) gives two");
        self.proj_out.forward(layer_norm_modulate(x, shift, scale, EPSILON))
    }
}

impl Linears for Head {
    fn linears(&mut self, _: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        visit("norm_out.linear", &mut self.norm_out);
        visit("proj_out", &mut self.proj_out);
    }
}

/// One segment with its name.
#[derive(Clone, Debug)]
pub struct FluxSegment {
    name: String,
    part: Part,
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // one small list, never moved
enum Part {
    Stem(Stem),
    Double(DoubleBlock),
    Single(SingleBlock),
    Head(Head),
}

impl Segment for FluxSegment {
    type Inputs = FluxInputs;

    fn name(&self) -> &str {
        &self.name
    }

    fn run(&self, inputs: &FluxInputs, mut state: State) -> State {
        if let Part::Stem(stem) = &self.part {
            return stem.run(inputs);
        }
        let vec = state.shared(0);
        let mut streams = std::mem::take(&mut state.streams).into_iter().map(|stream| stream.squeeze_dim::<3>(1));
        let first = streams.next().expect("the segment before leaves one stream at least");
        let streams = match (&self.part, streams.next()) {
            (Part::Stem(_), _) | (Part::Double(_), None) => unreachable!("stem, double blocks, single blocks, head"),
            (Part::Double(block), Some(txt)) => {
                let (img, txt) = block.forward(first, txt, &vec, &inputs.rope);
                vec![img, txt]
            }
            (Part::Single(block), txt) => {
                // The single blocks share one stream, text first; the first of them joins it.
                let x = txt.map_or(first.clone(), |txt| Tensor::cat(vec![txt, first], 1));
                vec![block.forward(x, &vec, &inputs.rope)]
            }
            (Part::Head(head), Some(_)) => vec![head.run(first, vec)],
            (Part::Head(head), None) => {
                let (text_tokens, image_tokens) = (inputs.txt.dims()[1], inputs.img.dims()[1]);
                vec![head.run(first.narrow(1, text_tokens, image_tokens), vec)]
            }
        };
        state.streams = streams.into_iter().map(|stream| stream.unsqueeze_dim(1)).collect();
        state
    }
}

impl Linears for FluxSegment {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        match &mut self.part {
            Part::Stem(stem) => stem.linears(path, visit),
            Part::Double(block) => block.linears(path, visit),
            Part::Single(block) => block.linears(path, visit),
            Part::Head(head) => head.linears(path, visit),
        }
    }
}

/// It is trained by adapters only.
impl Parameters for FluxSegment {
    fn parameters(&mut self, _: &str, _: &mut dyn FnMut(&str, Parameter<'_>)) {}
}

/// FluxTransformer2DModel.
#[derive(Clone, Debug)]
pub struct FluxTransformer {
    /// Its `config.json`.
    pub config: FluxConfig,
    segments: Vec<FluxSegment>,
}

impl FluxTransformer {
    /// Loads `transformer/` of a pipeline folder.
    ///
    /// # Errors
    /// A file is missing or broken, or weights and configuration do not fit: all misfits in one error.
    pub fn open(folder: impl AsRef<Path>, device: &Device, dtype: Option<FloatDType>) -> Result<Self> {
        let path = folder.as_ref().join("config.json");
        let config: FluxConfig = read_json(&path)?;
        config.check().map_err(|problem| Error::file(path, problem))?;
        let weights = Weights::open(folder, device, dtype)?;
        let model = Self::load(&weights, config);
        weights.finish().map(|()| model)
    }

    /// Takes all tensors of the model from `weights`; the caller ends with [`Weights::finish`].
    pub fn load(weights: &Weights, config: FluxConfig) -> Self {
        let segment = |name: String, part| FluxSegment { name, part };
        let mut segments = vec![segment(String::new(), Part::Stem(Stem::load(weights, &config)))];
        for i in 0..config.num_layers {
            let name = format!("transformer_blocks.{i}");
            let block = DoubleBlock::load(&weights.at(&name), &config);
            segments.push(segment(name, Part::Double(block)));
        }
        for i in 0..config.num_single_layers {
            let name = format!("single_transformer_blocks.{i}");
            let block = SingleBlock::load(&weights.at(&name), &config);
            segments.push(segment(name, Part::Single(block)));
        }
        segments.push(segment(String::new(), Part::Head(Head::load(weights, &config))));
        Self { config, segments }
    }

    /// The predicted velocity of each image token, `[B, L, 4·C]`.
    pub fn forward(&self, inputs: &FluxInputs) -> Tensor<3> {
        self.predict(inputs).squeeze_dim(1)
    }
}

impl Segmented for FluxTransformer {
    type Segment = FluxSegment;

    fn segments(&self) -> &[FluxSegment] {
        &self.segments
    }

    fn segments_mut(&mut self) -> &mut [FluxSegment] {
        &mut self.segments
    }
}

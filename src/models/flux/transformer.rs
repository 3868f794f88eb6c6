//! The whole transformer.

use std::path::Path;

use burn::tensor::{Device, FloatDType, Tensor};

use super::{FluxConfig, FluxSegment, FluxState, rope::Rope};
use crate::{
    error::Result,
    lending::{Lender, Residence},
    limits::Limits,
    models::{Inputs, Network, pick},
    rng::Seed,
    weights::Weights,
};

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
    /// How much is computed at once.
    pub limits: Limits,
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
            limits: self.limits,
        }
    }

    fn rows(&self) -> usize {
        self.img.dims()[0]
    }

    fn pick(&self, rows: &[usize]) -> Self {
        Self {
            img: pick(&self.img, rows),
            txt: pick(&self.txt, rows),
            pooled: pick(&self.pooled, rows),
            sigma: pick(&self.sigma, rows),
            guidance: pick(&self.guidance, rows),
            rope: self.rope.clone(),
            limits: self.limits,
        }
    }
}

/// Whether training starts with zeros for the matrix of this name: the modulations and the last layer (adaLN-Zero; Peebles & Xie
/// 2022).
fn starts_at_zero(name: &str) -> bool {
    name.ends_with(".linear.weight") || name == "proj_out.weight"
}

/// FluxTransformer2DModel.
#[derive(Clone, Debug)]
pub struct FluxTransformer {
    /// Its `config.json`.
    pub config: FluxConfig,
    segments: Lender<FluxSegment>,
}

impl FluxTransformer {
    /// Loads `transformer/` of a pipeline folder.
    ///
    /// # Errors
    /// A file is missing or broken, or weights and configuration do not fit: all misfits in one error.
    pub fn open(folder: impl AsRef<Path>, device: &Device, dtype: Option<FloatDType>) -> Result<Self> {
        Self::open_as(Residence::Resident, folder, device, dtype)
    }

    /// The same with weights that lie where `residence` says.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_as(
        residence: Residence,
        folder: impl AsRef<Path>,
        device: &Device,
        dtype: Option<FloatDType>,
    ) -> Result<Self> {
        let config = FluxConfig::open(&folder)?;
        let weights = Weights::open(folder, device, dtype)?;
        let model = Self::load(&weights, config, residence);
        weights.finish().map(|()| model)
    }

    /// A model of the `config.json` in `folder` with f32 weights to train from their beginning, drawn from `seed`: no block
    /// changes anything yet, and the velocity is zero.
    ///
    /// # Errors
    /// The configuration is missing or broken.
    pub fn untrained(residence: Residence, folder: impl AsRef<Path>, seed: Seed, device: &Device) -> Result<Self> {
        let weights = Weights::untrained(seed, starts_at_zero, device);
        Ok(Self::load(&weights, FluxConfig::open(folder)?, residence))
    }

    /// Takes all tensors of the model from `weights`; the caller ends with [`Weights::finish`].
    pub fn load(weights: &Weights, config: FluxConfig, residence: Residence) -> Self {
        let of = config.clone();
        let load = move |weights: &Weights, index| FluxSegment::load(weights, &of, index);
        Self { segments: Lender::new(weights, residence, FluxSegment::count(&config), load), config }
    }

    /// The predicted velocity of each image token without adapters, `[B, L, 4·C]`.
    pub fn forward(&self, inputs: &FluxInputs) -> Tensor<3> {
        self.predict(inputs, &[]).squeeze_dim(1)
    }
}

impl Network for FluxTransformer {
    type Inputs = FluxInputs;
    type State = FluxState;
    type Segment = FluxSegment;

    fn lender(&self) -> &Lender<FluxSegment> {
        &self.segments
    }

    fn lender_mut(&mut self) -> &mut Lender<FluxSegment> {
        &mut self.segments
    }
}

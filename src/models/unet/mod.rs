//! The U-Net of Stable Diffusion 1.x and 2.x (`UNet2DConditionModel`; Rombach et al. 2022): a stem, the way down, the middle,
//! the way up, a head. Skip connections join the outputs of the way down to the way up at the same resolution.
//!
//! Shapes: `B` batch, `C` channels, `h w` the size of latents (and of what becomes of them at lower resolutions), `L = h·w`
//! positions, `T` text tokens, `D` the width of whatever it is.

mod config;
mod attention;
mod resnet;
mod stem;
mod segment;

use std::path::Path;

use burn::tensor::{Device, FloatDType, Tensor};

use crate::{
    error::Result,
    lending::{Lender, Residence},
    limits::Limits,
    models::{Inputs, Network},
    rng::Seed,
    weights::Weights,
};
pub use config::{DownBlockType, MidBlockType, PerLevel, UNetConfig, UpBlockType};
use segment::Place;
pub use segment::{UNetSegment, UNetState};

/// The inputs of one call of the U-Net.
#[derive(Clone, Debug)]
pub struct UNetInputs {
    /// Noisy latents, with the latents of an image to edit, `[B, in_channels, h, w]`, in the dtype of the weights.
    pub sample: Tensor<4>,
    /// The noise level as a step of the noise schedule `[B]`, f32.
    pub timestep: Tensor<1>,
    /// Text embeddings `[B, T, cross_attention_dim]`, in the dtype of the weights.
    pub text: Tensor<3>,
    /// Limits on how much is computed at once.
    pub limits: Limits,
}

impl Inputs for UNetInputs {
    fn tracked(&self) -> Self {
        Self {
            sample: Tensor::from_inner(self.sample.clone()),
            timestep: Tensor::from_inner(self.timestep.clone()),
            text: Tensor::from_inner(self.text.clone()),
            limits: self.limits,
        }
    }

    fn rows(&self) -> usize {
        self.sample.dims()[0]
    }
}

/// Whether training starts with zeros for the weight of this name: the last of each residual block, of each attention, and of
/// all (Dhariwal & Nichol 2021).
fn starts_at_zero(name: &str) -> bool {
    ["conv2.weight", "proj_out.weight", "conv_out.weight"].iter().any(|end| name.ends_with(end))
}

/// UNet2DConditionModel.
#[derive(Clone, Debug)]
pub struct UNet {
    /// Its `config.json`.
    pub config: UNetConfig,
    segments: Lender<UNetSegment>,
}

impl UNet {
    /// Loads `unet/` of a pipeline folder. With `dtype`, the weights are converted to it.
    ///
    /// # Errors
    /// A file is missing or broken, the config describes another model, or weights and config do not fit: all misfits in
    /// one error.
    pub fn open(folder: impl AsRef<Path>, device: &Device, dtype: Option<FloatDType>) -> Result<Self> {
        Self::open_as(Residence::Resident, folder, device, dtype)
    }

    /// The same with unused weights where `residence` says.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_as(
        residence: Residence,
        folder: impl AsRef<Path>,
        device: &Device,
        dtype: Option<FloatDType>,
    ) -> Result<Self> {
        let config = UNetConfig::open(&folder)?;
        Weights::load_model(folder, device, dtype, |weights| Self::load(weights, config, residence))
    }

    /// A model of the `config.json` in `folder` with f32 weights to train from their beginning, drawn from `seed`: no block
    /// changes anything yet, and the prediction is zero.
    ///
    /// # Errors
    /// The configuration is missing or broken.
    pub fn untrained(residence: Residence, folder: impl AsRef<Path>, seed: Seed, device: &Device) -> Result<Self> {
        let weights = Weights::untrained(seed, starts_at_zero, device);
        Ok(Self::load(&weights, UNetConfig::open(folder)?, residence))
    }

    /// Takes all tensors of the model from `weights`; the caller ends with [`Weights::finish`].
    pub fn load(weights: &Weights, config: UNetConfig, residence: Residence) -> Self {
        let (places, of) = (Place::all(&config), config.clone());
        let count = places.len();
        let load = move |weights: &Weights, index: usize| places[index].load(weights, &of);
        Self { segments: Lender::new(weights, residence, count, load), config }
    }

    /// Widens the input channels, as InstructPix2Pix does for the image to edit. The new ones have no effect at first: their weights are
    /// zero, and the bias stays. A model that already has as many is left alone.
    pub fn widen(&mut self, in_channels: usize) {
        if in_channels > self.config.in_channels {
            self.segments.change(0, move |stem| stem.widen(in_channels));
            self.config.in_channels = in_channels;
        }
    }

    /// The predicted noise or velocity without adapters, `[B, out_channels, h, w]`.
    pub fn forward(&self, inputs: &UNetInputs) -> Tensor<4> {
        self.predict(inputs, &[])
    }
}

impl Network for UNet {
    type Inputs = UNetInputs;
    type State = UNetState;
    type Segment = UNetSegment;

    fn lender(&self) -> &Lender<UNetSegment> {
        &self.segments
    }

    fn lender_mut(&mut self) -> &mut Lender<UNetSegment> {
        &mut self.segments
    }
}

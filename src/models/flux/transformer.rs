//! The whole transformer.

use std::path::Path;

use burn::tensor::{Device, FloatDType, Tensor};

use super::{FluxConfig, FluxInputs, FluxSegment, FluxState};
use crate::{
    error::Result,
    lending::{Lender, Residence},
    models::Network,
    rng::Seed,
    weights::Weights,
};

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
        Weights::load_model(folder, device, dtype, |weights| Self::load(weights, config, residence))
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

//! FLUX.1.

use std::path::Path;

use burn::tensor::{Device, FloatDType, Tensor};

use super::{
    ImageSizes,
    pipeline::{Pipeline, Placement},
    request::{Condition, numbers},
};
use crate::{
    error::{Error, Result},
    lending::Sizes,
    limits::Limits,
    models::{
        Network,
        flux::{FluxConfig, FluxInputs, FluxTransformer, pack, unpack},
        vae::{AutoencoderKl, VaeConfig},
    },
    nn::LayerShape,
    rng::Seed,
    schedulers::{FlowMatchEuler, Scheduler, SchedulerName},
};

/// The native size of FLUX.1: the side of a square image in latent pixels, 1024 pixels. No file of the model contains it.
const LATENT_SIDE: usize = 128;

/// Transformer, VAE and schedule.
#[derive(Clone, Debug)]
pub struct FluxPipeline {
    /// The denoiser.
    pub transformer: FluxTransformer,
    /// Between latents and pixels, in f32.
    pub vae: AutoencoderKl,
    /// From `scheduler/`.
    pub scheduler: FlowMatchEuler,
    /// Limits on how much is computed at once.
    pub limits: Limits,
    device: Device,
    dtype: FloatDType,
}

impl FluxPipeline {
    /// Loads everything except the text encoders from a pipeline folder. `dtype` is that of the transformer.
    ///
    /// # Errors
    /// A component is missing, broken or of another kind.
    pub fn open(model: impl AsRef<Path>, device: &Device, dtype: FloatDType) -> Result<Self> {
        Self::open_as(Placement::default(), model, device, dtype)
    }

    /// The same with unused weights where `placement` says.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_as(
        placement: impl Into<Placement>,
        model: impl AsRef<Path>,
        device: &Device,
        dtype: FloatDType,
    ) -> Result<Self> {
        let (model, placement) = (model.as_ref(), placement.into());
        Self::check_channels(model)?;
        let transformer = FluxTransformer::open_as(placement.denoiser, model.join("transformer"), device, Some(dtype))?;
        Self::with(transformer, placement, model, device, dtype)
    }

    /// The same with [untrained](FluxTransformer::untrained) weights in the transformer, drawn from `seed`; its folder needs
    /// none.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn untrained(placement: Placement, model: impl AsRef<Path>, seed: Seed, device: &Device) -> Result<Self> {
        let model = model.as_ref();
        Self::check_channels(model)?;
        let transformer = FluxTransformer::untrained(placement.denoiser, model.join("transformer"), seed, device)?;
        Self::with(transformer, placement, model, device, FloatDType::F32)
    }

    fn with(
        transformer: FluxTransformer,
        placement: Placement,
        model: &Path,
        device: &Device,
        dtype: FloatDType,
    ) -> Result<Self> {
        let vae = AutoencoderKl::open_in(model, placement.vae, device)?;
        let scheduler = FlowMatchEuler::open(model.join("scheduler"))?;
        Ok(Self::new(transformer, vae, scheduler, dtype))
    }

    /// # Errors
    /// The transformer is for another kind of latents, or configurations are missing or broken.
    fn check_channels(model: &Path) -> Result<()> {
        let features = FluxConfig::open(model.join("transformer"))?.in_channels;
        let channels = VaeConfig::open(model.join("vae"))?.latent_channels;
        if 4 * channels != features {
            let problem =
                format!("the VAE has {channels} latent channels, the transformer takes {features} features per token");
            return Err(Error::file(model, problem).hint("transformer and VAE must come from the same FLUX.1 model"));
        }
        Ok(())
    }

    /// The pipeline of these parts of one model. `dtype` is that of the transformer.
    pub fn new(transformer: FluxTransformer, vae: AutoencoderKl, scheduler: FlowMatchEuler, dtype: FloatDType) -> Self {
        let device = transformer.lender().device().clone();
        Self { transformer, vae, scheduler, limits: Limits::NONE, device, dtype }
    }

    /// The sizes of images with this VAE: a token is 2 × 2 latent pixels.
    pub fn image_sizes(vae: &VaeConfig) -> ImageSizes {
        ImageSizes::new(vae, 2, LATENT_SIDE)
    }

    /// The dtype of the transformer.
    pub fn dtype(&self) -> FloatDType {
        self.dtype
    }
}

impl Pipeline for FluxPipeline {
    fn vae(&self) -> &AutoencoderKl {
        &self.vae
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn limit(&mut self, limits: Limits) {
        self.limits = limits;
    }

    fn layers(&self) -> Vec<LayerShape> {
        self.transformer.wearable()
    }

    fn quantized(&self) -> Option<&'static str> {
        self.transformer.lender().quantized()
    }

    fn sizes(&self) -> ImageSizes {
        Self::image_sizes(&self.vae.config)
    }

    fn denoiser_sizes(&self) -> Sizes {
        self.transformer.lender().sizes()
    }

    /// Measured: 20.7 values per feature of each token (of image and text together) with all tokens in the feed-forward at once, of which
    /// 14 are there, and 8.8 with 1024 of 4608 tokens at a time.
    fn bytes_of_row(&self, width: usize, height: usize, text_tokens: usize, limits: &Limits) -> u64 {
        let tokens = (width / 2) * (height / 2) + text_tokens;
        let at_once = limits.feed_forward_tokens.map_or(tokens, |most| most.min(tokens));
        ((13 * tokens + 28 * at_once) * self.transformer.config.width()) as u64 * 2
    }

    /// Measured: 12.2 values per feature of each token and block if all activations are kept; else one per block, and 26 for the block
    /// in the backward pass with its adapters.
    fn bytes_of_training_row(&self, width: usize, height: usize, text_tokens: usize, blockwise: bool) -> u64 {
        let config = &self.transformer.config;
        let blocks = config.num_layers + config.num_single_layers;
        let values = if blockwise { blocks + 26 } else { 13 * blocks };
        let tokens = (width / 2) * (height / 2) + text_tokens;
        (tokens * config.width() * values) as u64 * 4
    }

    fn sampler(
        &self,
        name: Option<SchedulerName>,
        steps: usize,
        strength: f64,
        (width, height): (usize, usize),
    ) -> Result<(Box<dyn Scheduler>, usize)> {
        if name.is_some() {
            return Err(Error::setting("scheduler", "is not supported by FLUX.1")
                .hint("leave it out: there is only one sampler"));
        }
        Ok((Box::new(self.scheduler.run(steps, (height / 2) * (width / 2), strength)?), 0))
    }

    /// The velocity. The timestep of this model is the noise level.
    fn predict(&self, latents: Tensor<4>, timesteps: &[f64], condition: &Condition) -> Tensor<4> {
        let [_, _, height, width] = latents.dims();
        let text = &condition.text;
        let inputs = FluxInputs {
            img: pack(latents).cast(self.dtype),
            txt: text.prompt.clone().cast(self.dtype),
            pooled: text.pooled.clone().cast(self.dtype),
            sigma: numbers(timesteps, &self.device),
            guidance: numbers(&condition.guidance, &self.device),
            rope: self.transformer.config.rope(text.prompt.dims()[1], height, width, &self.device),
            limits: self.limits,
        };
        let velocity = self.transformer.predict(&inputs, &condition.adapters).squeeze_dim::<3>(1);
        unpack(velocity.cast(FloatDType::F32), height, width)
    }
}

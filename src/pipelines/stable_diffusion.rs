//! Stable Diffusion 1.x and 2.x, and InstructPix2Pix, whose UNet also takes an image.

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
        unet::{UNet, UNetConfig, UNetInputs},
        vae::{AutoencoderKl, VaeConfig},
    },
    nn::LayerShape,
    rng::Seed,
    schedulers::{Scheduler, SchedulerConfig, SchedulerName},
};

/// UNet, VAE and schedule. A UNet with as many input channels as latents have generates images from text; one with twice as many edits
/// images (Brooks et al. 2023).
#[derive(Clone, Debug)]
pub struct StableDiffusionPipeline {
    /// The denoiser.
    pub unet: UNet,
    /// Between latents and pixels, in f32.
    pub vae: AutoencoderKl,
    /// From `scheduler/`, including the sampler.
    pub scheduler: SchedulerConfig,
    /// Limits on how much is computed at once.
    pub limits: Limits,
    device: Device,
    dtype: FloatDType,
}

/// The class of the pipeline whose UNet takes the image to edit beside the latents.
pub type InstructPix2PixPipeline = StableDiffusionPipeline;

impl StableDiffusionPipeline {
    /// Loads everything except the text encoders from a pipeline folder. `dtype` is that of the UNet.
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
        let unet = UNet::open_as(placement.denoiser, model.join("unet"), device, Some(dtype))?;
        Self::with(unet, placement, model, device, dtype)
    }

    /// The same with [untrained](UNet::untrained) weights in the UNet, drawn from `seed`; its folder needs none.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn untrained(placement: Placement, model: impl AsRef<Path>, seed: Seed, device: &Device) -> Result<Self> {
        let model = model.as_ref();
        Self::check_channels(model)?;
        let unet = UNet::untrained(placement.denoiser, model.join("unet"), seed, device)?;
        Self::with(unet, placement, model, device, FloatDType::F32)
    }

    fn with(unet: UNet, placement: Placement, model: &Path, device: &Device, dtype: FloatDType) -> Result<Self> {
        let vae = AutoencoderKl::open_in(model, placement.vae, device)?;
        let scheduler = SchedulerConfig::open(model.join("scheduler"))?;
        Ok(Self::new(unet, vae, scheduler, dtype))
    }

    /// # Errors
    /// The UNet is for another kind of latents, or configurations are missing or broken.
    fn check_channels(model: &Path) -> Result<()> {
        let config = UNetConfig::open(model.join("unet"))?;
        let UNetConfig { in_channels, out_channels, .. } = config;
        let channels = VaeConfig::open(model.join("vae"))?.latent_channels;
        if out_channels != channels || !(in_channels == channels || config.edits()) {
            let problem = format!(
                "`in_channels` is {in_channels} and `out_channels` {out_channels}; the VAE's latents have {channels} channels"
            );
            return Err(Error::file(model.join("unet/config.json"), problem).hint(format!(
                "use a model with {channels} input channels to generate images, or {} to edit them; the former also inpaints",
                2 * channels
            )));
        }
        Ok(())
    }

    /// The pipeline of these parts of one model. `dtype` is that of the UNet.
    pub fn new(unet: UNet, vae: AutoencoderKl, scheduler: SchedulerConfig, dtype: FloatDType) -> Self {
        let device = unet.lender().device().clone();
        Self { unet, vae, scheduler, limits: Limits::NONE, device, dtype }
    }

    /// The sizes of images with this UNet and VAE.
    pub fn image_sizes(unet: &UNetConfig, vae: &VaeConfig) -> ImageSizes {
        let [height, width] = unet.sample_size;
        ImageSizes::new(vae, 1, (height * width).isqrt())
    }

    /// The dtype of the UNet.
    pub fn dtype(&self) -> FloatDType {
        self.dtype
    }
}

impl Pipeline for StableDiffusionPipeline {
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
        self.unet.wearable()
    }

    fn quantized(&self) -> Option<&'static str> {
        self.unet.lender().quantized()
    }

    fn sizes(&self) -> ImageSizes {
        Self::image_sizes(&self.unet.config, &self.vae.config)
    }

    fn denoiser_sizes(&self) -> Sizes {
        self.unet.lender().sizes()
    }

    /// Measured for version 1.5: 19 values per latent pixel and channel of the first level, of which 7 are in the feed-forward, and 14.2
    /// with 512 of the 4096 pixels of each row in the feed-forward at a time.
    fn bytes_of_row(&self, width: usize, height: usize, _: usize, limits: &Limits) -> u64 {
        let pixels = width * height;
        let at_once = limits.feed_forward_tokens.map_or(pixels, |most| most.min(pixels));
        ((13 * pixels + 7 * at_once) * self.unet.config.block_out_channels[0]) as u64 * 4
    }

    /// Measured: 230 values per latent pixel and channel of the first level if all activations are kept, else 60.
    fn bytes_of_training_row(&self, width: usize, height: usize, _: usize, blockwise: bool) -> u64 {
        let values = if blockwise { 66 } else { 250 };
        (width * height * self.unet.config.block_out_channels[0] * values) as u64 * 4
    }

    fn edits(&self) -> bool {
        self.unet.config.edits()
    }

    fn sampler(
        &self,
        name: Option<SchedulerName>,
        steps: usize,
        strength: f64,
        _: (usize, usize),
    ) -> Result<(Box<dyn Scheduler>, usize)> {
        let sampler = name.map_or(self.scheduler.clone(), |name| self.scheduler.with_name(name)).scheduler(steps)?;
        let run = (steps as f64 * strength) as usize;
        let first = match run.min(steps) {
            0 => sampler.timesteps().len(), // PNDM has one call more than steps
            run => (steps - run) * sampler.calls_per_step(),
        };
        Ok((sampler, first))
    }

    /// The noise or the velocity, as the model was trained.
    fn predict(&self, latents: Tensor<4>, timesteps: &[f64], condition: &Condition) -> Tensor<4> {
        let sample = match &condition.original {
            Some(original) => Tensor::cat(vec![latents, original.clone()], 1),
            None => latents,
        };
        let inputs = UNetInputs {
            sample: sample.cast(self.dtype),
            timestep: numbers(timesteps, &self.device),
            text: condition.text.prompt.clone().cast(self.dtype),
            limits: self.limits,
        };
        self.unet.predict(&inputs, &condition.adapters).cast(FloatDType::F32)
    }
}

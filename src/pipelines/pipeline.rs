//! The shared part of all pipelines: from a request to latents, and between latents and images.
//!
//! A model provides its network, its sampler and its sizes; the loop is shared.

use std::ops::ControlFlow;

use burn::tensor::{Device, FloatDType, Tensor};
use image::RgbImage;

use super::{
    Denoising, ImageSizes,
    request::{Condition, Request},
};
use crate::{
    data,
    error::{Error, Result},
    lending::{Residence, Sizes},
    limits::Limits,
    memory::{self, Level, Stage},
    models::{
        draw_noise,
        vae::{AutoencoderKl, Moments},
    },
    nn::LayerShape,
    rng::{Purpose, Seed},
    schedulers::{Scheduler, SchedulerName},
    stop,
};

/// The problem and the hint of a result that is not finite.
pub(crate) const NOT_FINITE: &str = "would hold values that are not finite";
pub(crate) const WHY_NOT_FINITE: &str =
    "a LoRA scale that is too high, or a LoRA from a run that diverged, causes this";

/// The largest default batch. Larger ones are not faster.
const MOST_BY_ITSELF: u64 = 16;

/// On a device whose memory is unknown, images below this many bytes are batched by default.
const SMALL: u64 = 1 << 30;

/// Progress after a call of the network.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The number of calls so far.
    pub number: usize,
    /// The number of calls in total.
    pub of: usize,
    /// Scaled latents, `[B, C, h, w]`.
    pub latents: &'a Tensor<4>,
}

/// A callback after every step of a generation, which decides whether it continues.
pub type OnStep<'a> = &'a mut dyn FnMut(Step<'_>) -> ControlFlow<()>;

/// The outcome of work that its caller may cancel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// Completed.
    Finished(T),
    /// Cancelled by the caller after this many steps, which is not an error.
    Cancelled(usize),
}

impl<T> Outcome<T> {
    /// The result, unless it was cancelled.
    pub fn finished(self) -> Option<T> {
        match self {
            Self::Finished(made) => Some(made),
            Self::Cancelled(_) => None,
        }
    }

    /// The same with the result mapped.
    ///
    /// # Errors
    /// That of `then`.
    pub fn and_then<U>(self, then: impl FnOnce(T) -> Result<U>) -> Result<Outcome<U>> {
        Ok(match self {
            Self::Finished(made) => Outcome::Finished(then(made)?),
            Self::Cancelled(steps) => Outcome::Cancelled(steps),
        })
    }
}

/// Where the weights of a pipeline's parts are between two uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The denoiser's segments.
    pub denoiser: Residence,
    /// The two halves of the VAE.
    pub vae: Residence,
    /// The blocks of a large text encoder, which is loaded only for prompts.
    pub text: Residence,
}

impl From<Residence> for Placement {
    fn from(everywhere: Residence) -> Self {
        Self { denoiser: everywhere, vae: everywhere, text: everywhere }
    }
}

/// The placement of a memory level.
impl From<Level> for Placement {
    fn from(level: Level) -> Self {
        let [denoiser, vae] = match level {
            Level::None => [Residence::Resident; 2],
            Level::Balanced => [Residence::Resident, Residence::Streamed],
            Level::Aggressive => [Residence::Streamed; 2],
            Level::Ultra => [Residence::Single; 2],
        };
        Self { denoiser, vae, text: denoiser }
    }
}

/// A network, a VAE and a schedule, without text encoders: prompts are embedded before it is loaded.
pub trait Pipeline: Send {
    /// Between latents and pixels, in f32.
    fn vae(&self) -> &AutoencoderKl;

    /// The device of its tensors.
    fn device(&self) -> &Device;

    /// The limits on how much is computed at once.
    fn limits(&self) -> Limits;

    /// Limits how much is computed at once, which changes no result.
    fn limit(&mut self, limits: Limits);

    /// The linear layers and convolutions of the network, which can have adapters.
    fn layers(&self) -> Vec<LayerShape>;

    /// The format of the first quantized layer of the network; `None` if none is quantized.
    fn quantized(&self) -> Option<&'static str>;

    /// The image sizes that it supports.
    fn sizes(&self) -> ImageSizes;

    /// The bytes of the network's segments on the device.
    fn denoiser_sizes(&self) -> Sizes;

    /// The approximate peak memory of a call of the network per row on a CPU in f32, in bytes, without weights, for latents of this size
    /// and so many tokens of text. Measured; see the implementations.
    fn bytes_of_row(&self, width: usize, height: usize, text_tokens: usize, limits: &Limits) -> u64;

    /// The approximate memory of a training step per row in f32, in bytes, without weights and adapters: all activations of a forward
    /// pass, or the inputs of the segments and the backward pass of one of them. Measured; see the implementations.
    fn bytes_of_training_row(&self, width: usize, height: usize, text_tokens: usize, blockwise: bool) -> u64;

    /// The default batch size for images of a size in latent pixels with so many `rows` each: a power of two whose memory is at most half
    /// of what is available, at least one. If that is unknown, as on a GPU, four if a row is small, else one.
    fn pictures_that_fit(&self, (width, height): (usize, usize), text_tokens: usize, rows: usize) -> usize {
        let bytes = self.bytes_of_row(width, height, text_tokens, &self.limits()).max(1) * rows as u64;
        let fitting = match memory::available(self.device()) {
            Some(available) => available / 2 / bytes,
            None if bytes < SMALL => 4,
            None => 1,
        };
        1 << fitting.clamp(1, MOST_BY_ITSELF).ilog2()
    }

    /// Whether the network also takes an image to edit.
    fn edits(&self) -> bool {
        false
    }

    /// A sampler for the share `strength` of `steps` steps and latents of this width and height, with the number of its first call; by
    /// default the model's own.
    ///
    /// # Errors
    /// The schedule cannot be used with that many steps, or the sampler of this model cannot be chosen.
    fn sampler(
        &self,
        name: Option<SchedulerName>,
        steps: usize,
        strength: f64,
        size: (usize, usize),
    ) -> Result<(Box<dyn Scheduler>, usize)>;

    /// One call of the network, in f32: `latents` `[R, C, h, w]` as the sampler scales them, with a timestep and a row of
    /// `condition` each.
    fn predict(&self, latents: Tensor<4>, timesteps: &[f64], condition: &Condition) -> Tensor<4>;

    /// Denoises to scaled latents `[B, C, h, w]`. `on_step` is called after every call of the network. Noise that a sampler adds between
    /// two steps is drawn from the row's seed, so that an image does not depend on its batch, except for rounding.
    ///
    /// # Errors
    /// The request does not fit the model, its settings leave no steps, or the process is asked to stop.
    fn generate(&self, request: &Request, on_step: &mut dyn FnMut(Step<'_>)) -> Result<Tensor<4>> {
        let on_step: OnStep = &mut |step| {
            on_step(step);
            ControlFlow::Continue(())
        };
        Ok(self.generate_until(request, on_step)?.finished().expect("nobody cancelled it"))
    }

    /// The same for a caller that may cancel it after each step.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    fn generate_until(&self, request: &Request, on_step: OnStep) -> Result<Outcome<Tensor<4>>> {
        run(self, request, &mut |denoising, prediction| denoising.take(prediction), on_step)
    }

    /// The same with the caller's noise, in the shape of the latents, for samplers that add noise between two steps.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    fn generate_with(
        &self,
        request: &Request,
        noise: &mut dyn FnMut() -> Tensor<4>,
        on_step: OnStep,
    ) -> Result<Outcome<Tensor<4>>> {
        run(self, request, &mut |denoising, prediction| denoising.take_with(prediction, noise), on_step)
    }

    /// Prepares step-by-step denoising with [`advance`](Self::advance).
    ///
    /// # Errors
    /// The request does not fit the model, or its settings leave no steps.
    fn begin(&self, request: &Request) -> Result<Denoising> {
        request.check(self.edits())?;
        let ([_, channels, height, width], own) = (request.noise.dims(), self.vae().latent_channels());
        if channels != own {
            return Err(Error::setting("noise", format!("has {channels} channels, the model's latents have {own}")));
        }
        self.check_size(width * self.vae().downsampling(), height * self.vae().downsampling())?;
        let (sampler, first) = self.sampler(request.scheduler, request.steps, request.strength(), (width, height))?;
        check_first(first, sampler.timesteps(), request.steps)?;
        Ok(Denoising::new(request, sampler, first))
    }

    /// Advances all of them by one step, each from its own, in one call of the network.
    ///
    /// # Errors
    /// Their sizes or numbers of text tokens differ.
    ///
    /// # Panics
    /// One has no steps left.
    fn advance(&self, all: &mut [&mut Denoising]) -> Result<()> {
        let inputs: Vec<_> = all.iter().map(|one| one.inputs()).collect();
        let alike = |(latents, _, condition): &(Tensor<4>, _, &Condition)| {
            let [_, _, height, width] = latents.dims();
            (height, width, condition.text.prompt.dims()[1])
        };
        if inputs.windows(2).any(|pair| alike(&pair[0]) != alike(&pair[1])) {
            return Err(Error::setting("size", "is not the same for all images that are made together"));
        }
        let latents = Tensor::cat(inputs.iter().map(|(latents, ..)| latents.clone()).collect(), 0);
        let timesteps: Vec<f64> = inputs.iter().flat_map(|(_, timesteps, _)| timesteps.clone()).collect();
        let condition = Condition::join(&inputs.iter().map(|(.., condition)| *condition).collect::<Vec<_>>());
        let predictions = self.predict(latents, &timesteps, &condition);
        let mut row = 0;
        for one in all {
            one.take(predictions.clone().narrow(0, row, one.rows()));
            row += one.rows();
        }
        Ok(())
    }

    /// # Errors
    /// As [`ImageSizes::check`].
    fn check_size(&self, width: usize, height: usize) -> Result<()> {
        self.sizes().check(width, height)
    }

    /// The initial noise of an image of this seed and size, `[1, C, h, w]`: the same on every device and in every batch.
    fn start_noise(&self, seed: u64, width: usize, height: usize) -> Tensor<4> {
        let factor = self.vae().downsampling();
        let shape = [1, self.vae().latent_channels(), height / factor, width / factor];
        draw_noise([Seed(seed).draw(Purpose::Start, 0, 0)], shape, self.device())
    }

    /// Images of one size → the distributions of their raw latents, one after the other so that a large batch needs no more
    /// memory than one.
    fn encode(&self, pictures: &[RgbImage]) -> Moments {
        let limits = self.limits();
        let pixels = |picture| Tensor::from_data(data::to_pixels(picture), self.device());
        let one = |picture| self.vae().encode_within(pixels(picture), &limits).into_tensor();
        Moments::from_tensor(Tensor::cat(pictures.iter().map(one).collect(), 0))
    }

    /// Scaled latents `[B, C, h, w]` → images, one after the other.
    ///
    /// # Errors
    /// The result is not finite.
    fn decode(&self, latents: Tensor<4>) -> Result<Vec<RgbImage>> {
        let scale = self.vae().latent_scale();
        let batch = latents.dims()[0];
        let limits = self.limits();
        let one = |i| self.vae().decode_within(scale.denormalize(latents.clone().narrow(0, i, 1)), &limits);
        (0..batch).map(|i| to_image(one(i), &format!("generated image {} of {batch}", i + 1))).collect()
    }
}

/// Denoises; `take` advances by one step with a prediction.
fn run(
    pipeline: &(impl Pipeline + ?Sized),
    request: &Request,
    take: &mut dyn FnMut(&mut Denoising, Tensor<4>),
    on_step: OnStep,
) -> Result<Outcome<Tensor<4>>> {
    let mut denoising = pipeline.begin(request)?;
    while !denoising.is_done() {
        stop::check()?;
        let watched = [0, denoising.of() / 2].contains(&denoising.step());
        let _watched = watched.then(|| Stage::detail(format!("step {}", denoising.step() + 1), pipeline.device()));
        let (latents, timesteps, condition) = denoising.inputs();
        let prediction = pipeline.predict(latents, &timesteps, condition);
        take(&mut denoising, prediction);
        let (number, of) = (denoising.step(), denoising.of());
        if on_step(Step { number, of, latents: denoising.latents() }).is_break() {
            return Ok(Outcome::Cancelled(number));
        }
    }
    Ok(Outcome::Finished(denoising.latents().clone()))
}

/// # Errors
/// The error if the `first` call of a sampler for so many steps comes after its last.
pub(crate) fn check_first(first: usize, timesteps: &[f64], steps: usize) -> Result<()> {
    match first < timesteps.len() {
        true => Ok(()),
        false => Err(Error::setting("strength", format!("leaves none of the {steps} steps to run"))
            .hint("raise the strength or the steps")),
    }
}

/// Pixels `[1, 3, H, W]` in [-1, 1] → an 8-bit image; errors contain its `name`.
fn to_image(pixels: Tensor<4>, name: &str) -> Result<RgbImage> {
    let [_, _, height, width] = pixels.dims();
    let pixels = pixels.cast(FloatDType::F32).permute([0, 2, 3, 1]);
    let values: Vec<f32> = pixels.into_data().into_vec().expect("just cast to f32");
    if values.iter().any(|v| !v.is_finite()) {
        return Err(Error::setting(name, NOT_FINITE).hint(WHY_NOT_FINITE));
    }
    let bytes = values.iter().map(|v| ((v + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8).collect();
    Ok(RgbImage::from_raw(width as u32, height as u32, bytes).expect("the buffer has the size of the image"))
}

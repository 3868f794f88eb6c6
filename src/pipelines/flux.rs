//! Text to image with FLUX.1.

use std::path::Path;

use burn::tensor::{Device, FloatDType, Tensor};
use image::RgbImage;

use crate::{
    error::{Error, Result},
    models::{
        flux::{FluxInputs, FluxTransformer, draw_noise, pack, unpack},
        text::PromptEmbeds,
        vae::AutoencoderKl,
    },
    rng::{Purpose, Seed},
    schedulers::{FlowMatchEuler, flow_match},
};

/// Transformer, VAE and schedule. Text encoders are not part of it: prompts are embedded before it is loaded.
#[derive(Clone, Debug)]
pub struct FluxPipeline {
    /// The denoiser, with whatever adapters are attached.
    pub transformer: FluxTransformer,
    /// Between latents and pixels, in f32.
    pub vae: AutoencoderKl,
    /// From `scheduler/`.
    pub scheduler: FlowMatchEuler,
    device: Device,
    dtype: FloatDType,
}

/// What to make. All rows are made together, as one batch.
#[derive(Clone, Debug)]
pub struct Request {
    /// One row for each picture.
    pub text: PromptEmbeds,
    /// Where to start from, `[B, C, h, w]` in latent size, f32.
    pub noise: Tensor<4>,
    /// Calls of the transformer.
    pub steps: usize,
    /// The distilled guidance; 3.5 suits FLUX.1-dev, schnell ignores it.
    pub guidance: f64,
    /// Classifier-free guidance on top: what to keep away from, and how strongly. Doubles the cost.
    pub negative: Option<(PromptEmbeds, f64)>,
}

impl FluxPipeline {
    /// Loads everything but the text encoders from a pipeline folder. `dtype` is the transformer's.
    ///
    /// # Errors
    /// A component is missing, broken or of another kind.
    pub fn open(model: impl AsRef<Path>, device: &Device, dtype: FloatDType) -> Result<Self> {
        let model = model.as_ref();
        let transformer = FluxTransformer::open(model.join("transformer"), device, Some(dtype))?;
        let vae = AutoencoderKl::open(model.join("vae"), device, Some(FloatDType::F32))?;
        if 4 * vae.latent_channels() != transformer.config.in_channels {
            let problem = format!(
                "the VAE has {} latent channels, the transformer takes {} features a token",
                vae.latent_channels(),
                transformer.config.in_channels
            );
            return Err(Error::file(model, problem).hint("transformer and VAE must come from the same FLUX.1 model"));
        }
        let scheduler = FlowMatchEuler::open(model.join("scheduler"))?;
        Ok(Self { transformer, vae, scheduler, device: device.clone(), dtype })
    }

    /// The same pipeline around another view of the transformer, such as one without adapters. Nothing is copied.
    pub fn with_transformer(&self, transformer: FluxTransformer) -> Self {
        Self { transformer, ..self.clone() }
    }

    /// Where its tensors are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The element type of the transformer.
    pub fn dtype(&self) -> FloatDType {
        self.dtype
    }

    /// Pixels on a side that sizes must be a multiple of: a latent pixel's, twice.
    pub fn size_step(&self) -> usize {
        2 * self.vae.downsampling()
    }

    /// # Errors
    /// A side is zero or no multiple of [`size_step`](Self::size_step).
    pub fn check_size(&self, width: usize, height: usize) -> Result<()> {
        let step = self.size_step();
        for (field, side) in [("width", width), ("height", height)] {
            if side == 0 || side % step != 0 {
                let near = ((side as f64 / step as f64).round() as usize).max(1) * step;
                return Err(
                    Error::setting(field, format!("{side} is not a multiple of {step}")).hint(format!("use {near}"))
                );
            }
        }
        Ok(())
    }

    /// What a picture of this seed and size starts from, `[1, C, h, w]`: the same on every device and in every batch.
    pub fn start_noise(&self, seed: u64, width: usize, height: usize) -> Tensor<4> {
        let shape = [1, self.vae.latent_channels(), height / self.vae.downsampling(), width / self.vae.downsampling()];
        draw_noise([Seed(seed).draw(Purpose::Start, 0, 0)], shape, &self.device)
    }

    /// Denoises: normalized latents `[B, C, h, w]`. `on_step` is told the number of steps done and the latents so far.
    pub fn generate(&self, request: &Request, mut on_step: impl FnMut(usize, &Tensor<4>)) -> Tensor<4> {
        let [_, _, height, width] = request.noise.dims();
        let sigmas = self.scheduler.inference_sigmas(request.steps, (height / 2) * (width / 2));
        let mut latents = request.noise.clone().cast(FloatDType::F32);
        for (i, pair) in sigmas.windows(2).enumerate() {
            let mut velocity = self.predict(&latents, &request.text, pair[0], request.guidance);
            if let Some((text, scale)) = &request.negative {
                let away = self.predict(&latents, text, pair[0], request.guidance);
                velocity = away.clone() + (velocity - away) * *scale;
            }
            latents = flow_match::step(latents, velocity, pair[0], pair[1]);
            on_step(i + 1, &latents);
        }
        latents
    }

    /// One call of the transformer: the velocity `[B, C, h, w]` in f32.
    fn predict(&self, latents: &Tensor<4>, text: &PromptEmbeds, sigma: f32, guidance: f64) -> Tensor<4> {
        let [batch, _, height, width] = latents.dims();
        let inputs = FluxInputs {
            img: pack(latents.clone()).cast(self.dtype),
            txt: text.prompt.clone().cast(self.dtype),
            pooled: text.pooled.clone().cast(self.dtype),
            sigma: Tensor::full([batch], sigma, &self.device),
            guidance: Tensor::full([batch], guidance, &self.device),
            rope: self.transformer.config.rope(text.prompt.dims()[1], height, width, &self.device),
        };
        unpack(self.transformer.forward(&inputs).cast(FloatDType::F32), height, width)
    }

    /// Normalized latents `[B, C, h, w]` → pictures, one after the other so that a large batch needs no more memory than one.
    ///
    /// # Errors
    /// The result is not finite.
    pub fn decode(&self, latents: Tensor<4>) -> Result<Vec<RgbImage>> {
        let scale = self.vae.latent_scale();
        let batch = latents.dims()[0];
        let one = |i| self.vae.decode(scale.denormalize(latents.clone().narrow(0, i, 1)));
        (0..batch).map(|i| to_image(one(i))).collect()
    }
}

/// Pixels `[1, 3, H, W]` in [-1, 1] → an 8-bit picture.
fn to_image(pixels: Tensor<4>) -> Result<RgbImage> {
    let [_, _, height, width] = pixels.dims();
    let pixels = pixels.cast(FloatDType::F32).permute([0, 2, 3, 1]);
    let values: Vec<f32> = pixels.into_data().into_vec().expect("just cast to f32");
    if values.iter().any(|v| !v.is_finite()) {
        return Err(Error::setting("generate", "the decoded picture holds numbers that are not finite")
            .hint("a LoRA at too large a strength, or one from a run that diverged, does this"));
    }
    let bytes = values.iter().map(|v| ((v + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8).collect();
    Ok(RgbImage::from_raw(width as u32, height as u32, bytes).expect("the buffer has the size of the picture"))
}

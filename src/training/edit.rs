//! Training Stable Diffusion to edit pictures by instruction.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use image::RgbImage;

use super::{
    Dtype, Mode, ObjectiveConfig, TrainConfig, ValidationConfig,
    curve::{CurvePoint, EditCurve, IMAGE_GUIDANCES},
    grid::arrange,
    objective::{Denoising, Example},
    task::{Noised, Task, draw_normal},
};
use crate::{
    data::{Batch, Dropped, LatentDataset, SampleIndex},
    error::{Error, Result},
    models::{
        text::PromptEmbeds,
        unet::{UNet, UNetInputs},
        vae::Moments,
    },
    pipelines::{InstructPix2PixPipeline, Pipeline, Request, Similarity},
    rng::{Purpose, Seed},
};

/// An InstructPix2Pix pipeline and the objective of a model with a noise schedule.
pub(super) struct EditTask<'a> {
    pipeline: InstructPix2PixPipeline,
    objective: Denoising,
    validation: ValidationConfig,
    levels: Vec<f64>,
    dataset: &'a LatentDataset,
    /// The held-out pairs of the grid, in batches of one size.
    shown: Vec<Vec<SampleIndex>>,
}

impl<'a> EditTask<'a> {
    /// # Errors
    /// Settings do not suit the model.
    pub fn new(
        config: &TrainConfig,
        dataset: &'a LatentDataset,
        mut pipeline: InstructPix2PixPipeline,
    ) -> Result<Self> {
        check(config)?;
        if !pipeline.edits() {
            if config.training.mode == Mode::Lora {
                let problem = "an adapter cannot teach a model to look at a picture that its first layer does not read";
                return Err(Error::setting("training.mode", problem).hint(
                    "use `full` to make an editing model of this one, or point `model.path` at an editing model",
                ));
            }
            let channels = 2 * pipeline.unet.config.in_channels;
            tracing::info!("the UNet now reads {channels} channels: the new ones have no effect yet");
            pipeline.unet.widen(channels);
        }
        let validation = config.validation.clone();
        let objective = Denoising {
            config: config.edit.clone(),
            schedule: pipeline.scheduler.noise_schedule(),
            prediction: pipeline.scheduler.prediction_type,
        };
        let timesteps = objective.schedule.alphas_cumprod.len();
        if let Some(timestep) = validation.timesteps.iter().find(|&&timestep| timestep as usize >= timesteps) {
            let problem = format!("{timestep} is not below the {timesteps} timesteps of the model");
            return Err(Error::setting("validation.timesteps", problem));
        }
        if let Some(name) = validation.scheduler {
            pipeline.scheduler = pipeline.scheduler.with_name(name);
        }
        pipeline.scaled_condition = config.edit.scaled_condition;
        let mut left = validation.edits;
        let mut shown = dataset.held_out(Seed(config.run.seed));
        for batch in &mut shown {
            batch.truncate(left);
            left -= batch.len();
        }
        shown.retain(|batch| !batch.is_empty());
        let levels = validation.timesteps.iter().map(|&timestep| f64::from(timestep)).collect();
        Ok(Self { pipeline, objective, validation, levels, dataset, shown })
    }

    /// The latents of the originals as the UNet reads them.
    fn condition(&self, originals: Tensor<4>) -> Tensor<4> {
        self.pipeline.image_condition(Moments::from_tensor(originals).mode())
    }

    /// Edits the pairs of a batch, once for each seed. Original and target are as the VAE gives them back, which is the best
    /// that an edit can look.
    fn edits(&self, samples: &[SampleIndex], image_guidance: f64) -> Result<Edits> {
        let data = self.dataset.batch(samples, &vec![Dropped::default(); samples.len()], self.device())?;
        let scale = self.pipeline.vae.latent_scale();
        let original = Moments::from_tensor(originals(&data)).mode();
        let target = Moments::from_tensor(data.moments).mode();
        let text = PromptEmbeds { prompt: data.prompt, pooled: data.pooled };
        let null = self.dataset.embeds(&[""], self.device())?;
        let [_, _, height, width] = original.dims();
        let factor = self.pipeline.vae.downsampling();
        let edit = |&seed: &u64| {
            let noise = self.pipeline.start_noise(seed, width * factor, height * factor);
            let seeds = vec![seed; samples.len()];
            let noise = noise.repeat_dim(0, samples.len());
            let request = Request {
                negative: Some((null.clone(), self.validation.text_guidance)),
                original: Some((original.clone(), image_guidance)),
                ..Request::new(text.clone(), noise, seeds, self.validation.steps)
            };
            self.pipeline.decode(self.pipeline.generate(&request, &mut |_| ())?)
        };
        Ok(Edits {
            originals: self.pipeline.decode(scale.normalize(original.clone()))?,
            of_seeds: self.validation.seeds.iter().map(edit).collect::<Result<_>>()?,
            targets: self.pipeline.decode(scale.normalize(target))?,
        })
    }
}

/// Pairs and what the model makes of them, in the order of a batch.
struct Edits {
    originals: Vec<RgbImage>,
    /// For each seed, all pairs.
    of_seeds: Vec<Vec<RgbImage>>,
    targets: Vec<RgbImage>,
}

impl Task for EditTask<'_> {
    type Model = UNet;

    const PARTS: [&'static str; 2] = ["unet", "scheduler"];

    const LEVEL: &'static str = "timestep";

    fn model(&self) -> &UNet {
        &self.pipeline.unet
    }

    fn model_mut(&mut self) -> &mut UNet {
        &mut self.pipeline.unet
    }

    fn device(&self) -> &Device {
        Pipeline::device(&self.pipeline)
    }

    fn draw_level(&self, seed: Seed, step: u64, sample: u64, _: [usize; 4]) -> f64 {
        self.objective.draw_timestep(seed, step, sample) as f64
    }

    fn draw_noise(&self, seed: Seed, step: u64, first: u64, shape: [usize; 4]) -> Tensor<4> {
        let noise = draw_normal(seed, Purpose::Noise, step, first, shape, self.device());
        let offset = self.objective.config.noise_offset;
        if offset == 0.0 {
            return noise;
        }
        let [rows, channels, ..] = shape;
        noise + draw_normal(seed, Purpose::Offset, step, first, [rows, channels, 1, 1], self.device()) * offset
    }

    fn example(&self, batch: Batch, noised: Noised) -> Example<UNetInputs> {
        let condition = self.condition(originals(&batch));
        let latents = noised.latents(&Moments::from_tensor(batch.moments));
        let latents = self.pipeline.vae.latent_scale().normalize(latents);
        let timesteps: Vec<i64> = noised.levels.iter().map(|&timestep| timestep as i64).collect();
        self.objective.example(latents, condition, batch.prompt, noised.noise, &timesteps, self.pipeline.dtype())
    }

    fn levels(&self) -> &[f64] {
        &self.levels
    }

    /// Held-out pairs: a row for each, with the original, an edit for each seed, and the target.
    fn grid(&mut self, _: bool) -> Result<Option<RgbImage>> {
        let edit = |batch: &Vec<SampleIndex>| self.edits(batch, self.validation.image_guidance);
        let batches = self.shown.iter().map(edit).collect::<Result<Vec<_>>>()?;
        let pictures: Vec<&RgbImage> = batches.iter().flat_map(Edits::rows).collect();
        Ok((!pictures.is_empty()).then(|| arrange(&pictures, self.validation.seeds.len() + 2)))
    }

    fn curve(&self, clip: &Path) -> Result<EditCurve> {
        if self.shown.is_empty() {
            let problem = "no held-out pairs are edited: `validation.edits` or `data.validation_split` is 0";
            return Err(Error::setting("--clip", problem).hint("there is nothing to measure"));
        }
        let similarity = Similarity::open(clip, self.device())?;
        let samples: Vec<_> = self.shown.iter().flatten().map(|i| &self.dataset.samples()[i.sample]).collect();
        let captions =
            |i: usize| Some((samples[i].original_caption.as_deref()?, samples[i].edited_caption.as_deref()?));
        let point = |image_guidance: Option<f64>| {
            let (mut scores, mut first) = (Vec::new(), 0);
            for batch in &self.shown {
                let edits = self.edits(batch, image_guidance.unwrap_or(self.validation.image_guidance))?;
                let made = if image_guidance.is_some() { edits.of_seeds } else { vec![edits.targets] };
                for pictures in &made {
                    for (i, (original, edit)) in edits.originals.iter().zip(pictures).enumerate() {
                        scores.push(similarity.measure(original, edit, captions(first + i))?);
                    }
                }
                first += batch.len();
            }
            Ok(CurvePoint::new(image_guidance, &scores))
        };
        Ok(EditCurve {
            edits: samples.len(),
            text_guidance: self.validation.text_guidance,
            points: IMAGE_GUIDANCES.into_iter().map(|guidance| point(Some(guidance))).collect::<Result<_>>()?,
            target: point(None)?,
        })
    }
}

impl Edits {
    /// Row by row: original, edits, target.
    fn rows(&self) -> impl Iterator<Item = &RgbImage> {
        let row = |i: usize| {
            let edits = self.of_seeds.iter().map(move |pictures| &pictures[i]);
            [&self.originals[i]].into_iter().chain(edits).chain([&self.targets[i]])
        };
        (0..self.originals.len()).flat_map(row)
    }
}

/// Whether the configuration is one for editing.
fn check(config: &TrainConfig) -> Result<()> {
    if config.objective != ObjectiveConfig::default() {
        let problem = "is for FLUX.1, but the model is Stable Diffusion";
        return Err(Error::setting("objective", problem).hint("its settings are those of `[edit]`"));
    }
    if !config.validation.prompts.is_empty() {
        let problem = "is for FLUX.1; an editing model shows held-out pairs";
        return Err(Error::setting("validation.prompts", problem).hint("leave it out, and set `validation.edits`"));
    }
    if config.training.mode == Mode::Full && config.model.dtype != Dtype::F32 {
        let problem = "is too coarse for full fine-tuning, whose steps are smaller than its rounding";
        return Err(Error::setting("model.dtype", problem).hint("use \"f32\""));
    }
    Ok(())
}

/// The moments of the originals of a batch of pairs.
fn originals(batch: &Batch) -> Tensor<4> {
    batch.original.clone().expect("the dataset was prepared as pairs")
}

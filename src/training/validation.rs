//! Measuring an adapter: the loss on held-out pictures at fixed noise levels, and pictures of the configured prompts.
//!
//! Nothing here depends on the draws of training, and nothing of training depends on what is drawn here.

use std::{fmt, path::Path};

use burn::tensor::{Device, Tensor};
use image::{RgbImage, imageops};
use serde::Serialize;

use super::{TrainConfig, ValidationConfig, checkpoint::Checkpoint, objective::FlowMatching};
use crate::{
    data::{LatentDataset, SampleIndex},
    error::{Error, Result},
    lora::{self, Lora},
    memory::Stage,
    models::{text::PromptEmbeds, vae::Moments},
    pipelines::{FluxPipeline, Request},
    rng::{Purpose, Seed},
};

/// Pixels between two pictures of a grid.
const GAP: u32 = 4;

/// What a run is validated with; made once and used for every checkpoint.
pub struct Validator<'a> {
    config: &'a ValidationConfig,
    seed: Seed,
    dataset: &'a LatentDataset,
    batches: Vec<Vec<SampleIndex>>,
    objective: FlowMatching,
    job: Option<Request>,
    without_adapter: Vec<RgbImage>,
}

impl<'a> Validator<'a> {
    /// # Errors
    /// The pictures' size does not suit the model, or a prompt was not prepared.
    pub fn new(config: &'a TrainConfig, dataset: &'a LatentDataset, pipeline: &FluxPipeline) -> Result<Self> {
        let seed = Seed(config.run.seed);
        let batches = dataset.held_out(seed);
        if batches.is_empty() {
            tracing::warn!("no held-out pictures: `data.validation_split` is {}", config.data.validation_split);
        }
        let objective = FlowMatching { config: config.objective.clone(), scheduler: pipeline.scheduler.clone() };
        let job = job(&config.validation, dataset, pipeline)?;
        let config = &config.validation;
        Ok(Self { config, seed, dataset, batches, objective, job, without_adapter: Vec::new() })
    }

    /// The mean loss over all held-out pictures at each noise level, of the model as it is, adapter included. Empty if no
    /// picture is held out. Each picture has its own fixed noise, and its latents are the most likely ones.
    ///
    /// # Errors
    /// The cache is damaged, or a loss is not finite.
    pub fn losses(&self, pipeline: &FluxPipeline) -> Result<Vec<(f64, f64)>> {
        let _stage = Stage::enter("validation loss", pipeline.device());
        let mut sums = vec![0.0; self.config.sigmas.len()];
        for batch in &self.batches {
            let data = self.dataset.batch(batch, &vec![false; batch.len()], pipeline.device())?;
            let latents = pipeline.vae.latent_scale().normalize(Moments::from_tensor(data.moments).mode());
            let noise = self.noise(batch, latents.dims(), pipeline.device());
            let text = PromptEmbeds { prompt: data.prompt, pooled: data.pooled };
            for (sum, &sigma) in sums.iter_mut().zip(&self.config.sigmas) {
                let sigmas = vec![sigma as f32; batch.len()];
                let (text, model) = (text.clone(), &pipeline.transformer);
                let (latents, noise) = (latents.clone(), noise.clone());
                let example = self.objective.example(&model.config, latents, text, noise, &sigmas, pipeline.dtype());
                let difference = example.target - model.forward(&example.inputs).cast(burn::tensor::FloatDType::F32);
                let loss = f64::from(difference.square().mean().into_scalar::<f32>());
                if !loss.is_finite() {
                    let what = format!("the held-out loss at sigma {sigma}");
                    return Err(Error::setting("validation", format!("{what} is {loss}")));
                }
                *sum += loss * batch.len() as f64;
            }
        }
        let count: usize = self.batches.iter().map(Vec::len).sum();
        let means = self.config.sigmas.iter().zip(sums).map(|(&sigma, sum)| (sigma, sum / count as f64));
        Ok(if count == 0 { Vec::new() } else { means.collect() })
    }

    /// The configured prompts and seeds as one picture, made in one batch: a row for each prompt, and for each seed the
    /// picture without the adapter beside the one with it. `None` without prompts.
    ///
    /// # Errors
    /// A picture is not finite.
    pub fn grid(&mut self, pipeline: &FluxPipeline) -> Result<Option<RgbImage>> {
        let Some(job) = &self.job else { return Ok(None) };
        let _stage = Stage::enter("validation pictures", pipeline.device());
        if self.without_adapter.is_empty() {
            let mut base = pipeline.transformer.clone();
            lora::detach_all(&mut base);
            self.without_adapter = pictures(&pipeline.with_transformer(base), job)?;
        }
        let with_adapter = pictures(pipeline, job)?;
        let pairs = self.without_adapter.iter().zip(&with_adapter).flat_map(|(before, after)| [before, after]);
        Ok(Some(arrange(&pairs.collect::<Vec<_>>(), 2 * self.config.seeds.len())))
    }

    /// `[B, C, h, w]`: each picture's own noise, known by its content.
    fn noise(&self, batch: &[SampleIndex], shape: [usize; 4], device: &Device) -> Tensor<4> {
        let each = shape[1..].iter().product();
        let rows = batch.iter().flat_map(|index| {
            let picture = &self.dataset.samples()[index.sample].picture;
            self.seed.named(Purpose::Validation, &picture.hash).normal(each)
        });
        Tensor::from_data(burn::tensor::TensorData::new(rows.collect::<Vec<f32>>(), shape), device)
    }
}

/// All prompts and seeds as one batch, seeds running fastest.
fn job(config: &ValidationConfig, dataset: &LatentDataset, pipeline: &FluxPipeline) -> Result<Option<Request>> {
    if config.prompts.is_empty() {
        return Ok(None);
    }
    pipeline.check_size(config.width, config.height)?;
    let pairs = config.prompts.iter().flat_map(|prompt| config.seeds.iter().map(move |seed| (prompt.as_str(), *seed)));
    let (prompts, seeds): (Vec<_>, Vec<_>) = pairs.unzip();
    let noise = seeds.into_iter().map(|seed| pipeline.start_noise(seed, config.width, config.height));
    Ok(Some(Request {
        text: dataset.embeds(&prompts, pipeline.device())?,
        noise: Tensor::cat(noise.collect(), 0),
        steps: config.steps,
        guidance: config.guidance,
        negative: None,
    }))
}

fn pictures(pipeline: &FluxPipeline, job: &Request) -> Result<Vec<RgbImage>> {
    pipeline.decode(pipeline.generate(job, |_, _| ()))
}

/// Pictures of one size in rows of `columns`, on white.
fn arrange(pictures: &[&RgbImage], columns: usize) -> RgbImage {
    let (width, height) = pictures[0].dimensions();
    let rows = pictures.len().div_ceil(columns) as u32;
    let side = |count: u32, size: u32| count * (size + GAP) + GAP;
    let mut grid = RgbImage::from_pixel(side(columns as u32, width), side(rows, height), image::Rgb([255; 3]));
    for (i, picture) in pictures.iter().enumerate() {
        let (row, column) = ((i / columns) as u32, (i % columns) as u32);
        let (x, y) = (GAP + column * (width + GAP), GAP + row * (height + GAP));
        imageops::replace(&mut grid, *picture, i64::from(x), i64::from(y));
    }
    grid
}

/// What one checkpoint scored.
#[derive(Clone, Debug, Serialize)]
pub struct CheckpointScore {
    /// Optimizer steps; 0 is the base model.
    pub step: u64,
    /// The mean over all noise levels.
    pub loss: f64,
    /// `(sigma, loss)`.
    pub loss_at_sigma: Vec<(f64, f64)>,
    /// The grid of samples, if there are prompts.
    pub samples: Option<std::path::PathBuf>,
}

/// What validating a run or a checkpoint found: the base model first, then the checkpoints from old to new.
#[derive(Clone, Debug, Serialize)]
pub struct ValidationReport {
    /// A row for each.
    pub checkpoints: Vec<CheckpointScore>,
    /// The step with the lowest held-out loss; 0 if no checkpoint is better than the base model.
    pub best_step: Option<u64>,
    /// Host memory in use before the first measurement and after the last, MiB.
    pub memory_mib: [f64; 2],
}

impl ValidationReport {
    /// The report of these scores.
    fn new(checkpoints: Vec<CheckpointScore>, memory_mib: [f64; 2]) -> Self {
        let measured = checkpoints.iter().filter(|score| score.loss.is_finite());
        let best = measured.min_by(|a, b| a.loss.total_cmp(&b.loss)).map(|score| score.step);
        Self { checkpoints, best_step: best, memory_mib }
    }
}

impl fmt::Display for ValidationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sigmas = self.checkpoints.first().map(|score| score.loss_at_sigma.as_slice()).unwrap_or_default();
        write!(f, "{:>8}  {:>8}", "step", "loss")?;
        sigmas.iter().try_for_each(|(sigma, _)| write!(f, "  {:>8}", format!("σ {sigma}")))?;
        for score in &self.checkpoints {
            write!(f, "\n{:>8}  {:>8.5}", score.step, score.loss)?;
            score.loss_at_sigma.iter().try_for_each(|(_, loss)| write!(f, "  {loss:>8.5}"))?;
            if let Some(path) = &score.samples {
                write!(f, "  {}", path.display())?;
            }
        }
        match self.best_step {
            Some(0) => write!(f, "\nno checkpoint is better than the base model")?,
            Some(step) => write!(f, "\nbest: step-{step:06}")?,
            None => write!(f, "\nno picture is held out, so there is no loss: set `data.validation_split`")?,
        }
        write!(f, "\nmemory: {:.0} MiB before, {:.0} MiB after", self.memory_mib[0], self.memory_mib[1])
    }
}

/// Writes a grid into a run's `samples/`.
///
/// # Errors
/// The disk refuses.
pub fn save_grid(run: &Path, step: u64, grid: &RgbImage) -> Result<std::path::PathBuf> {
    let folder = run.join("samples");
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let path = folder.join(format!("step-{step:06}.png"));
    grid.save(&path).map_err(|e| Error::file(&path, e.to_string()))?;
    Ok(path)
}

/// Measures a checkpoint, or all of a run, with the run's own configuration. The base weights are loaded once.
///
/// # Errors
/// `path` is no run and no checkpoint, or what the run was made from is gone or changed.
pub fn validate(path: &Path, device: &Device) -> Result<ValidationReport> {
    let (run, checkpoints) = Checkpoint::resolve(path)?;
    let config = TrainConfig::load(run.join(super::CONFIG), &[])?;
    let (model, dataset) = super::prepare_dataset(&config, device, &mut super::Silent)?;
    let mut pipeline = FluxPipeline::open(&model, device, config.model.dtype.into())?;
    let mut validator = Validator::new(&config, &dataset, &pipeline)?;
    let before = crate::memory::usage(device).resident_mib();
    let score = |step, losses: Vec<(f64, f64)>, samples| {
        let loss = losses.iter().map(|(_, loss)| loss).sum::<f64>() / losses.len() as f64;
        CheckpointScore { step, loss, loss_at_sigma: losses, samples }
    };
    let mut scores = vec![score(0, validator.losses(&pipeline)?, None)];
    for checkpoint in checkpoints {
        tracing::info!("validating {}", checkpoint.folder.display());
        lora::detach_all(&mut pipeline.transformer);
        Lora::read(checkpoint.adapter())?.attach(&mut pipeline.transformer, 1.0)?;
        let losses = validator.losses(&pipeline)?;
        let samples = validator.grid(&pipeline)?.map(|grid| save_grid(&run, checkpoint.step, &grid)).transpose()?;
        scores.push(score(checkpoint.step, losses, samples));
    }
    crate::memory::release(device);
    Ok(ValidationReport::new(scores, [before, crate::memory::usage(device).resident_mib()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_shows_pictures_row_by_row() {
        let colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]].map(image::Rgb);
        let pictures = colours.map(|colour| RgbImage::from_pixel(3, 2, colour));
        let grid = arrange(&pictures.iter().collect::<Vec<_>>(), 2);
        assert_eq!(grid.dimensions(), (2 * 7 + 4, 2 * 6 + 4));
        assert_eq!([grid[(4, 4)], grid[(11, 4)], grid[(4, 10)], grid[(11, 11)]], colours);
        assert_eq!(grid[(0, 0)], image::Rgb([255; 3]));
    }
}

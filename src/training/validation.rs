//! Measuring an adapter: the loss on held-out pictures at fixed noise levels, and pictures of the configured prompts.
//!
//! Nothing here depends on the draws of training, and nothing of training depends on what is drawn here.

use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use image::{RgbImage, imageops};

use super::{ObjectiveConfig, TrainConfig, ValidationConfig, Weighting, objective::FlowMatching};
use crate::{
    data::{LatentDataset, SampleIndex},
    error::{Error, Result},
    lora,
    memory::Stage,
    models::{Segmented, flux::draw_noise, text::PromptEmbeds, vae::Moments},
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
        // The loss of training, but with every noise level counting the same: the levels are compared with each other.
        let unweighted = ObjectiveConfig { weighting: Weighting::None, ..config.objective.clone() };
        let objective = FlowMatching { config: unweighted, scheduler: pipeline.scheduler.clone() };
        let job = job(&config.validation, dataset, pipeline)?;
        let config = &config.validation;
        Ok(Self { config, seed, dataset, batches, objective, job, without_adapter: Vec::new() })
    }

    /// The mean loss over all held-out pictures at each noise level, of the model as it is, adapter included. Empty if no
    /// picture is held out. Each picture has its own fixed noise, and its latents are the most likely ones.
    ///
    /// # Errors
    /// The cache is damaged.
    pub fn losses(&self, pipeline: &FluxPipeline) -> Result<Vec<(f64, f64)>> {
        let _stage = Stage::enter("validation loss", pipeline.device());
        let mut sums = vec![0.0; self.config.sigmas.len()];
        for batch in &self.batches {
            let data = self.dataset.batch(batch, &vec![false; batch.len()], pipeline.device())?;
            let latents = pipeline.vae.latent_scale().normalize(Moments::from_tensor(data.moments).mode());
            // Each picture's own noise, known by its content.
            let pictures = batch.iter().map(|index| &self.dataset.samples()[index.sample].picture);
            let draws = pictures.map(|picture| self.seed.named(Purpose::Validation, &picture.hash));
            let noise = draw_noise(draws, latents.dims(), pipeline.device());
            let text = PromptEmbeds { prompt: data.prompt, pooled: data.pooled };
            for (sum, &sigma) in sums.iter_mut().zip(&self.config.sigmas) {
                let sigmas = vec![sigma as f32; batch.len()];
                let (text, model) = (text.clone(), &pipeline.transformer);
                let (latents, noise) = (latents.clone(), noise.clone());
                let example = self.objective.example(&model.config, latents, text, noise, &sigmas, pipeline.dtype());
                let loss = example.loss(model.predict(&example.inputs)).into_scalar::<f32>();
                *sum += f64::from(loss) * batch.len() as f64;
            }
        }
        let count: usize = self.batches.iter().map(Vec::len).sum();
        let means = self.config.sigmas.iter().zip(sums).map(|(&sigma, sum)| (sigma, sum / count as f64));
        Ok(if count == 0 { Vec::new() } else { means.collect() })
    }

    /// The configured prompts and seeds as one picture, made in one batch: a row for each prompt, and for each seed the
    /// picture without the adapter beside the one with it. `None` without prompts. An adapter that is not `trained` yet
    /// changes nothing, so nothing is made twice.
    ///
    /// # Errors
    /// A picture is not finite.
    pub fn grid(&mut self, pipeline: &FluxPipeline, trained: bool) -> Result<Option<RgbImage>> {
        let Some(job) = &self.job else { return Ok(None) };
        let _stage = Stage::enter("validation pictures", pipeline.device());
        if self.without_adapter.is_empty() {
            let mut base = pipeline.transformer.clone();
            lora::detach_all(&mut base);
            self.without_adapter = pictures(&pipeline.with_transformer(base), job)?;
        }
        let with_adapter = if trained { pictures(pipeline, job)? } else { self.without_adapter.clone() };
        let pairs = self.without_adapter.iter().zip(&with_adapter).flat_map(|(before, after)| [before, after]);
        Ok(Some(arrange(&pairs.collect::<Vec<_>>(), 2 * self.config.seeds.len())))
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

/// Writes a grid into a run's `samples/`.
///
/// # Errors
/// The disk refuses.
pub fn save_grid(run: &Path, step: u64, grid: &RgbImage) -> Result<PathBuf> {
    let folder = run.join("samples");
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let path = folder.join(format!("step-{step:06}.png"));
    grid.save(&path).map_err(|e| Error::file(&path, e.to_string()))?;
    Ok(path)
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

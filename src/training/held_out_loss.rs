//! The held-out loss, at fixed noise levels.
//!
//! Its random numbers are independent of those of training.

use super::{
    objective::{Draw, Objective},
    task::Task,
};
use crate::{
    data::{Dropped, LatentDataset, SampleIndex},
    error::Result,
    memory::Stage,
    models::{Network, draw_noise},
    nn::Adapters,
    rng::{Purpose, Seed},
    stop,
};

/// The validation of a run, set up once and used for every checkpoint.
pub(super) struct Validator<'a> {
    seed: Seed,
    dataset: &'a LatentDataset,
    batches: Vec<Vec<SampleIndex>>,
}

impl<'a> Validator<'a> {
    /// A validation on the samples of `dataset` that are held out under `seed`.
    pub fn new(seed: Seed, dataset: &'a LatentDataset) -> Self {
        let batches = dataset.held_out(seed);
        if batches.is_empty() {
            tracing::warn!("no images are held out: `data.validation_split` is 0, or there is only one image");
        }
        Self { seed, dataset, batches }
    }

    /// Whether any samples are held out.
    pub fn has_samples(&self) -> bool {
        !self.batches.is_empty()
    }

    /// The mean loss over all held-out samples at each noise level, of the model with `adapters`. Levels and samples have equal weights,
    /// whatever the weighting in training. Empty if no sample is held out. Each image has its own fixed noise, and its latents are the
    /// mode of the VAE's posterior.
    ///
    /// # Errors
    /// The cache is damaged, or the process is asked to stop.
    pub fn losses(&self, task: &impl Task, adapters: &[Adapters]) -> Result<Vec<(f64, f64)>> {
        let _stage = Stage::enter("validation loss", task.device());
        let levels = task.levels();
        let mut sums = vec![0.0; levels.len()];
        for batch in &self.batches {
            let data = self.dataset.batch(batch, &vec![Dropped::default(); batch.len()], task.device())?;
            let [rows, moments, height, width] = data.moments.dims();
            // Each image has its own noise, by its content.
            let pictures = batch.iter().map(|index| &self.dataset.samples()[index.sample].picture);
            let draws = pictures.map(|picture| self.seed.named(Purpose::Validation, &picture.hash));
            let noise = draw_noise(draws, [rows, moments / 2, height, width], task.device());
            for (sum, &level) in sums.iter_mut().zip(levels) {
                stop::check()?;
                let draw = Draw { posterior: None, noise: noise.clone(), levels: vec![level; rows] };
                let example = task.objective().batch_example(task.pipeline(), data.clone(), draw);
                let errors = example.errors(task.model().predict(&example.inputs, adapters));
                *sum += f64::from(errors.sum().into_scalar::<f32>());
            }
        }
        let count: usize = self.batches.iter().map(Vec::len).sum();
        let means = levels.iter().zip(sums).map(|(&level, sum)| (level, sum / count as f64));
        Ok(if count == 0 { Vec::new() } else { means.collect() })
    }
}

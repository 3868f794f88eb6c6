//! Tasks: what can be trained, each with its model and its objective.

mod instruct_pix2pix;
mod flux;

use burn::tensor::Device;

use super::{ModelInit, ObjectiveConfig, TrainConfig, prepare::Prepared, task::Task};
use crate::{
    error::Result,
    memory::Stage,
    pipelines::{FluxPipeline, InstructPix2PixPipeline, Pipeline},
    rng::Seed,
};
use flux::FluxTask;
use instruct_pix2pix::InstructPix2PixTask;

/// What is done with a task, whichever it is.
pub(in crate::training) trait Job {
    /// What comes of it.
    type Output;

    /// Does it.
    ///
    /// # Errors
    /// Whatever goes wrong.
    fn run<T: Task>(self, task: T) -> Result<Self::Output>;
}

/// Loads the model and does `job` with the task that it is trained for.
///
/// # Errors
/// The model cannot be loaded, settings do not suit it, or the job fails.
pub(in crate::training) fn with_task<J: Job>(
    config: &TrainConfig,
    prepared: &Prepared,
    device: &Device,
    job: J,
) -> Result<J::Output> {
    let loading = Stage::enter("load", device);
    let family = prepared.family;
    let (model, dtype, seed) = (&prepared.model, config.model.dtype.into(), Seed(config.run.seed));
    if config.model.init == ModelInit::Random {
        tracing::info!("the denoiser starts from random weights, drawn from the seed {}", seed.0);
    }
    match &config.objective {
        ObjectiveConfig::FlowMatching(objective) => {
            let mut pipeline = match config.model.init {
                ModelInit::Pretrained => FluxPipeline::open_as(prepared.level, model, device, dtype)?,
                ModelInit::Random => FluxPipeline::untrained(prepared.level.into(), model, seed, device)?,
            };
            pipeline.limit(prepared.level.limits());
            drop(loading);
            job.run(FluxTask::new(config, objective, &prepared.dataset, family, pipeline)?)
        }
        ObjectiveConfig::InstructPix2Pix(objective) => {
            let mut pipeline = match config.model.init {
                ModelInit::Pretrained => InstructPix2PixPipeline::open_as(prepared.level, model, device, dtype)?,
                ModelInit::Random => InstructPix2PixPipeline::untrained(prepared.level.into(), model, seed, device)?,
            };
            pipeline.limit(prepared.level.limits());
            drop(loading);
            job.run(InstructPix2PixTask::new(config, objective, &prepared.dataset, family, pipeline))
        }
    }
}

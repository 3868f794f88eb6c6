//! Tasks: kinds of training, each with its model and its objective.

mod instruct_pix2pix;
mod flux;

use burn::tensor::Device;

use super::{ModelInit, ObjectiveConfig, TrainConfig, prepare::Prepared};
use crate::{
    error::Result,
    memory::Stage,
    pipelines::{FluxPipeline, InstructPix2PixPipeline, Pipeline},
    rng::Seed,
};
use flux::FluxTask;
use instruct_pix2pix::InstructPix2PixTask;

/// The task of a run, with its model loaded.
pub(in crate::training) enum AnyTask<'a> {
    /// FLUX.1, by flow matching.
    Flux(Box<FluxTask>),
    /// Stable Diffusion, to edit images by instruction.
    InstructPix2Pix(Box<InstructPix2PixTask<'a>>),
}

/// Does the same work with a task of any kind: `each_task!(any, task => …)`.
macro_rules! each_task {
    ($any:expr, $task:ident => $work:expr) => {
        match $any {
            $crate::training::tasks::AnyTask::Flux($task) => $work,
            $crate::training::tasks::AnyTask::InstructPix2Pix($task) => $work,
        }
    };
}
pub(in crate::training) use each_task;

/// Loads the model, and sets up its task.
///
/// # Errors
/// The model cannot be loaded, or settings do not fit it.
pub(in crate::training) fn open_task<'a>(
    config: &TrainConfig,
    prepared: &'a Prepared,
    device: &Device,
) -> Result<AnyTask<'a>> {
    let _loading = Stage::enter("load", device);
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
            let task = FluxTask::new(config, objective, &prepared.dataset, family, pipeline)?;
            Ok(AnyTask::Flux(Box::new(task)))
        }
        ObjectiveConfig::InstructPix2Pix(objective) => {
            let mut pipeline = match config.model.init {
                ModelInit::Pretrained => InstructPix2PixPipeline::open_as(prepared.level, model, device, dtype)?,
                ModelInit::Random => InstructPix2PixPipeline::untrained(prepared.level.into(), model, seed, device)?,
            };
            pipeline.limit(prepared.level.limits());
            let task = InstructPix2PixTask::new(config, objective, &prepared.dataset, family, pipeline);
            Ok(AnyTask::InstructPix2Pix(Box::new(task)))
        }
    }
}

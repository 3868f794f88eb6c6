//! From a configuration to a model folder and an encoded dataset.

use std::{cell::RefCell, path::PathBuf};

use burn::tensor::Device;

use super::{
    Display, TrainConfig,
    plan::{Outline, levels},
};
use crate::{
    data::{self, BatchOrder, Encoders, LatentDataset},
    error::{Error, Result},
    families::{self, Family, ModelEncoders},
    memory::{self, Level, LevelChoice, Stage},
    rng::Seed,
};

/// The inputs of a run before its model is loaded.
pub(super) struct Prepared {
    /// The model's folder.
    pub model: PathBuf,
    /// The family of the model.
    pub family: &'static dyn Family,
    /// The encoded samples.
    pub dataset: LatentDataset,
    /// The memory level.
    pub level: Level,
}

/// Checks the run and encodes what the cache lacks. `chosen` is the fastest memory level allowed, and is set to the chosen one.
pub(super) fn prepare_dataset(
    config: &TrainConfig,
    device: &Device,
    display: &mut dyn Display,
    chosen: &mut Level,
) -> Result<Prepared> {
    let model = config.model.folder()?;
    let family = families::of(&model)?;
    config.check_against_model(family, &model)?;
    let level = Outline::of(config, family, &model, device, *chosen)?.memory.level;
    *chosen = level;
    let _stage = Stage::enter("prepare", device);
    let encoders = ModelEncoders::open(&model, device, config.model.dtype.into())?;
    let mut encoders = encoders.placed(level.into()).within(level.limits());
    let display = RefCell::new(display);
    let progress = |p: data::Progress| display.borrow_mut().phase(&p.phase.to_string(), p.done as u64, p.total as u64);
    let (kind, prompts) = (config.objective.kind().data(), &config.validation.prompts);
    let dataset = data::prepare(&config.data, kind, prompts, &mut encoders as &mut dyn Encoders, &progress);
    let dataset = dataset.map_err(|error| match error.is_stop() {
        true => {
            let cache = config.data.cache_folder();
            let what =
                format!("; what was prepared is in {}, and the same command continues from there", cache.display());
            Error::stopped(what, Vec::new())
        }
        false => error,
    })?;
    Ok(Prepared { model, family, dataset, level })
}

/// The training order of a run.
///
/// # Errors
/// All images are held out.
pub(super) fn batches(dataset: &LatentDataset, seed: Seed) -> Result<BatchOrder> {
    let plan = dataset.plan(seed);
    match plan.batches_per_epoch() {
        0 => Err(Error::setting("data.validation_split", "leaves no image to train on")),
        _ => Ok(plan),
    }
}

/// Does `work` at the memory level that it chooses, no faster than `level`. If the device runs out of memory and the configuration
/// names no level, the work is repeated at the next level.
///
/// # Errors
/// Those of the work; or the device runs out of memory at the last level, or at the one in the configuration.
pub(super) fn fitting<T>(
    config: &TrainConfig,
    device: &Device,
    level: &mut Level,
    work: impl FnMut(&mut Level) -> Result<T>,
) -> Result<T> {
    memory::fitting(device, level, work, |level| {
        let possible = |lower: &Level| levels(config.training.mode).contains(lower);
        let lower = level.next().filter(|_| config.memory.level == LevelChoice::Auto).filter(possible);
        *level = lower.unwrap_or(*level);
        Ok(lower)
    })
}

/// Encodes images and captions into the cache, so that training starts at once; returns the cache folder.
///
/// # Errors
/// Images, captions, settings or the model are invalid, or the cache cannot be written.
pub fn prepare(config: &TrainConfig, device: &Device, display: &mut dyn Display) -> Result<PathBuf> {
    let mut level = Level::None;
    fitting(config, device, &mut level, |level| prepare_dataset(config, device, display, level))?;
    Ok(config.data.cache_folder())
}

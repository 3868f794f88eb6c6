//! From a configuration to a model folder and an encoded dataset.

use std::{cell::RefCell, path::PathBuf};

use burn::tensor::Device;

use super::{Display, TrainConfig, plan::Outline};
use crate::{
    data::{self, Encoders, LatentDataset},
    error::{Error, Result},
    families::{self, Family, ModelEncoders},
    memory::{Level, Stage},
};

/// What a run needs before its model is loaded.
pub(super) struct Prepared {
    /// The model's folder.
    pub model: PathBuf,
    /// The kind of model in it.
    pub family: &'static dyn Family,
    /// All samples, encoded.
    pub dataset: LatentDataset,
    /// How much of the model is in device memory at once.
    pub level: Level,
}

/// Checks and encodes what the cache lacks.
pub(super) fn prepare_dataset(config: &TrainConfig, device: &Device, display: &mut dyn Display) -> Result<Prepared> {
    let model = config.model.folder()?;
    let family = families::of(&model)?;
    config.check_against_model(family, &model)?;
    let level = Outline::of(config, family, &model, device)?.memory.level;
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

/// Encodes images and captions into the cache, so that training starts at once; returns the cache folder.
///
/// # Errors
/// Images, captions, settings or the model are wrong, or the disk refuses.
pub fn prepare(config: &TrainConfig, device: &Device, display: &mut dyn Display) -> Result<PathBuf> {
    prepare_dataset(config, device, display)?;
    Ok(config.data.cache_folder())
}

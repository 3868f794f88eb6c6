//! The loaded models of the engine, and unloading models to make room for another.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::Ordering,
    time::Instant,
};

use burn::tensor::Device;

use super::{models::Model, numbers::Numbers, preview::Colors};
use crate::{
    error::{Error, Result},
    generation::Session,
    memory::{Level, LevelChoice, MemoryConfig, Plan, Stage, attempt, release},
};

/// A model with its weights.
pub struct Loaded {
    pub session: Session,
    /// The colors of its latents, for previews.
    pub colors: Colors,
    /// How many images of each size fit into memory.
    fitting: HashMap<(usize, usize), usize>,
    used: Instant,
}

impl Loaded {
    /// The maximum number of images of a size that are denoised together: `most`, or fewer if memory does not suffice.
    pub fn at_once(&mut self, size: (usize, usize), most: usize) -> usize {
        let session = &self.session;
        let fitting = *self.fitting.entry(size).or_insert_with(|| session.images_at_once(size).unwrap_or(1));
        fitting.clamp(1, most)
    }
}

/// All models, by number; `None` if not loaded.
pub struct Loads {
    all: Vec<Option<Loaded>>,
    device: Device,
    /// The maximum number of images that are denoised together.
    rows: usize,
}

impl Loads {
    /// Starts with no model loaded.
    pub fn new(models: usize, device: &Device, rows: usize) -> Self {
        Self { all: (0..models).map(|_| None).collect(), device: device.clone(), rows }
    }

    /// A model, if it is loaded.
    pub fn get(&mut self, number: usize) -> Option<&mut Loaded> {
        let loaded = self.all[number].as_mut()?;
        loaded.used = Instant::now();
        Some(loaded)
    }

    /// The number of loaded models.
    fn count(&self) -> usize {
        self.all.iter().flatten().count()
    }

    /// Loads a model, unless it is loaded. Other models are unloaded, least recently used first, as long as it would otherwise need a
    /// slower memory level.
    ///
    /// # Errors
    /// It cannot be loaded, or does not fit into memory.
    pub fn load(&mut self, number: usize, models: &[Model], numbers: &Numbers) -> Result<&mut Loaded> {
        if self.all[number].is_none() {
            let (model, started) = (&models[number], Instant::now());
            let stage = Stage::watch(format!("loading {}", model.entry.name), &self.device);
            let mut session = Session::open(&model.entry.path, &self.device)?.keeping_text_encoders();
            let config = MemoryConfig { level: model.entry.memory, ..MemoryConfig::default() };
            let plan = loop {
                let plan = session.fit_native(&config, self.rows).or_else(|_| session.fit_native(&config, 1));
                let is_best = |plan: &Plan| plan.level == Level::None || config.level != LevelChoice::Auto;
                let oldest =
                    (0..self.all.len()).filter_map(|other| Some((self.all[other].as_ref()?.used, other))).min();
                match (plan, oldest) {
                    (Ok(plan), _) if is_best(&plan) => break plan,
                    (_, Some((_, oldest))) => self.unload(oldest, models, numbers),
                    (plan, None) => break plan?,
                }
            };
            session.load()?;
            let (seconds, measured) = (started.elapsed().as_secs_f64(), stage.measure());
            drop(stage);
            let (before, after) = (measured.before >> 20, measured.after >> 20);
            let (name, level) = (&model.entry.name, plan.level.word());
            tracing::info!(
                "model {name}: loaded in {seconds:.2} s at memory level `{level}`, {before} → {after} MiB in use"
            );
            numbers.model_loads.inc();
            numbers.model_load_seconds.observe(seconds);
            let loaded = Loaded { session, colors: Colors::default(), fitting: HashMap::new(), used: Instant::now() };
            self.all[number] = Some(loaded);
            model.is_loaded.store(true, Ordering::Relaxed);
            numbers.models_loaded.set(self.count() as i64);
        }
        self.get(number).ok_or_else(|| Error::setting("model", "is not loaded"))
    }

    /// Unloads a model.
    pub fn unload(&mut self, number: usize, models: &[Model], numbers: &Numbers) {
        if self.all[number].take().is_some() {
            release(&self.device);
            tracing::info!("model {}: unloaded", models[number].entry.name);
        }
        models[number].is_loaded.store(false, Ordering::Relaxed);
        numbers.models_loaded.set(self.count() as i64);
    }
}

/// Runs a piece of the engine's work: a panic ends the job, not the server.
///
/// # Errors
/// Those of `work`; or `device` is out of memory, or `work` panicked.
pub fn caught<T>(device: &Device, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(|| attempt(device, work))).unwrap_or_else(|_| {
        Err(Error::setting("job", "internal error; please report this").hint("the server's log has the details"))
    })
}

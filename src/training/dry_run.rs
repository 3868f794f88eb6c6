//! `--dry-run`: a summary of a run, without running it.

use std::{cell::RefCell, collections::BTreeMap, fmt};

use burn::tensor::Device;

use super::{Display, Mode, TrainConfig, plan::Outline, prepare::batches};
use crate::{
    data::{self, Bucket, Examined},
    error::Result,
    families::{self, ModelEncoders},
    memory::{Level, Plan},
    notice::grouped,
    rng::Seed,
};

/// The summary of a run that was checked but not started.
#[derive(Clone, Debug)]
pub struct DryRun {
    /// The resolved configuration as TOML.
    pub config: String,
    /// The number of images of each size.
    pub buckets: BTreeMap<Bucket, usize>,
    /// Images and prompts that are not encoded yet.
    pub to_encode: [usize; 2],
    /// Held-out images.
    pub held_out: usize,
    /// Optimizer steps per epoch.
    pub steps_per_epoch: f64,
    /// Optimizer steps of the run.
    pub steps: u64,
    /// Trainable parameters.
    pub parameters: usize,
    /// The layers that are trained.
    pub mode: Mode,
    /// The memory plan.
    pub memory: Plan,
}

/// Checks a run as [`train`](super::train) does before it loads weights. Loads no weights, encodes and writes nothing.
///
/// # Errors
/// Settings, images, captions or the model are invalid, or no memory level fits.
pub fn dry_run(config: &TrainConfig, device: &Device, display: &mut dyn Display) -> Result<DryRun> {
    let model = config.model.folder()?;
    let family = families::of(&model)?;
    config.check_against_model(family, &model)?;
    let outline = Outline::of(config, family, &model, device, Level::None)?;
    let encoders = ModelEncoders::open(&model, device, config.model.dtype.into())?;
    let display = RefCell::new(display);
    let progress = |p: data::Progress| display.borrow_mut().phase(&p.phase.to_string(), p.done as u64, p.total as u64);
    let (kind, texts) = (config.objective.kind().data(), &config.validation.prompts);
    let Examined { dataset, images, prompts } = data::examine(&config.data, kind, texts, &encoders, &progress)?;
    let seed = Seed(config.run.seed);
    let batches = batches(&dataset, seed)?.batches_per_epoch();
    let mut buckets = BTreeMap::new();
    dataset.samples().iter().for_each(|sample| *buckets.entry(sample.picture.bucket).or_default() += 1);
    Ok(DryRun {
        config: config.to_toml()?,
        buckets,
        to_encode: [images, prompts],
        held_out: dataset.held_out(seed).iter().map(Vec::len).sum(),
        steps_per_epoch: batches as f64 / config.training.gradient_accumulation as f64,
        steps: config.training.max_steps,
        parameters: outline.parameters,
        mode: config.training.mode,
        memory: outline.memory,
    })
}

impl fmt::Display for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: Vec<_> = self.buckets.iter().map(|(bucket, count)| format!("{count} of {bucket}")).collect();
        let [images, prompts] = self.to_encode;
        let what = match self.mode {
            Mode::Lora => "in adapters",
            Mode::Full => "in the denoiser",
        };
        writeln!(f, "{}", self.config)?;
        writeln!(f, "images: {}; {} held out", sizes.join(", "), self.held_out)?;
        writeln!(f, "to encode first: {images} images, {prompts} prompts")?;
        let epochs = self.steps as f64 / self.steps_per_epoch;
        writeln!(f, "steps: {}, of which {:.1} are an epoch: {epochs:.1} epochs", self.steps, self.steps_per_epoch)?;
        writeln!(f, "trainable parameters: {} {what}", grouped(self.parameters))?;
        write!(f, "{}", self.memory)
    }
}

//! `validate`: the held-out losses of a run or a checkpoint, as a table.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use serde::Serialize;

use super::{
    EditCurve, Silent, TrainConfig,
    checkpoint::{Checkpoint, Held},
    held_out_loss::Validator,
    objective::Objective,
    origin::Origin,
    prepare::{Prepared, prepare_dataset},
    record::{grid::save_grid, metrics::mean_loss, started},
    run_config::run_config,
    step::trainable::Trainable,
    task::Task,
    tasks::{AnyTask, each_task, open_task},
};
use crate::{
    error::{Error, Result},
    families::ObjectiveKind,
    memory::{self, Level, MemoryConfig},
    nn::Adapters,
    pipelines::Similarity,
    rng::Seed,
    stop,
};

/// The scores of one checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct CheckpointScore {
    /// Optimizer steps; 0 is the base model.
    pub step: u64,
    /// The mean loss over all noise levels.
    pub loss: f64,
    /// `(noise level, loss)`.
    pub loss_at_level: Vec<(f64, f64)>,
    /// The grid of images, if the configuration asks for any.
    pub samples: Option<PathBuf>,
}

/// The results of a validation: the base model first, then the checkpoints from old to new.
#[derive(Clone, Debug, Serialize)]
pub struct ValidationReport {
    /// The name of a noise level: `sigma` or `timestep`.
    pub level: &'static str,
    /// The scores, one row each.
    pub checkpoints: Vec<CheckpointScore>,
    /// The step with the lowest held-out loss; 0 if no checkpoint is better than the base model.
    pub best_step: Option<u64>,
    /// The CLIP curve of the newest checkpoint, if requested.
    pub curve: Option<EditCurve>,
    /// Checkpoints that were not measured, because the process was asked to stop.
    pub unmeasured: usize,
    /// Host memory in use before the first measurement and after the last, MiB.
    pub memory_mib: [f64; 2],
}

impl ValidationReport {
    /// The report of these scores.
    fn new(
        level: &'static str,
        checkpoints: Vec<CheckpointScore>,
        curve: Option<EditCurve>,
        unmeasured: usize,
        memory_mib: [f64; 2],
    ) -> Self {
        let measured = checkpoints.iter().filter(|score| score.loss.is_finite());
        let best = measured.min_by(|a, b| a.loss.total_cmp(&b.loss)).map(|score| score.step);
        Self { level, checkpoints, best_step: best, curve, unmeasured, memory_mib }
    }
}

impl fmt::Display for ValidationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let levels = self.checkpoints.first().map(|score| score.loss_at_level.as_slice()).unwrap_or_default();
        let width = self.level.len() + 4;
        write!(f, "{:>8}  {:>8}", "step", "loss")?;
        levels.iter().try_for_each(|(level, _)| write!(f, "  {:>width$}", format!("{} {level}", self.level)))?;
        for score in &self.checkpoints {
            write!(f, "\n{:>8}", score.step)?;
            match score.loss.is_finite() {
                true => write!(f, "  {:>8.5}", score.loss)?,
                false => write!(f, "  {:>8}", "-")?,
            }
            score.loss_at_level.iter().try_for_each(|(_, loss)| write!(f, "  {loss:>width$.5}"))?;
            if let Some(path) = &score.samples {
                write!(f, "  {}", path.display())?;
            }
        }
        match self.best_step {
            Some(0) => write!(f, "\nno checkpoint is better than the base model")?,
            Some(step) => write!(f, "\nbest: step-{step:06}")?,
            None => write!(f, "\nno image is held out, so there is no loss: set `data.validation_split`")?,
        }
        if self.unmeasured > 0 {
            write!(f, "\nstopped on request; checkpoints not measured: {}", self.unmeasured)?;
        }
        if let Some(curve) = &self.curve {
            write!(f, "\n{curve}")?;
        }
        write!(f, "\nmemory: {:.0} MiB before, {:.0} MiB after", self.memory_mib[0], self.memory_mib[1])
    }
}

/// Validates a checkpoint, or all of a run, with the run's own configuration, using the EMA if there is one. The base weights are
/// loaded once, at the memory level of `memory` or of the run. With `clip`, the folder of a CLIP model, the edits of the newest
/// checkpoint are measured, too.
///
/// # Errors
/// `path` is neither a run nor a checkpoint, the model or data of the run is missing or changed, or the device runs out of memory.
pub fn validate(
    path: &Path,
    clip: Option<&Path>,
    memory: Option<MemoryConfig>,
    device: &Device,
) -> Result<ValidationReport> {
    memory::attempt(device, || measure(path, clip, memory, device))
}

fn measure(
    path: &Path,
    clip: Option<&Path>,
    memory: Option<MemoryConfig>,
    device: &Device,
) -> Result<ValidationReport> {
    let (run, checkpoints) = Checkpoint::hold(path)?;
    let mut config = started::from_its_start(&run, &run_config(&run, &[])?);
    config.memory = memory.unwrap_or(config.memory);
    let prepared = prepare_dataset(&config, device, &mut Silent, &mut Level::None)?;
    let held_out = !prepared.dataset.held_out(Seed(config.run.seed)).is_empty();
    if !held_out && config.validation.prompts.is_empty() {
        let problem = "no image was held out, and there are no prompts to generate: there is nothing to validate";
        return Err(Error::setting("data.validation_split", problem).hint(
            "set it to 0.1 or so before training; for FLUX.1, `validation.prompts` in the run's config.toml generates images",
        ));
    }
    let similarity = match clip {
        Some(_) if config.objective.kind() == ObjectiveKind::FlowMatching => {
            return Err(Error::setting("clip", "is for models that edit images").hint("leave it out"));
        }
        Some(_) if !held_out || config.validation.edits == 0 || config.validation.seeds.is_empty() => {
            let problem = "the run's config.toml asks for no edits of held-out pairs";
            return Err(Error::setting("clip", problem).hint("set `validation.edits` and `validation.seeds` there"));
        }
        Some(folder) => Some(Similarity::open(folder, device)?),
        None => None,
    };
    let origin = Origin::of(&prepared.model, prepared.family, &prepared.dataset)?;
    checkpoints.iter().try_for_each(|checkpoint| checkpoint.state()?.origin.check(&origin, &config))?;
    let scoring = Scoring { config: &config, prepared: &prepared, run: &run, checkpoints };
    match open_task(&config, &prepared, device)? {
        // The one that edits.
        AnyTask::InstructPix2Pix(task) => scoring
            .run(*task, |task, adapters| similarity.map(|similarity| task.curve(adapters, &similarity)).transpose()),
        any => each_task!(any, task => scoring.run(*task, |_, _| Ok(None))),
    }
}

/// A validation that waits for its task.
struct Scoring<'a> {
    config: &'a TrainConfig,
    prepared: &'a Prepared,
    run: &'a Path,
    checkpoints: Vec<Held>,
}

impl Scoring<'_> {
    /// Scores all, and with `curve` the newest checkpoint.
    fn run<T: Task>(
        self,
        mut task: T,
        curve: impl FnOnce(&T, &[Adapters]) -> Result<Option<EditCurve>>,
    ) -> Result<ValidationReport> {
        let Self { config, prepared, run, checkpoints } = self;
        let device = task.device().clone();
        let validator = Validator::new(Seed(config.run.seed), &prepared.dataset);
        let before = memory::usage(&device).resident_mib();
        let score = |step, losses: Vec<(f64, f64)>, samples| CheckpointScore {
            step,
            loss: mean_loss(&losses),
            loss_at_level: losses,
            samples,
        };
        let mut scores = vec![score(0, validator.losses(&task, &[])?, None)];
        let mut adapters = None;
        let total = checkpoints.len();
        let measured = checkpoints.iter().try_for_each(|checkpoint| {
            stop::check()?;
            tracing::info!("validating {}", checkpoint.folder.display());
            checkpoint.verify_trained(true)?;
            let trainable = Trainable::read(config, checkpoint, true, task.model_mut(), &device)?;
            let path = checkpoint.trained(true)?;
            trainable.check(task.model()).map_err(|e| e.at(&path))?;
            adapters = trainable.adapters();
            let losses = validator.losses(&task, adapters.as_slice())?;
            let samples =
                task.grid(adapters.as_slice(), true)?.map(|grid| save_grid(run, checkpoint.step, &grid)).transpose()?;
            scores.push(score(checkpoint.step, losses, samples));
            Ok(())
        });
        let curve = measured.and_then(|()| curve(&task, adapters.as_slice()));
        let (curve, unmeasured) = match curve {
            // Finished measurements are kept.
            Err(error) if error.is_stop() => (None, total + 1 - scores.len()),
            curve => (curve?, 0),
        };
        memory::release(&device);
        Ok(ValidationReport::new(
            T::Objective::LEVEL,
            scores,
            curve,
            unmeasured,
            [before, memory::usage(&device).resident_mib()],
        ))
    }
}

//! The training loop, from a configuration to a run folder.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::Device;

use super::{
    CONFIG, Display, Metrics, Record, TrainConfig, ValidationMetrics,
    checkpoint::{Checkpoint, Content, State},
    export::finish,
    held_out_loss::Validator,
    objective::Objective,
    origin::Origin,
    origin_metadata::describe,
    prepare::{Prepared, batches, fitting, prepare_dataset},
    record::{
        grid::save_grid,
        interval::{Interval, Outcome},
        metrics::GRID,
        run_folder::{self, RunFolder, drop_grids},
        started,
    },
    resume::{Resumed, resumable},
    step::{
        Ema, Learner, Stepped, Summed,
        optimizer::AdamW,
        trainable::{Trainable, TrainableParameters},
    },
    task::Task,
    tasks::{each_task, open_task},
};
use crate::{
    data::{Batch, BatchOrder, Prefetch},
    disk::replace,
    error::{Error, Result, Subject},
    memory::{Level, Stage},
    notice::grouped,
    paths,
    rng::Seed,
    stop,
};

/// The number of batches read ahead.
const READ_AHEAD: usize = 4;

/// Trains; returns the run folder. With `resume`, a run folder or a checkpoint, it resumes from there, bit for bit.
///
/// # Errors
/// A file cannot be read or written, settings do not fit each other, or a value is not finite. Or the process was asked to stop, by a
/// signal or in the display: [`Error::stopped`], with a checkpoint of the last step.
pub fn train(
    config: &TrainConfig,
    resume: Option<&Path>,
    device: &Device,
    display: &mut dyn Display,
) -> Result<PathBuf> {
    let mut run = resume.map(Path::to_path_buf);
    fitting(config, device, &mut Level::None, |level| train_at(config, &mut run, device, display, level))
}

/// The same at a memory level no faster than `level`, which is set to the chosen one; `run` is set to the folder of the run once it has
/// one, so that it can resume from there.
fn train_at(
    config: &TrainConfig,
    run: &mut Option<PathBuf>,
    device: &Device,
    display: &mut dyn Display,
    level: &mut Level,
) -> Result<PathBuf> {
    let resumed = run.as_deref().map(|path| resumable(config, path)).transpose()?;
    let output = resumed.as_ref().map_or(config.run.output.as_path(), |resumed| resumed.folder.path());
    paths::check_folder(output).map_err(|e| e.hint("set `run.output` to a folder that can be written to"))?;
    let found = resumed.as_ref().map(|resumed| started::from_its_start(resumed.folder.path(), config));
    let prepared = prepare_dataset(found.as_ref().unwrap_or(config), device, display, level)?;
    let plan = batches(&prepared.dataset, Seed(config.run.seed))?;
    let origin = Origin::of(&prepared.model, prepared.family, &prepared.dataset)?;
    if let Some(checkpoint) = resumed.as_ref().and_then(|resumed| resumed.checkpoint.as_ref()) {
        checkpoint.state()?.origin.check(&origin, config)?;
    }
    stop::check()?;
    let training = Training { config, prepared: &prepared, plan, origin, resumed, display, opened: run };
    each_task!(open_task(config, &prepared, device)?, task => training.run(*task))
}

/// A training run that waits for its task.
struct Training<'a> {
    config: &'a TrainConfig,
    prepared: &'a Prepared,
    plan: BatchOrder,
    origin: Origin,
    resumed: Option<Resumed>,
    display: &'a mut dyn Display,
    opened: &'a mut Option<PathBuf>,
}

impl Training<'_> {
    fn run<T: Task>(self, task: T) -> Result<PathBuf> {
        let Self { config, prepared, plan, origin, resumed, display, opened } = self;
        let dataset = &prepared.dataset;
        let validator = Validator::new(Seed(config.run.seed), dataset);
        let mut run = Run::open(config, resumed, prepared, origin, task, &validator)?;
        *opened = Some(run.folder.path().into());
        let done = run.step * config.training.gradient_accumulation;
        let mut batches = Prefetch::start(Arc::new(dataset.clone()), plan, done, READ_AHEAD);
        run.train(&mut batches, &validator, display).map_err(|error| run.ended_early(error, display))?;
        finish(run.folder.path(), config)?;
        Ok(run.folder.path().into())
    }
}

/// The state of a training run.
struct Run<'a, T> {
    config: &'a TrainConfig,
    folder: RunFolder,
    seed: Seed,
    step: u64,
    /// The step of the newest checkpoint; 0 if there is none.
    saved: u64,
    /// The steps not yet recorded.
    interval: Interval,
    learner: Learner,
    task: T,
    metrics: Metrics,
    origin: Origin,
    metadata: BTreeMap<String, String>,
}

impl<'a, T: Task> Run<'a, T> {
    /// Starts a new run in a folder of its own, or resumes from a checkpoint.
    fn open(
        config: &'a TrainConfig,
        resumed: Option<Resumed>,
        prepared: &Prepared,
        origin: Origin,
        mut task: T,
        validator: &Validator,
    ) -> Result<Self> {
        let device = task.device().clone();
        let decay = config.training.ema_decay;
        let home = if prepared.level.keeps_ema_on_host() { Device::flex() } else { device.clone() };
        let model = task.model_mut();
        let (folder, checkpoint) = match resumed {
            Some(Resumed { folder, checkpoint }) => (Some(folder), checkpoint),
            None => (None, None),
        };
        let (folder, step, mut trainable, ema, optimizer) = match (folder, checkpoint) {
            (folder, None) => {
                let trainable = Trainable::new(config, prepared.family.denoiser(), model)?;
                let ema = (decay > 0.0).then(|| Ema::new(decay).at(home));
                let folder = folder.map_or_else(|| RunFolder::create(config), Ok)?;
                (folder, 0, trainable, ema, AdamW::new(config.optimizer.clone()))
            }
            (None, Some(_)) => unreachable!("a checkpoint lies in a run folder"),
            (Some(folder), Some(checkpoint)) => {
                let state = checkpoint.state()?;
                let mut trainable = Trainable::read(config, &checkpoint, false, model, &device)?;
                let means = trainable.means(&checkpoint, model, &home)?;
                let ema = means.map(|means| Ema::restore(decay, state.step, means).at(home));
                let mut both = TrainableParameters(&mut trainable, model);
                let optimizer = checkpoint.optimizer(config.optimizer.clone(), &mut both, &device)?;
                checkpoint.set_later_ones_aside(folder.path())?;
                tracing::info!("resuming after step {}", state.step);
                (folder, state.step, trainable, ema, optimizer)
            }
        };
        trainable.check(model)?;
        let resolved = config.to_toml()?;
        started::note(folder.path(), config)?;
        replace(&folder.path().join(CONFIG), |partial| {
            fs::write(partial, &resolved).map_err(|e| Error::io(partial, e))
        })?;
        let (mut numbers, mut tensors) = (0, 0);
        trainable.parameters(model, &mut |_, parameter| {
            numbers += parameter.shape().iter().product::<usize>();
            tensors += 1;
        });
        tracing::info!("{} trainable parameters in {tensors} tensors", grouped(numbers));
        if let Trainable::Lora(lora) = &trainable {
            for line in lora.compatibility(lora.usual_format()) {
                tracing::info!("{}.safetensors: {line}", config.run.name);
            }
        }
        // Later steps are repeated, and so is the validation of this step if it was interrupted.
        let validated = step > 0 && !owes_validation(config, folder.path(), step, validator)?;
        drop_grids(folder.path(), if validated { step + 1 } else { step })?;
        let metrics = Metrics::open(folder.path(), step)?;
        let (seed, metadata) = (Seed(config.run.seed), describe(config, prepared, &origin)?);
        let (saved, interval) = (step, Interval::start());
        let dropout = (config.lora.dropout, seed);
        let learner = Learner::of(trainable, optimizer, config.training.activations, dropout).with_ema(ema);
        #[rustfmt::skip] // one field a line would hide that nothing happens here
        let run = Self {
            config, folder, seed, step, saved, interval, learner, task, metrics, origin, metadata,
        };
        Ok(run)
    }

    /// Trains to the end.
    ///
    /// # Errors
    /// As [`train`]. Steps since the last checkpoint may be unsaved: see [`save_rest`](Self::save_rest).
    fn train(&mut self, batches: &mut Prefetch, validator: &Validator, display: &mut dyn Display) -> Result<()> {
        let (config, device) = (self.config, self.task.device().clone());
        let max_steps = config.training.max_steps;
        display.progress(self.step, max_steps);
        if owes_validation(config, self.folder.path(), self.step, validator)? {
            self.validate(validator, display)?;
        }
        self.interval = Interval::start();
        while self.step < max_steps {
            let outcome = self.train_step(batches)?;
            self.interval.add(outcome);
            display.progress(self.step, max_steps);
            if display.stop_requested() && self.step < max_steps {
                return Err(Error::stopped("", Vec::new()));
            }
            let save = self.step == max_steps || self.due(config.checkpoint.every);
            let check = validation_due(config, self.step);
            if save || check || self.due(config.training.log_every) {
                let metrics = self.interval.read(self.step, &device)?;
                self.interval = Interval::start();
                // Recorded first, so that a checkpoint has the lines of all its steps.
                let recorded = self.metrics.step(&metrics);
                if recorded.is_ok() {
                    display.training(&metrics);
                }
                if save || recorded.is_err() {
                    self.save()?;
                }
                recorded?;
                if check {
                    self.validate(validator, display)?;
                }
                self.interval = Interval::start();
            }
        }
        Ok(())
    }

    /// Records and saves unsaved steps, before the run ends early.
    ///
    /// # Errors
    /// Their values are not finite, or a file cannot be written.
    fn save_rest(&mut self, display: &mut dyn Display) -> Result<()> {
        if self.step == self.saved {
            return Ok(());
        }
        let mut recorded = Ok(());
        if !self.interval.is_empty() {
            let metrics = self.interval.read(self.step, self.task.device())?;
            recorded = self.metrics.step(&metrics);
            if recorded.is_ok() {
                display.training(&metrics);
            }
        }
        self.save()?;
        recorded
    }

    /// The error of a run that ends early, after saving what can be saved.
    fn ended_early(&mut self, error: Error, display: &mut dyn Display) -> Error {
        let folder = self.folder.path().to_path_buf();
        match &error.subject {
            Subject::Step(_) => error, // not finite: nobody wants to resume from there
            Subject::Stopped { .. } => match self.save_rest(display) {
                Err(error) => error,
                Ok(()) => {
                    let what = match self.step {
                        0 => format!(" before the first step; `resume {}` starts over", folder.display()),
                        step => format!(" after step {step}; `resume {}` continues from there", folder.display()),
                    };
                    Error::stopped(what, vec![folder])
                }
            },
            _ => {
                let unsaved = self.step > self.saved;
                match self.save_rest(display) {
                    Ok(()) if unsaved => tracing::warn!("an error ends the run; step {} is saved", self.step),
                    Ok(()) => {}
                    Err(why) => tracing::warn!("an error ends the run, and step {} cannot be saved: {why}", self.step),
                }
                error
            }
        }
    }

    /// One optimizer step over `gradient_accumulation` batches.
    fn train_step(&mut self, batches: &mut Prefetch) -> Result<Outcome> {
        let mut summed: Option<Summed> = None;
        for _ in 0..self.config.training.gradient_accumulation {
            let batch = batches.next().expect("a plan with samples never ends")?.upload(self.task.device());
            summed = Some(self.gradients(summed, batch));
        }
        let (rate, max_steps) = (self.config.optimizer.learning_rate, self.config.training.max_steps);
        let learning_rate = self.config.schedule.learning_rate(rate, self.step, max_steps);
        let summed = summed.expect("at least one batch");
        let Stepped { loss, grad_norm } = self.learner.apply(self.task.model_mut(), learning_rate, summed);
        self.step += 1;
        Ok(Outcome { loss, grad_norm, learning_rate })
    }

    /// The summed loss of a batch and its gradients, added to those of the batches `before` it in this step.
    fn gradients(&self, before: Option<Summed>, batch: Batch) -> Summed {
        let (objective, pipeline) = (self.task.objective(), self.task.pipeline());
        self.learner.learn(before, objective, pipeline, batch, self.seed, self.step)
    }

    /// Whether this step ends a period of `every` steps; never for 0.
    fn due(&self, every: u64) -> bool {
        every > 0 && self.step.is_multiple_of(every)
    }

    /// Validates the current model, or its EMA. At step 0 that is the base model.
    fn validate(&mut self, validator: &Validator, display: &mut dyn Display) -> Result<()> {
        let raw = if self.step > 0 { self.learner.use_mean(self.task.model_mut()) } else { None };
        let measured = self.measure(validator, display);
        if let Some(raw) = raw {
            self.learner.assign(self.task.model_mut(), &raw);
        }
        measured
    }

    fn measure(&mut self, validator: &Validator, display: &mut dyn Display) -> Result<()> {
        let adapters = self.learner.trainable.adapters();
        let losses = validator.losses(&self.task, adapters.as_slice())?;
        if let Some((level, _)) = losses.iter().find(|(_, loss)| !loss.is_finite()) {
            let what = format!("the held-out loss at {} {level}", T::Objective::LEVEL);
            return Err(Error::not_finite(self.step, what)
                .hint("lower `optimizer.learning_rate`, and resume from a checkpoint before this step"));
        }
        let stage = Stage::enter("validation images", self.task.device());
        let grid = self.task.grid(adapters.as_slice(), self.step > 0)?;
        drop(stage);
        // The line comes last: if it exists, the validation is complete.
        if let Some(grid) = grid {
            save_grid(self.folder.path(), self.step, &grid)?;
            self.metrics.image(GRID, &grid, self.step)?;
        }
        if !losses.is_empty() {
            let metrics = ValidationMetrics::new(self.step, &losses);
            self.metrics.validation(&metrics)?;
            display.validation(&metrics);
        }
        Ok(())
    }

    /// Writes a checkpoint, then removes old ones.
    fn save(&mut self) -> Result<()> {
        let state = State {
            step: self.step,
            mode: self.config.training.mode,
            averaged: self.learner.ema.is_some(),
            origin: self.origin.clone(),
            version: env!("CARGO_PKG_VERSION").to_string(),
        };
        let model = self.task.model_mut();
        let Learner { trainable, ema, optimizer, .. } = &mut self.learner;
        let averaged = ema.as_ref().map(|ema| trainable.tensors(model, Some(ema.means())));
        let trained = trainable.tensors(model, None);
        let metadata = self.metadata.clone();
        self.metrics.sync()?;
        Checkpoint::save(self.folder.path(), &state, Content { trained, averaged, metadata, optimizer })?;
        self.saved = self.step;
        Checkpoint::prune(self.folder.path(), self.config.checkpoint.keep_last)
    }
}

/// Whether a validation is due after this step: before the first, after the last, and every `validation.every` steps.
fn validation_due(config: &TrainConfig, step: u64) -> bool {
    let every = config.validation.every;
    step == 0 || step == config.training.max_steps || every > 0 && step.is_multiple_of(every)
}

/// Whether the validation after this step is due and missing: at the start, or when a run ended in the middle of it.
fn owes_validation(config: &TrainConfig, run: &Path, step: u64, validator: &Validator) -> Result<bool> {
    let done = |record: &Record| matches!(record, Record::Validation(metrics) if metrics.step == step);
    let there = match validator.has_samples() {
        true => Metrics::read(run)?.iter().any(done),
        false => run_folder::grid(run, step).is_file(),
    };
    Ok(validation_due(config, step) && !there)
}

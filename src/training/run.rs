//! The training loop, from a configuration to a run folder.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::{Device, FloatDType, Tensor};

use super::{
    Activations, CONFIG, Display, Metrics, Mode, Record, TrainConfig, ValidationMetrics,
    backward::{self, Gradients, backward},
    checkpoint::{Checkpoint, Content, State},
    ema::Ema,
    export::{ExportOptions, export},
    grid::save_grid,
    interval::{Interval, Outcome},
    optimizer::{AdamW, accumulate, clip},
    prepare::{Prepared, prepare_dataset},
    resume::{Origin, resumable},
    task::{Job, Noised, Task, with_task},
    trained::{Both, Trained, assign},
    validation::Validator,
};
use crate::{
    data::{Batch, Prefetch},
    error::{Error, Result},
    lora::Lora,
    memory::Stage,
    models::Segmented,
    rng::Seed,
    weights::replace,
};

/// Batches that are read ahead of their use.
const READ_AHEAD: usize = 4;

/// Trains; returns the run folder. With `resume`, a run folder or a checkpoint, goes on from there, bit for bit.
///
/// # Errors
/// Something cannot be read or written, settings do not fit together, or a number is not finite any more.
pub fn train(
    config: &TrainConfig,
    resume: Option<&Path>,
    device: &Device,
    display: &mut dyn Display,
) -> Result<PathBuf> {
    let resumed = resume.map(|path| resumable(config, path)).transpose()?;
    let prepared = prepare_dataset(config, device, display)?;
    with_task(config, &prepared, device, Training { config, prepared: &prepared, resumed, display })
}

/// A training run that waits for its task.
struct Training<'a> {
    config: &'a TrainConfig,
    prepared: &'a Prepared,
    resumed: Option<(PathBuf, Checkpoint)>,
    display: &'a mut dyn Display,
}

impl Job for Training<'_> {
    type Output = PathBuf;

    fn run<T: Task>(self, task: T) -> Result<PathBuf> {
        let Self { config, prepared, resumed, display } = self;
        let device = task.device().clone();
        let dataset = &prepared.dataset;
        let validator = Validator::new(Seed(config.run.seed), dataset);
        let plan = dataset.plan(Seed(config.run.seed));
        if plan.batches_per_epoch() == 0 {
            return Err(Error::setting("data.validation_split", "leaves no picture to train on"));
        }
        let mut run = Run::open(config, resumed, prepared, task)?;
        let done = run.step * config.training.gradient_accumulation;
        let mut batches = Prefetch::start(Arc::new(dataset.clone()), plan, done, READ_AHEAD);
        let max_steps = config.training.max_steps;
        display.progress(run.step, max_steps);
        if run.owes_validation()? {
            run.validate(&validator, display)?;
        }
        let mut interval = Interval::start();
        while run.step < max_steps {
            interval.add(run.train_step(&mut batches)?);
            display.progress(run.step, max_steps);
            let stop = display.stop_requested() && run.step < max_steps;
            let last = stop || run.step == max_steps;
            let save = last || run.due(config.checkpoint.every);
            let check = !stop && run.validation_due();
            if save || check || run.due(config.training.log_every) {
                let metrics = interval.read(run.step, &device)?;
                if save {
                    run.save()?; // first: a disk that takes no more lines may still take this
                }
                run.metrics.step(&metrics, display)?;
                if check {
                    run.validate(&validator, display)?;
                }
                interval = Interval::start();
            }
            if stop {
                tracing::info!("stopped after step {}; `--resume {}` goes on", run.step, run.folder.display());
                return Ok(run.folder);
            }
        }
        run.finish()?;
        Ok(run.folder)
    }
}

/// Everything that changes while training, and what it is trained against.
struct Run<'a, T> {
    config: &'a TrainConfig,
    folder: PathBuf,
    seed: Seed,
    step: u64,
    trained: Trained,
    ema: Option<Ema>,
    optimizer: AdamW,
    task: T,
    metrics: Metrics,
    origin: Origin,
    metadata: BTreeMap<String, String>,
}

impl<'a, T: Task> Run<'a, T> {
    /// Starts a new run in a folder of its own, or takes up a checkpoint.
    fn open(
        config: &'a TrainConfig,
        resumed: Option<(PathBuf, Checkpoint)>,
        prepared: &Prepared,
        mut task: T,
    ) -> Result<Self> {
        let device = task.device().clone();
        let origin = Origin::of(&prepared.model, T::PARTS, &prepared.dataset)?;
        let decay = config.training.ema_decay;
        let model = task.model_mut();
        let (folder, step, mut trained, ema, optimizer) = match resumed {
            None => {
                let trained = Trained::new(config, model)?;
                let ema = (decay > 0.0).then(|| Ema::new(decay));
                (new_folder(config)?, 0, trained, ema, AdamW::new(config.optimizer.clone()))
            }
            Some((folder, checkpoint)) => {
                let state = checkpoint.state()?;
                state.origin.check(&origin, config)?;
                let mut trained = Trained::read(config, &checkpoint, false, model, &device)?;
                let means = trained.means(&checkpoint, model, &device)?;
                let ema = means.map(|means| Ema::restore(decay, state.step, means));
                let mut both = Both(&mut trained, model);
                let optimizer = checkpoint.optimizer(config.optimizer.clone(), &mut both, &device)?;
                checkpoint.set_later_ones_aside(&folder)?;
                tracing::info!("resuming after step {}", state.step);
                (folder, state.step, trained, ema, optimizer)
            }
        };
        trained.attach(model)?;
        let resolved = config.to_toml()?;
        replace(&folder.join(CONFIG), |partial| fs::write(partial, &resolved).map_err(|e| Error::io(partial, e)))?;
        let (mut numbers, mut tensors) = (0, 0);
        trained.parameters(model, &mut |_, parameter| {
            numbers += parameter.shape().iter().product::<usize>();
            tensors += 1;
        });
        tracing::info!("{numbers} trained numbers in {tensors} tensors");
        let metrics = Metrics::open(&folder, step)?;
        let (seed, metadata) = (Seed(config.run.seed), describe(config, &prepared.model, &origin)?);
        Ok(Self { config, folder, seed, step, trained, ema, optimizer, task, metrics, origin, metadata })
    }

    /// One optimizer step over `gradient_accumulation` batches.
    fn train_step(&mut self, batches: &mut Prefetch) -> Result<Outcome> {
        let mut gradients = Gradients::new();
        let mut losses = Vec::new();
        let mut samples = 0;
        for _ in 0..self.config.training.gradient_accumulation {
            let batch = batches.next().expect("a plan with samples never ends")?.upload(self.task.device());
            let rows = batch.samples.len();
            let (loss, new) = self.gradients(batch, samples as u64);
            losses.push(loss);
            accumulate(&mut gradients, new);
            samples += rows;
        }
        let optimizer = &self.config.optimizer;
        let grad_norm = clip(&mut gradients, 1.0 / samples as f64, optimizer.max_grad_norm);
        let max_steps = self.config.training.max_steps;
        let learning_rate = self.config.schedule.learning_rate(optimizer.learning_rate, self.step, max_steps);
        self.trained.step(self.task.model_mut(), &mut self.optimizer, learning_rate, gradients)?;
        if let Some(ema) = &mut self.ema {
            ema.update(&mut Both(&mut self.trained, self.task.model_mut()));
        }
        self.step += 1;
        let loss = losses.into_iter().reduce(|a, b| a + b).expect("at least one batch") / samples as f64;
        Ok(Outcome { loss, grad_norm, learning_rate })
    }

    /// The summed loss of a batch and its gradients. `first` is the number of the batch's first sample within the step.
    fn gradients(&mut self, batch: Batch, first: u64) -> (Tensor<1>, Gradients) {
        let [rows, moments, height, width] = batch.moments.dims();
        let noised = Noised::draw(&self.task, self.seed, self.step, first, [rows, moments / 2, height, width]);
        let example = self.task.example(batch, noised);
        self.trained.drop_out(self.config, self.step, first, self.task.model_mut());
        let count = self.task.model().segments().len();
        let groups = match self.config.training.activations {
            Activations::Blockwise => backward::blockwise(count),
            Activations::Full => backward::full(count),
        };
        // Summed over the batch, so that batches of different sizes add up to a mean over all samples of the step.
        let loss = |prediction| example.loss(prediction) * rows as f64;
        backward(self.task.model(), self.config.training.mode, &example.inputs, &groups, loss)
    }

    /// Whether this step ends a period of `every` steps; there are no periods of 0.
    fn due(&self, every: u64) -> bool {
        every > 0 && self.step.is_multiple_of(every)
    }

    /// Whether the model is to be measured at this step: before the first, after the last, and every so often.
    fn validation_due(&self) -> bool {
        self.step == 0 || self.step == self.config.training.max_steps || self.due(self.config.validation.every)
    }

    /// Whether this step's validation is due and was not recorded: at the start, or when a run ended in the middle of it.
    fn owes_validation(&self) -> Result<bool> {
        let done = |record: &Record| matches!(record, Record::Validation(metrics) if metrics.step == self.step);
        Ok(self.validation_due() && !Metrics::read(&self.folder)?.iter().any(done))
    }

    /// Measures the model as it is now, or its running mean. At step 0 that is the base model.
    fn validate(&mut self, validator: &Validator, display: &mut dyn Display) -> Result<()> {
        let raw = self.use_means();
        let measured = self.measure(validator, display);
        if let Some(raw) = raw {
            assign(&mut Both(&mut self.trained, self.task.model_mut()), &raw);
            self.trained.attach(self.task.model_mut())?;
        }
        measured
    }

    fn measure(&mut self, validator: &Validator, display: &mut dyn Display) -> Result<()> {
        let losses = validator.losses(&self.task)?;
        if let Some((level, _)) = losses.iter().find(|(_, loss)| !loss.is_finite()) {
            let what = format!("the held-out loss at {} {level}", T::LEVEL);
            return Err(Error::NotFinite { step: self.step, what }
                .hint("lower `optimizer.learning_rate`, and go on from a checkpoint before this step"));
        }
        if !losses.is_empty() {
            self.metrics.validation(&ValidationMetrics::new(self.step, &losses), display)?;
        }
        let _stage = Stage::enter("validation pictures", self.task.device());
        if let Some(grid) = self.task.grid(self.step > 0)? {
            save_grid(&self.folder, self.step, &grid)?;
            self.metrics.image("samples", &grid, self.step);
        }
        Ok(())
    }

    /// Puts the running means in the place of the trained numbers, which it returns; `None` without means.
    fn use_means(&mut self) -> Option<BTreeMap<String, Tensor<1>>> {
        let ema = self.ema.as_ref().filter(|_| self.step > 0)?;
        let mut raw = BTreeMap::new();
        self.trained.parameters(self.task.model_mut(), &mut |name, parameter| {
            raw.insert(name.to_string(), parameter.flat());
        });
        assign(&mut Both(&mut self.trained, self.task.model_mut()), ema.means());
        self.trained.attach(self.task.model_mut()).expect("it was attached before");
        Some(raw)
    }

    /// Writes what the run ends with for other programs. What it ended with before it was lengthened goes only after that.
    fn finish(&self) -> Result<()> {
        let options = ExportOptions { format: None, dtype: FloatDType::F32, raw: false, model: None };
        let io = |e| Error::io(&self.folder, e);
        match self.config.training.mode {
            Mode::Lora => {
                let file = format!("{}.safetensors", self.config.run.name);
                export(&self.folder, &self.folder.join(file), options)
            }
            Mode::Full => {
                let [model, before] = ["model", "model.before"].map(|name| self.folder.join(name));
                if before.is_dir() {
                    fs::remove_dir_all(&before).map_err(io)?;
                }
                if model.is_dir() {
                    fs::rename(&model, &before).map_err(io)?;
                }
                export(&self.folder, &model, options)?;
                if before.is_dir() {
                    fs::remove_dir_all(&before).map_err(io)?;
                }
                Ok(())
            }
        }
    }

    /// Writes a checkpoint, then removes those that are too old.
    fn save(&mut self) -> Result<()> {
        let state = State {
            step: self.step,
            mode: self.config.training.mode,
            averaged: self.ema.is_some(),
            origin: self.origin.clone(),
            version: env!("CARGO_PKG_VERSION").to_string(),
        };
        let model = self.task.model_mut();
        let averaged = self.ema.as_ref().map(|ema| self.trained.tensors(model, Some(ema.means())));
        let trained = self.trained.tensors(model, None);
        let (metadata, optimizer) = (self.metadata.clone(), &self.optimizer);
        Checkpoint::save(&self.folder, &state, Content { trained, averaged, metadata, optimizer })?;
        Checkpoint::prune(&self.folder, self.config.checkpoint.keep_last)
    }
}

/// A folder for a new run: `NAME`, or `NAME-2` and so on if there is one already.
fn new_folder(config: &TrainConfig) -> Result<PathBuf> {
    let wanted = config.run_folder();
    fs::create_dir_all(&config.run.output).map_err(|e| Error::io(&config.run.output, e))?;
    let numbered = (2..).map(|n: u32| wanted.with_file_name(format!("{}-{n}", config.run.name)));
    for folder in std::iter::once(wanted.clone()).chain(numbered) {
        match fs::create_dir(&folder) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
            created => return created.map(|()| folder.clone()).map_err(|e| Error::io(&folder, e)),
        }
    }
    unreachable!("the numbers go on")
}

/// What an adapter's file says about where it comes from.
fn describe(config: &TrainConfig, model: &Path, origin: &Origin) -> Result<BTreeMap<String, String>> {
    let pairs = [
        ("kiln.version", env!("CARGO_PKG_VERSION").to_string()),
        ("kiln.config", config.to_toml()?),
        ("kiln.base_model", config.model.path.clone()),
        ("kiln.base_model_fingerprint", origin.base_model.clone()),
        ("kiln.dataset_fingerprint", origin.dataset.clone()),
    ];
    let pairs = pairs.into_iter().chain(Lora::base_metadata(model)?);
    Ok(pairs.map(|(key, value)| (key.to_string(), value)).collect())
}

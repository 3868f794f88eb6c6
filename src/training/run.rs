//! The training loop, from a configuration to a run folder.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::{Device, FloatDType, Tensor};

use super::{
    Activations, CONFIG, Display, Metrics, Record, TrainConfig, ValidationMetrics,
    backward::{self, Gradients, backward},
    checkpoint::{Checkpoint, State},
    interval::{Interval, Outcome},
    objective::FlowMatching,
    optimizer::{AdamW, accumulate, clip},
    resume::{Origin, resumable},
    validation::{Validator, save_grid},
};
use crate::{
    data::{self, Batch, Encoders, LatentDataset, Prefetch},
    error::{Error, Result},
    hub, lora,
    lora::Lora,
    memory::Stage,
    models::{Segmented, flux::draw_noise, text::PromptEmbeds, vae::Moments},
    nn::{Dropout, Linears},
    pipelines::{FluxPipeline, ModelEncoders},
    rng::{Purpose, Seed},
    weights::replace,
};

/// Batches that are read ahead of their use.
const READ_AHEAD: usize = 4;

/// Checks and encodes what the cache lacks; returns the model's folder and the dataset.
pub(super) fn prepare_dataset(
    config: &TrainConfig,
    device: &Device,
    display: &mut dyn Display,
) -> Result<(PathBuf, LatentDataset)> {
    let model = hub::resolve(&config.model.path)?;
    let _stage = Stage::enter("prepare", device);
    let mut encoders = ModelEncoders::open(&model, device, config.model.dtype.into())?;
    let display = RefCell::new(display);
    let progress = |p: data::Progress| display.borrow_mut().phase(&p.phase.to_string(), p.done as u64, p.total as u64);
    let mut prompts = config.validation.prompts.clone();
    prompts.push(String::new()); // what a dropped caption becomes
    let dataset = data::prepare(&config.data, &prompts, &mut encoders as &mut dyn Encoders, &progress)?;
    Ok((model, dataset))
}

/// Encodes pictures and captions into the cache, so that training starts at once; returns the cache folder.
///
/// # Errors
/// Pictures, captions, settings or the model are wrong, or the disk refuses.
pub fn prepare(config: &TrainConfig, device: &Device, display: &mut dyn Display) -> Result<PathBuf> {
    prepare_dataset(config, device, display)?;
    Ok(config.data.cache_folder())
}

/// Trains an adapter; returns the run folder. With `resume`, a run folder or a checkpoint, goes on from there, bit for bit.
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
    let (model, dataset) = prepare_dataset(config, device, display)?;
    let dataset = Arc::new(dataset);
    let pipeline = {
        let _stage = Stage::enter("load", device);
        FluxPipeline::open(&model, device, config.model.dtype.into())?
    };
    let mut validator = Validator::new(config, &dataset, &pipeline)?;
    let plan = dataset.plan(Seed(config.run.seed));
    if plan.batches_per_epoch() == 0 {
        return Err(Error::setting("data.validation_split", "leaves no picture to train on"));
    }
    let mut run = Run::open(config, resumed, &model, &dataset, pipeline)?;
    let mut batches =
        Prefetch::start(dataset.clone(), plan, run.step * config.training.gradient_accumulation, READ_AHEAD);
    let max_steps = config.training.max_steps;
    display.progress(run.step, max_steps);
    if run.owes_validation()? {
        run.validate(&mut validator, display)?;
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
            let metrics = interval.read(run.step, device)?;
            if save {
                run.save()?; // first: a disk that takes no more lines may still take this
            }
            run.metrics.step(&metrics, display)?;
            if check {
                run.validate(&mut validator, display)?;
            }
            interval = Interval::start();
        }
        if stop {
            tracing::info!("stopped after step {}; `--resume {}` goes on", run.step, run.folder.display());
            return Ok(run.folder);
        }
    }
    run.export()?;
    Ok(run.folder)
}

/// Everything that changes while training, and what it is trained against.
struct Run<'a> {
    config: &'a TrainConfig,
    folder: PathBuf,
    seed: Seed,
    step: u64,
    lora: Lora,
    optimizer: AdamW,
    pipeline: FluxPipeline,
    objective: FlowMatching,
    metrics: Metrics,
    origin: Origin,
}

impl<'a> Run<'a> {
    /// Starts a new run in a folder of its own, or takes up a checkpoint.
    fn open(
        config: &'a TrainConfig,
        resumed: Option<(PathBuf, Checkpoint)>,
        model: &Path,
        dataset: &LatentDataset,
        mut pipeline: FluxPipeline,
    ) -> Result<Self> {
        let seed = Seed(config.run.seed);
        let device = pipeline.device().clone();
        let origin = Origin::of(model, dataset)?;
        let (folder, step, mut lora, optimizer) = match resumed {
            None => {
                let lora = Lora::init(&config.lora, seed, &mut pipeline.transformer)?;
                (new_folder(config)?, 0, lora, AdamW::new(config.optimizer.clone()))
            }
            Some((folder, checkpoint)) => {
                let state = checkpoint.state()?;
                state.origin.check(&origin, config)?;
                let mut lora = resumed_adapter(&checkpoint, config, &device)?;
                let optimizer = checkpoint.optimizer(config.optimizer.clone(), &mut lora, &device)?;
                checkpoint.set_later_ones_aside(&folder)?;
                tracing::info!("resuming after step {}", state.step);
                (folder, state.step, lora, optimizer)
            }
        };
        lora.attach(&mut pipeline.transformer, 1.0)?;
        let resolved = config.to_toml()?;
        replace(&folder.join(CONFIG), |partial| fs::write(partial, &resolved).map_err(|e| Error::io(partial, e)))?;
        lora.metadata = describe(config, &origin)?;
        tracing::info!("{} trained numbers in {} layers", lora.parameters(), lora.layers.len());
        let objective = FlowMatching { config: config.objective.clone(), scheduler: pipeline.scheduler.clone() };
        let metrics = Metrics::open(&folder, step)?;
        Ok(Self { config, folder, seed, step, lora, optimizer, pipeline, objective, metrics, origin })
    }

    /// One optimizer step over `gradient_accumulation` batches.
    fn train_step(&mut self, batches: &mut Prefetch) -> Result<Outcome> {
        let mut gradients = Gradients::new();
        let mut losses = Vec::new();
        let mut samples = 0;
        for _ in 0..self.config.training.gradient_accumulation {
            let batch = batches.next().expect("a plan with samples never ends")?.upload(self.pipeline.device());
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
        self.optimizer.step(learning_rate, &mut self.lora, gradients);
        lora::detach_all(&mut self.pipeline.transformer);
        self.lora.attach(&mut self.pipeline.transformer, 1.0)?;
        self.step += 1;
        let loss = losses.into_iter().reduce(|a, b| a + b).expect("at least one batch") / samples as f64;
        Ok(Outcome { loss, grad_norm, learning_rate })
    }

    /// The summed loss of a batch and its gradients. `first` is the number of the batch's first sample within the step.
    fn gradients(&mut self, batch: Batch, first: u64) -> (Tensor<1>, Gradients) {
        let device = self.pipeline.device().clone();
        let moments = Moments::from_tensor(batch.moments);
        let shape = moments.mean.dims();
        let [rows, _, height, width] = shape;
        let (seed, step) = (self.seed, self.step);
        let normal = |purpose| draw_noise((first..).map(|sample| seed.draw(purpose, step, sample)), shape, &device);
        let latents = self.pipeline.vae.latent_scale().normalize(moments.sample(normal(Purpose::Posterior)));
        let tokens = (height / 2) * (width / 2);
        let sigmas =
            (first..first + rows as u64).map(|sample| self.objective.draw_sigma(self.seed, self.step, sample, tokens));
        let text = PromptEmbeds { prompt: batch.prompt, pooled: batch.pooled };
        let (sigmas, dtype): (Vec<f32>, FloatDType) = (sigmas.collect(), self.pipeline.dtype());
        let model = &self.pipeline.transformer.config;
        let example = self.objective.example(model, latents, text, normal(Purpose::Noise), &sigmas, dtype);
        self.drop_out(first);
        let count = self.pipeline.transformer.segments().len();
        let groups = match self.config.training.activations {
            Activations::Blockwise => backward::blockwise(count),
            Activations::Full => backward::full(count),
        };
        // Summed over the batch, so that batches of different sizes add up to a mean over all samples of the step.
        let loss = |prediction| example.loss(prediction) * rows as f64;
        backward(&self.pipeline.transformer, self.config.training.mode, &example.inputs, &groups, loss)
    }

    /// Turns on dropout in the adapters, for the samples from `first` on.
    fn drop_out(&mut self, first_sample: u64) {
        let (probability, seed, step) = (self.config.lora.dropout, self.seed, self.step);
        if probability == 0.0 {
            return;
        }
        self.pipeline.transformer.linears("", &mut |name, layer| {
            for adapter in &mut layer.adapters {
                adapter.dropout = Some(Dropout { probability, seed: seed.derive(name), step, first_sample });
            }
        });
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

    /// Measures the adapter as it is now. At step 0 that is the base model.
    fn validate(&mut self, validator: &mut Validator, display: &mut dyn Display) -> Result<()> {
        let losses = validator.losses(&self.pipeline)?;
        if let Some((sigma, _)) = losses.iter().find(|(_, loss)| !loss.is_finite()) {
            let what = format!("the held-out loss at sigma {sigma}");
            return Err(Error::NotFinite { step: self.step, what }
                .hint("lower `optimizer.learning_rate`, and go on from a checkpoint before this step"));
        }
        if !losses.is_empty() {
            self.metrics.validation(&ValidationMetrics::new(self.step, &losses), display)?;
        }
        if let Some(grid) = validator.grid(&self.pipeline, self.step > 0)? {
            save_grid(&self.folder, self.step, &grid)?;
            self.metrics.image("samples", &grid, self.step);
        }
        Ok(())
    }

    /// Writes a checkpoint, then removes those that are too old.
    fn save(&self) -> Result<()> {
        let version = env!("CARGO_PKG_VERSION").to_string();
        let state = State { step: self.step, origin: self.origin.clone(), version };
        Checkpoint::save(&self.folder, &state, &self.lora, &self.optimizer)?;
        Checkpoint::prune(&self.folder, self.config.checkpoint.keep_last)
    }

    /// Leaves the finished adapter as a LoRA file that other programs load.
    fn export(&self) -> Result<()> {
        let path = self.folder.join(format!("{}.safetensors", self.config.run.name));
        let dtype = FloatDType::F32;
        let report = lora::export(&self.lora, &path, lora::Format::Diffusers, dtype)?;
        tracing::info!("{report}");
        Ok(())
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
fn describe(config: &TrainConfig, origin: &Origin) -> Result<BTreeMap<String, String>> {
    let pairs = [
        ("kiln.version", env!("CARGO_PKG_VERSION").to_string()),
        ("kiln.config", config.to_toml()?),
        ("kiln.base_model", config.model.path.clone()),
        ("kiln.base_model_fingerprint", origin.base_model.clone()),
        ("kiln.dataset_fingerprint", origin.dataset.clone()),
    ];
    Ok(pairs.map(|(key, value)| (key.to_string(), value)).into())
}

/// The adapter of a checkpoint as it was trained: on the device, and with the exact alpha of the configuration, of which
/// the file holds 32 bits.
fn resumed_adapter(checkpoint: &Checkpoint, config: &TrainConfig, device: &Device) -> Result<Lora> {
    let mut lora = Lora::read(checkpoint.adapter())?;
    for layer in &mut lora.layers {
        layer.a = layer.a.clone().to_device(device);
        layer.b = layer.b.clone().to_device(device);
        layer.alpha = config.lora.alpha();
    }
    Ok(lora)
}

/// Writes the adapter of a checkpoint, or of a run's newest one, as a LoRA file.
///
/// # Errors
/// `path` is neither, or the file does not read back as what was written.
pub fn export(path: &Path, output: &Path, format: lora::Format, dtype: FloatDType) -> Result<()> {
    let (_, mut checkpoints) = Checkpoint::resolve(path)?;
    let adapter = Lora::read(checkpoints.pop().expect("at least one was found").adapter())?;
    let report = lora::export(&adapter, output, format, dtype)?;
    tracing::info!("{report}"); // not inside: what a quiet log does not show is not evaluated
    Ok(())
}

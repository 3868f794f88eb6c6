//! `kiln batch`: changes or edits a folder of images of any size, batch by batch.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor};
use image::RgbImage;

use super::{
    LoraFiles, SamplingOptions, Session,
    batch_report::{BatchReport, Choices, ImageRecord, Skipped, left_out, name},
    generator::Batch,
    picture::{self, PictureFile, Size},
    plan::AtOnce,
    request::MOST_AT_ONCE,
    session::Prompts,
};
use crate::{
    data, disk,
    error::{Error, Result},
    memory::{self, MemoryConfig, Plan, Stage},
    paths,
    pipelines::{ImageSizes, Outcome, request::check_strength},
    rng::Seed,
};

/// The default denoising strength.
const STRENGTH: f64 = 0.8;

/// A request of `kiln batch`.
#[derive(Clone, Debug)]
pub struct BatchRequest {
    /// The folder of images.
    pub folder: PathBuf,
    /// Only the image of this name.
    pub image: Option<String>,
    /// The choices of model, prompt and strength.
    pub choices: Choices,
    /// The LoRA files.
    pub loras: LoraFiles,
    /// Sampling options.
    pub sampling: SamplingOptions,
    /// Seed of the noise, which is the same for every image, and of the draws from the choices.
    pub seed: u64,
    /// The batch size. A batch has one image size, model and strength.
    pub batch_size: usize,
    /// The folder for images of the same names, and `report.json`.
    pub output: PathBuf,
    /// The memory settings.
    pub memory: MemoryConfig,
}

/// The task for one image.
pub(crate) struct Task {
    pub path: PathBuf,
    /// Width and height in pixels.
    pub size: Size,
    pub model: String,
    pub prompt: String,
    pub strength: f64,
}

/// Changes or edits all images of a folder; writes them and a report. Unreadable images are reported and left out.
///
/// # Errors
/// The request is invalid, a model cannot be used, or no image can be read. Finished images are kept and reported, also if the
/// process is asked to stop.
pub fn batch(request: &BatchRequest, device: &Device) -> Result<BatchReport> {
    let mut report = BatchReport::new(&request.folder, request.seed, &request.choices);
    let mut tasks = tasks(request, &mut report)?;
    let mut sessions = sessions(request, &tasks, device)?;
    std::fs::create_dir_all(&request.output).map_err(|e| Error::io(&request.output, e))?;
    disk::sweep(&request.output);
    let mut outcome = Ok(());
    while let (Ok(()), Some(model)) = (&outcome, tasks.first().map(|task| task.model.clone())) {
        let (own, others) = tasks.into_iter().partition(|task| task.model == model);
        tasks = others;
        let session = sessions.remove(&model).expect("each task has one");
        outcome = with_model(request, &model, session, own, &mut report);
    }
    finish(request, report, outcome)
}

/// Writes the report of a batch that ended with this result.
pub(crate) fn finish(request: &BatchRequest, mut report: BatchReport, outcome: Result<()>) -> Result<BatchReport> {
    report.write(&request.report())?;
    outcome.map_err(|error| match error.is_stop() {
        true => {
            let what = format!(" after {} images; {} lists them", report.pictures.len(), request.report().display());
            Error::stopped(what, Vec::new())
        }
        false => error,
    })?;
    match report.pictures.is_empty() {
        true => Err(Error::many(&request.folder, report.skipped.iter().map(ToString::to_string).collect())),
        false => Ok(report),
    }
}

/// The memory plan of a batch, for each model.
#[derive(Clone, Debug)]
pub struct BatchPlan {
    /// Each model, with the number of its images, the largest size that it works at, and its plan.
    pub models: Vec<(String, usize, Size, Plan)>,
    /// Files that would be left out.
    pub skipped: Vec<Skipped>,
}

impl fmt::Display for BatchPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (model, count, (width, height), plan)) in self.models.iter().enumerate() {
            let separator = if number == 0 { "" } else { "\n" };
            let plural = if *count == 1 { "" } else { "s" };
            write!(f, "{separator}{model}: {count} image{plural}, {width}x{height} at most\n{plan}")?;
        }
        left_out(f, &self.skipped)
    }
}

/// The memory plan of [`batch`], at the requested level or the fastest that fits. Nothing is loaded or written.
///
/// # Errors
/// As [`batch`], as far as they show without weights.
pub fn plan_batch(request: &BatchRequest, device: &Device) -> Result<BatchPlan> {
    let mut report = BatchReport::new(&request.folder, request.seed, &request.choices);
    let mut tasks = tasks(request, &mut report)?;
    let mut models = Vec::new();
    for (model, mut session) in sessions(request, &tasks, device)? {
        let (own, others): (Vec<_>, _) = tasks.into_iter().partition(|task| task.model == model);
        tasks = others;
        let (count, sizes) = (own.len(), session.sizes());
        let groups = groups(own, &sizes);
        let plan = session.fit(&request.memory, at_once(&groups, request, &sizes), &request.sampling)?;
        models.push((model, count, largest(&groups), plan));
    }
    match models.is_empty() {
        true => Err(Error::many(&request.folder, report.skipped.iter().map(ToString::to_string).collect())),
        false => Ok(BatchPlan { models, skipped: report.skipped }),
    }
}

/// A session for each model, checked against its tasks. Nothing is loaded.
fn sessions(request: &BatchRequest, tasks: &[Task], device: &Device) -> Result<BTreeMap<String, Session>> {
    let mut sessions = BTreeMap::new();
    for Task { model, prompt, strength, .. } in tasks {
        if !sessions.contains_key(model) {
            sessions.insert(model.clone(), Session::open(model, device)?);
        }
        sessions[model].check(&request.sampling, std::slice::from_ref(prompt), *strength)?;
    }
    sessions.values_mut().try_for_each(|session| session.put_on_files(&request.loras))?;
    Ok(sessions)
}

/// The images that can be in one batch, by the size to work at and the bits of the strength.
type Groups = BTreeMap<(Size, u64), Vec<(Task, PictureFile)>>;

/// Images are grouped by size; each is read when its batch starts.
fn groups(tasks: Vec<Task>, sizes: &ImageSizes) -> Groups {
    let mut groups = Groups::new();
    for task in tasks {
        let file = PictureFile::new(&task.path, task.size, sizes);
        groups.entry((file.fitted, task.strength.to_bits())).or_default().push((task, file));
    }
    groups
}

fn largest(groups: &Groups) -> Size {
    groups.keys().map(|(size, _)| *size).max_by_key(|(width, height)| width * height).unwrap_or_default()
}

/// The largest batch.
fn at_once(groups: &Groups, request: &BatchRequest, sizes: &ImageSizes) -> AtOnce {
    let ((width, height), latents) = (largest(groups), |side: u32| side as usize / sizes.latent_pixel);
    AtOnce { size: (latents(width), latents(height)), images: request.batch_size, encodes: true }
}

/// The task for each image whose header can be read.
pub(crate) fn tasks(request: &BatchRequest, report: &mut BatchReport) -> Result<Vec<Task>> {
    let Choices { models, prompts, strengths } = &request.choices;
    if !(1..=MOST_AT_ONCE).contains(&request.batch_size) {
        let problem = format!("must be at least 1 and at most {MOST_AT_ONCE}, not {}", request.batch_size);
        return Err(Error::setting("batch_size", problem));
    }
    paths::check_folder(&request.output).map_err(|e| e.hint("choose another `output`"))?;
    for (field, list) in [("model", models), ("prompt", prompts)] {
        if list.is_empty() {
            return Err(
                Error::setting(field, "is not given").hint(format!("give it, or a list `{field}s` in `config`"))
            );
        }
    }
    strengths.iter().try_for_each(|strength| check_strength(*strength))?;
    let paths = match &request.image {
        None => picture::files(&request.folder)?,
        Some(name) => vec![paths::meant_by("image", &request.folder.join(name))?],
    };
    let mut outputs = paths.iter().map(|path| request.output_of(path)).chain([request.report()]);
    if let Some(path) = outputs.find(|path| path.exists()) {
        return Err(Error::file(path, "already exists, and kiln does not overwrite it").hint("choose another `output`"));
    }
    let strengths = if strengths.is_empty() { &[STRENGTH][..] } else { strengths };
    let task = |path: PathBuf, size: Size| {
        let name = name(&path);
        let draw = |what: &str, count: usize| {
            (Seed(request.seed).derive(&format!("batch {what} of {name}")).0 % count as u64) as usize
        };
        Task {
            model: models[draw("model", models.len())].clone(),
            prompt: prompts[draw("prompt", prompts.len())].clone(),
            strength: strengths[draw("strength", strengths.len())],
            path,
            size,
        }
    };
    let sized = paths.into_iter().filter_map(|path| match data::picture_size(&path) {
        Ok(size) => Some(task(path, size)),
        Err(problem) => {
            report.skip(&path, &problem);
            None
        }
    });
    Ok(sized.collect())
}

/// Does all tasks of one model.
fn with_model(
    request: &BatchRequest,
    model: &str,
    mut session: Session,
    tasks: Vec<Task>,
    report: &mut BatchReport,
) -> Result<()> {
    let (device, edits, sizes) = (session.device.clone(), session.family.edits(), session.sizes());
    let prompts: Vec<String> =
        tasks.iter().map(|task| task.prompt.clone()).collect::<BTreeSet<_>>().into_iter().collect();
    let groups = groups(tasks, &sizes);
    session.fit(&request.memory, at_once(&groups, request, &sizes), &request.sampling)?;
    let worn = session.worn.clone();
    let shown = session.fitting(|session| session.embed(&Prompts::Texts(&prompts), &request.sampling, &worn))?;
    session.fitting(Session::load)?;
    for ((size, strength), group) in groups {
        for batch in group.chunks(request.batch_size) {
            let read = batch.iter().filter_map(|(task, file)| match file.read() {
                Ok(picture) => Some(((task, file), picture)),
                Err(problem) => {
                    report.skip(&task.path, &problem);
                    None
                }
            });
            let (batch, pictures): (Vec<_>, Vec<RgbImage>) = read.unzip();
            if batch.is_empty() {
                continue;
            }
            let stage = Stage::enter("batch", &device);
            let number = |task: &Task| prompts.binary_search(&task.prompt).expect("every prompt is in the list");
            let mut in_use = Vec::new();
            let made = session.fitting(|session| {
                let noise = session.pipeline.start_noise(request.seed, size.0 as usize, size.1 as usize);
                let work = Batch {
                    rows: batch.iter().map(|(task, _)| (number(task), request.seed)).collect(),
                    noise: Tensor::cat(vec![noise; batch.len()], 0),
                    pictures: Some(session.encode(&pictures)?),
                    strength: f64::from_bits(strength),
                    mask: None,
                };
                in_use.clear();
                let outcome = session.denoise(&work, &shown, &request.sampling, &mut |_| {
                    in_use.push(memory::usage(&device).resident);
                    ControlFlow::Continue(())
                })?;
                let Outcome::Finished(latents) = outcome else { return Ok(None) };
                session.decode(latents).map(Some)
            })?;
            let Some(made) = made else { continue };
            for (picture, (task, file)) in made.into_iter().zip(&batch) {
                picture::save(&file.restore(picture), &request.output_of(&task.path))?;
            }
            let measured = stage.measure();
            let strength = (!edits).then_some(f64::from_bits(strength));
            let done = batch.iter().map(|(task, file)| ImageRecord {
                name: name(&task.path),
                model: model.into(),
                prompt: task.prompt.clone(),
                strength,
                size: file.size,
                worked_at: size,
                batch: batch.len(),
                seconds: measured.seconds / batch.len() as f64,
            });
            report.add(done, measured, &in_use);
        }
    }
    Ok(())
}

impl BatchRequest {
    /// The path of the result for an image.
    pub(crate) fn output_of(&self, path: &Path) -> PathBuf {
        self.output.join(path.file_name().unwrap_or_default())
    }

    /// The path of the report.
    pub(crate) fn report(&self) -> PathBuf {
        self.output.join("report.json")
    }
}

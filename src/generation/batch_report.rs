//! The report of a batch: time and memory.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Instant,
};

use serde::{Deserialize, Serialize};

use crate::{
    disk::replace,
    error::{Error, Result, cut},
    memory::{Measured, mib},
};

/// What to do with images: of each list, every image gets one. Which one depends on the seed, the list's length and the
/// image's name only, so it is the same whatever else is in the folder.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Choices {
    /// Folders, or `org/name`.
    pub models: Vec<String>,
    /// Texts, or instructions for a model that edits.
    pub prompts: Vec<String>,
    /// How much to change an image, above 0 and up to 1; nothing to a model that edits. 0.8 if empty.
    pub strengths: Vec<f64>,
}

/// What was done to a folder, and what it took. As JSON it is `report.json`; as text, a table.
#[derive(Clone, Debug, Serialize)]
pub struct BatchReport {
    /// The images' folder.
    pub folder: PathBuf,
    /// Of noise and draws.
    pub seed: u64,
    /// What could be drawn.
    pub choices: Choices,
    /// Everything, loading included.
    pub seconds: f64,
    /// One for each model, in the order of their work; none of those of workers on other machines.
    pub models: Vec<ModelTotals>,
    /// What was made.
    pub pictures: Vec<ImageRecord>,
    /// What could not be read.
    pub skipped: Vec<Skipped>,
    #[serde(skip)]
    started: Option<Instant>,
}

/// What one model did.
#[derive(Clone, Debug, Serialize)]
pub struct ModelTotals {
    /// Its folder or name.
    pub model: String,
    /// Images made.
    pub pictures: usize,
    /// Batches they were made in.
    pub batches: usize,
    /// For encoding, denoising, decoding and writing; loading is not part of it.
    pub seconds: f64,
    /// For one image.
    pub seconds_per_picture: f64,
    /// In use after a denoising step, on average, in MiB.
    pub average_mib: f64,
    /// The most that was in use, in MiB.
    pub peak_mib: f64,
    #[serde(skip)]
    samples: usize,
}

/// One image made.
#[derive(Clone, Debug, Serialize)]
pub struct ImageRecord {
    /// Of the file, in both folders.
    pub name: String,
    /// With which model.
    pub model: String,
    /// With which text or instruction.
    pub prompt: String,
    /// How much it was changed; nothing for a model that edits.
    pub strength: Option<f64>,
    /// Width and height, in pixels.
    pub size: (u32, u32),
    /// Those at which the model worked.
    pub worked_at: (u32, u32),
    /// Images made together with it, itself included.
    pub batch: usize,
    /// Its share of the time.
    pub seconds: f64,
}

/// One image that could not be read.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    /// Of the file.
    pub name: String,
    /// Why, beginning with its path.
    pub problem: String,
}

impl BatchReport {
    /// Nothing done yet.
    pub(crate) fn new(folder: &Path, seed: u64, choices: &Choices) -> Self {
        Self {
            folder: folder.into(),
            seed,
            choices: choices.clone(),
            seconds: 0.0,
            models: Vec::new(),
            pictures: Vec::new(),
            skipped: Vec::new(),
            started: Some(Instant::now()),
        }
    }

    /// Adds a batch of at least one image, of one model; `in_use` is the memory after each step, in bytes.
    pub(super) fn add(&mut self, done: impl Iterator<Item = ImageRecord>, measured: Measured, in_use: &[u64]) {
        let before = self.pictures.len();
        self.pictures.extend(done);
        let model = &self.pictures[before].model;
        if self.models.last().is_none_or(|work| work.model != *model) {
            self.models.push(ModelTotals::new(model));
        }
        let work = self.models.last_mut().expect("just pushed");
        work.pictures += self.pictures.len() - before;
        work.batches += 1;
        work.seconds += measured.seconds;
        work.seconds_per_picture = work.seconds / work.pictures as f64;
        let sum = work.average_mib * work.samples as f64 + in_use.iter().copied().map(mib).sum::<f64>();
        work.samples += in_use.len();
        work.average_mib = sum / work.samples as f64;
        work.peak_mib = work.peak_mib.max(mib(measured.peak));
    }

    /// Notes an image that cannot be read, and says so.
    pub(crate) fn skip(&mut self, path: &Path, problem: &Error) {
        tracing::warn!("left out: {problem}");
        self.skipped.push(Skipped { name: name(path), problem: problem.to_string() });
    }

    /// Writes the report as JSON.
    pub(crate) fn write(&mut self, path: &Path) -> Result<()> {
        self.seconds = self.started.map_or(0.0, |started| started.elapsed().as_secs_f64());
        self.pictures.sort_by(|a, b| a.name.cmp(&b.name));
        let json = serde_json::to_string_pretty(self).map_err(|e| Error::file(path, e.to_string()))?;
        replace(path, |partial| std::fs::write(partial, json).map_err(|e| Error::io(path, e)))
    }
}

impl ModelTotals {
    fn new(model: &str) -> Self {
        Self {
            model: model.into(),
            pictures: 0,
            batches: 0,
            seconds: 0.0,
            seconds_per_picture: 0.0,
            average_mib: 0.0,
            peak_mib: 0.0,
            samples: 0,
        }
    }
}

impl fmt::Display for BatchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.models.is_empty() {
            let heads = ["images", "batches", "seconds", "s/image", "average MiB", "peak MiB"];
            heads.iter().try_for_each(|head| write!(f, "{head:>11}  "))?;
            writeln!(f, "model")?;
        }
        for work in &self.models {
            write!(f, "{:>11}  {:>11}  {:>11.1}", work.pictures, work.batches, work.seconds)?;
            write!(f, "  {:>11.2}", work.seconds_per_picture)?;
            writeln!(f, "  {:>11.0}  {:>11.0}  {}", work.average_mib, work.peak_mib, work.model)?;
        }
        write!(f, "{} images in {:.1} s, loading included", self.pictures.len(), self.seconds)?;
        left_out(f, &self.skipped)
    }
}

/// A line for each of the first files that were left out, and how many more there are.
pub(super) fn left_out(f: &mut fmt::Formatter<'_>, skipped: &[Skipped]) -> fmt::Result {
    let skipped: Vec<_> = skipped.iter().map(ToString::to_string).collect();
    cut(&skipped).iter().try_for_each(|skipped| write!(f, "\nleft out: {skipped}"))
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

/// The name of a file, without its folder.
pub(crate) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

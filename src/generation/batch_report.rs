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

/// Lists of choices, from each of which every image gets one. The draw depends only on the seed, the length of the list and the name of
/// the image, not on other images in the folder.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Choices {
    /// Models: folders, or `org/name`.
    pub models: Vec<String>,
    /// Prompts, or instructions for an editing model.
    pub prompts: Vec<String>,
    /// Denoising strengths, above 0 and up to 1, which editing models do not use. 0.8 if empty.
    pub strengths: Vec<f64>,
}

/// The report of a batch: `report.json` as JSON, a table as text.
#[derive(Clone, Debug, Serialize)]
pub struct BatchReport {
    /// The images' folder.
    pub folder: PathBuf,
    /// Seed of noise and draws.
    pub seed: u64,
    /// The choices.
    pub choices: Choices,
    /// The time of everything, including loading.
    pub seconds: f64,
    /// Totals for each model, in order; empty for workers on other machines.
    pub models: Vec<ModelTotals>,
    /// The finished images.
    pub pictures: Vec<ImageRecord>,
    /// The images that could not be read.
    pub skipped: Vec<Skipped>,
    #[serde(skip)]
    started: Option<Instant>,
}

/// The totals of one model.
#[derive(Clone, Debug, Serialize)]
pub struct ModelTotals {
    /// The folder or name of the model.
    pub model: String,
    /// The number of images.
    pub pictures: usize,
    /// The number of batches.
    pub batches: usize,
    /// The time of encoding, denoising, decoding and writing, without loading.
    pub seconds: f64,
    /// The time per image.
    pub seconds_per_picture: f64,
    /// Mean memory in use after a denoising step, in MiB.
    pub average_mib: f64,
    /// Peak memory in use, in MiB.
    pub peak_mib: f64,
    #[serde(skip)]
    samples: usize,
}

/// A finished image.
#[derive(Clone, Debug, Serialize)]
pub struct ImageRecord {
    /// The name of the file, in both folders.
    pub name: String,
    /// The model.
    pub model: String,
    /// The prompt or instruction.
    pub prompt: String,
    /// The denoising strength; none for an editing model.
    pub strength: Option<f64>,
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// The size at which the model worked.
    pub worked_at: (u32, u32),
    /// The size of its batch.
    pub batch: usize,
    /// Its share of the batch's time.
    pub seconds: f64,
}

/// An image that could not be read.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    /// The name of the file.
    pub name: String,
    /// The reason, starting with its path.
    pub problem: String,
}

impl BatchReport {
    /// An empty report.
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

    /// Adds a batch of at least one image of one model; `in_use` is the memory after each step, in bytes.
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

    /// Records and logs an image that cannot be read.
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

/// A line for each of the first files that were left out, and the number of the others.
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

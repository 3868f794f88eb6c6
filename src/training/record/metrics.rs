//! The record of a run: `metrics.jsonl` and TensorBoard's files, written together.
//!
//! A line of `metrics.jsonl` is one [`Record`]; its keys are the names of metrics in all displays.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::{
    disk::replace,
    error::{Error, Result},
    training::record::{
        run_folder::{METRICS, TENSORBOARD, grid},
        tensorboard::TensorBoard,
    },
};

/// The training metrics of a logging step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepMetrics {
    /// Optimizer steps done.
    pub step: u64,
    /// Mean training loss over the steps since the last record.
    pub loss: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Norm of the gradient over all trainable parameters, before clipping.
    pub grad_norm: f64,
    /// Mean duration of a step since the last record, without validation and checkpoints.
    pub seconds_per_step: f64,
    /// Memory in use on the host, in MiB.
    pub memory_mib: f64,
    /// Peak memory held on the GPU since memory was last released, in MiB; missing on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_memory_mib: Option<f64>,
}

impl StepMetrics {
    /// Names, units and values, in display order.
    pub fn values(&self) -> Vec<(&'static str, &'static str, f64)> {
        let mut values = vec![
            ("loss", "", self.loss),
            ("learning_rate", "", self.learning_rate),
            ("grad_norm", "", self.grad_norm),
            ("seconds_per_step", "s", self.seconds_per_step),
            ("memory_mib", "MiB", self.memory_mib),
        ];
        values.extend(self.device_memory_mib.map(|mib| ("device_memory_mib", "MiB", mib)));
        values
    }
}

/// The held-out loss after a step; step 0 is the base model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationMetrics {
    /// Optimizer steps done.
    pub step: u64,
    /// Mean over all held-out samples and noise levels.
    pub validation_loss: f64,
    /// Mean over the held-out samples, for each noise level: sigma, or the timestep.
    pub validation_loss_at_level: BTreeMap<String, f64>,
}

/// The overall loss: the mean over the noise levels; 0 if there are none.
pub(in crate::training) fn mean_loss(losses: &[(f64, f64)]) -> f64 {
    losses.iter().map(|(_, loss)| loss).sum::<f64>() / losses.len().max(1) as f64
}

impl ValidationMetrics {
    /// The metrics from the losses at each noise level.
    pub fn new(step: u64, losses: &[(f64, f64)]) -> Self {
        let validation_loss = mean_loss(losses);
        let validation_loss_at_level = losses.iter().map(|(level, loss)| (level.to_string(), *loss)).collect();
        Self { step, validation_loss, validation_loss_at_level }
    }
}

/// The tag of sample grids in TensorBoard.
pub(in crate::training) const GRID: &str = "samples";

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Record {
    /// Training metrics.
    Step(StepMetrics),
    /// Validation metrics.
    Validation(ValidationMetrics),
}

impl Record {
    fn step(&self) -> u64 {
        match self {
            Self::Step(metrics) => metrics.step,
            Self::Validation(metrics) => metrics.step,
        }
    }
}

/// A writer of the metrics in a run folder.
pub struct Metrics {
    path: PathBuf,
    file: File,
    board: TensorBoard,
}

impl Metrics {
    /// Opens `metrics.jsonl` and `tensorboard/` in the folder of a run, after `resumed_step` steps: 0 for a new run. Lines of later
    /// steps, which will be repeated, are removed, and so are an incomplete last line and later points of TensorBoard's curves.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn open(run_folder: &Path, resumed_step: u64) -> Result<Self> {
        let path = run_folder.join(METRICS);
        // Lines are copied verbatim: parsing and printing may change the last digit of a number.
        let kept = match resumed_step {
            0 => vec![],
            _ => lines(&path)?,
        };
        let kept: Vec<_> = kept.into_iter().filter(|(_, record)| record.step() <= resumed_step).collect();
        let text: String = kept.iter().map(|(line, _)| line.as_str()).collect();
        replace(&path, |partial| std::fs::write(partial, text).map_err(|e| Error::io(partial, e)))?;
        let file = File::options().append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        // From this step on the curves are redrawn, because the last run may have ended between its line and its points.
        let mut metrics = Self { path, file, board: TensorBoard::open(&run_folder.join(TENSORBOARD), resumed_step)? };
        for (_, record) in kept.iter().filter(|(_, record)| record.step() == resumed_step) {
            metrics.draw(record)?;
        }
        if let Ok(image) = image::open(grid(run_folder, resumed_step)) {
            metrics.image(GRID, &image.into_rgb8(), resumed_step)?;
        }
        Ok(metrics)
    }

    /// All records of a run, in order; empty if it has not recorded anything yet.
    ///
    /// # Errors
    /// The file cannot be read, or a line other than the last is not a record.
    pub fn read(run_folder: &Path) -> Result<Vec<Record>> {
        Ok(lines(&run_folder.join(METRICS))?.into_iter().map(|(_, record)| record).collect())
    }

    /// Records a logging step.
    ///
    /// # Errors
    /// The file cannot be written, for example because the disk is full.
    pub fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.append(&Record::Step(metrics.clone()))
    }

    /// Records a validation.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn validation(&mut self, metrics: &ValidationMetrics) -> Result<()> {
        self.append(&Record::Validation(metrics.clone()))
    }

    /// Adds an image, such as a sample grid, to TensorBoard.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn image(&mut self, name: &str, image: &RgbImage, step: u64) -> Result<()> {
        self.board.image(name, image, step)
    }

    /// Syncs the records to disk, so that they survive a loss of power.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io(&self.path, e))
    }

    fn append(&mut self, record: &Record) -> Result<()> {
        self.file.write_all(line(record).as_bytes()).map_err(|e| Error::io(&self.path, e))?;
        self.draw(record)
    }

    /// The points of a record in TensorBoard.
    fn draw(&mut self, record: &Record) -> Result<()> {
        match record {
            Record::Step(metrics) => metrics
                .values()
                .into_iter()
                .try_for_each(|(name, _, value)| self.board.scalar(&format!("train/{name}"), value, metrics.step)),
            Record::Validation(metrics) => {
                self.board.scalar("validation/loss", metrics.validation_loss, metrics.step)?;
                metrics.validation_loss_at_level.iter().try_for_each(|(level, loss)| {
                    self.board.scalar(&format!("validation/loss_at_level/{level}"), *loss, metrics.step)
                })
            }
        }
    }
}

/// The lines of a file of records, with the parsed records.
fn lines(path: &Path) -> Result<Vec<(String, Record)>> {
    let text = match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        text => text.map_err(|e| Error::io(path, e))?,
    };
    let mut lines = vec![];
    for (i, line) in text.split_inclusive('\n').enumerate() {
        if !line.ends_with('\n') {
            break; // the program was ended while it wrote this
        }
        let record = serde_json::from_str(line).map_err(|e| Error::file(path, format!("line {}: {e}", i + 1)))?;
        lines.push((line.to_string(), record));
    }
    Ok(lines)
}

fn line(record: &Record) -> String {
    serde_json::to_string(record).expect("a record is numbers under string keys, which JSON can hold") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            loss: 0.5,
            learning_rate: 1e-4,
            grad_norm: 0.1,
            seconds_per_step: 0.2,
            memory_mib: 100.0,
            device_memory_mib: (step > 1).then_some(50.0),
        }
    }

    #[test]
    fn a_resumed_run_drops_the_lines_after_its_step_and_a_torn_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(folder.path(), 0).unwrap();
        let validation = ValidationMetrics::new(2, &[(0.1, 1.0), (0.9, 0.5)]);
        assert_eq!(validation.validation_loss, 0.75);
        (1..=2).for_each(|step| metrics.step(&at(step)).unwrap());
        metrics.validation(&validation).unwrap();
        metrics.step(&at(3)).unwrap();
        metrics.file.write_all(b"{\"step\":4,\"lo").unwrap();
        drop(metrics);

        let mut metrics = Metrics::open(folder.path(), 2).unwrap();
        metrics.step(&at(3)).unwrap();
        let expected = [Record::Step(at(1)), Record::Step(at(2)), Record::Validation(validation), Record::Step(at(3))];
        assert_eq!(Metrics::read(folder.path()).unwrap(), expected);

        Metrics::open(folder.path(), 0).unwrap();
        assert_eq!(Metrics::read(folder.path()).unwrap(), []);
    }

    #[test]
    fn scalars_and_pictures_reach_the_files_of_tensorboard() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(folder.path(), 0).unwrap();
        metrics.step(&at(1)).unwrap();
        metrics.image("samples/grid", &RgbImage::from_pixel(3, 2, image::Rgb([9, 8, 7])), 1).unwrap();
        drop(metrics);
        let files: Vec<_> = std::fs::read_dir(folder.path().join("tensorboard")).unwrap().flatten().collect();
        assert_eq!(files.len(), 1);
        let bytes = std::fs::read(files[0].path()).unwrap();
        let holds = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
        for text in ["train/loss", "train/learning_rate", "train/grad_norm", "train/memory_mib", "samples/grid"] {
            assert!(holds(text.as_bytes()), "{text}");
        }
        // The PNG inside: its header chunk says 3 wide, 2 high.
        assert!(holds(b"IHDR\0\0\0\x03\0\0\0\x02"));
    }

    #[test]
    fn a_broken_line_in_the_middle_is_an_error_with_its_number() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("metrics.jsonl"), "{\"step\": 1}\n").unwrap();
        let error = Metrics::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl: line 1: "), "{error}");
    }
}

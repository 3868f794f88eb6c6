//! Checkpoints: the complete state of a run on disk.
//!
//! `step-000100/` holds `adapter.safetensors` (a LoRA file that any tool reads) or, for a full run, `weights.safetensors` (the denoiser
//! under diffusers' names), `optimizer.safetensors`, `ema.safetensors` if there is an EMA, and `state.json` with the checksums of the
//! other files and of itself. The folder gets its name only when it is complete. Older ones are removed only after that, renamed
//! first so that none is ever incomplete, and never while another process reads them.

mod restored;
mod state_file;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    ops::Deref,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::{
    disk::{checksum, hold, hold_alone, remove_folder, remove_whole, sync_folder},
    error::{Error, Result},
    nn::Parameters,
    training::{Mode, OptimizerConfig, origin::Origin, record::run_folder, step::optimizer::AdamW},
    weights::{FlatTensor, TensorBytes, TensorFile, write_tensors},
};

const ADAPTER: &str = "adapter.safetensors";
const WEIGHTS: &str = "weights.safetensors";
const EMA: &str = "ema.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done. With the seed, this determines all randomness and the position in the data.
    pub step: u64,
    /// The training mode. Together with `ema` it determines the files.
    pub mode: Mode,
    /// Whether there is an EMA.
    pub averaged: bool,
    /// The origin of the run; a resumed run must have the same.
    pub origin: Origin,
    /// The version of kiln that wrote it.
    pub version: String,
}

/// The tensors of a checkpoint.
pub(in crate::training) struct Content<'a> {
    /// The adapter or the weights.
    pub trained: BTreeMap<String, FlatTensor>,
    /// The EMA, if there is one.
    pub averaged: Option<BTreeMap<String, FlatTensor>>,
    /// The metadata of both files.
    pub metadata: BTreeMap<String, String>,
    /// The moments of the optimizer.
    pub optimizer: &'a AdamW,
}

/// A `step-NNNNNN` folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Checkpoint {
    /// Optimizer steps done.
    pub step: u64,
    /// The folder.
    pub folder: PathBuf,
}

impl Checkpoint {
    /// The newest checkpoint of `run` before `step` whose files are all intact.
    pub(in crate::training) fn intact_before(run: &Path, step: u64) -> Option<Self> {
        let all = Self::all(run).unwrap_or_default();
        all.into_iter().rev().filter(|checkpoint| checkpoint.step < step).find(|checkpoint| checkpoint.verify().is_ok())
    }

    /// All complete checkpoints of a run, oldest first.
    ///
    /// # Errors
    /// The run folder cannot be read.
    pub fn all(run: &Path) -> Result<Vec<Self>> {
        let entries = fs::read_dir(run).map_err(|e| Error::io(run, e))?;
        let mut found: Vec<_> = entries.flatten().filter_map(|entry| Self::at(&entry.path())).collect();
        found.sort();
        Ok(found)
    }

    /// The checkpoint in this folder, if it is one.
    pub fn at(folder: &Path) -> Option<Self> {
        let step = step_of(folder)?;
        folder.join(STATE).is_file().then(|| Self { step, folder: folder.into() })
    }

    /// Resolves a path to a run or a checkpoint: the folder of the run, and its checkpoints, oldest first, or the one checkpoint.
    ///
    /// # Errors
    /// It is neither, or a run without a checkpoint.
    pub fn resolve(path: &Path) -> Result<(PathBuf, Vec<Self>)> {
        // Canonical, so that `step-000100/.` and a relative name inside the run have a parent.
        let path = fs::canonicalize(path).map_err(|e| Error::io(path, e))?;
        if let Some(checkpoint) = Self::at(&path) {
            let run = path.parent().expect("the folder has a name, so it is not the root");
            return Ok((run.into(), vec![checkpoint]));
        }
        let found = if path.is_dir() { Self::all(&path)? } else { Vec::new() };
        match found.is_empty() {
            false => Ok((path, found)),
            true if run_folder::is_without_checkpoint(&path) => {
                Err(Error::file(path, "this run has no checkpoint yet")
                    .hint("`kiln train` with this folder as `resume` starts it again from the first step"))
            }
            true => Err(Error::file(path, "neither a run folder with checkpoints nor a checkpoint")
                .hint("give `checkpoints/NAME` or `checkpoints/NAME/step-NNNNNN`")),
        }
    }

    /// Warns about folders of a run that look like checkpoints but are not.
    pub(in crate::training) fn warn_of_halves(run: &Path) {
        for entry in fs::read_dir(run).into_iter().flatten().flatten() {
            let folder = entry.path();
            if step_of(&folder).is_some() && Self::at(&folder).is_none() {
                tracing::warn!("{} has no `{STATE}`, so it is not a complete checkpoint: skipped", folder.display());
            }
        }
    }

    /// The checkpoints at `path`, as in [`resolve`](Self::resolve), locked for reading: a run that is still training does not remove them
    /// while the result lives.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve); or the one checkpoint has just been removed.
    pub fn hold(path: &Path) -> Result<(PathBuf, Vec<Held>)> {
        Self::warn_of_halves(path);
        loop {
            let (run, found) = Self::resolve(path)?;
            let alone = Self::at(path).is_some();
            let mut held = Vec::new();
            for checkpoint in found {
                if let Some(state) = hold(&checkpoint.folder.join(STATE))? {
                    held.push(Held { checkpoint, _state: state });
                } else if alone {
                    return Err(Error::file(
                        checkpoint.folder,
                        "this checkpoint has just been removed in favor of newer ones",
                    ));
                }
            }
            // If all of them are gone since they were listed, there are newer ones.
            if !held.is_empty() {
                return Ok((run, held));
            }
        }
    }

    /// The file of the trained parameters or, with `averaged` and if there is one, of their EMA.
    ///
    /// # Errors
    /// `state.json` is missing or broken.
    pub fn trained(&self, averaged: bool) -> Result<PathBuf> {
        let state = self.state()?;
        Ok(self.folder.join(match state.mode {
            _ if averaged && state.averaged => EMA,
            Mode::Lora => ADAPTER,
            Mode::Full => WEIGHTS,
        }))
    }

    /// Its `state.json`.
    ///
    /// # Errors
    /// It is missing, broken or damaged, or its step is not that of the folder.
    pub fn state(&self) -> Result<State> {
        let path = self.folder.join(STATE);
        let (state, _) = state_file::read(&path)?;
        if state.step != self.step {
            let problem = format!("is of step {}, but is in the folder of step {}", state.step, self.step);
            return Err(Error::file(path, problem));
        }
        Ok(state)
    }

    /// Verifies the checksums of all its files. Without checksums, as written by older versions, headers and lengths must be right.
    ///
    /// # Errors
    /// A file is missing or damaged.
    pub fn verify(&self) -> Result<()> {
        self.state()?;
        self.verify_files(|_| true)
    }

    /// The same, only for the file of [`trained`](Self::trained).
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub fn verify_trained(&self, averaged: bool) -> Result<()> {
        let trained = self.trained(averaged)?;
        self.verify_files(|path| *path == trained)
    }

    fn verify_files(&self, wanted: impl Fn(&PathBuf) -> bool) -> Result<()> {
        let (_, sums) = state_file::read(&self.folder.join(STATE))?;
        if sums.is_empty() {
            let there = [ADAPTER, WEIGHTS, EMA, OPTIMIZER].map(|name| self.folder.join(name));
            let mut there = there.iter().filter(|path| path.exists() && wanted(path));
            return there.try_for_each(|path| TensorFile::open(path).map(drop)); // its header and its length
        }
        for (name, sum) in sums {
            let path = self.folder.join(name);
            if wanted(&path) && checksum(&path)? != sum {
                return Err(Error::file(path, state_file::DAMAGED));
            }
        }
        Ok(())
    }

    /// Restores the optimizer, for the same parameters.
    ///
    /// # Errors
    /// Its file is broken or does not fit the parameters.
    pub(in crate::training) fn optimizer(
        &self,
        config: OptimizerConfig,
        parameters: &mut impl Parameters,
        device: &Device,
    ) -> Result<AdamW> {
        let file = TensorFile::open(self.folder.join(OPTIMIZER))?;
        AdamW::restore(config, self.step, &file, parameters, device)
    }

    /// Writes a checkpoint into the folder of a run.
    ///
    /// # Errors
    /// A file cannot be written; earlier checkpoints are intact, and nothing is left behind.
    pub(in crate::training) fn save(run: &Path, state: &State, content: Content) -> Result<Self> {
        let folder = run.join(format!("step-{:06}", state.step));
        let partial = run.join(format!("step-{:06}.partial", state.step));
        remove_folder(&partial)?;
        let written = fill(&partial, state, content).and_then(|()| {
            remove_folder(&folder)?;
            fs::rename(&partial, &folder).map_err(|e| Error::io(&folder, e))
        });
        if let Err(error) = written {
            _ = remove_folder(&partial); // the first error is the one to tell
            return Err(error);
        }
        sync_folder(run); // before an older one goes
        Ok(Self { step: state.step, folder })
    }

    /// Renames the checkpoints of `run` after this one to `….abandoned`: the run resumes from here, so they are no longer part of it.
    ///
    /// # Errors
    /// A folder cannot be renamed, or another process is reading it.
    pub fn set_later_ones_aside(&self, run: &Path) -> Result<()> {
        for later in Self::all(run)?.into_iter().filter(|other| other.step > self.step) {
            let Some(_alone) = hold_alone(&later.folder.join(STATE))? else {
                let problem = "another process is reading this checkpoint, which is later than the step to resume from";
                return Err(Error::file(later.folder, problem)
                    .hint("resume when `kiln validate` or `kiln export` has finished"));
            };
            let aside = later.folder.with_extension("abandoned");
            remove_folder(&aside)?;
            fs::rename(&later.folder, &aside).map_err(|e| Error::io(&later.folder, e))?;
            tracing::warn!("{} is later than the step this run resumes from: renamed", later.folder.display());
        }
        Ok(())
    }

    /// Removes all but the newest `keep` checkpoints of a run; 0 keeps all. One that another process is reading stays until the next
    /// call.
    ///
    /// # Errors
    /// A folder cannot be removed.
    pub fn prune(run: &Path, keep: usize) -> Result<()> {
        let all = Self::all(run)?;
        let excess = if keep == 0 { 0 } else { all.len().saturating_sub(keep) };
        for old in &all[..excess] {
            match hold_alone(&old.folder.join(STATE))? {
                Some(_alone) => remove_whole(&old.folder)?,
                None => {
                    tracing::debug!("{} is being read by another process, and is kept for now", old.folder.display())
                }
            }
        }
        Ok(())
    }
}

/// The step in the name of a folder.
fn step_of(folder: &Path) -> Option<u64> {
    folder.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
}

/// Writes and syncs all files of a checkpoint, `state.json` last.
fn fill(partial: &Path, state: &State, content: Content) -> Result<()> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |e| Error::io(path, e)
    };
    fs::create_dir_all(partial).map_err(io(partial))?;
    let name = match state.mode {
        Mode::Lora => ADAPTER,
        Mode::Full => WEIGHTS,
    };
    let mut sums = BTreeMap::new();
    sums.insert(name.to_string(), write(&partial.join(name), &content.trained, &content.metadata)?);
    if let Some(averaged) = &content.averaged {
        sums.insert(EMA.to_string(), write(&partial.join(EMA), averaged, &content.metadata)?);
    }
    let moments = content.optimizer.tensors();
    sums.insert(OPTIMIZER.to_string(), write(&partial.join(OPTIMIZER), &moments, &BTreeMap::new())?);
    fs::write(partial.join(STATE), state_file::text(state, &sums)).map_err(io(partial))?;
    for synced in [partial.join(STATE), partial.to_path_buf()] {
        File::open(&synced).and_then(|file| file.sync_all()).map_err(io(&synced))?;
    }
    Ok(())
}

/// Writes a file of tensors; returns its checksum.
fn write<T: TensorBytes>(
    path: &Path,
    tensors: &BTreeMap<String, T>,
    metadata: &BTreeMap<String, String>,
) -> Result<String> {
    write_tensors(path, tensors, metadata)?;
    checksum(path)
}

/// A read lock on a checkpoint: no process removes it while this lives.
#[derive(Debug)]
pub struct Held {
    checkpoint: Checkpoint,
    _state: File,
}

impl Deref for Held {
    type Target = Checkpoint;

    fn deref(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

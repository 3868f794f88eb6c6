//! A moment of a run on disk: everything that the next step depends on.
//!
//! `step-000100/` holds `adapter.safetensors` (a LoRA file that any tool reads) or, of a full run, `weights.safetensors` (the
//! denoiser under diffusers' names), `optimizer.safetensors`, `ema.safetensors` if there is a running mean, and `state.json`. The
//! folder appears under its name only when it is complete, and older ones go only after that.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::{Mode, OptimizerConfig, optimizer::AdamW, resume::Origin};
use crate::{
    error::{Error, Result},
    nn::Parameters,
    weights::{TensorFile, Values, read_json, remove_folder, write_tensors},
};

const ADAPTER: &str = "adapter.safetensors";
const WEIGHTS: &str = "weights.safetensors";
const EMA: &str = "ema.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done. All randomness and the place in the data follow from it and the seed.
    pub step: u64,
    /// What was trained: which files there are follows from this and the next.
    pub mode: Mode,
    /// Whether there is a running mean.
    pub averaged: bool,
    /// What the run was made from; a resumed run must have the same.
    pub origin: Origin,
    /// The version of kiln that wrote it.
    pub version: String,
}

/// What goes into a checkpoint beside its state.
pub(super) struct Content<'a> {
    /// An adapter or weights.
    pub trained: BTreeMap<String, Values>,
    /// Their running mean, if there is one.
    pub averaged: Option<BTreeMap<String, Values>>,
    /// Of both files.
    pub metadata: BTreeMap<String, String>,
    /// Its moments.
    pub optimizer: &'a AdamW,
}

/// One `step-NNNNNN` folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Checkpoint {
    /// Optimizer steps done.
    pub step: u64,
    /// The folder.
    pub folder: PathBuf,
}

impl Checkpoint {
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

    /// The checkpoint in this very folder, if it is one.
    pub fn at(folder: &Path) -> Option<Self> {
        let step = folder.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
        folder.join(STATE).is_file().then(|| Self { step, folder: folder.into() })
    }

    /// What `path` means where a run or a checkpoint is asked for: the run's folder and its checkpoints, oldest first, or
    /// the one checkpoint.
    ///
    /// # Errors
    /// It is neither, or a run that has not saved anything.
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
            true => Err(Error::file(path, "neither a run folder with checkpoints nor a checkpoint")
                .hint("give `checkpoints/NAME` or `checkpoints/NAME/step-NNNNNN`")),
        }
    }

    /// The file of what was trained or, if `averaged` is asked for and the run keeps one, of its running mean.
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
    /// It is missing or broken.
    pub fn state(&self) -> Result<State> {
        read_json(self.folder.join(STATE))
    }

    /// The optimizer as it was, for the same parameters.
    ///
    /// # Errors
    /// Its file is broken or does not fit the parameters.
    pub(super) fn optimizer(
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
    /// The disk refuses; what was there before is still there.
    pub(super) fn save(run: &Path, state: &State, content: Content) -> Result<Self> {
        let folder = run.join(format!("step-{:06}", state.step));
        let partial = run.join(format!("step-{:06}.partial", state.step));
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |e| Error::io(path, e)
        };
        remove_folder(&partial)?;
        fs::create_dir_all(&partial).map_err(io(&partial))?;
        let name = match state.mode {
            Mode::Lora => ADAPTER,
            Mode::Full => WEIGHTS,
        };
        write_tensors(partial.join(name), &content.trained, &content.metadata)?;
        if let Some(averaged) = content.averaged {
            write_tensors(partial.join(EMA), &averaged, &content.metadata)?;
        }
        write_tensors(partial.join(OPTIMIZER), &content.optimizer.tensors(), &BTreeMap::new())?;
        let text = serde_json::to_string_pretty(state).expect("the state is text and numbers");
        fs::write(partial.join(STATE), text).map_err(io(&partial))?;
        for synced in [partial.join(STATE), partial.clone()] {
            fs::File::open(&synced).and_then(|file| file.sync_all()).map_err(io(&synced))?;
        }
        remove_folder(&folder)?;
        fs::rename(&partial, &folder).map_err(io(&folder))?;
        Ok(Self { step: state.step, folder })
    }

    /// Renames the checkpoints of `run` that are from after this one to `….abandoned`: the run goes on from here another way,
    /// and they are no part of it any more.
    ///
    /// # Errors
    /// A folder cannot be renamed.
    pub fn set_later_ones_aside(&self, run: &Path) -> Result<()> {
        for later in Self::all(run)?.into_iter().filter(|other| other.step > self.step) {
            let aside = later.folder.with_extension("abandoned");
            remove_folder(&aside)?;
            fs::rename(&later.folder, &aside).map_err(|e| Error::io(&later.folder, e))?;
            tracing::warn!("{} is from after the step the run goes on from: renamed", later.folder.display());
        }
        Ok(())
    }

    /// Removes all but the newest `keep` checkpoints of a run; 0 keeps all.
    ///
    /// # Errors
    /// A folder cannot be removed.
    pub fn prune(run: &Path, keep: usize) -> Result<()> {
        let all = Self::all(run)?;
        let excess = if keep == 0 { 0 } else { all.len().saturating_sub(keep) };
        all[..excess].iter().try_for_each(|old| remove_folder(&old.folder))
    }
}

//! The folder of a run, locked for writing by this process.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    disk::{FolderLock, sweep, sweep_folders},
    error::{Error, Result},
    training::{CONFIG, TrainConfig, record::started},
};

/// The record of a run.
pub(in crate::training) const METRICS: &str = "metrics.jsonl";

/// The event files of TensorBoard.
pub(in crate::training) const TENSORBOARD: &str = "tensorboard";

/// The grids of images.
const SAMPLES: &str = "samples";

/// A run folder that no other process writes to while this lives.
#[derive(Debug)]
pub(in crate::training) struct RunFolder {
    path: PathBuf,
    _lock: FolderLock,
}

impl RunFolder {
    /// A folder for a new run: `NAME`, or `NAME-2` and so on if that exists. The folder of a run that ended before its first checkpoint is
    /// used again.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn create(config: &TrainConfig) -> Result<Self> {
        let wanted = config.run_folder();
        fs::create_dir_all(&config.run.output).map_err(|e| Error::io(&config.run.output, e))?;
        let numbered = (2..).map(|n: u32| wanted.with_file_name(format!("{}-{n}", config.run.name)));
        for path in std::iter::once(wanted.clone()).chain(numbered) {
            let new = match fs::create_dir(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => false,
                created => created.map(|()| true).map_err(|e| Error::io(&path, e))?,
            };
            if !new && !has_nothing_to_lose(&path) {
                continue;
            }
            let Some(lock) = FolderLock::try_take(&path)? else { continue };
            // Another process may have trained in it since it was inspected.
            if has_nothing_to_lose(&path) {
                if !new {
                    tracing::info!("{} has no checkpoint yet: starting over in the same folder", path.display());
                }
                return Self::clean(path, lock);
            }
        }
        unreachable!("the numbers go on")
    }

    /// The folder of a run to resume.
    ///
    /// # Errors
    /// Another process is writing there, or the folder cannot be written.
    pub fn open(path: &Path) -> Result<Self> {
        let lock = FolderLock::take(path)?;
        Self::clean(path.into(), lock)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what a dead process left behind.
    fn clean(path: PathBuf, lock: FolderLock) -> Result<Self> {
        sweep_folders(&path, "step-")?;
        sweep_folders(&path, "model.")?;
        sweep(&path);
        sweep(&path.join(SAMPLES));
        Ok(Self { path, _lock: lock })
    }
}

/// Whether the folder at `path` belongs to a run that ended before its first checkpoint.
pub(in crate::training) fn is_without_checkpoint(path: &Path) -> bool {
    path.join(CONFIG).is_file() && has_nothing_to_lose(path)
}

/// Whether the folder contains only what a run writes before its first checkpoint. Anything else may be somebody's work.
fn has_nothing_to_lose(path: &Path) -> bool {
    let Ok(entries) = fs::read_dir(path) else { return false };
    let known = |entry: std::io::Result<fs::DirEntry>| {
        let Ok(entry) = entry else { return false };
        let name = entry.file_name().to_string_lossy().into_owned();
        let own = [CONFIG, METRICS, TENSORBOARD, SAMPLES, started::FILE, FolderLock::FILE].contains(&name.as_str());
        own || name.ends_with(".partial")
            && (name.starts_with("step-")
                || ["config.", "metrics.", "started."].iter().any(|start| name.starts_with(start)))
    };
    entries.into_iter().all(known)
}

/// The path of the grid of a step.
pub(in crate::training) fn grid(run: &Path, step: u64) -> PathBuf {
    run.join(SAMPLES).join(format!("step-{step:06}.png"))
}

/// Removes the grids of steps from `first` on, which will be written again.
///
/// # Errors
/// The folder cannot be written.
pub(in crate::training) fn drop_grids(run: &Path, first: u64) -> Result<()> {
    for entry in fs::read_dir(run.join(SAMPLES)).into_iter().flatten().flatten() {
        let path = entry.path();
        let step = path.file_stem().and_then(|name| name.to_str()?.strip_prefix("step-")?.parse::<u64>().ok());
        if step.is_some_and(|step| step >= first) {
            fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(())
}

//! The working directory in which a run was started, to which the relative paths of its configuration refer.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    disk::replace,
    error::{Error, Result},
    training::TrainConfig,
    weights::read_json,
};

/// Its file in the run folder.
pub(in crate::training) const FILE: &str = "started.json";

#[derive(Serialize, Deserialize)]
struct Started {
    /// The working directory of the process that trained.
    working_directory: PathBuf,
}

/// Records the working directory in the folder of a `run`, unless the paths of `config` exist only from the directory recorded
/// before.
///
/// # Errors
/// The file cannot be written.
pub(in crate::training) fn note(run: &Path, config: &TrainConfig) -> Result<()> {
    let Ok(working_directory) = std::env::current_dir() else { return Ok(()) }; // it was removed: no path begins there
    if working_directory.to_str().is_none() || from_its_start(run, config) != *config {
        return Ok(());
    }
    let text = serde_json::to_string_pretty(&Started { working_directory }).expect("a path in UTF-8 is JSON");
    let path = run.join(FILE);
    replace(&path, |partial| fs::write(partial, text).map_err(|e| Error::io(&path, e)))
}

/// The configuration of a `run` with the paths of its model and data resolved: relative paths that do not exist from here are taken
/// relative to where the run was started, if they exist from there.
pub(in crate::training) fn from_its_start(run: &Path, config: &TrainConfig) -> TrainConfig {
    let mut config = config.clone();
    let Ok(Started { working_directory }) = read_json(run.join(FILE)) else { return config };
    let there = |path: &Path| Some(working_directory.join(path)).filter(|there| path.is_relative() && there.exists());
    let found = |path: &Path| there(path).filter(|_| !path.exists());
    if let Some(model) = found(Path::new(&config.model.path)).and_then(|path| path.to_str().map(String::from)) {
        config.model.path = model;
    }
    if let Some(cache) = config.data.cache.take() {
        // Relative to the data, whether it exists yet or not.
        let moved = cache.is_relative() && !cache.exists() && found(&config.data.path).is_some();
        config.data.cache = Some(found(&cache).unwrap_or(if moved { working_directory.join(cache) } else { cache }));
    }
    if let Some(data) = found(&config.data.path) {
        config.data.path = data;
    }
    config
}

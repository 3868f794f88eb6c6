//! Whether a run may go on with a configuration.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{CONFIG, Checkpoint, TrainConfig};
use crate::error::{Error, Result};

/// The run and checkpoint that `path` means, if `config` may go on with it.
pub(super) fn resumable(config: &TrainConfig, path: &Path) -> Result<(PathBuf, Checkpoint)> {
    let (run, mut checkpoints) = Checkpoint::resolve(path)?;
    let before = TrainConfig::load(run.join(CONFIG), &[])?;
    let mut problems = Vec::new();
    compare("", &table(&before)?, &table(config)?, &mut problems);
    if !problems.is_empty() {
        return Err(Error::Many { path: run.join(CONFIG), problems }
            .hint("go on with the settings the run was started with, or start a new run without `--resume`"));
    }
    Ok((run, checkpoints.pop().expect("at least one was found")))
}

/// Settings that do not change what a step computes.
const FREE: [&str; 10] = [
    "run.name",
    "run.output",
    "data.cache",
    "data.path",
    "model.path",
    "training.max_steps",
    "training.log_every",
    "training.activations",
    "checkpoint",
    "validation",
];

fn table(config: &TrainConfig) -> Result<toml::Value> {
    toml::Value::try_from(config).map_err(|e| Error::setting("configuration", e.to_string()))
}

/// Notes where two configurations differ, apart from what is [`FREE`].
fn compare(key: &str, before: &toml::Value, now: &toml::Value, problems: &mut Vec<String>) {
    if FREE.contains(&key) || before == now {
        return;
    }
    let (Some(old), Some(new)) = (before.as_table(), now.as_table()) else {
        problems.push(format!("`{key}` was {before} and is now {now}"));
        return;
    };
    let missing = toml::Value::String("not given".into());
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    for name in keys {
        let full = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
        compare(&full, old.get(name).unwrap_or(&missing), new.get(name).unwrap_or(&missing), problems);
    }
}

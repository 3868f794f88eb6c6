//! Checks that a run may be resumed: the same settings, the same data, the same model.

use std::{collections::BTreeSet, path::Path};

use super::{
    CONFIG, ScheduleName, TrainConfig,
    checkpoint::Checkpoint,
    record::run_folder::{RunFolder, is_without_checkpoint},
    run_config::run_config,
};
use crate::error::{Error, Result, Subject};

/// A run to resume, locked for writing.
pub(super) struct Resumed {
    /// Its folder.
    pub folder: RunFolder,
    /// The checkpoint to resume from; `None` if the run ended before its first checkpoint and starts over.
    pub checkpoint: Option<Checkpoint>,
}

/// The run and checkpoint at `path`, if it can be resumed with `config`.
///
/// # Errors
/// There is no such run, another process is writing there, the settings differ, or the checkpoint is damaged: then the error names
/// the one before it.
pub(super) fn resumable(config: &TrainConfig, path: &Path) -> Result<Resumed> {
    if is_without_checkpoint(path) {
        let folder = RunFolder::open(path)?;
        // Until now, another process may have trained here.
        if is_without_checkpoint(path) {
            tracing::info!("{} has no checkpoint yet: starting over in the same folder", path.display());
            return Ok(Resumed { folder, checkpoint: None });
        }
    }
    let (run, _) = Checkpoint::resolve(path)?;
    let folder = RunFolder::open(&run)?;
    Checkpoint::warn_of_halves(&run);
    // Checked again for the same reason.
    let (_, mut checkpoints) = Checkpoint::resolve(path)?;
    let checkpoint = checkpoints.pop().expect("at least one was found");
    checkpoint.verify().map_err(|error| damaged(error, &run, &checkpoint))?;
    let before = run_config(&run, &[])?;
    let mut problems = Vec::new();
    compare("", &table(&before)?, &table(config)?, &mut problems);
    let (length, now) = (before.training.max_steps, config.training.max_steps);
    if length != now && config.schedule.name != ScheduleName::Constant {
        problems.push(format!("`training.max_steps` was {length} and is now {now}, which changes the learning rates"));
    }
    if !problems.is_empty() {
        return Err(Error::many(run.join(CONFIG), problems)
            .hint("resume with the settings the run was started with, or start a new run without `resume`"));
    }
    Ok(Resumed { folder, checkpoint: Some(checkpoint) })
}

/// The error for a checkpoint that cannot be resumed from, with the one before it.
fn damaged(error: Error, run: &Path, checkpoint: &Checkpoint) -> Error {
    let error = match &error.subject {
        Subject::Path(path) if error.is_io() => Error::file(path, error.problem.to_string()), // so that it takes the hint
        _ => error,
    };
    error.hint(match Checkpoint::intact_before(run, checkpoint.step) {
        Some(before) => format!(
            "the checkpoint before it is intact: `resume {}` repeats {} steps",
            before.folder.display(),
            checkpoint.step - before.step
        ),
        None => "there is no intact checkpoint before it: start a new run without `resume`".into(),
    })
}

/// Settings that do not affect the result of a step (`training.max_steps` does not while the learning rate is constant).
const FREE: [&str; 11] = [
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
    "memory",
];

fn table(config: &TrainConfig) -> Result<toml::Value> {
    toml::Value::try_from(config).map_err(|e| Error::setting("configuration", e.to_string()))
}

/// Collects the differences between two configurations, apart from settings that are [`FREE`].
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

//! Training runs in their folders: from this or another version of kiln, finished or still being written.
//!
//! Nothing here takes a run's lock or writes into its folder. Names from requests are looked up among the existing names; no part
//! of a path comes from a client.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::UNIX_EPOCH,
};

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    run::{CheckpointInfo, RunDetail, RunState, RunSummary, SampleInfo},
    run_metrics::{Curve, RunMetrics},
};
use crate::{
    disk::writer,
    error::{Error, Result},
    training::Checkpoint,
};

const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";
const SAMPLES: &str = "samples";
const ADAPTER: &str = "adapter.safetensors";

/// A change of a run, sent to those who watch.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct RunChange {
    /// The name of the run.
    pub name: String,
    /// Its current state.
    pub state: RunState,
    /// The length of its metrics, in bytes.
    pub bytes: u64,
}

/// Folders of runs. A configured folder is a run itself or contains runs.
#[derive(Debug, Default)]
pub struct Runs {
    folders: Vec<PathBuf>,
    /// The processes that were asked to stop, by run: a second signal would kill one at once, without saving.
    asked: Mutex<BTreeMap<PathBuf, u32>>,
    /// The metrics read so far, by run.
    read: Mutex<BTreeMap<PathBuf, RunMetrics>>,
}

impl Runs {
    /// The runs in these folders.
    pub fn new(folders: Vec<PathBuf>) -> Self {
        Self { folders, ..Self::default() }
    }

    /// All runs by name; of two with the same name, the one in the folder that is configured first.
    fn found(&self) -> BTreeMap<String, PathBuf> {
        let mut found = BTreeMap::new();
        for folder in &self.folders {
            let below = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
            for run in std::iter::once(folder.clone()).chain(below).filter(|path| is_run(path)) {
                let name = run.file_name().and_then(|name| name.to_str()).map(String::from);
                if let Some(name) = name {
                    found.entry(name).or_insert(run);
                }
            }
        }
        found
    }

    /// The folder of a run. `None` if there is no such run.
    pub fn folder(&self, name: &str) -> Option<PathBuf> {
        self.found().remove(name)
    }

    /// All runs, the most recently changed first.
    pub fn list(&self) -> Vec<RunSummary> {
        let mut runs: Vec<_> = self.found().iter().map(|(name, folder)| self.summary(name, folder)).collect();
        runs.sort_by(|a, b| b.updated.total_cmp(&a.updated));
        runs
    }

    /// A run with the contents of its folder; `None` if there is no such run.
    ///
    /// # Errors
    /// Its folder cannot be read.
    pub fn detail(&self, name: &str) -> Result<Option<RunDetail>> {
        let Some(folder) = self.folder(name) else { return Ok(None) };
        let path = folder.join(CONFIG);
        let config = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let summary = self.summary(name, &folder);
        let (losses, unreadable_lines) =
            self.metrics_of(&folder, |metrics| (metrics.validation_losses().clone(), metrics.unreadable()));
        let checkpoints: Vec<_> = Checkpoint::all(&folder)?
            .iter()
            .map(|checkpoint| CheckpointInfo {
                step: checkpoint.step,
                bytes: bytes(&checkpoint.folder),
                validation_loss: losses.get(&checkpoint.step).copied(),
                adapter: checkpoint.folder.join(ADAPTER).is_file(),
            })
            .collect();
        let measured = checkpoints.iter().filter_map(|checkpoint| Some((checkpoint.step, checkpoint.validation_loss?)));
        let best_step =
            measured.filter(|(_, loss)| loss.is_finite()).min_by(|a, b| a.1.total_cmp(&b.1)).map(|(step, _)| step);
        Ok(Some(RunDetail { summary, config, checkpoints, samples: samples(&folder), best_step, unreadable_lines }))
    }

    /// The records of a run from the position `after` on, or all. `None` if there is no such run.
    pub fn metrics(&self, name: &str, after: Option<&str>) -> Option<Curve> {
        let folder = self.folder(name)?;
        Some(Curve::read(&folder.join(METRICS), after))
    }

    /// The file of a grid of samples; `None` if there is no such run or grid.
    pub fn sample(&self, name: &str, file: &str) -> Option<PathBuf> {
        let folder = self.folder(name)?;
        let sample = samples(&folder).into_iter().find(|sample| sample.file == file)?;
        Some(folder.join(SAMPLES).join(sample.file))
    }

    /// The adapter of a checkpoint; `None` if there is none.
    pub fn adapter(&self, name: &str, step: u64) -> Option<PathBuf> {
        let checkpoints = Checkpoint::all(&self.folder(name)?).ok()?;
        let checkpoint = checkpoints.into_iter().find(|checkpoint| checkpoint.step == step)?;
        Some(checkpoint.folder.join(ADAPTER)).filter(|path| path.is_file())
    }

    /// Asks the process of a run to stop after its current step, with a checkpoint; `known` is its process if it has no folder yet.
    /// `None` if there is no such run.
    ///
    /// # Errors
    /// No process on this machine is training it, or the operating system refuses.
    pub fn stop(&self, name: &str, known: Option<u32>) -> Option<Result<RunState>> {
        let folder = self.folder(name).or_else(|| known.map(|_| name.into()))?;
        Some(self.stop_at(&folder, name, known))
    }

    fn stop_at(&self, folder: &Path, name: &str, known: Option<u32>) -> Result<RunState> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(process) = writer(folder).or(known) else {
            return Err(Error::setting(format!("run {name}"), "no process on this machine is training it"));
        };
        if !asked.values().any(|before| *before == process) {
            terminate(process).map_err(|e| Error::io(folder, e))?;
        }
        asked.insert(folder.into(), process);
        Ok(RunState::Stopping)
    }

    /// The changes since the last call, which left its state in `seen`; none at the first call.
    pub fn changed(&self, seen: &mut Option<BTreeMap<String, (RunState, u64)>>) -> Vec<RunChange> {
        let now: BTreeMap<String, (RunState, u64)> = self
            .found()
            .into_iter()
            .map(|(name, folder)| {
                let bytes = fs::metadata(folder.join(METRICS)).map_or(0, |metadata| metadata.len());
                let (step, max_steps) = (self.metrics_of(&folder, |metrics| metrics.step()), max_steps(&folder));
                (name, (self.state(&folder, step, max_steps), bytes))
            })
            .collect();
        let Some(before) = seen.replace(now.clone()) else { return Vec::new() };
        let new = now.into_iter().filter(|(name, what)| before.get(name) != Some(what));
        new.map(|(name, (state, bytes))| RunChange { name, state, bytes }).collect()
    }

    fn summary(&self, name: &str, folder: &Path) -> RunSummary {
        let config = config(folder);
        let text = |table: &str, key: &str| -> String {
            config.get(table).and_then(|table| table.get(key)?.as_str()).unwrap_or_default().into()
        };
        let (last, step, validation_loss) =
            self.metrics_of(folder, |metrics| (metrics.last().cloned(), metrics.step(), metrics.validation_loss()));
        let number = |key: &str| last.as_ref().and_then(|last| last.get(key)?.as_f64());
        let max_steps = max_steps(folder);
        let state = self.state(folder, step, max_steps);
        let running = matches!(state, RunState::Running);
        let seconds_per_step = number("seconds_per_step");
        RunSummary {
            name: name.into(),
            state,
            step,
            max_steps,
            model: text("model", "path"),
            objective: text("objective", "kind"),
            updated: updated(&folder.join(METRICS)),
            loss: number("loss"),
            validation_loss,
            seconds_per_step,
            eta_seconds: seconds_per_step
                .filter(|_| running)
                .map(|seconds| seconds * max_steps.saturating_sub(step) as f64),
            memory_mib: number("memory_mib"),
            device_memory_mib: number("device_memory_mib"),
            grid: samples(folder).pop().map(|sample| sample.file),
        }
    }

    fn state(&self, folder: &Path, step: u64, max_steps: u64) -> RunState {
        let asked = || self.asked.lock().unwrap_or_else(PoisonError::into_inner).get(folder).copied();
        match writer(folder) {
            Some(process) if asked() == Some(process) => RunState::Stopping,
            Some(_) => RunState::Running,
            None if max_steps > 0 && step >= max_steps => RunState::Finished,
            None => RunState::Ended,
        }
    }

    /// Calls `work` with the up-to-date metrics of a run; only new lines are read.
    fn metrics_of<T>(&self, folder: &Path, work: impl FnOnce(&RunMetrics) -> T) -> T {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let metrics = read.entry(folder.into()).or_default();
        metrics.update(&folder.join(METRICS));
        work(metrics)
    }
}

/// Whether a folder holds a run of kiln.
fn is_run(folder: &Path) -> bool {
    [CONFIG, METRICS].iter().all(|name| folder.join(name).is_file())
}

/// The configuration of a run; empty if it cannot be read, as may happen with another version's.
fn config(folder: &Path) -> toml::Table {
    fs::read_to_string(folder.join(CONFIG)).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn max_steps(folder: &Path) -> u64 {
    let steps = config(folder).get("training").and_then(|table| table.get("max_steps")?.as_integer()).unwrap_or(0);
    steps.try_into().unwrap_or(0)
}

/// The grids of a run, the oldest first.
fn samples(folder: &Path) -> Vec<SampleInfo> {
    let entries = fs::read_dir(folder.join(SAMPLES)).into_iter().flatten().flatten();
    let mut samples: Vec<_> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .filter_map(|entry| {
            let file = entry.file_name().into_string().ok()?;
            let step = file.strip_suffix(".png")?.strip_prefix("step-")?.parse().ok()?;
            Some(SampleInfo { file, step })
        })
        .collect();
    samples.sort_by_key(|sample| sample.step);
    samples
}

/// The size of all files in a folder.
fn bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// When a file was last changed, in seconds since 1970; 0 if unknown.
fn updated(path: &Path) -> f64 {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(unix)]
fn terminate(process: u32) -> std::io::Result<()> {
    let process = libc::pid_t::try_from(process).map_err(std::io::Error::other)?;
    // SAFETY: the call takes two numbers and touches no memory of ours.
    match unsafe { libc::kill(process, libc::SIGTERM) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[cfg(not(unix))]
fn terminate(_process: u32) -> std::io::Result<()> {
    Err(std::io::Error::other("a run cannot be asked to stop on this system: press ctrl-c where it was started"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FolderLock;

    const SETTINGS: &str = "[model]\npath = \"m\"\n[objective]\nkind = \"flow_matching\"\n[training]\nmax_steps = 20\n";

    /// Two runs in one folder: `done`, and `begun` at step 10 with a checkpoint.
    fn runs() -> (tempfile::TempDir, Runs) {
        let folder = tempfile::tempdir().unwrap();
        for (name, step) in [("done", 20), ("begun", 10)] {
            let run = folder.path().join(name);
            let checkpoint = run.join(format!("step-{step:06}"));
            fs::create_dir_all(&checkpoint).unwrap();
            fs::create_dir_all(run.join(SAMPLES)).unwrap();
            let record = format!("{{\"step\":{step},\"loss\":0.5,\"seconds_per_step\":2.0}}\n");
            let validation = format!("{{\"step\":{step},\"validation_loss\":0.25}}\n");
            let files = [(CONFIG, SETTINGS), (METRICS, &(record + &validation)), ("samples/step-000010.png", "")];
            files.iter().for_each(|(name, text)| fs::write(run.join(name), text).unwrap());
            [ADAPTER, "state.json"].iter().for_each(|name| fs::write(checkpoint.join(name), "{}").unwrap());
        }
        fs::create_dir(folder.path().join("no-run")).unwrap();
        let runs = Runs::new(vec![folder.path().into(), folder.path().join("none")]);
        (folder, runs)
    }

    #[test]
    fn runs_are_listed_with_what_they_are_doing() {
        let (folder, runs) = runs();
        let states = || runs.list().into_iter().map(|run| (run.name, run.state)).collect::<BTreeMap<_, _>>();
        assert_eq!(states(), BTreeMap::from([("begun".into(), RunState::Ended), ("done".into(), RunState::Finished)]));
        let mut seen = None;
        assert_eq!(runs.changed(&mut seen), []);
        let lock = FolderLock::take(&folder.path().join("begun")).unwrap();
        assert_eq!(states()["begun"], RunState::Running);
        let changes = runs.changed(&mut seen);
        assert_eq!(
            changes.iter().map(|change| (change.name.as_str(), change.state)).collect::<Vec<_>>(),
            [("begun", RunState::Running)]
        );
        let begun = runs.detail("begun").unwrap().unwrap();
        assert_eq!((begun.summary.eta_seconds, begun.summary.validation_loss), (Some(20.0), Some(0.25)));
        assert_eq!((begun.best_step, begun.checkpoints[0].bytes, begun.checkpoints[0].adapter), (Some(10), 4, true));
        assert_eq!((begun.config.as_str(), begun.samples[0].step), (SETTINGS, 10));
        drop(lock);
        assert_eq!(runs.changed(&mut seen)[0].state, RunState::Ended);
        assert_eq!(runs.changed(&mut seen), []);
    }

    #[test]
    fn names_from_outside_reach_only_what_is_listed() {
        let (folder, runs) = runs();
        fs::write(folder.path().join("secret.png"), "").unwrap();
        for name in ["..", ".", "", "no-run", "begun/../done", "/etc", "none"] {
            assert!(runs.folder(name).is_none() && runs.detail(name).unwrap().is_none(), "{name}");
        }
        assert!(runs.sample("begun", "step-000010.png").is_some());
        for file in ["../config.toml", "../../secret.png", "step-000011.png", ""] {
            assert!(runs.sample("begun", file).is_none(), "{file}");
        }
        assert!(runs.adapter("begun", 10).is_some() && runs.adapter("begun", 11).is_none());
    }

    #[test]
    fn a_run_that_nobody_trains_cannot_be_stopped() {
        let (folder, runs) = runs();
        assert!(runs.stop("nothing", None).is_none());
        let error = runs.stop("begun", None).unwrap().unwrap_err().to_string();
        assert!(error.contains("no process"), "{error}");
        // A stale lock must not send a signal to whatever process has that number now.
        fs::write(folder.path().join("begun/.lock"), format!("process 1 on {} (kiln 0.1.0)\n", crate::disk::host()))
            .unwrap();
        assert!(runs.stop("begun", None).unwrap().is_err());
    }
}

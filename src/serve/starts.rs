//! Runs that are started from the page, each in a process of its own, like those of `kiln train`: a failure there affects no job
//! here, and the run continues when the server ends.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::config::{PageConfig, check_name};
use crate::{
    config::Sources,
    error::{Error, Result},
    training::TrainConfig,
};

/// The longest configuration accepted as text, in bytes.
const LONGEST: usize = 64 << 10;

/// How many bytes of its last output are shown for a process that failed.
const SAID: usize = 2000;

/// Creates the process that trains with a configuration file and these overrides, or with `true` only checks them.
pub type Launch = Arc<dyn Fn(&Path, &[String], bool) -> Command + Send + Sync>;

/// The configurations that can be started, and the run that was started last.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Startable {
    /// Whether runs can be started on this server.
    pub enabled: bool,
    /// Whether a configuration may be sent as text.
    pub takes_text: bool,
    /// The configurations in the server's folders, by name.
    pub configs: Vec<StartableConfig>,
    /// The run that was started here last, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Started>,
}

/// A configuration of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct StartableConfig {
    /// The name of its file, without `.toml`.
    pub name: String,
    /// The name of the run unless another is given.
    pub run: String,
    /// The text of the file.
    pub text: String,
}

/// A run that was started here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Started {
    /// The name of the run.
    pub run: String,
    /// The ID of its process.
    pub process: u32,
    /// Whether the process is still running.
    pub is_running: bool,
    /// The end of its output, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The configuration of a run to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A configuration in the server's folders, by name.
    Named(String),
    /// A configuration as TOML.
    Text(String),
}

/// Why a run was not started.
#[derive(Debug)]
pub enum NotStarted {
    /// The server does not allow it; the setting that would.
    Off(&'static str),
    /// There is no such configuration.
    Unknown,
    /// The configuration or the name of the run is invalid.
    Invalid(Error),
    /// Another run that was started here has not ended.
    Busy(String),
    /// The check of the configuration failed, with this output; for example, served models leave too little memory.
    Refused(String),
    /// An I/O error.
    Failed(Error),
}

/// The configurations that can be started, and the process that was started last.
pub struct Starts {
    launch: Launch,
    page: PageConfig,
    /// The folder of configurations sent as text, and of the processes' logs.
    folder: PathBuf,
    /// Held while a run is started.
    door: Mutex<()>,
    started: Arc<Mutex<Option<Started>>>,
}

impl Starts {
    /// Starts runs from the page's folders.
    pub fn new(page: PageConfig, folder: PathBuf, launch: Launch) -> Self {
        Self { launch, page, folder, door: Mutex::default(), started: Arc::default() }
    }

    /// The configurations that can be started, and the run that was started last.
    pub fn list(&self) -> Startable {
        let configs = self.configs().into_iter().filter_map(|(name, path)| {
            let sources = Sources::read(&path, &[]).ok()?;
            let run = TrainConfig::of(&sources, &path).ok()?.run.name;
            Some(StartableConfig { name, run, text: sources.text().into() })
        });
        let configs: Vec<_> = configs.collect();
        let PageConfig { configs: folders, pasted_configs: takes_text, .. } = &self.page;
        let enabled = !folders.is_empty() || *takes_text;
        Startable { enabled, takes_text: *takes_text, configs, started: self.started().clone() }
    }

    /// All configuration files by name; of two with the same name, the one in the folder that is configured first.
    fn configs(&self) -> BTreeMap<String, PathBuf> {
        let mut configs = BTreeMap::new();
        for folder in &self.page.configs {
            for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
                let is_toml = path.extension().is_some_and(|extension| extension == "toml");
                let name = path.file_stem().and_then(|name| name.to_str()).map(String::from);
                if let (true, Some(name)) = (is_toml, name) {
                    configs.entry(name).or_insert(path);
                }
            }
        }
        configs
    }

    /// Starts a run, under `name` if given. Blocks until a separate process has checked its configuration.
    ///
    /// # Errors
    /// See [`NotStarted`].
    pub fn start(&self, source: &Source, name: Option<&str>) -> std::result::Result<Started, NotStarted> {
        let _alone = self.door.try_lock().map_err(|_| NotStarted::Busy("another run is being started".into()))?;
        if let Some(running) = self.started().as_ref().filter(|started| started.is_running) {
            return Err(NotStarted::Busy(format!("the run {} is still running", running.run)));
        }
        fs::create_dir_all(&self.folder).map_err(|e| NotStarted::Failed(Error::io(&self.folder, e)))?;
        let path = self.file(source)?;
        let overrides: Vec<String> = match name {
            Some(name) => {
                check_name("name", name).map_err(NotStarted::Invalid)?;
                vec![format!("run.name='{name}'")]
            }
            None => Vec::new(),
        };
        let config = TrainConfig::load(&path, &overrides).map_err(NotStarted::Invalid)?;
        self.check_folder(&config).map_err(NotStarted::Invalid)?;
        let checked = (self.launch)(&path, &overrides, true).stdin(Stdio::null()).output();
        let checked = checked.map_err(|e| NotStarted::Failed(cannot_start(&e)))?;
        if !checked.status.success() {
            return Err(NotStarted::Refused(last_of(&checked.stderr)));
        }
        let child = self.spawn(&path, &overrides, &config.run.name).map_err(NotStarted::Failed)?;
        Ok(child)
    }

    /// The file with a configuration.
    fn file(&self, source: &Source) -> std::result::Result<PathBuf, NotStarted> {
        match source {
            Source::Named(_) if self.page.configs.is_empty() => Err(NotStarted::Off("page.configs")),
            Source::Named(name) => self.configs().remove(name).ok_or(NotStarted::Unknown),
            Source::Text(_) if !self.page.pasted_configs => Err(NotStarted::Off("page.pasted_configs")),
            Source::Text(text) if text.len() > LONGEST => {
                let problem = format!("has {} bytes, more than the maximum of {LONGEST}", text.len());
                Err(NotStarted::Invalid(Error::setting("toml", problem)))
            }
            Source::Text(text) => {
                let path = self.folder.join(format!("{}.toml", Uuid::now_v7()));
                fs::write(&path, text).map_err(|e| NotStarted::Failed(Error::io(&path, e)))?;
                Ok(path)
            }
        }
    }

    /// Checks that the folder of a run is new, and in a folder that the page shows.
    fn check_folder(&self, config: &TrainConfig) -> Result<()> {
        let folder = config.run_folder();
        if folder.exists() {
            return Err(Error::setting("name", format!("a run named {} already exists", config.run.name))
                .hint("choose another name"));
        }
        let whole = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).ok();
        let output = whole(&config.run.output);
        if !self.page.runs.iter().any(|runs| whole(runs) == output) {
            let problem =
                format!("{} is not one of the folders whose runs this server shows", config.run.output.display());
            let hint = "set it to a folder that the server's configuration lists as `page.runs`";
            return Err(Error::setting("run.output", problem).hint(hint));
        }
        Ok(())
    }

    fn spawn(&self, path: &Path, overrides: &[String], run: &str) -> Result<Started> {
        let log = self.folder.join(format!("{run}.log"));
        let file = File::create(&log).map_err(|e| Error::io(&log, e))?;
        let mut command = (self.launch)(path, overrides, false);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        // Ctrl-C in the server's terminal must not reach the run.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().map_err(|e| cannot_start(&e))?;
        let started = Started { run: run.into(), process: child.id(), is_running: true, problem: None };
        *self.started() = Some(started.clone());
        tracing::info!("run {run}: started as process {}", child.id());
        let all = self.started.clone();
        std::thread::spawn(move || watch(child, &log, &all));
        Ok(started)
    }

    /// The process of a run that was started here, while it is running.
    pub fn process(&self, run: &str) -> Option<u32> {
        self.started()
            .as_ref()
            .filter(|started| started.is_running && started.run == run)
            .map(|started| started.process)
    }

    fn started(&self) -> MutexGuard<'_, Option<Started>> {
        locked(&self.started)
    }
}

fn locked(started: &Mutex<Option<Started>>) -> MutexGuard<'_, Option<Started>> {
    started.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cannot_start(error: &std::io::Error) -> Error {
    Error::setting("run", format!("its process cannot be started ({error})"))
}

/// Waits for a process to end, and records whether it failed.
fn watch(mut child: Child, log: &Path, started: &Mutex<Option<Started>>) {
    let status = child.wait();
    let mut started = locked(started);
    let Some(started) = started.as_mut().filter(|started| started.process == child.id()) else { return };
    started.is_running = false;
    // Stopping with a checkpoint is not a failure.
    const STOPPED: i32 = 130;
    let is_well = status.as_ref().is_ok_and(|status| status.success() || status.code() == Some(STOPPED));
    if !is_well {
        started.problem = Some(fs::read(log).map(|said| last_of(&said)).unwrap_or_default());
        tracing::warn!("run {}: its process failed", started.run);
    }
}

/// The end of a process's output.
fn last_of(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let start = said.len().saturating_sub(SAID);
    let start = (start..=said.len()).find(|&start| said.is_char_boundary(start)).unwrap_or(0);
    said[start..].trim().into()
}

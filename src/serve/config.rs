//! `serve.toml`: the configuration of the server.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use crate::{
    config,
    error::{Error, Result},
    memory::{Bytes, LevelChoice},
    paths,
};

/// The owner of all jobs if no keys are configured.
pub const LOCAL: &str = "local";

/// The longest name of a model, an adapter or an owner, in bytes.
const LONGEST_NAME: usize = 128;

/// The configuration of a server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields)]
pub struct ServeConfig {
    /// Address to listen on. Default `127.0.0.1`: this machine only. Any other address needs `keys`.
    #[serde(default = "loopback")]
    pub host: IpAddr,
    /// Port to listen on. Default 7800; 0 picks a free one.
    #[serde(default = "port")]
    pub port: u16,
    /// A file with one client per line: a name, a blank, and a key of at least 16 characters, or `blake3:` and the key's hash (`b3sum`).
    /// Default: none, and the server answers only this machine.
    #[serde(default)]
    pub keys: Option<PathBuf>,
    /// Origins of web pages that may call the server, such as `"https://example.org"`. Default: only its own page.
    #[serde(default)]
    pub origins: Vec<String>,
    /// Folder of the job journal, the images and the uploaded LoRA files; one server at a time. No default.
    pub state: PathBuf,
    /// A model to serve, once per model. Requests that name none get the first one.
    pub models: Vec<ModelEntry>,
    /// Folders of LoRA files. Requests name a LoRA by its file name without the extension. Default: none.
    #[serde(default)]
    pub loras: Vec<PathBuf>,
    /// Limits on requests and memory.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// How long images are kept.
    #[serde(default)]
    pub results: ResultsConfig,
    /// The page in the browser: what it shows beside jobs.
    #[serde(default)]
    pub page: PageConfig,
    /// Where workers on other machines get their jobs (needs the feature `cluster`). Without this table the server generates the
    /// images itself.
    #[serde(default)]
    pub cluster: Option<ClusterConfig>,
}

/// A model to serve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    /// Name of the model in requests. No default.
    pub name: String,
    /// A folder in diffusers' layout, `org/name` on the Hugging Face hub, or `FILE@MODEL` for a single file. No default.
    pub path: String,
    /// Memory level: `none`, `balanced`, `aggressive` or `ultra`, as in `[memory]` of a training. Default `auto`: the fastest that fits
    /// when the model is loaded.
    #[serde(default)]
    pub memory: LevelChoice,
}

/// `[limits]`: limits on requests and memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Maximum number of waiting jobs; further ones are refused with status 429 and `Retry-After`. Default 64.
    pub queue: usize,
    /// The share of the queue that one key may fill, above 0 and at most 1. Default 0.5. Without keys there is one owner, who may
    /// fill the whole queue.
    pub share: f64,
    /// Maximum number of images per job. Default 10.
    pub images: usize,
    /// Maximum number of pixels of an image, generated or sent. Default 4194304: 2048 × 2048.
    pub pixels: u64,
    /// Maximum number of denoising steps. Default 200.
    pub steps: usize,
    /// Maximum number of images denoised at the same time. Default 8; fewer if memory does not suffice. Raise it while the time per
    /// image falls.
    pub rows: usize,
    /// Maximum size of a request's body. Default `"32MiB"`.
    pub body_bytes: Bytes,
    /// Maximum size of an uploaded adapter. Default `"1GiB"`.
    pub upload_bytes: Bytes,
    /// Maximum size of the adapters cached in memory; those in use always stay. Default `"2GiB"`.
    pub adapter_bytes: Bytes,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            queue: 64,
            share: 0.5,
            images: 10,
            pixels: 2048 * 2048,
            steps: 200,
            rows: 8,
            body_bytes: Bytes(32 << 20),
            upload_bytes: Bytes(1 << 30),
            adapter_bytes: Bytes(2 << 30),
        }
    }
}

/// `[results]`: how long images are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct ResultsConfig {
    /// How long images are kept after a job has finished, in seconds. Default 86400: one day.
    pub keep_seconds: u64,
    /// Maximum size of all images together; the oldest are removed first. Default `"4GiB"`.
    pub bytes: Bytes,
}

impl ResultsConfig {
    /// How long images are kept after a job has finished.
    pub fn keep(&self) -> Duration {
        Duration::from_secs(self.keep_seconds)
    }
}

impl Default for ResultsConfig {
    fn default() -> Self {
        Self { keep_seconds: 86_400, bytes: Bytes(4 << 30) }
    }
}

/// `[page]`: what the page shows beside jobs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct PageConfig {
    /// Run folders, or folders of them, to plot. Default: none.
    pub runs: Vec<PathBuf>,
    /// Folders of training images whose captions can be edited. Default: none.
    pub datasets: Vec<PathBuf>,
    /// Folders of configurations of `kiln train` whose runs can be started from the page. Default: none.
    pub configs: Vec<PathBuf>,
    /// Whether a configuration may also be sent as text. Configurations name files on this machine: whoever may submit jobs could
    /// then have any of them read, and write into run folders. Default false.
    pub pasted_configs: bool,
}

/// `[cluster]`: where workers on other machines get the jobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// The NATS server with JetStream: `nats://HOST:4222`, or `tls://HOST:4222` for encrypted connections only. No default.
    pub queue: String,
    /// Where images and LoRA files are handed over: a folder that all machines see, or `s3://BUCKET/PREFIX` with the usual `AWS_…`
    /// variables. No default.
    pub store: String,
    /// A file with the credentials for the queue: a `.creds` file of NATS, or one line, `USER:PASSWORD` or a token. Default: the
    /// variable `KILN_QUEUE_CREDENTIALS`, or none.
    pub credentials: Option<PathBuf>,
    /// A PEM file of the certificate authorities to trust for the queue. Default: those of the system.
    pub ca: Option<PathBuf>,
    /// A PEM file of the client certificate to show to the queue. Default: none.
    pub certificate: Option<PathBuf>,
    /// A PEM file of the private key of `certificate`. Default: none.
    pub key: Option<PathBuf>,
    /// Seconds for which a worker may be silent before its jobs are given to others; the same on all machines. Default 30.
    pub silence_seconds: u64,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            queue: String::new(),
            store: String::new(),
            credentials: None,
            ca: None,
            certificate: None,
            key: None,
            silence_seconds: 30,
        }
    }
}

impl ClusterConfig {
    /// Checks that this build has the feature and that the settings fit each other.
    ///
    /// # Errors
    /// The first setting that is invalid.
    pub fn check(&self) -> Result<()> {
        if !cfg!(feature = "cluster") {
            return Err(Error::setting("cluster", "this kiln was built without the feature `cluster`")
                .hint("build it with `cargo build --release --features cluster`"));
        }
        for (field, value) in [("cluster.queue", &self.queue), ("cluster.store", &self.store)] {
            if value.is_empty() {
                let name = field.trim_start_matches("cluster.");
                let hint =
                    format!("give the option `{name}`, or `{name}` in the table `[cluster]` of the configuration");
                return Err(Error::setting(field, "is not given").hint(hint));
            }
        }
        let name = self.queue.strip_prefix("nats://").or_else(|| self.queue.strip_prefix("tls://"));
        if name.is_none_or(|name| name.is_empty() || name.contains(['/', '@', ' '])) {
            // The value may hold a secret, so it is not quoted.
            return Err(Error::setting("cluster.queue", "is not `nats://HOST:PORT` or `tls://HOST:PORT`")
                .hint("put credentials into the file `cluster.credentials`"));
        }
        if self.certificate.is_some() != self.key.is_some() {
            return Err(Error::setting("cluster.key", "and `cluster.certificate` need each other"));
        }
        if self.silence_seconds == 0 {
            return Err(Error::setting("cluster.silence_seconds", "is 0").hint("use at least 1"));
        }
        Ok(())
    }

    /// With `~` and the like in its paths resolved.
    fn meant(mut self) -> Result<Self> {
        for (field, path) in [
            ("cluster.credentials", &mut self.credentials),
            ("cluster.ca", &mut self.ca),
            ("cluster.certificate", &mut self.certificate),
            ("cluster.key", &mut self.key),
        ] {
            *path = path.take().map(|path| paths::meant_by(field, &path)).transpose()?;
        }
        Ok(self)
    }
}

fn loopback() -> IpAddr {
    IpAddr::from([127, 0, 0, 1])
}

fn port() -> u16 {
    7800
}

impl ServeConfig {
    /// A server of these models, with a default for everything else.
    pub fn new(state: impl Into<PathBuf>, models: Vec<ModelEntry>) -> Self {
        Self {
            host: loopback(),
            port: port(),
            keys: None,
            origins: Vec::new(),
            state: state.into(),
            models,
            loras: Vec::new(),
            limits: LimitsConfig::default(),
            results: ResultsConfig::default(),
            page: PageConfig::default(),
            cluster: None,
        }
    }

    /// Reads `serve.toml` with overrides such as `port=7801`, and checks all of it except `[cluster]`, which options may complete.
    ///
    /// # Errors
    /// As [`config::load`] and [`check`](Self::check).
    pub fn load(path: impl AsRef<Path>, overrides: &[String]) -> Result<Self> {
        let mut config: Self = config::load(path, overrides)?;
        config.state = paths::meant_by("state", &config.state)?;
        for folder in &mut config.loras {
            *folder = paths::meant_by("loras", folder)?;
        }
        for folder in &mut config.page.runs {
            *folder = paths::meant_by("page.runs", folder)?;
        }
        for folder in &mut config.page.datasets {
            *folder = paths::meant_by("page.datasets", folder)?;
        }
        for folder in &mut config.page.configs {
            *folder = paths::meant_by("page.configs", folder)?;
        }
        config.cluster = config.cluster.map(ClusterConfig::meant).transpose()?;
        config.check_own()?;
        Ok(config)
    }

    /// Checks the settings, as far as possible without reading files.
    ///
    /// # Errors
    /// The first one that is invalid.
    pub fn check(&self) -> Result<()> {
        self.check_own()?;
        self.cluster.as_ref().map_or(Ok(()), ClusterConfig::check)
    }

    /// Checks all but `[cluster]`.
    fn check_own(&self) -> Result<()> {
        if self.models.is_empty() {
            return Err(Error::setting("models", "is empty").hint("add a table `[[models]]` with `name` and `path`"));
        }
        for (number, model) in self.models.iter().enumerate() {
            check_name("models.name", &model.name)?;
            if self.models[..number].iter().any(|other| other.name == model.name) {
                return Err(Error::setting("models.name", format!("`{}` is used twice", model.name)));
            }
        }
        let LimitsConfig { queue, share, images, pixels, steps, rows, .. } = &self.limits;
        for (field, is_zero) in [
            ("limits.queue", *queue == 0),
            ("limits.images", *images == 0),
            ("limits.pixels", *pixels == 0),
            ("limits.steps", *steps == 0),
            ("limits.rows", *rows == 0),
        ] {
            if is_zero {
                return Err(Error::setting(field, "is 0").hint("use at least 1"));
            }
        }
        if !(*share > 0.0 && *share <= 1.0) {
            return Err(Error::setting("limits.share", format!("must be above 0 and at most 1, not {share}")));
        }
        Ok(())
    }
}

/// Checks the name of a model or an adapter: ASCII letters, digits, `.`, `_` and `-`, not starting with a dot.
///
/// # Errors
/// The name is invalid; the error is about the setting `field`.
pub fn check_name(field: &str, name: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(fits) && !name.starts_with('.') {
        return Ok(());
    }
    let shown: String = name.chars().take(LONGEST_NAME).collect();
    Err(Error::setting(field, format!("`{}` is not a valid name", shown.escape_debug()))
        .hint(format!("use 1 to {LONGEST_NAME} letters, digits, `.`, `_` or `-`, not starting with a dot")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_refused_by_what_is_wrong_with_it() {
        let cluster = |queue: &str, store: &str| ClusterConfig {
            queue: queue.into(),
            store: store.into(),
            ..ClusterConfig::default()
        };
        let whole = cluster("nats://queue.example:4222", "pictures").check();
        if !cfg!(feature = "cluster") {
            let error = whole.unwrap_err();
            assert!(error.message().contains("without the feature `cluster`"), "{error}");
            assert!(error.hint.unwrap().contains("--features cluster"));
            return;
        }
        whole.unwrap();
        for (queue, store, named) in [
            ("", "pictures", "cluster.queue"),
            ("nats://queue.example", "", "cluster.store"),
            ("http://queue.example", "pictures", "cluster.queue"),
            ("nats://ann:secret@queue.example", "pictures", "cluster.queue"),
        ] {
            let error = cluster(queue, store).check().unwrap_err();
            assert!(error.message().contains(named) && !error.message().contains("secret"), "{error}");
        }
    }
}

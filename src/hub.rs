//! From a folder or `org/name` to a local model folder, through the cache of Hugging Face's own tools.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{ApiBuilder, ApiError},
};
use serde_json::Value;

use crate::{
    error::{Error, Result},
    families::{self, Component},
    lora, paths, single_file, stop,
    weights::{VARIANTS, VIEW, read_json, shards},
};

/// The index file of every diffusers folder.
const INDEX: &str = "model_index.json";

/// The local folder of `model`: a folder in the layout of diffusers; `FILE@MODEL`, a single-file checkpoint and another model with
/// the parts that the file lacks (a folder may lack the weights of the denoiser, which the file has); or the name `org/name` of a
/// repository on the Hugging Face hub. A complete model in the hub's cache is not looked up again; missing files are downloaded into
/// it. The variables are those of huggingface_hub: the cache is `HF_HUB_CACHE`, else `HUGGINGFACE_HUB_CACHE`, else the folder `hub`
/// in `HF_HOME`, else in `huggingface` in `XDG_CACHE_HOME` or `~/.cache`; the token is that of `HF_TOKEN` or of `hf auth login`;
/// `HF_ENDPOINT` replaces huggingface.co; `HF_HUB_OFFLINE=1` (or `on`, `yes`, `true`) forbids downloads.
///
/// # Errors
/// The folder has no `model_index.json`; `model` is neither folder nor name; it is a name, but there is no place for a
/// cache; or the cache lacks files and they cannot be fetched.
pub fn resolve(model: &str) -> Result<PathBuf> {
    resolve_with(model, true)
}

/// The same for a model to be trained from scratch, whose folder needs no weights of the denoiser.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_untrained(model: &str) -> Result<PathBuf> {
    resolve_with(model, false)
}

fn resolve_with(model: &str, trained: bool) -> Result<PathBuf> {
    let model = page(model).unwrap_or(model);
    let folder = paths::meant_by("model.path", Path::new(model))?;
    if folder.is_dir() {
        let mut lacking = if folder.join(INDEX).is_file() { missing(&folder)? } else { vec![INDEX.into()] };
        if !trained {
            let denoisers = families::ALL.map(|family| family.denoiser().folder());
            // As `missing` names them.
            let is_denoiser = |part: &str| part.strip_suffix('/').is_some_and(|part| denoisers.contains(&part));
            let has_config = |part: &str| folder.join(part).join("config.json").is_file();
            lacking.retain(|part| !(is_denoiser(part) && has_config(part)));
        }
        return match lacking.is_empty() {
            true => Ok(folder),
            false => Err(Error::file(folder, format!("lacks {}", lacking.join(", "))).hint(
                "`model.path` must be a complete model folder in diffusers' layout: a folder for each part, with its \
                 configuration and its weights as safetensors",
            )),
        };
    }
    if let Some((file, rest)) = model.rsplit_once('@')
        && !folder.exists()
    {
        let file = paths::meant_by("model.path", Path::new(file))?;
        if file.is_file() {
            return single_file::folder(&file, &resolve_untrained(rest)?);
        }
    }
    if folder.is_file() {
        return Err(alone(&folder));
    }
    if !is_repository(model) {
        let problem = match folder.exists() {
            true => "is not a folder: a model is a folder in diffusers' layout, or `org/name`".into(),
            false => format!("no such folder{}, and not an `org/name` on the Hugging Face hub either", below(&folder)),
        };
        return Err(Error::file(folder, problem));
    }
    Source::from_environment()?.resolve(model)
}

/// The folder of the Hugging Face cache, by the environment; it need not exist yet.
///
/// # Errors
/// There is no place for a cache.
pub fn cache_folder() -> Result<PathBuf> {
    Ok(Source::from_environment()?.cache.path().clone())
}

/// The folders that families have, by their names.
fn components() -> BTreeMap<&'static str, Component> {
    let all = families::ALL.iter().flat_map(|family| family.components());
    all.map(|component| (component.folder, *component)).collect()
}

/// The `org/name` of a model by the address of its page.
fn page(model: &str) -> Option<&str> {
    let path = model.trim().strip_prefix("https://huggingface.co/").or_else(|| model.strip_prefix("https://hf.co/"))?;
    let end = path.match_indices('/').nth(1).map_or(path.len(), |(end, _)| end);
    Some(&path[..end]).filter(|name| is_repository(name))
}

/// The error for a file without a folder for the missing parts.
fn alone(file: &Path) -> Error {
    match lora::inspect(file) {
        Ok(inspection) => {
            let problem = format!("is a single file ({}) without tokenizers and configurations", inspection.kind);
            let hint = match inspection.lora {
                Some(_) => "pass it as `lora`, and its base model as the model".into(),
                None => format!(
                    "add a model folder of the same kind, in diffusers' layout, that has the rest: `{}@FOLDER`",
                    file.display()
                ),
            };
            Error::file(file, problem).hint(hint)
        }
        Err(error) => error,
    }
}

/// A clause about the folder that a missing path is relative to.
fn below(folder: &Path) -> String {
    match std::env::current_dir() {
        Ok(here) if folder.is_relative() => {
            format!(" below {} (paths are relative to the working directory)", here.display())
        }
        _ => String::new(),
    }
}

/// The hub and its cache.
struct Source {
    cache: Cache,
    /// Instead of huggingface.co.
    endpoint: Option<String>,
    /// The token of the environment, or of a login.
    token: Option<String>,
    online: bool,
}

impl Source {
    fn from_environment() -> Result<Self> {
        Self::new(|name| std::env::var(name).ok(), std::env::home_dir())
    }

    /// Reads the variables of Hugging Face's own tools.
    fn new(variable: impl Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Result<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let home = home.filter(|home| home != Path::new(""));
        // As in huggingface_hub, they may contain `~` and other variables.
        let folder = |name: &str| set(name).map(|value| expanded(&value, home.as_deref(), &variable));
        let own = folder("HF_HOME").or_else(|| {
            let caches = folder("XDG_CACHE_HOME").or_else(|| home.as_ref().map(|home| home.join(".cache")));
            caches.map(|caches| caches.join("huggingface"))
        });
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
        let Some(cache) = cache.or_else(|| own.as_ref().map(|own| own.join("hub"))) else {
            let problem =
                "a model name is looked up in the Hugging Face cache, but there is no home folder to find it in";
            return Err(Error::setting("model.path", problem)
                .hint("set HF_HOME to the folder for it, or point `model.path` at the model's own folder"));
        };
        let is_on = |name: &str| {
            set(name).is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.trim().to_lowercase().as_str()))
        };
        let clean = |token: String| Some(token.replace(['\r', '\n'], "").trim().to_string()).filter(|t| !t.is_empty());
        let stored = || {
            let file = folder("HF_TOKEN_PATH").or_else(|| own.as_ref().map(|own| own.join("token")))?;
            std::fs::read_to_string(file).ok().filter(|_| !is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN"))
        };
        let given = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN"));
        Ok(Self {
            cache: Cache::new(cache),
            endpoint: set("HF_ENDPOINT").map(|endpoint| endpoint.trim_end_matches('/').to_string()),
            token: given.or_else(stored).and_then(clean),
            online: !is_on(if set("HF_HUB_OFFLINE").is_some() { "HF_HUB_OFFLINE" } else { "TRANSFORMERS_OFFLINE" }),
        })
    }

    /// The local folder of the repository `model`.
    fn resolve(&self, model: &str) -> Result<PathBuf> {
        let cached = self.cached(model);
        if let Some(snapshot) = &cached
            && missing(snapshot)?.is_empty()
        {
            return Ok(snapshot.clone());
        }
        if self.online {
            let fetched =
                stop::expendable(|| self.fetch(model)).map_err(|e| self.unavailable(model, &cached, &explain(&e)))?;
            let missing = missing(&fetched)?;
            return if missing.is_empty() {
                Ok(fetched)
            } else {
                Err(self.unavailable(model, &Some(fetched), "the repository is not in diffusers' layout"))
            };
        }
        Err(self.unavailable(model, &cached, "HF_HUB_OFFLINE forbids downloading"))
    }

    /// The cached copy of the main branch, complete or not, if there is one.
    fn cached(&self, model: &str) -> Option<PathBuf> {
        let index = self.cache.model(model.into()).get(INDEX)?;
        index.parent().map(Path::to_path_buf)
    }

    /// Downloads the files of the main branch's current commit that the cache lacks.
    fn fetch(&self, model: &str) -> std::result::Result<PathBuf, ApiError> {
        let mut builder = ApiBuilder::from_cache(self.cache.clone());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let api = builder.with_token(self.token.clone()).with_retries(3).build()?;
        let info = api.model(model.into()).info()?;
        // By commit, not by branch: all files are of one version even if the branch moves meanwhile.
        let commit = Repo::with_revision(model.into(), RepoType::Model, info.sha.clone());
        self.cache.repo(commit.clone()).create_ref(&info.sha)?;
        let commit = api.repo(commit);
        let mut index = commit.get(INDEX)?;
        let names: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        for name in wanted(&names) {
            tracing::info!(model, file = name, "fetching");
            commit.get(name)?;
        }
        self.cache.model(model.into()).create_ref(&info.sha)?;
        index.pop();
        Ok(index)
    }

    fn unavailable(&self, model: &str, cached: &Option<PathBuf>, reason: &str) -> Error {
        let lacking = cached.as_deref().and_then(|snapshot| missing(snapshot).ok()).unwrap_or_default();
        let lacking = if lacking.is_empty() { "model".into() } else { format!("{} of the model", lacking.join(", ")) };
        let cache = self.cache.path().display();
        let problem = format!(
            "there is no folder `{model}`{}; and as a model on the Hugging Face hub: {lacking} not in the cache {cache}, and \
             {reason}",
            below(Path::new(model))
        );
        Error::setting("model.path", problem).hint(format!(
            "if you mean a folder, give its full path; if you mean a model on the hub, run `hf download {model}` on a \
             machine with a network (for gated models: accept the licence on the model's page and set HF_TOKEN), then copy the cache here"
        ))
    }
}

/// A folder in a variable: `~` is the home folder, `$NAME` and `${NAME}` are other variables; unknown ones stay as they are.
fn expanded(value: &str, home: Option<&Path>, variable: &impl Fn(&str) -> Option<String>) -> PathBuf {
    let value = match (value.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => format!("{}{rest}", home.display()),
        _ => value.to_string(),
    };
    let mut parts = value.split('$');
    let mut text = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let braced = part.strip_prefix('{').and_then(|part| part.split_once('}'));
        let end = part.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(part.len());
        let (name, rest) = braced.unwrap_or(part.split_at(end));
        match variable(name).filter(|_| !name.is_empty()) {
            Some(value) => text.extend([value.as_str(), rest]),
            None => text.extend(["$", part]),
        }
    }
    text.into()
}

/// A failed request in one line.
fn explain(error: &ApiError) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    format!("downloading failed: {first}")
}

/// Whether `model` is of the form `org/name` that the hub allows.
fn is_repository(model: &str) -> bool {
    let parts: Vec<&str> = model.split('/').collect();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    parts.len() == 2 && parts.iter().all(|p| !p.is_empty() && !p.starts_with('.') && p.chars().all(allowed))
}

/// The files of a repository that kiln reads: configurations, vocabularies and full-precision safetensors of the known components,
/// or half-precision ones if a component has no others. Other formats, other variants (`non_ema`), and single files at the top level
/// are left out.
fn wanted(names: &[String]) -> Vec<&str> {
    let has_plain = |component: &str| {
        names.iter().any(|name| {
            let file = name.strip_prefix(component).and_then(|rest| rest.strip_prefix('/'));
            file.and_then(|file| file.strip_suffix(".safetensors")).is_some_and(is_plain)
        })
    };
    let components = components();
    let is_wanted = |name: &&str| {
        let Some((component, file)) = name.split_once('/') else { return *name == INDEX };
        let kind = file.rsplit_once('.').map_or("", |(_, kind)| kind);
        let weights = file.strip_suffix(".safetensors").or_else(|| file.strip_suffix(".safetensors.index.json"));
        components.contains_key(component)
            && !file.contains('/')
            && match weights {
                Some(stem) => is_plain(stem) || !has_plain(component) && is_half(stem),
                None if file.contains(".index.") => file.ends_with(".index.fp16.json") && !has_plain(component),
                None => ["json", "txt", "model"].contains(&kind),
            }
    };
    names.iter().map(String::as_str).filter(is_wanted).collect()
}

/// The half-precision copies of these.
fn is_half(stem: &str) -> bool {
    stem.strip_suffix(".fp16").is_some_and(is_plain)
        || stem.contains(".fp16-") && is_plain(&stem.replacen(".fp16", "", 1))
}

/// `model`, `diffusion_pytorch_model`, and their shards `…-00001-of-00003`.
fn is_plain(stem: &str) -> bool {
    let whole = match stem.split_once('-') {
        Some((whole, shard)) if shard.chars().all(|c| c.is_ascii_digit() || "-of".contains(c)) => whole,
        Some(_) => return false,
        None => stem,
    };
    ["model", "diffusion_pytorch_model"].contains(&whole)
}

/// The components in its index that a model folder lacks, for example after an interrupted download.
fn missing(folder: &Path) -> Result<Vec<String>> {
    let index: BTreeMap<String, Value> = read_json(folder.join(INDEX))?;
    let used = |name: &str| index.get(name).is_some_and(|class| class.get(0).is_some_and(|library| !library.is_null()));
    let mut lacking = Vec::new();
    for (name, component) in components().into_iter().filter(|(name, _)| used(name)) {
        let part = folder.join(name);
        let has_all = |files: &&[&str]| files.iter().all(|file| part.join(file).is_file());
        if !component.files.iter().any(has_all) || component.has_weights && !has_weights(&part)? {
            lacking.push(format!("{name}/{}", what_is_there(&part)));
        }
    }
    Ok(lacking)
}

/// Whether a component has its weights file, or an index and all shards in it.
fn has_weights(component: &Path) -> Result<bool> {
    let entries = std::fs::read_dir(component).into_iter().flatten().flatten();
    if !entries.map(|entry| entry.file_name()).any(|name| name == VIEW || is_weights(&name.to_string_lossy())) {
        return Ok(false);
    }
    Ok(shards(component)?.iter().all(|file| file.is_file()))
}

/// Whether a file of this name holds the weights of a component, or their index, in any precision.
fn is_weights(name: &str) -> bool {
    let stem = ["diffusion_pytorch_model", "model"].iter().find_map(|stem| name.strip_prefix(stem));
    stem.is_some_and(|rest| {
        let rest = VARIANTS.iter().fold(rest.to_string(), |rest, variant| rest.replacen(&format!(".{variant}"), "", 1));
        [".safetensors", ".safetensors.index.json"].contains(&rest.as_str())
    })
}

/// A note in brackets about pickles in place of a component's weights, which are not read.
fn what_is_there(component: &Path) -> String {
    let entries = std::fs::read_dir(component).into_iter().flatten().flatten();
    let mut pickles: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    pickles.retain(|name| name.ends_with(".bin") || name.ends_with(".ckpt"));
    pickles.sort_unstable();
    match pickles.first() {
        Some(name) => format!(
            " (it has {name}, a PyTorch pickle; `save_pretrained(folder, safe_serialization=True)` writes safetensors)"
        ),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests;

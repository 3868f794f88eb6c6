//! `org/name` or a folder → a local model folder, through the cache that Hugging Face's own tools share.

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
    stop,
    weights::read_json,
};

/// The parts of a pipeline that kiln reads, each a folder of its own. Others (safety checker, image encoder) are left.
const COMPONENTS: [&str; 8] =
    ["scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "unet", "vae"];

/// The file every diffusers folder starts from.
const INDEX: &str = "model_index.json";

/// The local folder of `model`: a folder in the layout of diffusers, or the name `org/name` of a repository on the Hugging
/// Face hub. What the hub's cache (`HF_HOME`, else `~/.cache/huggingface`) has whole is not looked up again; the rest is
/// downloaded into it, with the token of `HF_TOKEN` or of `huggingface-cli login`. `HF_HUB_OFFLINE=1` (or `on`,
/// `yes`, `true`) forbids that.
///
/// # Errors
/// The folder has no `model_index.json`; `model` is neither folder nor name; it is a name, but there is no place for a
/// cache; or the cache lacks files and they cannot be fetched.
pub fn resolve(model: &str) -> Result<PathBuf> {
    let folder = Path::new(model);
    if folder.is_dir() {
        let lacking = if folder.join(INDEX).is_file() { missing(folder)? } else { vec![INDEX.into()] };
        return match lacking.is_empty() {
            true => Ok(folder.into()),
            false => Err(Error::file(folder, format!("lacks {}", lacking.join(", "))).hint(
                "point `model.path` at a whole model in the layout of diffusers: each part a folder with its \
                 configuration and its weights as safetensors",
            )),
        };
    }
    if !is_repository(model) {
        return Err(Error::file(folder, "no such folder, and not the `org/name` of a repository either"));
    }
    Source::new(|name| std::env::var(name).ok(), std::env::home_dir())?.resolve(model)
}

/// Where models come from.
struct Source {
    cache: Cache,
    /// Instead of huggingface.co.
    endpoint: Option<String>,
    /// Instead of the one that a login stored.
    token: Option<String>,
    online: bool,
}

impl Source {
    /// As the environment says, in the variables of Hugging Face's own tools.
    fn new(variable: impl Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Result<Self> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let home = home.filter(|home| home != Path::new("")).map(|home| home.join(".cache/huggingface"));
        let Some(folder) = set("HF_HOME").map(PathBuf::from).or(home) else {
            let problem = "a model is looked up by name, but there is no home folder with a cache of models";
            return Err(Error::setting("model.path", problem)
                .hint("set HF_HOME to the folder for it, or point `model.path` at the model's own folder"));
        };
        let offline = |value: String| ["1", "on", "yes", "true"].contains(&value.trim().to_lowercase().as_str());
        Ok(Self {
            cache: Cache::new(folder.join("hub")),
            endpoint: set("HF_ENDPOINT"),
            token: set("HF_TOKEN"),
            online: !set("HF_HUB_OFFLINE").is_some_and(offline),
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
                Err(self.unavailable(model, &Some(fetched), "the repository is not in the layout of diffusers"))
            };
        }
        Err(self.unavailable(model, &cached, "looking for them is forbidden by HF_HUB_OFFLINE"))
    }

    /// The cached copy of the main branch, if there is one, whole or not.
    fn cached(&self, model: &str) -> Option<PathBuf> {
        let index = self.cache.model(model.into()).get(INDEX)?;
        index.parent().map(Path::to_path_buf)
    }

    /// Downloads what the cache lacks of the present commit of the main branch.
    fn fetch(&self, model: &str) -> std::result::Result<PathBuf, ApiError> {
        let mut builder = ApiBuilder::from_cache(self.cache.clone());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        if let Some(token) = &self.token {
            builder = builder.with_token(Some(token.clone()));
        }
        let api = builder.with_retries(3).build()?;
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
        Error::setting("model.path", format!("`{model}`: {lacking} not in the cache {cache}, and {reason}")).hint(format!(
            "where there is a network, run `huggingface-cli download {model}` (for gated models: accept the licence on the \
             model's page and set HF_TOKEN), then copy the cache here, or point `model.path` at the model's folder"
        ))
    }
}

/// What to say about a failed request, in one line.
fn explain(error: &ApiError) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    format!("they cannot be fetched: {first}")
}

/// Whether `model` is of the form `org/name` that the hub allows.
fn is_repository(model: &str) -> bool {
    let parts: Vec<&str> = model.split('/').collect();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    parts.len() == 2 && parts.iter().all(|p| !p.is_empty() && !p.starts_with('.') && p.chars().all(allowed))
}

/// Of the files of a repository, those that kiln reads: configuration, vocabularies and full-precision safetensors of the
/// known components. Not: other formats, variants (`fp16`, `non_ema`), or one big file at the top.
fn wanted(names: &[String]) -> Vec<&str> {
    let is_wanted = |name: &&str| {
        let Some((component, file)) = name.split_once('/') else { return *name == INDEX };
        let kind = file.rsplit_once('.').map_or("", |(_, kind)| kind);
        let weights = file.strip_suffix(".safetensors").or_else(|| file.strip_suffix(".safetensors.index.json"));
        COMPONENTS.contains(&component)
            && !file.contains('/')
            && match weights {
                Some(stem) => is_plain(stem),
                None => ["json", "txt", "model"].contains(&kind) && !file.contains(".index."),
            }
    };
    names.iter().map(String::as_str).filter(is_wanted).collect()
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

/// What a model folder lacks of the components that its index names: an interrupted download leaves such folders.
fn missing(folder: &Path) -> Result<Vec<String>> {
    let index: BTreeMap<String, Value> = read_json(folder.join(INDEX))?;
    let used =
        |name: &&&str| index.get(**name).is_some_and(|class| class.get(0).is_some_and(|library| !library.is_null()));
    let mut lacking = Vec::new();
    for component in COMPONENTS.iter().filter(used) {
        let has = |file: &str| folder.join(component).join(file).is_file();
        let enough = match *component {
            "scheduler" => has("scheduler_config.json"),
            "tokenizer" => {
                has("tokenizer_config.json") && (has("tokenizer.json") || has("vocab.json") && has("merges.txt"))
            }
            "tokenizer_2" => has("tokenizer_config.json") && (has("tokenizer.json") || has("spiece.model")),
            _ => has("config.json") && has_weights(&folder.join(component))?,
        };
        if !enough {
            lacking.push(format!("{component}/"));
        }
    }
    Ok(lacking)
}

/// Whether a component has its one weights file, or an index and all the shards it names.
fn has_weights(component: &Path) -> Result<bool> {
    for stem in ["diffusion_pytorch_model", "model"] {
        if component.join(format!("{stem}.safetensors")).is_file() {
            return Ok(true);
        }
        let index = component.join(format!("{stem}.safetensors.index.json"));
        if index.is_file() {
            let index: Value = read_json(index)?;
            let shards = index["weight_map"].as_object().into_iter().flat_map(|map| map.values());
            return Ok(shards.filter_map(Value::as_str).all(|shard| component.join(shard).is_file()));
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests;

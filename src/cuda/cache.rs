//! The backend's own settings: above all, where it keeps compiled kernels, and which of several kernels was the fastest.

use std::path::{Path, PathBuf};

use burn_cubecl::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, cache::CacheConfig, streaming::StreamPolicy};

use super::Gpu;
use crate::error::{Error, Result};

/// Keeps both in one file of the folder `wanted`, or of kiln's own in the user's cache. To be called before the backend
/// starts. Says which folder it is.
///
/// The user's settings for CubeCL (`cubecl.toml`, `CUBECL_ENVIRONMENT`) stay, except the folder if `wanted` names one.
pub(super) fn keep(wanted: Option<PathBuf>, gpu: &Gpu) -> Result<String> {
    let written = written();
    let has = |section: &str, key| written.get(section).is_some_and(|section| section.get(key).is_some());
    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    let named = wanted.is_some();
    if named || !has("environment", "path") {
        let folder = wanted.or_else(default_folder).unwrap_or_else(|| std::env::temp_dir().join("kiln"));
        match std::fs::create_dir_all(&folder) {
            Err(e) if named => {
                let problem = format!("{} cannot be made: {e}", folder.display());
                return Err(Error::setting("kernel_cache", problem).hint("name a folder that can be written to"));
            }
            Err(e) => {
                let folder = folder.display();
                tracing::warn!("{folder}: {e}; kernels are compiled again at every start (see `kernel_cache`)");
            }
            Ok(()) => {}
        }
        config.environment.path = CacheConfig::Directory(folder);
    }
    // A file for each kind of GPU: the backend's own key for what it measured is no more than the number of the GPU.
    if !has("environment", "name") && std::env::var_os("CUBECL_ENVIRONMENT").is_none() {
        config.environment.name = gpu.name.clone();
    }
    if !has("compilation", "cache") {
        config.compilation.cache = true;
    }
    // One stream for all threads: memory is then shared by them all, and libraries can put work of their own on it.
    if !has("streaming", "policy") {
        config.streaming.policy = StreamPolicy::Single;
    }
    let folder = config.environment.path.root().display().to_string();
    if !CubeClRuntimeConfig::try_set(config) {
        tracing::debug!("the backend has started before: its cache stays where it is");
    }
    Ok(folder)
}

/// `kiln` in the user's folder for what can be rebuilt.
fn default_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = match cfg!(windows) {
        true => variable("LOCALAPPDATA"),
        false => variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache"))),
    };
    Some(cache?.join("kiln"))
}

/// The contents of the user's file for CubeCL, which is looked up as CubeCL does. CubeCL's own result does not distinguish defaults from
/// written values.
fn written() -> toml::Table {
    let here = std::env::current_dir().unwrap_or_default();
    let in_folder = |folder: &Path| {
        let table = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.parse::<toml::Table>().ok();
        let whole = CubeClRuntimeConfig::file_names().iter().find_map(|name| table(name));
        let mut sections = CubeClRuntimeConfig::section_file_names().iter();
        whole.or_else(|| sections.find_map(|(name, section)| table(name)?.remove(*section)?.try_into().ok()))
    };
    here.ancestors().find_map(in_folder).unwrap_or_default()
}

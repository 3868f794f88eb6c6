//! Which files of a folder hold a part's weights, where there may be more than one answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::read_json;
use crate::{
    error::{Error, Result},
    notice::{some_of, warn_once},
};

/// The names that weights have, and whether the index of shards counts where there is a single file beside it: for diffusers
/// (denoisers and VAEs) it does, for transformers (text encoders) it does not.
const STEMS: [(&str, bool); 2] = [("diffusion_pytorch_model", true), ("model", false)];

/// The weight files of a part.
#[derive(Debug)]
pub(crate) struct Sources {
    folder: PathBuf,
    /// Those that are read, in the order of their names.
    pub files: Vec<PathBuf>,
    /// The names of others that look like weights of this part, too: a copy as a single file, or shards of another copy.
    unread: Vec<String>,
}

/// Whether a folder is of a part that has weights: that of a scheduler has none, nor has that of a denoiser that is not trained yet.
pub(crate) fn has_weights(folder: &Path) -> Result<bool> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let is_weights = |name: &str| name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    Ok(entries.flatten().any(|entry| is_weights(&entry.file_name().to_string_lossy())))
}

impl Sources {
    /// The weights in `folder`: those that the library the part comes from would read.
    ///
    /// # Errors
    /// There are none; or there are two kinds of names; or an index is broken, or names files elsewhere.
    pub fn of(folder: &Path) -> Result<Self> {
        let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
        let names: BTreeSet<String> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let of_stem = |(stem, index_first): (&str, bool)| {
            let (single, index) = (format!("{stem}.safetensors"), format!("{stem}.safetensors.index.json"));
            match (names.contains(&single), names.contains(&index)) {
                (false, false) => None,
                (true, has_index) if !(has_index && index_first) => Some(single),
                _ => Some(index),
            }
        };
        let mut found = STEMS.into_iter().filter_map(of_stem);
        let Some(source) = found.next() else {
            let problem = "no `diffusion_pytorch_model.safetensors` or `model.safetensors`, nor an index of shards";
            return Err(Error::file(folder, problem)
                .hint("point `model.path` at a folder in the layout of diffusers, with weights as safetensors"));
        };
        if let Some(other) = found.next() {
            let problem = format!("there are two sources of weights, `{source}` and `{other}`");
            return Err(Error::file(folder, problem).hint("keep the one that is meant, and move the other elsewhere"));
        }
        let read = match source.ends_with(".json") {
            true => indexed(&folder.join(&source))?,
            false => BTreeSet::from([source.clone()]),
        };
        let is_unread = |name: &&String| is_plain(name) && !read.contains(*name);
        Ok(Self {
            unread: names.iter().filter(is_unread).cloned().collect(),
            files: read.iter().map(|name| folder.join(name)).collect(),
            folder: folder.into(),
        })
    }

    /// Says once which weights are not read.
    pub fn say_unread(&self) {
        if self.unread.is_empty() {
            return;
        }
        let read = self.files.iter().filter_map(|file| file.file_name()?.to_str()).collect::<Vec<_>>();
        warn_once(format!(
            "{}: weights are read from {}, as the model's own library does; not read, {}: {}",
            self.folder.display(),
            some_of(&read),
            self.unread.len(),
            some_of(&self.unread)
        ));
    }
}

/// The weight files of a component folder: those that [`Weights::open`](super::Weights::open) reads.
pub(crate) fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    Sources::of(folder).map(|sources| sources.files)
}

/// The files that an index of shards names.
fn indexed(path: &Path) -> Result<BTreeSet<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = read_json(path)?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    if shards.is_empty() {
        return Err(Error::file(path, "names no file of weights"));
    }
    // Only beside it: a name such as `../x` is none of a model's own files.
    match shards.iter().find(|name| Path::new(name).file_name().is_none_or(|own| own != name.as_str())) {
        Some(name) => Err(Error::file(path, format!("`{name}` is no name of a file beside it"))),
        None => Ok(shards),
    }
}

/// Whether a file of this name holds full-precision weights of a part, or a shard of them: `model.safetensors`,
/// `model-00001-of-00003.safetensors`, and not `model.fp16.safetensors`.
fn is_plain(name: &str) -> bool {
    let Some(name) = name.strip_suffix(".safetensors") else { return false };
    STEMS.iter().filter_map(|(stem, _)| name.strip_prefix(stem)).any(|rest| {
        let shard = |rest: &str| rest.chars().all(|c| c.is_ascii_digit() || "-of".contains(c));
        rest.is_empty() || rest.starts_with('-') && shard(rest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of empty files, with `shards` in the index of `stem`.
    fn folder(files: &[&str], stem: &str, shards: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|name| std::fs::write(folder.path().join(name), "").unwrap());
        if !stem.is_empty() {
            let map: BTreeMap<_, _> = shards.iter().enumerate().map(|(i, shard)| (i.to_string(), shard)).collect();
            let index = serde_json::json!({ "weight_map": map }).to_string();
            std::fs::write(folder.path().join(format!("{stem}.safetensors.index.json")), index).unwrap();
        }
        folder
    }

    fn names(sources: &Sources) -> Vec<String> {
        sources.files.iter().map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn of_two_copies_that_one_is_read_that_the_parts_own_library_reads() {
        for (stem, read, unread) in [
            ("diffusion_pytorch_model", "diffusion_pytorch_model-1-of-1", "diffusion_pytorch_model"),
            ("model", "model", "model-1-of-1"),
        ] {
            let [single, shard] = [format!("{stem}.safetensors"), format!("{stem}-1-of-1.safetensors")];
            let stray = format!("{stem}.fp16.safetensors");
            let folder = folder(&[&single, &shard, &stray], stem, &[&shard]);
            let sources = Sources::of(folder.path()).unwrap();
            assert_eq!(names(&sources), [format!("{read}.safetensors")]);
            assert_eq!(sources.unread, [format!("{unread}.safetensors")]);
        }
    }

    #[test]
    fn shards_that_the_index_does_not_name_are_not_read() {
        let files = ["model-1-of-2.safetensors", "model-2-of-2.safetensors", "model-3-of-3.safetensors"];
        let folder = folder(&files, "model", &files[..2]);
        let sources = Sources::of(folder.path()).unwrap();
        assert_eq!(names(&sources), files[..2]);
        assert_eq!(sources.unread, files[2..]);
    }

    #[test]
    fn two_kinds_of_names_and_names_elsewhere_are_refused() {
        let both = folder(&["model.safetensors", "diffusion_pytorch_model.safetensors"], "", &[]);
        let error = Sources::of(both.path()).unwrap_err().to_string();
        assert!(
            error.contains("`model.safetensors`") && error.contains("`diffusion_pytorch_model.safetensors`"),
            "{error}"
        );
        for shard in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", ""] {
            let error = Sources::of(folder(&[], "model", &[shard]).path()).unwrap_err().to_string();
            assert!(error.contains(&format!("`{shard}`")), "{error}");
        }
        assert!(Sources::of(folder(&[], "model", &[]).path()).unwrap_err().to_string().contains("names no file"));
    }
}

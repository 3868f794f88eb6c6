//! Finds the files that hold a part's weights, also where a folder has several candidates.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use super::{VIEW, read_json};
use crate::{
    error::{Error, Result},
    notice::{some_of, warn_once},
};

/// The names of weight files, and whether an index of shards takes precedence over a single file beside it: for diffusers
/// (denoisers and VAEs) it does, for transformers (text encoders) it does not.
const STEMS: [(&str, bool); 2] = [("diffusion_pytorch_model", true), ("model", false)];

/// diffusers' variants (copies in another precision); the first one present is read if there is no plain copy.
pub(crate) const VARIANTS: [&str; 3] = ["fp32", "bf16", "fp16"];

/// The weight files of a part.
#[derive(Debug)]
pub(crate) struct Sources {
    folder: PathBuf,
    /// The files that are read, sorted by name.
    pub files: Vec<PathBuf>,
    /// The names of other files that look like weights of this part: a copy as a single file, or shards of another copy.
    unread: Vec<String>,
}

/// Whether a folder has weights: a scheduler's has none, nor has that of a denoiser that is not trained yet.
pub(crate) fn has_weights(folder: &Path) -> Result<bool> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let is_weights =
        |name: &str| name == VIEW || name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    Ok(entries.flatten().any(|entry| is_weights(&entry.file_name().to_string_lossy())))
}

impl Sources {
    /// The weights in `folder`, chosen as the part's own library (diffusers or transformers) does.
    ///
    /// # Errors
    /// There are none; there are both diffusers' and transformers' names; or an index is broken, or names files elsewhere.
    pub fn of(folder: &Path) -> Result<Self> {
        let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
        let names: BTreeSet<String> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let of_stem = |(single, index, index_first): (String, String, bool)| match (
            names.contains(&single),
            names.contains(&index),
        ) {
            (false, false) => None,
            (true, has_index) if !(has_index && index_first) => Some(single),
            _ => Some(index),
        };
        if names.contains(VIEW) {
            return Ok(Self { folder: folder.into(), files: vec![folder.join(VIEW)], unread: Vec::new() });
        }
        let plain = STEMS.into_iter().map(|(stem, index_first)| {
            (format!("{stem}.safetensors"), format!("{stem}.safetensors.index.json"), index_first)
        });
        let variants = VARIANTS.into_iter().flat_map(|variant| {
            STEMS.into_iter().map(move |(stem, index_first)| {
                let index = format!("{stem}.safetensors.index.{variant}.json");
                (format!("{stem}.{variant}.safetensors"), index, index_first)
            })
        });
        let plain: Vec<String> = plain.filter_map(of_stem).collect();
        let variant = || variants.filter_map(of_stem).next().into_iter().collect();
        let mut found = if plain.is_empty() { variant() } else { plain }.into_iter();
        let Some(source) = found.next() else { return Err(without_weights(folder, &names)) };
        if let Some(other) = found.next() {
            let problem = format!("there are two sources of weights, `{source}` and `{other}`");
            return Err(Error::file(folder, problem).hint("keep the one you want, and move the other elsewhere"));
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

    /// Logs which weights are not read.
    pub fn say_unread(&self) {
        if self.unread.is_empty() {
            return;
        }
        let read = self.files.iter().filter_map(|file| file.file_name()?.to_str()).collect::<Vec<_>>();
        warn_once(format!(
            "{}: reading weights from {}, as the model's own library does; not reading {}: {}",
            self.folder.display(),
            some_of(&read),
            self.unread.len(),
            some_of(&self.unread)
        ));
    }
}

/// The error for a folder without readable weights; it names pickles and other safetensors files in it.
fn without_weights(folder: &Path, names: &BTreeSet<String>) -> Error {
    let is_pickle = |name: &&String| [".bin", ".ckpt", ".pt", ".pth"].iter().any(|end| name.ends_with(end));
    let pickles: Vec<&String> = names.iter().filter(is_pickle).collect();
    if !pickles.is_empty() {
        return Error::file(folder, format!("has weights only as PyTorch pickles: {}", some_of(&pickles))).hint(
            "save the model again with `save_pretrained(folder, safe_serialization=True)`: kiln reads safetensors",
        );
    }
    let other: Vec<&String> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
    let seen = if other.is_empty() { String::new() } else { format!("; found {}", some_of(&other)) };
    let problem = "has no `diffusion_pytorch_model.safetensors` or `model.safetensors`, nor an index of shards";
    Error::file(folder, format!("{problem}{seen}"))
        .hint("point `model.path` at a folder in diffusers' layout, with weights as safetensors")
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
        return Err(Error::file(path, "lists no weight files"));
    }
    // Only files beside the index: a name such as `../x` is not one of the model's own files.
    match shards.iter().find(|name| Path::new(name).file_name().is_none_or(|own| own != name.as_str())) {
        Some(name) => Err(Error::file(path, format!("`{name}` is not the name of a file in the same folder"))),
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
    fn variants_are_read_where_there_is_nothing_else_and_pickles_are_named() {
        let half = folder(&["model.fp16.safetensors", "model.bf16.safetensors"], "", &[]);
        assert_eq!(names(&Sources::of(half.path()).unwrap()), ["model.bf16.safetensors"]);
        let pickle = folder(&["diffusion_pytorch_model.bin", "config.json"], "", &[]);
        let error = Sources::of(pickle.path()).unwrap_err().to_string();
        assert!(error.contains("`diffusion_pytorch_model.bin`") && error.contains("safe_serialization"), "{error}");
        let other = folder(&["weights.safetensors"], "", &[]);
        let error = Sources::of(other.path()).unwrap_err().to_string();
        assert!(error.contains("found `weights.safetensors`"), "{error}");
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
        assert!(Sources::of(folder(&[], "model", &[]).path()).unwrap_err().to_string().contains("lists no weight"));
    }
}

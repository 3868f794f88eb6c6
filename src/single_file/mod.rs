//! Single-file checkpoints of Stable Diffusion 1.x and 2.x and of FLUX.1, in the layout of the original code, as model folders: the
//! parts in the file are views of it, and the missing ones come from another folder. Nothing is converted or copied: quantized weights,
//! as in GGUF and in files of scaled fp8, stay quantized.

mod names;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    disk::{remove_folder, replace},
    error::{Error, Result},
    lora::{layers_of_original, swaps_halves},
    notice::{some_of, warn_once},
    weights::{Elsewhere, PartView, TensorFile, VIEW, is_marker, read_json, weight_beside},
};

/// Possible prefixes of the denoiser's tensors.
const DENOISER: [&str; 3] = ["model.diffusion_model.", "diffusion_model.", ""];

/// Prefixes of the VAE's tensors.
const VAE: [&str; 3] = ["first_stage_model.", "vae.", ""];

/// Prefixes of CLIP's tensors, in transformers' layout.
const CLIP: [&str; 3] = ["cond_stage_model.transformer.", "text_encoders.clip_l.transformer.", "text_encoders.clip_l."];

/// Prefixes of OpenCLIP's tensors.
const OPEN_CLIP: &str = "cond_stage_model.model.";

/// Prefixes of T5's tensors.
const T5: [&str; 2] = ["text_encoders.t5xxl.transformer.", "text_encoders.t5xxl."];

/// The index file of every model folder.
const INDEX: &str = "model_index.json";

/// A folder for the checkpoint `file`, with the other parts, configurations and tokenizers of the folder `rest`. The same two give the
/// same folder.
///
/// # Errors
/// The file is not such a checkpoint, its kind of model is not that of `rest`, or the folder cannot be written.
pub(crate) fn folder(file: &Path, rest: &Path) -> Result<PathBuf> {
    let whole = |path: &Path| path.canonicalize().map_err(|e| Error::io(path, e));
    let (file, rest) = (whole(file)?, whole(rest)?);
    let opened = TensorFile::open(&file)?;
    let parts = parts(&opened, &rest)?;
    let views = serde_json::to_string(&parts).expect("names and numbers are JSON");
    let key = blake3::hash(format!("{}\n{}\n{views}", env!("CARGO_PKG_VERSION"), rest.display()).as_bytes());
    let all = std::env::temp_dir().join("kiln-single-file");
    let folder = all.join(&key.to_hex()[..32]);
    sweep(&all, &folder);
    if folder.join(INDEX).is_file() {
        return Ok(folder); // made before, of the same two; another process may be reading it
    }
    let building = folder.with_extension(format!("{}.partial", std::process::id()));
    remove_folder(&building)?;
    fs::create_dir_all(&building).map_err(|e| Error::io(&building, e))?;
    let entries = fs::read_dir(&rest).map_err(|e| Error::io(&rest, e))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let (from, to) = (entry.path(), building.join(&name));
        match name.to_str().and_then(|name| parts.get(name)) {
            Some(view) => write_part(&from, &to, view)?,
            None if from.is_dir() || name == INDEX => link(&from, &to)?,
            None => {}
        }
    }
    match fs::rename(&building, &folder) {
        Err(_) if folder.join(INDEX).is_file() => remove_folder(&building)?, // by another process, meanwhile
        renamed => renamed.map_err(|e| Error::io(&folder, e))?,
    }
    Ok(folder)
}

/// Removes unused entries of the folder of all such folders: those whose checkpoint or model is gone, and those left unfinished by
/// dead processes at least a day ago. `own` stays.
fn sweep(all: &Path, own: &Path) {
    let day = std::time::Duration::from_secs(24 * 3600);
    for path in fs::read_dir(all).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let age =
            fs::symlink_metadata(&path).and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
        let useless = match path.extension() {
            Some(_) => age.is_some_and(|age| age > day),
            None => !path.join(INDEX).is_file() || views(&path).any(|view| !view.file.is_file()),
        };
        if useless && path != own && remove_folder(&path).is_ok() {
            tracing::debug!("removed {}: the model it stood for is gone", path.display());
        }
    }
}

/// The views of the parts in such a folder.
fn views(folder: &Path) -> impl Iterator<Item = PartView> {
    let parts = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path().join(VIEW));
    parts.filter(|view| view.is_file()).filter_map(|view| PartView::read(&view).ok())
}

/// The configuration of a part, and the location of its tensors.
fn write_part(from: &Path, to: &Path, view: &PartView) -> Result<()> {
    fs::create_dir_all(to).map_err(|e| Error::io(to, e))?;
    let config = "config.json";
    link(&from.join(config), &to.join(config))?;
    let text = serde_json::to_string(view).expect("names and numbers are JSON");
    let path = to.join(VIEW);
    replace(&path, |partial| fs::write(partial, &text).map_err(|e| Error::io(&path, e)))
}

#[cfg(unix)]
fn link(from: &Path, to: &Path) -> Result<()> {
    std::os::unix::fs::symlink(from, to).map_err(|e| Error::io(to, e))
}

#[cfg(windows)]
fn link(from: &Path, to: &Path) -> Result<()> {
    let linked = match from.is_dir() {
        true => std::os::windows::fs::symlink_dir(from, to),
        false => std::os::windows::fs::symlink_file(from, to),
    };
    linked.map_err(|e| Error::io(to, e))
}

/// The views of the parts in a file, by the names of their folders.
fn parts(file: &TensorFile, rest: &Path) -> Result<BTreeMap<&'static str, PartView>> {
    let architecture = file.metadata().remove("general.architecture"); // of GGUF
    if let Some(other) = architecture.filter(|name| name != "flux") {
        let problem = format!("is GGUF of the architecture `{other}`, and kiln reads that of `flux`");
        return Err(Error::file(file.path(), problem).hint("use a GGUF file of the transformer of FLUX.1"));
    }
    let all = file.names();
    let begins = |prefix: &str, mark: &str| {
        all.iter().any(|name| name.strip_prefix(prefix).is_some_and(|n| n.starts_with(mark)))
    };
    let is_flux = DENOISER.iter().any(|prefix| begins(prefix, "double_blocks."));
    let is_unet = DENOISER.iter().any(|prefix| begins(prefix, "input_blocks."));
    let denoiser = match (is_flux, is_unet) {
        (true, _) => "transformer",
        (_, true) => "unet",
        _ => {
            let problem = "is not a checkpoint of FLUX.1 or Stable Diffusion in its original layout";
            return Err(Error::file(file.path(), problem).hint("`kiln inspect` says what a file holds"));
        }
    };
    if !rest.join(denoiser).join("config.json").is_file() {
        let kind = if is_flux { "FLUX.1" } else { "Stable Diffusion" };
        let problem = format!("is a checkpoint of {kind}, and {} has no {denoiser}/config.json", rest.display());
        return Err(Error::file(file.path(), problem).hint("name a model folder of the same kind after the `@`"));
    }
    let mut found = Found { file, parts: BTreeMap::new() };
    match is_flux {
        true => found.flux(),
        false => found.unet(rest)?,
    }
    found.vae(rest)?;
    found.text(rest)?;
    let unused: Vec<&String> = all.iter().filter(|name| !found.uses(name)).collect();
    if !unused.is_empty() {
        warn_once(format!(
            "{}: tensors that are not used: {} ({})",
            file.path().display(),
            unused.len(),
            some_of(&unused)
        ));
    }
    Ok(found.parts)
}

struct Found<'a> {
    file: &'a TensorFile,
    parts: BTreeMap<&'static str, PartView>,
}

impl Found<'_> {
    /// The names below the first of `prefixes` of any tensor that `mark` accepts, without the prefix.
    fn below<'p>(&self, prefixes: &[&'p str], mark: impl Fn(&str) -> bool) -> Option<(&'p str, Vec<String>)> {
        let all = self.file.names();
        let prefix =
            prefixes.iter().find(|prefix| all.iter().any(|name| name.strip_prefix(**prefix).is_some_and(&mark)))?;
        Some((prefix, all.iter().filter_map(|name| name.strip_prefix(prefix)).map(String::from).collect()))
    }

    /// Whether a tensor, or the weight that it belongs to, is in a view.
    fn uses(&self, name: &str) -> bool {
        let weight = weight_beside(name);
        let is_in = |tensor: &Elsewhere| tensor.name == name || weight.as_ref() == Some(&tensor.name);
        is_marker(name) || self.parts.values().flat_map(|part| part.tensors.values()).any(is_in)
    }

    /// The number of rows of a tensor.
    fn rows(&self, name: &str) -> usize {
        self.file.dense_shape(name).and_then(|shape| shape.first().copied()).unwrap_or(1)
    }

    /// Takes the tensor `name`; if there are several `layers`, its rows are divided among them by these `heights`.
    fn take(&mut self, part: &'static str, name: &str, layers: &[String], heights: &[usize], swapped: bool) {
        let shape = self.file.dense_shape(name).unwrap_or_default();
        let path = self.file.path().to_path_buf();
        let view = self.parts.entry(part).or_insert_with(|| PartView { file: path, tensors: BTreeMap::new() });
        let mut top = 0;
        for (layer, height) in layers.iter().zip(heights) {
            let rows = (layers.len() > 1).then_some([top, top + height]);
            let mut own = shape.clone();
            if let (Some([start, end]), Some(first)) = (rows, own.first_mut()) {
                *first = end - start;
            }
            top += height;
            let tensor = Elsewhere { name: name.into(), rows, swapped, shape: own };
            view.tensors.insert(layer.clone(), tensor);
        }
    }

    fn take_one(&mut self, part: &'static str, name: &str, layer: String) {
        self.take(part, name, &[layer], &[self.rows(name)], false);
    }

    fn flux(&mut self) {
        let Some((prefix, names)) = self.below(&DENOISER, |name| name.starts_with("double_blocks.")) else { return };
        for name in names {
            let full = format!("{prefix}{name}");
            if let Some(norm) = names::flux_norm(&name) {
                self.take_one("transformer", &full, norm);
                continue;
            }
            let Some((module, kind)) = names::kind(&name) else { continue };
            let Some(layers) = layers_of_original(module) else { continue };
            let layers: Vec<String> = layers.iter().map(|layer| format!("{layer}.{kind}")).collect();
            let rows = self.rows(&full);
            // Queries, keys and values have equal heights; the rest is the feed-forward part of a single block, four times as high.
            let heights = match layers.len() {
                1 => vec![rows],
                3 => vec![rows / 3; 3],
                _ => vec![rows / 7, rows / 7, rows / 7, rows - 3 * (rows / 7)],
            };
            self.take("transformer", &full, &layers, &heights, swaps_halves(module));
        }
    }

    fn unet(&mut self, rest: &Path) -> Result<()> {
        #[derive(Deserialize)]
        struct Config {
            #[serde(default = "two")]
            layers_per_block: usize,
        }
        fn two() -> usize {
            2
        }
        let Config { layers_per_block } = read_json(rest.join("unet/config.json"))?;
        let Some((prefix, names)) = self.below(&DENOISER, |name| name.starts_with("input_blocks.")) else {
            return Ok(());
        };
        for name in names {
            if let Some(own) = names::unet(&name, layers_per_block) {
                self.take_one("unet", &format!("{prefix}{name}"), own);
            }
        }
        Ok(())
    }

    fn vae(&mut self, rest: &Path) -> Result<()> {
        #[derive(Deserialize)]
        struct Config {
            block_out_channels: Vec<usize>,
        }
        let Some((prefix, names)) = self.below(&VAE, |name| name.starts_with("decoder.up.")) else { return Ok(()) };
        let Config { block_out_channels } = read_json(rest.join("vae/config.json"))?;
        for name in names {
            if let Some(own) = names::vae(&name, block_out_channels.len()) {
                self.take_one("vae", &format!("{prefix}{name}"), own);
            }
        }
        Ok(())
    }

    fn text(&mut self, rest: &Path) -> Result<()> {
        #[derive(Deserialize)]
        struct Config {
            num_hidden_layers: usize,
        }
        if let Some((prefix, names)) = self.below(&CLIP, |name| name.starts_with("text_model.")) {
            for name in names.iter().filter(|name| name.starts_with("text_model.")) {
                self.take_one("text_encoder", &format!("{prefix}{name}"), name.clone());
            }
        } else if let Some((prefix, names)) =
            self.below(&[OPEN_CLIP], |name| name.starts_with("transformer.resblocks."))
        {
            let Config { num_hidden_layers } = read_json(rest.join("text_encoder/config.json"))?;
            for name in names {
                // Stable Diffusion 2 does not use the last block, which the file still has.
                let block =
                    name.strip_prefix("transformer.resblocks.").and_then(|rest| rest.split('.').next()?.parse().ok());
                let Some(own) =
                    names::open_clip(&name).filter(|_| block.is_none_or(|block: usize| block < num_hidden_layers))
                else {
                    continue;
                };
                let full = format!("{prefix}{name}");
                let rows = self.rows(&full);
                let heights = vec![rows / own.len(); own.len()];
                self.take("text_encoder", &full, &own, &heights, false);
            }
        }
        if rest.join("text_encoder_2").is_dir()
            && let Some((prefix, names)) = self.below(&T5, |name| name.starts_with("encoder.block."))
        {
            for name in names.iter().filter(|name| name.starts_with("encoder.") || name.as_str() == "shared.weight") {
                self.take_one("text_encoder_2", &format!("{prefix}{name}"), name.clone());
            }
        }
        Ok(())
    }
}

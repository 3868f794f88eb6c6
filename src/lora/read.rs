//! Reading the adapter files of all programs.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::{
    Denoiser, ForeignLayer, Lora, LoraLayer, Part,
    forms::{Change, Piece, pieces},
    index::Index,
    natural,
    settings::ADAPTER_METADATA,
};
use crate::{
    error::{Error, Result},
    nn::Delta,
    weights::TensorFile,
};

/// File names of adapters in folders of PEFT and diffusers.
const IN_FOLDERS: [&str; 2] = ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"];

impl Lora {
    /// Reads an adapter file, or a folder with one, in the layout of diffusers, PEFT, kohya's scripts, LyCORIS, XLabs, OneTrainer, ComfyUI
    /// and trainers that follow them: LoRA, LoCon, DoRA, LoKr, LoHa and full changes of weights and biases, in floats of 8 to 64 bits.
    /// Fused layers are split. The scale is that of the file's own program: alpha from the file, from diffusers' metadata, or from PEFT's
    /// `adapter_config.json` beside it; else alpha = rank. The tensors are on the CPU. The [`denoiser`](Self::denoiser) is guessed from the
    /// names of the layers; a caller that knows the model sets it.
    ///
    /// # Errors
    /// The file is broken or holds no adapter; or parts of it cannot be applied (norms, OFT, …), which are listed: nothing is
    /// dropped silently.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let file = TensorFile::open(adapter_file(path.as_ref())?)?;
        Self::of(&file, Index::of(&file)?)
    }

    /// The same without tensors of text encoders, with their number: for files whose text encoders are not those of the model, or are
    /// changed in ways that kiln does not read.
    ///
    /// # Errors
    /// As [`read`](Self::read), for the rest; or nothing is left.
    pub fn read_without_text_encoders(path: impl AsRef<Path>) -> Result<(Self, usize)> {
        let file = TensorFile::open(adapter_file(path.as_ref())?)?;
        let mut index = Index::of(&file)?;
        let count = if index.is_adapter() { index.without_text_encoders() } else { 0 };
        if count > 0 && !index.is_adapter() {
            return Err(Error::file(file.path(), "changes only text encoders, which were to be left out"));
        }
        Ok((Self::of(&file, index)?, count))
    }

    fn of(file: &TensorFile, index: Index) -> Result<Self> {
        if !index.is_adapter() {
            return Err(Error::file(file.path(), "holds no LoRA").hint("`kiln inspect` says what a file holds"));
        }
        let (modules, mut problems) = index.modules()?;
        problems.extend(index.foreign());
        let (mut layers, mut foreign, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
        for module in &modules {
            let pieces = match pieces(file, module)? {
                Ok(pieces) => pieces,
                Err(problem) => {
                    problems.push(format!("`{}` {problem}", module.name));
                    continue;
                }
            };
            let part = module.place.part;
            for Piece { name, change, scale, magnitude } in pieces {
                if !seen.insert((part, name.clone(), matches!(change, Change::Bias(_)))) {
                    problems.push(format!("`{}` changes layer `{name}` a second time", module.name));
                }
                let plain = part == Part::Denoiser && magnitude.is_none() && !module.place.convolution;
                match change {
                    Change::LowRank { down, up } if plain => {
                        let alpha = scale * down.rows as f64;
                        let (a, b, pointwise) = (down.into_tensor(), up.into_tensor(), module.pointwise);
                        layers.push(LoraLayer { name, a, b, alpha, pointwise });
                    }
                    change => foreign.push(ForeignLayer {
                        part,
                        name,
                        delta: delta(change),
                        scale,
                        magnitude: magnitude.map(lengths),
                    }),
                }
            }
        }
        if !problems.is_empty() {
            return Err(Error::many(file.path(), problems)
                .hint("kiln applies an adapter in full or not at all; use a version of it without these parts"));
        }
        layers.sort_by(|one, other| natural(&one.name, &other.name));
        foreign.sort_by(|one, other| one.part.cmp(&other.part).then_with(|| natural(&one.name, &other.name)));
        let mut metadata = file.metadata();
        metadata.retain(|key, _| key != "format" && key != ADAPTER_METADATA);
        let of_denoiser = foreign.iter().filter(|layer| layer.part == Part::Denoiser).map(|layer| layer.name.as_str());
        let denoiser = Denoiser::guess(layers.iter().map(|layer| layer.name.as_str()).chain(of_denoiser));
        Ok(Self { denoiser, layers, foreign, metadata })
    }
}

fn delta(change: Change) -> Delta {
    match change {
        Change::LowRank { down, up } => Delta::LowRank { a: down.into_tensor(), b: up.into_tensor() },
        Change::Kronecker { left, right } => Delta::Kronecker { left: left.into_tensor(), right: right.into_tensor() },
        Change::Dense(dense) => Delta::Dense(dense.into_tensor()),
        Change::Bias(bias) => Delta::Bias(bias.transposed().into_tensor()),
    }
}

fn lengths(values: Vec<f32>) -> Tensor<1> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), (&Device::flex(), DType::F32))
}

/// The adapter file at `path`: itself, or the only adapter in a folder.
///
/// # Errors
/// The folder holds none, or several.
pub(super) fn adapter_file(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    if let Some(file) = IN_FOLDERS.iter().map(|name| path.join(name)).find(|file| file.is_file()) {
        return Ok(file);
    }
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let of_kind = |kinds: &[&str]| {
        let has = |name: &&String| !name.starts_with('.') && kinds.iter().any(|kind| name.ends_with(kind));
        names.iter().filter(has).cloned().collect::<Vec<_>>()
    };
    let (files, pickles) = (of_kind(&[".safetensors"]), of_kind(&[".bin", ".pt"]));
    match (files.as_slice(), pickles.as_slice()) {
        ([file], _) => Ok(path.join(file)),
        ([], [pickle, ..]) => Err(Error::file(path, format!("holds an adapter as `{pickle}` only, a PyTorch pickle"))
            .hint("save it again with `safe_serialization=True`: kiln reads safetensors")),
        ([], []) => Err(Error::file(path, format!("is a folder without an adapter (`{}`)", IN_FOLDERS[0]))
            .hint("give the .safetensors file of the adapter, or the folder that PEFT saved")),
        (files, _) => Err(Error::file(path, format!("is a folder with {} safetensors files", files.len()))
            .hint(format!("give one of them, such as {}", files[0]))),
    }
}

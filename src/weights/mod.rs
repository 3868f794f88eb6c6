//! Loading: from a folder of safetensors files to the tensors of a module.
//!
//! A module takes its tensors from [`Weights`] by their checkpoint names, with the shapes its configuration implies:
//! `Linear::load(&weights.at("to_q"), inputs, outputs)`. So the code that defines a layer is also its key table, and no
//! second list can drift from it. Problems are collected while loading; [`Weights::finish`] reports all of them at once.

mod container;
mod element;
mod file_dtype;
mod gguf;
mod kept;
mod local_paths;
mod part_config;
mod quantized_to;
mod random;
mod write;
mod view;
mod file;
mod shards;
mod folder;
mod source;
mod packed;
mod quantized_tensor;
mod quantize;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

use burn::tensor::{Device, FloatDType, Tensor, TensorData};

use crate::{
    error::{Error, Result},
    quantization::Packed,
    rng::Seed,
};
pub use file::TensorFile;
pub use file_dtype::FileDtype;
pub use folder::{FolderReport, TrainedPart, Widened, export_folder};
pub(crate) use packed::{is_marker, weight_beside};
pub use part_config::{read_config, read_json};
pub use quantize::{PartReport, QuantizeOptions, QuantizeReport, quantize_folder};
pub use quantized_to::QuantizedTo;
use random::Spread;
use shards::Sources;
pub(crate) use shards::{VARIANTS, has_weights, shards};
use source::{Content, Source};
pub(crate) use view::{Elsewhere, PartView, VIEW};
pub use write::{FlatTensor, TensorBytes, write_tensors};

/// The tensors below one name of a checkpoint, such as all of `transformer_blocks.3.attn`. The files stay mapped as long as any
/// such value exists.
#[derive(Clone, Debug)]
pub struct Weights {
    source: Arc<Source>,
    prefix: String,
    stay: Stay,
}

/// The lifetime of loaded tensors on the device.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stay {
    /// As long as the model.
    Kept,
    /// For one use.
    Lent,
    /// Not at all: only headers are read.
    Unread,
}

/// A matrix as stored in a checkpoint.
#[derive(Clone, Debug)]
pub enum Matrix {
    /// On the device, in the dtype of the model.
    Dense(Tensor<2>),
    /// Quantized, in the mapped file.
    Packed(Packed),
}

impl Weights {
    /// Opens the weights of one component (`transformer/`, `vae/`, …): a single file, or shards named by an index.
    /// With `dtype`, tensors are converted to it as they are read; without, they keep the file's dtype.
    ///
    /// # Errors
    /// The folder holds no safetensors files, or one of them is missing or broken.
    pub fn open(folder: impl AsRef<Path>, device: &Device, dtype: Option<FloatDType>) -> Result<Self> {
        let folder = folder.as_ref();
        let sources = Sources::of(folder)?;
        sources.say_unread();
        let files: Vec<_> = sources.files.iter().map(TensorFile::open).collect::<Result<_>>()?;
        let (mut home, mut twice) = (BTreeMap::new(), Vec::new());
        for (i, file) in files.iter().enumerate() {
            for name in file.names() {
                if home.insert(name.clone(), i).is_some() {
                    twice.push(format!("tensor `{name}` is in two files"));
                }
            }
        }
        let path = match files.as_slice() {
            [file] if file.is_view() => file.path().to_path_buf(),
            _ => folder.to_path_buf(),
        };
        let weights = Self::root(&path, Content::Files { files, home }, device, dtype);
        weights.source.problems().extend(twice);
        Ok(weights)
    }

    /// [Opens](Self::open) the weights of one component, builds a model from them with `load`, and [finishes](Self::finish): the
    /// one way from a folder to a model.
    ///
    /// # Errors
    /// As those two.
    pub fn load_model<M>(
        folder: impl AsRef<Path>,
        device: &Device,
        dtype: Option<FloatDType>,
        load: impl FnOnce(&Self) -> M,
    ) -> Result<M> {
        let weights = Self::open(folder, device, dtype)?;
        let model = load(&weights);
        weights.finish().map(|()| model)
    }

    /// Random weights, for benchmarking full-size models without a checkpoint: matrices have unit gain, vectors are near one
    /// (`…weight`) or near zero (`…bias`). Values depend only on `seed` and the tensor's name. For the CPU they are drawn on the
    /// host and equal on every machine; a GPU draws its own, in `dtype`: twelve billion on the host would take minutes.
    pub fn random(seed: Seed, device: &Device, dtype: Option<FloatDType>) -> Self {
        Self::root(Path::new("random weights"), Content::Random(seed, Spread::Busy), device, dtype)
    }

    /// Initial weights for training a model from scratch, in f32, drawn from `seed` on the host: the same values on every device.
    /// Matrices have unit gain, norms are one and biases zero. Matrices whose names satisfy `are_zero` are zero, so that the
    /// branch they end or modulate starts as the identity.
    pub fn untrained(seed: Seed, are_zero: fn(&str) -> bool, device: &Device) -> Self {
        let content = Content::Random(seed, Spread::Calm(are_zero));
        Self::root(Path::new("random weights"), content, device, Some(FloatDType::F32))
    }

    fn root(path: &Path, content: Content, device: &Device, dtype: Option<FloatDType>) -> Self {
        let source = Source {
            path: path.into(),
            content,
            device: device.clone(),
            dtype,
            taken: Mutex::default(),
            packed: Mutex::default(),
            problems: Mutex::default(),
        };
        Self { source: Arc::new(source), prefix: String::new(), stay: Stay::Kept }
    }

    /// The same, reading only names, shapes and dtypes: problems are noted for [`finish`](Self::finish), and each tensor is a
    /// single zero, expanded.
    pub fn unread(&self) -> Self {
        Self { stay: Stay::Unread, ..self.clone() }
    }

    /// The same for tensors that are read again for each use: preparations that pay off only over many uses are skipped.
    pub fn lent(&self) -> Self {
        Self { stay: Stay::Lent, ..self.clone() }
    }

    /// Whether tensors stay as long as the model.
    pub fn are_kept(&self) -> bool {
        self.stay == Stay::Kept
    }

    /// Whether only headers are read.
    pub fn are_unread(&self) -> bool {
        self.stay == Stay::Unread
    }

    /// The compute dtype of the layer at this level: the requested one, else that of its bias.
    pub fn dtype(&self) -> FloatDType {
        let bias = || match &self.source.content {
            Content::Files { files, home } => {
                let name = self.full("bias");
                match files[*home.get(&name)?].dtype(&name)?.as_str() {
                    "BF16" => Some(FloatDType::BF16),
                    "F16" => Some(FloatDType::F16),
                    _ => None,
                }
            }
            Content::Random(..) => None,
        };
        self.source.dtype.or_else(bias).unwrap_or(FloatDType::F32)
    }

    /// The tensors below `name`.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { source: self.source.clone(), prefix: self.full(&name.to_string()), stay: self.stay }
    }

    /// The tensors below the first of `names` under which the checkpoint has any, else below the first: for parts that
    /// were renamed between versions of a format. The empty name means this level.
    pub fn at_any(&self, names: &[&str]) -> Self {
        let found = names.iter().find(|name| {
            let start = format!("{}.", self.full(name));
            let start = start.strip_prefix('.').unwrap_or(&start);
            match &self.source.content {
                Content::Files { home, .. } => {
                    home.range(start.to_string()..).next().is_some_and(|(k, _)| k.starts_with(start))
                }
                Content::Random(..) => true,
            }
        });
        match found.copied().unwrap_or(names[0]) {
            "" => self.clone(),
            name => self.at(name),
        }
    }

    /// Whether the checkpoint has a tensor `name` at this level.
    pub fn has(&self, name: &str) -> bool {
        match &self.source.content {
            Content::Files { home, .. } => home.contains_key(&self.full(name)),
            Content::Random(..) => true,
        }
    }

    /// The shape of the tensor `name` at this level, if the checkpoint has it: for tensors whose layout varies.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        match &self.source.content {
            Content::Files { files, home } => {
                let full = self.full(name);
                home.get(&full).and_then(|&file| files[file].shape(&full))
            }
            Content::Random(..) => None,
        }
    }

    /// The device that tensors are put on.
    pub fn device(&self) -> &Device {
        &self.source.device
    }

    /// Takes the tensor `name`, which must have `shape`. If it is missing or misshapen, that is noted for
    /// [`finish`](Self::finish), and an empty tensor stands in for it until then.
    pub fn tensor<const D: usize>(&self, name: &str, shape: [usize; D]) -> Tensor<D> {
        let full = self.full(name);
        let nothing = || Tensor::zeros([1; D], &self.source.device);
        let read = match self.stay {
            Stay::Unread => self.source.check(&full, &shape).map(|()| nothing()),
            Stay::Kept | Stay::Lent => self.source.read(&full, shape),
        };
        read.unwrap_or_else(|problem| {
            self.source.problems().push(problem);
            nothing()
        })
    }

    /// Takes the matrix `name`, which must have the shape `dims`, as it is stored, with the scales of a quantized one. Problems are
    /// noted as for [`tensor`](Self::tensor).
    pub fn matrix(&self, name: &str, dims: [usize; 2]) -> Matrix {
        let full = self.full(name);
        match self.source.quantized(&full, dims) {
            None => Matrix::Dense(self.tensor(name, dims)),
            Some(Ok(found)) => match found.packed() {
                Some(packed) => {
                    self.source.packed_bytes().insert(full, packed.bytes() as u64);
                    Matrix::Packed(packed)
                }
                None if self.are_unread() => Matrix::Dense(Tensor::zeros([1; 2], &self.source.device)),
                None => Matrix::Dense(self.source.put(TensorData::new(found.values(), dims))),
            },
            Some(Err(problem)) => {
                self.source.problems().push(problem);
                Matrix::Dense(Tensor::zeros([1; 2], &self.source.device))
            }
        }
    }

    /// Marks a tensor as known although it is not used.
    pub fn ignore(&self, name: &str) {
        self.source.taken().insert(self.full(name), Vec::new());
    }

    /// The names and shapes of the tensors taken so far, as in the checkpoint.
    pub fn taken(&self) -> BTreeMap<String, Vec<usize>> {
        let taken = self.source.taken();
        taken.iter().filter(|(_, shape)| !shape.is_empty()).map(|(name, shape)| (name.clone(), shape.clone())).collect()
    }

    /// The size on the device of the tensors taken so far, in bytes.
    pub fn bytes(&self) -> u64 {
        let (taken, packed) = (self.source.taken(), self.source.packed_bytes());
        let size = |(name, shape): (&String, &Vec<usize>)| {
            packed.get(name).copied().unwrap_or_else(|| self.dense_bytes(name, shape))
        };
        taken.iter().map(size).sum()
    }

    /// The bytes that a tensor of this full name and shape takes on the device while it is dense.
    pub fn dense_bytes(&self, name: &str, shape: &[usize]) -> u64 {
        self.source.size(name) * shape.iter().product::<usize>() as u64
    }

    /// The size on the device of all tensors of the checkpoint, in bytes.
    pub fn stored_bytes(&self) -> u64 {
        let Content::Files { files, home } = &self.source.content else { return self.bytes() };
        let bytes = |(name, &file): (&String, &usize)| {
            let dense = ["F32", "F64", "BF16", "F16"].contains(&files[file].dtype(name).unwrap_or_default().as_str());
            match files[file].bytes(name) {
                // Quantized tensors stay as stored.
                Some(bytes) if !dense => bytes.len() as u64,
                _ => {
                    let values = files[file].shape(name).unwrap_or_default().iter().product::<usize>();
                    self.source.size(name) * values as u64
                }
            }
        };
        home.iter().map(bytes).sum()
    }

    /// Ends loading.
    ///
    /// # Errors
    /// Tensors were missing, misshapen or left over: one error that lists them all.
    pub fn finish(&self) -> Result<()> {
        let mut problems = std::mem::take(&mut *self.source.problems());
        if let Content::Files { home, .. } = &self.source.content {
            let taken = self.source.taken();
            let unused = home.keys().filter(|name| !taken.contains_key(*name) && !packed::is_marker(name));
            problems.extend(unused.map(|name| format!("tensor `{name}` is not part of the model")));
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::many(&self.source.path, problems)
            .hint("the weights and the config.json beside them must belong to the same model, in diffusers' layout"))
    }

    fn full(&self, name: &str) -> String {
        below(&self.prefix, name)
    }
}

/// Joins `path` and `name` with a dot; either may be empty.
pub fn below(path: &str, name: &str) -> String {
    match (path, name) {
        ("", name) => name.to_string(),
        (path, "") => path.to_string(),
        (path, name) => format!("{path}.{name}"),
    }
}

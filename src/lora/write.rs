//! Writing adapters in the file formats of other programs.

use std::{collections::BTreeMap, fmt, path::Path};

use burn::tensor::{DType, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    Denoiser, Lora, LoraLayer,
    keys::{self, Original},
    matrix::Matrix,
    name_a, name_b,
    settings::ADAPTER_METADATA,
    unet,
};
use crate::{
    error::{Error, Result},
    weights::{FileDtype, write_tensors},
};

/// The layout of an adapter file. In each, alpha equals the rank: the scale is folded into the matrices, because readers disagree on a
/// missing alpha (diffusers takes scale 1, others divide by a rank of their own).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Format {
    /// `transformer.<layer>.lora_A.weight` and `.lora_B.weight`, or `unet.…`, with PEFT's settings as metadata. For FLUX, ComfyUI reads it
    /// as well.
    Diffusers,
    /// `lora_unet_<module>.lora_down.weight`, `.lora_up.weight` and `.alpha`: by the modules of the original FLUX code, or
    /// diffusers' names of a UNet's layers, with underscores for dots. A1111 and ComfyUI read it.
    Kohya,
    /// FLUX only: `diffusion_model.<module>.lora_down.weight`, `.lora_up.weight` and `.alpha`, by the same modules with dots. ComfyUI also
    /// knows `lora_A`/`lora_B` here; diffusers converts only this spelling.
    ComfyUi,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Diffusers => "diffusers",
            Self::Kohya => "kohya",
            Self::ComfyUi => "comfyui",
        })
    }
}

impl Lora {
    /// Writes one file, with its matrices in `dtype`. The adapter's own metadata overrides that of the format.
    /// [`export`](fn@super::export) also verifies the result.
    ///
    /// # Errors
    /// There is nothing to write; the format does not exist for a UNet, or layers have no name in it (one error that lists them); or
    /// the file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>, format: Format, dtype: FileDtype) -> Result<()> {
        let own = match format {
            Format::Diffusers => self.diffusers_metadata(),
            Format::Kohya => self.kohya_metadata(),
            Format::ComfyUi => model_metadata(),
        };
        let mut all: BTreeMap<_, _> = own.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        all.extend(self.metadata.clone());
        self.write_with(path.as_ref(), format, dtype, &all)
    }

    /// The same with exactly this metadata.
    pub(super) fn write_with(
        &self,
        path: &Path,
        format: Format,
        dtype: FileDtype,
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        if self.layers.is_empty() {
            return Err(Error::file(path, "the adapter has no layers: there is nothing to write"));
        }
        if !self.foreign.is_empty() {
            let problem = format!(
                "{} of its changes are of a kind that kiln applies but does not write (DoRA, LoKr, biases, text encoders, …)",
                self.foreign.len()
            );
            return Err(Error::file(path, problem).hint("use the file that they were read from"));
        }
        let tensors = match format {
            Format::Diffusers => self.diffusers(dtype),
            Format::Kohya if self.denoiser == Denoiser::Unet => self.flattened(path, dtype)?,
            Format::ComfyUi if self.denoiser == Denoiser::Unet => {
                return Err(Error::setting("format", "`comfyui` is a layout for FLUX, and this adapter is for a UNet")
                    .hint("`format kohya` is what ComfyUI reads for Stable Diffusion"));
            }
            Format::Kohya => self.original(path, dtype, |name| format!("lora_unet_{}", keys::flat(name)))?,
            Format::ComfyUi => self.original(path, dtype, |name| format!("diffusion_model.{name}"))?,
        };
        write_tensors(path, &tensors, metadata)
    }

    /// The exact tensors of a checkpoint, under diffusers' names and with the alpha of each layer; [`read`](Self::read) restores
    /// them bit for bit.
    pub fn tensors(&self) -> BTreeMap<String, TensorData> {
        let of = |layer: &LoraLayer| {
            let name = format!("{}.{}", self.denoiser, layer.name);
            let alpha = TensorData::new(vec![layer.alpha as f32], Vec::<usize>::new());
            let (a, b) = (shaped(layer, layer.a.to_data()), shaped(layer, layer.b.to_data()));
            [(name_a(&name), a), (name_b(&name), b), (format!("{name}.alpha"), alpha)]
        };
        self.layers.iter().flat_map(of).collect()
    }

    fn diffusers(&self, dtype: FileDtype) -> BTreeMap<String, TensorData> {
        let of = |layer: &LoraLayer| {
            let name = format!("{}.{}", self.denoiser, layer.name);
            let (a, b) = folded(layer, dtype);
            [(name_a(&name), shaped(layer, stored(a, dtype))), (name_b(&name), shaped(layer, stored(b, dtype)))]
        };
        self.layers.iter().flat_map(of).collect()
    }

    /// The tensors of kohya's layout for a UNet, which has the same layers as diffusers.
    fn flattened(&self, path: &Path, dtype: FileDtype) -> Result<BTreeMap<String, TensorData>> {
        let unknown = self.layers.iter().filter(|layer| unet::layer_named(&layer.name).is_none());
        nameless(path, unknown.map(|layer| layer.name.as_str()))?;
        let of = |layer: &LoraLayer| {
            let name = format!("lora_unet_{}", keys::flat(&layer.name));
            let (down, up) = folded(layer, dtype);
            let alpha = alpha(down.rows);
            let (down, up) = (shaped(layer, stored(down, dtype)), shaped(layer, stored(up, dtype)));
            [
                (format!("{name}.lora_down.weight"), down),
                (format!("{name}.lora_up.weight"), up),
                (name + ".alpha", alpha),
            ]
        };
        Ok(self.layers.iter().flat_map(of).collect())
    }

    /// The tensors of a layout with the modules of the original code, whose names `key` spells. A fused projection has the stacked A of
    /// its layers as `down` and a block-diagonal `up`, with zeros for untrained layers and missing ranks.
    fn original(
        &self,
        path: &Path,
        dtype: FileDtype,
        key: impl Fn(&str) -> String,
    ) -> Result<BTreeMap<String, TensorData>> {
        let mut modules = BTreeMap::<String, (Original, Vec<&LoraLayer>)>::new();
        let mut unknown = Vec::new();
        for layer in &self.layers {
            match keys::original_of(&layer.name) {
                Some(module) => modules.entry(module.name.clone()).or_insert((module, Vec::new())).1.push(layer),
                None => unknown.push(layer.name.as_str()),
            }
        }
        nameless(path, unknown.into_iter())?;
        let mut tensors = BTreeMap::new();
        for (name, (module, trained)) in modules {
            let (down, up) = fused(&module, &trained, dtype);
            let up = if module.swapped { up.halves_swapped() } else { up };
            let key = key(&name);
            tensors.insert(format!("{key}.alpha"), alpha(down.rows));
            tensors.insert(format!("{key}.lora_down.weight"), stored(down, dtype));
            tensors.insert(format!("{key}.lora_up.weight"), stored(up, dtype));
        }
        Ok(tensors)
    }

    /// The arguments that diffusers passes to `peft.LoraConfig`, with the component as prefix of every key.
    fn diffusers_metadata(&self) -> Vec<(&'static str, String)> {
        let rank = self.usual_rank();
        let others = self.layers.iter().filter(|layer| layer.rank() != rank);
        // `^`, because patterns are otherwise matched against the end of names, and many end in `proj_out`.
        let patterns: Map<_, _> = others.map(|layer| (format!("^{}", layer.name), json!(layer.rank()))).collect();
        let names: Vec<_> = self.layers.iter().map(|layer| layer.name.as_str()).collect();
        let settings = [
            ("peft_type", json!("LORA")),
            ("r", json!(rank)),
            ("lora_alpha", json!(rank)),
            ("rank_pattern", json!(patterns)),
            ("alpha_pattern", json!(patterns)),
            ("target_modules", json!(names)),
            ("lora_dropout", json!(0.0)),
            ("bias", json!("none")),
            ("use_dora", json!(false)),
            ("use_rslora", json!(false)),
        ];
        let component = self.denoiser;
        let settings: Map<_, _> =
            settings.into_iter().map(|(key, value)| (format!("{component}.{key}"), value)).collect();
        vec![("format", "pt".into()), (ADAPTER_METADATA, Value::Object(settings).to_string())]
    }

    fn kohya_metadata(&self) -> Vec<(&'static str, String)> {
        let rank = self.usual_rank().to_string();
        let mut metadata = model_metadata();
        metadata.extend([("ss_network_dim", rank.clone()), ("ss_network_alpha", rank)]);
        // The layers of a UNet do not show the version of Stable Diffusion.
        metadata.extend(match self.denoiser {
            Denoiser::Unet => vec![("ss_network_module", "networks.lora".into())],
            Denoiser::Transformer => {
                vec![("ss_network_module", "networks.lora_flux".into()), ("ss_base_model_version", "flux1".into())]
            }
        });
        metadata
    }

    /// The rank of most layers.
    fn usual_rank(&self) -> usize {
        let mut counts = BTreeMap::<usize, usize>::new();
        self.layers.iter().for_each(|layer| *counts.entry(layer.rank()).or_default() += 1);
        counts.into_iter().max_by_key(|&(_, count)| count).map_or(0, |(rank, _)| rank)
    }
}

/// The metadata that PyTorch's loaders expect.
pub(super) fn model_metadata() -> Vec<(&'static str, String)> {
    vec![("format", "pt".into())]
}

/// An error if there are any layers: the format has no names for them.
fn nameless<'a>(path: &Path, layers: impl Iterator<Item = &'a str>) -> Result<()> {
    let problems: Vec<_> = layers.map(|name| format!("`{name}` has no name in this format")).collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::many(path, problems).hint("export with `format diffusers`"))
}

/// An alpha equal to the rank, always in f32: bf16 cannot represent every rank above 256.
fn alpha(rank: usize) -> TensorData {
    TensorData::new(vec![rank as f32], Vec::<usize>::new())
}

fn stored(matrix: Matrix, dtype: FileDtype) -> TensorData {
    matrix.into_data().convert_dtype(DType::from(dtype))
}

/// A matrix of `layer` with its axes in files.
fn shaped(layer: &LoraLayer, mut matrix: TensorData) -> TensorData {
    if layer.pointwise {
        matrix.shape.extend([1, 1]);
    }
    matrix
}

/// A and B with the scale folded into B, which is exact if `alpha / rank` is a power of two. For f16, with its small range, a power of
/// two moves between them to make them similar in size.
fn folded(layer: &LoraLayer, dtype: FileDtype) -> (Matrix, Matrix) {
    let (a, b) = (Matrix::from_tensor(&layer.a), Matrix::from_tensor(&layer.b).scaled(layer.scale()));
    let (largest_a, largest_b) = (a.largest(), b.largest());
    if dtype != FileDtype::F16 || largest_a == 0.0 || largest_b == 0.0 {
        return (a, b);
    }
    let shift = (f64::from(largest_a / largest_b).log2() / 2.0).round();
    (a.scaled((-shift).exp2()), b.scaled(shift.exp2()))
}

/// The matrices of a module of the original layout, whose rank is the largest rank of its trained layers times the number of layers.
fn fused(module: &Original, trained: &[&LoraLayer], dtype: FileDtype) -> (Matrix, Matrix) {
    if let ([_], [layer]) = (module.layers.as_slice(), trained) {
        return folded(layer, dtype);
    }
    let rank = trained.iter().map(|layer| layer.rank()).max().unwrap_or_default();
    let width = trained.iter().map(|layer| layer.a.dims()[1]).max().unwrap_or_default();
    let layers: Vec<_> = module.layers.iter().map(|name| trained.iter().find(|layer| layer.name == *name)).collect();
    // The size of an untrained layer is not known here. All have the width of the input except the fourth layer of a single block, the
    // feed-forward part, which is four times as wide in every FLUX.
    let usual = [width, width, width, 4 * width];
    let heights: Vec<_> =
        layers.iter().zip(usual).map(|(layer, usual)| layer.map_or(usual, |l| l.b.dims()[0])).collect();
    let mut down = Matrix::zeros(layers.len() * rank, width);
    let mut up = Matrix::zeros(heights.iter().sum(), layers.len() * rank);
    let mut top = 0;
    for (i, (layer, height)) in layers.iter().zip(heights).enumerate() {
        if let Some(layer) = layer {
            let (a, b) = folded(layer, dtype);
            down.put(i * rank, 0, &a);
            up.put(top, i * rank, &b);
        }
        top += height;
    }
    (down, up)
}

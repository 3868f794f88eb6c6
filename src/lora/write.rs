//! From the one form in memory to the files of other programs.

use std::{collections::BTreeMap, fmt, path::Path};

use burn::tensor::{DType, FloatDType, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    Lora, LoraLayer,
    keys::{self, Original},
    matrix::Matrix,
    read::ADAPTER_METADATA,
};
use crate::{
    error::{Error, Result},
    weights::write_tensors,
};

/// The layout of an adapter file. In each, alpha equals the rank: the scale is inside the matrices, so that no reader can
/// get it wrong (diffusers takes scale 1 where a file has no alpha, others divide by a rank of their own).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Format {
    /// `transformer.<layer>.lora_A.weight` and `.lora_B.weight`, with PEFT's settings as metadata. ComfyUI reads it too.
    Diffusers,
    /// `lora_unet_<module>.lora_down.weight`, `.lora_up.weight` and `.alpha`, by the modules of the original FLUX code.
    Kohya,
    /// `diffusion_model.<module>.lora_down.weight`, `.lora_up.weight` and `.alpha`, by the same modules with dots. ComfyUI also
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
    /// Writes one file, its matrices in `dtype` (f32, bf16 or f16). The adapter's metadata goes before what the format says by
    /// itself. [`export`](fn@super::export) also checks the result.
    ///
    /// # Errors
    /// There is nothing to write; layers have no name in the format (one error that lists them); the dtype is another; or
    /// the disk refuses.
    pub fn write(&self, path: impl AsRef<Path>, format: Format, dtype: FloatDType) -> Result<()> {
        let path = path.as_ref();
        if !matches!(dtype, FloatDType::F32 | FloatDType::BF16 | FloatDType::F16) {
            return Err(Error::setting("--dtype", format!("adapter files hold f32, bf16 or f16, not {dtype:?}")));
        }
        if self.layers.is_empty() {
            return Err(Error::file(path, "the adapter has no layers: there is nothing to write"));
        }
        let (tensors, own) = match format {
            Format::Diffusers => (self.diffusers(dtype), self.diffusers_metadata()),
            Format::Kohya => {
                (self.original(path, dtype, |name| format!("lora_unet_{}", keys::flat(name)))?, self.kohya_metadata())
            }
            Format::ComfyUi => {
                (self.original(path, dtype, |name| format!("diffusion_model.{name}"))?, model_metadata())
            }
        };
        let mut all: BTreeMap<_, _> = own.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        all.extend(self.metadata.clone());
        write_tensors(path, &tensors, &all)
    }

    fn diffusers(&self, dtype: FloatDType) -> BTreeMap<String, TensorData> {
        let mut tensors = BTreeMap::new();
        for layer in &self.layers {
            let (a, b) = folded(layer, dtype);
            let name = format!("{}.{}", self.component(), layer.name);
            tensors.insert(format!("{name}.lora_A.weight"), stored(a, dtype));
            tensors.insert(format!("{name}.lora_B.weight"), stored(b, dtype));
        }
        tensors
    }

    /// The tensors of a layout by the modules of the original code, `key` being its spelling of their names. Fused
    /// projections have `down` = the layers' A below each other and a block-diagonal `up`; layers that were not trained and
    /// missing ranks are zeros there.
    fn original(
        &self,
        path: &Path,
        dtype: FloatDType,
        key: impl Fn(&str) -> String,
    ) -> Result<BTreeMap<String, TensorData>> {
        let mut modules = BTreeMap::<String, (Original, Vec<&LoraLayer>)>::new();
        let mut problems = Vec::new();
        for layer in &self.layers {
            match keys::original_of(&layer.name) {
                Some(module) => modules.entry(module.name.clone()).or_insert((module, Vec::new())).1.push(layer),
                None => problems.push(format!("`{}` has no name in this format", layer.name)),
            }
        }
        if !problems.is_empty() {
            return Err(Error::Many { path: path.into(), problems }.hint("export with `--format diffusers`"));
        }
        let mut tensors = BTreeMap::new();
        for (name, (module, trained)) in modules {
            let (down, up) = fused(&module, &trained, dtype);
            let up = if module.swapped { up.halves_swapped() } else { up };
            let key = key(&name);
            // In f32 whatever the matrices are: a rank above 256 may not exist in bf16.
            tensors.insert(format!("{key}.alpha"), TensorData::new(vec![down.rows as f32], Vec::<usize>::new()));
            tensors.insert(format!("{key}.lora_down.weight"), stored(down, dtype));
            tensors.insert(format!("{key}.lora_up.weight"), stored(up, dtype));
        }
        Ok(tensors)
    }

    /// What diffusers hands to `peft.LoraConfig`, every key prefixed with the component.
    fn diffusers_metadata(&self) -> Vec<(&'static str, String)> {
        let rank = self.usual_rank();
        let others = self.layers.iter().filter(|layer| layer.rank() != rank);
        // `^`: a pattern is matched to the end of names otherwise, and `proj_out` is the end of many.
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
        let component = self.component();
        let settings: Map<_, _> =
            settings.into_iter().map(|(key, value)| (format!("{component}.{key}"), value)).collect();
        vec![("format", "pt".into()), (ADAPTER_METADATA, Value::Object(settings).to_string())]
    }

    fn kohya_metadata(&self) -> Vec<(&'static str, String)> {
        let rank = self.usual_rank().to_string();
        let mut metadata = model_metadata();
        metadata.extend([
            ("ss_network_module", "networks.lora_flux".into()),
            ("ss_network_dim", rank.clone()),
            ("ss_network_alpha", rank),
            ("ss_base_model_version", "flux1".into()),
        ]);
        metadata
    }

    /// The rank of most layers.
    fn usual_rank(&self) -> usize {
        let mut counts = BTreeMap::<usize, usize>::new();
        self.layers.iter().for_each(|layer| *counts.entry(layer.rank()).or_default() += 1);
        counts.into_iter().max_by_key(|&(_, count)| count).map_or(0, |(rank, _)| rank)
    }
}

/// What user interfaces sort files by.
fn model_metadata() -> Vec<(&'static str, String)> {
    vec![("format", "pt".into())]
}

fn stored(matrix: Matrix, dtype: FloatDType) -> TensorData {
    matrix.into_data().convert_dtype(DType::from(dtype))
}

/// A and B with the scale inside B, which is exact where `alpha / rank` is a power of two. For f16, whose smallest numbers
/// are soon reached, a power of two moves between them until they are of like size.
fn folded(layer: &LoraLayer, dtype: FloatDType) -> (Matrix, Matrix) {
    let (a, b) = (Matrix::from_tensor(&layer.a), Matrix::from_tensor(&layer.b).scaled(layer.scale()));
    let (largest_a, largest_b) = (a.largest(), b.largest());
    if dtype != FloatDType::F16 || largest_a == 0.0 || largest_b == 0.0 {
        return (a, b);
    }
    let shift = (f64::from(largest_a / largest_b).log2() / 2.0).round();
    (a.scaled((-shift).exp2()), b.scaled(shift.exp2()))
}

/// The matrices of one module of the original layout, whose rank is the largest of the trained layers' times their number.
fn fused(module: &Original, trained: &[&LoraLayer], dtype: FloatDType) -> (Matrix, Matrix) {
    if let ([_], [layer]) = (module.layers.as_slice(), trained) {
        return folded(layer, dtype);
    }
    let rank = trained.iter().map(|layer| layer.rank()).max().unwrap_or_default();
    let width = trained.iter().map(|layer| layer.a.dims()[1]).max().unwrap_or_default();
    let layers: Vec<_> = module.layers.iter().map(|name| trained.iter().find(|layer| layer.name == *name)).collect();
    // A layer that was not trained does not tell its size. All are as wide as the input but the fourth of a single block,
    // which is the feed-forward part: four times that in every FLUX.
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

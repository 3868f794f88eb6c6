//! Writes a model folder with quantized weights, which is then mapped at every start.
//!
//! The matrices of linear layers inside blocks are quantized: they hold nearly all values of a model. Layers before the first and
//! after the last block keep their dtype, and so do norms, embeddings, convolutions and biases: they are small, and their errors
//! are the most visible.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, FloatDType};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    Matrix, QuantizedTo, TensorFile, Weights,
    folder::{CONFIG, INDEX, take_components, write_json},
    packed::SQUARE,
    quantized_tensor::{Entry, Layer},
    read_json, shards, write_tensors,
};
use crate::{
    disk::remove_folder,
    error::{Error, Result},
};

/// The name prefixes of blocks.
const BLOCKS: [&str; 6] =
    ["transformer_blocks.", "single_transformer_blocks.", "down_blocks.", "mid_block.", "up_blocks.", "encoder.block."];

/// Exceptions inside T5's blocks: an embedding, and the layer that transformers always keeps in full precision.
const NOT: [&str; 2] = [".relative_attention_bias.", ".DenseReluDense.wo."];

/// The last layer of FLUX.1, which diffusers cannot exclude: the exceptions in `config.json` match the last part of a name, and the
/// single blocks have a layer of that name.
const UNNAMEABLE: &str = "proj_out.weight";

/// Options of [`quantize_folder`].
#[derive(Clone, Copy, Debug)]
pub struct QuantizeOptions {
    /// The format of the quantized weights.
    pub to: QuantizedTo,
    /// Whether diffusers must be able to read the folder: then the last layer of FLUX.1 is quantized, too.
    pub for_diffusers: bool,
}

/// Report of a [quantized](quantize_folder) model folder.
#[derive(Clone, Debug, Serialize)]
pub struct QuantizeReport {
    /// The folder that was written.
    pub path: PathBuf,
    /// The parts that were quantized.
    pub parts: Vec<PartReport>,
}

/// Report of one quantized part.
#[derive(Clone, Debug, Serialize)]
pub struct PartReport {
    /// The name of its folder.
    pub part: String,
    /// The format of its quantized matrices.
    pub to: QuantizedTo,
    /// The number of quantized matrices.
    pub matrices: usize,
    /// The number of values in the part, in millions, and how many of them are quantized.
    pub millions: [f64; 2],
    /// The size of the weights in bytes, before and after.
    pub bytes: [u64; 2],
    /// The signal-to-noise ratio of all quantized values, in dB.
    pub snr: f64,
    /// The matrix with the lowest signal-to-noise ratio, and that ratio.
    pub lowest: (String, f64),
}

impl fmt::Display for QuantizeReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        for (number, part) in self.parts.iter().enumerate() {
            let PartReport { part, to, matrices, millions: [all, quantized], bytes, snr, lowest } = part;
            let [before, after] = bytes.map(|bytes| bytes as f64 / 1e6);
            let separator = if number == 0 { "" } else { "; " };
            write!(
                f,
                "{separator}{part}: {matrices} matrices with {quantized:.1} of {all:.1} million values as {}, {before:.1} MB to \
                 {after:.1} MB, signal-to-noise ratio {snr:.1} dB (lowest {:.1} dB, `{}`)",
                to.name(),
                lowest.1,
                lowest.0
            )?;
        }
        write!(f, "; read back")
    }
}

/// Writes the model folder `base` to `output` with the weights of `parts` (folders in it) quantized. The other parts are copied, their
/// weights as hard links where the file system supports them. The same model gives the same bytes.
///
/// The folder appears under its name only when it is complete and was read back.
///
/// # Errors
/// `output` exists; a part is missing, broken, already quantized, or has no matrix in a block; weights are not finite; or writing
/// fails. Then nothing is left behind.
pub fn quantize_folder(base: &Path, parts: &[&str], output: &Path, options: QuantizeOptions) -> Result<QuantizeReport> {
    if fs::symlink_metadata(output).is_ok() {
        return Err(Error::file(output, "exists already").hint("give another name, or remove it first"));
    }
    // All checks that need only headers run before anything is written.
    let plans = parts.iter().map(|part| Plan::new(base, part, options)).collect::<Result<Vec<_>>>()?;
    let mut partial = OsString::from(output);
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    remove_folder(&partial)?; // left by a run that was killed
    let done = fill(base, &plans, &partial, options).and_then(|parts| {
        fs::rename(&partial, output).map_err(|e| Error::io(output, e))?;
        Ok(QuantizeReport { path: output.into(), parts })
    });
    if done.is_err() {
        _ = fs::remove_dir_all(&partial); // it may not exist; the first error is the one to report
    }
    done
}

fn fill(base: &Path, plans: &[Plan], folder: &Path, options: QuantizeOptions) -> Result<Vec<PartReport>> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let mut index: Map<String, Value> = read_json(base.join(INDEX))?;
    let own: Vec<_> = plans.iter().map(|plan| plan.part.as_str()).collect();
    take_components(base, &own, folder, &mut index)?;
    write_json(&folder.join(INDEX), &index)?;
    plans.iter().map(|plan| plan.write(folder, options)).collect()
}

/// The plan for writing the weights of a part.
struct Plan {
    part: String,
    config: Map<String, Value>,
    /// `diffusion_pytorch_model` or `model`.
    stem: &'static str,
    files: Vec<TensorFile>,
    /// Every tensor, the number of its file, and whether it is quantized.
    tensors: BTreeMap<String, (usize, bool)>,
}

impl Plan {
    fn new(base: &Path, part: &str, options: QuantizeOptions) -> Result<Self> {
        let folder = base.join(part);
        let config: Map<String, Value> = read_json(folder.join(CONFIG))?;
        let paths = shards(&folder)?;
        let is_model =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"model"));
        let stem = if paths.iter().any(is_model) { "model" } else { "diffusion_pytorch_model" };
        let files = paths.iter().map(TensorFile::open).collect::<Result<Vec<_>>>()?;
        let mut tensors = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for name in file.names() {
                let dtype = file.dtype(&name).unwrap_or_default();
                if !["F32", "F64", "BF16", "F16", "I64", "I32"].contains(&dtype.as_str()) {
                    let problem = format!("is stored as {dtype}: the weights are already quantized");
                    return Err(Error::tensor(file.path(), name, problem)
                        .hint("start from the model in float32, bfloat16 or float16"));
                }
                let in_block =
                    BLOCKS.iter().any(|block| name.starts_with(block)) && !NOT.iter().any(|not| name.contains(not));
                let last = options.for_diffusers && options.to != QuantizedTo::Fp8 && name == UNNAMEABLE;
                let matrix = name.ends_with(".weight") && file.shape(&name).is_some_and(|shape| shape.len() == 2);
                tensors.insert(name, (number, matrix && (in_block || last)));
            }
        }
        if !tensors.values().any(|(_, quantized)| *quantized) {
            return Err(Error::file(folder, "has no linear layer inside a block to quantize"));
        }
        Ok(Self { part: part.into(), config, stem, files, tensors })
    }

    fn write(&self, output: &Path, QuantizeOptions { to, .. }: QuantizeOptions) -> Result<PartReport> {
        tracing::info!("quantizing {}", self.part);
        let folder = output.join(&self.part);
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let mut config = self.config.clone();
        config.insert("quantization_config".into(), quantization_config(to, &self.left()));
        write_json(&folder.join(CONFIG), &config)?;
        let layers: BTreeMap<_, _> = self.quantized().map(|(name, file)| (name, Layer::new(file, name))).collect();
        let mut entries = BTreeMap::new();
        for (name, &(file, quantized)) in &self.tensors {
            match quantized {
                true => entries.extend(layers[name.as_str()].entries(to)),
                false => _ = entries.insert(name.clone(), Entry::kept(&self.files[file], name)),
            }
        }
        let path = folder.join(format!("{}.safetensors", self.stem));
        write_tensors(&path, &entries, &BTreeMap::from([("format".to_string(), "pt".to_string())]))?;
        let size = |path: &Path| fs::metadata(path).map(|data| data.len()).map_err(|e| Error::io(path, e));
        let before = self.files.iter().map(|file| size(file.path())).sum::<Result<u64>>()?;
        let (snr, lowest) = self.read_back(&folder)?;
        let count =
            |file: usize, name: &String| self.files[file].shape(name).unwrap_or_default().iter().product::<usize>();
        let all = self.tensors.iter().map(|(name, &(file, _))| count(file, name)).sum::<usize>();
        let quantized = layers.values().map(|layer| layer.dims[0] * layer.dims[1]).sum::<usize>();
        Ok(PartReport {
            part: self.part.clone(),
            to,
            matrices: layers.len(),
            millions: [all, quantized].map(|count| count as f64 / 1e6),
            bytes: [before, size(&path)?],
            snr,
            lowest,
        })
    }

    fn quantized(&self) -> impl Iterator<Item = (&str, &TensorFile)> {
        let chosen = self.tensors.iter().filter(|(_, (_, quantized))| *quantized);
        chosen.map(move |(name, (file, _))| (name.as_str(), &self.files[*file]))
    }

    /// The names of the linear layers that are not quantized.
    fn left(&self) -> Vec<String> {
        let left = self.tensors.iter().filter(|(name, (file, quantized))| {
            !quantized && self.files[*file].shape(name).is_some_and(|shape| shape.len() == 2)
        });
        left.filter_map(|(name, _)| name.strip_suffix(".weight").map(String::from)).collect()
    }

    /// Reads the new weights as a model does and compares them with the originals: the signal-to-noise ratio of all quantized values
    /// in dB, and the matrix with the lowest one.
    fn read_back(&self, folder: &Path) -> Result<(f64, (String, f64))> {
        let written = Weights::open(folder, &Device::flex(), Some(FloatDType::F32))?;
        let (mut signal, mut noise, mut lowest) = (0.0, 0.0, (String::new(), f64::INFINITY));
        for (name, file) in self.quantized() {
            let data = file.read_f32(name)?;
            let values = data.as_slice::<f32>().expect("it was read as f32");
            if !values.iter().all(|value| value.is_finite()) {
                return Err(
                    Error::tensor(file.path(), name, "has values that are not finite").hint("nothing was written")
                );
            }
            let dims = Layer::new(file, name).dims;
            let Matrix::Packed(packed) = written.matrix(name, dims) else {
                // Reports why it cannot be read.
                written.finish()?;
                return Err(Error::tensor(folder, name, "is not quantized after reading the file back"));
            };
            let found = packed.to_f32();
            let square = |value: f32| f64::from(value) * f64::from(value);
            let own = values.iter().map(|&value| square(value)).sum::<f64>();
            let apart = values.iter().zip(&found).map(|(value, found)| square(value - found)).sum::<f64>();
            let ratio = decibels(own, apart);
            if ratio < lowest.1 {
                lowest = (name.into(), ratio);
            }
            (signal, noise) = (signal + own, noise + apart);
        }
        Ok((decibels(signal, noise), lowest))
    }
}

/// The signal-to-noise ratio in dB; infinite for zero noise.
fn decibels(signal: f64, noise: f64) -> f64 {
    if noise == 0.0 { f64::INFINITY } else { 10.0 * (signal / noise).log10() }
}

/// The `quantization_config` of `config.json`, by which bitsandbytes and transformers read the folder.
fn quantization_config(to: QuantizedTo, left: &[String]) -> Value {
    if to == QuantizedTo::Fp8 {
        return json!({
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [SQUARE, SQUARE],
            "modules_to_not_convert": left,
        });
    }
    let four = to == QuantizedTo::Nf4;
    // This name would also match a layer of FLUX.1's single blocks.
    let left: Vec<_> = left.iter().filter(|name| format!("{name}.weight") != UNNAMEABLE).collect();
    json!({
        "quant_method": "bitsandbytes",
        "_load_in_4bit": four,
        "_load_in_8bit": !four,
        "load_in_4bit": four,
        "load_in_8bit": !four,
        "bnb_4bit_compute_dtype": if four { "bfloat16" } else { "float32" },
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": if four { "nf4" } else { "fp4" },
        "bnb_4bit_use_double_quant": four,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": left,
        "llm_int8_threshold": 6.0,
    })
}

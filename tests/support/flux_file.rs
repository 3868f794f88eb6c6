//! FLUX transformers with random weights in single files under their original names, quantized or not, and as folders with the
//! dequantized weights.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, TensorData};
use kiln::{
    lending::Residence,
    models::flux::{FluxConfig, FluxTransformer},
    quantization::{Absmax, Code, FourBit, FourBitKind, Ggml, Packed, absmax, quantize_nf4, to_e4m3},
    rng::{Purpose, Seed},
    weights::{Weights, write_tensors},
};
use serde_json::{Value, json};

use crate::support::program::{MODEL, copy};

/// One tensor to write.
#[derive(Clone)]
pub struct Raw {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Raw {
    pub fn new(name: impl Into<String>, dtype: &'static str, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into(), bytes }
    }

    pub fn floats(name: impl Into<String>, shape: &[usize], values: &[f32]) -> Self {
        Self::new(name, "F32", shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

/// Writes a safetensors file of any dtypes.
pub fn write_safetensors(path: &Path, tensors: &[Raw]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for Raw { name, dtype, shape, bytes } in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }));
        data.extend(bytes);
    }
    let header = serde_json::to_string(&header).unwrap();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    fs::write(path, bytes).unwrap();
}

/// Writes a GGUF file, version 3.
pub fn write_gguf(path: &Path, architecture: &str, tensors: &[Raw]) {
    const NUMBERS: [(&str, u32); 8] =
        [("F32", 0), ("F16", 1), ("Q4_0", 2), ("Q8_0", 8), ("Q4_K", 12), ("Q5_K", 13), ("Q6_K", 14), ("BF16", 30)];
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(1u64.to_le_bytes());
    out.extend([text("general.architecture"), 8u32.to_le_bytes().to_vec(), text(architecture)].concat());
    let mut offset = 0u64;
    for Raw { name, dtype, shape, bytes } in tensors {
        out.extend(text(name));
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&size| out.extend((size as u64).to_le_bytes()));
        out.extend(NUMBERS.iter().find(|(name, _)| name == dtype).unwrap().1.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += bytes.len().next_multiple_of(32) as u64;
    }
    out.resize(out.len().next_multiple_of(32), 0);
    for Raw { bytes, .. } in tensors {
        out.extend(bytes);
        out.resize(out.len().next_multiple_of(32), 0);
    }
    fs::write(path, out).unwrap();
}

fn normal(name: &str, count: usize) -> Vec<f32> {
    Seed(11).named(Purpose::Weights, name).normal(count)
}

/// ggml blocks with ordinary scales; all other bytes may be arbitrary.
fn blocks(kind: Ggml, name: &str, values: usize) -> Vec<u8> {
    let count = values / kind.values();
    let bytes = normal(name, count * kind.bytes()).into_iter().map(|value| (value * 1e4) as i64 as u8);
    let mut bytes: Vec<u8> = bytes.collect();
    let scales: &[(usize, f32)] = match kind {
        Ggml::Q4_0 => &[(0, 1e-2)],
        Ggml::Q8_0 => &[(0, 6e-4)],
        Ggml::Q4K => &[(0, 2e-4), (2, 1.5e-3)],
        Ggml::Q5K => &[(0, 1e-4), (2, 1.5e-3)],
        Ggml::Q6K => &[(208, 3e-5)],
    };
    for (number, block) in bytes.chunks_exact_mut(kind.bytes()).enumerate() {
        for &(at, scale) in scales {
            let scale = half::f16::from_f32(scale * (1.0 + (number % 5) as f32 / 10.0));
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    bytes
}

/// How the matrices of a file are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stored {
    Ggml(Ggml),
    Dense(&'static str),
    /// With one scale under this name, or without any.
    Fp8(Option<&'static str>),
    /// A scale for each row.
    Fp8Rows,
    Nf4,
}

/// A transformer in a file, and the same as a model folder.
pub struct FluxFile {
    /// The contents of the file, under the original names.
    pub raw: Vec<Raw>,
    /// The dequantized values, under diffusers' names.
    pub dense: BTreeMap<String, TensorData>,
    /// The model folder that has the rest: its transformer has a configuration and no weights.
    pub rest: PathBuf,
}

/// Which tensors of diffusers each of the original ones is made of, for two double and three single blocks.
fn original() -> BTreeMap<String, Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/single_file/flux.json");
    let map: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    serde_json::from_value(map["parts"]["transformer"].clone()).unwrap()
}

impl FluxFile {
    /// As wide as a block of 256 values.
    pub fn new(stored: Stored, folder: &Path) -> Self {
        let rest = folder.join("rest");
        if !rest.exists() {
            copy(MODEL, &rest);
            fs::remove_file(rest.join("transformer/diffusion_pytorch_model.safetensors")).unwrap();
            let path = rest.join("transformer/config.json");
            let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            for (key, value) in
                [("num_layers", 2), ("num_single_layers", 3), ("num_attention_heads", 4), ("attention_head_dim", 64)]
            {
                config[key] = json!(value);
            }
            config["axes_dims_rope"] = json!([16, 24, 24]);
            fs::write(path, config.to_string()).unwrap();
        }
        let config = FluxConfig::open(rest.join("transformer")).unwrap();
        let shapes = Weights::untrained(Seed(0), |_| false, &Device::flex());
        FluxTransformer::load(&shapes.unread(), config, Residence::Single);
        let shapes = shapes.taken();
        let mut made = Self { raw: Vec::new(), dense: BTreeMap::new(), rest };
        for (name, parts) in original() {
            let mut shape = shapes[&parts[0]].clone();
            shape[0] = parts.iter().map(|part| shapes[part][0]).sum();
            let mut values = made.store(stored, &name, &shape);
            if name.contains("final_layer.adaLN_modulation") {
                let half = values.len() / 2;
                values.rotate_left(half);
            }
            let columns: usize = shape[1..].iter().product();
            let mut at = 0;
            for part in parts {
                let own = shapes[&part].clone();
                let end = at + own[0] * columns;
                made.dense.insert(part, TensorData::new(values[at..end].to_vec(), own));
                at = end;
            }
        }
        made
    }

    /// Stores one tensor; returns its dequantized values.
    fn store(&mut self, stored: Stored, name: &str, shape: &[usize]) -> Vec<f32> {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = match shape {
            [_, columns] => normal(name, count).into_iter().map(|value| value / (*columns as f32).sqrt()).collect(),
            _ if name.ends_with(".scale") => normal(name, count).into_iter().map(|value| 1.0 + value / 10.0).collect(),
            _ => normal(name, count).into_iter().map(|value| value / 10.0).collect(),
        };
        let [rows, columns] = *shape else {
            self.raw.push(Raw::floats(name, shape, &values));
            return values;
        };
        let (dims, layer) = ([rows, columns], name.strip_suffix(".weight").unwrap());
        match stored {
            Stored::Ggml(kind) if columns.is_multiple_of(kind.values()) => {
                let bytes = blocks(kind, name, count);
                self.raw.push(Raw::new(name, kind.name(), shape, bytes.clone()));
                Packed { dims, code: Code::Ggml(kind, bytes.into()) }.to_f32()
            }
            // As such files store tensors that do not divide into blocks.
            Stored::Ggml(_) => self.half("BF16", name, shape, &values),
            Stored::Dense("F32") => {
                self.raw.push(Raw::floats(name, shape, &values));
                values
            }
            Stored::Dense(dtype) => self.half(dtype, name, shape, &values),
            Stored::Fp8(_) | Stored::Fp8Rows => {
                let largest = |values: &[f32]| values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
                let scales: Vec<f32> = match stored {
                    Stored::Fp8(None) => vec![1.0],
                    Stored::Fp8(_) => vec![largest(&values) / 448.0],
                    _ => values.chunks(columns).map(|row| largest(row) / 448.0).collect(),
                };
                let scale = |at: usize| scales[if scales.len() == 1 { 0 } else { at / columns }];
                let bytes: Vec<u8> = (0..count).map(|at| to_e4m3(values[at] / scale(at))).collect();
                self.raw.push(Raw::new(name, "F8_E4M3", shape, bytes.clone()));
                match stored {
                    Stored::Fp8(None) => {}
                    Stored::Fp8(Some(side)) => self.raw.push(Raw::floats(format!("{layer}.{side}"), &[], &scales)),
                    _ => self.raw.push(Raw::floats(format!("{layer}.scale_weight"), &[rows, 1], &scales)),
                }
                (0..count).map(|at| kiln::quantization::E4M3[usize::from(bytes[at])] * scale(at)).collect()
            }
            Stored::Nf4 => {
                let scales = absmax(&values);
                let (bytes, levels) = (quantize_nf4(&values, &scales), FourBitKind::nf4_levels());
                self.raw.push(Raw::new(name, "U8", &[bytes.len(), 1], bytes.clone()));
                self.raw.push(Raw::floats(format!("{name}.absmax"), &[scales.len()], &scales));
                self.raw.push(Raw::floats(format!("{name}.quant_map"), &[16], &levels));
                let state = json!({ "quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": shape });
                let state = state.to_string().into_bytes();
                let side = format!("{name}.quant_state.bitsandbytes__nf4");
                self.raw.push(Raw::new(side, "U8", &[state.len()], state));
                let kind = FourBitKind::Nf4;
                let absmax = Absmax::Plain(scales.into());
                let code = FourBit { kind, values: bytes.into(), levels, block: 64, absmax };
                Packed { dims, code: Code::FourBit(code) }.to_f32()
            }
        }
    }

    fn half(&mut self, dtype: &'static str, name: &str, shape: &[usize], values: &[f32]) -> Vec<f32> {
        let (bytes, values): (Vec<_>, Vec<_>) = match dtype {
            "F16" => {
                let all = values.iter().map(|value| half::f16::from_f32(*value));
                all.map(|value| (value.to_le_bytes(), value.to_f32())).unzip()
            }
            _ => {
                let all = values.iter().map(|value| half::bf16::from_f32(*value));
                all.map(|value| (value.to_le_bytes(), value.to_f32())).unzip()
            }
        };
        self.raw.push(Raw::new(name, dtype, shape, bytes.concat()));
        values
    }

    /// The model folder with dense weights, called `name`, beside that of the rest.
    pub fn dense_folder(&self, name: &str) -> PathBuf {
        let folder = self.rest.with_file_name(name);
        copy(&self.rest, &folder);
        let path = folder.join("transformer/diffusion_pytorch_model.safetensors");
        write_tensors(&path, &self.dense, &BTreeMap::new()).unwrap();
        folder
    }

    /// The model that the file `path` makes with the rest.
    pub fn model(&self, path: &Path) -> String {
        format!("{}@{}", path.display(), self.rest.display())
    }
}

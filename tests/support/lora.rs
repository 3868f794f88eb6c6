//! LoRA files beside the goldens, and a model to attach them to.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor};
use kiln::{
    lora::{Format, Lora},
    nn::{LayerShape, Linear, Linears, Parameter, Parameters, Weight},
    weights::TensorFile,
};

use crate::support::{Golden, goldens};

pub const FORMATS: [Format; 3] = [Format::Diffusers, Format::Kohya, Format::ComfyUi];

/// Every linear layer of a checkpoint, and nothing else.
pub struct Layers(pub Vec<(String, Linear)>);

impl Linears for Layers {
    fn linears(&mut self, _path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        self.0.iter_mut().for_each(|(name, layer)| visit(name, layer));
    }
}

pub fn transformer(golden: &Golden) -> Layers {
    layers(&golden.model.join("transformer"))
}

/// The linear layers of a component's folder; for a UNet including `proj_in` and `proj_out`, stored as 1×1 convolutions.
pub fn layers(folder: &Path) -> Layers {
    let mut layers = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let file = TensorFile::open(path).unwrap();
        for name in file.names() {
            let Some(layer) = name.strip_suffix(".weight") else { continue };
            let pointwise = layer.ends_with(".proj_in") || layer.ends_with(".proj_out") && folder.ends_with("unet");
            if pointwise || file.shape(&name).unwrap().len() == 2 {
                let mut data = file.read(&name).unwrap();
                data.shape = [data.shape[0], data.shape[1]].into();
                let dtype = data.dtype;
                let weight = Tensor::from_data(data, (&Device::flex(), dtype));
                let linear = Linear::new(Weight::new(weight));
                layers.push((layer.to_string(), if pointwise { linear.pointwise() } else { linear }));
            }
        }
    }
    Layers(layers)
}

impl Layers {
    /// The linear layers of a network, for LoRA.
    pub fn shapes(&mut self) -> Vec<LayerShape> {
        LayerShape::all("", self)
    }

    /// The matrix of each layer.
    pub fn weights(&mut self) -> Vec<(String, Tensor<2>)> {
        let mut all = Vec::new();
        for (name, layer) in &mut self.0 {
            layer.parameters("", &mut |_, parameter| {
                if let Parameter::Matrix(weight) = parameter {
                    all.push((name.clone(), weight.clone()));
                }
            });
        }
        all
    }
}

/// The folders with LoRA files of a golden.
pub fn folders(golden: &Golden) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(&golden.folder).unwrap().flatten().map(|entry| entry.path());
    let mut found: Vec<_> = entries.filter(|path| path.join("kohya.safetensors").is_file()).collect();
    found.sort();
    assert!(found.len() > 2, "{} has few LoRA files", golden.folder.display());
    found
}

pub fn diffusers_file(folder: &Path) -> PathBuf {
    folder.join("pytorch_lora_weights.safetensors")
}

/// Every (golden, LoRA folder).
pub fn each(mut check: impl FnMut(&Golden, &Path)) {
    for golden in goldens("FluxPipeline") {
        for folder in folders(&golden) {
            check(&golden, &folder);
        }
    }
}

pub fn deltas(lora: &Lora) -> BTreeMap<String, Tensor<2>> {
    lora.layers.iter().map(|layer| (layer.name.clone(), layer.delta())).collect()
}

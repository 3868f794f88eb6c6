//! Model folders with quantized weights, and the same with dequantized weights.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, FloatDType, TensorData};
use kiln::weights::{Matrix, QuantizeOptions, QuantizedTo, TensorFile, Weights, quantize_folder, write_tensors};

use crate::support::program::copy;

pub const ALL: [QuantizedTo; 3] = [QuantizedTo::Nf4, QuantizedTo::Int8, QuantizedTo::Fp8];

/// The weight files of a folder.
pub fn safetensors(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|kind| kind == "safetensors")).collect()
}

/// The model with `part` quantized, in a new folder in `folder`.
pub fn quantized(model: &Path, part: &str, to: QuantizedTo, folder: &Path) -> PathBuf {
    let output = folder.join(format!("{}-{part}-{to:?}", model.file_name().unwrap().to_string_lossy()));
    quantize_folder(model, &[part], &output, QuantizeOptions { to, for_diffusers: false }).unwrap();
    output
}

/// The quantized model with dense f32 weights of the same values, in a new folder beside it. `model` is what it was made from.
pub fn dense(model: &Path, part: &str, quantized: &Path) -> PathBuf {
    let output = quantized.with_extension("dense");
    copy(model, &output);
    safetensors(&output.join(part)).iter().for_each(|path| fs::remove_file(path).unwrap());
    let index = output.join(part).join("diffusion_pytorch_model.safetensors.index.json");
    _ = fs::remove_file(index); // of shards, if there were any
    let weights = Weights::open(quantized.join(part), &Device::flex(), Some(FloatDType::F32)).unwrap();
    let (mut tensors, mut packed) = (BTreeMap::new(), 0);
    for path in safetensors(&model.join(part)) {
        let file = TensorFile::open(path).unwrap();
        for name in file.names() {
            let data = match *file.shape(&name).unwrap() {
                [rows, columns] => match weights.matrix(&name, [rows, columns]) {
                    Matrix::Dense(dense) => dense.into_data(),
                    Matrix::Packed(matrix) => {
                        packed += 1;
                        TensorData::new(matrix.to_f32(), [rows, columns])
                    }
                },
                _ => file.read_f32(&name).unwrap(),
            };
            tensors.insert(name, data);
        }
    }
    assert!(packed > 5, "{packed} matrices are quantized");
    write_tensors(output.join(part).join("diffusion_pytorch_model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    output
}

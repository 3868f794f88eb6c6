//! Goldens: inputs and outputs of diffusers, written by `golden.py` beside the tiny models they were made with.
#![allow(dead_code)] // each test crate uses its own part

pub mod program;
pub mod sampling;

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor, TensorData};
use kiln::{
    nn::{Parameter, Parameters},
    weights::TensorFile,
};
use serde_json::Value;

/// One pair of a model folder and what diffusers computed with it.
pub struct Golden {
    /// The model, in the layout of diffusers.
    pub model: PathBuf,
    /// The folder with `golden.safetensors`, `golden.json` and LoRA files.
    pub folder: PathBuf,
    tensors: TensorFile,
    info: Value,
}

/// All golden pairs of a pipeline class (`FluxPipeline`), from `KILN_FIXTURES` or from `tests/fixtures`.
pub fn goldens(pipeline: &str) -> Vec<Golden> {
    let root = std::env::var_os("KILN_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"), PathBuf::from);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&root).expect("the fixtures folder can be read").flatten() {
        let folder = entry.path();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let Some(model) = name.strip_suffix("_golden") else { continue };
        let text = std::fs::read_to_string(folder.join("golden.json")).unwrap();
        // Python writes numbers that JSON does not have.
        let text = ["-Infinity", "Infinity", "NaN"].iter().fold(text, |text, word| text.replace(word, "null"));
        let info: Value = serde_json::from_str(&text).unwrap();
        if info["pipeline"] == pipeline {
            let tensors = TensorFile::open(folder.join("golden.safetensors")).unwrap();
            found.push(Golden { model: root.join(model), folder, tensors, info });
        }
    }
    found.sort_by(|a, b| a.folder.cmp(&b.folder));
    assert!(!found.is_empty(), "no {pipeline} golden in {}", root.display());
    found
}

/// Matrices by name, to be trained.
pub struct Named(pub std::collections::BTreeMap<String, Tensor<2>>);

impl Parameters for Named {
    fn parameters(&mut self, _: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        self.0.iter_mut().for_each(|(name, tensor)| visit(name, Parameter::Matrix(tensor)));
    }
}

impl Golden {
    /// What `golden.json` says about a section: its arguments and notes.
    pub fn section(&self, name: &str) -> &Value {
        &self.info["sections"][name]
    }

    /// The names of the sections that start with `prefix`.
    pub fn sections(&self, prefix: &str) -> Vec<String> {
        let all = self.info["sections"].as_object().unwrap();
        all.keys().filter(|k| k.starts_with(prefix)).cloned().collect()
    }

    /// The names of the tensors that start with `prefix`.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        self.tensors.names().into_iter().filter(|k| k.starts_with(prefix)).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.has(name)
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.tensors.shape(name).unwrap_or_else(|| panic!("no golden `{name}`")).to_vec()
    }

    /// A float tensor, on the CPU.
    pub fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        Tensor::from_data(self.tensors.read_f32(name).unwrap(), &Device::flex())
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.tensors.read_f32(name).unwrap().into_vec().unwrap()
    }

    pub fn ids(&self, name: &str) -> Vec<i64> {
        self.tensors.read(name).unwrap().into_vec().unwrap()
    }

    /// The largest difference this golden allows: twenty times the noise of float32 in diffusers itself, or a
    /// ten-thousandth of the values' spread where that noise does not show: `noise` compares two runs that share their
    /// float32 sinusoids, whose last bits depend on the machine's `exp` and are multiplied by a thousand.
    pub fn tolerance(&self, name: &str) -> f64 {
        let info = &self.info["tensors"][name];
        let number = |key: &str| info[key].as_f64().unwrap();
        (20.0 * number("noise")).max(1e-4 * number("std"))
    }

    /// Asserts that `got` has the golden's shape and, within its noise, its values.
    #[track_caller]
    pub fn check<const D: usize>(&self, name: &str, got: Tensor<D>) {
        assert_eq!(got.dims().to_vec(), self.shape(name), "{}: shape of {name}", self.folder.display());
        self.check_data(name, got.into_data());
    }

    /// [`check`](Self::check) for values in whatever shape.
    #[track_caller]
    pub fn check_data(&self, name: &str, got: TensorData) {
        let got: Vec<f32> = got.convert_dtype(DType::F32).into_vec().unwrap();
        let want = self.floats(name);
        assert_eq!(got.len(), want.len(), "{}: size of {name}", self.folder.display());
        let pairs = got.iter().zip(&want);
        let difference = pairs
            .map(|(g, w)| f64::from((g - w).abs()))
            .fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst });
        let tolerance = self.tolerance(name);
        assert!(
            difference <= tolerance,
            "{}: {name} differs by {difference:.3e}, allowed are {tolerance:.3e}",
            self.folder.display()
        );
    }

    /// Asserts that `got` has the golden's shape and differs from it by no more than `share` of its size (root mean
    /// squares): for models run in a lower precision than the golden's.
    #[track_caller]
    pub fn check_roughly<const D: usize>(&self, name: &str, got: Tensor<D>, share: f64) {
        assert_eq!(got.dims().to_vec(), self.shape(name), "{}: shape of {name}", self.folder.display());
        let got: Vec<f32> = got.into_data().convert_dtype(DType::F32).into_vec().unwrap();
        let want = self.floats(name);
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
        let difference = square(&mut got.iter().zip(&want).map(|(g, w)| g - w)) / square(&mut want.iter().copied());
        assert!(
            difference.sqrt() <= share,
            "{}: {name} differs by {:.3} of its size, allowed are {share}",
            self.folder.display(),
            difference.sqrt()
        );
    }
}

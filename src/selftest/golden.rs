//! Goldens: inputs and outputs of diffusers, beside the tiny models they were made with.
//!
//! `tests/parity/golden.py` writes them, with the noise of float32 in diffusers itself; `tests/parity/precision.py` adds the errors of
//! diffusers in bf16 and in TF32.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Device, Element, Tensor, TensorData};
use serde_json::Value;

use crate::{
    error::{Error, Result},
    weights::{TensorFile, read_json},
};

/// Relative errors of diffusers by tensor: in bf16, if measured, and in TF32.
type Precisions = BTreeMap<String, (Option<f64>, f64)>;

/// A model folder with the outputs of diffusers for it.
pub struct Golden {
    /// The model, in the layout of diffusers.
    pub model: PathBuf,
    /// The folder with `golden.safetensors`, `golden.json` and LoRA files.
    pub folder: PathBuf,
    /// The device of its tensors.
    pub device: Device,
    tensors: TensorFile,
    info: Value,
    precisions: Precisions,
}

/// The error of a computed tensor against a golden.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// The difference of two values that is the largest share of its tolerance.
    pub largest: f64,
    /// The tolerance of that value in f32.
    pub allowed: f64,
    /// The root mean square of the difference over that of the golden; if the golden is zero, the root mean square itself.
    pub relative: f64,
}

impl Golden {
    /// All goldens of a pipeline class (`FluxPipeline`) in a folder of pairs `NAME/` and `NAME_golden/`, in the order of their
    /// names. Their tensors go to `device`.
    ///
    /// # Errors
    /// There is none, or one has a missing or broken file.
    pub fn all(root: &Path, class: &str, device: &Device) -> Result<Vec<Self>> {
        let hint =
            "the goldens lie in `tests/fixtures` of kiln's source: run kiln there, or give that folder with `goldens`";
        let entries = std::fs::read_dir(root).map_err(|e| Error::file(root, e.to_string()).hint(hint))?;
        let path = root.join("precision.json");
        // Only precisions below f32 need it.
        let mut precisions: BTreeMap<String, Precisions> =
            if path.exists() { read_json(path)? } else { BTreeMap::new() };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let folder = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(model) = name.strip_suffix("_golden") else { continue };
            let path = folder.join("golden.json");
            let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
            // Python writes numbers that JSON does not have.
            let text = ["-Infinity", "Infinity", "NaN"].iter().fold(text, |text, word| text.replace(word, "null"));
            let info: Value = serde_json::from_str(&text).map_err(|e| Error::file(&path, e.to_string()))?;
            if info["pipeline"] == class {
                found.push(Self {
                    model: root.join(model),
                    tensors: TensorFile::open(folder.join("golden.safetensors"))?,
                    device: device.clone(),
                    precisions: precisions.remove(model).unwrap_or_default(),
                    folder,
                    info,
                });
            }
        }
        found.sort_by(|a, b| a.folder.cmp(&b.folder));
        match found.is_empty() {
            true => Err(Error::file(root, format!("holds no goldens of {class}")).hint(hint)),
            false => Ok(found),
        }
    }

    /// The name of the model's folder.
    pub fn name(&self) -> String {
        self.model.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The arguments and notes of a section in `golden.json`.
    pub fn section(&self, name: &str) -> &Value {
        &self.info["sections"][name]
    }

    /// A number of a section.
    ///
    /// # Errors
    /// It is missing or not a number.
    pub fn number(&self, section: &str, key: &str) -> Result<f64> {
        self.section(section)[key].as_f64().ok_or_else(|| {
            Error::file(self.folder.join("golden.json"), format!("`{key}` of `{section}` is missing or not a number"))
        })
    }

    /// The names of the sections that start with `prefix`.
    pub fn sections(&self, prefix: &str) -> Vec<String> {
        let all = self.info["sections"].as_object().into_iter().flatten();
        all.map(|(name, _)| name.clone()).filter(|name| name.starts_with(prefix)).collect()
    }

    /// The names of the tensors that start with `prefix`.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        self.tensors.names().into_iter().filter(|name| name.starts_with(prefix)).collect()
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.has(name)
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// It is missing.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        self.tensors.shape(name).map(<[usize]>::to_vec).ok_or_else(|| self.wrong(name, "is missing"))
    }

    /// A tensor in f32.
    ///
    /// # Errors
    /// It is missing or has another number of axes.
    pub fn tensor<const D: usize>(&self, name: &str) -> Result<Tensor<D>> {
        if self.shape(name)?.len() != D {
            return Err(self.wrong(name, &format!("does not have {D} axes")));
        }
        Ok(Tensor::from_data(self.tensors.read_f32(name)?, (&self.device, DType::F32)))
    }

    /// The values of a tensor.
    ///
    /// # Errors
    /// It is missing.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>> {
        self.values(name, self.tensors.read_f32(name)?)
    }

    /// The integers of a tensor.
    ///
    /// # Errors
    /// It is missing, or of another type.
    pub fn ids(&self, name: &str) -> Result<Vec<i64>> {
        self.values(name, self.tensors.read(name)?)
    }

    fn values<E: Element>(&self, name: &str, data: TensorData) -> Result<Vec<E>> {
        data.into_vec().map_err(|_| self.wrong(name, &format!("is not of type {:?}", E::dtype())))
    }

    pub(super) fn wrong(&self, name: &str, problem: &str) -> Error {
        Error::file(self.tensors.path(), format!("tensor `{name}` {problem}"))
    }

    /// The largest difference this golden allows in f32: twenty times the noise of float32 in diffusers itself, or a
    /// ten-thousandth of the values' spread where that noise does not show: `noise` compares two runs that share their
    /// float32 sinusoids, whose last bits depend on the machine's `exp` and are multiplied by a thousand.
    ///
    /// # Errors
    /// `golden.json` does not describe the tensor.
    pub fn tolerance(&self, name: &str) -> Result<f64> {
        let info = &self.info["tensors"][name];
        match (info["noise"].as_f64(), info["std"].as_f64()) {
            (Some(noise), Some(spread)) => Ok((20.0 * noise).max(1e-4 * spread)),
            _ => Err(Error::file(self.folder.join("golden.json"), format!("does not describe tensor `{name}`"))),
        }
    }

    /// The tolerance in f32 for each value of an adapter after five steps of Adam: the golden's own tolerance, plus the effect of the noise
    /// of the gradients.
    ///
    /// Adam divides a gradient by its own size: noise `n` in a gradient `g` moves a step by up to `lr·n / (|g| + eps)`, in
    /// diffusers too, and where `g` is no larger than its noise the step is anything from `-lr` to `lr`.
    fn trained_tolerances(&self, section: &str, name: &str, count: usize) -> Result<Vec<f64>> {
        let mut shares = vec![0.0f64; count];
        for step in [1, 5] {
            let key = format!("{section}.grad{step}.{name}");
            let (noise, epsilon) = (self.tolerance(&key)?, self.number(section, "eps")?);
            for (share, gradient) in shares.iter_mut().zip(self.floats(&key)?) {
                // B starts at zero, so the first gradient of A is exactly zero and moves nothing.
                if gradient != 0.0 {
                    *share = share.max(noise / (f64::from(gradient.abs()) + epsilon)).min(2.0);
                }
            }
        }
        let (own, lr) = (self.tolerance(&format!("{section}.final.{name}"))?, self.number(section, "lr")?);
        Ok(shares.into_iter().map(|share| own + 5.0 * lr * share).collect())
    }

    /// Compares a computed tensor of any dtype. A row of values matches any shape.
    ///
    /// # Errors
    /// There is no such golden, or it has another shape.
    pub fn compare(&self, name: &str, got: TensorData) -> Result<Difference> {
        let (shape, want) = (self.shape(name)?, self.floats(name)?);
        if got.num_elements() != want.len() || (got.shape.len() > 1 && got.shape.to_vec() != shape) {
            return Err(self.wrong(name, &format!("has shape {shape:?}, but {:?} was computed", got.shape.to_vec())));
        }
        let got: Vec<f32> = self.values(name, got.convert_dtype(DType::F32))?;
        let allowed = match name.split_once(".final.") {
            Some((section, of)) if self.has(&format!("{section}.grad5.{of}")) => {
                self.trained_tolerances(section, of, want.len())?
            }
            _ => vec![self.tolerance(name)?; want.len()],
        };
        let differences = got.iter().zip(&want).map(|(got, want)| f64::from((got - want).abs()));
        let mut worst = (0.0, allowed.first().copied().unwrap_or(0.0));
        for (difference, allowed) in differences.zip(allowed) {
            // NaN is the largest difference of all.
            if share((difference, allowed)) > share(worst) {
                worst = (difference, allowed);
            }
        }
        Ok(Difference { largest: worst.0, allowed: worst.1, relative: relative(&got, &want) })
    }

    /// The relative errors of diffusers for a tensor: in bf16, if measured, and in TF32. For gradients and trained parameters, the largest
    /// of their kind: see `precision.py`.
    ///
    /// # Errors
    /// They were not measured.
    pub fn precision(&self, name: &str) -> Result<(Option<f64>, f64)> {
        let trained = [".grad1.", ".grad5.", ".final."].iter().find_map(|kind| Some(name.find(kind)? + kind.len() - 1));
        self.precisions.get(&name[..trained.unwrap_or(name.len())]).copied().ok_or_else(|| {
            let folder = self.folder.parent().unwrap_or(&self.folder);
            Error::file(folder.join("precision.json"), format!("lacks `{name}` of {}", self.name()))
                .hint("`python tests/parity/precision.py` measures what diffusers does in bf16 and TF32")
        })
    }
}

/// The error as a share of its tolerance.
pub(super) fn share((error, bound): (f64, f64)) -> f64 {
    match error {
        0.0 => 0.0,
        error if error.is_nan() => f64::INFINITY,
        error => error / bound,
    }
}

/// The root mean square of the difference over that of `want`; where `want` is zero, the root mean square itself. Not a number
/// if they are not equally many.
pub(super) fn relative(got: &[f32], want: &[f32]) -> f64 {
    if got.len() != want.len() {
        return f64::NAN;
    }
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = squares(&mut got.iter().zip(want).map(|(got, want)| f64::from(*got) - f64::from(*want)));
    let size = squares(&mut want.iter().map(|&want| f64::from(want)));
    (difference / if size > 0.0 { size } else { want.len().max(1) as f64 }).sqrt()
}

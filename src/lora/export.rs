//! Writing an adapter file and verifying it by reading it back.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{Format, Lora, LoraLayer, matrix::Matrix, metadata::tensor_hash, write::model_metadata};
use crate::{
    disk::replace,
    error::{Error, Result},
    rng::{Purpose, Seed},
    weights::FileDtype,
};

/// The result of an export, with the difference after reading it back.
#[derive(Clone, Debug, Serialize)]
pub struct ExportReport {
    /// The file.
    pub path: PathBuf,
    /// Its layout.
    pub format: Format,
    /// The number of layers.
    pub layers: usize,
    /// The number of parameters, without padding.
    pub parameters: usize,
    /// Its size in bytes.
    pub bytes: u64,
    /// The largest relative difference that any layer's change has after reading the file back; 0 is exact.
    pub difference: f64,
    /// Lines about the programs that load it.
    pub notes: Vec<String>,
}

impl fmt::Display for ExportReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { path, format, layers, parameters, bytes, difference, notes } = self;
        write!(
            f,
            "{}: {format}, {layers} layers, {parameters} parameters, {:.1} MB; ",
            path.display(),
            *bytes as f64 / 1e6
        )?;
        write!(f, "read back with relative difference {difference:.1e}")?;
        notes.iter().try_for_each(|note| write!(f, "\nnote: {note}"))
    }
}

/// Writes `lora` to `path` (see [`Lora::write`]), reads the file back and compares the layers and the change of each with `lora`.
///
/// # Errors
/// As [`Lora::write`]; or the file differs by more than the rounding of `dtype`.
pub fn export(lora: &Lora, path: impl AsRef<Path>, format: Format, dtype: FileDtype) -> Result<ExportReport> {
    export_by(lora, path.as_ref(), format, dtype, |partial| {
        lora.write(partial, format, dtype)?;
        let hash = tensor_hash(partial)?;
        let mut hashed = lora.clone();
        hashed.metadata.insert("modelspec.hash_sha256".into(), format!("0x{hash}"));
        hashed.metadata.insert("sshs_model_hash".into(), hash);
        hashed.write(partial, format, dtype)
    })
}

/// The same without metadata: only the tensors.
///
/// # Errors
/// As [`export`].
pub fn export_bare(lora: &Lora, path: impl AsRef<Path>, format: Format, dtype: FileDtype) -> Result<ExportReport> {
    let none = model_metadata().into_iter().map(|(key, value)| (key.to_string(), value)).collect();
    export_by(lora, path.as_ref(), format, dtype, |partial| lora.write_with(partial, format, dtype, &none))
}

fn export_by(
    lora: &Lora,
    path: &Path,
    format: Format,
    dtype: FileDtype,
    write: impl Fn(&Path) -> Result<()>,
) -> Result<ExportReport> {
    let mut difference = 0.0;
    replace(path, |partial| {
        write(partial).map_err(|e| e.at(path))?;
        let compared = compare(lora, &Lora::read(partial).map_err(|e| e.at(path))?, dtype);
        difference = compared
            .map_err(|problems| Error::many(path, problems).hint("nothing was written; `dtype f32` loses the least"))?;
        Ok(())
    })?;
    let bytes = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    Ok(ExportReport {
        path: path.into(),
        format,
        layers: lora.layers.len(),
        parameters: lora.parameters(),
        bytes,
        difference,
        notes: lora.compatibility(format),
    })
}

/// The largest relative difference between the changes of two adapters, or the differences beyond the rounding of `dtype`.
fn compare(wanted: &Lora, found: &Lora, dtype: FileDtype) -> std::result::Result<f64, Vec<String>> {
    // Eight times the error of one product of two rounded factors: sums over the rank may cancel in part. In f32 only a scale that
    // is not a power of two is rounded.
    let allowed = match dtype {
        FileDtype::Bf16 => 2f64.powi(-6),
        FileDtype::F16 => 2f64.powi(-9),
        FileDtype::F32 => 1e-6,
    };
    let mut others: BTreeMap<_, _> = found.layers.iter().map(|layer| (layer.name.as_str(), layer)).collect();
    let (mut largest, mut problems) = (0.0, Vec::new());
    for layer in &wanted.layers {
        let other = others.remove(layer.name.as_str());
        let difference = difference(layer, other);
        if difference <= allowed {
            largest = f64::max(largest, difference);
        } else if other.is_none() {
            problems.push(format!("`{}` is missing after reading the file back", layer.name));
        } else {
            problems.push(format!("`{}`: its change differs by {difference:.1e}, tolerance {allowed:.1e}", layer.name));
        }
    }
    problems.extend(others.keys().map(|name| format!("`{name}` is unexpected")));
    if problems.is_empty() { Ok(largest) } else { Err(problems) }
}

/// `‖(ΔW − ΔW')·X‖ / ‖ΔW·X‖` for a few random columns X, in f64: the full matrices ΔW are never built, and any difference between
/// them shows. A missing layer is a change of zero. NaN if undefined.
fn difference(wanted: &LoraLayer, found: Option<&LoraLayer>) -> f64 {
    const PROBES: usize = 4;
    let change = |layer: &LoraLayer| {
        let (a, b, scale) = (Matrix::from_tensor(&layer.a), Matrix::from_tensor(&layer.b), layer.scale());
        move |x: &[f64]| b.times(&a.times(x)).iter().map(|y| scale * y).collect::<Vec<_>>()
    };
    let inputs = wanted.a.dims()[1];
    let outputs = wanted.b.dims()[0];
    if found.is_some_and(|found| (found.a.dims()[1], found.b.dims()[0]) != (inputs, outputs)) {
        return f64::NAN;
    }
    let (one, other) = (change(wanted), found.map(change));
    let mut draw = Seed(0).named(Purpose::Noise, &wanted.name);
    let (mut apart, mut size) = (0.0, 0.0);
    for _ in 0..PROBES {
        let x: Vec<_> = draw.normal(inputs).into_iter().map(f64::from).collect();
        let y = one(&x);
        let z = other.as_ref().map_or_else(|| vec![0.0; outputs], |other| other(&x));
        size += y.iter().map(|y| y * y).sum::<f64>();
        apart += y.iter().zip(&z).map(|(y, z)| (y - z).powi(2)).sum::<f64>();
    }
    if apart == 0.0 { 0.0 } else { (apart / size).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::Denoiser;

    fn layer(name: &str, scale: f32) -> LoraLayer {
        let values = |count, seed| Seed(seed).named(Purpose::Init, name).normal(count);
        let b = values(12, 1).into_iter().map(|v| v * scale).collect();
        LoraLayer {
            name: name.into(),
            a: Matrix { rows: 2, columns: 8, values: values(16, 0) }.into_tensor(),
            b: Matrix { rows: 6, columns: 2, values: b }.into_tensor(),
            alpha: 2.0,
            pointwise: false,
        }
    }

    fn lora(layers: Vec<LoraLayer>) -> Lora {
        Lora::new(Denoiser::Transformer, layers)
    }

    #[test]
    fn a_change_that_differs_is_noticed() {
        let wanted = lora(vec![layer("x", 1.0), layer("y", 1.0)]);
        assert_eq!(compare(&wanted, &wanted, FileDtype::F32), Ok(0.0));
        let scaled = lora(vec![layer("x", 1.0), layer("y", 1.001)]);
        let problems = compare(&wanted, &scaled, FileDtype::F32).unwrap_err();
        assert!(problems.len() == 1 && problems[0].contains("`y`"), "{problems:?}");
        assert!(compare(&wanted, &scaled, FileDtype::Bf16).is_ok());
        let mut broken = wanted.clone();
        broken.layers[0].alpha = f64::NAN;
        assert!(compare(&wanted, &broken, FileDtype::Bf16).is_err());
    }

    #[test]
    fn missing_and_foreign_layers_are_noticed() {
        let both = lora(vec![layer("x", 1.0), layer("y", 1.0)]);
        let one = lora(vec![layer("x", 1.0)]);
        assert!(compare(&both, &one, FileDtype::F32).unwrap_err()[0].contains("`y` is missing"));
        assert!(compare(&one, &both, FileDtype::F32).unwrap_err()[0].contains("`y` is unexpected"));
        // A change of zero may be left out, as formats with fused layers do.
        let zero = lora(vec![layer("x", 1.0), layer("y", 0.0)]);
        assert_eq!(compare(&zero, &one, FileDtype::F32), Ok(0.0));
    }
}

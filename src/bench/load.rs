//! Loading weights from disk to the device.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Device};

use super::{Case, Run, SEED, shape};
use crate::{
    error::{Error, Result},
    lending::Residence,
    models::flux::FluxTransformer,
    weights::{TensorBytes, Weights, write_tensors},
};

/// Loads the FLUX transformer in the case's folder, in the dtype of the case. The system may have its files in memory.
///
/// # Errors
/// The case names no folder. Problems of the folder are errors of the first run.
pub fn prepare(case: &Case, device: &Device) -> Result<Run> {
    let folder = case.path.clone().ok_or_else(|| Error::setting("weights", "names no folder"))?;
    let (device, dtype) = (device.clone(), case.float());
    Ok(Box::new(move || {
        FluxTransformer::open(&folder, &device, Some(dtype)).map(drop)?;
        Ok(None)
    }))
}

/// A temporary folder, removed at the end.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Writes a FLUX transformer of the case's shape, with arbitrary values.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn write(case: &Case, device: &Device) -> Result<Self> {
        let folder = Self(std::env::temp_dir().join(format!("kiln-bench-{}", std::process::id())));
        std::fs::create_dir_all(&folder.0).map_err(|e| Error::io(&folder.0, e))?;
        let config = shape::flux(case);
        let text = serde_json::json!({
            "num_layers": config.num_layers,
            "num_single_layers": config.num_single_layers,
            "attention_head_dim": config.attention_head_dim,
            "num_attention_heads": config.num_attention_heads,
            "joint_attention_dim": config.joint_attention_dim,
            "pooled_projection_dim": config.pooled_projection_dim,
            "axes_dims_rope": config.axes_dims_rope,
        });
        let path = folder.0.join("config.json");
        std::fs::write(&path, text.to_string()).map_err(|e| Error::io(&path, e))?;
        let dtype = case.float().into();
        let numbers = names(case, device).into_iter().map(|(name, shape)| (name, Numbers { shape, dtype })).collect();
        write_tensors(folder.0.join("diffusion_pytorch_model.safetensors"), &numbers, &BTreeMap::new())?;
        Ok(folder)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0); // the system's own clean-up takes what could not be removed
    }
}

/// The names and shapes of a transformer's tensors, as it requests them. Its blocks are alike, so one of each kind is built.
fn names(case: &Case, device: &Device) -> BTreeMap<String, Vec<usize>> {
    let config = shape::flux(&Case { layers: Some([1, 1]), ..case.clone() });
    let all = shape::flux(case);
    let weights = Weights::random(SEED, device, Some(case.float()));
    drop(FluxTransformer::load(&weights, config, Residence::Streamed)); // of which names and shapes are read
    let mut names = BTreeMap::new();
    for (name, shape) in weights.taken() {
        for (list, count) in
            [("single_transformer_blocks.0.", all.num_single_layers), ("transformer_blocks.0.", all.num_layers)]
        {
            if let Some(rest) = name.strip_prefix(list) {
                let list = list.trim_end_matches("0.");
                names.extend((0..count).map(|block| (format!("{list}{block}.{rest}"), shape.clone())));
            }
        }
        if !name.contains("transformer_blocks.") {
            names.insert(name, shape);
        }
    }
    names
}

/// A tensor with arbitrary values: all about 0.01.
struct Numbers {
    shape: Vec<usize>,
    dtype: DType,
}

impl TensorBytes for Numbers {
    fn dtype(&self) -> DType {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn bytes(&self) -> Cow<'_, [u8]> {
        vec![0x3c; self.shape.iter().product::<usize>() * self.dtype.size()].into()
    }
}

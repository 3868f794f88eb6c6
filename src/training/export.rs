//! `export`: the result of a run as files that other programs load.

use std::{collections::BTreeMap, fs, path::Path};

use burn::tensor::Device;

use super::{Mode, ModelConfig, TrainConfig, checkpoint::Checkpoint, record::started, run_config::run_config};
use crate::{
    disk::{remove_folder, sweep},
    error::{Error, Result},
    families,
    lora::{self, Lora},
    paths,
    weights::{FileDtype, FlatTensor, TensorFile, export_folder},
};

/// Options of an export.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions<'a> {
    /// The layout of a LoRA file; `None` is the one that most programs read. A full model has only one layout.
    pub format: Option<lora::Format>,
    /// Dtype of the tensors.
    pub dtype: FileDtype,
    /// The raw weights, even if there is an EMA.
    pub raw: bool,
    /// Whether a LoRA file gets metadata.
    pub metadata: bool,
    /// The current location of a full model's base: a folder or `org/name`; `None` is that of the run's start.
    pub model: Option<&'a str>,
}

/// Exports a checkpoint, or the newest of a run: an adapter as a LoRA file, a fully trained model as a folder in diffusers' layout.
///
/// # Errors
/// `path` is neither, an option does not apply to the run, the base model is another one, `output` cannot be written, or it differs
/// after reading it back.
pub fn export(path: &Path, output: &Path, options: ExportOptions) -> Result<()> {
    sweep(output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")));
    let (run, mut checkpoints) = Checkpoint::hold(path)?;
    let checkpoint = checkpoints.pop().expect("at least one was found");
    checkpoint.verify_trained(!options.raw)?;
    let (state, file) = (checkpoint.state()?, checkpoint.trained(!options.raw)?);
    match state.mode {
        Mode::Lora => paths::check_file(output)?,
        Mode::Full => paths::check_folder(output)?,
    }
    let report = match state.mode {
        Mode::Lora => {
            if options.model.is_some() {
                let problem = "applies to fully trained models, and this run trained a LoRA";
                return Err(Error::setting("model", problem).hint("leave it out: a LoRA is a file by itself"));
            }
            let mut lora = Lora::read(file)?;
            lora.metadata = lora::to_share(lora.metadata);
            let format = options.format.unwrap_or(lora.usual_format());
            match options.metadata {
                true => lora::export(&lora, output, format, options.dtype)?.to_string(),
                false => lora::export_bare(&lora, output, format, options.dtype)?.to_string(),
            }
        }
        Mode::Full => {
            if !options.metadata {
                let problem = "applies to LoRA files, and this run trained the full model";
                return Err(Error::setting("no_metadata", problem).hint("leave it out: a model folder has none"));
            }
            if options.format.is_some() {
                let problem = "applies to LoRA files, and this run trained the full model";
                return Err(Error::setting("format", problem).hint("leave it out: the model is written as a folder"));
            }
            let config = started::from_its_start(&run, &run_config(&run, &[])?);
            let base = ModelConfig { path: options.model.unwrap_or(&config.model.path).into(), ..config.model.clone() };
            let base = base.folder()?;
            let family = families::of(&base)?;
            state.origin.check_model(&base, family)?;
            export_folder(base, &family.trained_part(), &values(&TensorFile::open(file)?)?, output, options.dtype)?
                .to_string()
        }
    };
    tracing::info!("{report}"); // not inside: what a quiet log does not show is not evaluated
    Ok(())
}

/// Exports the final model of a run into its folder. An earlier export, from before the run was lengthened, is deleted only after the
/// new one is complete.
///
/// # Errors
/// As [`export`].
pub(super) fn finish(run: &Path, config: &TrainConfig) -> Result<()> {
    let options = ExportOptions { format: None, dtype: FileDtype::F32, raw: false, metadata: true, model: None };
    match config.training.mode {
        Mode::Lora => export(run, &run.join(format!("{}.safetensors", config.run.name)), options),
        Mode::Full => {
            let [model, before] = ["model", "model.before"].map(|name| run.join(name));
            if model.is_dir() {
                remove_folder(&before)?;
                fs::rename(&model, &before).map_err(|e| Error::io(&model, e))?;
            }
            export(run, &model, options)?;
            remove_folder(&before)
        }
    }
}

/// All tensors of a file.
fn values(file: &TensorFile) -> Result<BTreeMap<String, FlatTensor>> {
    let read = |name: String| {
        let shape = file.shape(&name).unwrap_or_default().to_vec();
        let values = file.row(&name, &shape, &Device::flex())?;
        Ok((name, FlatTensor { shape, values }))
    };
    file.names().into_iter().map(read).collect()
}

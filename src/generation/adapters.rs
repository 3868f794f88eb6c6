//! The adapters of a session: read from files, checked, and attached.

use std::path::{Path, PathBuf};

use super::{LoraFiles, Session, worn::Worn};
use crate::{
    error::Result,
    lora::{Lora, Part},
    nn::{LayerShape, below},
    notice::warn_once,
    weights::{TensorFile, shards},
};

impl Session {
    /// Reads a LoRA file for this model, onto its device, for any number of calls of [`set_adapters`](Self::set_adapters).
    ///
    /// # Errors
    /// The file cannot be read, or is for another model.
    pub fn read_adapter(&self, path: &Path) -> Result<Lora> {
        let lora = Lora::read(path)?;
        self.check_adapter(&lora).map_err(|e| e.at(path))?;
        Ok(self.own(lora))
    }

    /// Checks that an adapter, on any device, fits this model. Reads only headers.
    ///
    /// # Errors
    /// It is for another model.
    pub fn check_adapter(&self, lora: &Lora) -> Result<()> {
        lora.check_base(&self.folder)?;
        lora.check(&self.pipeline.layers())?;
        if lora.changes_text() { lora.check_text(&text_layers(&self.folder)?) } else { Ok(()) }
    }

    /// Attaches these adapters, each with its scale, in place of the previous ones. The weights of the model are not touched.
    ///
    /// # Errors
    /// One does not fit the model; then nothing is changed.
    pub fn set_adapters<'a>(&mut self, adapters: impl IntoIterator<Item = (&'a Lora, f64)>) -> Result<()> {
        self.worn = self.wear(adapters)?;
        Ok(())
    }

    /// These adapters, each with its scale, for single images.
    ///
    /// # Errors
    /// One does not fit the model.
    pub fn wear<'a>(&self, adapters: impl IntoIterator<Item = (&'a Lora, f64)>) -> Result<Worn> {
        let layers = self.pipeline.layers();
        let mut worn = Worn::default();
        for (lora, scale) in adapters {
            worn.denoiser = worn.denoiser.and(&lora.adapters_for(&layers, &self.device, scale)?);
            worn.text = worn.text.and(&lora.text_adapters(&self.device, scale));
        }
        Ok(worn)
    }

    /// Reads the LoRA files of a request, and attaches them.
    ///
    /// # Errors
    /// As [`read_adapter`](Self::read_adapter).
    pub fn put_on_files(&mut self, loras: &LoraFiles) -> Result<()> {
        let read = |(path, scale): &(PathBuf, f64)| Ok((self.read_file(path, loras.no_text_encoders)?, *scale));
        let read: Vec<(Lora, f64)> = loras.files.iter().map(read).collect::<Result<_>>()?;
        self.set_adapters(read.iter().map(|(lora, scale)| (lora, *scale)))
    }

    /// Reads a file with or without its part for text encoders. Logs what is left out; if only that part does not fit, the error says
    /// that it can be left out.
    fn read_file(&self, path: &Path, no_text_encoders: bool) -> Result<Lora> {
        let rest = || {
            let (lora, left_out) = Lora::read_without_text_encoders(path)?;
            self.check_adapter(&lora).map_err(|e| e.at(path))?;
            Ok((lora, left_out))
        };
        if !no_text_encoders {
            let hint = "`no_lora_text_encoders` leaves out the part for text encoders and applies the rest";
            return self.read_adapter(path).map_err(|e| if rest().is_ok() { e.hint(hint) } else { e });
        }
        let (lora, left_out) = rest()?;
        if left_out > 0 {
            warn_once(format!("{}: {left_out} tensors for text encoders are left out, as requested", path.display()));
        }
        Ok(self.own(lora))
    }

    /// The adapter on this session's device, for its model's denoiser.
    fn own(&self, lora: Lora) -> Lora {
        Lora { denoiser: self.family.denoiser(), ..lora.to_device(&self.device) }
    }
}

/// The possible linear layers of a model's text encoders, by their names after the encoder's folder, from headers.
fn text_layers(model: &Path) -> Result<Vec<LayerShape>> {
    let mut layers = Vec::new();
    for part in [Part::TextEncoder, Part::TextEncoder2] {
        let folder = model.join(part.folder());
        let files = if folder.is_dir() { shards(&folder)? } else { Vec::new() };
        for file in files.iter().map(TensorFile::open) {
            let file = file?;
            for name in file.names() {
                if let (Some(layer), Some(&[outputs, inputs])) = (name.strip_suffix(".weight"), file.shape(&name)) {
                    let name = below(part.folder(), layer.strip_prefix("text_model.").unwrap_or(layer));
                    layers.push(LayerShape { name, inputs, outputs, pointwise: false });
                }
            }
        }
    }
    Ok(layers)
}

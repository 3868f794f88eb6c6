//! Checks of the base model that layer names alone cannot make: a 4- and an 8-channel UNet have the same linear layers.
//!
//! An editing UNet and a generating one differ only in the first convolution, which no adapter changes: on the wrong one, an adapter
//! would fit and produce garbage.

use std::path::Path;

use super::Lora;
use crate::{
    error::{Error, Result},
    models::unet::UNetConfig,
};

/// Metadata key for the number of input channels of the base model's UNet.
const CHANNELS: &str = "kiln.base_model_channels";

impl Lora {
    /// The metadata entry about the base model in `folder`; `None` if it has no UNet.
    ///
    /// # Errors
    /// The configuration of its UNet is broken.
    pub fn base_metadata(folder: &Path) -> Result<Option<(&'static str, String)>> {
        Ok(channels(folder)?.map(|channels| (CHANNELS, channels)))
    }

    /// Checks the metadata against the model in `folder`; [`adapters_for`](Self::adapters_for) checks the layers.
    ///
    /// # Errors
    /// The adapter is for a UNet with another number of input channels; or the configuration of this UNet is broken.
    pub fn check_base(&self, folder: &Path) -> Result<()> {
        let (Some(made_for), Some(found)) = (self.metadata.get(CHANNELS), channels(folder)?) else { return Ok(()) };
        if *made_for == found {
            return Ok(());
        }
        let problem = format!(
            "this adapter is for a UNet with {made_for} input channels, and the UNet of {} has {found}",
            folder.display()
        );
        Err(Error::file("LoRA", problem).hint(match self.metadata.get("kiln.base_model") {
            Some(base) => format!("use it with its base model, {base}, or with a model derived from it"),
            None => "use it with its base model, or with a model derived from it".into(),
        }))
    }
}

/// The number of input channels of the UNet in a model folder: 4, or 8 for an editing model.
fn channels(folder: &Path) -> Result<Option<String>> {
    let unet = folder.join("unet");
    let config = unet.is_dir().then(|| UNetConfig::open(unet)).transpose()?;
    Ok(config.map(|config| config.in_channels.to_string()))
}

//! Checks of the base model that layer names alone cannot make: a 4- and an 8-channel UNet have the same linear layers.
//!
//! A UNet that edits images and one that makes them have the same layers but for the first convolution, which no adapter
//! changes: on the wrong one, an adapter would fit and make nonsense.

use std::path::Path;

use super::Lora;
use crate::{
    error::{Error, Result},
    models::unet::UNetConfig,
};

/// The key of the metadata under which files say how many channels the UNet reads that they were made for.
const CHANNELS: &str = "kiln.base_model_channels";

impl Lora {
    /// What the metadata of an adapter for the model in `folder` says about it: nothing where it has no UNet.
    ///
    /// # Errors
    /// The configuration of its UNet is broken.
    pub fn base_metadata(folder: &Path) -> Result<Option<(&'static str, String)>> {
        Ok(channels(folder)?.map(|channels| (CHANNELS, channels)))
    }

    /// Whether the model in `folder` may wear the adapter, as far as its metadata says;
    /// [`adapters_for`](Self::adapters_for) looks at the layers.
    ///
    /// # Errors
    /// It was made for a UNet that reads another number of channels; or the configuration of this one is broken.
    pub fn check_base(&self, folder: &Path) -> Result<()> {
        let (Some(made_for), Some(found)) = (self.metadata.get(CHANNELS), channels(folder)?) else { return Ok(()) };
        if *made_for == found {
            return Ok(());
        }
        let problem = format!(
            "this adapter was made for a UNet that reads {made_for} channels, and that of {} reads {found}",
            folder.display()
        );
        Err(Error::file("LoRA", problem).hint(match self.metadata.get("kiln.base_model") {
            Some(base) => format!("use it with the model it was trained on, {base}, or with one made from that"),
            None => "use it with the model it was trained on, or with one made from that".into(),
        }))
    }
}

/// How many channels the UNet of a model folder reads: 4, or 8 where it edits images.
fn channels(folder: &Path) -> Result<Option<String>> {
    let unet = folder.join("unet");
    let config = unet.is_dir().then(|| UNetConfig::open(unet)).transpose()?;
    Ok(config.map(|config| config.in_channels.to_string()))
}

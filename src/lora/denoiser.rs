//! The kinds of denoisers with adapters.

use std::fmt;

use super::unet;

/// The denoiser whose layers an adapter changes. For a new adapter, the family of the model decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denoiser {
    /// FLUX.1's.
    Transformer,
    /// Stable Diffusion's.
    Unet,
}

impl Denoiser {
    /// Its folder in a model, which is also the prefix of names in diffusers' adapter files.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::Unet => "unet",
        }
    }

    /// The denoiser of the adapter in a file, by diffusers' names of its layers. Nothing else in a file tells: programs differ in their
    /// prefixes (`lora_unet_` for either) and metadata.
    pub(super) fn guess<'a>(mut layers: impl Iterator<Item = &'a str>) -> Self {
        match layers.any(|layer| unet::layer_named(layer).is_some()) {
            true => Self::Unet,
            false => Self::Transformer,
        }
    }
}

impl fmt::Display for Denoiser {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.folder())
    }
}

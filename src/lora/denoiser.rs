//! The kinds of denoisers that adapters are for.

use std::fmt;

use super::unet;

/// The denoiser whose layers an adapter changes. Where an adapter is made, the family of the model says which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denoiser {
    /// FLUX.1's.
    Transformer,
    /// Stable Diffusion's.
    Unet,
}

impl Denoiser {
    /// Its folder in a model folder, which is also what diffusers' files of adapters begin names with.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::Unet => "unet",
        }
    }

    /// The denoiser that the adapter in a file is for, from the names of its layers as diffusers has them. Nothing else in a file
    /// tells: programs differ in the prefixes that they write (`lora_unet_` for either), and in what they say in the metadata.
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

//! The parts of a model that adapters change.

use serde::Serialize;

/// The part of a model that a layer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The transformer or the UNet.
    Denoiser,
    /// CLIP.
    TextEncoder,
    /// T5, in FLUX.1.
    #[serde(rename = "text_encoder_2")]
    TextEncoder2,
}

impl Part {
    /// The folder of a text encoder in a model folder; empty for the denoiser, whose folder depends on its kind.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Denoiser => "",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
        }
    }
}

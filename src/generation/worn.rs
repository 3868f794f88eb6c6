//! The adapters of one image.

use crate::nn::Adapters;

/// What images wear: adapters of the denoiser and of the text encoders of one [`Session`](super::Session). Cheap to clone:
/// nothing is copied.
#[derive(Clone, Debug, Default)]
pub struct Worn {
    pub(super) denoiser: Adapters,
    pub(super) text: Adapters,
}

//! The adapters of one image.

use crate::nn::Adapters;

/// Adapters of the denoiser and of the text encoders of one [`Session`](super::Session). Cheap to clone: tensors are shared.
#[derive(Clone, Debug, Default)]
pub struct Worn {
    pub(super) denoiser: Adapters,
    pub(super) text: Adapters,
}

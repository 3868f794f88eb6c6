//! `[objective]` of kind `instruct_pix2pix`: the loss of an editing model.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::Rule;

/// `[objective]` of kind `instruct_pix2pix`, for Stable Diffusion. The model learns the noise in the edited image (or its velocity,
/// depending on the model's scheduler) from the noisy latents, the latents of the original, and the instruction.
/// `data.conditioning_dropout` is how often these conditions are dropped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct InstructPix2PixConfig {
    /// Min-SNR weighting: timesteps with little noise count at most as much as one with this signal-to-noise ratio. Default 0:
    /// all count the same, as in the paper. 5 is usual, and makes training at low noise less dominant.
    pub snr_gamma: f64,
    /// Offset noise: the share of noise that is the same at all pixels of a channel. Default 0. About 0.05 lets the model change
    /// the overall brightness of an image more.
    pub noise_offset: f64,
    /// Whether the original's latents are scaled like those of the edited image. Default false, as in the paper and in diffusers'
    /// script; set it only for a base model that was trained this way.
    pub scaled_condition: bool,
}

impl InstructPix2PixConfig {
    /// The rules for its values.
    pub(super) fn rules(&self) -> Vec<Rule> {
        let not_negative = |x: f64| x.is_finite() && x >= 0.0;
        vec![
            (not_negative(self.snr_gamma), "objective.snr_gamma", "must be at least 0 (0 turns it off)"),
            (not_negative(self.noise_offset), "objective.noise_offset", "must be at least 0"),
        ]
    }
}

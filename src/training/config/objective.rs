//! `[objective]`: what the model is trained for.

use serde::Serialize;

use super::{FlowMatchingConfig, InstructPix2PixConfig, Rule};
use crate::families::ObjectiveKind;

/// `[objective]`. Its `kind` says what the model is trained for, and which other keys there are; the family of the model says
/// which kind it can be. Default `flow_matching`, for FLUX.1; Stable Diffusion needs `instruct_pix2pix`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ObjectiveConfig {
    /// To make images from captions.
    FlowMatching(FlowMatchingConfig),
    /// To edit images by instruction.
    #[serde(rename = "instruct_pix2pix")]
    InstructPix2Pix(InstructPix2PixConfig),
}

impl ObjectiveConfig {
    /// Its kind.
    pub fn kind(&self) -> ObjectiveKind {
        match self {
            Self::FlowMatching(_) => ObjectiveKind::FlowMatching,
            Self::InstructPix2Pix(_) => ObjectiveKind::InstructPix2Pix,
        }
    }

    /// What must hold.
    pub(super) fn rules(&self) -> Vec<Rule> {
        match self {
            Self::FlowMatching(config) => config.rules(),
            Self::InstructPix2Pix(config) => config.rules(),
        }
    }
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self::FlowMatching(FlowMatchingConfig::default())
    }
}

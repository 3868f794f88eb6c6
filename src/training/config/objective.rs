//! `[objective]`: the objective of a training.

use serde::Serialize;

use super::{FlowMatchingConfig, InstructPix2PixConfig, Rule};
use crate::families::ObjectiveKind;

/// `[objective]`. Its `kind` decides which other keys there are, and must suit the family of the model. Default `flow_matching`, for
/// FLUX.1; Stable Diffusion needs `instruct_pix2pix`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ObjectiveConfig {
    /// Generating images from captions.
    FlowMatching(FlowMatchingConfig),
    /// Editing images by instruction.
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

    /// The rules for its values.
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

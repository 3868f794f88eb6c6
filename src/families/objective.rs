//! The kinds of training.

use serde::{Deserialize, Serialize};

use crate::data::DatasetKind;

/// The objective of a training: `objective.kind`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveKind {
    /// Generating images from captions, by the velocity of a flow from noise to images (FLUX.1).
    #[default]
    FlowMatching,
    /// Editing images by instruction, by the noise or the velocity in the edited image, given the original (Stable Diffusion).
    #[serde(rename = "instruct_pix2pix")]
    InstructPix2Pix,
}

impl std::str::FromStr for ObjectiveKind {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let kinds = [Self::FlowMatching, Self::InstructPix2Pix];
        kinds
            .into_iter()
            .find(|kind| kind.word() == word)
            .ok_or_else(|| format!("expected {}", kinds.map(Self::word).join(" or ")))
    }
}

impl ObjectiveKind {
    /// Its word in a configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::FlowMatching => "flow_matching",
            Self::InstructPix2Pix => "instruct_pix2pix",
        }
    }

    /// The kind of training data.
    pub fn data(self) -> DatasetKind {
        match self {
            Self::FlowMatching => DatasetKind::Captions,
            Self::InstructPix2Pix => DatasetKind::Edits,
        }
    }
}

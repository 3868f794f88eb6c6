//! The kinds of training.

use serde::{Deserialize, Serialize};

use crate::data::DatasetKind;

/// What a model is trained for: `objective.kind`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveKind {
    /// To make images from captions: the velocity of a flow from noise to images (FLUX.1).
    #[default]
    FlowMatching,
    /// To edit an image by instruction: the noise, or the velocity, in the edited image beside the original (Stable Diffusion).
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

    /// The data it learns from.
    pub fn data(self) -> DatasetKind {
        match self {
            Self::FlowMatching => DatasetKind::Captions,
            Self::InstructPix2Pix => DatasetKind::Edits,
        }
    }
}

//! One case of a benchmark, in words.

use std::{fmt, path::PathBuf};

use burn::tensor::FloatDType;
use clap::ValueEnum;
use serde::Serialize;

use super::{CLIP_TOKENS, Operation, SMALL_TEXT_TOKENS, TEXT_TOKENS};
use crate::device::Dtype;

/// What kind of thing it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Kind {
    /// One step of training.
    Train,
    /// Steps of a sampler, each a call of the denoiser.
    Sample,
    /// Images to latents.
    VaeEncode,
    /// Latents to images.
    VaeDecode,
    /// The long text encoder.
    T5,
    /// The short text encoder.
    Clip,
    /// A model from disk to the device.
    Load,
    /// One operation.
    Operation,
}

/// Which denoiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    /// FLUX.1-dev.
    Flux,
    /// The UNet of Stable Diffusion 1.5 with 8 input channels.
    Unet,
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum TrainTarget {
    /// A LoRA on the layers that diffusers takes by default.
    Attention,
    /// A LoRA on every linear layer.
    All,
    /// Every parameter of the model; the UNet only.
    Full,
}

/// One thing to measure. As JSON it is the request to the peer; what a case has not is left out there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    /// What it is.
    #[serde(rename = "case")]
    pub kind: Kind,
    /// The denoiser.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// FLUX's blocks, double and single, where they are not all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<[usize; 2]>,
    /// What is trained; left out for [`TrainTarget::Full`].
    #[serde(skip_serializing_if = "whole")]
    pub targets: Option<TrainTarget>,
    /// Of the LoRA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Steps of a sampler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Both sides of the image, in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// Images, or prompts.
    pub batch: usize,
    /// Tokens of T5.
    pub text_tokens: usize,
    /// Whether the model is a small one, for a CPU.
    pub small: bool,
    /// The operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// What the operation is done on; see [`Operation`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shape: Vec<usize>,
    /// The folder to load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The dtype of frozen weights and of activations.
    pub dtype: Dtype,
    /// Measured runs after the first.
    pub repeats: usize,
    /// `cpu` or `cuda:N`.
    pub device: String,
}

/// What the peer is not told.
fn whole(trained: &Option<TrainTarget>) -> bool {
    matches!(trained, None | Some(TrainTarget::Full))
}

impl Case {
    /// A case of this kind with nothing else said.
    pub fn new(kind: Kind, small: bool, dtype: Dtype, repeats: usize, device: String) -> Self {
        let text_tokens = if small { SMALL_TEXT_TOKENS } else { TEXT_TOKENS };
        Self {
            kind,
            model: None,
            layers: None,
            targets: None,
            rank: None,
            steps: None,
            size: None,
            batch: 1,
            text_tokens,
            small,
            operation: None,
            shape: vec![],
            path: None,
            dtype,
            repeats,
            device,
        }
    }

    /// Tokens of a prompt for the encoder that is measured.
    pub(super) fn tokens(&self) -> usize {
        if self.kind == Kind::Clip { CLIP_TOKENS } else { self.text_tokens }
    }

    /// [`dtype`](Self::dtype), as Burn calls it.
    pub(super) fn float(&self) -> FloatDType {
        self.dtype.into()
    }
}

/// In a few words, for the log and for tables: `train flux 1024² × 1, attention`.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let word = |value: Option<String>| value.map_or(String::new(), |word| format!(" {word}"));
        match self.operation {
            Some(operation) => write!(f, "{operation} {:?}", self.shape)?,
            None => write!(f, "{}{}", name(&self.kind), word(self.model.as_ref().map(name)))?,
        }
        match self.size {
            Some(size) => write!(f, " {size}² × {}", self.batch)?,
            None if matches!(self.kind, Kind::T5 | Kind::Clip) => {
                write!(f, " {} tokens × {}", self.tokens(), self.batch)?
            }
            None => {}
        }
        if let Some(steps) = self.steps.filter(|&steps| steps > 1) {
            write!(f, ", {steps} steps")?;
        }
        if let Some([double, single]) = self.layers {
            write!(f, ", {double} + {single} blocks")?;
        }
        match self.targets {
            Some(TrainTarget::Full) => write!(f, ", full in f32"),
            Some(trained) => write!(f, ", {}", name(&trained)),
            None => Ok(()),
        }
    }
}

/// How the command line spells a value.
pub(super) fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().expect("no value is hidden").get_name().to_string()
}

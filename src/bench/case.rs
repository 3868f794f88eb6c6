//! The description of a benchmark case.

use std::{fmt, path::PathBuf};

use burn::tensor::FloatDType;
use clap::ValueEnum;
use serde::Serialize;

use super::{CLIP_TOKENS, Operation, SMALL_TEXT_TOKENS, TEXT_TOKENS};
use crate::device::Dtype;

/// The kind of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Kind {
    /// A training step.
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

/// The denoiser of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Model {
    /// FLUX.1-dev.
    Flux,
    /// The UNet of Stable Diffusion 1.5 with 8 input channels.
    Unet,
}

/// The parameters to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum TrainTarget {
    /// A LoRA on diffusers' default layers.
    Attention,
    /// A LoRA on every linear layer.
    All,
    /// Every parameter of the model; the UNet only.
    Full,
}

/// A case to measure. As JSON it is the request to the peer, without unset fields.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    /// The kind.
    #[serde(rename = "case")]
    pub kind: Kind,
    /// The denoiser.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// The numbers of FLUX's double and single blocks, if not all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<[usize; 2]>,
    /// The parameters to train; left out for [`TrainTarget::Full`].
    #[serde(skip_serializing_if = "whole")]
    pub targets: Option<TrainTarget>,
    /// Rank of the LoRA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Sampling steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Width and height of the image in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// The number of images, or prompts.
    pub batch: usize,
    /// The number of T5 tokens.
    pub text_tokens: usize,
    /// Whether it is a small model, for a CPU.
    pub small: bool,
    /// The operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// The shape of the operation; see [`Operation`].
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

/// Settings that the peer does not see.
fn whole(trained: &Option<TrainTarget>) -> bool {
    matches!(trained, None | Some(TrainTarget::Full))
}

impl Case {
    /// A case of this kind with everything else unset.
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

    /// Tokens per prompt for the measured encoder.
    pub(super) fn tokens(&self) -> usize {
        if self.kind == Kind::Clip { CLIP_TOKENS } else { self.text_tokens }
    }

    /// [`dtype`](Self::dtype) as Burn's type.
    pub(super) fn float(&self) -> FloatDType {
        self.dtype.into()
    }
}

/// A short description for logs and tables: `train flux 1024² × 1, attention`.
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

/// The command line's spelling of a value.
pub(super) fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().expect("no value is hidden").get_name().to_string()
}

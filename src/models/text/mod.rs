//! Text encoders: from token ids to the embeddings that condition a diffusion model.

mod t5;

use std::path::Path;

use burn::tensor::{Device, FloatDType, Tensor};

pub use super::clip::{ClipActivation, ClipClass, ClipOutput, ClipTextConfig, ClipTextModel};
use crate::{
    error::Result,
    lending::{Residence, Sizes},
    nn::{Adapters, Linear, Linears, below},
    tokenizer::PromptIds,
    weights::Weights,
};
pub use t5::{FeedForwardKind, T5Config, T5Encoder, T5Type};

/// The embeddings of prompts.
#[derive(Clone, Debug)]
pub struct PromptEmbeds {
    /// One row for each token, `[B, L, D]`: of T5 if the model has it, else of CLIP.
    pub prompt: Tensor<3>,
    /// One row for each prompt, `[B, P]`: CLIP's.
    pub pooled: Tensor<2>,
}

/// The longest prompt in FLUX.1's training, in T5 tokens. T5 itself has no limit.
const T5_LONGEST: usize = 512;

/// The limits on the token ids of a model's text encoders.
#[derive(Clone, Debug)]
pub struct TextLimits {
    clip: ClipTextConfig,
    t5: Option<T5Config>,
}

impl TextLimits {
    /// Reads the configurations of the text encoders in a model folder.
    ///
    /// # Errors
    /// One is missing, broken or of another model.
    pub fn open(model: &Path) -> Result<Self> {
        let second = model.join("text_encoder_2");
        let t5 = second.is_dir().then(|| T5Config::open(second)).transpose()?;
        Ok(Self { clip: ClipTextConfig::open(model.join("text_encoder"))?, t5 })
    }

    /// Checks the ids of a prompt that did not come from the model's tokenizers: at least one for each encoder, none outside the
    /// vocabulary, and no more than there are positions.
    ///
    /// # Errors
    /// The first invalid ids.
    pub fn check(&self, prompt: &PromptIds) -> std::result::Result<(), String> {
        let within = |name: &str, ids: &[i64], vocabulary: usize, longest: usize| {
            if ids.is_empty() || ids.len() > longest {
                return Err(format!("`{name}` has {} ids for a prompt, expected 1 to {longest}", ids.len()));
            }
            match ids.iter().find(|&&id| id < 0 || id >= vocabulary as i64) {
                Some(id) => Err(format!("`{name}` holds {id}, but the model's ids go from 0 to {}", vocabulary - 1)),
                None => Ok(()),
            }
        };
        within("clip", &prompt.clip, self.clip.vocab_size, self.clip.max_position_embeddings)?;
        self.t5.as_ref().map_or(Ok(()), |t5| within("t5", &prompt.t5, t5.vocab_size, T5_LONGEST))
    }
}

/// The bytes of text encoders on the device.
#[derive(Clone, Copy, Debug, Default)]
pub struct TextSizes {
    /// The resident part.
    kept: u64,
    /// The blocks, which are lent.
    blocks: Sizes,
}

impl TextSizes {
    /// The total on the device if the blocks stay there.
    pub fn at(self, residence: Residence) -> u64 {
        self.kept + self.blocks.at(residence)
    }
}

/// The text encoders of one model.
#[derive(Clone, Debug)]
pub struct TextEncoders {
    /// `text_encoder/`.
    pub clip: ClipTextModel,
    /// `text_encoder_2/`, which FLUX.1 has and SD 1.x does not.
    pub t5: Option<T5Encoder>,
}

impl TextEncoders {
    /// Opens `text_encoder/` and, if it is there, `text_encoder_2/` of a model folder.
    ///
    /// # Errors
    /// Files are missing, a config describes another model, or config and weights do not fit.
    pub fn open(model: impl AsRef<Path>, device: &Device, dtype: Option<FloatDType>) -> Result<Self> {
        Self::open_as(Residence::Resident, model, device, dtype)
    }

    /// The same with the unused blocks of T5 where `residence` says; CLIP is small and always resident.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_as(
        residence: Residence,
        model: impl AsRef<Path>,
        device: &Device,
        dtype: Option<FloatDType>,
    ) -> Result<Self> {
        let model = model.as_ref();
        let second = model.join("text_encoder_2");
        let t5 = || T5Encoder::open_as(residence, &second, device, dtype);
        Ok(Self {
            clip: ClipTextModel::open(model.join("text_encoder"), device, dtype)?,
            t5: second.is_dir().then(t5).transpose()?,
        })
    }

    /// The bytes of the text encoders of a model on the device, from their headers.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn sizes(model: &Path, device: &Device, dtype: FloatDType) -> Result<TextSizes> {
        let clip = Weights::open(model.join("text_encoder"), device, Some(dtype))?.stored_bytes();
        let second = model.join("text_encoder_2");
        let t5 = second.is_dir().then(|| T5Encoder::sizes(&second, device, dtype)).transpose()?.unwrap_or_default();
        Ok(TextSizes { kept: clip + t5.kept, blocks: t5.blocks })
    }

    /// Attaches adapters, in place of the previous ones; the names of their layers begin with the encoder's folder.
    pub fn wear(&mut self, adapters: &Adapters) {
        adapters.put_on("text_encoder", &mut self.clip);
        if let Some(t5) = &mut self.t5 {
            t5.wear(adapters.below("text_encoder_2"));
        }
    }

    /// Encodes a batch of at least one prompt, tokenized with the tokenizers of the same model; the embeddings are in the
    /// dtype of the weights.
    pub fn encode(&self, prompts: &[PromptIds]) -> PromptEmbeds {
        let ids: Vec<&[i64]> = prompts.iter().map(|prompt| prompt.clip.as_slice()).collect();
        let clip = self.clip.forward(&ids);
        let prompt = match &self.t5 {
            Some(t5) => t5.forward(&prompts.iter().map(|prompt| prompt.t5.as_slice()).collect::<Vec<_>>()),
            None => clip.last_hidden_state,
        };
        PromptEmbeds { prompt, pooled: clip.pooled }
    }
}

/// Each below the name of its folder.
impl Linears for TextEncoders {
    fn linears(&mut self, path: &str, visit: &mut dyn FnMut(&str, &mut Linear)) {
        self.clip.linears(&below(path, "text_encoder"), visit);
        if let Some(t5) = &mut self.t5 {
            t5.linears(&below(path, "text_encoder_2"), visit);
        }
    }
}

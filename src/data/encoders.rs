//! The encoders of a model that preparation needs.

use burn::tensor::TensorData;

use crate::{
    error::Result,
    models::{text::PromptEmbeds, vae::Moments},
    tokenizer::{PromptIds, Shortened},
};

/// The encoders from text and pixels to cache entries. An implementation loads a model on the first call that encodes, so that
/// nothing is loaded for a complete cache.
///
/// One prompt and one image at a time, so that an entry does not depend on others in its batch, and memory is that of one image.
pub trait Encoders {
    /// Fingerprint of the VAE and its settings; see [`fingerprint`](super::fingerprint).
    ///
    /// # Errors
    /// Its files cannot be read.
    fn vae_fingerprint(&self) -> Result<String>;
    /// Fingerprint of the tokenizers, the text encoders, and the lengths that prompts are padded or truncated to.
    ///
    /// # Errors
    /// Their files cannot be read.
    fn text_fingerprint(&self) -> Result<String>;
    /// The token ids of a prompt.
    ///
    /// # Errors
    /// The tokenizers cannot be loaded or used.
    fn tokenize(&mut self, prompt: &str) -> Result<PromptIds>;
    /// Counts the prompts that are truncated.
    ///
    /// # Errors
    /// The tokenizers cannot be used.
    fn shortened(&self, _prompts: &[&str]) -> Result<Shortened> {
        Ok(Shortened::default())
    }
    /// The embeddings of one prompt, `prompt` `[1, L, D]` and `pooled` `[1, P]`. They are cached in their own dtype, which must be part
    /// of the fingerprint.
    ///
    /// # Errors
    /// The text encoders cannot be loaded or used.
    fn encode_prompt(&mut self, ids: &PromptIds) -> Result<PromptEmbeds>;
    /// The moments of one image, from f32 pixels `[1, 3, H, W]` in [-1, 1].
    ///
    /// # Errors
    /// The VAE cannot be loaded or used.
    fn encode_image(&mut self, pixels: TensorData) -> Result<Moments>;
    /// Drops loaded models. Called between prompts and images, and after both.
    fn release(&mut self);
}

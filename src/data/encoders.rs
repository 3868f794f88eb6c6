//! The encoders that preparation needs of a model.

use burn::tensor::TensorData;

use crate::{
    error::Result,
    models::{text::PromptEmbeds, vae::Moments},
    tokenizer::{PromptIds, Shortened},
};

/// What turns text and pixels into what is cached. An implementation loads a model when it is first asked to encode, so
/// that nothing is loaded for a complete cache.
///
/// One prompt and one image at a time: an entry then does not depend on what happened to be encoded with it, and memory
/// is that of one image.
pub trait Encoders {
    /// Identifies the VAE and how it is used; see [`fingerprint`](super::fingerprint).
    ///
    /// # Errors
    /// Its files cannot be read.
    fn vae_fingerprint(&self) -> Result<String>;
    /// Identifies the tokenizers, the text encoders, and the lengths that prompts are padded or cut to.
    ///
    /// # Errors
    /// Their files cannot be read.
    fn text_fingerprint(&self) -> Result<String>;
    /// The ids of a prompt.
    ///
    /// # Errors
    /// The tokenizers cannot be loaded or used.
    fn tokenize(&mut self, prompt: &str) -> Result<PromptIds>;
    /// Which of these prompts lose their end.
    ///
    /// # Errors
    /// The tokenizers cannot be used.
    fn shortened(&self, _prompts: &[&str]) -> Result<Shortened> {
        Ok(Shortened::default())
    }
    /// The embeddings of one prompt, `prompt` `[1, L, D]` and `pooled` `[1, P]`. They are kept in the dtype they
    /// come in, which the fingerprint must tell.
    ///
    /// # Errors
    /// The text encoders cannot be loaded or used.
    fn encode_prompt(&mut self, ids: &PromptIds) -> Result<PromptEmbeds>;
    /// The moments of one image, from f32 pixels `[1, 3, H, W]` in [-1, 1].
    ///
    /// # Errors
    /// The VAE cannot be loaded or used.
    fn encode_image(&mut self, pixels: TensorData) -> Result<Moments>;
    /// Drops whatever is loaded. Called between the prompts and the images and after both.
    fn release(&mut self);
}

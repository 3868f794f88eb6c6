//! The encoders for data preparation and prompts, loaded on first use.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, FloatDType, Tensor, TensorData};

use crate::{
    data::{Encoders, fingerprint},
    error::Result,
    limits::Limits,
    memory,
    models::{
        text::{PromptEmbeds, TextEncoders},
        vae::{AutoencoderKl, Moments},
    },
    nn::Adapters,
    pipelines::Placement,
    tokenizer::{PromptIds, Shortened, Tokenizers},
};

/// Tokenizers, text encoders and VAE of a model folder of any kind. Some families have a second tokenizer and text encoder.
pub struct ModelEncoders {
    model: PathBuf,
    device: Device,
    dtype: FloatDType,
    placement: Placement,
    limits: Limits,
    t5_tokens: usize,
    tokenizers: Tokenizers,
    text: Option<TextEncoders>,
    /// The adapters of the text encoders.
    adapters: Adapters,
    vae: Option<AutoencoderKl>,
}

impl ModelEncoders {
    /// Reads the tokenizers, and loads nothing else yet. `dtype` is that of the text encoders; the VAE is always f32.
    ///
    /// # Errors
    /// A part of the model folder is missing or broken.
    pub fn open(model: &Path, device: &Device, dtype: FloatDType) -> Result<Self> {
        let family = super::of(model)?;
        let t5_tokens = family.t5_tokens(model)?;
        family.check_parts(model)?;
        Ok(Self {
            tokenizers: Tokenizers::open(model, t5_tokens)?,
            t5_tokens,
            model: model.into(),
            device: device.clone(),
            dtype,
            placement: Placement::default(),
            limits: Limits::NONE,
            text: None,
            adapters: Adapters::default(),
            vae: None,
        })
    }

    /// The same with unused weights where `placement` says.
    pub fn placed(self, placement: Placement) -> Self {
        Self { placement, ..self }
    }

    /// The same with limits on how much is computed at once.
    pub fn within(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The same with `adapters` on the text encoders; the names of their layers begin with the encoder's folder.
    pub fn wearing(mut self, adapters: Adapters) -> Self {
        if let Some(text) = &mut self.text {
            text.wear(&adapters);
        }
        self.adapters = adapters;
        self
    }

    /// The text encoders, loaded if necessary.
    ///
    /// # Errors
    /// They cannot be loaded.
    pub fn text(&mut self) -> Result<&TextEncoders> {
        if self.text.is_none() {
            tracing::debug!("loading the text encoders");
            let mut text = TextEncoders::open_as(self.placement.text, &self.model, &self.device, Some(self.dtype))?;
            text.wear(&self.adapters);
            self.text = Some(text);
        }
        Ok(self.text.as_ref().expect("just loaded"))
    }

    /// Drops the text encoders, which are loaded again when needed.
    pub fn release_text(&mut self) {
        self.text = None;
    }
}

impl Encoders for ModelEncoders {
    fn vae_fingerprint(&self) -> Result<String> {
        fingerprint(&[self.model.join("vae")], "F32")
    }

    fn text_fingerprint(&self) -> Result<String> {
        let settings = format!("{:?} {} {}", self.dtype, self.t5_tokens, self.tokenizers.fingerprint());
        fingerprint(&[self.model.join("text_encoder"), self.model.join("text_encoder_2")], &settings)
    }

    fn tokenize(&mut self, prompt: &str) -> Result<PromptIds> {
        self.tokenizers.tokenize(prompt)
    }

    fn shortened(&self, prompts: &[&str]) -> Result<Shortened> {
        self.tokenizers.shortened(prompts.iter().copied())
    }

    fn encode_prompt(&mut self, ids: &PromptIds) -> Result<PromptEmbeds> {
        Ok(self.text()?.encode(std::slice::from_ref(ids)))
    }

    fn encode_image(&mut self, pixels: TensorData) -> Result<Moments> {
        if self.vae.is_none() {
            tracing::debug!("loading the VAE");
            self.vae = Some(AutoencoderKl::open_in(&self.model, self.placement.vae, &self.device)?);
        }
        Ok(self.vae.as_ref().expect("just loaded").encode_within(Tensor::from_data(pixels, &self.device), &self.limits))
    }

    fn release(&mut self) {
        self.text = None;
        self.vae = None;
        memory::release(&self.device);
    }
}

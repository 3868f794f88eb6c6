//! Encoders that record their inputs.

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use kiln::{
    data::{Encoders, Progress},
    error::{Error, Result},
    models::{text::PromptEmbeds, vae::Moments},
    tokenizer::PromptIds,
};

/// Trivial encoders that record what they encoded.
#[derive(Default)]
pub struct Fake {
    pub vae: String,
    pub text: String,
    pub prompts: Vec<String>,
    pub pictures: usize,
    /// Fails when this many images have been encoded.
    pub fail_after: Option<usize>,
    /// The dtype of embeddings, if not f32.
    pub text_dtype: Option<FloatDType>,
    pub text_loaded: bool,
    pub vae_loaded: bool,
}

impl Encoders for Fake {
    fn vae_fingerprint(&self) -> Result<String> {
        Ok(self.vae.clone())
    }
    fn text_fingerprint(&self) -> Result<String> {
        Ok(self.text.clone())
    }
    fn tokenize(&mut self, prompt: &str) -> Result<PromptIds> {
        self.prompts.push(prompt.into());
        let clip = prompt.bytes().map(i64::from).chain([0; 40]).take(40).collect();
        Ok(PromptIds { clip, t5: vec![prompt.len() as i64] })
    }
    fn encode_prompt(&mut self, ids: &PromptIds) -> Result<PromptEmbeds> {
        assert!(!self.vae_loaded, "the VAE is in memory together with the text encoders");
        self.text_loaded = true;
        let values: Vec<f32> = ids.clip.iter().map(|&id| id as f32).collect();
        let prompt = Tensor::<3>::from_data(TensorData::new(values, [1, 20, 2]), &Device::flex());
        let pooled = Tensor::<2>::from_floats([[ids.t5[0] as f32, 1.0]], &Device::flex());
        let dtype = self.text_dtype.unwrap_or(FloatDType::F32);
        Ok(PromptEmbeds { prompt: prompt.cast(dtype), pooled: pooled.cast(dtype) })
    }
    fn encode_image(&mut self, pixels: TensorData) -> Result<Moments> {
        assert!(!self.text_loaded, "the text encoders are in memory together with the VAE");
        self.vae_loaded = true;
        if self.fail_after == Some(self.pictures) {
            return Err(Error::setting("test", "the power went out"));
        }
        self.pictures += 1;
        // Every eighth pixel as the mean, its negative as the log variance.
        let pixels = Tensor::<4>::from_data(pixels, &Device::flex());
        let [_, _, height, width] = pixels.dims();
        let corner = pixels.reshape([1, 3 * height / 8, 8, width]).slice([0..1, 0..3 * height / 8, 0..1]);
        let corner =
            corner.reshape([1, 3 * height / 8, width / 8, 8]).slice([0..1, 0..3 * height / 8, 0..width / 8, 0..1]);
        let mean = corner.reshape([1, 3, height / 8, width / 8]);
        Ok(Moments { mean: mean.clone(), log_variance: -mean })
    }
    fn release(&mut self) {
        (self.text_loaded, self.vae_loaded) = (false, false);
    }
}

/// Reports nothing.
pub fn silent(_: Progress) {}

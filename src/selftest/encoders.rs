//! The encoders around the denoisers, run as diffusers ran them: the VAE and the text encoders.

use burn::tensor::{FloatDType, Tensor};

use super::{Golden, Sink};
use crate::{
    error::Result,
    models::{text::TextEncoders, vae::AutoencoderKl},
};

/// The distribution of latents for images, and the images of latents, square and wide.
///
/// # Errors
/// Model or golden are incomplete, or `found` refuses.
pub fn vae(golden: &Golden, dtype: FloatDType, found: Sink) -> Result<()> {
    let vae = AutoencoderKl::open(golden.model.join("vae"), &golden.device, Some(dtype))?;
    for case in 0..2 {
        let of = |part: &str| format!("vae.{case}.{part}");
        let (pixels, sample): (Tensor<4>, Tensor<4>) = (golden.tensor(&of("pixels"))?, golden.tensor(&of("sample"))?);
        found(&of("moments"), vae.encode(pixels).into_tensor().into_data())?;
        found(&of("decoded"), vae.decode(sample).into_data())?;
    }
    Ok(())
}

/// The embeddings of prompts: CLIP's and, where the model has it, T5's.
///
/// # Errors
/// As [`vae`].
pub fn text(golden: &Golden, dtype: FloatDType, found: Sink) -> Result<()> {
    let encoders = TextEncoders::open(&golden.model, &golden.device, Some(dtype))?;
    let ids = |name: &str| Ok((golden.ids(name)?, golden.shape(name)?[1]));
    let (clip, length) = ids("clip.input_ids")?;
    let output = encoders.clip.forward(&clip.chunks(length).collect::<Vec<_>>());
    found("clip.last_hidden_state", output.last_hidden_state.into_data())?;
    found("clip.hidden_state_before_last", output.hidden_state_before_last.into_data())?;
    found("clip.pooled", output.pooled.into_data())?;
    if let Some(t5) = &encoders.t5 {
        let (ids, length) = ids("t5.input_ids")?;
        found("t5.last_hidden_state", t5.forward(&ids.chunks(length).collect::<Vec<_>>()).into_data())?;
    }
    Ok(())
}

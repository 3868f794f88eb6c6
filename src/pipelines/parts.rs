//! Whether the parts of a model folder are of one model, as far as their configurations tell.

use std::path::Path;

use super::ModelKind;
use crate::{
    error::{Error, Result},
    models::{
        flux::FluxConfig,
        text::{ClipTextConfig, T5Config},
        unet::UNetConfig,
    },
};

/// Checks that the denoiser reads what the text encoders give.
///
/// # Errors
/// They are of different widths; or a configuration is missing or broken.
pub(super) fn check(folder: &Path, kind: ModelKind) -> Result<()> {
    let clip = ClipTextConfig::open(folder.join("text_encoder"))?;
    let pairs = match kind {
        ModelKind::Flux => {
            let (flux, t5) =
                (FluxConfig::open(folder.join("transformer"))?, T5Config::open(folder.join("text_encoder_2"))?);
            vec![
                ("transformer", "joint_attention_dim", flux.joint_attention_dim, "text_encoder_2", t5.d_model),
                ("transformer", "pooled_projection_dim", flux.pooled_projection_dim, "text_encoder", clip.hidden_size),
            ]
        }
        ModelKind::StableDiffusion | ModelKind::InstructPix2Pix => {
            let unet = UNetConfig::open(folder.join("unet"))?;
            vec![("unet", "cross_attention_dim", unet.cross_attention_dim, "text_encoder", clip.hidden_size)]
        }
    };
    for (part, field, wanted, encoder, given) in pairs {
        if wanted != given {
            let problem = format!("`{field}` is {wanted}, but the embeddings of {encoder} have {given} numbers");
            return Err(Error::file(folder.join(part).join("config.json"), problem)
                .hint(format!("{part} and {encoder} must be of one model")));
        }
    }
    Ok(())
}

//! The FLUX transformer, run as diffusers ran it.

use burn::tensor::{FloatDType, Tensor};

use super::{Golden, Sink};
use crate::{
    error::Result,
    lending::Part,
    limits::Limits,
    models::{
        Network, Segment,
        flux::{FluxInputs, FluxState, FluxTransformer, pack},
    },
};

/// The transformer of a golden.
///
/// # Errors
/// Its files are missing or broken.
pub fn open(golden: &Golden, dtype: FloatDType) -> Result<FluxTransformer> {
    FluxTransformer::open(golden.model.join("transformer"), &golden.device, Some(dtype))
}

/// The inputs of the transformer in a section.
///
/// # Errors
/// The section lacks a tensor.
pub fn inputs(golden: &Golden, model: &FluxTransformer, section: &str, dtype: FloatDType) -> Result<FluxInputs> {
    let of = |part: &str| format!("{section}.{part}");
    let latents: Tensor<4> = golden.tensor(&of("latents"))?;
    let [_, _, height, width] = latents.dims();
    let txt: Tensor<3> = golden.tensor(&of("encoder_hidden_states"))?;
    Ok(FluxInputs {
        img: pack(latents).cast(dtype),
        pooled: golden.tensor::<2>(&of("pooled_projections"))?.cast(dtype),
        sigma: golden.tensor(&of("timestep"))?,
        guidance: golden.tensor(&of("guidance"))?,
        rope: model.config.rope(txt.dims()[1], height, width, &golden.device),
        txt: txt.cast(dtype),
        limits: Limits::NONE,
    })
}

/// Predictions for square, wide and batched latents.
///
/// # Errors
/// Model or golden are incomplete, or `found` refuses.
pub fn outputs(golden: &Golden, dtype: FloatDType, found: Sink) -> Result<()> {
    let model = open(golden, dtype)?;
    for case in 0..3 {
        let section = format!("transformer.{case}");
        let inputs = inputs(golden, &model, &section, dtype)?;
        found(&format!("{section}.output"), model.forward(&inputs).into_data())?;
    }
    Ok(())
}

/// The outputs of every segment for the first case.
///
/// # Errors
/// As [`outputs`].
pub fn blocks(golden: &Golden, dtype: FloatDType, found: Sink) -> Result<()> {
    let model = open(golden, dtype)?;
    let inputs = inputs(golden, &model, "transformer.0", dtype)?;
    let text_tokens = inputs.txt.dims()[1];
    let mut found = |name: &str, x: &Tensor<3>| found(&format!("transformer.0.taps.{name}"), x.to_data());
    let mut state = FluxState::Start;
    for segment in model.lender().walk(0..model.len(), None) {
        state = segment.run(&inputs, state);
        match (&state, segment.name().split_once('.')) {
            (FluxState::Two { img, txt, .. }, None) => {
                found("x_embedder", img)?;
                found("context_embedder", txt)?;
            }
            (FluxState::Two { img, txt, .. }, Some((_, i))) => {
                found(&format!("double_{i}.0"), txt)?;
                found(&format!("double_{i}.1"), img)?;
            }
            (FluxState::One { x, .. }, Some((_, i))) => {
                let image_tokens = x.dims()[1] - text_tokens;
                found(&format!("single_{i}.0"), &x.clone().narrow(1, 0, text_tokens))?;
                found(&format!("single_{i}.1"), &x.clone().narrow(1, text_tokens, image_tokens))?;
            }
            _ => {} // the head: it is the output
        }
    }
    Ok(())
}

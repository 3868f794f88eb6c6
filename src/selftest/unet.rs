//! The U-Net, run as diffusers ran it.

use burn::tensor::{FloatDType, Tensor};

use super::{Golden, Sink};
use crate::{
    error::Result,
    lending::Part,
    limits::Limits,
    models::{
        Network, Segment,
        unet::{UNet, UNetInputs, UNetState},
    },
};

/// The U-Net of a golden.
///
/// # Errors
/// Its files are missing or broken.
pub fn open(golden: &Golden, dtype: FloatDType) -> Result<UNet> {
    UNet::open(golden.model.join("unet"), &golden.device, Some(dtype))
}

/// The inputs of the U-Net in a section.
///
/// # Errors
/// The section lacks a tensor.
pub fn inputs(golden: &Golden, section: &str, dtype: FloatDType) -> Result<UNetInputs> {
    Ok(UNetInputs {
        sample: golden.tensor::<4>(&format!("{section}.sample"))?.cast(dtype),
        timestep: golden.tensor(&format!("{section}.timestep"))?,
        text: golden.tensor::<3>(&format!("{section}.encoder_hidden_states"))?.cast(dtype),
        limits: Limits::NONE,
    })
}

/// Predictions for square, wide and odd latents.
///
/// # Errors
/// Model or golden are incomplete, or `found` refuses.
pub fn outputs(golden: &Golden, dtype: FloatDType, found: Sink) -> Result<()> {
    let model = open(golden, dtype)?;
    for case in 0..3 {
        let section = format!("unet.{case}");
        let output = model.forward(&inputs(golden, &section, dtype)?);
        found(&format!("{section}.output"), output.into_data())?;
    }
    Ok(())
}

/// The outputs of every level for the first case.
///
/// # Errors
/// As [`outputs`].
pub fn levels(golden: &Golden, dtype: FloatDType, found: Sink) -> Result<()> {
    let model = open(golden, dtype)?;
    let inputs = inputs(golden, "unet.0", dtype)?;
    let mut found = |name: &str, x: &Tensor<4>| found(&format!("unet.0.taps.{name}"), x.to_data());
    let mut state = UNetState::Start;
    for index in 0..model.len() - 1 {
        let (segment, next) = (model.lend(index, None), model.lend(index + 1, None));
        state = segment.run(&inputs, state);
        let UNetState::Way { x: picture, .. } = &state else { break };
        match segment.name().split_once('.') {
            _ if segment.name() == next.name() => {}
            None if segment.name().is_empty() => found("conv_in", picture)?,
            Some(("down_blocks", level)) => found(&format!("down_{level}.0"), picture)?,
            Some(("up_blocks", level)) => found(&format!("up_{level}"), picture)?,
            _ => found("mid", picture)?,
        }
    }
    Ok(())
}

//! Five training steps of diffusers' FLUX LoRA script, replayed: losses, norms, first and last gradients, final adapter.

use burn::tensor::{FloatDType, Tensor};

use super::{Golden, Sink, flux};
use crate::{
    error::Result,
    lora::{Denoiser, Lora, LoraLayer, name_a, name_b},
    models::{Network, flux::unpack, text::PromptEmbeds},
    schedulers::FlowMatchEuler,
    training::{
        Activations, FlowMatchingConfig, OptimizerConfig, Weighting,
        objective::FlowMatching,
        optimizer::AdamW,
        step::{Learner, Stepped},
    },
};

/// The golden's adapter before the first step.
///
/// # Errors
/// The golden lacks a tensor.
pub fn adapter(golden: &Golden, section: &str) -> Result<Lora> {
    let prefix = format!("{section}.init.");
    let alpha = golden.number(section, "alpha")?;
    let mut layers = Vec::new();
    for name in golden.names(&prefix) {
        if let Some(layer) = name.strip_prefix(&prefix).and_then(|name| name.strip_suffix(&name_a(""))) {
            let factor = |name: String| golden.tensor(&format!("{prefix}{name}"));
            let (a, b) = (factor(name_a(layer))?, factor(name_b(layer))?);
            layers.push(LoraLayer { name: layer.into(), a, b, alpha, pointwise: false });
        }
    }
    Ok(Lora::new(Denoiser::Transformer, layers))
}

/// Replays the steps of `section`, the transformer in `dtype` and the adapter in f32.
///
/// # Errors
/// Model or golden are incomplete, the adapter does not fit, or `found` refuses.
pub fn replay(golden: &Golden, dtype: FloatDType, section: &str, activations: Activations, found: Sink) -> Result<()> {
    let mut model = flux::open(golden, dtype)?;
    let lora = adapter(golden, section)?;
    let number = |key: &str| golden.number(section, key);
    let weighting =
        if golden.section(section)["weighting_scheme"] == "cosmap" { Weighting::Cosmap } else { Weighting::None };
    let objective = FlowMatching {
        config: FlowMatchingConfig { weighting, guidance: number("guidance_scale")?, ..Default::default() },
        scheduler: FlowMatchEuler::default(),
    };
    let optimizer = AdamW::new(OptimizerConfig {
        learning_rate: number("lr")?,
        weight_decay: number("weight_decay")?,
        epsilon: number("eps")?,
        max_grad_norm: number("max_grad_norm")?,
        ..Default::default()
    });
    lora.check(&model.layers())?;
    let mut learner = Learner::new(Some(lora), optimizer, activations);
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 1..=5 {
        let of = |part: &str| format!("{section}.step{step}.{part}");
        let latents: Tensor<4> = golden.tensor(&of("latents"))?;
        let [_, _, height, width] = latents.dims();
        let text = PromptEmbeds {
            prompt: golden.tensor(&format!("{section}.prompt_embeds"))?,
            pooled: golden.tensor(&format!("{section}.pooled_prompt_embeds"))?,
        };
        let (noise, sigmas) = (golden.tensor(&of("noise"))?, golden.floats(&of("sigmas"))?);
        let example = objective.example(&model.config, latents, text, noise, &sigmas, dtype);
        let prediction = model.predict(&example.inputs, learner.adapters().as_slice()).squeeze_dim(1);
        found(&of("prediction"), unpack(prediction, height, width).into_data())?;
        let summed = learner.gradients(None, &model, &example, step);
        if step == 1 || step == 5 {
            // A missing or superfluous gradient shows as a name that only one side has.
            let of = |name: &str| format!("{section}.grad{step}.{name}");
            let gradients = summed.mean();
            let missing = golden.names(&of("")).into_iter().find(|name| !gradients.contains_key(&name[of("").len()..]));
            if let Some(name) = missing {
                return Err(golden.wrong(&name, "is a gradient that was not computed"));
            }
            gradients.iter().try_for_each(|(name, gradient)| found(&of(name), gradient.to_data()))?;
        }
        let Stepped { loss, grad_norm } = learner.apply(&mut model, number("lr")?, summed);
        losses.push(loss);
        norms.push(grad_norm);
    }
    found(&format!("{section}.loss"), Tensor::<1>::cat(losses, 0).into_data())?;
    found(&format!("{section}.grad_norm"), Tensor::<1>::cat(norms, 0).into_data())?;
    let mut all = Ok(());
    learner.parameters(&mut model, &mut |name, parameter| {
        if all.is_ok() {
            all = found(&format!("{section}.final.{name}"), parameter.flat().into_data());
        }
    });
    all
}

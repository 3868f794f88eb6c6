//! Five steps of diffusers' InstructPix2Pix script, replayed: losses, norms, first gradients, final weights, EMA.

use burn::tensor::{FloatDType, Tensor};

use super::{Golden, Sink, unet};
use crate::{
    error::Result,
    lending::Residence,
    models::{
        text::TextEncoders,
        unet::UNet,
        vae::{AutoencoderKl, Moments},
    },
    nn::Parameters,
    schedulers::SchedulerConfig,
    tokenizer::PromptIds,
    training::{
        Activations, Ema, InstructPix2PixConfig, OptimizerConfig,
        objective::Denoising,
        optimizer::AdamW,
        step::{Learner, Stepped},
    },
};

/// The section of the golden.
pub const SECTION: &str = "train_ip2p";

fn key(name: &str) -> String {
    format!("{SECTION}.{name}")
}

/// The embeddings of token ids `[rows, 77]`, f32.
fn embed(golden: &Golden, text: &TextEncoders, name: &str) -> Result<Tensor<3>> {
    let (ids, length) = (golden.ids(&key(name))?, golden.shape(&key("null_ids"))?[1]);
    let prompts: Vec<_> = ids.chunks(length).map(|clip| PromptIds { clip: clip.to_vec(), t5: vec![] }).collect();
    Ok(text.encode(&prompts).prompt)
}

/// The first layer of a U-Net, which is new in a widened model: weight and bias.
fn first_layer(model: &mut UNet) -> Vec<(String, Tensor<1>)> {
    let mut found = Vec::new();
    model.parameters("", &mut |name, parameter| {
        if name.starts_with("conv_in.") {
            found.push((name.to_string(), parameter.flat()));
        }
    });
    found
}

/// Replays the steps, the U-Net in `dtype` and what prepares its data in f32; in bf16, in
/// which no whole model is trained (its steps are smaller than the rounding), the first step ends with its gradients.
///
/// # Errors
/// Model or golden are incomplete, or `found` refuses.
pub fn replay(golden: &Golden, dtype: FloatDType, activations: Activations, found: Sink) -> Result<()> {
    let f32 = Some(FloatDType::F32);
    let mut model = unet::open(golden, dtype)?;
    model.widen(2 * model.config.out_channels);
    let vae = AutoencoderKl::open_in(&golden.model, Residence::Resident, &golden.device)?;
    let text = TextEncoders::open(&golden.model, &golden.device, f32)?;
    let scheduler = SchedulerConfig::open(golden.model.join("scheduler"))?;
    let objective = Denoising {
        config: InstructPix2PixConfig::default(),
        schedule: scheduler.noise_schedule(),
        prediction: scheduler.prediction_type,
    };
    let number = |name: &str| golden.number(SECTION, name);
    let optimizer = AdamW::new(OptimizerConfig {
        learning_rate: number("lr")?,
        weight_decay: number("weight_decay")?,
        epsilon: number("eps")?,
        max_grad_norm: number("max_grad_norm")?,
        ..Default::default()
    });
    let ema = Ema::new(number("ema_decay")?);
    let mut learner = Learner::new(None, optimizer, activations).with_ema(Some(ema));
    let edited = vae.encode(golden.tensor(&key("edited_pixels"))?).into_tensor();
    let original: Tensor<4> = vae.encode(golden.tensor(&key("original_pixels"))?).mode();
    let (prompts, null) = (embed(golden, &text, "input_ids")?, embed(golden, &text, "null_ids")?);
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 1..=5 {
        let of = |part: &str| key(&format!("step{step}.{part}"));
        let sample = Moments::from_tensor(edited.clone()).sample(golden.tensor(&of("vae_noise"))?);
        let latents = vae.latent_scale().normalize(sample);
        let dropped = golden.ids(&of("prompt_dropped"))?.into_iter().enumerate();
        let rows =
            dropped.map(|(i, dropped)| if dropped != 0 { null.clone() } else { prompts.clone().narrow(0, i, 1) });
        let words = Tensor::cat(rows.collect(), 0);
        let condition = original.clone() * golden.tensor::<1>(&of("image_mask"))?.reshape([-1, 1, 1, 1]);
        let (noise, timesteps) = (golden.tensor(&of("noise"))?, golden.ids(&of("timesteps"))?);
        let example = objective.example(latents, condition, words, noise, &timesteps, dtype);
        found(&of("prediction"), model.forward(&example.inputs).into_data())?;
        let summed = learner.gradients(None, &model, &example, step);
        if step == 1 {
            let (prefix, gradients) = (key("grad1."), summed.mean());
            for name in golden.names(&prefix) {
                let gradient = gradients.get(&name[prefix.len()..]);
                let gradient = gradient.ok_or_else(|| golden.wrong(&name, "is a gradient that was not computed"))?;
                found(&name, gradient.to_data())?;
            }
        }
        if dtype != FloatDType::F32 {
            return Ok(());
        }
        let Stepped { loss, grad_norm } = learner.apply(&mut model, number("lr")?, summed);
        losses.push(loss);
        norms.push(grad_norm);
    }
    found(&key("loss"), Tensor::<1>::cat(losses, 0).into_data())?;
    found(&key("grad_norm"), Tensor::<1>::cat(norms, 0).into_data())?;
    for (name, tensor) in first_layer(&mut model) {
        found(&key(&format!("final.{name}")), tensor.into_data())?;
    }
    let mean = learner.ema().and_then(|ema| ema.means().get("conv_in.weight"));
    mean.map_or(Ok(()), |mean| found(&key("ema.conv_in.weight"), mean.to_data()))
}

//! Five steps of diffusers' InstructPix2Pix script, replayed: dropout, losses, first gradients, final weights, EMA.

use burn::tensor::{Device, FloatDType};
use kiln::{
    data::joint_dropout,
    models::vae::{AutoencoderKl, Moments},
    selftest::edit_steps::{SECTION, replay},
    training::Activations,
};

use crate::support::goldens;

#[test]
fn five_steps_of_an_editing_model_match() {
    for golden in goldens("StableDiffusionInstructPix2PixPipeline") {
        for activations in [Activations::Blockwise, Activations::Full] {
            golden.agrees(|golden, dtype, found| replay(golden, dtype, activations, found));
        }
    }
}

#[test]
fn five_steps_of_a_widened_model_match() {
    for golden in goldens("StableDiffusionPipeline") {
        golden.agrees(|golden, dtype, found| replay(golden, dtype, Activations::Blockwise, found));
    }
}

#[test]
fn latents_and_what_is_dropped_are_those_of_the_script() {
    for golden in goldens("StableDiffusionInstructPix2PixPipeline") {
        let key = |name: &str| format!("{SECTION}.{name}");
        let vae = AutoencoderKl::open(golden.model.join("vae"), &Device::flex(), Some(FloatDType::F32)).unwrap();
        let edited = vae.encode(golden.tensor(&key("edited_pixels"))).into_tensor();
        let probability = golden.number(SECTION, "conditioning_dropout_prob").unwrap();
        for step in 1..=5 {
            let of = |part: &str| key(&format!("step{step}.{part}"));
            let sample = Moments::from_tensor(edited.clone()).sample(golden.tensor(&of("vae_noise")));
            golden.check(&of("latents"), vae.latent_scale().normalize(sample));
            let draws = golden.floats(&of("random_p"));
            let dropped: Vec<_> = draws.iter().map(|&u| joint_dropout(u, probability)).collect();
            let pictures = dropped.iter().map(|d| if d.image { 0.0 } else { 1.0 }).collect::<Vec<f32>>();
            assert_eq!(pictures, golden.floats(&of("image_mask")));
            let texts = dropped.iter().map(|d| i64::from(d.text)).collect::<Vec<_>>();
            assert_eq!(texts, golden.ids(&of("prompt_dropped")));
        }
    }
}

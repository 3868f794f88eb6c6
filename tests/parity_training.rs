//! Five training steps of diffusers' FLUX LoRA script, replayed: losses, first and last gradients, final adapter.

mod support;

use burn::tensor::FloatDType;
use kiln::{
    models::{Network, text::PromptEmbeds},
    schedulers::FlowMatchEuler,
    selftest::{flux, lora_steps},
    training::{
        Activations, FlowMatchingConfig,
        backward::{self, Subject, backward},
        objective::FlowMatching,
    },
};
use support::{Golden, goldens};

fn replay(golden: &Golden, section: &str) {
    for activations in [Activations::Blockwise, Activations::Full] {
        golden.agrees(|golden, dtype, found| lora_steps::replay(golden, dtype, section, activations, found));
    }
}

#[test]
fn five_steps_on_the_default_targets_match() {
    for golden in goldens("FluxPipeline") {
        replay(&golden, "train_lora");
    }
}

#[test]
fn five_steps_on_every_linear_layer_match() {
    for golden in goldens("FluxPipeline") {
        replay(&golden, "train_lora_all");
    }
}

#[test]
fn blockwise_and_full_gradients_are_the_same_bits() {
    for golden in goldens("FluxPipeline") {
        let section = "train_lora_all";
        let model = flux::open(&golden, FloatDType::F32).unwrap();
        let adapters = lora_steps::adapter(&golden, section).unwrap().adapters(1.0);
        let objective = FlowMatching { config: FlowMatchingConfig::default(), scheduler: FlowMatchEuler::default() };
        let of = |part: &str| format!("{section}.step1.{part}");
        let text = PromptEmbeds {
            prompt: golden.tensor(&format!("{section}.prompt_embeds")),
            pooled: golden.tensor(&format!("{section}.pooled_prompt_embeds")),
        };
        let sigmas = golden.floats(&of("sigmas"));
        let (latents, noise) = (golden.tensor(&of("latents")), golden.tensor(&of("noise")));
        let example = objective.example(&model.config, latents, text, noise, &sigmas, FloatDType::F32);
        let count = model.len();
        let run = |groups: &[_]| {
            backward(&model, Subject::Adapters(&adapters), &example.inputs, groups, |prediction| {
                example.loss(prediction)
            })
        };
        let (loss, gradients) = run(&backward::blockwise(count));
        let (full_loss, full_gradients) = run(&backward::full(count));
        loss.into_data().assert_eq(&full_loss.into_data(), true);
        assert_eq!(gradients.len(), full_gradients.len());
        for (name, gradient) in gradients {
            gradient.into_data().assert_eq(&full_gradients[&name].to_data(), true);
        }
    }
}

//! Five training steps of diffusers' FLUX LoRA script, replayed: losses, first and last gradients, final adapter. And five that
//! train all weights.

use std::collections::BTreeMap;

use burn::tensor::{FloatDType, Tensor};
use kiln::{
    models::{Network, text::PromptEmbeds},
    nn::Parameters,
    schedulers::FlowMatchEuler,
    selftest::{flux, lora_steps},
    training::{
        Activations, Ema, FlowMatchingConfig, OptimizerConfig,
        backward::{self, Subject, backward},
        objective::FlowMatching,
        optimizer::{AdamW, clipping},
    },
    weights::TensorFile,
};

use crate::support::{Golden, goldens};

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

/// The results of torch and diffusers, with the distance of their float32 from their float64.
struct Full(TensorFile);

impl Full {
    fn values(&self, name: &str) -> Vec<f32> {
        self.0.read(name).unwrap().into_vec().unwrap()
    }

    /// Within four times that noise, or 1e-4 of the largest value.
    #[track_caller]
    fn agrees(&self, name: &str, found: Tensor<1>) {
        let (wanted, noise) = (self.values(name), self.values(&format!("noise.{name}"))[0]);
        let found: Vec<f32> = found.into_data().into_vec().unwrap();
        assert_eq!(found.len(), wanted.len(), "{name}");
        let largest = wanted.iter().fold(0f32, |most, x| most.max(x.abs()));
        let off = wanted.iter().zip(&found).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off <= (4.0 * noise).max(1e-4 * largest), "{name}: {off} off, values to {largest}, noise {noise}");
    }
}

#[test]
fn five_steps_of_all_weights_match() {
    let Some(golden) = goldens("FluxPipeline").into_iter().find(|golden| golden.model.ends_with("flux")) else {
        assert!(std::env::var_os("KILN_FIXTURES").is_some(), "no fixture called flux");
        return;
    };
    let file = golden.model.with_file_name("flux_full.safetensors");
    let full = Full(TensorFile::open(&file).unwrap());
    for groups in [backward::blockwise, backward::full] {
        let mut model = flux::open(&golden, FloatDType::F32).unwrap();
        let groups = groups(model.len());
        let config = FlowMatchingConfig { guidance: 3.5, ..Default::default() };
        let objective = FlowMatching { config, scheduler: FlowMatchEuler::default() };
        let mut optimizer =
            AdamW::new(OptimizerConfig { learning_rate: 1e-3, weight_decay: 1e-2, ..Default::default() });
        let mut ema = Ema::new(0.9999);
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for step in 1..=5 {
            let of = |part: &str| format!("train_lora.step{step}.{part}");
            let text = PromptEmbeds {
                prompt: golden.tensor("train_lora.prompt_embeds"),
                pooled: golden.tensor("train_lora.pooled_prompt_embeds"),
            };
            let (latents, noise) = (golden.tensor(&of("latents")), golden.tensor(&of("noise")));
            let sigmas = golden.floats(&of("sigmas"));
            let example = objective.example(&model.config, latents, text, noise, &sigmas, FloatDType::F32);
            let (loss, gradients) =
                backward(&model, Subject::Weights, &example.inputs, &groups, |prediction| example.loss(prediction));
            losses.push(loss);
            if step == 1 {
                let mut all = 0;
                model.parameters("", &mut |name, _| {
                    assert!(gradients.contains_key(name), "{name} has no gradient");
                    all += 1;
                });
                assert_eq!(gradients.len(), all);
                let shown =
                    full.0.names().into_iter().filter_map(|name| Some(name.strip_prefix("grad1.")?.to_string()));
                shown.for_each(|name| full.agrees(&format!("grad1.{name}"), gradients[&name].clone()));
            }
            let (norm, scale) = clipping(&gradients, 1.0, 1.0);
            norms.push(norm);
            optimizer.step(1e-3, &mut model, gradients, &scale);
            ema.update(&mut model);
        }
        full.agrees("loss", Tensor::cat(losses, 0));
        full.agrees("grad_norm", Tensor::cat(norms, 0));
        let mut weights = BTreeMap::new();
        model.parameters("", &mut |name, parameter| _ = weights.insert(name.to_string(), parameter.flat()));
        for (start, values) in [("final.", &weights), ("ema.", ema.means())] {
            for name in full.0.names().iter().filter(|name| name.starts_with(start)) {
                full.agrees(name, values[&name[start.len()..]].clone());
            }
        }
    }
}

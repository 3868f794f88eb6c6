//! Five training steps of diffusers' FLUX LoRA script, replayed: losses, first and last gradients, final adapter.

mod support;

use burn::tensor::{Device, FloatDType, Tensor};
use kiln::{
    lora::{name_a, name_b},
    models::{
        Segmented,
        flux::{FluxTransformer, unpack},
        text::PromptEmbeds,
    },
    nn::{Adapter, Linears},
    schedulers::FlowMatchEuler,
    training::{
        Mode, ObjectiveConfig, OptimizerConfig, Weighting,
        backward::{self, backward},
        objective::FlowMatching,
        optimizer::{AdamW, clip},
    },
};
use support::{Golden, Named, goldens};

/// Attaches the golden's initial adapter; returns the names of its layers.
fn attach(golden: &Golden, section: &str, model: &mut FluxTransformer, scale: f64) -> Vec<String> {
    let mut layers = Vec::new();
    model.linears("", &mut |name, layer| {
        let key = |tensor: String| format!("{section}.init.{tensor}");
        if golden.has(&key(name_a(name))) {
            let (a, b) = (golden.tensor(&key(name_a(name))), golden.tensor(&key(name_b(name))));
            layer.adapters.push(Adapter { a, b, scale, dropout: None });
            layers.push(name.to_string());
        }
    });
    assert_eq!(2 * layers.len(), golden.names(&format!("{section}.init.")).len());
    layers
}

fn number(golden: &Golden, section: &str, key: &str) -> f64 {
    golden.section(section)[key].as_f64().unwrap()
}

/// Asserts that a trained tensor is the golden's, within its noise and what that of the gradients becomes.
///
/// Adam divides a gradient by its own size: noise `n` in a gradient `g` moves a step by up to `lr·n / (|g| + eps)`, in
/// diffusers too, and where `g` is no larger than its noise the step is anything from `-lr` to `lr`.
fn check_trained(golden: &Golden, section: &str, name: &str, got: &Tensor<2>) {
    let key = format!("{section}.final.{name}");
    let (got, want): (Vec<f32>, _) = (got.to_data().into_vec().unwrap(), golden.floats(&key));
    assert_eq!(got.len(), want.len(), "{key}");
    let gradients = [1, 5].map(|step| format!("{section}.grad{step}.{name}"));
    let gradients = gradients.map(|key| (golden.tolerance(&key), golden.floats(&key)));
    let (lr, epsilon) = (number(golden, section, "lr"), number(golden, section, "eps"));
    for i in 0..want.len() {
        // B starts at zero, so the first gradient of A is exactly zero and moves nothing.
        let known = gradients.iter().filter(|(_, gradient)| gradient[i] != 0.0);
        let shares = known.map(|(noise, gradient)| noise / (f64::from(gradient[i].abs()) + epsilon));
        let share = shares.fold(0.0, f64::max).min(2.0);
        let allowed = golden.tolerance(&key) + 5.0 * lr * share;
        let difference = f64::from((got[i] - want[i]).abs());
        assert!(difference <= allowed, "{key}[{i}] differs by {difference:.3e}, allowed are {allowed:.3e}");
    }
}

fn replay(golden: &Golden, section: &str, groups: fn(usize) -> Vec<std::ops::Range<usize>>) {
    let device = Device::flex();
    let mut model = FluxTransformer::open(golden.model.join("transformer"), &device, Some(FloatDType::F32)).unwrap();
    let value = |key: &str| number(golden, section, key);
    attach(golden, section, &mut model, value("alpha") / value("rank"));
    let weighting = match golden.section(section)["weighting_scheme"].as_str().unwrap() {
        "cosmap" => Weighting::Cosmap,
        _ => Weighting::None,
    };
    let objective = FlowMatching {
        config: ObjectiveConfig { weighting, guidance: value("guidance_scale"), ..Default::default() },
        scheduler: FlowMatchEuler::default(),
    };
    let mut optimizer = AdamW::new(OptimizerConfig {
        learning_rate: value("lr"),
        weight_decay: value("weight_decay"),
        epsilon: value("eps"),
        ..Default::default()
    });
    let groups = groups(model.segments().len());
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 1..=5 {
        let of = |part: &str| format!("{section}.step{step}.{part}");
        let latents: Tensor<4> = golden.tensor(&of("latents"));
        let [_, _, height, width] = latents.dims();
        let text = PromptEmbeds {
            prompt: golden.tensor(&format!("{section}.prompt_embeds")),
            pooled: golden.tensor(&format!("{section}.pooled_prompt_embeds")),
        };
        let (noise, sigmas) = (golden.tensor(&of("noise")), golden.floats(&of("sigmas")));
        let example = objective.example(&model.config, latents, text, noise, &sigmas, FloatDType::F32);
        golden.check(&of("prediction"), unpack(model.forward(&example.inputs), height, width));
        let (loss, mut gradients) =
            backward(&model, Mode::Lora, &example.inputs, &groups, |prediction| example.loss(prediction));
        losses.push(loss);
        if step == 1 || step == 5 {
            for (name, gradient) in &gradients {
                golden.check_data(&format!("{section}.grad{step}.{name}"), gradient.to_data());
            }
            assert_eq!(gradients.len(), golden.names(&format!("{section}.grad{step}.")).len());
        }
        norms.push(clip(&mut gradients, 1.0, value("max_grad_norm")));
        let mut parameters = Vec::new();
        model.linears("", &mut |name, layer| {
            for adapter in &mut layer.adapters {
                parameters.push((name_a(name), adapter.a.clone()));
                parameters.push((name_b(name), adapter.b.clone()));
            }
        });
        let mut values = Named(parameters.into_iter().collect());
        optimizer.step(value("lr"), &mut values, gradients);
        model.linears("", &mut |name, layer| {
            for adapter in &mut layer.adapters {
                adapter.a = values.0[&name_a(name)].clone();
                adapter.b = values.0[&name_b(name)].clone();
            }
        });
    }
    golden.check(&format!("{section}.loss"), Tensor::<1>::cat(losses, 0));
    golden.check(&format!("{section}.grad_norm"), Tensor::<1>::cat(norms, 0));
    model.linears("", &mut |name, layer| {
        for adapter in &layer.adapters {
            check_trained(golden, section, &name_a(name), &adapter.a);
            check_trained(golden, section, &name_b(name), &adapter.b);
        }
    });
}

#[test]
fn five_steps_on_the_default_targets_match() {
    for golden in goldens("FluxPipeline") {
        replay(&golden, "train_lora", backward::blockwise);
        replay(&golden, "train_lora", backward::full);
    }
}

#[test]
fn five_steps_on_every_linear_layer_match() {
    for golden in goldens("FluxPipeline") {
        replay(&golden, "train_lora_all", backward::blockwise);
        replay(&golden, "train_lora_all", backward::full);
    }
}

#[test]
fn blockwise_and_full_gradients_are_the_same_bits() {
    for golden in goldens("FluxPipeline") {
        let section = "train_lora_all";
        let device = Device::flex();
        let mut model =
            FluxTransformer::open(golden.model.join("transformer"), &device, Some(FloatDType::F32)).unwrap();
        attach(&golden, section, &mut model, 1.0);
        let objective = FlowMatching { config: ObjectiveConfig::default(), scheduler: FlowMatchEuler::default() };
        let of = |part: &str| format!("{section}.step1.{part}");
        let text = PromptEmbeds {
            prompt: golden.tensor(&format!("{section}.prompt_embeds")),
            pooled: golden.tensor(&format!("{section}.pooled_prompt_embeds")),
        };
        let sigmas = golden.floats(&of("sigmas"));
        let (latents, noise) = (golden.tensor(&of("latents")), golden.tensor(&of("noise")));
        let example = objective.example(&model.config, latents, text, noise, &sigmas, FloatDType::F32);
        let count = model.segments().len();
        let run =
            |groups: &[_]| backward(&model, Mode::Lora, &example.inputs, groups, |prediction| example.loss(prediction));
        let (loss, gradients) = run(&backward::blockwise(count));
        let (full_loss, full_gradients) = run(&backward::full(count));
        loss.into_data().assert_eq(&full_loss.into_data(), true);
        assert_eq!(gradients.len(), full_gradients.len());
        for (name, gradient) in gradients {
            gradient.into_data().assert_eq(&full_gradients[&name].to_data(), true);
        }
    }
}

//! Training and sampling of a small FLUX transformer beside the same work in PyTorch: time and peak memory.
//!
//! The model has the shape of FLUX.1 at 71 M parameters: width 512, 4 double and 8 single blocks, random weights, f32; its
//! input is 256 image and 64 text tokens. The cases:
//!
//! - `train`: one LoRA step on a batch of 2 (rank 16 on diffusers' default layers): draw noise and noise levels, forward,
//!   backward, clip by the common norm, AdamW. Every activation is kept.
//! - `train_checkpointing`: the same step, keeping only what enters each block.
//! - `sample`: 8 calls of the transformer with an Euler step after each, batch 1.
//!
//! VAE and text encoders are left out on both sides. How it is run and measured: `benches/support/mod.rs`.

mod support;

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use kiln::{
    lora::{self, Lora, LoraConfig},
    models::{
        Segmented, draw_noise,
        flux::{FluxConfig, FluxInputs, FluxTransformer},
        text::PromptEmbeds,
    },
    rng::{Purpose, Seed},
    schedulers::{FlowMatchEuler, flow_match},
    training::{
        Mode, ObjectiveConfig, OptimizerConfig,
        backward::{self, backward},
        objective::FlowMatching,
        optimizer::{AdamW, clip},
    },
    weights::Weights,
};
use support::{Case, STEPS};

const SEED: Seed = Seed(0);
const BATCH: usize = 2;
const TEXT_TOKENS: usize = 64;
/// Of the latents, on each side: 256 image tokens.
const LATENT: usize = 32;
const GUIDANCE: f64 = 3.5;

fn main() {
    support::main("flux", setup);
}

/// Makes a case ready.
fn setup(case: Case) -> Box<dyn FnMut()> {
    let device = Device::flex();
    let config = FluxConfig {
        in_channels: 64,
        num_layers: 4,
        num_single_layers: 8,
        attention_head_dim: 64,
        num_attention_heads: 8,
        joint_attention_dim: 512,
        pooled_projection_dim: 256,
        axes_dims_rope: vec![8, 28, 28],
        ..Default::default()
    };
    let weights = Weights::random(SEED, &device, Some(FloatDType::F32));
    let model = FluxTransformer::load(&weights, config);
    match case {
        Case::Sample => {
            let text = text(&model.config, 1, &device);
            Box::new(move || sample(&model, &text, &device))
        }
        case => {
            let count = model.segments().len();
            let groups = match case {
                Case::Train => backward::full(count),
                _ => backward::blockwise(count),
            };
            let mut training = Training::new(model, &device);
            Box::new(move || training.step(&groups, &device))
        }
    }
}

fn normal<const D: usize>(name: &str, shape: [usize; D], device: &Device) -> Tensor<D> {
    let values = SEED.named(Purpose::Weights, name).normal(shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn text(config: &FluxConfig, batch: usize, device: &Device) -> PromptEmbeds {
    PromptEmbeds {
        prompt: normal("prompt", [batch, TEXT_TOKENS, config.joint_attention_dim], device),
        pooled: normal("pooled", [batch, config.pooled_projection_dim], device),
    }
}

/// The state of a training run.
struct Training {
    model: FluxTransformer,
    lora: Lora,
    optimizer: AdamW,
    settings: OptimizerConfig,
    objective: FlowMatching,
    text: PromptEmbeds,
    step: u64,
}

impl Training {
    fn new(mut model: FluxTransformer, device: &Device) -> Self {
        let config = LoraConfig::default(); // rank 16, diffusers' layers
        let lora = Lora::init(&config, SEED, &mut model).expect("the model has the layers of FLUX");
        lora.attach(&mut model, 1.0).expect("the adapter was made for this model");
        let settings = OptimizerConfig::default();
        let objective = FlowMatching {
            config: ObjectiveConfig { guidance: GUIDANCE, ..Default::default() },
            scheduler: FlowMatchEuler::default(),
        };
        let text = text(&model.config, BATCH, device);
        Self { model, lora, optimizer: AdamW::new(settings.clone()), settings, objective, text, step: 0 }
    }

    fn step(&mut self, groups: &[std::ops::Range<usize>], device: &Device) {
        let shape = [BATCH, self.model.config.in_channels / 4, LATENT, LATENT];
        let step = self.step;
        let draw = |purpose| draw_noise((0..).map(|row| SEED.draw(purpose, step, row)), shape, device);
        let tokens = (LATENT / 2).pow(2);
        let sigma = |sample| self.objective.draw_sigma(SEED, self.step, sample, tokens);
        let sigmas: Vec<f32> = (0..BATCH as u64).map(sigma).collect();
        let (latents, noise) = (draw(Purpose::Posterior), draw(Purpose::Noise));
        let text = self.text.clone();
        let example = self.objective.example(&self.model.config, latents, text, noise, &sigmas, FloatDType::F32);
        let loss = |prediction| example.loss(prediction) * BATCH as f64;
        let (loss, mut gradients) = backward(&self.model, Mode::Lora, &example.inputs, groups, loss);
        clip(&mut gradients, 1.0 / BATCH as f64, self.settings.max_grad_norm);
        self.optimizer.step(self.settings.learning_rate, &mut self.lora, gradients);
        lora::detach_all(&mut self.model);
        self.lora.attach(&mut self.model, 1.0).expect("the adapter was made for this model");
        self.step += 1;
        assert!(loss.into_scalar::<f32>().is_finite(), "the loss is a number");
    }
}

/// Denoises one picture.
fn sample(model: &FluxTransformer, text: &PromptEmbeds, device: &Device) {
    let tokens = (LATENT / 2).pow(2);
    let mut img = normal("noise", [1, tokens, model.config.in_channels], device);
    let rope = model.config.rope(TEXT_TOKENS, LATENT, LATENT, device);
    for pair in FlowMatchEuler::default().inference_sigmas(STEPS, tokens).windows(2) {
        let velocity = model.forward(&FluxInputs {
            img: img.clone(),
            txt: text.prompt.clone(),
            pooled: text.pooled.clone(),
            sigma: Tensor::full([1], pair[0], device),
            guidance: Tensor::full([1], GUIDANCE, device),
            rope: rope.clone(),
        });
        img = flow_match::step(img, velocity, pair[0], pair[1]);
    }
    assert!(img.sum().into_scalar::<f32>().is_finite(), "the latents are numbers");
}

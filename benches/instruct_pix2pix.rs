//! Training and sampling of a small editing UNet beside the same work in PyTorch: time and peak memory.
//!
//! The model has the layout of Stable Diffusion 1.5 with 8 input channels, at 35 M parameters: 64, 128, 256 and 256 channels, 2
//! residual blocks a level, 8 heads, random weights, f32; its input is 32 × 32 latents and 77 text tokens. The cases:
//!
//! - `train`: one step of full fine-tuning on a batch of 2: draw noise and timesteps, forward, backward, clip by the common
//!   norm, AdamW. Every activation is kept.
//! - `train_checkpointing`: the same step, keeping only what enters each block.
//! - `sample`: 8 Euler ancestral steps, batch 1, with the three predictions of the two guidance scales in each.
//!
//! VAE and text encoder are left out on both sides. How it is run and measured: `benches/support/mod.rs`.

mod support;

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use kiln::{
    models::{
        Segmented, draw_noise,
        unet::{PerLevel, UNet, UNetConfig, UNetInputs},
    },
    rng::{Purpose, Seed},
    schedulers::{SchedulerConfig, SchedulerName},
    training::{
        EditConfig, Mode, OptimizerConfig,
        backward::{self, backward},
        objective::Denoising,
        optimizer::{AdamW, clip},
    },
    weights::Weights,
};
use support::{Case, STEPS};

const SEED: Seed = Seed(0);
const BATCH: usize = 2;
const TEXT_TOKENS: usize = 77;
const LATENT: usize = 32;
/// How strongly to follow the text, and to keep to the picture.
const GUIDANCE: [f64; 2] = [7.5, 1.5];

fn main() {
    support::main("ip2p", setup);
}

/// Makes a case ready.
fn setup(case: Case) -> Box<dyn FnMut()> {
    let device = Device::flex();
    let config = UNetConfig {
        in_channels: 8,
        block_out_channels: vec![64, 128, 256, 256],
        cross_attention_dim: 256,
        attention_head_dim: PerLevel::One(8),
        ..Default::default()
    };
    let weights = Weights::random(SEED, &device, Some(FloatDType::F32));
    let model = UNet::load(&weights, config);
    // The betas of Stable Diffusion.
    let scheduler = SchedulerConfig::open("checkpoints/tiny-sd/scheduler").expect("cargo runs benches in the package");
    match case {
        Case::Sample => Box::new(move || sample(&model, &scheduler, &device)),
        case => {
            let count = model.segments().len();
            let groups = match case {
                Case::Train => backward::full(count),
                _ => backward::blockwise(count),
            };
            let mut training = Training::new(model, &scheduler);
            Box::new(move || training.step(&groups, &device))
        }
    }
}

fn normal<const D: usize>(name: &str, shape: [usize; D], device: &Device) -> Tensor<D> {
    let values = SEED.named(Purpose::Weights, name).normal(shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// The state of a training run.
struct Training {
    model: UNet,
    optimizer: AdamW,
    settings: OptimizerConfig,
    objective: Denoising,
    step: u64,
}

impl Training {
    fn new(model: UNet, scheduler: &SchedulerConfig) -> Self {
        let settings = OptimizerConfig { weight_decay: 1e-2, ..Default::default() };
        let objective = Denoising {
            config: EditConfig::default(),
            schedule: scheduler.noise_schedule(),
            prediction: scheduler.prediction_type,
        };
        Self { model, optimizer: AdamW::new(settings.clone()), settings, objective, step: 0 }
    }

    fn step(&mut self, groups: &[std::ops::Range<usize>], device: &Device) {
        let step = self.step;
        let draw =
            |purpose| draw_noise((0..).map(|row| SEED.draw(purpose, step, row)), [BATCH, 4, LATENT, LATENT], device);
        let timesteps: Vec<i64> =
            (0..BATCH as u64).map(|sample| self.objective.draw_timestep(SEED, step, sample)).collect();
        let text = normal("text", [BATCH, TEXT_TOKENS, self.model.config.cross_attention_dim], device);
        let (latents, condition, noise) = (draw(Purpose::Posterior), draw(Purpose::Condition), draw(Purpose::Noise));
        let example = self.objective.example(latents, condition, text, noise, &timesteps, FloatDType::F32);
        let loss = |prediction| example.loss(prediction) * BATCH as f64;
        let (loss, mut gradients) = backward(&self.model, Mode::Full, &example.inputs, groups, loss);
        clip(&mut gradients, 1.0 / BATCH as f64, self.settings.max_grad_norm);
        self.optimizer.step(self.settings.learning_rate, &mut self.model, gradients);
        self.step += 1;
        assert!(loss.into_scalar::<f32>().is_finite(), "the loss is a number");
    }
}

/// Denoises one picture.
fn sample(model: &UNet, scheduler: &SchedulerConfig, device: &Device) {
    let named = scheduler.with_name(SchedulerName::EulerAncestral);
    let mut sampler = named.scheduler(STEPS).expect("fewer steps than timesteps");
    let text = normal("text", [3, TEXT_TOKENS, model.config.cross_attention_dim], device);
    let picture = normal("picture", [3, 4, LATENT, LATENT], device);
    let mut latents = normal("noise", [1, 4, LATENT, LATENT], device) * sampler.init_noise_sigma();
    for (index, timestep) in sampler.timesteps().to_vec().into_iter().enumerate() {
        let input = sampler.scale_model_input(latents.clone(), index).repeat_dim(0, 3);
        let inputs = UNetInputs {
            sample: Tensor::cat(vec![input, picture.clone()], 1),
            timestep: Tensor::full([3], timestep, device),
            text: text.clone(),
        };
        let [with_text, with_picture, none] =
            model.forward(&inputs).chunk(3, 0).try_into().expect("a batch of three in three");
        let [text_scale, picture_scale] = GUIDANCE;
        let prediction =
            none.clone() + (with_text - with_picture.clone()) * text_scale + (with_picture - none) * picture_scale;
        let mut fresh = || normal("fresh", [1, 4, LATENT, LATENT], device);
        latents = sampler.step(prediction, index, latents, &mut fresh);
    }
    assert!(latents.sum().into_scalar::<f32>().is_finite(), "the latents are numbers");
}

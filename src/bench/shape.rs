//! The real shapes of the models, and small ones of the same layout for a CPU.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Case;
use crate::{
    models::{
        clip::ClipTextConfig,
        flux::FluxConfig,
        text::T5Config,
        unet::{PerLevel, UNetConfig},
        vae::VaeConfig,
    },
    schedulers::SchedulerConfig,
};

fn config<T: DeserializeOwned>(fields: Value) -> T {
    serde_json::from_value(fields).expect("written as the file of a checkpoint")
}

/// FLUX.1-dev's transformer (12 billion parameters), or one of 71 million.
pub fn flux(case: &Case) -> FluxConfig {
    let mut config = match case.small {
        false => FluxConfig::default(),
        true => FluxConfig {
            num_layers: 4,
            num_single_layers: 8,
            attention_head_dim: 64,
            num_attention_heads: 8,
            joint_attention_dim: 512,
            pooled_projection_dim: 256,
            axes_dims_rope: vec![8, 28, 28],
            ..Default::default()
        },
    };
    if let Some(layers) = case.layers {
        [config.num_layers, config.num_single_layers] = layers;
    }
    config
}

/// Stable Diffusion 1.5's UNet as InstructPix2Pix widens it (860 million parameters), or one of 35 million.
pub fn unet(case: &Case) -> UNetConfig {
    let full = UNetConfig { in_channels: 8, cross_attention_dim: 768, ..Default::default() };
    match case.small {
        false => full,
        true => UNetConfig {
            block_out_channels: vec![64, 128, 256, 256],
            cross_attention_dim: 256,
            attention_head_dim: PerLevel::One(8),
            ..full
        },
    }
}

/// FLUX.1's autoencoder (84 million parameters), or a narrow one.
pub fn vae(case: &Case) -> VaeConfig {
    let channels = if case.small { [32, 32, 64, 64] } else { [128, 256, 512, 512] };
    vae_of(channels, 16)
}

/// Stable Diffusion's autoencoder.
pub fn unet_vae() -> VaeConfig {
    vae_of([128, 256, 512, 512], 4)
}

fn vae_of(channels: [usize; 4], latent_channels: usize) -> VaeConfig {
    config(json!({
        "_class_name": "AutoencoderKL",
        "block_out_channels": channels,
        "down_block_types": vec!["DownEncoderBlock2D"; 4],
        "up_block_types": vec!["UpDecoderBlock2D"; 4],
        "latent_channels": latent_channels,
        "layers_per_block": 2,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": false,
        "use_post_quant_conv": false,
    }))
}

/// T5-XXL's encoder (4.7 billion parameters), or one of two thin blocks.
pub fn t5(case: &Case) -> T5Config {
    let (width, inner, layers, heads) = if case.small { (128, 320, 2, 2) } else { (4096, 10240, 24, 64) };
    config(json!({
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": width,
        "d_kv": 64,
        "d_ff": inner,
        "num_layers": layers,
        "num_heads": heads,
        "feed_forward_proj": "gated-gelu",
    }))
}

/// CLIP-L's text model (123 million parameters), or one of two thin blocks.
pub fn clip(case: &Case) -> ClipTextConfig {
    let (width, inner, layers, heads) = if case.small { (64, 256, 2, 2) } else { (768, 3072, 12, 12) };
    ClipTextConfig {
        hidden_size: width,
        intermediate_size: inner,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        ..Default::default()
    }
}

/// The noise schedule of Stable Diffusion.
pub fn noise_schedule() -> SchedulerConfig {
    let text = r#"{"_class_name": "EulerAncestralDiscreteScheduler", "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}"#;
    SchedulerConfig::parse("the schedule of Stable Diffusion", text).expect("written as the file of a checkpoint")
}

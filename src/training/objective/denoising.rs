//! What InstructPix2Pix learns (Brooks et al. 2023): the noise in an edited picture, from the original beside it and an
//! instruction.

use burn::tensor::{FloatDType, Tensor};

use super::Example;
use crate::{
    models::unet::UNetInputs,
    rng::{Purpose, Seed},
    schedulers::{NoiseSchedule, PredictionType},
    training::EditConfig,
};

/// Draws what the loss of a model with a noise schedule needs, and computes it.
#[derive(Clone, Debug)]
pub struct Denoising {
    /// Its settings.
    pub config: EditConfig,
    /// How noisy each timestep is.
    pub schedule: NoiseSchedule,
    /// What the model predicts.
    pub prediction: PredictionType,
}

impl Denoising {
    /// The timestep of one sample, all alike: a function of seed, step and sample number alone.
    pub fn draw_timestep(&self, seed: Seed, step: u64, sample: u64) -> i64 {
        let timesteps = self.schedule.alphas_cumprod.len();
        let draw = f64::from(seed.draw(Purpose::Sigma, step, sample).uniform(1)[0]);
        ((draw * timesteps as f64) as i64).min(timesteps as i64 - 1)
    }

    /// The model's inputs and target for scaled `latents` `[B, C, h, w]` of the edited pictures, mixed with `noise` at
    /// `timesteps`, beside the `condition`, the latents of the originals `[B, C, h, w]`; `text` `[B, T, D]` are the embeddings of
    /// the instructions. `dtype` is the model's.
    pub fn example(
        &self,
        latents: Tensor<4>,
        condition: Tensor<4>,
        text: Tensor<3>,
        noise: Tensor<4>,
        timesteps: &[i64],
        dtype: FloatDType,
    ) -> Example<UNetInputs> {
        let device = latents.device();
        let noisy = self.schedule.add_noise(latents.clone(), noise.clone(), timesteps);
        let steps: Vec<f32> = timesteps.iter().map(|&timestep| timestep as f32).collect();
        let weight: Vec<f32> = timesteps.iter().map(|&timestep| self.weight(timestep) as f32).collect();
        Example {
            inputs: UNetInputs {
                sample: Tensor::cat(vec![noisy, condition], 1).cast(dtype),
                timestep: Tensor::from_floats(steps.as_slice(), &device),
                text: text.cast(dtype),
            },
            target: match self.prediction {
                PredictionType::Epsilon => noise,
                PredictionType::VPrediction => self.schedule.velocity(latents, noise, timesteps),
            },
            weight: Tensor::from_floats(weight.as_slice(), &device),
        }
    }

    /// min-SNR (Hang et al. 2023): `min(snr, γ)` over what the squared error of the prediction is worth in units of latents.
    fn weight(&self, timestep: i64) -> f64 {
        let (snr, gamma) = (self.schedule.snr(timestep), self.config.snr_gamma);
        match self.prediction {
            _ if gamma == 0.0 => 1.0,
            PredictionType::Epsilon => snr.min(gamma) / snr,
            PredictionType::VPrediction => snr.min(gamma) / (snr + 1.0),
        }
    }
}

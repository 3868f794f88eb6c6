//! The objective of InstructPix2Pix (Brooks et al. 2023): predict the noise in an edited image, given the original and an instruction.

use burn::tensor::{Device, FloatDType, Tensor};

use super::{Draw, Example, Objective, draw::draw_normal};
use crate::{
    data::Batch,
    limits::Limits,
    models::{
        unet::{UNet, UNetInputs},
        vae::Moments,
    },
    pipelines::InstructPix2PixPipeline,
    rng::{Purpose, Seed},
    schedulers::{NoiseSchedule, PredictionType},
    training::InstructPix2PixConfig,
};

/// The denoising objective of a model with a noise schedule.
#[derive(Clone, Debug)]
pub struct Denoising {
    /// Its settings.
    pub config: InstructPix2PixConfig,
    /// The noise schedule.
    pub schedule: NoiseSchedule,
    /// The prediction type of the model.
    pub prediction: PredictionType,
}

impl Denoising {
    /// The timestep of one sample, uniformly distributed: a function of seed, step and sample number.
    pub fn draw_timestep(&self, seed: Seed, step: u64, sample: u64) -> i64 {
        let timesteps = self.schedule.alphas_cumprod.len();
        let draw = f64::from(seed.draw(Purpose::Sigma, step, sample).uniform(1)[0]);
        ((draw * timesteps as f64) as i64).min(timesteps as i64 - 1)
    }

    /// The model's inputs and target for scaled `latents` `[B, C, h, w]` of the edited images, mixed with `noise` at `timesteps`, with
    /// the latents of the originals `[B, C, h, w]` as `condition`; `text` `[B, T, D]` are the embeddings of the instructions. `dtype` is
    /// that of the model.
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
                limits: Limits::NONE,
            },
            target: match self.prediction {
                PredictionType::Epsilon => noise,
                PredictionType::VPrediction => self.schedule.velocity(latents, noise, timesteps),
            },
            weight: Tensor::from_floats(weight.as_slice(), &device),
        }
    }

    /// Min-SNR weights (Hang et al. 2023): `min(snr, γ)` divided by the weight of a squared error of the prediction in units of latents.
    fn weight(&self, timestep: i64) -> f64 {
        let (snr, gamma) = (self.schedule.snr(timestep), self.config.snr_gamma);
        match self.prediction {
            _ if gamma == 0.0 => 1.0,
            PredictionType::Epsilon => snr.min(gamma) / snr,
            PredictionType::VPrediction => snr.min(gamma) / (snr + 1.0),
        }
    }
}

impl Objective<InstructPix2PixPipeline> for Denoising {
    type Model = UNet;

    const LEVEL: &'static str = "timestep";

    fn model(pipeline: &InstructPix2PixPipeline) -> &UNet {
        &pipeline.unet
    }

    fn model_mut(pipeline: &mut InstructPix2PixPipeline) -> &mut UNet {
        &mut pipeline.unet
    }

    fn draw_level(&self, seed: Seed, step: u64, sample: u64, _: [usize; 4]) -> f64 {
        self.draw_timestep(seed, step, sample) as f64
    }

    fn draw_noise(&self, seed: Seed, step: u64, first: u64, shape: [usize; 4], device: &Device) -> Tensor<4> {
        let noise = draw_normal(seed, Purpose::Noise, step, first, shape, device);
        let offset = self.config.noise_offset;
        if offset == 0.0 {
            return noise;
        }
        let [rows, channels, ..] = shape;
        noise + draw_normal(seed, Purpose::Offset, step, first, [rows, channels, 1, 1], device) * offset
    }

    fn batch_example(&self, pipeline: &InstructPix2PixPipeline, batch: Batch, draw: Draw) -> Example<UNetInputs> {
        let scale = pipeline.vae.latent_scale();
        let raw = Moments::from_tensor(originals(&batch)).mode();
        let condition = if self.config.scaled_condition { scale.normalize(raw) } else { raw };
        let latents = scale.normalize(draw.latents(&Moments::from_tensor(batch.moments)));
        let timesteps: Vec<i64> = draw.levels.iter().map(|&timestep| timestep as i64).collect();
        let example = self.example(latents, condition, batch.prompt, draw.noise, &timesteps, pipeline.dtype());
        Example { inputs: UNetInputs { limits: pipeline.limits, ..example.inputs }, ..example }
    }
}

/// The moments of the originals of a batch of pairs.
pub(in crate::training) fn originals(batch: &Batch) -> Tensor<4> {
    batch.original.clone().expect("the dataset was prepared as pairs")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedulers::SchedulerConfig;

    fn objective(prediction: PredictionType, snr_gamma: f64) -> Denoising {
        let scheduler = SchedulerConfig::open("tests/fixtures/tiny-sd/scheduler").unwrap();
        let config = InstructPix2PixConfig { snr_gamma, ..Default::default() };
        Denoising { config, schedule: scheduler.noise_schedule(), prediction }
    }

    #[test]
    fn min_snr_bounds_what_little_noise_counts() {
        use PredictionType::{Epsilon, VPrediction};
        for prediction in [Epsilon, VPrediction] {
            assert_eq!([0, 500, 999].map(|t| objective(prediction, 0.0).weight(t)), [1.0; 3]);
        }
        // In units of latents, a squared error of the noise is worth 1 / snr, and one of the velocity 1 / (snr + 1).
        let (noise, velocity) = (objective(Epsilon, 5.0), objective(VPrediction, 5.0));
        let snr = |t| noise.schedule.snr(t);
        assert!(snr(10) > 5.0 && snr(900) < 5.0);
        let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-9, "{a} {b}");
        near(noise.weight(10) * snr(10), 5.0);
        near(velocity.weight(10) * (snr(10) + 1.0), 5.0);
        near(noise.weight(900), 1.0);
        near(velocity.weight(900) * (snr(900) + 1.0), snr(900));
    }

    #[test]
    fn timesteps_are_drawn_evenly_from_all() {
        let objective = objective(PredictionType::Epsilon, 0.0);
        let drawn: Vec<i64> = (0..4000).map(|sample| objective.draw_timestep(Seed(3), 0, sample)).collect();
        assert!(drawn.iter().all(|t| (0..1000).contains(t)));
        for low in (0..1000).step_by(250) {
            let share = drawn.iter().filter(|&&t| (low..low + 250).contains(&t)).count();
            assert!((900..1100).contains(&share), "{share} of 4000 from {low} on");
        }
    }

    #[test]
    fn the_condition_stands_behind_the_noisy_latents_and_the_target_is_what_the_model_predicts() {
        let (latents, noise) =
            (Tensor::ones([1, 4, 2, 2], &Device::flex()), Tensor::ones([1, 4, 2, 2], &Device::flex()) * 2.0);
        let condition = Tensor::ones([1, 4, 2, 2], &Device::flex()) * 7.0;
        let text = Tensor::zeros([1, 3, 5], &Device::flex());
        let example = |prediction| {
            let objective = objective(prediction, 0.0);
            let parts = (latents.clone(), condition.clone(), text.clone(), noise.clone());
            objective.example(parts.0, parts.1, parts.2, parts.3, &[500], FloatDType::F32)
        };
        let first =
            |t: Tensor<4>, channel| t.narrow(1, channel, 1).narrow(2, 0, 1).narrow(3, 0, 1).into_scalar::<f32>();
        let level = objective(PredictionType::Epsilon, 0.0).schedule.level(500);
        let (signal, sigma) = (level.signal as f32, level.sigma as f32);
        let (plain, velocity) = (example(PredictionType::Epsilon), example(PredictionType::VPrediction));
        assert!((first(plain.inputs.sample.clone(), 0) - (signal + 2.0 * sigma)).abs() < 1e-6);
        assert_eq!(first(plain.inputs.sample, 4), 7.0);
        assert_eq!(first(plain.target, 0), 2.0);
        assert!((first(velocity.target, 0) - (2.0 * signal - sigma)).abs() < 1e-6);
    }
}

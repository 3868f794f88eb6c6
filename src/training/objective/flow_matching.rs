//! The objective of FLUX: predict the velocity from latents to noise, at noise levels drawn from a chosen distribution.

use std::f64::consts::PI;

use burn::tensor::{FloatDType, Tensor};

use super::{Draw, Example, Objective};
use crate::{
    data::Batch,
    limits::Limits,
    models::{
        flux::{FluxConfig, FluxInputs, FluxTransformer, pack},
        text::PromptEmbeds,
        vae::Moments,
    },
    pipelines::FluxPipeline,
    rng::{Purpose, Seed},
    schedulers::{
        FlowMatchEuler,
        flow_match::{add_noise, shift_sigma, velocity},
    },
    training::{FlowMatchingConfig, Sampling, Shift, Weighting},
};

/// The flow-matching objective.
#[derive(Clone, Debug)]
pub struct FlowMatching {
    /// Its settings.
    pub config: FlowMatchingConfig,
    /// The scheduler's settings, for the shift by resolution.
    pub scheduler: FlowMatchEuler,
}

impl FlowMatching {
    /// The noise level of one sample: a function of seed, step and sample number.
    pub fn draw_sigma(&self, seed: Seed, step: u64, sample: u64, image_tokens: usize) -> f32 {
        let mut draw = seed.draw(Purpose::Sigma, step, sample);
        let sigma = match self.config.sampling {
            Sampling::Uniform => f64::from(draw.uniform(1)[0]),
            Sampling::LogitNormal => {
                let logit = self.config.logit_mean + self.config.logit_std * f64::from(draw.normal(1)[0]);
                1.0 / (1.0 + (-logit).exp())
            }
            Sampling::Mode => {
                let u = f64::from(draw.uniform(1)[0]);
                1.0 - u - self.config.mode_scale * ((PI * u / 2.0).cos().powi(2) - 1.0 + u)
            }
        };
        let shift = match self.config.shift {
            Shift::None => 1.0,
            Shift::Static(factor) => factor,
            Shift::Resolution => self.scheduler.resolution_shift(image_tokens),
        };
        let least = 1.0 / self.scheduler.num_train_timesteps as f64; // the lowest level the model was trained at
        shift_sigma(sigma, shift).clamp(least, 1.0) as f32
    }

    /// The model's inputs and target for normalized `latents` `[B, C, H, W]` mixed with `noise` at the levels `sigma`. `dtype` is that of
    /// the model.
    pub fn example(
        &self,
        model: &FluxConfig,
        latents: Tensor<4>,
        text: PromptEmbeds,
        noise: Tensor<4>,
        sigma: &[f32],
        dtype: FloatDType,
    ) -> Example<FluxInputs> {
        let [batch, _, height, width] = latents.dims();
        let device = latents.device();
        let levels = Tensor::<1>::from_floats(sigma, &device);
        let noisy = add_noise(latents.clone(), noise.clone(), levels.clone());
        let weight = sigma.iter().map(|&sigma| self.weight(f64::from(sigma)) as f32).collect::<Vec<_>>();
        Example {
            inputs: FluxInputs {
                img: pack(noisy).cast(dtype),
                rope: model.rope(text.prompt.dims()[1], height, width, &device),
                txt: text.prompt.cast(dtype),
                pooled: text.pooled.cast(dtype),
                sigma: levels,
                guidance: Tensor::full([batch], self.config.guidance, &device),
                limits: Limits::NONE,
            },
            target: pack(velocity(latents, noise)).unsqueeze_dim(1),
            weight: Tensor::from_floats(weight.as_slice(), &device),
        }
    }

    fn weight(&self, sigma: f64) -> f64 {
        match self.config.weighting {
            Weighting::None => 1.0,
            Weighting::SigmaSqrt => sigma.powi(-2),
            Weighting::Cosmap => 2.0 / (PI * (1.0 - 2.0 * sigma + 2.0 * sigma * sigma)),
        }
    }
}

impl Objective<FluxPipeline> for FlowMatching {
    type Model = FluxTransformer;

    const LEVEL: &'static str = "sigma";

    fn model(pipeline: &FluxPipeline) -> &FluxTransformer {
        &pipeline.transformer
    }

    fn model_mut(pipeline: &mut FluxPipeline) -> &mut FluxTransformer {
        &mut pipeline.transformer
    }

    fn draw_level(&self, seed: Seed, step: u64, sample: u64, [_, _, height, width]: [usize; 4]) -> f64 {
        f64::from(self.draw_sigma(seed, step, sample, (height / 2) * (width / 2)))
    }

    fn batch_example(&self, pipeline: &FluxPipeline, batch: Batch, draw: Draw) -> Example<FluxInputs> {
        let latents = draw.latents(&Moments::from_tensor(batch.moments));
        let latents = pipeline.vae.latent_scale().normalize(latents);
        let text = PromptEmbeds { prompt: batch.prompt, pooled: batch.pooled };
        let sigmas: Vec<f32> = draw.levels.iter().map(|&sigma| sigma as f32).collect();
        let (config, dtype) = (&pipeline.transformer.config, pipeline.dtype());
        let example = self.example(config, latents, text, draw.noise, &sigmas, dtype);
        Example { inputs: FluxInputs { limits: pipeline.limits, ..example.inputs }, ..example }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(config: FlowMatchingConfig) -> Vec<f32> {
        let objective = FlowMatching { config, scheduler: FlowMatchEuler::default() };
        (0..2000).map(|sample| objective.draw_sigma(Seed(1), 0, sample, 4096)).collect()
    }

    fn mean(values: &[f32]) -> f32 {
        values.iter().sum::<f32>() / values.len() as f32
    }

    #[test]
    fn drawn_levels_follow_their_distribution() {
        let unshifted = FlowMatchingConfig { shift: Shift::None, ..Default::default() };
        for sampling in [Sampling::Uniform, Sampling::LogitNormal, Sampling::Mode] {
            let drawn = levels(FlowMatchingConfig { sampling, ..unshifted.clone() });
            assert!(drawn.iter().all(|s| (0.0..=1.0).contains(s)));
            assert!((mean(&drawn) - 0.5).abs() < 0.02, "{sampling:?}: mean {}", mean(&drawn));
        }
        let noisier = levels(FlowMatchingConfig { logit_mean: 1.0, ..unshifted });
        assert!(mean(&noisier) > 0.6, "a positive logit mean means more noise");
    }

    #[test]
    fn the_resolution_shift_of_a_large_picture_means_more_noise() {
        let drawn = levels(FlowMatchingConfig { sampling: Sampling::Uniform, ..Default::default() });
        // E[s·u/(1+(s-1)·u)] for s = e^1.15
        let (shift, scale) = (1.15f64.exp(), 1.15f64.exp() - 1.0);
        let expected = shift / scale - shift * shift.ln() / (scale * scale);
        assert!((f64::from(mean(&drawn)) - expected).abs() < 0.02, "{} against {expected}", mean(&drawn));
    }
}

//! Training FLUX.1, or an adapter on it.

use burn::tensor::{Device, Tensor};
use image::RgbImage;

use crate::{
    data::{Batch, LatentDataset},
    error::Result,
    families::Family,
    generation::{self, Embedded, Generator, SamplingOptions},
    models::{
        flux::{FluxInputs, FluxTransformer},
        text::PromptEmbeds,
        vae::Moments,
    },
    nn::Adapters,
    pipelines::{FluxPipeline, Pipeline},
    rng::Seed,
    training::{
        FlowMatchingConfig, Mode, TrainConfig, ValidationConfig,
        objective::{Example, FlowMatching},
        record::grid::arrange,
        task::{Draw, Task},
    },
};

/// A FLUX.1 pipeline and the flow-matching objective.
pub(in crate::training) struct FluxTask {
    pipeline: FluxPipeline,
    objective: FlowMatching,
    validation: ValidationConfig,
    shown: Option<Shown>,
    mode: Mode,
    without_adapter: Vec<RgbImage>,
}

impl FluxTask {
    /// # Errors
    /// The images' size does not suit the model, or a prompt was not prepared.
    pub fn new(
        config: &TrainConfig,
        objective: &FlowMatchingConfig,
        dataset: &LatentDataset,
        family: &'static dyn Family,
        pipeline: FluxPipeline,
    ) -> Result<Self> {
        let objective = FlowMatching { config: objective.clone(), scheduler: pipeline.scheduler.clone() };
        let validation = config.validation.clone();
        let shown = Shown::new(&validation, dataset, family, &pipeline)?;
        let mode = config.training.mode;
        Ok(Self { pipeline, objective, validation, shown, mode, without_adapter: Vec::new() })
    }
}

impl Task for FluxTask {
    type Model = FluxTransformer;

    const LEVEL: &'static str = "sigma";

    fn model(&self) -> &FluxTransformer {
        &self.pipeline.transformer
    }

    fn model_mut(&mut self) -> &mut FluxTransformer {
        &mut self.pipeline.transformer
    }

    fn device(&self) -> &Device {
        self.pipeline.device()
    }

    fn draw_level(&self, seed: Seed, step: u64, sample: u64, [_, _, height, width]: [usize; 4]) -> f64 {
        f64::from(self.objective.draw_sigma(seed, step, sample, (height / 2) * (width / 2)))
    }

    fn example(&self, batch: Batch, draw: Draw) -> Example<FluxInputs> {
        let latents = draw.latents(&Moments::from_tensor(batch.moments));
        let latents = self.pipeline.vae.latent_scale().normalize(latents);
        let text = PromptEmbeds { prompt: batch.prompt, pooled: batch.pooled };
        let sigmas: Vec<f32> = draw.levels.iter().map(|&sigma| sigma as f32).collect();
        let config = &self.pipeline.transformer.config;
        let example = self.objective.example(config, latents, text, draw.noise, &sigmas, self.pipeline.dtype());
        Example { inputs: FluxInputs { limits: self.pipeline.limits, ..example.inputs }, ..example }
    }

    fn levels(&self) -> &[f64] {
        &self.validation.sigmas
    }

    /// The configured prompts and seeds: a row for each prompt, and for each seed the image; of an adapter, beside the one
    /// without it. An adapter that is not trained yet changes nothing, so nothing is made twice.
    fn grid(&mut self, adapters: &[Adapters], trained: bool) -> Result<Option<RgbImage>> {
        let Some(shown) = &self.shown else { return Ok(None) };
        if self.mode == Mode::Full {
            let pictures = shown.images(&self.pipeline, &[])?;
            return Ok(Some(arrange(&pictures.iter().collect::<Vec<_>>(), self.validation.seeds.len())));
        }
        if self.without_adapter.is_empty() {
            self.without_adapter = shown.images(&self.pipeline, &[])?;
        }
        let with_adapter = match trained {
            true => shown.images(&self.pipeline, adapters)?,
            false => self.without_adapter.clone(),
        };
        let pairs = self.without_adapter.iter().zip(&with_adapter).flat_map(|(before, after)| [before, after]);
        Ok(Some(arrange(&pairs.collect::<Vec<_>>(), 2 * self.validation.seeds.len())))
    }
}

/// The images of the grid: all prompts and seeds, seeds running fastest.
struct Shown {
    family: &'static dyn Family,
    batch: generation::Batch,
    shown: Embedded,
    options: SamplingOptions,
}

impl Shown {
    /// None if there are no prompts.
    ///
    /// # Errors
    /// A prompt was not prepared.
    fn new(
        config: &ValidationConfig,
        dataset: &LatentDataset,
        family: &'static dyn Family,
        pipeline: &FluxPipeline,
    ) -> Result<Option<Self>> {
        if config.prompts.is_empty() {
            return Ok(None);
        }
        let options = SamplingOptions {
            steps: Some(config.steps),
            guidance: Some(config.guidance),
            negative_prompt: (config.true_guidance > 1.0).then(String::new),
            true_guidance: Some(config.true_guidance),
            ..SamplingOptions::default()
        };
        let embeds = |prompts: &[&str]| dataset.embeds(prompts, pipeline.device());
        let prompts: Vec<_> = config.prompts.iter().map(String::as_str).collect();
        let negative = options.negative(family).map(|(prompt, scale)| Ok((embeds(&[prompt])?, scale)));
        let shown = Embedded { text: embeds(&prompts)?, negative: negative.transpose()? };
        let rows = (0..prompts.len()).flat_map(|prompt| config.seeds.iter().map(move |seed| (prompt, *seed)));
        let rows: Vec<(usize, u64)> = rows.collect();
        let noise = rows.iter().map(|&(_, seed)| pipeline.start_noise(seed, config.width, config.height));
        let noise = Tensor::cat(noise.collect(), 0);
        let batch = generation::Batch { rows, noise, pictures: None, strength: 1.0, mask: None };
        Ok(Some(Self { family, batch, shown, options }))
    }

    fn images(&self, pipeline: &FluxPipeline, adapters: &[Adapters]) -> Result<Vec<RgbImage>> {
        Generator { pipeline, family: self.family }.make(&self.batch, &self.shown, &self.options, adapters)
    }
}

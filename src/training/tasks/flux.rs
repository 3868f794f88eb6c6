//! Training FLUX.1, or an adapter on it.

use burn::tensor::Tensor;
use image::RgbImage;

use crate::{
    data::LatentDataset,
    error::Result,
    families::Family,
    generation::{self, Embedded, Generator, SamplingOptions},
    nn::Adapters,
    pipelines::{FluxPipeline, Pipeline},
    training::{
        FlowMatchingConfig, Mode, TrainConfig, ValidationConfig, objective::FlowMatching, record::grid::arrange,
        task::Task,
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
    /// The size of the images does not fit the model, or a prompt was not prepared.
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
    type Pipeline = FluxPipeline;
    type Objective = FlowMatching;

    fn objective(&self) -> &FlowMatching {
        &self.objective
    }

    fn pipeline(&self) -> &FluxPipeline {
        &self.pipeline
    }

    fn pipeline_mut(&mut self) -> &mut FluxPipeline {
        &mut self.pipeline
    }

    fn levels(&self) -> &[f64] {
        &self.validation.sigmas
    }

    /// A grid of the configured prompts and seeds: a row for each prompt, with an image for each seed; with an adapter, beside the image
    /// without it. An untrained adapter changes nothing, so no image is generated twice.
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

/// The images of the grid: all prompts and seeds, with seeds varying fastest.
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

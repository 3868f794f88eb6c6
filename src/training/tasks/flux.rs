//! Training FLUX.1, or an adapter on it.

use burn::tensor::{Device, Tensor};
use image::RgbImage;

use crate::{
    data::{Batch, LatentDataset},
    error::{Error, Result},
    models::{
        flux::{FluxInputs, FluxTransformer},
        text::PromptEmbeds,
        vae::Moments,
    },
    nn::Adapters,
    pipelines::{FluxPipeline, Pipeline, Request, Similarity},
    rng::Seed,
    training::{
        EditCurve, FlowMatchingConfig, Mode, TrainConfig, ValidationConfig,
        objective::{Example, FlowMatching},
        record::grid::arrange,
        task::{Noised, Task},
    },
};

/// A FLUX.1 pipeline and the flow-matching objective.
pub(in crate::training) struct FluxTask {
    pipeline: FluxPipeline,
    objective: FlowMatching,
    validation: ValidationConfig,
    job: Option<Request>,
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
        pipeline: FluxPipeline,
    ) -> Result<Self> {
        let objective = FlowMatching { config: objective.clone(), scheduler: pipeline.scheduler.clone() };
        let validation = config.validation.clone();
        let job = job(&validation, dataset, &pipeline)?;
        let mode = config.training.mode;
        Ok(Self { pipeline, objective, validation, job, mode, without_adapter: Vec::new() })
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

    fn example(&self, batch: Batch, noised: Noised) -> Example<FluxInputs> {
        let latents = noised.latents(&Moments::from_tensor(batch.moments));
        let latents = self.pipeline.vae.latent_scale().normalize(latents);
        let text = PromptEmbeds { prompt: batch.prompt, pooled: batch.pooled };
        let sigmas: Vec<f32> = noised.levels.iter().map(|&sigma| sigma as f32).collect();
        let config = &self.pipeline.transformer.config;
        let example = self.objective.example(config, latents, text, noised.noise, &sigmas, self.pipeline.dtype());
        Example { inputs: FluxInputs { limits: self.pipeline.limits, ..example.inputs }, ..example }
    }

    fn levels(&self) -> &[f64] {
        &self.validation.sigmas
    }

    /// The configured prompts and seeds: a row for each prompt, and for each seed the image; of an adapter, beside the one
    /// without it. An adapter that is not trained yet changes nothing, so nothing is made twice.
    fn grid(&mut self, adapters: &[Adapters], trained: bool) -> Result<Option<RgbImage>> {
        let Some(job) = &self.job else { return Ok(None) };
        if self.mode == Mode::Full {
            let pictures = pictures(&self.pipeline, job, &[])?;
            return Ok(Some(arrange(&pictures.iter().collect::<Vec<_>>(), self.validation.seeds.len())));
        }
        if self.without_adapter.is_empty() {
            self.without_adapter = pictures(&self.pipeline, job, &[])?;
        }
        let with_adapter = match trained {
            true => pictures(&self.pipeline, job, adapters)?,
            false => self.without_adapter.clone(),
        };
        let pairs = self.without_adapter.iter().zip(&with_adapter).flat_map(|(before, after)| [before, after]);
        Ok(Some(arrange(&pairs.collect::<Vec<_>>(), 2 * self.validation.seeds.len())))
    }

    fn curve(&self, _: &[Adapters], _: &Similarity) -> Result<EditCurve> {
        Err(Error::setting("clip", "is for models that edit images").hint("leave it out"))
    }
}

/// All prompts and seeds as one request, seeds running fastest.
fn job(config: &ValidationConfig, dataset: &LatentDataset, pipeline: &FluxPipeline) -> Result<Option<Request>> {
    if config.prompts.is_empty() {
        return Ok(None);
    }
    pipeline.check_size(config.width, config.height)?;
    let pairs = config.prompts.iter().flat_map(|prompt| config.seeds.iter().map(move |seed| (prompt.as_str(), *seed)));
    let (prompts, seeds): (Vec<_>, Vec<_>) = pairs.unzip();
    let noise = seeds.iter().map(|&seed| pipeline.start_noise(seed, config.width, config.height));
    let (text, noise) = (dataset.embeds(&prompts, pipeline.device())?, Tensor::cat(noise.collect(), 0));
    let negative = match config.true_guidance {
        scale if scale > 1.0 => Some((dataset.embeds(&[""], pipeline.device())?, scale)),
        _ => None,
    };
    Ok(Some(Request { guidance: config.guidance, negative, ..Request::new(text, noise, seeds, config.steps) }))
}

/// As many at a time as are sure to fit into memory.
fn pictures(pipeline: &FluxPipeline, job: &Request, adapters: &[Adapters]) -> Result<Vec<RgbImage>> {
    let job = Request { adapters: adapters.to_vec(), ..job.clone() };
    let ([all, _, height, width], [_, tokens, _]) = (job.noise.dims(), job.text.prompt.dims());
    let rows = 1 + usize::from(job.negative.is_some());
    let together = pipeline.pictures_that_fit((width, height), tokens, rows);
    let mut pictures = Vec::with_capacity(all);
    for first in (0..all).step_by(together) {
        let some = job.rows(first..(first + together).min(all));
        pictures.extend(pipeline.decode(pipeline.generate(&some, &mut |_| ())?)?);
    }
    Ok(pictures)
}

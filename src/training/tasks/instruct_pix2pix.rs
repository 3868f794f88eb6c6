//! Training Stable Diffusion to edit images by instruction.

use burn::tensor::Tensor;
use image::RgbImage;

use crate::{
    data::{Dropped, LatentDataset, SampleIndex},
    error::Result,
    families::Family,
    generation::{self, Embedded, Generator, SamplingOptions},
    models::{text::PromptEmbeds, vae::Moments},
    nn::Adapters,
    pipelines::{EditScore, InstructPix2PixPipeline, Pipeline, Similarity},
    rng::Seed,
    training::{
        InstructPix2PixConfig, TrainConfig, ValidationConfig,
        curve::{CurvePoint, EditCurve, IMAGE_GUIDANCES},
        objective::{Denoising, originals},
        record::grid::arrange,
        task::Task,
    },
};

/// An InstructPix2Pix pipeline and the objective of a model with a noise schedule.
pub(in crate::training) struct InstructPix2PixTask<'a> {
    pipeline: InstructPix2PixPipeline,
    family: &'static dyn Family,
    objective: Denoising,
    validation: ValidationConfig,
    levels: Vec<f64>,
    dataset: &'a LatentDataset,
    /// The held-out pairs of the grid, in batches of one size.
    shown: Vec<Vec<SampleIndex>>,
}

impl<'a> InstructPix2PixTask<'a> {
    /// The first convolution of a UNet without image input is widened.
    pub fn new(
        config: &TrainConfig,
        objective: &InstructPix2PixConfig,
        dataset: &'a LatentDataset,
        family: &'static dyn Family,
        mut pipeline: InstructPix2PixPipeline,
    ) -> Self {
        if !pipeline.edits() {
            let channels = 2 * pipeline.unet.config.in_channels;
            tracing::info!("the UNet now has {channels} input channels; the weights of the new ones are zero");
            pipeline.unet.widen(channels);
        }
        let validation = config.validation.clone();
        let objective = Denoising {
            config: objective.clone(),
            schedule: pipeline.scheduler.noise_schedule(),
            prediction: pipeline.scheduler.prediction_type,
        };
        if let Some(name) = validation.scheduler {
            pipeline.scheduler = pipeline.scheduler.with_name(name);
        }
        let mut left = validation.edits;
        let mut shown = dataset.held_out(Seed(config.run.seed));
        for batch in &mut shown {
            batch.truncate(left);
            left -= batch.len();
        }
        shown.retain(|batch| !batch.is_empty());
        let levels = validation.timesteps.iter().map(|&timestep| f64::from(timestep)).collect();
        Self { pipeline, family, objective, validation, levels, dataset, shown }
    }

    /// The pairs of a batch.
    fn pairs(&self, samples: &[SampleIndex]) -> Result<Pairs> {
        let data = self.dataset.batch(samples, &vec![Dropped::default(); samples.len()], self.device())?;
        let scale = self.pipeline.vae.latent_scale();
        let latents = Moments::from_tensor(originals(&data)).mode();
        let target = Moments::from_tensor(data.moments).mode();
        Ok(Pairs {
            shown: Embedded {
                text: PromptEmbeds { prompt: data.prompt, pooled: data.pooled },
                negative: Some((self.dataset.embeds(&[""], self.device())?, self.validation.text_guidance)),
            },
            originals: self.pipeline.decode(scale.normalize(latents.clone()))?,
            targets: self.pipeline.decode(scale.normalize(target))?,
            latents,
        })
    }

    /// Edits of pairs with one of the configured seeds.
    fn edit(&self, pairs: &Pairs, seed: u64, image_guidance: f64, adapters: &[Adapters]) -> Result<Vec<RgbImage>> {
        let [count, _, height, width] = pairs.latents.dims();
        let factor = self.pipeline.vae.downsampling();
        let batch = generation::Batch {
            rows: (0..count).map(|pair| (pair, seed)).collect(),
            noise: self.pipeline.start_noise(seed, width * factor, height * factor).repeat_dim(0, count),
            pictures: Some(pairs.latents.clone()),
            strength: 1.0,
            mask: None,
        };
        let options = SamplingOptions {
            steps: Some(self.validation.steps),
            guidance: Some(self.validation.text_guidance),
            image_guidance: Some(image_guidance),
            scaled_condition: self.objective.config.scaled_condition,
            ..SamplingOptions::default()
        };
        Generator { pipeline: &self.pipeline, family: self.family }.make(&batch, &pairs.shown, &options, adapters)
    }
    /// The CLIP curve of edits of at least one held-out pair, with `adapters`.
    ///
    /// # Errors
    /// An image is not finite, or the cache is damaged.
    pub fn curve(&self, adapters: &[Adapters], similarity: &Similarity) -> Result<EditCurve> {
        let mut of_guidance = vec![Vec::new(); IMAGE_GUIDANCES.len()];
        let mut of_targets = Vec::new();
        for batch in &self.shown {
            let pairs = self.pairs(batch)?;
            let measure = |edits: &[RgbImage], scores: &mut Vec<EditScore>| {
                for ((index, original), edit) in batch.iter().zip(&pairs.originals).zip(edits) {
                    let sample = &self.dataset.samples()[index.sample];
                    let captions = sample.original_caption.as_deref().zip(sample.edited_caption.as_deref());
                    scores.push(similarity.measure(original, edit, captions)?);
                }
                Ok(())
            };
            measure(&pairs.targets, &mut of_targets)?;
            for (&guidance, scores) in IMAGE_GUIDANCES.iter().zip(&mut of_guidance) {
                for &seed in &self.validation.seeds {
                    measure(&self.edit(&pairs, seed, guidance, adapters)?, scores)?;
                }
            }
        }
        let points = IMAGE_GUIDANCES.into_iter().zip(of_guidance);
        Ok(EditCurve {
            edits: of_targets.len(),
            text_guidance: self.validation.text_guidance,
            points: points.map(|(guidance, scores)| CurvePoint::new(Some(guidance), &scores)).collect(),
            target: CurvePoint::new(None, &of_targets),
        })
    }
}

/// Held-out pairs of one size. The images are reconstructions of the VAE, the best that an edit can look.
struct Pairs {
    /// The instructions, and guidance against the empty prompt.
    shown: Embedded,
    /// Raw latents of the originals, `[B, C, h, w]`.
    latents: Tensor<4>,
    originals: Vec<RgbImage>,
    targets: Vec<RgbImage>,
}

impl Task for InstructPix2PixTask<'_> {
    type Pipeline = InstructPix2PixPipeline;
    type Objective = Denoising;

    fn objective(&self) -> &Denoising {
        &self.objective
    }

    fn pipeline(&self) -> &InstructPix2PixPipeline {
        &self.pipeline
    }

    fn pipeline_mut(&mut self) -> &mut InstructPix2PixPipeline {
        &mut self.pipeline
    }

    fn levels(&self) -> &[f64] {
        &self.levels
    }

    /// A grid of held-out pairs: a row for each, with the original, an edit for each seed, and the target.
    fn grid(&mut self, adapters: &[Adapters], _: bool) -> Result<Option<RgbImage>> {
        let mut pictures = Vec::new();
        for batch in &self.shown {
            let pairs = self.pairs(batch)?;
            let mut columns = vec![pairs.originals.clone()];
            for &seed in &self.validation.seeds {
                columns.push(self.edit(&pairs, seed, self.validation.image_guidance, adapters)?);
            }
            columns.push(pairs.targets);
            let row = |i: usize| columns.iter().map(move |column| column[i].clone());
            pictures.extend((0..batch.len()).flat_map(row));
        }
        let columns = self.validation.seeds.len() + 2;
        Ok((!pictures.is_empty()).then(|| arrange(&pictures.iter().collect::<Vec<_>>(), columns)))
    }
}

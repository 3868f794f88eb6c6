//! From images and captions to the cache: only missing entries are encoded.

use std::collections::BTreeMap;

use burn::tensor::TensorData;

use super::{
    DataConfig, DatasetKind, Encoders, LatentDataset, Phase, Picture, Progress,
    cache::{Cache, Kind},
    images::pixels,
    parallel::in_parallel,
    source::Source,
    survey::Survey,
};
use crate::{
    error::{Error, Result},
    paths, stop,
};

/// Checks every image and caption (of edits: instruction), encodes what the cache lacks, and opens the result. `prompts` are further
/// texts to encode, such as those of the validation. If the cache is complete, no model is loaded.
///
/// An interrupted preparation resumes where it stopped.
///
/// # Errors
/// Settings, captions or images are invalid: all of them in one error, before anything is encoded. Or an encoder fails or returns a
/// value that is not finite, or the cache cannot be written. Or the process is asked to stop: then after the current item.
pub fn prepare(
    config: &DataConfig,
    kind: DatasetKind,
    prompts: &[String],
    encoders: &mut dyn Encoders,
    progress: &dyn Fn(Progress),
) -> Result<LatentDataset> {
    let (vae, text) = (encoders.vae_fingerprint()?, encoders.text_fingerprint()?);
    Cache::new(config.cache_folder()).sweep();
    let survey = Survey::of(config, kind, prompts, &vae, &text, progress)?;
    survey.log();
    survey.say_shortened(prompts, &*encoders)?;
    if !survey.is_complete() {
        paths::check_folder(survey.dataset.cache.folder())
            .map_err(|e| e.hint("set `data.cache` to a folder that can be written to"))?;
    }
    // Existing entries were just checked: after an interruption from here on, the next start need not read them again.
    survey.record();
    let encoded = survey.encode_prompts(encoders, progress);
    encoders.release();
    let encoded = encoded.and_then(|()| survey.encode_pictures(encoders, progress));
    encoders.release();
    encoded?;
    if !survey.is_complete() {
        survey.record();
    }
    Ok(survey.dataset)
}

/// A data folder that was checked, but not encoded.
pub struct Examined {
    /// Its samples; their latents and embeddings may be missing in the cache.
    pub dataset: LatentDataset,
    /// The number of images that the cache lacks.
    pub images: usize,
    /// The number of prompts that the cache lacks.
    pub prompts: usize,
}

/// Checks every image and caption as [`prepare`] does, and encodes nothing.
///
/// # Errors
/// As [`prepare`], as far as they show without a model.
pub fn examine(
    config: &DataConfig,
    kind: DatasetKind,
    prompts: &[String],
    encoders: &dyn Encoders,
    progress: &dyn Fn(Progress),
) -> Result<Examined> {
    let (vae, text) = (encoders.vae_fingerprint()?, encoders.text_fingerprint()?);
    let Survey { dataset, prompts, pictures, .. } = Survey::of(config, kind, prompts, &vae, &text, progress)?;
    Ok(Examined { dataset, images: pictures.len(), prompts: prompts.len() })
}

impl Survey {
    fn encode_prompts(&self, encoders: &mut dyn Encoders, progress: &dyn Fn(Progress)) -> Result<()> {
        let total = self.prompts.len();
        for (done, prompt) in self.prompts.iter().enumerate() {
            stop::check()?;
            progress(Progress { phase: Phase::Prompts, done, total });
            let ids = encoders.tokenize(prompt)?;
            let embeds = encoders.encode_prompt(&ids)?;
            let what = format!("the prompt `{prompt}`");
            let mut entry = BTreeMap::from([
                ("prompt".to_string(), self.checked(embeds.prompt.into_data(), &what)?),
                ("pooled".to_string(), self.checked(embeds.pooled.into_data(), &what)?),
            ]);
            for (name, ids) in [("clip", ids.clip), ("t5", ids.t5)] {
                let length = ids.len();
                entry.extend((length > 0).then(|| (name.to_string(), TensorData::new(ids, [length]))));
            }
            self.dataset.cache.write(Kind::Prompts, &self.dataset.prompt_key(prompt), &entry)?;
            if done + 1 == total {
                progress(Progress { phase: Phase::Prompts, done: total, total });
            }
        }
        Ok(())
    }

    fn encode_pictures(&self, encoders: &mut dyn Encoders, progress: &dyn Fn(Progress)) -> Result<()> {
        let LatentDataset { config, cache, .. } = &self.dataset;
        let total = self.pictures.len();
        let mut done = 0;
        let source = Source::new(&config.path);
        let decode = |(picture, flips): &(Picture, Vec<bool>)| {
            let bytes = source.read(&picture.place);
            let pixels = bytes.and_then(|bytes| pixels(&bytes, &picture.hash, picture.bucket, flips));
            pixels.map_err(|problem| Error::file(&config.path, format!("{}: {problem}", picture.place)))
        };
        in_parallel(&self.pictures, decode, |(picture, flips), variants| {
            stop::check()?;
            if done == 0 {
                progress(Progress { phase: Phase::Pictures, done, total });
            }
            for (flip, pixels) in flips.iter().zip(variants?) {
                let moments = encoders.encode_image(pixels)?.into_tensor().into_data();
                let moments = self.checked(moments, &format!("the image {}", picture.place))?;
                let moments = moments.convert_dtype(config.cache_dtype.into());
                let key = &picture.latents[usize::from(*flip)];
                cache.write(Kind::Latents, key, &BTreeMap::from([("moments".into(), moments)]))?;
            }
            done += 1;
            progress(Progress { phase: Phase::Pictures, done, total });
            Ok(())
        })
    }

    /// `[1, …]` as `[…]`, if all values are finite.
    fn checked(&self, mut data: TensorData, what: &str) -> Result<TensorData> {
        if !data.iter::<f32>().all(f32::is_finite) {
            let problem = format!("encoding {what} gave values that are not finite");
            return Err(Error::file(&self.dataset.config.path, problem)
                .hint("encode in f32 or bf16: some VAEs and text encoders overflow in f16"));
        }
        data.shape = data.shape[1..].to_vec().into();
        Ok(data)
    }
}

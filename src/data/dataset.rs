//! The prepared data: samples, and the cache entries of their latents and embeddings.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::{
    Batch, BatchOrder, Bucket, DataConfig, DatasetKind, Dropped, HostBatch, Picture, Sample, SampleIndex,
    cache::{Cache, Kind, key},
};
use crate::{
    error::{Error, Result},
    models::text::PromptEmbeds,
    rng::{Purpose, Seed},
};

/// The split into training and held-out samples, as indices into [`LatentDataset::samples`]; both sides are ordered by content, not by
/// file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// The training samples.
    pub train: Vec<usize>,
    /// The held-out samples, on which the loss is measured.
    pub held_out: Vec<usize>,
}

/// A dataset of encoded samples on disk.
#[derive(Clone, Debug)]
pub struct LatentDataset {
    pub(super) config: DataConfig,
    pub(super) kind: DatasetKind,
    pub(super) cache: Cache,
    pub(super) samples: Vec<Sample>,
    /// The fingerprint of tokenizers and text encoders.
    pub(super) text: String,
}

impl LatentDataset {
    /// The samples, sorted by file.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Captions or edits.
    pub fn kind(&self) -> DatasetKind {
        self.kind
    }

    /// A hash of the dataset in 64 hexadecimal digits: of its images at their sizes, its captions or instructions, and the encoders. File
    /// names and the location of the folder do not count.
    pub fn fingerprint(&self) -> String {
        let part = |sample: &Sample| {
            let from = sample.original.as_ref().map(|o| format!("{} to ", o.latents.join(" "))).unwrap_or_default();
            let repeats = if sample.repeats == 1 { String::new() } else { format!(" {} times", sample.repeats) };
            format!("{from}{} {}{repeats}", sample.picture.latents.join(" "), sample.prompt)
        };
        let mut parts: Vec<_> = self.samples.iter().map(part).collect();
        parts.sort_unstable();
        key(&parts.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Splits the samples by the content of their images (of edits: of the originals): an image is held out if a number drawn from the
    /// seed and its content is below `data.validation_split`. Its side therefore stays the same when others are added, and copies of one
    /// image, or all edits of one original, are on one side. If a side would be empty, the image with the lowest, or highest, number
    /// changes sides; a single image is trained on.
    ///
    /// Both sides are ordered by image and caption, as in [`fingerprint`](Self::fingerprint), so renaming files does not change which
    /// samples are drawn.
    pub fn split(&self, seed: Seed) -> Split {
        let fraction = self.config.validation_split as f32;
        let drawn = |sample: &Sample| seed.named(Purpose::Split, &sample.subject().hash).uniform(1)[0];
        let draws: Vec<f32> = self.samples.iter().map(drawn).collect();
        let mut order: Vec<f32> = draws.clone();
        order.sort_unstable_by(f32::total_cmp);
        order.dedup();
        let limit = match order.as_slice() {
            _ if fraction == 0.0 => 0.0,
            [] | [_] => 0.0,
            [.., last] if fraction > *last => *last,
            [first, ..] => fraction.max(first.next_up()),
        };
        let mut by_content: Vec<usize> = (0..draws.len()).collect();
        by_content.sort_by_key(|&i| {
            let sample = &self.samples[i];
            (&sample.subject().hash, &sample.picture.hash, &sample.prompt)
        });
        let (held_out, train) = by_content.into_iter().partition(|&i| draws[i] < limit);
        Split { train, held_out }
    }

    /// The training order for `seed`.
    pub fn plan(&self, seed: Seed) -> BatchOrder {
        let train = self.split(seed).train.into_iter();
        let train =
            train.flat_map(|i| std::iter::repeat_n((i, self.samples[i].picture.bucket), self.samples[i].repeats));
        BatchOrder::new(&self.config, self.kind, seed, train.collect())
    }

    /// The held-out samples as batches of one size each: always the same batches, never mirrored.
    pub fn held_out(&self, seed: Seed) -> Vec<Vec<SampleIndex>> {
        let mut groups: BTreeMap<Bucket, Vec<SampleIndex>> = BTreeMap::new();
        for sample in self.split(seed).held_out {
            groups.entry(self.samples[sample].picture.bucket).or_default().push(SampleIndex { sample, flipped: false });
        }
        groups.values().flat_map(|group| group.chunks(self.config.batch_size)).map(<[_]>::to_vec).collect()
    }

    /// Reads samples of one size into one batch on the host. Where `dropped` says so, a sample gets the empty prompt, or zeros for the
    /// moments of its original, whose mode is then zero.
    ///
    /// # Errors
    /// An entry is missing or damaged, or the samples are of different sizes.
    pub fn read(&self, samples: &[SampleIndex], dropped: &[Dropped]) -> Result<HostBatch> {
        let null = self.prompt_key("");
        let (mut moments, mut original, mut prompt, mut pooled) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (index, dropped) in samples.iter().zip(dropped) {
            let sample = &self.samples[index.sample];
            let latents = self.moments(&sample.picture, index.flipped)?;
            if let Some(picture) = &sample.original {
                let zeros = || TensorData::zeros::<f32, _>(latents.shape.clone());
                original.push(if dropped.image { zeros() } else { self.moments(picture, index.flipped)? });
            }
            moments.push(latents);
            let mut embeds = self.cache.read(Kind::Prompts, if dropped.text { &null } else { &sample.prompt })?;
            prompt.push(self.take(&mut embeds, "prompt")?);
            pooled.push(self.take(&mut embeds, "pooled")?);
        }
        Ok(HostBatch {
            moments: self.stack(moments)?,
            original: (self.kind == DatasetKind::Edits).then(|| self.stack(original)).transpose()?,
            prompt: self.stack(prompt)?,
            pooled: self.stack(pooled)?,
            samples: samples.to_vec(),
        })
    }

    /// [`read`](Self::read), moved to a device.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn batch(&self, samples: &[SampleIndex], dropped: &[Dropped], device: &Device) -> Result<Batch> {
        Ok(self.read(samples, dropped)?.upload(device))
    }

    /// The cached embeddings of `prompts`, in their order; each must be a caption, the empty prompt, or one of the
    /// prompts that the dataset was prepared with.
    ///
    /// # Errors
    /// A prompt was not encoded, or its entry is damaged.
    pub fn embeds(&self, prompts: &[&str], device: &Device) -> Result<PromptEmbeds> {
        let (mut prompt, mut pooled) = (Vec::new(), Vec::new());
        for text in prompts {
            let mut entry = self.cache.read(Kind::Prompts, &self.prompt_key(text))?;
            prompt.push(self.take(&mut entry, "prompt")?);
            pooled.push(self.take(&mut entry, "pooled")?);
        }
        Ok(PromptEmbeds {
            prompt: Tensor::from_data(self.stack(prompt)?, (device, DType::F32)),
            pooled: Tensor::from_data(self.stack(pooled)?, (device, DType::F32)),
        })
    }

    /// The moments of an image, f32 `[2C, h, w]`.
    fn moments(&self, picture: &Picture, flipped: bool) -> Result<TensorData> {
        self.take(&mut self.cache.read(Kind::Latents, &picture.latents[usize::from(flipped)])?, "moments")
    }

    /// The key of the embeddings of `prompt`.
    pub(super) fn prompt_key(&self, prompt: &str) -> String {
        key(&["prompt", prompt, &self.text])
    }

    fn take(&self, entry: &mut BTreeMap<String, TensorData>, name: &str) -> Result<TensorData> {
        let data =
            entry.remove(name).ok_or_else(|| Error::file(self.cache.folder(), format!("an entry has no `{name}`")))?;
        Ok(data.convert_dtype(DType::F32))
    }

    /// Stacks `[…]` tensors to one `[B, …]`.
    fn stack(&self, rows: Vec<TensorData>) -> Result<TensorData> {
        let shape = rows.first().map(|row| row.shape.to_vec()).unwrap_or_default();
        if let Some(other) = rows.iter().find(|row| row.shape.as_slice() != shape) {
            let problem = format!("entries of shapes {shape:?} and {:?} cannot be one batch", other.shape.as_slice());
            return Err(Error::file(self.cache.folder(), problem));
        }
        let shape: Vec<usize> = std::iter::once(rows.len()).chain(shape).collect();
        let mut values = Vec::with_capacity(shape.iter().product());
        for row in &rows {
            values.extend_from_slice(row.as_slice::<f32>().expect("the rows were converted to f32"));
        }
        Ok(TensorData::new(values, shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Place;

    /// A dataset of images that hold the given names.
    fn dataset(pictures: impl IntoIterator<Item = usize>, validation_split: f64) -> LatentDataset {
        let bucket = Bucket { width: 64, height: 64 };
        let sample = |i: usize| {
            let (file, hash) = (format!("{i:04}.png"), key(&[&i.to_string()]));
            let (place, latents) = (Place::from(file), vec![hash.clone()]);
            let picture = Picture { place, latents, hash, size: (64, 64), bucket, stamp: (0, 0), changed: 0 };
            let (caption, prompt) = (format!("image {i}"), key(&["p", &i.to_string()]));
            let (original_caption, edited_caption) = (None, None);
            Sample { picture, original: None, caption, prompt, repeats: 1, original_caption, edited_caption }
        };
        LatentDataset {
            kind: DatasetKind::Captions,
            config: DataConfig { validation_split, ..Default::default() },
            cache: Cache::new("nowhere".into()),
            samples: pictures.into_iter().map(sample).collect(),
            text: String::new(),
        }
    }

    fn held_out(dataset: &LatentDataset) -> Vec<&str> {
        dataset.split(Seed(1)).held_out.iter().map(|&i| dataset.samples[i].picture.place.file.as_str()).collect()
    }

    #[test]
    fn an_image_keeps_its_side_when_others_are_added() {
        let (some, more) = (dataset((0..500).map(|i| i * 2), 0.2), dataset(0..1000, 0.2));
        assert!((70..130).contains(&held_out(&some).len()), "{} of 500", held_out(&some).len());
        let still: Vec<_> = held_out(&more).into_iter().filter(|f| f[..4].parse::<usize>().unwrap() % 2 == 0).collect();
        assert_eq!(still, held_out(&some));
        assert_ne!(some.split(Seed(1)), some.split(Seed(2)));
    }

    #[test]
    fn renamed_files_are_trained_on_and_measured_in_the_same_order() {
        let (before, mut after) = (dataset(0..50, 0.2), dataset(0..50, 0.2));
        after.samples.reverse();
        after
            .samples
            .iter_mut()
            .enumerate()
            .for_each(|(i, sample)| sample.picture.place.file = format!("new {i:02}.png"));
        assert_eq!(before.fingerprint(), after.fingerprint());
        let content = |dataset: &LatentDataset| {
            let plan = dataset.plan(Seed(1));
            let batches = plan.starting_at(0).take(100).chain(dataset.held_out(Seed(1)));
            batches.flatten().map(|index| dataset.samples[index.sample].picture.hash.clone()).collect::<Vec<_>>()
        };
        assert_eq!(content(&before), content(&after));
    }

    #[test]
    fn both_sides_have_an_image_when_there_are_two() {
        let sizes = |count, fraction| {
            let split = dataset(0..count, fraction).split(Seed(1));
            (split.train.len(), split.held_out.len())
        };
        assert_eq!(sizes(2, 0.001), (1, 1));
        assert_eq!(sizes(9, 0.001), (8, 1));
        assert_eq!(sizes(9, 0.9999), (1, 8));
        assert_eq!(sizes(1, 0.5), (1, 0));
        assert_eq!(sizes(9, 0.0), (9, 0));
        assert_eq!(dataset([3, 3, 3], 0.5).split(Seed(1)).held_out, [] as [usize; 0], "copies stay together");
    }

    #[test]
    fn a_sample_that_counts_often_is_seen_often_and_held_out_once() {
        let mut dataset = dataset(0..40, 0.5);
        let plain = dataset.fingerprint();
        dataset.samples.iter_mut().filter(|sample| sample.picture.hash < key(&["20"])).for_each(|s| s.repeats = 3);
        assert_ne!(dataset.fingerprint(), plain);
        let mut seen = BTreeMap::new();
        let plan = dataset.plan(Seed(1));
        plan.epoch(0).into_iter().flatten().for_each(|index| *seen.entry(index.sample).or_insert(0) += 1);
        assert!(seen.iter().all(|(&i, &count)| count == dataset.samples[i].repeats), "{seen:?}");
        assert!(seen.values().any(|&count| count == 3) && seen.values().any(|&count| count == 1));
        let held_out: Vec<_> = dataset.held_out(Seed(1)).concat();
        assert_eq!(held_out.len(), dataset.split(Seed(1)).held_out.len());
    }

    #[test]
    fn the_fingerprint_is_of_content_not_of_order() {
        assert_eq!(dataset([1, 2, 3], 0.1).fingerprint(), dataset([3, 1, 2], 0.5).fingerprint());
        assert_ne!(dataset([1, 2, 3], 0.1).fingerprint(), dataset([1, 2, 4], 0.1).fingerprint());
    }
}

//! The order of samples: the micro-batches of a training.

use std::collections::BTreeMap;

use super::{Bucket, DataConfig, DatasetKind};
use crate::rng::{Purpose, Seed};

/// A sample of a [`LatentDataset`](super::LatentDataset), possibly mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleIndex {
    /// The index in [`LatentDataset::samples`](super::LatentDataset::samples).
    pub sample: usize,
    /// Whether it is mirrored.
    pub flipped: bool,
}

/// The conditions that a sample is trained without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// The caption or instruction: the empty prompt takes its place.
    pub text: bool,
    /// The original of an edit: zeros take the place of its moments.
    pub image: bool,
}

/// The dropped conditions of an edit, from one number `u`, uniform in [0, 1), and a probability `p` of at most 1/3: below p the text,
/// from p to 2p text and image, from 2p to 3p the image.
///
/// So each condition is dropped with probability 2p, and classifier-free guidance can be given for both (InstructPix2Pix,
/// arXiv 2211.09800, section 3.2.1, with p = 0.05; diffusers' train_instruct_pix2pix.py).
pub fn joint_dropout(u: f32, p: f64) -> Dropped {
    Dropped { text: u < (2.0 * p) as f32, image: (p as f32..(3.0 * p) as f32).contains(&u) }
}

/// The training order: a pure function of seed and epoch, so a run that resumes at micro-batch `n` sees the same samples as an
/// uninterrupted one.
#[derive(Clone, Debug)]
pub struct BatchOrder {
    seed: Seed,
    samples: Vec<(usize, Bucket)>,
    batch_size: usize,
    repeats: usize,
    flip: bool,
    kind: DatasetKind,
    caption_dropout: f32,
    conditioning_dropout: f64,
}

impl BatchOrder {
    /// A plan for the training samples, given with their sizes.
    pub fn new(config: &DataConfig, kind: DatasetKind, seed: Seed, samples: Vec<(usize, Bucket)>) -> Self {
        let DataConfig { batch_size, repeats, flip, conditioning_dropout, .. } = *config;
        let caption_dropout = config.caption_dropout as f32;
        Self { seed, samples, batch_size, repeats, flip, kind, caption_dropout, conditioning_dropout }
    }

    /// The batches of one epoch: every sample `repeats` times in random order, batches of one size each. The last batch of a
    /// size may be short; none is left out.
    pub fn epoch(&self, epoch: u64) -> Vec<Vec<SampleIndex>> {
        let mut draw = self.seed.draw(Purpose::Order, epoch, 0);
        let slots = draw.permutation(self.samples.len() * self.repeats);
        let mirrored = draw.uniform(slots.len());
        let mut open: BTreeMap<Bucket, Vec<SampleIndex>> = BTreeMap::new();
        let mut batches = Vec::new();
        for (slot, mirrored) in slots.into_iter().zip(mirrored) {
            let (sample, bucket) = self.samples[slot % self.samples.len()];
            let batch = open.entry(bucket).or_default();
            batch.push(SampleIndex { sample, flipped: self.flip && mirrored < 0.5 });
            if batch.len() == self.batch_size {
                batches.push(std::mem::take(batch));
            }
        }
        batches.extend(open.into_values().filter(|batch| !batch.is_empty()));
        // Otherwise all short batches would come at the end.
        let order = draw.permutation(batches.len());
        order.into_iter().map(|i| std::mem::take(&mut batches[i])).collect()
    }

    /// The number of batches, the same in every epoch.
    pub fn batches_per_epoch(&self) -> usize {
        let mut counts: BTreeMap<Bucket, usize> = BTreeMap::new();
        self.samples.iter().for_each(|(_, bucket)| *counts.entry(*bucket).or_default() += self.repeats);
        counts.values().map(|count| count.div_ceil(self.batch_size)).sum()
    }

    /// The epoch of a micro-batch, counted from 0 over the whole run, and its position in the epoch.
    fn locate(&self, micro_batch: u64) -> (u64, usize) {
        let length = self.batches_per_epoch().max(1) as u64;
        (micro_batch / length, (micro_batch % length) as usize)
    }

    /// The batches from `micro_batch` on: an endless iterator, unless there are no samples.
    pub fn starting_at(&self, micro_batch: u64) -> impl Iterator<Item = Vec<SampleIndex>> + use<'_> {
        let (first, skip) = self.locate(micro_batch);
        let epochs = if self.samples.is_empty() { 0..0 } else { first..u64::MAX };
        epochs.flat_map(|epoch| self.epoch(epoch)).skip(skip)
    }

    /// The dropped conditions of the `count` samples of a micro-batch: captions with probability `data.caption_dropout`, the conditions
    /// of edits by [`joint_dropout`] with `data.conditioning_dropout`.
    pub fn dropped(&self, micro_batch: u64, count: usize) -> Vec<Dropped> {
        let draws = self.seed.draw(Purpose::Condition, micro_batch, 0).uniform(count);
        let dropped = |draw| match self.kind {
            DatasetKind::Captions => Dropped { text: draw < self.caption_dropout, image: false },
            DatasetKind::Edits => joint_dropout(draw, self.conditioning_dropout),
        };
        draws.into_iter().map(dropped).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(repeats: usize) -> BatchOrder {
        let config = DataConfig { batch_size: 4, repeats, flip: true, caption_dropout: 0.25, ..Default::default() };
        let bucket = |i: usize| Bucket { width: [512, 256, 128][i % 3], height: 512 };
        BatchOrder::new(&config, DatasetKind::Captions, Seed(5), (0..20).map(|i| (i * 10, bucket(i))).collect())
    }

    #[test]
    fn every_sample_comes_as_often_as_it_is_repeated_in_batches_of_one_size() {
        let plan = plan(3);
        for epoch in 0..5 {
            let batches = plan.epoch(epoch);
            assert_eq!(batches.len(), plan.batches_per_epoch());
            let mut count = BTreeMap::new();
            for batch in &batches {
                assert!((1..=4).contains(&batch.len()));
                assert!(
                    batch.iter().all(|s| s.sample / 10 % 3 == batch[0].sample / 10 % 3),
                    "mixed sizes in {batch:?}"
                );
                batch.iter().for_each(|s| *count.entry(s.sample).or_insert(0) += 1);
            }
            assert_eq!(count, (0..20).map(|i| (i * 10, 3)).collect());
        }
    }

    #[test]
    fn the_order_depends_on_seed_and_epoch_alone() {
        assert_eq!(plan(1).epoch(3), plan(1).epoch(3));
        assert_ne!(plan(1).epoch(3), plan(1).epoch(4));
        assert_ne!(plan(1).epoch(3), BatchOrder { seed: Seed(6), ..plan(1) }.epoch(3));
        let flipped = (0..50).flat_map(|e| plan(1).epoch(e)).flatten().filter(|s| s.flipped).count();
        assert!((400..600).contains(&flipped), "{flipped} of 1000 mirrored");
    }

    #[test]
    fn a_run_continues_at_any_micro_batch() {
        let plan = plan(1);
        let all: Vec<_> = plan.starting_at(0).take(40).collect();
        for start in [1, 6, 7, 8, 23] {
            assert_eq!(plan.starting_at(start as u64).take(40 - start).collect::<Vec<_>>(), all[start..]);
        }
        let (epoch, index) = plan.locate(23);
        assert_eq!(plan.epoch(epoch)[index], all[23]);
    }

    #[test]
    fn captions_are_dropped_with_the_given_probability() {
        let plan = plan(1);
        let dropped = (0..1000).flat_map(|n| plan.dropped(n, 4)).filter(|d| d.text).count();
        assert!((900..1100).contains(&dropped), "{dropped} of 4000");
        assert_eq!(plan.dropped(7, 4), plan.dropped(7, 4));
        assert!(!BatchOrder { caption_dropout: 0.0, ..plan.clone() }.dropped(7, 100).iter().any(|d| d.text));
        assert!(BatchOrder { caption_dropout: 1.0, ..plan }.dropped(7, 100).iter().all(|d| d.text && !d.image));
    }
}

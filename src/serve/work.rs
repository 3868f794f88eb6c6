//! A job in the engine: its images that are still to be begun, those that are being made, and those that are there.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{
    job::{JobId, Made},
    record::Record,
    sanity::Flaw,
};
use crate::{
    generation::{Images, Worn},
    lora::Lora,
    pipelines::Denoising,
};

/// What is added to the seed of an image that is made another time.
const OTHER_START: u64 = 1 << 32;

/// How often an image is begun, at most.
pub const MOST_ATTEMPTS: u32 = 2;

/// How many previews there are of an image, about.
const PREVIEWS: usize = 8;

/// Adapters with their scales.
pub type Loras = Vec<(Arc<Lora>, f64)>;

/// A job.
pub struct Work {
    pub id: JobId,
    /// The number of its model.
    pub model: usize,
    /// One of its images, with the seed of the first.
    pub template: Images,
    pub worn: Wearing,
    /// What is wrong with the image that is changed, and so may be with the result.
    pub flaw: Option<Flaw>,
    pub previews: bool,
    count: usize,
    /// Images to begin, each with the number of the attempt.
    left: VecDeque<(usize, u32)>,
    made: BTreeMap<usize, Made>,
    /// Steps done, steps of an image, and images that are made another time.
    done: usize,
    of_one: usize,
    again: usize,
    /// Whether steps were done that were not told yet.
    pub has_news: bool,
}

/// What its images wear. It is shared by jobs that wear the same.
#[derive(Clone)]
pub struct Wearing {
    pub worn: Worn,
    /// Keeps the adapters in memory, and tells whether others wear the same.
    pub loras: Loras,
}

impl Wearing {
    /// Whether these adapters are the same at the same scales.
    pub fn is(&self, loras: &Loras) -> bool {
        let mut pairs = self.loras.iter().zip(loras);
        self.loras.len() == loras.len()
            && pairs.all(|((one, scale), (other, other_scale))| Arc::ptr_eq(one, other) && scale == other_scale)
    }
}

/// An image that is being denoised.
pub struct Unit {
    pub job: JobId,
    /// Its number in the job.
    pub image: usize,
    pub attempt: u32,
    pub seed: u64,
    pub denoising: Denoising,
}

impl Work {
    /// A job that begins.
    pub fn new(record: &Record, model: usize, template: Images, flaw: Option<Flaw>, worn: Wearing) -> Self {
        let count = record.request.count;
        Self {
            id: record.id,
            model,
            template,
            worn,
            flaw,
            previews: record.request.previews,
            count,
            left: (0..count).map(|number| (number, 1)).collect(),
            made: BTreeMap::new(),
            done: 0,
            of_one: record.request.steps.unwrap_or(1),
            again: 0,
            has_news: false,
        }
    }

    /// Whether there are images to begin.
    pub fn has_left(&self) -> bool {
        !self.left.is_empty()
    }

    /// The next image to begin: its number, the attempt, and what a session is asked for.
    pub fn next(&mut self) -> Option<(usize, u32, Images)> {
        let (number, attempt) = self.left.pop_front()?;
        let mut images = self.template.clone();
        for seed in &mut images.seeds {
            *seed = seed.wrapping_add(number as u64).wrapping_add(u64::from(attempt - 1) * OTHER_START);
        }
        Some((number, attempt, images))
    }

    /// An image takes so many steps.
    pub fn takes(&mut self, steps: usize) {
        self.of_one = steps;
    }

    /// A step of an image was done.
    pub fn stepped(&mut self) {
        self.done += 1;
        self.has_news = true;
    }

    /// Steps of all its images: done, and in all.
    pub fn steps(&self) -> (usize, usize) {
        (self.done, self.of_one * (self.count + self.again))
    }

    /// Whether there is to be a preview of an image after this step of so many.
    pub fn shows(&self, step: usize, of: usize) -> bool {
        self.previews && step < of && step.is_multiple_of(of.div_ceil(PREVIEWS))
    }

    /// An image did not look right; whether it is made another time.
    pub fn make_again(&mut self, number: usize, attempt: u32) -> bool {
        if attempt >= MOST_ATTEMPTS {
            return false;
        }
        self.again += 1;
        self.left.push_front((number, attempt + 1));
        true
    }

    /// An image is there.
    pub fn keep(&mut self, number: usize, made: Made) {
        self.made.insert(number, made);
    }

    /// All images, once they are there.
    pub fn images(&self) -> Option<Vec<Made>> {
        (self.made.len() == self.count).then(|| self.made.values().cloned().collect())
    }
}

//! A job in the engine: its images to start, in progress, and finished.

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

/// Added to the seed of an image that is generated again.
const OTHER_START: u64 = 1 << 32;

/// The maximum number of attempts per image.
pub const MOST_ATTEMPTS: u32 = 2;

/// The approximate number of previews per image.
const PREVIEWS: usize = 8;

/// Adapters with their scales.
pub type Loras = Vec<(Arc<Lora>, f64)>;

/// A running job.
pub struct Work {
    pub id: JobId,
    /// The number of its model.
    pub model: usize,
    /// The session's request for its first image.
    pub template: Images,
    pub worn: Wearing,
    /// The flaw of the input image, which the result may share.
    pub flaw: Option<Flaw>,
    pub previews: bool,
    count: usize,
    /// The images to start, each with the number of the attempt.
    left: VecDeque<(usize, u32)>,
    made: BTreeMap<usize, Made>,
    /// Steps done, steps per image, and the number of images generated again.
    done: usize,
    of_one: usize,
    again: usize,
    /// Whether there is progress that was not published yet.
    pub has_news: bool,
}

/// The adapters of a job's images, shared by jobs with the same adapters.
#[derive(Clone)]
pub struct Wearing {
    pub worn: Worn,
    /// The adapters, kept in memory and compared with those of other jobs.
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
    /// Its index in the job.
    pub image: usize,
    pub attempt: u32,
    pub seed: u64,
    pub denoising: Denoising,
}

impl Work {
    /// Starts a job.
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

    /// Whether there are images to start.
    pub fn has_left(&self) -> bool {
        !self.left.is_empty()
    }

    /// The next image to start: its index, the attempt, and the session's request.
    pub fn next(&mut self) -> Option<(usize, u32, Images)> {
        let (number, attempt) = self.left.pop_front()?;
        let mut images = self.template.clone();
        for seed in &mut images.seeds {
            *seed = seed.wrapping_add(number as u64).wrapping_add(u64::from(attempt - 1) * OTHER_START);
        }
        Some((number, attempt, images))
    }

    /// Sets the number of steps per image.
    pub fn takes(&mut self, steps: usize) {
        self.of_one = steps;
    }

    /// Counts a step of an image.
    pub fn stepped(&mut self) {
        self.done += 1;
        self.has_news = true;
    }

    /// Steps done and in total, over all images.
    pub fn steps(&self) -> (usize, usize) {
        (self.done, self.of_one * (self.count + self.again))
    }

    /// Whether to show a preview of an image after this step of `of`.
    pub fn shows(&self, step: usize, of: usize) -> bool {
        self.previews && step < of && step.is_multiple_of(of.div_ceil(PREVIEWS))
    }

    /// Queues a flawed image to be generated again; returns whether it has an attempt left.
    pub fn make_again(&mut self, number: usize, attempt: u32) -> bool {
        if attempt >= MOST_ATTEMPTS {
            return false;
        }
        self.again += 1;
        self.left.push_front((number, attempt + 1));
        true
    }

    /// Stores a finished image.
    pub fn keep(&mut self, number: usize, made: Made) {
        self.made.insert(number, made);
    }

    /// All images, once they are finished.
    pub fn images(&self) -> Option<Vec<Made>> {
        (self.made.len() == self.count).then(|| self.made.values().cloned().collect())
    }
}

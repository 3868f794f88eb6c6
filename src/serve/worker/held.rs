//! The jobs that a worker has in hand.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::serve::job::JobId;

struct One {
    model: usize,
    images: usize,
    /// What it is called in the worker's own service, once that has it.
    local: Option<JobId>,
    is_cancelled: bool,
}

/// All of them.
#[derive(Default)]
pub struct Held(Mutex<BTreeMap<JobId, One>>);

impl Held {
    fn all(&self) -> MutexGuard<'_, BTreeMap<JobId, One>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another one, of so many images of a model; whether it is not in hand already.
    pub fn add(&self, id: JobId, model: usize, images: usize) -> bool {
        let mut all = self.all();
        let is_new = !all.contains_key(&id);
        if is_new {
            all.insert(id, One { model, images, local: None, is_cancelled: false });
        }
        is_new
    }

    /// One is done, or given back.
    pub fn remove(&self, id: JobId) {
        self.all().remove(&id);
    }

    /// The service has it, by this name; whether nobody wants it any more.
    pub fn begins(&self, id: JobId, local: JobId) -> bool {
        let mut all = self.all();
        let Some(one) = all.get_mut(&id) else { return true };
        one.local = Some(local);
        one.is_cancelled
    }

    /// Nobody wants it any more: what the service calls it.
    pub fn cancel(&self, id: JobId) -> Option<JobId> {
        let mut all = self.all();
        let one = all.get_mut(&id)?;
        one.is_cancelled = true;
        one.local
    }

    /// The images of all, and the model of the oldest.
    pub fn count(&self) -> (usize, Option<usize>) {
        let all = self.all();
        (all.values().map(|one| one.images).sum(), all.values().next().map(|one| one.model))
    }
}

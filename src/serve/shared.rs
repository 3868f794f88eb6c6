//! What the engine and the handles on the server share.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    adapters::Adapters,
    config::ServeConfig,
    job::{Failure, JobId, Made, Status},
    journal::Journal,
    models::Models,
    numbers::Numbers,
    queue::Queue,
    record::Record,
    results::Results,
};
use crate::error::{Error, Result};

/// Something that a person wants of the engine beside jobs, by the number of a model.
pub enum Order {
    /// Load its weights.
    Load(usize, oneshot::Sender<Result<()>>),
    /// Let go of them.
    Unload(usize, oneshot::Sender<Result<()>>),
}

/// What changes, under one lock that is never held while the disk or the device works.
#[derive(Default)]
pub struct State {
    pub queue: Queue,
    pub orders: Vec<Order>,
    /// When the engine has to end, once it is to.
    pub stop_at: Option<Instant>,
    /// Whether it has ended.
    pub is_over: bool,
    /// How long jobs run, about, in seconds.
    pub pace: f64,
}

/// All of it.
pub struct Shared {
    pub config: ServeConfig,
    pub journal: Journal,
    pub results: Results,
    pub models: Models,
    pub adapters: Adapters,
    pub numbers: Numbers,
    /// Held by those who accept jobs, one after the other.
    pub door: Mutex<()>,
    state: Mutex<State>,
    /// Something is to be done, or the engine has ended.
    changed: Condvar,
    /// When the engine was last seen between two steps.
    beat: Mutex<Instant>,
}

impl Shared {
    pub fn new(config: ServeConfig, journal: Journal, results: Results, models: Models, adapters: Adapters) -> Self {
        Self {
            config,
            journal,
            results,
            models,
            adapters,
            numbers: Numbers::default(),
            door: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            beat: Mutex::new(Instant::now()),
        }
    }

    /// What changes.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes it, and wakes all who wait for that.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        self.numbers.queue_depth.set(state.queue.depth() as i64);
        self.numbers.running.set(state.queue.running().len() as i64);
        drop(state);
        self.changed.notify_all();
        result
    }

    /// Waits until `is_there`, or for so long.
    pub fn wait(&self, longest: Duration, is_there: impl Fn(&State) -> bool) {
        let end = Instant::now() + longest;
        let mut state = self.state();
        while !is_there(&state) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The engine is between two steps.
    pub fn beat(&self) {
        *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long it has not been.
    pub fn since_beat(&self) -> Duration {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Ends a job: in the journal, then for all who listen.
    pub fn end(&self, id: JobId, status: Status, images: Vec<Made>, error: Option<&Error>) {
        let record = self.state().queue.ended(id, status, images, error.map(Failure::from));
        let Some(mut record) = record else { return };
        // If the journal cannot be written, nobody may be told that the images will be there after the next start.
        if let Err(e) = self.journal.finish(&record) {
            tracing::error!("job {id}: {e}");
            if status == Status::Completed {
                (record.status, record.error) = (Status::Failed, Some(Failure::from(&e)));
                record.images.clear();
            }
        }
        if record.status != Status::Completed
            && let Err(e) = self.results.remove(id)
        {
            tracing::warn!("job {id}: {e}");
        }
        let seconds = |from: Option<f64>| record.finished.zip(from).map(|(to, from)| (to - from).max(0.0));
        if let Some(seconds) = seconds(record.started) {
            self.numbers.job_seconds.observe(seconds);
            let mut state = self.state();
            state.pace += 0.2 * (seconds - state.pace);
        }
        self.numbers.end(record.status.word());
        self.numbers.images.inc_by(record.images.len() as u64);
        self.say(&record);
        self.change(|state| state.queue.end(record));
    }

    /// Logs how a job ended, without what it was about.
    fn say(&self, record: &Record) {
        let (id, status) = (record.id, record.status.word());
        let waited = record.started.map_or(0.0, |started| started - record.created);
        let ran = record.started.zip(record.finished).map_or(0.0, |(from, to)| to - from);
        match &record.error {
            Some(error) => tracing::warn!("job {id}: {status} after {ran:.2} s: {}", error.message),
            None => tracing::info!("job {id}: {status} in {ran:.2} s, after {waited:.2} s in the queue"),
        }
    }

    /// Puts a job back that was not finished, for this server or the next.
    pub fn put_back(&self, id: JobId) {
        let record = self.change(|state| state.queue.put_back(id));
        if let Some(record) = record
            && let Err(e) = self.journal.update(&record)
        {
            tracing::error!("job {id}: {e}"); // the next server counts this as a start
        }
    }

    /// Removes images that are too old or too many.
    pub fn tidy(&self) {
        let results = &self.config.results;
        let expired = self.state().queue.expire(results.keep_seconds as f64, results.bytes.0);
        for record in &expired {
            // The journal first: it may list nothing that is not there.
            let done = self.journal.update(record).and_then(|()| self.results.remove(record.id));
            if let Err(e) = done {
                tracing::warn!("job {}: {e}", record.id);
            }
            self.numbers.expired.inc();
        }
        let forgotten = self.state().queue.forget();
        if !forgotten.is_empty()
            && let Err(e) = self.journal.forget(&forgotten)
        {
            tracing::warn!("{e}");
        }
        let bytes = self.state().queue.bytes();
        self.numbers.result_bytes.set(bytes as i64);
    }
}

//! What the engine and the handles to the server share.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot};

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
use crate::error::Result;

/// A command to the engine about the model with a number.
pub enum Order {
    /// Load its weights.
    Load(usize, oneshot::Sender<Result<()>>),
    /// Unload its weights.
    Unload(usize, oneshot::Sender<Result<()>>),
}

/// The mutable state, under one lock that is never held while the disk or the device is busy.
#[derive(Default)]
pub struct State {
    pub queue: Queue,
    pub orders: Vec<Order>,
    /// The deadline for the engine to end, once the server is stopping.
    pub stop_at: Option<Instant>,
    /// Whether the engine has ended.
    pub is_over: bool,
    /// The typical duration of a job, in seconds.
    pub pace: f64,
    /// Why jobs wait although there is nothing before them.
    pub trouble: Option<String>,
}

/// Everything that the engine and the handles share.
pub struct Shared {
    pub config: ServeConfig,
    pub journal: Journal,
    pub results: Results,
    pub models: Models,
    pub adapters: Adapters,
    pub numbers: Numbers,
    /// Held while a job is accepted, one at a time.
    pub door: Mutex<()>,
    state: Mutex<State>,
    /// Notified when there is something to do, or the engine has ended.
    changed: Condvar,
    /// The same for asynchronous tasks.
    pub woken: Notify,
    /// When the engine was last between two steps.
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
            woken: Notify::new(),
            beat: Mutex::new(Instant::now()),
        }
    }

    /// Locks the mutable state.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and wakes everyone who waits for changes.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        self.numbers.queue_depth.set(state.queue.depth() as i64);
        self.numbers.running.set(state.queue.running().len() as i64);
        drop(state);
        self.changed.notify_all();
        self.woken.notify_one();
        result
    }

    /// Waits until `is_there` holds, at most for `longest`.
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

    /// Notes that the engine is between two steps.
    pub fn beat(&self) {
        *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// The time since the engine was last between two steps.
    pub fn since_beat(&self) -> Duration {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Starts a waiting job; `None` if there is none with this ID. A job whose start cannot be written to the journal must not run:
    /// otherwise it could be restarted forever.
    pub fn start(&self, id: JobId) -> Option<Result<Record>> {
        let record = self.change(|state| state.queue.start(id))?;
        self.numbers.queue_seconds.observe((record.started.unwrap_or(record.created) - record.created).max(0.0));
        if record.starts > 1 {
            self.numbers.begun_again.inc();
        }
        Some(self.journal.update(&record).map(|()| record))
    }

    /// Ends a job: first in the journal, then for all listeners.
    pub fn end(&self, id: JobId, status: Status, images: Vec<Made>, error: Option<Failure>) {
        let record = self.state().queue.ended(id, status, images, error);
        let Some(mut record) = record else { return };
        // Without a journal entry the images would not survive a restart, so the job must not be reported as completed.
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

    /// Logs how a job ended, without its prompt.
    fn say(&self, record: &Record) {
        let (id, status) = (record.id, record.status.word());
        let waited = record.started.map_or(0.0, |started| started - record.created);
        let ran = record.started.zip(record.finished).map_or(0.0, |(from, to)| to - from);
        match &record.error {
            Some(error) => tracing::warn!("job {id}: {status} after {ran:.2} s: {}", error.message),
            None => tracing::info!("job {id}: {status} in {ran:.2} s, after {waited:.2} s in the queue"),
        }
    }

    /// Puts an unfinished job back into the queue, for this server or the next.
    pub fn put_back(&self, id: JobId) {
        let record = self.change(|state| state.queue.put_back(id));
        if let Some(record) = record
            && let Err(e) = self.journal.update(&record)
        {
            tracing::error!("job {id}: {e}"); // the next server counts this as a start
        }
    }

    /// Removes images that are too old or together too large.
    pub fn tidy(&self) {
        let results = &self.config.results;
        let expired = self.state().queue.expire(results.keep_seconds as f64, results.bytes.0);
        for record in &expired {
            // The journal first: it must not list images that are gone.
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

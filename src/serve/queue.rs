//! All jobs of a server (waiting, running and ended), and the listeners to their events.

use std::collections::{BTreeMap, HashMap, VecDeque};

use tokio::sync::{
    mpsc::{Receiver, Sender, channel, error::TrySendError},
    watch,
};

use super::{
    config::{LOCAL, LimitsConfig},
    job::{Event, Failure, FileBytes, Job, JobId, Made, Numbered, Status},
    record::{Record, now},
};

/// How many events a listener to one job may lag behind. One that lags further is disconnected, and may resume from its last event.
const BEHIND: usize = 256;

/// How many events a listener to all jobs may lag behind before it misses some.
const FAR_BEHIND: usize = 4096;

/// The range of event numbers that a job has under one server.
const EVENTS_OF_A_SERVER: u64 = 1 << 32;

/// The maximum number of ended jobs that are remembered.
const REMEMBERED: usize = 10_000;

/// A job with its state in this process.
pub struct Entry {
    pub record: Record,
    /// Steps done and in total, over all its images.
    pub step: usize,
    pub of: usize,
    /// Whether it must end before its next step.
    pub is_cancelled: bool,
    next_event: u64,
    /// Its events, without those that a later one supersedes.
    history: Vec<Numbered>,
    listeners: Vec<Sender<Numbered>>,
    /// Whether nothing more will happen to it in this process.
    done: watch::Sender<bool>,
}

impl Entry {
    /// The latest preview of one of its images, a PNG.
    pub fn preview(&self) -> Option<&[u8]> {
        self.history.iter().rev().find_map(|told| match &told.event {
            Event::Preview { png, .. } => Some(png.0.as_slice()),
            _ => None,
        })
    }
}

/// Why another job does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The queue is full.
    Queue,
    /// The owner's share of the queue is full.
    Share,
}

/// All jobs.
#[derive(Default)]
pub struct Queue {
    jobs: BTreeMap<JobId, Entry>,
    waiting: VecDeque<JobId>,
    running: Vec<JobId>,
    /// The jobs of the idempotency keys of their owners.
    keys: HashMap<(String, String), JobId>,
    /// The listeners to all jobs of an owner.
    listeners: Vec<(String, Sender<Numbered>)>,
}

impl Queue {
    /// Adds a job from the journal. One that was running waits again, ahead of all that were accepted later.
    pub fn restore(&mut self, record: Record) {
        let id = record.id;
        if let Some(key) = &record.key {
            self.keys.insert((record.owner.clone(), key.clone()), id);
        }
        // Event numbers keep increasing across restarts of the server.
        let first = u64::from(record.starts) * EVENTS_OF_A_SERVER + 1;
        let (of, ended) = (record.request.count * record.request.steps.unwrap_or(0), record.status.is_final());
        let entry = Entry {
            step: if record.status == Status::Completed { of } else { 0 },
            of,
            is_cancelled: false,
            next_event: first,
            history: Vec::new(),
            listeners: Vec::new(),
            done: watch::Sender::new(ended),
            record,
        };
        let last = match (entry.record.status, &entry.record.error) {
            (Status::Completed, _) => Some(Event::Completed { images: entry.record.images.clone() }),
            (Status::Failed, Some(error)) => Some(Event::Failed { error: error.clone() }),
            (Status::Cancelled, _) => Some(Event::Cancelled {}),
            _ => None,
        };
        self.jobs.insert(id, entry);
        match last {
            Some(event) => self.tell(id, event),
            None => self.waiting.push_back(id),
        }
    }

    /// Sends waiting jobs their positions, after they were [restored](Self::restore).
    pub fn tell_positions(&mut self) {
        let moved: Vec<_> = self.waiting.iter().copied().enumerate().collect();
        for (position, id) in moved {
            self.tell(id, Event::Queued { position });
        }
    }

    /// The job accepted under an idempotency key of its owner.
    pub fn under_key(&self, owner: &str, key: &str) -> Option<&Entry> {
        self.jobs.get(self.keys.get(&(owner.to_string(), key.to_string()))?)
    }

    /// Checks that another job of `owner` fits.
    ///
    /// # Errors
    /// It does not.
    pub fn has_place(&self, owner: &str, limits: &LimitsConfig) -> Result<(), Full> {
        if self.waiting.len() >= limits.queue {
            return Err(Full::Queue);
        }
        let share = ((limits.queue as f64 * limits.share) as usize).max(1);
        let own = || self.waiting.iter().filter(|id| self.jobs[*id].record.owner == owner).count();
        if owner != LOCAL && own() >= share { Err(Full::Share) } else { Ok(()) }
    }

    /// Adds a job that the journal has; returns how many are ahead of it.
    pub fn push(&mut self, record: Record) -> usize {
        let id = record.id;
        self.restore(record);
        let position = self.waiting.len() - 1;
        self.tell(id, Event::Queued { position });
        position
    }

    /// The next job: the one that has waited longest.
    pub fn next(&self) -> Option<&Record> {
        self.waiting.front().map(|id| &self.jobs[id].record)
    }

    /// The number of waiting jobs.
    pub fn depth(&self) -> usize {
        self.waiting.len()
    }

    /// The running jobs.
    pub fn running(&self) -> &[JobId] {
        &self.running
    }

    /// A job.
    pub fn get(&self, id: JobId) -> Option<&Entry> {
        self.jobs.get(&id)
    }

    /// All jobs, the newest first.
    pub fn all(&self) -> impl Iterator<Item = &Entry> {
        self.jobs.values().rev()
    }

    /// A job as its owner sees it.
    pub fn job(&self, entry: &Entry) -> Job {
        let position = match entry.record.status {
            Status::Queued => self.waiting.iter().position(|id| *id == entry.record.id),
            _ => None,
        };
        entry.record.job(position, entry.step, entry.of)
    }

    /// Removes a job from the waiting ones.
    fn leave(&mut self, id: JobId) {
        let Some(place) = self.waiting.iter().position(|waiting| *waiting == id) else { return };
        self.waiting.remove(place);
        let moved: Vec<_> = self.waiting.iter().copied().enumerate().skip(place).collect();
        for (position, id) in moved {
            self.tell(id, Event::Queued { position });
        }
    }

    /// Starts a waiting job; returns the record to journal.
    pub fn start(&mut self, id: JobId) -> Option<Record> {
        self.leave(id);
        let entry = self.jobs.get_mut(&id)?;
        (entry.record.status, entry.record.started) = (Status::Running, Some(now()));
        entry.record.starts += 1;
        entry.record.attempts = 1;
        entry.step = 0;
        let record = entry.record.clone();
        self.running.push(id);
        self.tell(id, Event::Started { attempt: 1 });
        Some(record)
    }

    /// Notes that an image is generated again.
    pub fn again(&mut self, id: JobId, attempt: u32) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        if attempt > entry.record.attempts {
            entry.record.attempts = attempt;
            self.tell(id, Event::Started { attempt });
        }
    }

    /// Notes the progress of a job.
    pub fn progress(&mut self, id: JobId, step: usize, of: usize) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        (entry.step, entry.of) = (step, of);
        let since = entry.record.started.map_or(0.0, |started| now() - started);
        let eta_seconds = (step > 0).then(|| since / step as f64 * of.saturating_sub(step) as f64);
        self.tell(id, Event::Progress { step, of, eta_seconds });
    }

    /// Publishes a preview of an image of a job.
    pub fn preview(&mut self, id: JobId, image: usize, step: usize, png: Vec<u8>) {
        self.tell(id, Event::Preview { image, step, png: FileBytes(png) });
    }

    /// Puts a job back to the front of the queue, as if it had not started; returns the record to journal.
    pub fn put_back(&mut self, id: JobId) -> Option<Record> {
        let entry = self.jobs.get_mut(&id)?;
        entry.record.starts = entry.record.starts.saturating_sub(1);
        self.wait_again(id);
        Some(self.jobs.get(&id)?.record.clone())
    }

    /// A job that had begun waits again, before all others.
    pub fn wait_again(&mut self, id: JobId) {
        self.running.retain(|running| *running != id);
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        (entry.record.status, entry.record.started, entry.step) = (Status::Queued, None, 0);
        let place = self.waiting.iter().position(|waiting| *waiting > id).unwrap_or(self.waiting.len());
        self.waiting.insert(place, id);
    }

    /// The record of a job with this outcome, to be journaled before the job is [ended](Self::end).
    pub fn ended(&self, id: JobId, status: Status, images: Vec<Made>, error: Option<Failure>) -> Option<Record> {
        let record = self.jobs.get(&id)?.record.clone();
        Some(Record { status, images, error, finished: Some(now()), ..record })
    }

    /// Ends a job.
    pub fn end(&mut self, record: Record) {
        let id = record.id;
        self.leave(id);
        self.running.retain(|running| *running != id);
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        let event = match (record.status, &record.error) {
            (Status::Completed, _) => Event::Completed { images: record.images.clone() },
            (Status::Failed, Some(error)) => Event::Failed { error: error.clone() },
            _ => Event::Cancelled {},
        };
        entry.record = record;
        entry.history.retain(|told| matches!(told.event, Event::Started { .. }));
        self.tell(id, event);
        if let Some(entry) = self.jobs.get_mut(&id) {
            entry.listeners.clear();
            entry.done.send_replace(true);
        }
    }

    /// Cancels a job: a waiting one is never started, a running one ends before its next step. Returns whether it was waiting.
    pub fn cancel(&mut self, id: JobId) -> bool {
        let Some(entry) = self.jobs.get_mut(&id) else { return false };
        entry.is_cancelled = true;
        let waited = self.waiting.contains(&id);
        self.leave(id);
        waited
    }

    /// Expires ended jobs, because of their age or because all images together are too large. Returns the records to journal; the
    /// caller removes their images.
    pub fn expire(&mut self, keep_seconds: f64, most_bytes: u64) -> Vec<Record> {
        let mut ended: Vec<_> =
            self.jobs.values().filter(|entry| entry.record.status.is_final() && !entry.record.expired).collect();
        ended.sort_by(|one, other| {
            one.record.finished.partial_cmp(&other.record.finished).unwrap_or(std::cmp::Ordering::Equal)
        });
        let (mut bytes, oldest) = (self.bytes(), now() - keep_seconds);
        let mut expired = Vec::new();
        for entry in ended {
            let own = entry.record.bytes();
            if entry.record.finished.is_none_or(|finished| finished <= oldest) || (bytes > most_bytes && own > 0) {
                bytes -= own;
                expired.push(entry.record.id);
            }
        }
        let expire = |id| {
            let entry = self.jobs.get_mut(&id)?;
            entry.record.expired = true;
            entry.record.images.clear();
            entry.history.clear();
            Some(entry.record.clone())
        };
        expired.into_iter().filter_map(expire).collect()
    }

    /// The size of all images on disk.
    pub fn bytes(&self) -> u64 {
        self.jobs.values().map(|entry| entry.record.bytes()).sum()
    }

    /// Forgets the oldest expired jobs if there are too many; returns those to delete from the journal.
    pub fn forget(&mut self) -> Vec<JobId> {
        let too_many = self.jobs.len().saturating_sub(REMEMBERED);
        let expired = self.jobs.values().filter(|entry| entry.record.expired);
        let forgotten: Vec<_> = expired.take(too_many).map(|entry| entry.record.id).collect();
        for id in &forgotten {
            let entry = self.jobs.remove(id);
            if let Some((owner, Some(key))) = entry.map(|entry| (entry.record.owner, entry.record.key)) {
                self.keys.remove(&(owner, key));
            }
        }
        forgotten
    }

    /// Sends an event of a job to all listeners.
    fn tell(&mut self, id: JobId, event: Event) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        let told = Numbered { job: id, number: entry.next_event, event };
        entry.next_event += 1;
        entry.history.retain(|before| !is_replaced(&before.event, &told.event));
        entry.history.push(told.clone());
        entry.listeners.retain(|listener| listener.try_send(told.clone()).is_ok());
        let owner = &entry.record.owner;
        self.listeners.retain(|(name, listener)| {
            name != owner || !matches!(listener.try_send(told.clone()), Err(TrySendError::Closed(_)))
        });
    }

    /// The events of a job with numbers above `after`: past ones, then new ones as they happen.
    pub fn listen(&mut self, id: JobId, after: u64) -> Option<Receiver<Numbered>> {
        let entry = self.jobs.get_mut(&id)?;
        let missed: Vec<_> = entry.history.iter().filter(|told| told.number > after).cloned().collect();
        let (sender, receiver) = channel(missed.len() + BEHIND);
        missed.into_iter().for_each(|told| _ = sender.try_send(told)); // there is room for all
        if !entry.record.status.is_final() && !*entry.done.borrow() {
            entry.listeners.retain(|listener| !listener.is_closed());
            entry.listeners.push(sender);
        }
        Some(receiver)
    }

    /// The events of all jobs of `owner` from now on.
    pub fn listen_to_all(&mut self, owner: &str) -> Receiver<Numbered> {
        let (sender, receiver) = channel(FAR_BEHIND);
        self.listeners.retain(|(_, listener)| !listener.is_closed());
        self.listeners.push((owner.into(), sender));
        receiver
    }

    /// Becomes true once nothing more will happen to a job in this process.
    pub fn done(&self, id: JobId) -> Option<watch::Receiver<bool>> {
        Some(self.jobs.get(&id)?.done.subscribe())
    }

    /// Ends all streams of events.
    pub fn close(&mut self) {
        self.listeners.clear();
        for entry in self.jobs.values_mut() {
            entry.listeners.clear();
            entry.done.send_replace(true);
        }
    }
}

/// Whether `later` supersedes `event` for listeners that have received neither.
fn is_replaced(event: &Event, later: &Event) -> bool {
    match (event, later) {
        (Event::Queued { .. }, _) => true,
        (Event::Progress { .. }, Event::Progress { .. }) => true,
        (Event::Preview { image: one, .. }, Event::Preview { image: other, .. }) => one == other,
        _ => false,
    }
}

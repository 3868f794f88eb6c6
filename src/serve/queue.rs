//! All jobs of a server: those that wait, in their order, those that run, those that ended; and who listens.

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

/// Events that a listener to one job may be behind. One who is further behind is cut off, and may ask again from where he was.
const BEHIND: usize = 256;

/// Events that a listener to all jobs may be behind, who then misses some.
const FAR_BEHIND: usize = 4096;

/// Numbers of the events that a job may have under one server.
const EVENTS_OF_A_SERVER: u64 = 1 << 32;

/// The most jobs that are remembered after they have ended.
const REMEMBERED: usize = 10_000;

/// A job, and what is only known while this process runs.
pub struct Entry {
    pub record: Record,
    /// Steps of all its images together: done, and in all.
    pub step: usize,
    pub of: usize,
    /// Whether it is to end before its next step.
    pub is_cancelled: bool,
    next_event: u64,
    /// Without those that a later one makes worthless.
    history: Vec<Numbered>,
    listeners: Vec<Sender<Numbered>>,
    /// Whether nothing more happens to it here.
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

/// Why there is no place for another job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The queue is full.
    Queue,
    /// The owner's share of it is.
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
    /// Listeners to all jobs of an owner.
    listeners: Vec<(String, Sender<Numbered>)>,
}

impl Queue {
    /// Takes up a job of the journal. One that was running waits again, before all that were accepted after it.
    pub fn restore(&mut self, record: Record) {
        let id = record.id;
        if let Some(key) = &record.key {
            self.keys.insert((record.owner.clone(), key.clone()), id);
        }
        // So that the numbers of events rise, whatever the servers before this one told.
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

    /// Tells those that wait where they stand, after they were [restored](Self::restore).
    pub fn tell_positions(&mut self) {
        let moved: Vec<_> = self.waiting.iter().copied().enumerate().collect();
        for (position, id) in moved {
            self.tell(id, Event::Queued { position });
        }
    }

    /// The job that was accepted under a key of its owner.
    pub fn under_key(&self, owner: &str, key: &str) -> Option<&Entry> {
        self.jobs.get(self.keys.get(&(owner.to_string(), key.to_string()))?)
    }

    /// Whether there is a place for a job of `owner`.
    ///
    /// # Errors
    /// There is none.
    pub fn has_place(&self, owner: &str, limits: &LimitsConfig) -> Result<(), Full> {
        if self.waiting.len() >= limits.queue {
            return Err(Full::Queue);
        }
        let share = ((limits.queue as f64 * limits.share) as usize).max(1);
        let own = || self.waiting.iter().filter(|id| self.jobs[*id].record.owner == owner).count();
        if owner != LOCAL && own() >= share { Err(Full::Share) } else { Ok(()) }
    }

    /// Adds a job that the journal has; returns how many are before it.
    pub fn push(&mut self, record: Record) -> usize {
        let id = record.id;
        self.restore(record);
        let position = self.waiting.len() - 1;
        self.tell(id, Event::Queued { position });
        position
    }

    /// The job that waits longest.
    pub fn next(&self) -> Option<&Record> {
        self.waiting.front().map(|id| &self.jobs[id].record)
    }

    /// Jobs that wait.
    pub fn depth(&self) -> usize {
        self.waiting.len()
    }

    /// Jobs whose images are being made.
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

    /// Takes a job out of those that wait.
    fn leave(&mut self, id: JobId) {
        let Some(place) = self.waiting.iter().position(|waiting| *waiting == id) else { return };
        self.waiting.remove(place);
        let moved: Vec<_> = self.waiting.iter().copied().enumerate().skip(place).collect();
        for (position, id) in moved {
            self.tell(id, Event::Queued { position });
        }
    }

    /// A job that waited begins: what the journal is to write.
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

    /// An image is made another time.
    pub fn again(&mut self, id: JobId, attempt: u32) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        if attempt > entry.record.attempts {
            entry.record.attempts = attempt;
            self.tell(id, Event::Started { attempt });
        }
    }

    /// Steps were done.
    pub fn progress(&mut self, id: JobId, step: usize, of: usize) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        (entry.step, entry.of) = (step, of);
        let since = entry.record.started.map_or(0.0, |started| now() - started);
        let eta_seconds = (step > 0).then(|| since / step as f64 * of.saturating_sub(step) as f64);
        self.tell(id, Event::Progress { step, of, eta_seconds });
    }

    /// About what an image of a job will look like.
    pub fn preview(&mut self, id: JobId, image: usize, step: usize, png: Vec<u8>) {
        self.tell(id, Event::Preview { image, step, png: FileBytes(png) });
    }

    /// A job waits again, before all others, as if it had not begun: what the journal is to write.
    pub fn put_back(&mut self, id: JobId) -> Option<Record> {
        self.running.retain(|running| *running != id);
        let entry = self.jobs.get_mut(&id)?;
        (entry.record.status, entry.record.started, entry.step) = (Status::Queued, None, 0);
        entry.record.starts = entry.record.starts.saturating_sub(1);
        let record = entry.record.clone();
        let place = self.waiting.iter().position(|waiting| *waiting > id).unwrap_or(self.waiting.len());
        self.waiting.insert(place, id);
        Some(record)
    }

    /// How a job would be if it ended so: what the journal is to write before it is [told](Self::end).
    pub fn ended(&self, id: JobId, status: Status, images: Vec<Made>, error: Option<Failure>) -> Option<Record> {
        let record = self.jobs.get(&id)?.record.clone();
        Some(Record { status, images, error, finished: Some(now()), ..record })
    }

    /// A job has ended.
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

    /// Wishes that a job ends: one that waits is never begun, and whether it waited is returned; one that runs ends before its next
    /// step.
    pub fn cancel(&mut self, id: JobId) -> bool {
        let Some(entry) = self.jobs.get_mut(&id) else { return false };
        entry.is_cancelled = true;
        let waited = self.waiting.contains(&id);
        self.leave(id);
        waited
    }

    /// Jobs that have ended, by their age or because all their images together have too many bytes: what the journal is to write.
    /// Their images are to be removed.
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

    /// Of all images that are kept.
    pub fn bytes(&self) -> u64 {
        self.jobs.values().map(|entry| entry.record.bytes()).sum()
    }

    /// Forgets the oldest of the jobs that have expired, if there are too many: the journal is to forget them, too.
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

    /// Tells what happened to a job, to all who listen.
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

    /// The events of a job with numbers above `after`: those that were, then those that will be.
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

    /// Becomes true once nothing more happens to a job here.
    pub fn done(&self, id: JobId) -> Option<watch::Receiver<bool>> {
        Some(self.jobs.get(&id)?.done.subscribe())
    }

    /// Nothing more is told.
    pub fn close(&mut self) {
        self.listeners.clear();
        for entry in self.jobs.values_mut() {
            entry.listeners.clear();
            entry.done.send_replace(true);
        }
    }
}

/// Whether `later` makes `event` worthless to those who have heard neither.
fn is_replaced(event: &Event, later: &Event) -> bool {
    match (event, later) {
        (Event::Queued { .. }, _) => true,
        (Event::Progress { .. }, Event::Progress { .. }) => true,
        (Event::Preview { image: one, .. }, Event::Preview { image: other, .. }) => one == other,
        _ => false,
    }
}

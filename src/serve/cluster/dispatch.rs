//! The part of a server that stands where its engine would: it hands jobs to workers, and takes what they make.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use async_nats::{Subscriber, jetstream::consumer::PullConsumer};
use tokio::runtime::Runtime;
use tokio_stream::StreamExt;
use uuid::Uuid;

use super::{
    depot::{Depot, IMAGE, MASK},
    fingerprint,
    line::{self, Line, broken},
    messages::{End, How, News, Order, Told, VERSION},
};
use crate::{
    error::{Error, Result},
    serve::{
        config::{ClusterConfig, ServeConfig},
        job::{Failure, JobId, Made, Status},
        record::Record,
        shared::{self, Shared},
    },
};

/// How often the stream of ends is looked at where no news tells of one, and the queue is tried where it is in trouble.
const PAUSE: Duration = Duration::from_secs(1);

/// How long nothing is heard of a job until it is seen to that the queue still has it.
const DOUBT: Duration = Duration::from_secs(60);

/// Ends that are taken at once.
const ENDS_AT_ONCE: usize = 64;

/// A job that the queue has, or had.
struct Given {
    /// The latest delivery that was heard of; 0 while it waits.
    delivery: i64,
    /// When it was given, or heard of.
    at: Instant,
}

/// What hands out the jobs of a server.
pub struct Dispatch {
    runtime: Runtime,
    line: Line,
    depot: Depot,
    /// What this server is called in the queue.
    sender: String,
    /// Of the models, by their numbers.
    fingerprints: Vec<String>,
    given: BTreeMap<JobId, Given>,
}

impl Dispatch {
    /// Connects to the queue.
    ///
    /// # Errors
    /// The queue or the store cannot be used, or a model is not there.
    pub fn open(config: &ServeConfig, cluster: &ClusterConfig) -> Result<Self> {
        let runtime = line::runtime()?;
        let depot = runtime.block_on(async { Depot::open(cluster) })?;
        let sender = sender(&config.state)?;
        let line = runtime.block_on(Line::connect(cluster, "kiln serve", true))?;
        let fingerprints = config.models.iter().map(|model| fingerprint::of(&model.path)).collect::<Result<_>>()?;
        Ok(Self { runtime, line, depot, sender, fingerprints, given: BTreeMap::new() })
    }

    /// Hands out jobs until the server is stopped. What workers have in hand then, they go on with.
    pub fn run(mut self, shared: &Shared) {
        let handle = self.runtime.handle().clone();
        handle.block_on(self.work(shared));
    }

    async fn work(&mut self, shared: &Shared) {
        let mut heard: Option<(Subscriber, PullConsumer)> = None;
        let (mut looked, mut look, mut connects) = (Instant::now(), true, self.line.connects());
        loop {
            shared.beat();
            let stop_at = shared.state().stop_at;
            let nothing_runs = || shared.state().queue.running().is_empty();
            if stop_at.is_some_and(|stop_at| stop_at <= Instant::now() || nothing_runs()) {
                return;
            }
            for order in std::mem::take(&mut shared.state().orders) {
                let (shared::Order::Load(_, reply) | shared::Order::Unload(_, reply)) = order;
                let error = Error::setting("model", "is loaded and unloaded by the workers, as its jobs come");
                _ = reply.send(Err(error)); // who asked may be gone
            }
            look |= looked.elapsed() >= PAUSE;
            if std::mem::replace(&mut connects, self.line.connects()) != connects {
                heard = None;
                self.given.retain(|_, given| given.delivery > 0);
            }
            end_cancelled(shared);
            let away = self.line.trouble();
            let done = async {
                if let Some(away) = away {
                    return Err(broken(away));
                }
                if heard.is_none() {
                    self.line.prepare(true).await?; // it may have lost what it had
                    heard = Some((self.line.news(&self.sender).await?, self.line.ends(&self.sender).await?));
                }
                if let Some((_, ends)) = heard.as_ref().filter(|_| std::mem::take(&mut look)) {
                    looked = Instant::now();
                    shared.tidy();
                    self.take_ends(shared, ends).await?;
                }
                self.withdraw_ended(shared).await?;
                if stop_at.is_none() {
                    self.give(shared).await?;
                }
                Ok::<_, Error>(())
            };
            let trouble = done.await.err().map(|e| e.message());
            let known = std::mem::replace(&mut shared.state().trouble, trouble.clone());
            if let Some(trouble) = trouble {
                if known.as_ref() != Some(&trouble) {
                    tracing::warn!("jobs wait: {trouble}");
                }
                heard = None; // what was made in the queue may be gone
                self.given.retain(|_, given| given.delivery > 0);
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let Some((news, _)) = &mut heard else { continue };
            tokio::select! {
                () = shared.woken.notified() => {}
                () = tokio::time::sleep(PAUSE) => {}
                told = news.next() => match told {
                    Some(told) => look |= self.hear(shared, &told.payload).await,
                    None => heard = None,
                },
            }
        }
    }

    /// Gives the queue all that waits and that it does not have, the oldest first.
    async fn give(&mut self, shared: &Shared) -> Result<()> {
        let (mut due, mut doubted) = (Vec::new(), Vec::new());
        for entry in shared.state().queue.all().filter(|entry| !entry.record.status.is_final() && !entry.is_cancelled) {
            match self.given.get(&entry.record.id) {
                None => due.push(entry.record.clone()),
                Some(given) if given.at.elapsed() > DOUBT => doubted.push(entry.record.clone()),
                Some(_) => {}
            }
        }
        for record in due.into_iter().chain(doubted).rev() {
            let delivery = self.given.get(&record.id).map_or(0, |given| given.delivery);
            let refused = match self.order(shared, &record, delivery).await? {
                Ok((model, order)) => self.line.give(&model, &order).await?.err(),
                Err(e) => Some(e),
            };
            self.given.insert(record.id, Given { delivery, at: Instant::now() });
            if let Some(e) = refused {
                _ = shared.change(|state| state.queue.cancel(record.id));
                shared.end(record.id, Status::Failed, Vec::new(), Some(Failure::from(&e)));
            }
        }
        Ok(())
    }

    /// A job as a worker is told of it, whose files are in the depot after that; or why it cannot be done. If it was delivered before
    /// and is given again, the queue lost it, which is held against no worker.
    async fn order(&self, shared: &Shared, record: &Record, delivery: i64) -> Result<Result<(String, Order)>> {
        let mut request = record.request.clone();
        let number = match shared.models.find(request.model.as_deref()) {
            Ok(number) => number,
            Err(e) => return Ok(Err(e)), // it was accepted by a server that had this model
        };
        let (image, mask) = shared.journal.inputs(record.id)?;
        for (name, file) in [(IMAGE, image), (MASK, mask)] {
            if let Some(file) = file {
                self.depot.put(&Depot::input(record.id, name), file.0).await?;
            }
        }
        for choice in &mut request.loras {
            let (path, hash) = match shared.adapters.content(&choice.name) {
                Ok(content) => content,
                Err(e) => return Ok(Err(e)),
            };
            let place = Depot::adapter(&hash);
            if !self.depot.has(&place).await? {
                let bytes = fs::read(&path).map_err(|e| Error::io(&path, e))?;
                self.depot.put(&place, bytes).await?;
            }
            choice.name = hash;
        }
        let order = Order {
            version: VERSION.into(),
            id: record.id,
            sender: self.sender.clone(),
            request,
            has_image: record.has_image,
            has_mask: record.has_mask,
            strength: None,
            fingerprint: self.fingerprints.get(number).cloned(),
            deliveries: delivery,
            given_back: delivery,
        };
        Ok(Ok((shared.models.all()[number].entry.name.clone(), order)))
    }

    /// Takes all that has ended here from the workers.
    async fn withdraw_ended(&mut self, shared: &Shared) -> Result<()> {
        let is_over = |id: &JobId| is_over(shared, *id);
        let over: Vec<_> = self.given.keys().copied().filter(is_over).collect();
        for id in over {
            self.line.withdraw(id).await?;
            self.given.remove(&id);
            self.depot.forget(id).await?;
        }
        Ok(())
    }

    /// News of a job; whether its end is to be looked for.
    async fn hear(&mut self, shared: &Shared, payload: &[u8]) -> bool {
        let Some(news) = line::read::<News>(payload) else { return false };
        let id = news.id;
        if news.told == (Told::Ended {}) {
            return true;
        }
        if is_over(shared, id) {
            // Who works on it did not hear that.
            _ = self.line.withdraw(id).await; // there will be more news
            return false;
        }
        let given = self.given.entry(id).or_insert(Given { delivery: 0, at: Instant::now() });
        if news.delivery < given.delivery {
            return false; // of a worker that was silent, and whose job another one has
        }
        let is_other = news.delivery > given.delivery;
        *given = Given { delivery: news.delivery, at: Instant::now() };
        if is_other {
            tracing::debug!("job {id}: is made by {}", news.worker);
            if let Err(e) = begin(shared, id) {
                shared.end(id, Status::Failed, Vec::new(), Some(Failure::from(&e)));
                return false;
            }
        }
        shared.change(|state| match news.told {
            Told::Started { attempt } if attempt > 1 => state.queue.again(id, attempt),
            Told::Progress { step, of } => state.queue.progress(id, step, of),
            Told::Preview { image, step, png } => state.queue.preview(id, image, step, png.0),
            Told::Started { .. } | Told::Ended {} => {}
        });
        false
    }

    /// Takes the ends that have come.
    async fn take_ends(&mut self, shared: &Shared, ends: &PullConsumer) -> Result<()> {
        loop {
            let some = line::fetch(ends, ENDS_AT_ONCE).await?;
            let count = some.len();
            for message in some {
                if let Some(end) = line::read::<End>(&message.payload) {
                    self.take(shared, end).await?;
                }
                message.ack().await.map_err(broken)?;
            }
            if count < ENDS_AT_ONCE {
                return Ok(());
            }
        }
    }

    /// Takes the end of a job, unless it has one.
    async fn take(&mut self, shared: &Shared, end: End) -> Result<()> {
        let id = end.id;
        if !is_over(shared, id) {
            if shared.state().queue.get(id).is_some_and(|entry| entry.record.status == Status::Queued) {
                begin(shared, id)?; // nobody heard that it was
            }
            shared.change(|state| state.queue.again(id, end.attempts));
            let (status, images, error) = match end.how {
                How::Failed { error } => (Status::Failed, Vec::new(), Some(error)),
                How::Completed { folder, images, .. } => match self.fetch(shared, id, &folder, &images).await? {
                    None => (Status::Completed, images, None),
                    Some(missing) => (Status::Failed, Vec::new(), Some(Failure::from(&missing))),
                },
            };
            tracing::debug!("job {id}: ended by {}", end.worker);
            shared.end(id, status, images, error);
        }
        self.line.forget(id).await?;
        self.given.remove(&id);
        self.depot.forget(id).await
    }

    /// Keeps the images of a job here; what is wrong with them, if they are not those that the worker made.
    async fn fetch(&self, shared: &Shared, id: JobId, folder: &str, images: &[Made]) -> Result<Option<Error>> {
        for (number, made) in images.iter().enumerate() {
            match self.depot.get(&Depot::result(id, folder, number)).await? {
                Some(bytes) if bytes.len() as u64 == made.bytes => shared.results.keep(id, number, &bytes)?,
                _ => {
                    let error = Error::setting("image", "was made, and is not in the store");
                    return Ok(Some(error.hint("server and workers must have the same `cluster.store`")));
                }
            }
        }
        Ok(None)
    }
}

/// Ends jobs that nobody wants any more.
fn end_cancelled(shared: &Shared) {
    let cancelled: Vec<_> = {
        let state = shared.state();
        let is_cancelled = |id: &JobId| state.queue.get(*id).is_some_and(|entry| entry.is_cancelled);
        state.queue.running().iter().copied().filter(is_cancelled).collect()
    };
    cancelled.into_iter().for_each(|id| shared.end(id, Status::Cancelled, Vec::new(), None));
}

/// Whether a job has ended, or is not known here.
fn is_over(shared: &Shared, id: JobId) -> bool {
    shared.state().queue.get(id).is_none_or(|entry| entry.record.status.is_final())
}

/// A job begins; one that had begun does so again.
fn begin(shared: &Shared, id: JobId) -> Result<()> {
    let runs = shared.state().queue.running().contains(&id);
    if runs {
        // Its worker died: that counts.
        shared.change(|state| state.queue.wait_again(id));
    }
    shared.start(id).map_or(Ok(()), |started| started.map(drop))
}

/// What a server is called in the queue, from its first start on.
fn sender(state: &Path) -> Result<String> {
    let path = state.join("sender");
    if let Some(name) = fs::read_to_string(&path).ok().filter(|name| Uuid::try_parse(name).is_ok()) {
        return Ok(name);
    }
    let name = Uuid::now_v7().to_string();
    crate::disk::replace(&path, |partial| fs::write(partial, &name).map_err(|e| Error::io(&path, e)))?;
    Ok(name)
}

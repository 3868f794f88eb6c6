//! What a worker does with one job.

use tokio::sync::watch;
use tokio_stream::StreamExt;
use uuid::Uuid;

use super::{PAUSE, Phase, Worker, taken::Taken};
use crate::{
    error::{Error, Result},
    serve::{
        cluster::{
            depot::{Depot, IMAGE, MASK},
            messages::{End, How, News, Order, Told},
        },
        config::LOCAL,
        job::{Event, Failure, FileBytes, JobId, JobRequest, Made, Status},
        refusal::{Missing, Refusal},
    },
};

/// How many workers a job may take with it.
const MOST_DEATHS: i64 = 3;

/// The most bytes of a preview, which goes in one message.
const LARGEST_PREVIEW: usize = 512 << 10;

/// What became of a job here.
enum Outcome {
    /// It has ended, after so many attempts and seconds.
    Ended(u32, f64, How),
    /// Nobody wants it any more.
    Dropped,
    /// Another worker is to do it, for a reason of this one.
    Back(String),
}

impl Worker {
    /// Makes the images of a job, and sees to it that its server hears of them.
    pub(super) async fn make(&self, taken: &Taken) {
        let (id, sender, delivery) = (taken.order.id, &taken.order.sender, taken.delivery);
        let outcome = match taken.deaths() < MOST_DEATHS {
            true => self.outcome(taken.order.clone(), delivery).await.unwrap_or_else(|e| {
                self.rest();
                Outcome::Back(e.message())
            }),
            false => {
                let problem = format!("{MOST_DEATHS} workers had it and were not heard of again");
                let error = Error::setting("job", problem)
                    .hint("the logs of the workers may say why; smaller images need less memory");
                Outcome::Ended(1, 0.0, How::Failed { error: Failure::from(&error) })
            }
        };
        match outcome {
            Outcome::Ended(attempts, seconds, how) => {
                let end = End { id, delivery, worker: self.name.clone(), attempts, seconds, how };
                while let Err(e) = self.line.end(sender, &end).await {
                    tracing::warn!("job {id}: its end cannot be told: {}", e.message());
                    tokio::time::sleep(PAUSE).await;
                }
                self.tell(sender, id, delivery, Told::Ended {}).await;
                // If this is lost, the server takes it out of the queue.
                _ = taken.acker.double_ack().await;
            }
            Outcome::Dropped => _ = taken.acker.double_ack().await,
            Outcome::Back(why) => self.give_back(taken, &why).await,
        }
    }

    /// Gives a job back: as a new message, as what is delivered anew counts as a worker that died.
    pub(super) async fn give_back(&self, taken: &Taken, why: &str) {
        let id = taken.order.id;
        tracing::warn!("job {id}: given back: {why}");
        if !self.is_stopping() {
            tokio::time::sleep(PAUSE).await;
        }
        while let Err(e) = self.line.put_back(&taken.subject, taken.sequence, taken.again()).await {
            tracing::warn!("job {id}: cannot be given back: {}", e.message());
            tokio::time::sleep(PAUSE).await;
        }
        _ = taken.acker.double_ack().await; // if this is lost, it is made twice, and its server takes one
    }

    async fn tell(&self, sender: &str, id: JobId, delivery: i64, told: Told) {
        self.line.tell(sender, &News { id, delivery, worker: self.name.clone(), told }).await;
    }

    /// Makes the images of a job.
    ///
    /// # Errors
    /// The store or a file cannot be read or written.
    async fn outcome(&self, order: Order, delivery: i64) -> Result<Outcome> {
        let (id, sender) = (order.id, order.sender.clone());
        let (request, _worn) = match self.with_files(order).await {
            Ok(request) => request,
            Err(Refusal::Broken(e)) => return Err(e),
            Err(refusal) => return refused(refusal),
        };
        let service = self.service.clone();
        let local = match blocking(move || service.submit(request, LOCAL, None)).await? {
            Ok(accepted) => accepted.id,
            Err(refusal) => return refused(refusal),
        };
        tracing::info!("job {id}: is {local} here, delivery {delivery}");
        if self.held.begins(id, local) {
            self.cancel(id).await;
        }
        let (mut after, mut attempts) = (0, 1);
        let (mut phases, mut phase) = (self.phase.subscribe(), Phase::Takes);
        loop {
            let Ok(mut told) = self.service.events(local, LOCAL, after) else {
                return Ok(Outcome::Back("the worker has lost it".into()));
            };
            loop {
                let told = tokio::select! {
                    biased; // what has ended is not given back
                    told = told.next() => told,
                    next = next_phase(&mut phases, phase) => {
                        phase = next;
                        let waits = || self.service.job(local, LOCAL).is_ok_and(|job| job.status == Status::Queued);
                        if phase == Phase::Ends || waits() {
                            return Ok(Outcome::Back("the worker stops".into()));
                        }
                        continue;
                    }
                };
                let Some(told) = told else { break };
                after = told.number;
                match told.event {
                    Event::Queued { .. } => {}
                    Event::Started { attempt } => {
                        attempts = attempt;
                        self.tell(&sender, id, delivery, Told::Started { attempt }).await;
                    }
                    Event::Progress { step, of, .. } => {
                        self.tell(&sender, id, delivery, Told::Progress { step, of }).await;
                    }
                    Event::Preview { image, step, png } if png.0.len() <= LARGEST_PREVIEW => {
                        self.tell(&sender, id, delivery, Told::Preview { image, step, png }).await;
                    }
                    Event::Preview { .. } => {}
                    Event::Completed { images } => return self.hand_over(id, delivery, local, attempts, images).await,
                    Event::Failed { error } => {
                        return Ok(Outcome::Ended(attempts, self.seconds(local), How::Failed { error }));
                    }
                    Event::Cancelled {} => return Ok(Outcome::Dropped),
                }
            }
            // It ended with the engine; or it has too much to tell, and goes on.
            if self.is_stopping() {
                return Ok(Outcome::Back("the worker stops".into()));
            }
            if let Err(why) = self.service.ready() {
                _ = self.refused.set(why.clone());
                return Ok(Outcome::Back(why));
            }
        }
    }

    /// How long a job ran.
    fn seconds(&self, local: JobId) -> f64 {
        let job = self.service.job(local, LOCAL).ok();
        job.and_then(|job| Some(job.finished? - job.started?)).unwrap_or_default()
    }

    /// The request with the files that came with it, and the names of its adapters, which are there as long as these are held.
    async fn with_files(&self, order: Order) -> std::result::Result<(JobRequest, Vec<std::sync::Arc<str>>), Refusal> {
        let mut request = order.request;
        for (name, is_there, file) in
            [(IMAGE, order.has_image, &mut request.image), (MASK, order.has_mask, &mut request.mask)]
        {
            if is_there {
                let bytes = self.depot.get(&Depot::input(order.id, name)).await.map_err(Refusal::Broken)?;
                *file = Some(FileBytes(bytes.ok_or_else(|| {
                    let error = Error::setting(name, "was sent, and is not in the store");
                    Refusal::Invalid(error.hint("server and workers must have the same `cluster.store`"))
                })?));
            }
        }
        let edits = |name: &String| self.service.models().iter().any(|model| model.name == *name && model.edits);
        if order.strength.is_some() && !request.model.as_ref().is_some_and(edits) {
            request.strength = order.strength;
        }
        let mut worn = Vec::new();
        for choice in &request.loras {
            worn.push(self.fetched.have(&choice.name, &self.depot, &self.service).await?);
        }
        Ok((request, worn))
    }

    /// Puts the images of a job into the store.
    async fn hand_over(
        &self,
        id: JobId,
        delivery: i64,
        local: JobId,
        attempts: u32,
        images: Vec<Made>,
    ) -> Result<Outcome> {
        // Nobody else writes there, whatever another worker makes of the same job.
        let folder = format!("{delivery}-{}", Uuid::now_v7());
        for number in 0..images.len() {
            let service = self.service.clone();
            let bytes = match blocking(move || service.image(local, LOCAL, number)).await? {
                Ok(bytes) => bytes,
                Err(Missing::Broken(e)) => return Err(e),
                Err(_) => {
                    let error = Error::setting("results", "were removed before they were handed over")
                        .hint("raise `results.bytes` and `results.keep_seconds` of the worker");
                    return Ok(Outcome::Ended(
                        attempts,
                        self.seconds(local),
                        How::Failed { error: Failure::from(&error) },
                    ));
                }
            };
            self.depot.put(&Depot::result(id, &folder, number), bytes).await?;
        }
        let strength = self.service.job(local, LOCAL).ok().and_then(|job| job.request.strength);
        Ok(Outcome::Ended(attempts, self.seconds(local), How::Completed { folder, images, strength }))
    }
}

/// The phase after this one, once it comes.
async fn next_phase(phases: &mut watch::Receiver<Phase>, phase: Phase) -> Phase {
    match phases.wait_for(|next| *next > phase).await {
        Ok(next) => *next,
        Err(_) => Phase::Ends, // the worker is gone
    }
}

/// What a job comes to that this worker does not accept.
fn refused(refusal: Refusal) -> Result<Outcome> {
    match refusal {
        Refusal::Invalid(error) | Refusal::Conflict(error) => {
            Ok(Outcome::Ended(1, 0.0, How::Failed { error: Failure::from(&error) }))
        }
        Refusal::Broken(error) => Err(error),
        other => Ok(Outcome::Back(format!("the worker refuses it ({})", other.word()))),
    }
}

/// Runs what waits for the disk on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::setting("worker", e.to_string()))
}

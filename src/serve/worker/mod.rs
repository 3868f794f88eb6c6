//! `kiln worker`: takes jobs out of a queue, has them made by a [`Service`] of its own, and tells their server.

mod held;
mod taken;
mod job;
mod adapters;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use async_nats::jetstream::{self, consumer::PullConsumer, message::Acker};
use burn::tensor::Device;
use tokio::{sync::watch, task::JoinSet};
use tokio_stream::StreamExt;

use self::{adapters::Fetched, held::Held, taken::Taken};
use super::{
    cluster::{
        depot::Depot,
        fingerprint,
        line::{self, Line, broken},
        messages::VERSION,
    },
    config::{ClusterConfig, LOCAL, LimitsConfig, ServeConfig},
    service::Service,
};
use crate::{
    disk::{FolderLock, host, remove_folder},
    error::{Error, Result},
    memory::Bytes,
    stop,
};

/// How long jobs that have begun have after a request to stop, and how long there is to tell what became of them. Together they stay
/// below the 30 seconds after which supervisors kill.
const DRAIN: Duration = Duration::from_secs(20);
const LINGER: Duration = Duration::from_secs(3);

/// How often the queue is asked while it has nothing, and while it is out of reach.
const LOOK: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_secs(1);

/// How long a worker whose store or disk fails takes no jobs.
const REST: Duration = Duration::from_secs(5);

/// How long jobs of one model are taken one after the other while there may be others.
const TURN: Duration = Duration::from_secs(10);

/// What all tasks of a worker share.
struct Worker {
    /// Its machine and process.
    name: String,
    service: Service,
    line: Line,
    depot: Depot,
    /// The names and fingerprints of its models.
    models: Vec<(String, String)>,
    held: Held,
    fetched: Fetched,
    phase: watch::Sender<Phase>,
    /// Why it takes no jobs any more.
    refused: OnceLock<String>,
    /// Until when it takes none.
    rests: Mutex<Instant>,
}

/// How far a worker is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// It takes jobs.
    Takes,
    /// Jobs that have begun are finished, others are given back.
    Drains,
    /// All that is left is given back.
    Ends,
}

/// Works until the process is asked to stop; `ready` is told the worker's name as soon as it takes jobs.
///
/// # Errors
/// The queue, the store or a model cannot be used, workers of the queue may be silent for longer than here; or the jobs are of another release, or of other models of these names.
pub fn work(
    config: ServeConfig,
    cluster: &ClusterConfig,
    device: &Device,
    ready: impl FnOnce(&str) -> Result<()>,
) -> Result<()> {
    config.check()?;
    let (_lock, state) = place(&config.state)?;
    let runtime = line::runtime()?;
    let name = format!("{}:{}", host(), std::process::id());
    let models = config.models.iter().map(|model| Ok((model.name.clone(), fingerprint::of(&model.path)?)));
    let models = models.collect::<Result<Vec<_>>>()?;
    let depot = runtime.block_on(async { Depot::open(cluster) })?;
    let line = runtime.block_on(Line::connect(cluster, &format!("kiln worker {name}"), false))?;
    let known = async {
        for (name, _) in &models {
            line.jobs(name).await?;
        }
        Ok::<_, Error>(())
    };
    runtime.block_on(known)?;
    let most = config.limits.adapter_bytes.0;
    // What waits is in the queue; what is here has been accepted.
    let limits = LimitsConfig { queue: usize::MAX, upload_bytes: Bytes(u64::MAX), ..config.limits.clone() };
    let own = ServeConfig { state, limits, loras: Vec::new(), cluster: None, ..config };
    let service = Service::start(own, device)?;
    let worker = Arc::new(Worker {
        name,
        service,
        line,
        depot,
        models,
        held: Held::default(),
        fetched: Fetched::new(most),
        phase: watch::Sender::new(Phase::Takes),
        refused: OnceLock::new(),
        rests: Mutex::new(Instant::now()),
    });
    ready(&worker.name)?;
    runtime.block_on(worker.clone().run())?;
    runtime.shutdown_timeout(Duration::from_millis(500));
    match worker.refused.get() {
        Some(problem) => Err(broken(problem).hint("run the same release with the same models everywhere")),
        None => Ok(()),
    }
}

/// A folder below `state` that no other worker has, without what the last one left.
fn place(state: &Path) -> Result<(FolderLock, PathBuf)> {
    for number in 0.. {
        let folder = state.join("workers").join(number.to_string());
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        if let Some(lock) = FolderLock::try_take(&folder)? {
            let own = folder.join("state");
            remove_folder(&own)?;
            return Ok((lock, own));
        }
    }
    Err(Error::file(state, "has no place for another worker"))
}

impl Worker {
    async fn run(self: Arc<Self>) -> Result<()> {
        let mut wishes = self.line.wishes().await?;
        let own = self.clone();
        let obeys = tokio::spawn(async move {
            while let Some(wish) = wishes.next().await {
                if let Some(id) = std::str::from_utf8(&wish.payload).ok().and_then(|id| id.parse().ok()) {
                    own.cancel(id).await;
                }
            }
        });
        let mut tasks = JoinSet::new();
        let mut turn = Turn { consumers: vec![None; self.models.len()], next: 0, since: Instant::now() };
        let (mut in_trouble, mut connects) = (false, self.line.connects());
        while !stop::requested() && self.refused.get().is_none() {
            while tasks.try_join_next().is_some() {}
            if std::mem::replace(&mut connects, self.line.connects()) != connects {
                turn.consumers.fill(None); // what was made in the queue may be gone
            }
            let taken = self.take(&mut turn).await;
            if taken.is_err() != in_trouble {
                in_trouble = taken.is_err();
                match &taken {
                    Err(e) => tracing::warn!("no jobs are taken: {}", e.message()),
                    Ok(_) => tracing::info!("jobs are taken again"),
                }
            }
            match taken {
                Ok(Some((model, message))) => self.begin(model, message, &mut tasks),
                Ok(None) => tokio::time::sleep(LOOK).await,
                Err(_) => {
                    turn.consumers.fill(None);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        tracing::info!("stopping: jobs that have begun have {} seconds to finish", DRAIN.as_secs());
        self.phase.send_replace(Phase::Drains);
        let service = self.service.clone();
        _ = tokio::task::spawn_blocking(move || service.stop(DRAIN)).await;
        self.phase.send_replace(Phase::Ends); // a step may take longer than there is time
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(LINGER, all).await.is_err() {
            tracing::warn!("stopped while the queue did not answer; what it was not told, another worker does again");
        }
        obeys.abort();
        Ok(())
    }

    /// The next job, if there is one and there is room for it: those of one model one after the other, as they can be made
    /// together.
    async fn take(&self, turn: &mut Turn) -> Result<Option<(usize, jetstream::Message)>> {
        if let Some(trouble) = self.line.trouble() {
            return Err(broken(trouble));
        }
        if *self.rests.lock().unwrap_or_else(PoisonError::into_inner) > Instant::now() {
            return Ok(None);
        }
        let (images, current) = self.held.count();
        if images >= self.service.config().limits.rows {
            return Ok(None);
        }
        let count = self.models.len();
        let candidates: Vec<usize> = match current {
            None => (0..count).map(|step| (turn.next + step) % count).collect(),
            Some(current) if count == 1 || turn.since.elapsed() < TURN => vec![current],
            Some(_) => Vec::new(),
        };
        for model in candidates {
            if stop::requested() {
                break;
            }
            let name = &self.models[model].0;
            let consumer = match &mut turn.consumers[model] {
                Some(consumer) => consumer,
                none => none.insert(self.line.jobs(name).await?),
            };
            if let Some(message) = line::fetch(consumer, 1).await?.pop() {
                if current.is_none() {
                    (turn.next, turn.since) = ((model + 1) % count, Instant::now());
                }
                return Ok(Some((model, message)));
            }
        }
        Ok(None)
    }

    /// Begins what a message asks for, or gives it back. From here on it is in hand.
    fn begin(self: &Arc<Self>, model: usize, message: jetstream::Message, tasks: &mut JoinSet<()>) {
        let own = self.clone();
        let taken = match Taken::read(message) {
            Ok(taken) => taken,
            Err(acker) => {
                // Else it would come again and again.
                tasks.spawn(async move { _ = acker.double_ack_with(jetstream::AckKind::Term).await });
                return;
            }
        };
        let (name, fingerprint) = &self.models[model];
        let problem = match &taken.order.fingerprint {
            _ if taken.order.version != VERSION => {
                Some(format!("a job is of {}, and this is {VERSION}", taken.order.version.escape_debug()))
            }
            Some(other) if other != fingerprint => {
                Some(format!("the model `{name}` of the server has other files than the one here"))
            }
            _ => None,
        };
        if let Some(problem) = problem {
            _ = self.refused.set(problem.clone()); // others may be able to
            tasks.spawn(async move { own.give_back(&taken, &problem).await });
        } else if self.held.add(taken.order.id, model, taken.order.request.count) {
            tasks.spawn(async move {
                tokio::select! {
                    biased;
                    () = own.make(&taken) => {}
                    () = own.keep(&taken.acker) => {}
                }
                own.held.remove(taken.order.id);
            });
        }
    }

    /// Takes no jobs for some time.
    fn rest(&self) {
        *self.rests.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + REST;
    }

    fn is_stopping(&self) -> bool {
        *self.phase.borrow() > Phase::Takes
    }

    /// Tells the queue again and again that a job is being worked on.
    async fn keep(&self, acker: &Acker) {
        loop {
            tokio::time::sleep(self.line.silence() / 3).await;
            // An engine that is stuck loses its jobs.
            if self.is_stopping() || self.service.ready().is_ok() {
                _ = acker.ack_with(jetstream::AckKind::Progress).await;
            }
        }
    }

    /// Ends a job that nobody wants any more, before its next step.
    async fn cancel(&self, id: super::job::JobId) {
        let Some(local) = self.held.cancel(id) else { return };
        let service = self.service.clone();
        _ = tokio::task::spawn_blocking(move || service.cancel(local, LOCAL)).await;
    }
}

/// Which model is next.
struct Turn {
    consumers: Vec<Option<PullConsumer>>,
    next: usize,
    since: Instant,
}

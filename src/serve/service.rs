//! The handle to a running server.

use std::{
    sync::{Arc, PoisonError},
    thread,
    time::Duration,
};

use burn::tensor::Device;
use tokio::sync::oneshot;
use tokio_stream::{Stream, wrappers::ReceiverStream};

use super::{
    adapters::Adapters,
    config::ServeConfig,
    hands::Hands,
    info::{LoraInfo, MemoryStatus, ModelInfo, QueueStatus, StatusInfo},
    job::{Job, JobId, JobRequest, Numbered, Status},
    journal::Journal,
    models::Models,
    queue::{Entry, Full, Queue},
    record::{Record, now},
    refusal::{Accepted, CancelOutcome, Missing, Refusal},
    restart::taken_up,
    results::Results,
    running::Running,
    shared::{Order, Shared},
};
use crate::{
    device,
    disk::FolderLock,
    error::{Error, Result},
};

/// The stack size of the engine's thread in bytes, as for a main thread.
const STACK: usize = 8 << 20;

/// How long one step of the engine may take before it is considered stuck.
const LONGEST_STEP: Duration = Duration::from_secs(600);

/// A handle to a running server, which can be cloned and used on any thread.
///
/// Methods documented as blocking wait for the disk: asynchronous callers use `spawn_blocking`. All others return at once. Dropping
/// the last handle stops the server, like [`stop`](Self::stop) without a deadline.
#[derive(Clone)]
pub struct Service(Arc<Running>);

type Answer<T> = std::result::Result<T, Missing>;

impl Service {
    /// Starts the engine on `device`, and restores the jobs of the journal in `config.state`.
    ///
    /// # Errors
    /// A model cannot be used, a folder is missing, or another server uses the state folder.
    pub fn start(config: ServeConfig, device: &Device) -> Result<Self> {
        config.check()?;
        let state = &config.state;
        std::fs::create_dir_all(state).map_err(|e| Error::io(state, e))?;
        let lock = FolderLock::try_take(state)?.ok_or_else(|| {
            Error::file(state, "another server uses this folder").hint("stop it, or choose another folder for `state`")
        })?;
        let (journal, results) = (Journal::open(state)?, Results::open(state)?);
        let models = Models::open(&config.models)?;
        let adapters = Adapters::open(&config.loras, state, config.limits.adapter_bytes.0)?;
        let hands = Hands::of(&config, device)?;
        let queue = taken_up(&journal, &results, config.cluster.is_some())?;
        let shared = Arc::new(Shared::new(config, journal, results, models, adapters));
        shared.change(|state| state.queue = queue);
        let hall = shared.clone();
        let work = move || {
            // A panic also ends everything that waits.
            _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| hands.work(hall.clone())));
            hall.change(|state| {
                state.is_over = true;
                state.orders.clear();
                state.queue.close();
            });
        };
        let thread = thread::Builder::new().name("kiln-engine".into()).stack_size(STACK).spawn(work);
        let thread = thread.map_err(|e| Error::setting("engine", format!("cannot be started ({e})")))?;
        Ok(Self(Arc::new(Running::new(shared, device, thread, lock))))
    }

    fn shared(&self) -> &Shared {
        &self.0.shared
    }

    /// The configuration.
    pub fn config(&self) -> &ServeConfig {
        &self.shared().config
    }

    /// Submits a job of `owner`. The same request under the same idempotency key is the same job. Blocks.
    ///
    /// # Errors
    /// The job is not accepted.
    pub fn submit(
        &self,
        request: JobRequest,
        owner: &str,
        idempotency_key: Option<&str>,
    ) -> std::result::Result<Accepted, Refusal> {
        let accepted = self.admit(request, owner, idempotency_key);
        let numbers = &self.shared().numbers;
        match &accepted {
            Ok(_) => _ = numbers.accepted.inc(),
            Err(refusal) => numbers.refuse(refusal.word()),
        }
        accepted
    }

    fn admit(&self, request: JobRequest, owner: &str, key: Option<&str>) -> std::result::Result<Accepted, Refusal> {
        let shared = self.shared();
        let text = serde_json::to_vec(&request).expect("a request has text as keys");
        let hash = blake3::hash(&text).to_hex().to_string();
        // Checked before anything is decoded, and without waiting for other submissions.
        if let Some(known) = self.place(owner, key, &hash)? {
            return Ok(known);
        }
        let (request, inputs) = shared.models.resolve(request, &shared.config.limits).map_err(Refusal::Invalid)?;
        let model = request.model.as_deref().unwrap_or_default();
        for choice in &request.loras {
            let checked = shared.adapters.check(&choice.name, model, &shared.models, &shared.numbers);
            checked.map_err(Refusal::Invalid)?;
        }
        let _door = shared.door.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = self.place(owner, key, &hash)? {
            return Ok(known);
        }
        let record = Record {
            id: JobId::new(),
            owner: owner.into(),
            key: key.map(Into::into),
            hash,
            request,
            has_image: inputs.0.is_some(),
            has_mask: inputs.1.is_some(),
            status: Status::Queued,
            created: now(),
            started: None,
            finished: None,
            starts: 0,
            attempts: 0,
            error: None,
            images: Vec::new(),
            expired: false,
        };
        let id = record.id;
        shared.journal.accept(&record, &inputs).map_err(Refusal::Broken)?;
        let position = shared.change(|state| state.queue.push(record));
        Ok(Accepted { id, status: Status::Queued, queue_position: Some(position) })
    }

    /// The job known under a key; `None` if there is none and a new one fits.
    fn place(&self, owner: &str, key: Option<&str>, hash: &str) -> std::result::Result<Option<Accepted>, Refusal> {
        let shared = self.shared();
        let state = shared.state();
        if let Some(known) = key.and_then(|key| state.queue.under_key(owner, key)) {
            if known.record.hash != hash {
                let error = Error::setting("Idempotency-Key", "belongs to another request");
                return Err(Refusal::Conflict(error.hint("use a new key for each request")));
            }
            let Job { id, status, queue_position, .. } = state.queue.job(known);
            return Ok(Some(Accepted { id, status, queue_position }));
        }
        if state.stop_at.is_some() || state.is_over {
            return Err(Refusal::Stopping);
        }
        let retry_after = Duration::from_secs_f64(state.pace.clamp(1.0, 60.0).ceil());
        match state.queue.has_place(owner, &shared.config.limits) {
            Ok(()) => Ok(None),
            Err(Full::Queue) => Err(Refusal::QueueFull { retry_after }),
            Err(Full::Share) => Err(Refusal::ShareFull { retry_after }),
        }
    }

    /// Calls `look` with a job of `owner`.
    fn of<T>(&self, id: JobId, owner: &str, look: impl FnOnce(&Queue, &Entry) -> T) -> Answer<T> {
        let state = self.shared().state();
        match state.queue.get(id).filter(|entry| entry.record.owner == owner) {
            None => Err(Missing::Unknown),
            Some(entry) if entry.record.expired => Err(Missing::Expired),
            Some(entry) => Ok(look(&state.queue, entry)),
        }
    }

    /// A job of `owner`.
    ///
    /// # Errors
    /// There is no such job.
    pub fn job(&self, id: JobId, owner: &str) -> Answer<Job> {
        self.of(id, owner, |queue, entry| queue.job(entry))
    }

    /// All known jobs of `owner`, the newest first.
    pub fn jobs(&self, owner: &str) -> Vec<Job> {
        let state = self.shared().state();
        let own = state.queue.all().filter(|entry| entry.record.owner == owner && !entry.record.expired);
        own.map(|entry| state.queue.job(entry)).collect()
    }

    /// The events of a job of `owner` with numbers above `after`, up to its last one. A listener that does not keep up is disconnected
    /// earlier, and may resume.
    ///
    /// # Errors
    /// There is no such job.
    pub fn events(
        &self,
        id: JobId,
        owner: &str,
        after: u64,
    ) -> Answer<impl Stream<Item = Numbered> + Send + Unpin + 'static + use<>> {
        self.job(id, owner)?;
        let receiver = self.shared().state().queue.listen(id, after);
        receiver.map(ReceiverStream::new).ok_or(Missing::Unknown)
    }

    /// The events of all jobs of `owner` from now on. A listener that does not keep up misses some.
    pub fn all_events(&self, owner: &str) -> impl Stream<Item = Numbered> + Send + Unpin + 'static + use<> {
        ReceiverStream::new(self.shared().state().queue.listen_to_all(owner))
    }

    /// Waits until a job of `owner` or the server has ended; returns the job.
    ///
    /// # Errors
    /// There is no such job.
    pub async fn wait(&self, id: JobId, owner: &str) -> Answer<Job> {
        let done = self.of(id, owner, |queue, _| queue.done(id))?;
        if let Some(mut done) = done {
            _ = done.wait_for(|is_done| *is_done).await; // if the job is forgotten in the meantime, the lookup below fails
        }
        self.job(id, owner)
    }

    /// Cancels a job of `owner`: at once if it is waiting, else before its next step. Blocks.
    ///
    /// # Errors
    /// There is no such job.
    pub fn cancel(&self, id: JobId, owner: &str) -> Answer<CancelOutcome> {
        let status = self.of(id, owner, |_, entry| entry.record.status)?;
        if status.is_final() {
            return Ok(CancelOutcome::Finished(status));
        }
        if self.shared().change(|state| state.queue.cancel(id)) {
            self.shared().end(id, Status::Cancelled, Vec::new(), None);
        }
        Ok(CancelOutcome::Cancelled)
    }

    /// The PNG file of image `number` (from 0) of a job of `owner`. Blocks.
    ///
    /// # Errors
    /// There is no such image.
    pub fn image(&self, id: JobId, owner: &str, number: usize) -> Answer<Vec<u8>> {
        let count = self.of(id, owner, |_, entry| entry.record.images.len())?;
        if number >= count {
            return Err(Missing::Unknown);
        }
        let file = self.shared().results.read(id, number).map_err(Missing::Broken)?;
        file.ok_or(Missing::Expired) // it has just been removed
    }

    /// The latest preview of a running job of `owner`, a small PNG, if it was submitted with previews.
    ///
    /// # Errors
    /// There is no such job.
    pub fn preview(&self, id: JobId, owner: &str) -> Answer<Option<Vec<u8>>> {
        self.of(id, owner, |_, entry| entry.preview().map(<[u8]>::to_vec))
    }

    /// The models, the default one first.
    pub fn models(&self) -> Vec<ModelInfo> {
        self.shared().models.infos()
    }

    /// Loads a model, once the engine is free of jobs for other models.
    ///
    /// # Errors
    /// There is no such model, or it cannot be loaded.
    pub async fn load(&self, model: &str) -> Result<()> {
        self.order(model, Order::Load).await
    }

    /// Unloads a model's weights, once its running jobs have ended.
    ///
    /// # Errors
    /// There is no such model.
    pub async fn unload(&self, model: &str) -> Result<()> {
        self.order(model, Order::Unload).await
    }

    async fn order(&self, model: &str, order: impl FnOnce(usize, oneshot::Sender<Result<()>>) -> Order) -> Result<()> {
        let number = self.shared().models.find(Some(model))?;
        let (reply, answer) = oneshot::channel();
        self.shared().change(|state| {
            if !state.is_over {
                state.orders.push(order(number, reply))
            }
        });
        answer.await.unwrap_or_else(|_| Err(Error::setting("model", "the server is stopping")))
    }

    /// The adapters, sorted by name. Blocks: new ones are read.
    pub fn loras(&self) -> Vec<LoraInfo> {
        self.shared().adapters.infos(&self.shared().models, &self.shared().numbers)
    }

    /// Uploads an adapter: the bytes of a safetensors file. One uploaded earlier under the same name is replaced. Blocks.
    ///
    /// # Errors
    /// [`Refusal::Invalid`]: the name is invalid or that of an adapter in a configured folder; the file is too large or broken, has no
    /// adapter, or fits none of the models. [`Refusal::Broken`]: an I/O error.
    pub fn upload_lora(&self, name: &str, bytes: &[u8]) -> std::result::Result<LoraInfo, Refusal> {
        let (shared, most) = (self.shared(), self.config().limits.upload_bytes);
        if bytes.len() as u64 > most.0 {
            let problem = format!("has {} bytes, more than the maximum of {most}", bytes.len());
            return Err(Refusal::Invalid(Error::setting("body", problem)));
        }
        let uploaded = shared.adapters.upload(name, bytes, &shared.models, &shared.numbers);
        uploaded.map_err(|e| if e.is_io() { Refusal::Broken(e) } else { Refusal::Invalid(e) })
    }

    /// Removes an uploaded adapter. Accepted jobs that need it and have not started will fail. Blocks.
    ///
    /// # Errors
    /// [`Missing::Unknown`]: there is no uploaded adapter of this name.
    pub fn remove_lora(&self, name: &str) -> Answer<()> {
        match self.shared().adapters.remove(name) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Missing::Unknown),
            Err(e) => Err(Missing::Broken(e)),
        }
    }

    /// The status of the server.
    pub fn status(&self) -> StatusInfo {
        let (shared, numbers) = (self.shared(), &self.shared().numbers);
        let state = shared.state();
        let bytes = |amount: i64| u64::try_from(amount).unwrap_or(0);
        StatusInfo {
            device: match shared.config.cluster {
                None => device::name(&self.0.device),
                Some(_) => "workers".into(),
            },
            queue: QueueStatus { depth: state.queue.depth(), limit: shared.config.limits.queue },
            running: state.queue.running().to_vec(),
            memory: MemoryStatus {
                device_bytes: (!device::is_cpu(&self.0.device)).then(|| bytes(numbers.device_bytes.get())),
                host_bytes: bytes(numbers.host_bytes.get()),
            },
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// Whether the server accepts and runs jobs.
    ///
    /// # Errors
    /// Why it does not, in a sentence.
    pub fn ready(&self) -> std::result::Result<(), String> {
        let (since, state) = (self.shared().since_beat(), self.shared().state());
        match () {
            () if state.is_over => Err("the engine has ended".into()),
            () if state.stop_at.is_some() => Err("the server is stopping".into()),
            () if state.trouble.is_some() => Err(state.trouble.clone().unwrap_or_default()),
            () if since > LONGEST_STEP => Err(format!("the engine has been in one step for {} s", since.as_secs())),
            () => Ok(()),
        }
    }

    /// Its metrics in the text format of Prometheus. Nothing in them comes from prompts.
    pub fn metrics(&self) -> String {
        self.shared().numbers.text()
    }

    /// Stops accepting jobs and ends the engine. Running jobs have until `deadline` to finish; those that do not, and waiting ones,
    /// are restored by the next server with this state folder. Streams of events end. Blocks.
    pub fn stop(&self, deadline: Duration) {
        self.0.stop(deadline);
    }
}

//! `kiln batch` with a queue: a folder of any size, a part of it at a time, through workers on other machines.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    time::{Duration, Instant},
};

use async_nats::{Subscriber, jetstream::consumer::PullConsumer};
use tokio_stream::StreamExt;
use uuid::Uuid;

use super::{
    cluster::{
        depot::{Depot, IMAGE},
        line::{self, Line, broken},
        messages::{End, How, Order, VERSION},
    },
    config::ClusterConfig,
    job::{JobId, JobRequest, LoraChoice, Made},
};
use crate::{
    disk,
    error::{Error, Result},
    generation::{BatchReport, BatchRequest, ImageRecord, Task, finish, name, resize, save, tasks},
    stop,
};

/// Images that the queue has at a time.
const AT_ONCE: usize = 64;

/// After how many it is said how many there are.
const SAID: usize = 100;

/// How often it is asked whether to stop, and how long nothing is heard until it is looked for ends.
const LOOK: Duration = Duration::from_millis(200);

/// How long nothing ends until that is said.
const QUIET: Duration = Duration::from_secs(30);

/// What feeds a queue.
struct Feed<'a> {
    request: &'a BatchRequest,
    line: Line,
    depot: Depot,
    sender: String,
    loras: Vec<LoraChoice>,
    given: BTreeMap<JobId, Task>,
}

/// Changes or edits all images of a folder as [`batch`](crate::generation::batch) does, by workers, who know the models by the names in
/// their configurations. What cannot be read or made is reported and left out.
///
/// # Errors
/// As `batch`; the queue or the store cannot be used, or the request has what workers do not take.
pub fn feed(request: &BatchRequest, config: &ClusterConfig) -> Result<BatchReport> {
    for (field, is_given) in [
        ("scaled_condition", request.sampling.scaled_condition),
        ("no_lora_text_encoders", request.loras.no_text_encoders),
    ] {
        if is_given {
            return Err(Error::setting(field, "is not supported with a queue"));
        }
    }
    let mut report = BatchReport::new(&request.folder, request.seed, &request.choices);
    let tasks = VecDeque::from(tasks(request, &mut report)?);
    let runtime = line::runtime()?;
    let outcome = runtime.block_on(async {
        let (depot, sender) = (Depot::open(config)?, Uuid::now_v7().to_string());
        let line = Line::connect(config, "kiln batch", true).await?;
        let mut feed = Feed { request, line, depot, sender, loras: Vec::new(), given: BTreeMap::new() };
        fs::create_dir_all(&request.output).map_err(|e| Error::io(&request.output, e))?;
        disk::sweep(&request.output);
        let outcome = feed.all(tasks, &mut report).await;
        feed.leave().await;
        outcome
    });
    finish(request, report, outcome)
}

impl Feed<'_> {
    async fn all(&mut self, mut tasks: VecDeque<Task>, report: &mut BatchReport) -> Result<()> {
        let mut news = self.line.news(&self.sender).await?;
        self.put_loras().await?;
        let (mut heard, mut is_quiet, mut is_away, all) = (Instant::now(), false, false, tasks.len());
        let (mut ends, mut connects) = (None, self.line.connects());
        while !(tasks.is_empty() && self.given.is_empty()) {
            stop::check()?;
            if std::mem::replace(&mut connects, self.line.connects()) != connects {
                ends = None; // what was made in the queue may be gone
            }
            let before = report.pictures.len() + report.skipped.len();
            let round = match self.line.trouble() {
                Some(trouble) => Err(broken(trouble)),
                None => self.round(&mut ends, &mut tasks, report).await,
            };
            match round {
                Err(e) if line::is_broken(&e) => {
                    if !std::mem::replace(&mut is_away, true) {
                        tracing::warn!("images wait: {}", e.message());
                    }
                    ends = None;
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                other => other?,
            }
            is_away = false;
            let done = report.pictures.len() + report.skipped.len();
            if done > before {
                (heard, is_quiet) = (Instant::now(), false);
                if done / SAID > before / SAID {
                    tracing::info!("{done} of {all} images are done");
                }
            } else if heard.elapsed() > QUIET && !is_quiet {
                is_quiet = true;
                tracing::warn!("no image has come for {} s: is there a worker with these models?", QUIET.as_secs());
            }
            wait(&mut news, &mut heard).await;
        }
        Ok(())
    }

    /// Takes what has come and gives what there is room for; all that is open, if nobody takes the ends yet.
    async fn round(
        &mut self,
        ends: &mut Option<PullConsumer>,
        tasks: &mut VecDeque<Task>,
        report: &mut BatchReport,
    ) -> Result<()> {
        match ends {
            Some(ends) => self.take_ends(ends, report).await?,
            None => {
                self.line.prepare(true).await?;
                let new = self.line.ends(&self.sender).await?;
                self.take_ends(&new, report).await?;
                for id in self.given.keys().copied().collect::<Vec<_>>() {
                    self.put(id, report).await?;
                }
                *ends = Some(new);
            }
        }
        while self.given.len() < AT_ONCE
            && let Some(task) = tasks.pop_front()
        {
            self.give(task, report).await?;
        }
        Ok(())
    }

    /// Puts the LoRA files into the store.
    async fn put_loras(&mut self) -> Result<()> {
        for (path, scale) in &self.request.loras.files {
            if !path.is_file() {
                return Err(Error::file(path, "is no file, which a LoRA for workers must be"));
            }
            let hash = disk::checksum(path)?;
            if !self.depot.has(&Depot::adapter(&hash)).await? {
                let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
                self.depot.put(&Depot::adapter(&hash), bytes).await?;
            }
            self.loras.push(LoraChoice { name: hash, scale: *scale });
        }
        Ok(())
    }

    /// Gives an image to the queue.
    async fn give(&mut self, task: Task, report: &mut BatchReport) -> Result<()> {
        let bytes = match fs::read(&task.path) {
            Ok(bytes) => bytes,
            Err(e) => {
                report.skip(&task.path, &Error::io(&task.path, e));
                return Ok(());
            }
        };
        let id = JobId::new();
        self.depot.put(&Depot::input(id, IMAGE), bytes).await?;
        self.given.insert(id, task);
        self.put(id, report).await
    }

    /// Puts an image that is open into the queue, unless it is there.
    async fn put(&mut self, id: JobId, report: &mut BatchReport) -> Result<()> {
        let Some(task) = self.given.get(&id) else { return Ok(()) };
        if let Err(refused) = self.line.give(&task.model, &self.order(id, task)).await? {
            report.skip(&task.path, &refused);
            self.given.remove(&id);
            self.depot.forget(id).await?;
        }
        Ok(())
    }

    /// An image as a worker is told of it.
    fn order(&self, id: JobId, task: &Task) -> Order {
        let sampling = self.request.sampling.clone();
        let request = JobRequest {
            model: Some(task.model.clone()),
            seed: Some(self.request.seed),
            steps: sampling.steps,
            guidance: sampling.guidance,
            image_guidance: sampling.image_guidance,
            true_guidance: sampling.true_guidance,
            negative_prompt: sampling.negative_prompt,
            scheduler: sampling.scheduler,
            loras: self.loras.clone(),
            ..JobRequest::new(task.prompt.clone())
        };
        Order {
            version: VERSION.into(),
            id,
            sender: self.sender.clone(),
            request,
            has_image: true,
            has_mask: false,
            strength: Some(task.strength),
            fingerprint: None,
            deliveries: 0,
            given_back: 0,
        }
    }

    /// Takes the ends that have come.
    async fn take_ends(&mut self, ends: &PullConsumer, report: &mut BatchReport) -> Result<()> {
        for message in line::fetch(ends, AT_ONCE).await? {
            if let Some(end) = line::read::<End>(&message.payload) {
                self.take(end, report).await?;
            }
            message.ack().await.map_err(broken)?;
        }
        Ok(())
    }

    /// Takes the end of an image, unless it has one.
    async fn take(&mut self, end: End, report: &mut BatchReport) -> Result<()> {
        let Some(task) = self.given.get(&end.id) else { return Ok(()) };
        let problem = match &end.how {
            How::Failed { error } => Some(error.message.clone()),
            How::Completed { folder, images, strength } => match (self.fetch(end.id, folder).await?, images.first()) {
                (Some(image), Some(made)) => {
                    save(&resize(image, task.size), &self.request.output_of(&task.path))?;
                    report.pictures.push(done(task, made, *strength, end.seconds));
                    None
                }
                _ => Some("was made, and is not in the store: has the worker the same `store`?".into()),
            },
        };
        if let Some(problem) = problem {
            report.skip(&task.path, &Error::file(&task.path, problem));
        }
        self.given.remove(&end.id);
        self.line.forget(end.id).await?;
        self.depot.forget(end.id).await
    }

    async fn fetch(&self, id: JobId, folder: &str) -> Result<Option<image::RgbImage>> {
        let bytes = self.depot.get(&Depot::result(id, folder, 0)).await?;
        Ok(bytes.and_then(|bytes| image::load_from_memory(&bytes).ok()).map(|image| image.into_rgb8()))
    }

    /// Takes back what is still in the queue.
    async fn leave(&self) {
        let mut answers = self.line.trouble().is_none();
        for id in self.given.keys() {
            answers = answers && self.line.withdraw(*id).await.is_ok(); // else a worker makes it for nobody
            _ = self.depot.forget(*id).await;
        }
        if answers {
            self.line.leave(&self.sender).await;
        }
    }
}

fn done(task: &Task, made: &Made, strength: Option<f64>, seconds: f64) -> ImageRecord {
    ImageRecord {
        name: name(&task.path),
        model: task.model.clone(),
        prompt: task.prompt.clone(),
        strength,
        size: task.size,
        worked_at: (made.width, made.height),
        batch: 1,
        seconds,
    }
}

/// Waits until something is heard, or it is time to look anyway.
async fn wait(news: &mut Subscriber, heard: &mut Instant) {
    let ends = async {
        while let Some(told) = news.next().await {
            *heard = Instant::now();
            if told.payload.windows(5).any(|word| word == b"ended") {
                return;
            }
        }
    };
    _ = tokio::time::timeout(LOOK, ends).await;
}

//! The connection to the queue: two streams of JetStream, of jobs and of their ends, and what is told without being kept.

use std::{fs, sync::atomic::Ordering, time::Duration};

use async_nats::{
    Client, ConnectOptions, Event, Subscriber,
    connection::State,
    jetstream::{
        self, Context,
        consumer::{AckPolicy, PullConsumer, pull},
        context::{PublishError, PublishErrorKind},
        message::PublishMessage,
        stream::{self, RetentionPolicy, StorageType},
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::runtime::Runtime;
use tokio_stream::StreamExt;

use super::messages::{End, News, Order, VERSION};
use crate::{
    error::{Error, Result, Subject},
    serve::{config::ClusterConfig, job::JobId},
};

/// The setting that says where the queue is.
const SETTING: &str = "cluster.queue";

/// The variable with credentials, where no file has them.
const VARIABLE: &str = "KILN_QUEUE_CREDENTIALS";

/// The streams.
const JOBS: &str = "kiln-jobs";
const ENDS: &str = "kiln-ends";

/// How long results wait for a missing server. After that, their jobs are repeated.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long there is to connect, and for an answer of the queue.
const PATIENCE: Duration = Duration::from_secs(5);

/// The subject of wishes to cancel.
const WISHES: &str = "kiln.cancel";

/// A connection that reconnects whenever it breaks.
#[derive(Clone)]
pub struct Line {
    client: Client,
    context: Context,
    silence: Duration,
}

/// The threads that a line works on.
///
/// # Errors
/// The system gives none.
pub fn runtime() -> Result<Runtime> {
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    let runtime = threads.worker_threads(1).thread_name("queue").enable_all().build();
    runtime.map_err(|e| Error::setting(SETTING, format!("cannot start its thread ({e})")))
}

impl Line {
    /// Connects to the queue of a configuration under the name `name`, and makes its streams if they are not there. One that
    /// `renews` may take over those of another release, once they are empty.
    ///
    /// # Errors
    /// The queue is out of reach, refuses the credentials, has no JetStream, or is in use by another release.
    pub async fn connect(config: &ClusterConfig, name: &str, renews: bool) -> Result<Self> {
        // What is asked first wins; other parts of the program ask for nothing else.
        _ = rustls::crypto::ring::default_provider().install_default();
        let options = with_credentials(ConnectOptions::new(), config)?;
        let options = options.name(name).connection_timeout(PATIENCE).event_callback(said);
        let options = config.ca.iter().fold(options, |options, file| options.add_root_certificates(file.clone()));
        let options = match config.certificate.clone().zip(config.key.clone()) {
            Some((certificate, key)) => options.add_client_certificate(certificate, key),
            None => options,
        };
        let connected = options.require_tls(config.queue.starts_with("tls://")).connect(&config.queue).await;
        let client = connected.map_err(|e| {
            Error::setting(SETTING, format!("{} cannot be reached ({e})", config.queue))
                .hint("is there a NATS server with JetStream (`nats-server -js`), and are the credentials its own?")
        })?;
        let mut context = jetstream::new(client.clone());
        context.set_timeout(PATIENCE);
        let line = Self { client, context, silence: Duration::from_secs(config.silence_seconds) };
        line.prepare(renews).await?;
        Ok(line)
    }

    /// Makes the streams, if they are not there.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn prepare(&self, renews: bool) -> Result<()> {
        let own = |name: &str, subject: &str| stream::Config {
            name: name.into(),
            subjects: vec![subject.into()],
            description: Some(VERSION.into()),
            retention: RetentionPolicy::WorkQueue,
            storage: StorageType::File,
            ..Default::default()
        };
        for config in [own(JOBS, "kiln.jobs.>"), stream::Config { max_age: KEPT, ..own(ENDS, "kiln.ends.>") }] {
            let stream = self.context.get_or_create_stream(config).await.map_err(broken)?;
            let info = stream.cached_info();
            if info.config.description.as_deref() == Some(VERSION) {
                continue;
            }
            let other = info.config.description.as_deref().unwrap_or("something else");
            if !renews || info.state.messages > 0 {
                let error = Error::setting(SETTING, format!("is in use by {other}, and this is {VERSION}"));
                return Err(error.hint(
                    "run the same release everywhere; a server of another one takes over once the queue is empty",
                ));
            }
            let config = stream::Config { description: Some(VERSION.into()), ..info.config.clone() };
            self.context.update_stream(config).await.map_err(broken)?;
        }
        Ok(())
    }

    /// Why nothing can be sent just now.
    pub fn trouble(&self) -> Option<String> {
        (self.client.connection_state() != State::Connected).then(|| "the queue is out of reach".into())
    }

    /// How often the connection was made: what another queue has, or one that lost something, nobody knows after that.
    pub fn connects(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// How long a worker may be silent before its jobs are given to others.
    pub fn silence(&self) -> Duration {
        self.silence
    }

    /// Puts a job into the queue, unless it is there; or why it can never be put there.
    ///
    /// # Errors
    /// The queue cannot be reached.
    pub async fn give(&self, model: &str, order: &Order) -> Result<Result<()>> {
        let subject = format!("kiln.jobs.{}.{}.{}", token(model), order.sender, order.id);
        let payload = json(order);
        let size = payload.len();
        let message = PublishMessage::build().payload(payload.into()).expected_last_subject_sequence(0);
        match self.put(subject, message.message_id(order.id.to_string())).await {
            Err(e) if e.kind() == PublishErrorKind::MaxPayloadExceeded => {
                let error =
                    Error::setting("job", format!("is too large for the queue: {size} bytes without its images"));
                Ok(Err(error.hint("shorten its prompts, or raise `max_payload` of the NATS server")))
            }
            Err(e) if e.kind() != PublishErrorKind::WrongLastSequence => Err(broken(e)),
            _ => Ok(Ok(())),
        }
    }

    /// Puts a job that is the message `sequence` of a subject there once more, unless it is the latest no longer: then somebody else
    /// did, or nobody wants it.
    ///
    /// # Errors
    /// The queue cannot be reached.
    pub async fn put_back(&self, subject: &str, sequence: u64, payload: Vec<u8>) -> Result<()> {
        let message = PublishMessage::build().payload(payload.into()).expected_last_subject_sequence(sequence);
        match self.put(subject.into(), message.message_id(format!("{subject} after {sequence}"))).await {
            Err(e) if e.kind() != PublishErrorKind::WrongLastSequence => Err(broken(e)),
            _ => Ok(()),
        }
    }

    async fn put(&self, subject: String, message: PublishMessage) -> std::result::Result<(), PublishError> {
        self.context.send_publish(subject, message).await?.await.map(drop)
    }

    /// Takes a job out of the queue, and tells whoever works on it.
    ///
    /// # Errors
    /// The queue cannot be reached.
    pub async fn withdraw(&self, id: JobId) -> Result<()> {
        self.forget(id).await?;
        self.client.publish(WISHES, id.to_string().into()).await.map_err(broken)
    }

    /// Takes a job out of the queue.
    ///
    /// # Errors
    /// The queue cannot be reached.
    pub async fn forget(&self, id: JobId) -> Result<()> {
        let stream = self.context.get_stream_no_info(JOBS).await.map_err(broken)?;
        stream.purge().filter(format!("kiln.jobs.*.*.{id}")).await.map(drop).map_err(broken)
    }

    /// Names of jobs that nobody wants any more.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn wishes(&self) -> Result<Subscriber> {
        self.client.subscribe(WISHES).await.map_err(broken)
    }

    /// News of the jobs of a sender.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn news(&self, sender: &str) -> Result<Subscriber> {
        self.client.subscribe(format!("kiln.news.{sender}")).await.map_err(broken)
    }

    /// Tells news of a job to its sender, if it listens.
    pub async fn tell(&self, sender: &str, news: &News) {
        if self.trouble().is_none() {
            _ = self.client.publish(format!("kiln.news.{sender}"), json(news).into()).await; // nobody needs to know
        }
    }

    /// Puts the end of a job where its sender finds it.
    ///
    /// # Errors
    /// The queue cannot be reached.
    pub async fn end(&self, sender: &str, end: &End) -> Result<()> {
        let message = PublishMessage::build().payload(json(end).into());
        let message = message.message_id(format!("{}-{}-{}", end.id, end.worker, end.delivery));
        self.put(format!("kiln.ends.{sender}.{}", end.id), message).await.map_err(broken)
    }

    /// Whoever takes the ends of the jobs of a sender.
    ///
    /// # Errors
    /// The queue cannot be reached.
    pub async fn ends(&self, sender: &str) -> Result<PullConsumer> {
        self.consumer(ENDS, sender, format!("kiln.ends.{sender}.>"), Duration::from_secs(30)).await
    }

    /// Nobody takes the ends of the jobs of this sender any more.
    pub async fn leave(&self, sender: &str) {
        if let Ok(stream) = self.context.get_stream_no_info(ENDS).await {
            _ = stream.delete_consumer(sender).await; // it costs the queue little
        }
    }

    /// Whoever takes the jobs for a model.
    ///
    /// # Errors
    /// The queue cannot be reached, or its workers may be silent for longer than here.
    pub async fn jobs(&self, model: &str) -> Result<PullConsumer> {
        let token = token(model);
        self.consumer(JOBS, &format!("model-{token}"), format!("kiln.jobs.{token}.>"), self.silence).await
    }

    async fn consumer(&self, stream: &str, name: &str, filter: String, ack_wait: Duration) -> Result<PullConsumer> {
        let stream = self.context.get_stream_no_info(stream).await.map_err(broken)?;
        let config = pull::Config {
            durable_name: Some(name.into()),
            filter_subject: filter,
            ack_policy: AckPolicy::Explicit,
            ack_wait,
            ..Default::default()
        };
        let consumer = stream.get_or_create_consumer(name, config.clone()).await.map_err(broken)?;
        match consumer.cached_info().config.ack_wait {
            known if known == ack_wait => Ok(consumer),
            // Those that tell more often than they have to lose nothing by it.
            known if known < ack_wait => stream.create_consumer(config).await.map_err(broken),
            known => {
                let problem = format!("is {} here, and {} in the queue", ack_wait.as_secs(), known.as_secs());
                Err(Error::setting("cluster.silence_seconds", problem).hint(format!(
                    "use the same everywhere; to lower it, delete the consumer `{name}` of the stream `{JOBS}` while no worker runs"
                )))
            }
        }
    }
}

/// What a consumer has, at most so many messages. That no answer comes is an error: the library would wait for it without end.
///
/// # Errors
/// The queue cannot be reached, or lost the consumer.
pub async fn fetch(consumer: &PullConsumer, most: usize) -> Result<Vec<jetstream::Message>> {
    let late = |_| broken("the queue does not answer");
    let asked = tokio::time::timeout(PATIENCE, consumer.fetch().max_messages(most).messages()).await;
    let mut some = asked.map_err(late)?.map_err(broken)?;
    let mut messages = Vec::new();
    loop {
        match tokio::time::timeout(PATIENCE, some.next()).await {
            Ok(Some(message)) => messages.push(message.map_err(broken)?),
            Err(e) if messages.is_empty() => return Err(late(e)),
            Ok(None) | Err(_) => return Ok(messages),
        }
    }
}

/// A message as what it should be.
pub fn read<T: DeserializeOwned>(payload: &[u8]) -> Option<T> {
    let read = serde_json::from_slice(payload);
    read.inspect_err(|e| tracing::warn!("a message in the queue is not kiln's: {e}")).ok()
}

/// A message as it is sent.
pub fn json(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages have text as keys")
}

/// An error of the queue.
pub fn broken(error: impl std::fmt::Display) -> Error {
    Error::setting(SETTING, error.to_string())
}

/// Whether an error is one of the queue, which may pass.
pub fn is_broken(error: &Error) -> bool {
    matches!(&error.subject, Subject::Setting(field) if field == SETTING)
}

/// A name of a model as a part of a subject, where a dot separates.
fn token(model: &str) -> String {
    model.replace('.', "=")
}

/// Logs what happens to the connection.
async fn said(event: Event) {
    match event {
        Event::Connected => tracing::info!("the queue is connected"),
        Event::Disconnected => tracing::warn!("the queue is out of reach; waiting for it"),
        other => tracing::debug!("queue: {other}"),
    }
}

/// The credentials of a configuration: of its file, or of the environment.
fn with_credentials(options: ConnectOptions, config: &ClusterConfig) -> Result<ConnectOptions> {
    let text = match &config.credentials {
        Some(path) => fs::read_to_string(path).map_err(|e| Error::io(path, e))?,
        None => std::env::var(VARIABLE).unwrap_or_default(),
    };
    let text = text.trim();
    if text.contains("BEGIN NATS USER JWT") {
        // The error of the library might quote what it has read.
        let refused = |_| Error::setting("cluster.credentials", "is not a complete `.creds` file");
        return options.credentials(text).map_err(refused);
    }
    Ok(match text.split_once(':') {
        _ if text.is_empty() => options,
        _ if text.contains(char::is_whitespace) => {
            let error = Error::setting("cluster.credentials", "is neither a `.creds` file nor one line");
            return Err(error.hint("write `USER:PASSWORD`, or a token, as its only line"));
        }
        Some((user, password)) => options.user_and_password(user.into(), password.into()),
        None => options.token(text.into()),
    })
}

//! Streams of previews and images as OpenAI's events.

use axum::response::{Response, sse::Event as Message};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;

use super::{
    super::{
        App, blocking,
        errors::{Answer, Dialect, Failure},
        events, images,
        waiting::{self, Held},
    },
    Sending, size,
};
use crate::{
    error::Error,
    serve::job::{Event, Job, Numbered},
};

/// How many messages may wait for a slow listener.
const WAITING: usize = 8;

/// A response that sends previews and images of a submitted job; the job is cancelled if the listener is gone.
pub(super) fn answer(app: &App, held: Held, kind: &'static str, sending: Sending) -> Answer<Response> {
    let missing = |missing| Failure::missing("job", missing);
    let job = app.service.job(held.id, &held.owner).map_err(missing)?;
    let (sender, receiver) = mpsc::channel(WAITING);
    let mut told = Told {
        app: app.clone(),
        kind,
        sending,
        previews: vec![0; job.request.count],
        steps: job.of / job.request.count.max(1),
        job,
    };
    tokio::spawn(async move {
        let (mut held, mut last) = (held, 0);
        // A listener that falls behind is disconnected, and resumes from its last event.
        while let Ok(events) = told.app.service.events(held.id, &held.owner, last) {
            let mut events = std::pin::pin!(events);
            while let Some(Numbered { number, event, .. }) = tokio::select! {
                next = events.next() => next,
                () = sender.closed() => return,
            } {
                last = number;
                if event.is_final() {
                    held.end();
                }
                let (is_final, messages) = (event.is_final(), told.messages(event).await);
                for message in messages.unwrap_or_else(|failure| vec![told.failure(&failure)]) {
                    if sender.send(message).await.is_err() {
                        return;
                    }
                }
                if is_final {
                    return;
                }
            }
            if *told.app.stopping.borrow() {
                break;
            }
        }
        _ = sender.send(told.failure(&Failure::stopping())).await;
    });
    Ok(events::answer(receiver))
}

/// The state of a listener to a job.
struct Told {
    app: App,
    /// `image_generation` or `image_edit`.
    kind: &'static str,
    sending: Sending,
    job: Job,
    /// The number of previews sent, by image.
    previews: Vec<usize>,
    /// The denoising steps per image: fewer than requested if an image is changed.
    steps: usize,
}

impl Told {
    async fn messages(&mut self, event: Event) -> Answer<Vec<Message>> {
        match event {
            Event::Progress { of, .. } => {
                self.steps = of / self.job.request.count.max(1);
                Ok(Vec::new())
            }
            Event::Preview { image, step, png } if self.is_due(image, step) => {
                let (sending, side) = (self.sending, |side: Option<usize>| side.unwrap_or_default() as u32);
                let size = (side(self.job.request.width), side(self.job.request.height));
                let text =
                    blocking(move || images::convert(png.0, sending.format, sending.quality, Some(size))).await?;
                let text = text.map_err(|error| Failure::broken(&error))?;
                let number = self.previews[image];
                self.previews[image] += 1;
                let more = json!({"partial_image_index": number, "image_index": image});
                Ok(vec![self.message("partial_image", &text, more)])
            }
            Event::Completed { .. } => {
                let (app, id, owner) = (&self.app, self.job.id, &self.job.owner);
                let job = app.service.job(id, owner).map_err(|missing| Failure::missing("job", missing))?;
                let files = waiting::files(app, &job, self.sending.format, self.sending.quality).await?;
                let told = files.iter().zip(&job.images).enumerate();
                Ok(told
                    .map(|(number, (file, made))| {
                        self.message("completed", file, json!({"image_index": number, "seed": made.seed}))
                    })
                    .collect())
            }
            Event::Failed { error } => Err(Failure::of_job(&error)),
            Event::Cancelled {} => {
                Err(Failure::invalid(&Error::setting("job", "was cancelled")).with_code("cancelled"))
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Whether a preview of an image is due: previews are spread evenly over the steps.
    fn is_due(&self, image: usize, step: usize) -> bool {
        let wanted = self.sending.partial_images;
        let sent = self.previews.get(image).copied().unwrap_or(wanted);
        sent < wanted && step * (wanted + 1) >= (sent + 1) * self.steps
    }

    fn message(&self, what: &str, file: &[u8], more: Value) -> Message {
        let name = format!("{}.{what}", self.kind);
        let mut data = json!({
            "type": name, "b64_json": images::to_text(file), "created_at": self.job.created as u64, "size": size(&self.job),
            "quality": "auto", "background": "opaque", "output_format": self.sending.format.word(), "job": self.job.id,
        });
        if let (Some(data), Value::Object(more)) = (data.as_object_mut(), more) {
            data.extend(more);
        }
        events::message(&name, &data)
    }

    fn failure(&self, failure: &Failure) -> Message {
        events::message("error", &failure.event(Dialect::OpenAi))
    }
}

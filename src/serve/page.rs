//! The parts of the page besides jobs: votes, training runs, datasets.

use std::fs;

use super::{
    config::ServeConfig,
    datasets::Datasets,
    job::Job,
    run::RunState,
    runs::Runs,
    starts::{Launch, Starts},
    thumbnails::Thumbnails,
    votes::{Candidate, Votes},
};
use crate::error::{Error, Result};

/// The parts of the page besides jobs.
pub struct Page {
    /// Votes between images.
    pub votes: Votes,
    /// The runs in the configured folders.
    pub runs: Runs,
    /// The runs started from the page.
    pub starts: Starts,
    /// The datasets in the configured folders.
    pub datasets: Datasets,
    /// Thumbnails of the datasets' images.
    pub thumbnails: Thumbnails,
}

impl Page {
    /// Opens the votes in the state folder, and scans the folders of the page.
    ///
    /// # Errors
    /// The state folder cannot be written.
    pub fn open(config: &ServeConfig, launch: Launch) -> Result<Self> {
        fs::create_dir_all(&config.state).map_err(|e| Error::io(&config.state, e))?;
        Ok(Self {
            votes: Votes::open(&config.state.join("votes.sqlite"))?,
            runs: Runs::new(config.page.runs.clone()),
            starts: Starts::new(config.page.clone(), config.state.join("starts"), launch),
            datasets: Datasets::new(config.page.datasets.clone()),
            thumbnails: Thumbnails::new(config.state.join("thumbnails")),
        })
    }

    /// Asks a run to stop after its current step, with a checkpoint; also one that was started here and has no folder yet. `None` if
    /// there is no such run.
    ///
    /// # Errors
    /// No process on this machine is training it, or the operating system refuses.
    pub fn stop(&self, run: &str) -> Option<Result<RunState>> {
        self.runs.stop(run, self.starts.process(run))
    }
}

/// The images of a job that may be shown in pairs: only those generated from text, since input images are not kept.
pub fn candidates(job: &Job) -> Vec<Candidate> {
    if job.has_image {
        return Vec::new();
    }
    let request = &job.request;
    let worn = request.loras.iter().map(|lora| match lora.scale {
        1.0 => lora.name.clone(),
        scale => format!("{} × {scale}", lora.name),
    });
    let names: Vec<String> = request.model.iter().cloned().chain(worn).collect();
    let image = |(number, made): (usize, &super::job::Made)| {
        let settings = (
            (&request.prompt, &request.negative_prompt, made.seed, made.width, made.height),
            (request.steps, request.guidance, request.image_guidance, request.true_guidance, request.scheduler),
        );
        Candidate {
            contestant: names.join(" + "),
            prompt: request.prompt.clone(),
            scene: format!("{settings:?}"),
            image: format!("{}/{number}", job.id),
        }
    };
    job.images.iter().enumerate().map(image).collect()
}

//! What the page shows beside jobs: votes, runs of training, datasets.

use std::fs;

use super::{
    config::ServeConfig,
    datasets::Datasets,
    job::Job,
    runs::Runs,
    thumbnails::Thumbnails,
    votes::{Candidate, Votes},
};
use crate::error::{Error, Result};

/// All of it.
#[derive(Debug)]
pub struct Page {
    /// Votes between images.
    pub votes: Votes,
    /// The runs in the configured folders.
    pub runs: Runs,
    /// The datasets in the configured folders.
    pub datasets: Datasets,
    /// Of their images.
    pub thumbnails: Thumbnails,
}

impl Page {
    /// Opens the votes in the state folder, and looks at the folders of the page.
    ///
    /// # Errors
    /// The state folder cannot be written.
    pub fn open(config: &ServeConfig) -> Result<Self> {
        fs::create_dir_all(&config.state).map_err(|e| Error::io(&config.state, e))?;
        Ok(Self {
            votes: Votes::open(&config.state.join("votes.sqlite"))?,
            runs: Runs::new(config.page.runs.clone()),
            datasets: Datasets::new(config.page.datasets.clone()),
            thumbnails: Thumbnails::new(config.state.join("thumbnails")),
        })
    }
}

/// The images of a job that may be shown in pairs: those that were made from text alone, for of others it is not kept from what.
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

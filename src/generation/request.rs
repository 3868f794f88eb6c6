//! Requests of the command line, with files as inputs and outputs.

use std::path::PathBuf;

use super::{LoraFiles, SamplingOptions};
use crate::{
    error::{Error, Result},
    memory::MemoryConfig,
    paths,
    pipelines::LARGEST_SIDE,
};

/// A request of `kiln generate` or `kiln edit`.
#[derive(Clone, Debug, Default)]
pub struct GenerateRequest {
    /// The model: a folder, or `org/name`.
    pub model: String,
    /// The LoRA files.
    pub loras: LoraFiles,
    /// Sampling options.
    pub sampling: SamplingOptions,
    /// Whether the model must be an editing model; otherwise it must not be one.
    pub edit: bool,
    /// Prompts or instructions.
    pub prompts: Vec<String>,
    /// Token ids instead of prompts: a file with `clip` `[B, 77]` and, for a model with T5, `t5` `[B, L]`.
    pub pre_tokenized_ids: Option<PathBuf>,
    /// An original or initial image, or a folder of them.
    pub image: Option<PathBuf>,
    /// Whether `image` is a file with scaled `latents` `[B, C, h, w]` instead.
    pub input_is_latents: bool,
    /// The denoising strength for initial images.
    pub strength: f64,
    /// An inpainting mask for an initial image, of its size, white where it may change.
    pub mask: Option<PathBuf>,
    /// Width in pixels; by default that of `image` or `noise`, else the model's native one.
    pub width: Option<usize>,
    /// Height in pixels, like the width.
    pub height: Option<usize>,
    /// Seed of the first image of each prompt; the next one has the next seed.
    pub seed: u64,
    /// Images per prompt and initial image.
    pub count: usize,
    /// Images per batch, all of one size. By default as many as fit in memory.
    pub batch_size: Option<usize>,
    /// A file with initial noise: `noise` `[B, C, h, w]`.
    pub noise: Option<PathBuf>,
    /// Whether scaled latents are written instead of images: to the file `output`, `[B, C, h, w]`, or `[B, L, 4·C]` if the family of the
    /// model packs them.
    pub return_latents: bool,
    /// Folder for images. Existing files are never overwritten.
    pub output: PathBuf,
    /// The memory settings.
    pub memory: MemoryConfig,
}

/// The most images per command.
const MOST_PICTURES: usize = 100_000;

/// The most images per batch.
pub(super) const MOST_AT_ONCE: usize = 1024;

impl GenerateRequest {
    /// Checks the request before any file is opened.
    ///
    /// # Errors
    /// A number is out of range, or the output cannot be written.
    pub(super) fn check(&self) -> Result<()> {
        let (batch_size, sides) = (self.batch_size.unwrap_or(1), [self.width.unwrap_or(1), self.height.unwrap_or(1)]);
        // Which sides above zero are possible depends on the model.
        for (field, number, least, most) in [
            ("count", self.count, 1, MOST_PICTURES),
            ("batch_size", batch_size, 1, MOST_AT_ONCE),
            ("width", sides[0], 0, LARGEST_SIDE),
            ("height", sides[1], 0, LARGEST_SIDE),
        ] {
            if !(least..=most).contains(&number) {
                return Err(Error::setting(field, format!("must be at least 1 and at most {most}, not {number}")));
            }
        }
        match self.return_latents {
            true => paths::check_file(&self.output),
            false => paths::check_folder(&self.output).map_err(|e| e.hint("choose another `output`")),
        }
    }

    /// The number of results for so many initial images (noise counts as one) and so many prompts.
    ///
    /// # Errors
    /// There are too many.
    pub(super) fn total(&self, pictures: usize, prompts: usize) -> Result<usize> {
        let total = pictures.checked_mul(prompts).and_then(|rows| rows.checked_mul(self.count));
        total.filter(|&total| total <= MOST_PICTURES).ok_or_else(|| {
            let problem =
                format!("is {} for {prompts} prompts and {pictures} images, more than {MOST_PICTURES}", self.count);
            Error::setting("count", problem).hint("use several commands")
        })
    }
}

//! What is asked for on the command line: images in files, from prompts and images in files.

use std::path::PathBuf;

use super::{LoraFiles, SamplingOptions};
use crate::{
    error::{Error, Result},
    memory::MemoryConfig,
    paths,
    pipelines::LARGEST_SIDE,
};

/// What `kiln generate` and `kiln edit` are asked for.
#[derive(Clone, Debug, Default)]
pub struct GenerateRequest {
    /// A folder, or `org/name`.
    pub model: String,
    /// LoRA files, and what of them is applied.
    pub loras: LoraFiles,
    /// How images are made.
    pub sampling: SamplingOptions,
    /// Whether the model must be one that edits by instruction; if not, it must be none.
    pub edit: bool,
    /// Texts or instructions.
    pub prompts: Vec<String>,
    /// Tokens instead of texts: a file with `clip` `[B, 77]` and, for a model with T5, `t5` `[B, L]`.
    pub pre_tokenized_ids: Option<PathBuf>,
    /// An image, or a folder of images, to edit or to start from.
    pub image: Option<PathBuf>,
    /// Whether `image` is no image, but a file with scaled `latents` `[B, C, h, w]` of images.
    pub input_is_latents: bool,
    /// The share of the steps to run on an image to start from.
    pub strength: f64,
    /// Where to change such an image: white in an image of its size.
    pub mask: Option<PathBuf>,
    /// Pixels; that of `image` or `noise`, or else what the model was made for, if not given.
    pub width: Option<usize>,
    /// Pixels, as the width.
    pub height: Option<usize>,
    /// Of the first image of each prompt; the next has the next seed.
    pub seed: u64,
    /// Images for each prompt and image.
    pub count: usize,
    /// Images made together, of one size. If not given: as many as are sure to fit into memory.
    pub batch_size: Option<usize>,
    /// Start noise from a file: `noise` `[B, C, h, w]`.
    pub noise: Option<PathBuf>,
    /// Whether the scaled latents are written instead of images: to the file `output`, `[B, C, h, w]`, or `[B, L, 4·C]` where
    /// the model's family packs them.
    pub return_latents: bool,
    /// Folder for images. None that is there is written over.
    pub output: PathBuf,
    /// How much of the model is in device memory at once.
    pub memory: MemoryConfig,
}

/// The most images that one command makes.
const MOST_PICTURES: usize = 100_000;

/// The most images that are made together.
pub(super) const MOST_AT_ONCE: usize = 1024;

impl GenerateRequest {
    /// What can be said before a file is opened.
    ///
    /// # Errors
    /// A number is out of its range, or the output cannot be written.
    pub(super) fn check(&self) -> Result<()> {
        let (batch_size, sides) = (self.batch_size.unwrap_or(1), [self.width.unwrap_or(1), self.height.unwrap_or(1)]);
        // The model tells which sides above zero it can make.
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

    /// How many images are made from so many to start from (noise counts as one) and so many prompts.
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

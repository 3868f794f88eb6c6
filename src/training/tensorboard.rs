//! TensorBoard's event files.

use std::path::Path;

use image::RgbImage;
use tensorboard_rs::summary_writer::SummaryWriter;

use crate::error::{Error, Result};

/// Writes curves and pictures that `tensorboard --logdir <run>` shows. A resumed run adds a file.
pub(super) struct TensorBoard(SummaryWriter);

impl TensorBoard {
    /// Opens a new event file in `folder`, which is made if needed.
    pub fn open(folder: &Path) -> Result<Self> {
        // The writer ends the program if it cannot create its folder: so that is tried here first.
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        Ok(Self(SummaryWriter::new(folder)))
    }

    /// A point of the curve `name`.
    pub fn scalar(&mut self, name: &str, value: f64, step: u64) {
        self.0.add_scalar(name, value as f32, step as usize);
        self.0.flush();
    }

    /// A picture under `name`.
    pub fn image(&mut self, name: &str, image: &RgbImage, step: u64) {
        // The writer's documentation says C, H, W; its code reads channels, width, height, and rows of RGB triples.
        let size = [3, image.width() as usize, image.height() as usize];
        self.0.add_image(name, image.as_raw(), &size, step as usize);
        self.0.flush();
    }
}

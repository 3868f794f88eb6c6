//! The task of a run: a pipeline, what its denoiser learns, and how that is shown.

use burn::tensor::Device;
use image::RgbImage;

use super::objective::Objective;
use crate::{error::Result, nn::Adapters, pipelines::Pipeline};

/// The denoiser of a task.
pub(super) type Model<T> = <<T as Task>::Objective as Objective<<T as Task>::Pipeline>>::Model;

/// A pipeline and what its denoiser learns. The loop, checkpoints, metrics and validation are the same for all tasks.
pub(super) trait Task: Sized {
    /// The pipeline.
    type Pipeline: Pipeline;

    /// What is learned.
    type Objective: Objective<Self::Pipeline>;

    /// What is learned.
    fn objective(&self) -> &Self::Objective;

    /// The pipeline.
    fn pipeline(&self) -> &Self::Pipeline;

    /// The same, to be changed.
    fn pipeline_mut(&mut self) -> &mut Self::Pipeline;

    /// The noise levels at which the held-out loss is measured.
    fn levels(&self) -> &[f64];

    /// What the model makes with `adapters` on, as one image for people to look at, if the configuration asks for any. A model
    /// that is not `trained` yet is as it was loaded.
    ///
    /// # Errors
    /// An image is not finite, or the cache is damaged.
    fn grid(&mut self, adapters: &[Adapters], trained: bool) -> Result<Option<RgbImage>>;

    /// The denoiser.
    fn model(&self) -> &Model<Self> {
        Self::Objective::model(self.pipeline())
    }

    /// The same, to be changed.
    fn model_mut(&mut self) -> &mut Model<Self> {
        Self::Objective::model_mut(self.pipeline_mut())
    }

    /// Where its tensors are.
    fn device(&self) -> &Device {
        self.pipeline().device()
    }
}

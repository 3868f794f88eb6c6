//! The task of a run: a pipeline, its objective, and its samples.

use burn::tensor::Device;
use image::RgbImage;

use super::objective::Objective;
use crate::{error::Result, nn::Adapters, pipelines::Pipeline};

/// The denoiser of a task.
pub(super) type Model<T> = <<T as Task>::Objective as Objective<<T as Task>::Pipeline>>::Model;

/// A pipeline with its objective. The loop, checkpoints, metrics and validation are the same for all tasks.
pub(super) trait Task: Sized {
    /// The pipeline.
    type Pipeline: Pipeline;

    /// The objective.
    type Objective: Objective<Self::Pipeline>;

    /// The objective.
    fn objective(&self) -> &Self::Objective;

    /// The pipeline.
    fn pipeline(&self) -> &Self::Pipeline;

    /// The same, mutable.
    fn pipeline_mut(&mut self) -> &mut Self::Pipeline;

    /// The noise levels at which the held-out loss is measured.
    fn levels(&self) -> &[f64];

    /// A grid of samples of the model with `adapters`, if the configuration asks for any. If `trained` is false, the model is as it was
    /// loaded.
    ///
    /// # Errors
    /// An image is not finite, or the cache is damaged.
    fn grid(&mut self, adapters: &[Adapters], trained: bool) -> Result<Option<RgbImage>>;

    /// The denoiser.
    fn model(&self) -> &Model<Self> {
        Self::Objective::model(self.pipeline())
    }

    /// The same, mutable.
    fn model_mut(&mut self) -> &mut Model<Self> {
        Self::Objective::model_mut(self.pipeline_mut())
    }

    /// The device of its tensors.
    fn device(&self) -> &Device {
        self.pipeline().device()
    }
}

//! Batches of training samples, on the host and on the device.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::SampleIndex;

/// Encoded samples of one size, without the random draws of the objective (posterior, noise, sigma).
#[derive(Clone, Debug)]
pub struct Batch {
    /// Raw VAE moments: means, then log variances; f32 `[B, 2C, h, w]`.
    pub moments: Tensor<4>,
    /// Moments of the originals of edits, f32 `[B, 2C, h, w]`; zero where the original is dropped.
    pub original: Option<Tensor<4>>,
    /// Text embeddings, f32 `[B, L, D]`.
    pub prompt: Tensor<3>,
    /// Pooled text embeddings, f32 `[B, P]`.
    pub pooled: Tensor<2>,
    /// The samples of the batch.
    pub samples: Vec<SampleIndex>,
}

/// A [`Batch`] in host memory, so that reader threads do not touch the device.
#[derive(Clone, Debug)]
pub struct HostBatch {
    /// f32 `[B, 2C, h, w]`
    pub moments: TensorData,
    /// Edits only, f32 `[B, 2C, h, w]`
    pub original: Option<TensorData>,
    /// f32 `[B, L, D]`
    pub prompt: TensorData,
    /// f32 `[B, P]`
    pub pooled: TensorData,
    /// The samples of the batch.
    pub samples: Vec<SampleIndex>,
}

impl HostBatch {
    /// Moves the batch to a device.
    pub fn upload(self, device: &Device) -> Batch {
        Batch {
            moments: Tensor::from_data(self.moments, (device, DType::F32)),
            original: self.original.map(|moments| Tensor::from_data(moments, (device, DType::F32))),
            prompt: Tensor::from_data(self.prompt, (device, DType::F32)),
            pooled: Tensor::from_data(self.pooled, (device, DType::F32)),
            samples: self.samples,
        }
    }
}

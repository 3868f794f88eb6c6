//! Samples that are trained on together, on the host and on the device.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::SampleIndex;

/// Samples of one size, encoded. What the objective draws (posterior, noise, sigma) is not in here.
#[derive(Clone, Debug)]
pub struct Batch {
    /// VAE moments, raw: means, then log variances; f32 `[B, 2C, h, w]`.
    pub moments: Tensor<4>,
    /// Of edits, the moments of the originals, f32 `[B, 2C, h, w]`; all zero where the original is dropped.
    pub original: Option<Tensor<4>>,
    /// Text embeddings, f32 `[B, L, D]`.
    pub prompt: Tensor<3>,
    /// Pooled text embeddings, f32 `[B, P]`.
    pub pooled: Tensor<2>,
    /// Which samples these are.
    pub samples: Vec<SampleIndex>,
}

/// A [`Batch`] in host memory, so that threads which read ahead do not touch the device.
#[derive(Clone, Debug)]
pub struct HostBatch {
    /// f32 `[B, 2C, h, w]`
    pub moments: TensorData,
    /// Of edits, f32 `[B, 2C, h, w]`
    pub original: Option<TensorData>,
    /// f32 `[B, L, D]`
    pub prompt: TensorData,
    /// f32 `[B, P]`
    pub pooled: TensorData,
    /// Which samples these are.
    pub samples: Vec<SampleIndex>,
}

impl HostBatch {
    /// Puts the batch on a device.
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

//! Changes that other programs train and kiln only applies.

use burn::tensor::{Device, Tensor};

use super::Part;
use crate::nn::{Adapter, Delta, LayerName, Magnitude, below};

/// A change of one layer that kiln applies but does not train: DoRA, LoKr, LoHa, full changes, convolutions, text encoders.
#[derive(Clone, Debug)]
pub struct ForeignLayer {
    /// The part of the model.
    pub part: Part,
    /// The layer's name inside that part in diffusers or transformers; for CLIP without `text_model.`.
    pub name: LayerName,
    /// The change; that of a convolution's kernel as a matrix `[out, in · kernel²]`.
    pub delta: Delta,
    /// Factor of the change.
    pub scale: f64,
    /// For DoRA: the norm of each row of the changed weight, `[out]`, f32.
    pub magnitude: Option<Tensor<1>>,
}

impl ForeignLayer {
    /// Its name, after the folder of its text encoder.
    pub(super) fn full_name(&self) -> LayerName {
        below(self.part.folder(), &self.name)
    }

    pub(super) fn adapter(&self, strength: f64) -> (LayerName, Adapter) {
        let magnitude = self.magnitude.clone().map(Magnitude::new);
        let adapter = Adapter { delta: self.delta.clone(), scale: self.scale * strength, magnitude, dropout: None };
        (self.full_name(), adapter)
    }

    /// Moves it to `device`.
    pub(super) fn on(mut self, device: &Device) -> Self {
        self.delta = self.delta.map(|tensor| tensor.to_device(device));
        self.magnitude = self.magnitude.map(|lengths| lengths.to_device(device));
        self
    }
}

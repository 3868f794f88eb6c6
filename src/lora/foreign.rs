//! Changes that other programs train and kiln only applies.

use burn::tensor::{Device, Tensor};

use super::Part;
use crate::nn::{Adapter, Delta, LayerName, Magnitude, below};

/// A change of one layer in a form, or of a part of the model, that kiln does not train: DoRA, LoKr, LoHa, convolutions, text
/// encoders.
#[derive(Clone, Debug)]
pub struct ForeignLayer {
    /// The part of the model.
    pub part: Part,
    /// The name of the layer inside that part, as diffusers or transformers has it; of CLIP without `text_model.`.
    pub name: LayerName,
    /// Of a convolution: of its kernel as a matrix `[out, in · kernel²]`.
    pub delta: Delta,
    /// The change is multiplied by this.
    pub scale: f64,
    /// Of a DoRA adapter: the length of every row of the changed weight, `[out]`, f32.
    pub magnitude: Option<Tensor<1>>,
}

impl ForeignLayer {
    /// Its name, after that of a text encoder's folder.
    pub(super) fn full_name(&self) -> LayerName {
        below(self.part.folder(), &self.name)
    }

    pub(super) fn adapter(&self, strength: f64) -> (LayerName, Adapter) {
        let magnitude = self.magnitude.clone().map(Magnitude::new);
        let adapter = Adapter { delta: self.delta.clone(), scale: self.scale * strength, magnitude, dropout: None };
        (self.full_name(), adapter)
    }

    /// Itself, on `device`.
    pub(super) fn on(mut self, device: &Device) -> Self {
        self.delta = self.delta.map(|tensor| tensor.to_device(device));
        self.magnitude = self.magnitude.map(|lengths| lengths.to_device(device));
        self
    }
}

//! Layers: tensors with names, loaded from a checkpoint and run forward.

mod parameter;
mod delta;
mod adapter;
mod worn;
mod embedding;
mod norm;
mod conv;
mod weight;
mod linear;

pub use adapter::{Adapter, Adapters, Dropout, LayerName};
pub use conv::{Conv2d, pad_bottom_right, upsample_nearest};
pub use delta::{Delta, Magnitude};
pub use embedding::Embedding;
pub use linear::{LayerShape, Linear, Linears};
pub use norm::{GroupNorm, LayerNorm, RmsNorm};
pub use parameter::{Leaf, Parameter, Parameters};
pub use weight::Weight;
use worn::Worn;

pub use crate::weights::below;

//! Layers: tensors with names, loaded from a checkpoint and run forward.

mod conv;
mod embedding;
mod linear;
mod norm;
mod parameter;

pub use conv::{Conv2d, pad_bottom_right, upsample_nearest};
pub use embedding::Embedding;
pub use linear::{Adapter, Dropout, Linear, Linears};
pub use norm::{GroupNorm, LayerNorm, RmsNorm};
pub use parameter::{Leaf, Parameter, Parameters, below};

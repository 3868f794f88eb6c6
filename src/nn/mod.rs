//! Layers: tensors with names, loaded from a checkpoint and run forward.

mod linear;

pub use linear::{Adapter, Dropout, Linear, Linears};

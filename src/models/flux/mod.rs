//! The FLUX.1 transformer: a stem, a list of blocks, a head.
//!
//! Shapes: `B` batch, `L` image tokens, `T` text tokens, `D` width, `N` heads, `K` head size.

mod latents;
mod rope;
mod config;
mod blocks;
mod inputs;
mod stem;
mod segment;
mod transformer;

pub use blocks::{DoubleBlock, SingleBlock};
pub use config::FluxConfig;
pub use inputs::FluxInputs;
pub use latents::{pack, position_ids, unpack};
pub use rope::Rope;
pub use segment::{FluxSegment, FluxState};
pub use transformer::FluxTransformer;

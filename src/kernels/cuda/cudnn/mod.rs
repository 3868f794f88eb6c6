//! cuDNN: the part of its graph interface that attention needs (a graph describes what is computed from which tensors, cuDNN makes
//! a plan of it for one GPU, and the plan runs on addresses), and its convolutions.

mod functions;
mod library;
mod descriptor;
mod graph;
mod sdpa;
mod convolution;

pub use convolution::{Convolution, Direction, Task};
pub use graph::{Layout, Target, Type};
pub use library::{Cudnn, Handle};
pub use sdpa::{Sizes, backward, forward};

#[cfg(test)]
mod tests;

//! One optimizer step: gradients, clipping, AdamW, the learning rate, the EMA, and all of them as a [`Learner`].

pub mod backward;
mod ema;
pub mod optimizer;
mod schedule;
pub(in crate::training) mod trainable;
mod learner;

pub use ema::Ema;
pub use learner::{Learner, Stepped, Summed};

//! The training loop and what surrounds it.

pub mod backward;
pub mod objective;
pub mod optimizer;
pub mod schedule;

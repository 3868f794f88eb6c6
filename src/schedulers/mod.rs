//! Noise schedules and samplers, one file each.

pub mod flow_match;

pub use flow_match::FlowMatchEuler;

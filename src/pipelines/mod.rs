//! From weights to images; inference only.

pub mod flux;

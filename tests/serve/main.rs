//! `kiln serve`, from outside over HTTP and from inside without it.

#[path = "../support/mod.rs"]
mod support;

#[cfg(feature = "cluster")]
mod cluster;
mod http;
mod jobs;
mod killed;
mod page;
mod switching;

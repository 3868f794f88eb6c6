//! The structure of the repository: modules in order, configurations that can be read, plans that fit the cards they name.

#[path = "../support/mod.rs"]
mod support;

mod cards;
mod configs;
mod layering;

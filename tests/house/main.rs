//! The repository keeps its shape: modules in their order, configurations that can be read, plans that fit the cards they name.

mod cards;
mod configs;
mod layering;

//! The structure of the repository: modules in order, configurations that can be read, plans that fit the cards they name.

mod cards;
mod configs;
mod layering;

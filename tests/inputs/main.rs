//! What people and damaged disks put in: nothing is read past in silence, paths mean what people mean, and no file and no number
//! ends the program otherwise than with one clear error.

#[path = "../encoders/mod.rs"]
mod encoders;
#[path = "../support/mod.rs"]
mod support;

mod bounds;
mod fuzz;
mod paths;
mod unused;

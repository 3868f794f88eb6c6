//! Edits whose two images differ in shape.

use std::collections::HashMap;

use super::{Picture, Place, manifest::Row};
use crate::notice::some_of;

/// Warns about originals whose shape differs from that of the edited image, and which are therefore cropped differently.
pub(super) fn say_cut(rows: &[Row], pictures: &HashMap<Place, Picture>) {
    let shape = |place: &Place| pictures[place].size.0 as f64 / pictures[place].size.1 as f64;
    let is_cut = |row: &&Row| {
        row.original.as_ref().is_some_and(|original| (shape(original) / shape(&row.picture) - 1.0).abs() > 0.02)
    };
    let cut: Vec<String> = rows.iter().filter(is_cut).map(|row| row.picture.to_string()).collect();
    if !cut.is_empty() {
        let pairs = if cut.len() == 1 { "1 pair".into() } else { format!("{} pairs", cut.len()) };
        tracing::warn!(
            "{pairs} of images of two shapes ({}): the original is scaled to cover the edited image, and cropped to it",
            some_of(&cut)
        );
    }
}

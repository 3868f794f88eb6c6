//! Pairs of images of an edit that are not of one size.

use std::collections::HashMap;

use super::{Picture, Place, manifest::Row};
use crate::notice::some_of;

/// Says how many originals have another shape than their edited images: of these, other parts are cut off.
pub(super) fn say_cut(rows: &[Row], pictures: &HashMap<Place, Picture>) {
    let shape = |place: &Place| pictures[place].size.0 as f64 / pictures[place].size.1 as f64;
    let is_cut = |row: &&Row| {
        row.original.as_ref().is_some_and(|original| (shape(original) / shape(&row.picture) - 1.0).abs() > 0.02)
    };
    let cut: Vec<String> = rows.iter().filter(is_cut).map(|row| row.picture.to_string()).collect();
    if !cut.is_empty() {
        let pairs = if cut.len() == 1 { "1 pair".into() } else { format!("{} pairs", cut.len()) };
        tracing::warn!(
            "{pairs} of images of two shapes ({}): the original is scaled to cover the edited image, and what stands out is cut \
             off",
            some_of(&cut)
        );
    }
}

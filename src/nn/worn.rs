//! What a layer wears while it is lent.

use std::sync::Arc;

use super::Adapter;

/// The adapters of one layer; those of a set add up. Cheap to clone: nothing is copied.
#[derive(Clone, Debug, Default)]
pub(super) struct Worn {
    /// One for all rows of a batch, or one for each row in turn; none where no row has any.
    sets: Vec<Arc<Vec<Adapter>>>,
    /// Whether each row has the bits that it has alone.
    by_row: bool,
}

impl Worn {
    /// All rows of a batch wear the same, and go through the layer together.
    pub fn by_all(set: Arc<Vec<Adapter>>) -> Self {
        Self { sets: if set.is_empty() { Vec::new() } else { vec![set] }, by_row: false }
    }

    /// The rows of a batch wear these in turn, and on the CPU in f32 each has the bits that it has alone.
    pub fn by_row(sets: Vec<Arc<Vec<Adapter>>>) -> Self {
        let mut worn = Self { sets, by_row: true };
        if worn.sets.windows(2).all(|pair| Arc::ptr_eq(&pair[0], &pair[1])) {
            worn.sets.truncate(1);
        }
        if worn.sets.iter().all(|set| set.is_empty()) {
            worn.sets.clear();
        }
        worn
    }

    /// Whether each row has the bits that it has alone.
    pub fn is_by_row(&self) -> bool {
        self.by_row
    }

    /// Those of all rows, where these go through the layer together or wear none.
    pub fn of_all(&self) -> Option<&[Adapter]> {
        match self.sets.as_slice() {
            [] => Some(&[]),
            [set] if !self.by_row => Some(set),
            _ => None,
        }
    }

    /// Those of the rows, in turn.
    pub fn sets(&self) -> impl ExactSizeIterator<Item = &[Adapter]> {
        self.sets.iter().map(|set| set.as_slice())
    }

    /// Of one row.
    pub fn of(&self, row: usize) -> &[Adapter] {
        match self.sets.len() {
            0 => &[],
            count => &self.sets[row % count],
        }
    }

    /// Those of all rows, to be trained.
    pub fn trained(&mut self) -> &mut [Adapter] {
        self.sets.first_mut().map_or(&mut [], |set| Arc::make_mut(set).as_mut_slice())
    }
}

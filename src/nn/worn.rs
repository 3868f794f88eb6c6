//! The adapters attached to a layer while it is lent.

use std::sync::Arc;

use super::Adapter;

/// The adapters attached to one layer; those of a set add up. Cheap to clone: tensors are shared.
#[derive(Clone, Debug, Default)]
pub(super) struct Worn {
    /// One set for all rows of a batch, or one per row; empty if no row has any.
    sets: Vec<Arc<Vec<Adapter>>>,
    /// Whether each row must get the same bits as alone.
    by_row: bool,
}

impl Worn {
    /// The same adapters for all rows of a batch, which go through the layer together.
    pub fn by_all(set: Arc<Vec<Adapter>>) -> Self {
        Self { sets: if set.is_empty() { Vec::new() } else { vec![set] }, by_row: false }
    }

    /// One set of adapters per row of a batch; on the CPU in f32 each row gets the same bits as alone.
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

    /// Whether each row must get the same bits as alone.
    pub fn is_by_row(&self) -> bool {
        self.by_row
    }

    /// The adapters shared by all rows, perhaps none; `None` if rows have separate ones.
    pub fn of_all(&self) -> Option<&[Adapter]> {
        match self.sets.as_slice() {
            [] => Some(&[]),
            [set] if !self.by_row => Some(set),
            _ => None,
        }
    }

    /// The sets of adapters, by row.
    pub fn sets(&self) -> impl ExactSizeIterator<Item = &[Adapter]> {
        self.sets.iter().map(|set| set.as_slice())
    }

    /// The adapters of one row.
    pub fn of(&self, row: usize) -> &[Adapter] {
        match self.sets.len() {
            0 => &[],
            count => &self.sets[row % count],
        }
    }

    /// The adapters shared by all rows, for training.
    pub fn trained(&mut self) -> &mut [Adapter] {
        self.sets.first_mut().map_or(&mut [], |set| Arc::make_mut(set).as_mut_slice())
    }
}

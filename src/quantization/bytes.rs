//! Shared bytes: a part of a mapped file or of a vector.

use std::{fmt, ops::Deref, ops::Range, sync::Arc};

/// A range of bytes of a mapped file or of memory, shared by its clones.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl SharedBytes {
    /// The bytes `range` of `owner`.
    ///
    /// # Panics
    /// If they extend past its end.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= (*owner).as_ref().len(), "bytes inside of their owner");
        Self { owner, range }
    }

    /// A sub-range of these bytes.
    ///
    /// # Panics
    /// If it extends past the end.
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len(), "a part of the bytes");
        Self { owner: self.owner.clone(), range: self.range.start + range.start..self.range.start + range.end }
    }

    /// The bytes as little-endian f32; a remainder of fewer than four bytes is ignored.
    pub fn to_f32(&self) -> Vec<f32> {
        self.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl From<Vec<u8>> for SharedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Arc::new(bytes), range }
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

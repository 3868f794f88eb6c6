//! Memory that parallel tasks fill.

use super::{gemm::Target, loops::Uninit};

/// A slice of which parallel tasks write disjoint parts.
#[derive(Clone, Copy)]
pub struct DisjointSlice(*mut f32);

// SAFETY: a pointer to f32s; its users guarantee that no two threads access the same ones.
unsafe impl Send for DisjointSlice {}
// SAFETY: as above.
unsafe impl Sync for DisjointSlice {}

impl DisjointSlice {
    /// The memory of `data`, including its spare capacity. `data` must not be moved while this is used.
    pub fn new(data: &mut Vec<f32>) -> Self {
        Self(data.as_mut_ptr())
    }

    /// `count` uninitialized elements from `start` on.
    ///
    /// # Safety
    /// They are inside the memory, and nothing else uses them at the same time.
    pub unsafe fn uninit<'a>(self, start: usize, count: usize) -> &'a mut Uninit {
        // SAFETY: guaranteed by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start).cast(), count) }
    }

    /// `count` elements from `start` on.
    ///
    /// # Safety
    /// They are inside the memory and initialized, and nothing else uses them at the same time.
    pub unsafe fn values<'a>(self, start: usize, count: usize) -> &'a mut [f32] {
        // SAFETY: guaranteed by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), count) }
    }

    /// Rows `stride` elements apart from `start` on, for a product.
    ///
    /// # Safety
    /// `start` is inside the memory.
    pub unsafe fn target(self, start: usize, stride: usize) -> Target {
        // SAFETY: guaranteed by the caller.
        Target { data: unsafe { self.0.add(start) }, stride }
    }
}

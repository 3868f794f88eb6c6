//! Memory that pieces of work on several threads fill.

use super::{gemm::Target, loops::Fresh};

/// Numbers that pieces of work on several threads fill or change, each its own.
#[derive(Clone, Copy)]
pub struct Shared(*mut f32);

// SAFETY: a pointer to plain numbers; that no two threads touch the same ones is asked of those who use it.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The memory of `data`, also what it has room for beyond its length. Whoever uses it must not move `data` meanwhile.
    pub fn new(data: &mut Vec<f32>) -> Self {
        Self(data.as_mut_ptr())
    }

    /// `count` numbers from `start` on that are yet to be written.
    ///
    /// # Safety
    /// They are inside the memory, and nothing else uses them meanwhile.
    pub unsafe fn fresh<'a>(self, start: usize, count: usize) -> &'a mut Fresh {
        // SAFETY: by the promise above.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start).cast(), count) }
    }

    /// `count` numbers from `start` on.
    ///
    /// # Safety
    /// They are inside the memory and were written, and nothing else uses them meanwhile.
    pub unsafe fn numbers<'a>(self, start: usize, count: usize) -> &'a mut [f32] {
        // SAFETY: by the promise above.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), count) }
    }

    /// Rows of `stride` numbers from `start` on, for a product.
    ///
    /// # Safety
    /// `start` is inside the memory.
    pub unsafe fn target(self, start: usize, stride: usize) -> Target {
        // SAFETY: by the promise above.
        Target { data: unsafe { self.0.add(start) }, stride }
    }
}

//! Tuning of the C library's allocator.

/// Makes the C library keep the memory of freed tensors for the next ones, for the life of the process.
///
/// By default glibc returns large blocks to the system at once, and the first touch of every page of the next block is a page
/// fault: for elementwise operations that costs more than the operation. [`release`](super::release) still returns everything. Without
/// glibc this does nothing.
pub fn tune_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn mallopt(parameter: i32, value: i32) -> i32;
        }
        const M_TRIM_THRESHOLD: i32 = -1;
        const M_TOP_PAD: i32 = -2;
        const M_MMAP_THRESHOLD: i32 = -3;
        // SAFETY: glibc's own function, safe to call at any time from any thread.
        unsafe {
            mallopt(M_MMAP_THRESHOLD, 1 << 30);
            mallopt(M_TRIM_THRESHOLD, i32::MAX);
            mallopt(M_TOP_PAD, 64 << 20);
        }
    }
}

/// Returns the freed memory that glibc keeps for later to the system.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(super) fn trim() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> i32;
    }
    // SAFETY: `malloc_trim` (malloc.h of glibc) may be called at any time from any thread; it takes a number.
    unsafe { malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) fn trim() {}

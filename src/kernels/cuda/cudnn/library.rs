//! cuDNN, loaded at run time, and its handle for one GPU.

use std::{
    collections::HashMap,
    ffi::{CStr, c_char, c_void},
    sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError},
};

use super::functions::{ConvolutionFunctions, Raw, function};
use crate::cuda;

/// cuDNN in this process.
pub struct Cudnn {
    pub(super) create: unsafe extern "C" fn(i32, *mut Raw) -> i32,
    pub(super) destroy: unsafe extern "C" fn(Raw) -> i32,
    pub(super) set: unsafe extern "C" fn(Raw, i32, i32, i64, *const c_void) -> i32,
    pub(super) get: unsafe extern "C" fn(Raw, i32, i32, i64, *mut i64, *mut c_void) -> i32,
    pub(super) finalize: unsafe extern "C" fn(Raw) -> i32,
    pub(super) execute: unsafe extern "C" fn(Raw, Raw, Raw) -> i32,
    open: unsafe extern "C" fn(*mut Raw) -> i32,
    close: unsafe extern "C" fn(Raw) -> i32,
    set_stream: unsafe extern "C" fn(Raw, Raw) -> i32,
    last_error: unsafe extern "C" fn(*mut c_char, usize),
    version: unsafe extern "C" fn() -> usize,
    /// The functions for convolutions, or what is missing.
    convolutions: Result<ConvolutionFunctions, String>,
}

impl Cudnn {
    /// The cuDNN of this process, if it may be used; looked up once.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Cudnn>> = OnceLock::new();
        let find = || Self::of(cuda::loaded(cuda::Library::Cudnn)?).ok();
        SHARED.get_or_init(find).as_ref()
    }

    /// The functions of a loaded cuDNN.
    ///
    /// # Errors
    /// A function is missing in it.
    pub fn of(file: &'static libloading::Library) -> Result<Self, String> {
        Ok(Self {
            create: function(file, "cudnnBackendCreateDescriptor")?,
            destroy: function(file, "cudnnBackendDestroyDescriptor")?,
            set: function(file, "cudnnBackendSetAttribute")?,
            get: function(file, "cudnnBackendGetAttribute")?,
            finalize: function(file, "cudnnBackendFinalize")?,
            execute: function(file, "cudnnBackendExecute")?,
            open: function(file, "cudnnCreate")?,
            close: function(file, "cudnnDestroy")?,
            set_stream: function(file, "cudnnSetStream")?,
            last_error: function(file, "cudnnGetLastErrorString")?,
            version: function(file, "cudnnGetVersion")?,
            convolutions: ConvolutionFunctions::of(file),
        })
    }

    /// The functions for convolutions.
    ///
    /// # Errors
    /// One is missing, as in the cuDNN that only makes plans of graphs.
    pub(super) fn convolutions(&self) -> Result<&ConvolutionFunctions, String> {
        self.convolutions.as_ref().map_err(Clone::clone)
    }

    /// The version as in `cudnnGetVersion`, such as 91900.
    pub fn version(&self) -> usize {
        // SAFETY: the function takes no arguments and returns a number.
        unsafe { (self.version)() }
    }

    /// Converts a failing `status` to an error that names `what` was attempted and why it failed.
    pub(super) fn check(&self, what: &str, status: i32) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        let mut text = [0u8; 1024];
        // SAFETY: the function writes no more than the size it is given, with a zero at the end.
        unsafe { (self.last_error)(text.as_mut_ptr().cast(), text.len()) };
        let reason = CStr::from_bytes_until_nul(&text).map(CStr::to_string_lossy).unwrap_or_default();
        Err(format!("cuDNN {}: {what}: status {status} {}", self.version(), reason.trim()))
    }
}

/// A handle for running plans on one stream of one GPU.
pub struct Handle {
    pub(super) library: &'static Cudnn,
    pub(super) raw: Raw,
}

// SAFETY: a handle may be used by one thread at a time; callers run plans only on the backend's thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    /// The handle of GPU `number`, created at the first call for the current context and `stream` in it.
    ///
    /// # Errors
    /// cuDNN does not start.
    pub fn of(number: usize, library: &'static Cudnn, stream: *mut c_void) -> Result<Arc<Self>, String> {
        static HANDLES: LazyLock<Mutex<HashMap<usize, Arc<Handle>>>> = LazyLock::new(Mutex::default);
        let mut handles = HANDLES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = handles.get(&number) {
            return Ok(handle.clone());
        }
        let handle = Arc::new(Self::new(library, stream)?);
        handles.insert(number, handle.clone());
        Ok(handle)
    }

    /// Creates a handle for the current context, and `stream` in it.
    ///
    /// # Errors
    /// cuDNN does not start.
    pub fn new(library: &'static Cudnn, stream: *mut c_void) -> Result<Self, String> {
        let mut handle = Self { library, raw: std::ptr::null_mut() };
        // SAFETY: the function writes one pointer.
        library.check("its start", unsafe { (library.open)(&mut handle.raw) })?;
        // SAFETY: the handle was just made, in the context of the stream.
        library.check("its stream", unsafe { (library.set_stream)(handle.raw, stream) })?;
        Ok(handle)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: the handle was created and is no longer used.
            unsafe { (self.library.close)(self.raw) };
        }
    }
}

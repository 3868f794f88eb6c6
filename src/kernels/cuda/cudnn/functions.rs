//! The functions of cuDNN in use, as declared in its headers.
//!
//! They are declared here instead of using cudarc's bindings: those return a status as a Rust enum, and cuDNN is often newer and
//! may return a status that the enum lacks.

use std::ffi::c_void;

use libloading::Symbol;

/// A pointer from cuDNN: a descriptor or a handle.
pub(super) type Raw = *mut c_void;

/// A function of a loaded library.
pub(super) fn function<F: Copy>(file: &libloading::Library, name: &str) -> Result<F, String> {
    // SAFETY: the types of the fields, for which this is called, are the signatures in cuDNN's headers.
    let found: Symbol<F> = unsafe { file.get(name.as_bytes()) }.map_err(|e| e.to_string())?;
    Ok(*found)
}

/// cuDNN's description of one kernel (`cudnnConvolutionFwdAlgoPerf_t` and its two counterparts, which have the same layout).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Candidate {
    pub(super) algorithm: i32,
    pub(super) status: i32,
    pub(super) milliseconds: f32,
    pub(super) memory: usize,
    pub(super) deterministic: i32,
    pub(super) math: i32,
    pub(super) reserved: [i32; 3],
}

/// An upper bound on the number of cuDNN's kernels for one direction.
pub(super) const CANDIDATES: usize = 16;

pub(super) type Create = unsafe extern "C" fn(*mut Raw) -> i32;
pub(super) type Destroy = unsafe extern "C" fn(Raw) -> i32;
type Choose = unsafe extern "C" fn(Raw, Raw, Raw, Raw, Raw, i32, *mut i32, *mut Candidate) -> i32;
type Run = unsafe extern "C" fn(
    Raw,
    *const c_void,
    Raw,
    *const c_void,
    Raw,
    *const c_void,
    Raw,
    i32,
    *mut c_void,
    usize,
    *const c_void,
    Raw,
    *mut c_void,
) -> i32;

/// The functions of cuDNN that convolutions need.
pub(super) struct ConvolutionFunctions {
    pub(super) create_tensor: Create,
    pub(super) destroy_tensor: Destroy,
    pub(super) set_tensor: unsafe extern "C" fn(Raw, i32, i32, i32, i32, i32, i32) -> i32,
    pub(super) create_weight: Create,
    pub(super) destroy_weight: Destroy,
    pub(super) set_weight: unsafe extern "C" fn(Raw, i32, i32, i32, i32, i32, i32) -> i32,
    pub(super) create_convolution: Create,
    pub(super) destroy_convolution: Destroy,
    pub(super) set_convolution: unsafe extern "C" fn(Raw, i32, i32, i32, i32, i32, i32, i32, i32) -> i32,
    pub(super) set_math: unsafe extern "C" fn(Raw, i32) -> i32,
    pub(super) choose: [Choose; 3],
    pub(super) run: [Run; 3],
}

impl ConvolutionFunctions {
    /// Those of a loaded cuDNN.
    ///
    /// # Errors
    /// A function is missing in it.
    pub(super) fn of(file: &libloading::Library) -> Result<Self, String> {
        Ok(Self {
            create_tensor: function(file, "cudnnCreateTensorDescriptor")?,
            destroy_tensor: function(file, "cudnnDestroyTensorDescriptor")?,
            set_tensor: function(file, "cudnnSetTensor4dDescriptor")?,
            create_weight: function(file, "cudnnCreateFilterDescriptor")?,
            destroy_weight: function(file, "cudnnDestroyFilterDescriptor")?,
            set_weight: function(file, "cudnnSetFilter4dDescriptor")?,
            create_convolution: function(file, "cudnnCreateConvolutionDescriptor")?,
            destroy_convolution: function(file, "cudnnDestroyConvolutionDescriptor")?,
            set_convolution: function(file, "cudnnSetConvolution2dDescriptor")?,
            set_math: function(file, "cudnnSetConvolutionMathType")?,
            choose: [
                function(file, "cudnnGetConvolutionForwardAlgorithm_v7")?,
                function(file, "cudnnGetConvolutionBackwardDataAlgorithm_v7")?,
                function(file, "cudnnGetConvolutionBackwardFilterAlgorithm_v7")?,
            ],
            run: [
                function(file, "cudnnConvolutionForward")?,
                function(file, "cudnnConvolutionBackwardData")?,
                function(file, "cudnnConvolutionBackwardFilter")?,
            ],
        })
    }
}

//! Chooses the implementation of an operation: the one for f32 on the CPU, the one for NVIDIA GPUs, or the one composed of Burn's
//! operations, which works on every backend and dtype.

use burn_flex::FlexTensor;

#[cfg(feature = "cuda")]
use super::cuda::{self, CudaTensor};
use super::{cpu, operation::RawTensor};

/// The inputs of an operation, in the form that its implementation takes.
pub enum Way<const N: usize> {
    /// All are f32 on the CPU.
    Cpu([FlexTensor; N]),
    /// All are on an NVIDIA GPU, in a dtype that its kernels read.
    #[cfg(feature = "cuda")]
    Cuda([CudaTensor; N]),
    /// Anything else.
    Composed([RawTensor; N]),
}

impl<const N: usize> Way<N> {
    /// Chooses by the device and dtype of the inputs.
    pub fn of(inputs: [RawTensor; N]) -> Self {
        let inputs = match cpu::as_cpu_f32(inputs) {
            Ok(inputs) => return Self::Cpu(inputs),
            Err(inputs) => inputs,
        };
        #[cfg(feature = "cuda")]
        let inputs = match cuda::as_cuda_floats(inputs) {
            Ok(inputs) => return Self::Cuda(inputs),
            Err(inputs) => inputs,
        };
        Self::Composed(inputs)
    }
}

/// Runs the arm that suits the inputs; if an implementation has no arm, `Composed` takes its inputs. In the arm `Cuda`, which exists
/// only in builds with the feature, `cuda` is the module.
macro_rules! by_way {
    ($inputs:expr, Cpu($a:pat) => $cpu:expr, Cuda($b:pat) => $cuda:expr, Composed($c:pat) => $composed:expr $(,)?) => {
        match $crate::kernels::dispatch::Way::of($inputs) {
            $crate::kernels::dispatch::Way::Cpu($a) => $cpu,
            #[cfg(feature = "cuda")]
            $crate::kernels::dispatch::Way::Cuda($b) => {
                use $crate::kernels::cuda;
                $cuda
            }
            $crate::kernels::dispatch::Way::Composed($c) => $composed,
        }
    };
    ($inputs:expr, Cpu($a:pat) => $cpu:expr, Composed($c:pat) => $composed:expr $(,)?) => {
        match $crate::kernels::cpu::as_cpu_f32($inputs) {
            Ok($a) => $cpu,
            Err($c) => $composed,
        }
    };
    ($inputs:expr, Cuda($b:pat) => $cuda:expr, Composed($c:pat) => $composed:expr $(,)?) => {
        match $crate::kernels::dispatch::on_gpu($inputs) {
            #[cfg(feature = "cuda")]
            Ok($b) => {
                use $crate::kernels::cuda;
                $cuda
            }
            #[cfg(not(feature = "cuda"))]
            Ok(never) => match never {},
            Err($c) => $composed,
        }
    };
}
pub(super) use by_way;

/// The inputs as GPU tensors, if all are on one in a dtype that its kernels read; otherwise returns them unchanged.
#[cfg(feature = "cuda")]
pub(super) use super::cuda::as_cuda_floats as on_gpu;

/// Returns the inputs unchanged: this build has no GPU support.
#[cfg(not(feature = "cuda"))]
pub fn on_gpu<const N: usize>(inputs: [RawTensor; N]) -> Result<std::convert::Infallible, [RawTensor; N]> {
    Err(inputs)
}

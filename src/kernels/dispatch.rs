//! Which code computes an operation: that for f32 on the CPU, that for NVIDIA GPUs, or what Burn's operations compose, which every
//! backend and dtype has.

use burn_flex::FlexTensor;

#[cfg(feature = "cuda")]
use super::cuda::{self, CudaTensor};
use super::{cpu, operation::Plain};

/// The inputs of an operation, as the code that is to compute it takes them.
pub enum Way<const N: usize> {
    /// All are f32 on the CPU.
    Cpu([FlexTensor; N]),
    /// All are on an NVIDIA GPU, in a dtype that its kernels read.
    #[cfg(feature = "cuda")]
    Cuda([CudaTensor; N]),
    /// Anything else.
    Composed([Plain; N]),
}

impl<const N: usize> Way<N> {
    /// Where and what the inputs are says by which way.
    pub fn of(inputs: [Plain; N]) -> Self {
        let inputs = match cpu::floats(inputs) {
            Ok(inputs) => return Self::Cpu(inputs),
            Err(inputs) => inputs,
        };
        #[cfg(feature = "cuda")]
        let inputs = match cuda::floats(inputs) {
            Ok(inputs) => return Self::Cuda(inputs),
            Err(inputs) => inputs,
        };
        Self::Composed(inputs)
    }
}

/// Computes by the way of the inputs; a way without an arm is not gone, and `Composed` takes its inputs. In the arm `Cuda`, which only
/// a build with the feature has, `cuda` is the module.
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
        match $crate::kernels::cpu::floats($inputs) {
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

/// The inputs as tensors of a GPU, if all are on one in a dtype that its kernels read; otherwise the inputs again.
#[cfg(feature = "cuda")]
pub(super) use super::cuda::floats as on_gpu;

/// The inputs again: this build knows no GPU.
#[cfg(not(feature = "cuda"))]
pub fn on_gpu<const N: usize>(inputs: [Plain; N]) -> Result<std::convert::Infallible, [Plain; N]> {
    Err(inputs)
}

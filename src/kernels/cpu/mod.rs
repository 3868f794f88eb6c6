//! The operations in f32 on the CPU, on all cores and the widest vectors of the machine.

mod simd;
mod loops;
mod tensor;
mod matrix;
mod rows;
mod gemm;
mod disjoint_slice;
mod tokens;
mod transforms;
mod patches;
mod winograd;

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod conv;
pub mod geglu;
pub mod linear;
pub mod low_rank;
pub mod norm;
pub mod residual;
pub mod rope;
pub mod upsample;
mod group_statistics;
pub mod group_norm;

pub use group_statistics::{Gathered, Statistics};
pub use patches::{Company, Sizes};
pub use simd::{vectorized, vectors};
pub use tensor::{are_cpu_f32, as_cpu_f32, contiguous, dims, values};
pub use winograd::MOST_KERNELS;

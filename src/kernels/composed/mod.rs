//! The operations composed of Burn's own, on any backend and dtype: the reference for the other forms, and the fallback where there
//! is no kernel.

mod tokens;
pub mod activation;
pub mod adamw;
pub mod attention;
pub mod conv;
pub mod geglu;
pub mod group_norm;
pub mod linear;
pub mod low_rank;
pub mod norm;
pub mod residual;
pub mod rope;
pub mod unpack;
pub mod upsample;

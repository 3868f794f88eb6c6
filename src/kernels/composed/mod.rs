//! The operations as Burn's own compose them, on any backend and dtype: what the others are held against, and what computes where
//! there is no kernel.

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

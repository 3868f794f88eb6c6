//! The optimizer.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{
    simd::vectorized,
    tensor::{contiguous, exclusive, raw_tensor, values},
};
use crate::kernels::operation::RawTensor;

/// Updates a parameter and its moments from its gradient; returns parameter and moments.
/// The factors are `[keep, rate, root, 1 - β₁, β₂, 1 - β₂, ε]`.
pub fn update(inputs: [FlexTensor; 4], factors: [f32; 7]) -> [RawTensor; 3] {
    let [parameter, gradient, m, v] = inputs.map(contiguous);
    let mut updated = [parameter, m, v].map(exclusive);
    let [p, m, v] = updated.each_mut().map(|t| t.storage_mut::<f32>());
    let [keep, rate, root, fresh1, beta2, fresh2, epsilon] = factors;
    const PIECE: usize = 16 * 1024;
    let pieces = p.par_chunks_mut(PIECE).zip(values(&gradient).par_chunks(PIECE));
    pieces.zip(m.par_chunks_mut(PIECE)).zip(v.par_chunks_mut(PIECE)).for_each(|(((p, g), m), v)| {
        vectorized(
            #[inline(always)]
            || {
                for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                    *m += (g - *m) * fresh1;
                    *v = *v * beta2 + g * g * fresh2;
                    *p = *p * keep - rate * (*m / (v.sqrt() / root + epsilon));
                }
            },
        );
    });
    updated.map(raw_tensor)
}

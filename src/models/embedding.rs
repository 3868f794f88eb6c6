//! Numbers as waves: the sinusoidal embedding of timesteps and noise levels (Vaswani et al. 2017).

use burn::tensor::{Device, Tensor};

use crate::kernels::on_tape_of;

/// `fᵢ = 10000^(-i / (count - shift))`, `[count]`.
///
/// Computed in f32, in diffusers' order of operations: at a timestep of 1000 their rounding shows in the output.
pub(super) fn frequencies(count: usize, shift: f64, device: &Device) -> Tensor<1> {
    let exponent = |i| -(10_000f64.ln() as f32) * i as f32 / (count as f64 - shift) as f32;
    let values: Vec<f32> = (0..count).map(|i| exponent(i).exp()).collect();
    Tensor::from_floats(values.as_slice(), device)
}

/// `[cos(t·f₀) … | sin(t·f₀) …]`, or the sines first: `t` `[B]`, `frequencies` `[F]` → `[B, 2·F]`.
pub(super) fn waves(t: Tensor<1>, frequencies: Tensor<1>, cosine_first: bool) -> Tensor<2> {
    let frequencies = on_tape_of(frequencies, &t).unsqueeze();
    let angles = t.unsqueeze_dim::<2>(1) * frequencies;
    let (cosine, sine) = (angles.clone().cos(), angles.sin());
    Tensor::cat(if cosine_first { vec![cosine, sine] } else { vec![sine, cosine] }, 1)
}

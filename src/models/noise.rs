//! The initial noise of denoising.

use burn::tensor::{Device, Tensor, TensorData};

use crate::rng::Stream;

/// Normal noise of the shape `[B, C, H, W]`, each row of the batch from its own random stream.
pub fn draw_noise(draws: impl IntoIterator<Item = Stream>, shape: [usize; 4], device: &Device) -> Tensor<4> {
    let each = shape[1..].iter().product();
    let rows = draws.into_iter().take(shape[0]).flat_map(|mut draw| draw.normal(each));
    Tensor::from_data(TensorData::new(rows.collect::<Vec<f32>>(), shape), device)
}

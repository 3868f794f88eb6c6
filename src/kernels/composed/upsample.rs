//! Upsampling of images by two.

use burn::tensor::Tensor;

/// Nearest-neighbor upsampling by two.
pub fn forward(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let x: Tensor<6> = x.reshape([batch, channels, height, 1, width, 1]).expand([batch, channels, height, 2, width, 2]);
    x.reshape([batch, channels, 2 * height, 2 * width])
}

/// The sum of each square of four pixels.
pub fn backward(g: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = g.dims();
    let g: Tensor<6> = g.reshape([batch, channels, height / 2, 2, width / 2, 2]);
    g.sum_dim(5).sum_dim(3).reshape([batch, channels, height / 2, width / 2])
}

//! Between a latent image and the sequence of its 2×2 patches.

use burn::tensor::Tensor;

/// Latents `[B, C, H, W]` → tokens `[B, (H/2)·(W/2), 4·C]`. A token's features are in the order (channel, row, column).
pub fn pack(latents: Tensor<4>) -> Tensor<3> {
    let [batch, channels, height, width] = latents.dims();
    latents.reshape([batch, channels, height / 2, 2, width / 2, 2]).permute([0, 2, 4, 1, 3, 5]).reshape([
        batch,
        (height / 2) * (width / 2),
        channels * 4,
    ])
}

/// The inverse of [`pack`], for latents of size `height` × `width`.
pub fn unpack(tokens: Tensor<3>, height: usize, width: usize) -> Tensor<4> {
    let [batch, _, features] = tokens.dims();
    let channels = features / 4;
    tokens
        .reshape([batch, height / 2, width / 2, channels, 2, 2])
        .permute([0, 3, 1, 4, 2, 5])
        .reshape([batch, channels, height, width])
}

/// The positions of text and image tokens, text first: `(0, row, column)` each, all zero for text.
pub fn position_ids(text_tokens: usize, height: usize, width: usize) -> Vec<[usize; 3]> {
    let image = (0..height / 2).flat_map(|row| (0..width / 2).map(move |column| [0, row, column]));
    std::iter::repeat_n([0; 3], text_tokens).chain(image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Int};

    #[test]
    fn unpacking_undoes_packing() {
        let latents = Tensor::<1, Int>::arange(0..2 * 3 * 4 * 6, &Device::flex()).float().reshape([2, 3, 4, 6]);
        let tokens = pack(latents.clone());
        assert_eq!(tokens.dims(), [2, 6, 12]);
        unpack(tokens, 4, 6).into_data().assert_eq(&latents.into_data(), true);
    }
}

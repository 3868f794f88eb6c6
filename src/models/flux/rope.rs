//! Rotary positions on three axes.

use burn::tensor::{Device, Tensor, TensorData};

/// The cosines and sines that rotate the queries and keys of every token: `[tokens, K]` in f32, each angle twice in a row.
#[derive(Clone, Debug)]
pub struct Rope {
    /// `[tokens, K]`.
    pub cos: Tensor<2>,
    /// `[tokens, K]`.
    pub sin: Tensor<2>,
}

impl Rope {
    /// The angles of positions on three axes: axis `i` turns `axes[i]/2` pairs by `position / theta^(2j/axes[i])`,
    /// computed in f64.
    pub fn new(ids: &[[f64; 3]], axes: &[usize], theta: f64, device: &Device) -> Self {
        let width: usize = axes.iter().sum();
        let (mut cos, mut sin) = (Vec::with_capacity(ids.len() * width), Vec::with_capacity(ids.len() * width));
        for position in ids {
            for (&size, &at) in axes.iter().zip(position) {
                for pair in 0..size / 2 {
                    let angle = at / theta.powf((2 * pair) as f64 / size as f64);
                    cos.extend([angle.cos() as f32; 2]);
                    sin.extend([angle.sin() as f32; 2]);
                }
            }
        }
        let tensor = |values: Vec<f32>| Tensor::from_data(TensorData::new(values, [ids.len(), width]), device);
        Self { cos: tensor(cos), sin: tensor(sin) }
    }

    /// The angles of the first `tokens` positions and of the others.
    pub(super) fn split(&self, tokens: usize) -> (Self, Self) {
        let rest = self.cos.dims()[0] - tokens;
        let part = |start, count| Self {
            cos: self.cos.clone().narrow(0, start, count),
            sin: self.sin.clone().narrow(0, start, count),
        };
        (part(0, tokens), part(tokens, rest))
    }
}

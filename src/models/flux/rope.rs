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
    /// computed in f64. Each position on an axis is computed once, however many tokens share it.
    pub fn new(ids: &[[usize; 3]], axes: &[usize], theta: f64, device: &Device) -> Self {
        let tables: Vec<_> = axes.iter().enumerate().map(|(axis, &size)| table(ids, axis, size, theta)).collect();
        let width: usize = axes.iter().sum();
        let tensor = |part: fn(&Angles) -> &[f32]| {
            let mut values = Vec::with_capacity(ids.len() * width);
            for id in ids {
                tables.iter().zip(id).for_each(|(table, &position)| values.extend_from_slice(part(&table[position])));
            }
            Tensor::from_data(TensorData::new(values, [ids.len(), width]), device)
        };
        Self { cos: tensor(|angles| &angles.cos), sin: tensor(|angles| &angles.sin) }
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

/// The angles of one position on one axis.
struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The angles of all positions on one axis, from 0 to the largest that occurs.
fn table(ids: &[[usize; 3]], axis: usize, size: usize, theta: f64) -> Vec<Angles> {
    let last = ids.iter().map(|id| id[axis]).max().unwrap_or(0);
    let angle = |position: usize, pair: usize| position as f64 / theta.powf((2 * pair) as f64 / size as f64);
    let twice = |position, f: fn(f64) -> f64| {
        (0..size / 2).flat_map(|pair| [f(angle(position, pair)) as f32; 2]).collect::<Vec<f32>>()
    };
    (0..=last).map(|position| Angles { cos: twice(position, f64::cos), sin: twice(position, f64::sin) }).collect()
}

//! Pictures of twice the size.

use burn::tensor::Tensor;

use super::{
    cpu::{self, build},
    operation::{Operation, Plain, apply},
};

/// Every pixel four times: `[B, C, H, W]` → `[B, C, 2H, 2W]`.
pub fn upsample_nearest(x: Tensor<4>) -> Tensor<4> {
    apply(UpsampleNearest, [x.into_dispatch()])
}

#[derive(Clone, Debug)]
struct UpsampleNearest;

impl Operation<1> for UpsampleNearest {
    type Saved = ();

    fn forward(&self, [x]: [Plain; 1]) -> (Plain, ()) {
        let y = match cpu::floats([x]) {
            Ok([x]) => {
                let x = cpu::in_order(x);
                let [batch, channels, height, width] = cpu::dims(&x);
                let numbers = cpu::numbers(&x);
                let y = build(
                    4 * numbers.len(),
                    4 * width,
                    #[inline(always)]
                    |row, lines| {
                        let x = &numbers[row * width..][..width];
                        for line in lines.chunks_exact_mut(2 * width) {
                            for (pair, x) in line.chunks_exact_mut(2).zip(x) {
                                pair[0].write(*x);
                                pair[1].write(*x);
                            }
                        }
                    },
                );
                cpu::plain(cpu::tensor(y, [batch, channels, 2 * height, 2 * width]))
            }
            Err([x]) => {
                let x = Tensor::<4>::from_dispatch(x);
                let [batch, channels, height, width] = x.dims();
                let x: Tensor<6> =
                    x.reshape([batch, channels, height, 1, width, 1]).expand([batch, channels, height, 2, width, 2]);
                x.reshape([batch, channels, 2 * height, 2 * width]).into_dispatch()
            }
        };
        (y, ())
    }

    fn backward(self, (): (), gradient: Plain, _: [bool; 1]) -> [Option<Plain>; 1] {
        [Some(match cpu::floats([gradient]) {
            Ok([g]) => {
                let g = cpu::in_order(g);
                let [batch, channels, height, width] = cpu::dims(&g);
                let numbers = cpu::numbers(&g);
                let dx = build(
                    numbers.len() / 4,
                    width / 2,
                    #[inline(always)]
                    |row, dx| {
                        let (first, second) = numbers[row * 2 * width..][..2 * width].split_at(width);
                        for ((dx, a), b) in dx.iter_mut().zip(first.chunks_exact(2)).zip(second.chunks_exact(2)) {
                            dx.write((a[0] + a[1]) + (b[0] + b[1]));
                        }
                    },
                );
                cpu::plain(cpu::tensor(dx, [batch, channels, height / 2, width / 2]))
            }
            Err([g]) => {
                let g = Tensor::<4>::from_dispatch(g);
                let [batch, channels, height, width] = g.dims();
                let g: Tensor<6> = g.reshape([batch, channels, height / 2, 2, width / 2, 2]);
                g.sum_dim(5).sum_dim(3).reshape([batch, channels, height / 2, width / 2]).into_dispatch()
            }
        })]
    }
}

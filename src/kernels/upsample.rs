//! Upsampling of images by two.

use burn::tensor::Tensor;

use super::{
    composed, cpu,
    dispatch::by_way,
    operation::{Operation, RawTensor, apply},
};

/// Nearest-neighbor upsampling by two: `[B, C, H, W]` → `[B, C, 2H, 2W]`.
pub fn upsample_nearest(x: Tensor<4>) -> Tensor<4> {
    apply(UpsampleNearest, [x.into_dispatch()])
}

#[derive(Clone, Debug)]
struct UpsampleNearest;

impl Operation<1> for UpsampleNearest {
    type Saved = ();

    fn forward(&self, [x]: [RawTensor; 1]) -> (RawTensor, ()) {
        let y = by_way!([x],
            Cpu([x]) => cpu::upsample::forward(x),
            Composed([x]) => composed::upsample::forward(Tensor::from_dispatch(x)).into_dispatch(),
        );
        (y, ())
    }

    fn backward(self, (): (), gradient: RawTensor, _: [bool; 1]) -> [Option<RawTensor>; 1] {
        [Some(by_way!([gradient],
            Cpu([g]) => cpu::upsample::backward(g),
            Composed([g]) => composed::upsample::backward(Tensor::from_dispatch(g)).into_dispatch(),
        ))]
    }
}

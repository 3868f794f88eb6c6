//! The FLUX transformer computes what diffusers computes.

use burn::tensor::{FloatDType, Tensor, activation::silu};
use kiln::{
    models::{
        Network, Segment,
        flux::{FluxState, pack, unpack},
    },
    selftest::flux,
};

use crate::support::goldens;

#[test]
fn outputs_match_for_square_wide_and_batched_latents() {
    for golden in goldens("FluxPipeline") {
        golden.agrees(flux::outputs);
    }
}

#[test]
fn latents_are_packed_and_unpacked_as_in_diffusers() {
    for golden in goldens("FluxPipeline") {
        for case in 0..3 {
            let of = |part: &str| format!("transformer.{case}.{part}");
            let latents: Tensor<4> = golden.tensor(&of("latents"));
            let [_, _, height, width] = latents.dims();
            golden.check(&of("hidden_states"), pack(latents));
            golden.check(&of("output_unpacked"), unpack(golden.tensor(&of("output")), height, width));
        }
    }
}

#[test]
fn every_segment_matches() {
    for golden in goldens("FluxPipeline") {
        golden.agrees(flux::blocks);
        let model = flux::open(&golden, FloatDType::F32).unwrap();
        let inputs = flux::inputs(&golden, &model, "transformer.0", FloatDType::F32).unwrap();
        let tap = |name: &str| format!("transformer.0.taps.{name}");
        golden.check(&tap("rope.0"), inputs.rope.cos.clone());
        golden.check(&tap("rope.1"), inputs.rope.sin.clone());
        let FluxState::Two { vec, .. } = model.lend(0, None).run(&inputs, FluxState::Start) else {
            panic!("the stem makes two streams")
        };
        let difference = vec - silu(golden.tensor::<2>(&tap("temb")));
        let difference = f64::from(difference.abs().max().into_scalar::<f32>());
        assert!(difference <= golden.tolerance(&tap("temb")), "temb differs by {difference}");
    }
}

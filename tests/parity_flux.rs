//! The FLUX transformer computes what diffusers computes.

mod support;

use burn::tensor::{Device, FloatDType, Tensor, activation::silu};
use kiln::models::{
    Segment, Segmented, State,
    flux::{FluxInputs, FluxTransformer, pack, unpack},
};
use support::{Golden, goldens};

fn open(golden: &Golden) -> FluxTransformer {
    FluxTransformer::open(golden.model.join("transformer"), &Device::flex(), Some(FloatDType::F32)).unwrap()
}

/// The inputs of one golden section, and the size of its latents.
fn inputs(golden: &Golden, model: &FluxTransformer, section: &str) -> (FluxInputs, [usize; 2]) {
    let latents: Tensor<4> = golden.tensor(&format!("{section}.latents"));
    let [_, _, height, width] = latents.dims();
    let txt: Tensor<3> = golden.tensor(&format!("{section}.encoder_hidden_states"));
    let inputs = FluxInputs {
        img: pack(latents),
        pooled: golden.tensor(&format!("{section}.pooled_projections")),
        sigma: golden.tensor(&format!("{section}.timestep")),
        guidance: golden.tensor(&format!("{section}.guidance")),
        rope: model.config.rope(txt.dims()[1], height, width, &Device::flex()),
        txt,
    };
    (inputs, [height, width])
}

#[test]
fn outputs_match_for_square_wide_and_batched_latents() {
    for golden in goldens("FluxPipeline") {
        let model = open(&golden);
        for case in 0..3 {
            let section = format!("transformer.{case}");
            let (inputs, [height, width]) = inputs(&golden, &model, &section);
            golden.check(&format!("{section}.hidden_states"), inputs.img.clone());
            let output = model.forward(&inputs);
            golden.check(&format!("{section}.output"), output.clone());
            golden.check(&format!("{section}.output_unpacked"), unpack(output, height, width));
        }
    }
}

#[test]
fn every_segment_matches() {
    for golden in goldens("FluxPipeline") {
        let model = open(&golden);
        let (inputs, _) = inputs(&golden, &model, "transformer.0");
        let tap = |name: &str| format!("transformer.0.taps.{name}");
        golden.check(&tap("rope.0"), inputs.rope.cos.clone());
        golden.check(&tap("rope.1"), inputs.rope.sin.clone());
        let text_tokens = inputs.txt.dims()[1];
        let mut state = State::default();
        for segment in model.segments() {
            state = segment.run(&inputs, state);
            let stream = |i: usize| state.streams[i].clone().squeeze_dim::<3>(1);
            match segment.name().split_once('.') {
                None if state.streams.len() == 2 => {
                    golden.check(&tap("x_embedder"), stream(0));
                    golden.check(&tap("context_embedder"), stream(1));
                    let vec: Tensor<2> = state.shared[0].clone();
                    let difference = (vec - silu(golden.tensor::<2>(&tap("temb")))).abs().max().into_scalar::<f32>();
                    assert!(f64::from(difference) <= golden.tolerance(&tap("temb")), "temb differs by {difference}");
                }
                Some(("transformer_blocks", i)) => {
                    golden.check(&tap(&format!("double_{i}.0")), stream(1));
                    golden.check(&tap(&format!("double_{i}.1")), stream(0));
                }
                Some(("single_transformer_blocks", i)) => {
                    let x = stream(0);
                    let image_tokens = x.dims()[1] - text_tokens;
                    golden.check(&tap(&format!("single_{i}.0")), x.clone().narrow(1, 0, text_tokens));
                    golden.check(&tap(&format!("single_{i}.1")), x.narrow(1, text_tokens, image_tokens));
                }
                _ => golden.check("transformer.0.output", stream(0)),
            }
        }
    }
}

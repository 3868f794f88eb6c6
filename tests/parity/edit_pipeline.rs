//! Whole sampling runs of InstructPix2Pix: every step of diffusers from the same start, and its images.

use std::{collections::VecDeque, ops::ControlFlow};

use burn::tensor::Tensor;
use kiln::{
    models::text::PromptEmbeds,
    pipelines::{InstructPix2PixPipeline, Outcome, Pipeline, Request},
    selftest::sampling,
};

use crate::support::{
    Golden, goldens,
    sampling::{check_picture, open},
};

const CLASS: &str = "StableDiffusionInstructPix2PixPipeline";
const SECTIONS: [&str; 2] = ["pipe.ip2p", "pipe.ip2p_dpmpp"];

/// The settings of a section.
fn request(golden: &Golden, section: &str, pipeline: &InstructPix2PixPipeline) -> Request {
    sampling::edit_request(golden, section, pipeline).unwrap()
}

/// The latents after each step, with the sampler's noise from the golden.
fn steps(golden: &Golden, section: &str, pipeline: &InstructPix2PixPipeline, request: &Request) -> Vec<Tensor<4>> {
    let mut noise: VecDeque<_> =
        golden.names(&format!("{section}.noise.")).iter().map(|name| golden.tensor::<4>(name)).collect();
    let mut next = || noise.pop_front().unwrap();
    let mut steps = Vec::new();
    let latents = pipeline.generate_with(request, &mut next, &mut |step| {
        steps.push(step.latents.clone());
        ControlFlow::Continue(())
    });
    assert!(matches!(latents, Ok(Outcome::Finished(_))));
    steps
}

#[test]
fn every_step_the_output_and_the_image_match() {
    for golden in goldens(CLASS) {
        for section in SECTIONS {
            let of = |name: &str| format!("{section}.{name}");
            let pipeline = open(&golden, section);
            let steps = steps(&golden, section, &pipeline, &request(&golden, section, &pipeline));
            let latents = steps.last().unwrap().clone();
            golden.check(&of("steps"), Tensor::stack::<5>(steps, 0));
            golden.check(&of("output"), latents.clone());
            check_picture(&golden, &of("decoded_image"), &pipeline, latents);
        }
    }
}

#[test]
fn guidance_is_off_without_text_or_with_less_than_the_image() {
    let golden = &goldens(CLASS)[0];
    let pipeline = open(golden, "pipe.ip2p_dpmpp");
    let run = |text_guidance: f64, image_guidance: f64, negative: bool| {
        let mut request = request(golden, "pipe.ip2p_dpmpp", &pipeline);
        request.negative = request.negative.filter(|_| negative).map(|(embeds, _)| (embeds, text_guidance));
        request.original.as_mut().unwrap().1 = image_guidance;
        pipeline.generate(&request, &mut |_| ()).unwrap().into_data()
    };
    let off = run(7.5, 1.5, false);
    assert_eq!(run(1.0, 1.5, true), off);
    assert_eq!(run(7.5, 0.9, true), off);
    assert_ne!(run(7.5, 1.0, true), off);
}

#[test]
fn an_edit_does_not_depend_on_the_others_of_its_batch() {
    for golden in goldens(CLASS) {
        let pipeline = open(&golden, "pipe.ip2p"); // draws noise between steps
        let one = Request { seeds: vec![7], ..request(&golden, "pipe.ip2p", &pipeline) };
        let alone = pipeline.generate(&one, &mut |_| ()).unwrap();
        let pair = |tensor: &Tensor<4>| Tensor::cat(vec![tensor.clone().neg(), tensor.clone()], 0);
        let text = PromptEmbeds {
            prompt: one.text.prompt.clone().repeat_dim(0, 2),
            pooled: one.text.pooled.clone().repeat_dim(0, 2),
        };
        let original = one.original.as_ref().map(|(latents, scale)| (pair(latents), *scale));
        let batch = Request { text, noise: pair(&one.noise), original, seeds: vec![3, 7], ..one };
        let second = pipeline.generate(&batch, &mut |_| ()).unwrap().narrow(0, 1, 1);
        let difference = (second - alone.clone()).abs().max().into_scalar::<f32>();
        let spread = alone.abs().max().into_scalar::<f32>();
        assert!(difference <= 1e-5 * spread, "{difference} of {spread}");
    }
}

#[test]
fn an_image_to_edit_is_required() {
    let golden = &goldens(CLASS)[0];
    let pipeline = open(golden, "pipe.ip2p");
    let request = Request { original: None, ..request(golden, "pipe.ip2p", &pipeline) };
    let error = pipeline.generate(&request, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("edits an image, and none is given"), "{error}");
}

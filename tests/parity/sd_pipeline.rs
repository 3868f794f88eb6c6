//! Whole sampling runs of Stable Diffusion: every step of diffusers from the same start, and its images.

use burn::tensor::{Device, FloatDType, Tensor};
use kiln::{
    data::Encoders,
    families::ModelEncoders,
    models::text::PromptEmbeds,
    pipelines::{Pipeline, Request, StableDiffusionPipeline, Start},
    schedulers::SchedulerName,
};

use crate::support::{
    Golden, goldens,
    sampling::{check_picture, embeds, open, start},
};

const SECTIONS: [&str; 6] =
    ["pipe.txt2img", "pipe.txt2img_dpmpp", "pipe.img2img", "pipe.img2img_dpmpp", "pipe.inpaint", "pipe.inpaint_dpmpp"];

/// The settings of a section.
fn request(golden: &Golden, section: &str, pipeline: &StableDiffusionPipeline) -> Request {
    let number = |key: &str| golden.section(section)[key].as_f64().unwrap();
    let of = |name: &str| format!("{section}.{name}");
    let noise = golden.tensor(&of(if golden.has(&of("latents")) { "latents" } else { "noise.1" }));
    Request {
        negative: Some((embeds(golden, section, "negative_"), number("guidance_scale"))),
        start: start(golden, section, pipeline),
        ..Request::new(embeds(golden, section, ""), noise, vec![0], number("num_inference_steps") as usize)
    }
}

#[test]
fn every_step_the_output_and_the_image_match() {
    for golden in goldens("StableDiffusionPipeline") {
        for section in SECTIONS {
            let of = |name: &str| format!("{section}.{name}");
            let pipeline = open(&golden, section);
            let mut steps = Vec::new();
            let request = request(&golden, section, &pipeline);
            let latents = pipeline.generate(&request, &mut |step| steps.push(step.latents.clone())).unwrap();
            golden.check(&of("steps"), Tensor::stack::<5>(steps, 0));
            golden.check(&of("output"), latents.clone());
            check_picture(&golden, &of("decoded_image"), &pipeline, latents);
        }
    }
}

#[test]
fn texts_lead_to_the_embeddings() {
    for golden in goldens("StableDiffusionPipeline") {
        let mut encoders = ModelEncoders::open(&golden.model, &Device::flex(), FloatDType::F32).unwrap();
        let prompt = golden.section("clip")["prompts"][1].as_str().unwrap();
        for (text, kind) in [(prompt, ""), ("", "negative_")] {
            let ids = encoders.tokenize(text).unwrap();
            assert!(ids.t5.is_empty());
            let embeds = encoders.encode_prompt(&ids).unwrap();
            golden.check(&format!("pipe.txt2img.{kind}prompt_embeds"), embeds.prompt);
        }
    }
}

#[test]
fn an_image_does_not_depend_on_the_others_of_its_batch() {
    for golden in goldens("StableDiffusionPipeline") {
        let mut pipeline = open(&golden, "");
        pipeline.scheduler = pipeline.scheduler.with_name(SchedulerName::EulerAncestral); // draws noise between steps
        let one = Request { seeds: vec![7], ..request(&golden, "pipe.txt2img", &pipeline) };
        let alone = pipeline.generate(&one, &mut |_| ()).unwrap();
        let rows = |text: &PromptEmbeds| PromptEmbeds {
            prompt: text.prompt.clone().repeat_dim(0, 2),
            pooled: text.pooled.clone().repeat_dim(0, 2),
        };
        let noise = Tensor::cat(vec![one.noise.clone().neg(), one.noise.clone()], 0);
        let batch = Request { text: rows(&one.text), noise, seeds: vec![3, 7], ..one };
        let second = pipeline.generate(&batch, &mut |_| ()).unwrap().narrow(0, 1, 1);
        let difference = (second - alone.clone()).abs().max().into_scalar::<f32>();
        let spread = alone.abs().max().into_scalar::<f32>();
        assert!(difference <= 1e-5 * spread, "{difference} of {spread}");
    }
}

#[test]
fn a_run_that_leaves_nothing_to_do_is_refused() {
    let golden = &goldens("StableDiffusionPipeline")[0];
    let pipeline = open(golden, "");
    for (strength, problem) in
        [(0.1, "leaves none of the 6 steps"), (0.0, "not above 0"), (1.5, "at most 1"), (f64::NAN, "")]
    {
        let mut request = request(golden, "pipe.img2img", &pipeline);
        request.start.as_mut().unwrap().strength = strength;
        let error = pipeline.generate(&request, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("strength") && error.contains(problem), "{error}");
    }
}

#[test]
fn parts_of_different_sizes_are_refused_by_name() {
    let golden = &goldens("StableDiffusionPipeline")[0];
    let pipeline = open(golden, "");
    let good = request(golden, "pipe.inpaint", &pipeline);
    let twice = |tensor: &Tensor<4>| Tensor::cat(vec![tensor.clone(), tensor.clone()], 0);
    let start = good.start.clone().unwrap();
    let mask = Start { mask: start.mask.clone().map(|mask| mask.repeat_dim(1, 4)), ..start.clone() };
    let latents = Start { latents: twice(&start.latents), ..start };
    let channels = good.noise.clone().repeat_dim(1, 2);
    let (mut negative, scale) = good.negative.clone().unwrap();
    negative.prompt = negative.prompt.narrow(1, 0, 20);
    for (part, bad) in [
        ("text", Request { noise: twice(&good.noise), ..good.clone() }),
        ("negative", Request { negative: Some((negative, scale)), ..good.clone() }),
        ("noise", Request { noise: channels, start: None, ..good.clone() }),
        ("seeds", Request { seeds: vec![], ..good.clone() }),
        ("start", Request { start: Some(latents), ..good.clone() }),
        ("mask", Request { start: Some(mask), ..good.clone() }),
    ] {
        let error = pipeline.generate(&bad, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains(&format!("`{part}`")), "{error}");
    }
}

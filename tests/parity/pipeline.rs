//! Whole sampling runs of FLUX.1: every step of diffusers from the same start, and its images.

use burn::tensor::{Device, FloatDType, Tensor};
use kiln::{
    models::{
        flux::{pack, unpack},
        text::{PromptEmbeds, TextEncoders},
    },
    pipelines::{FluxPipeline, Pipeline, Request},
    tokenizer::{PromptIds, Tokenizers},
};

use crate::support::{
    Golden, goldens,
    sampling::{check_picture, start},
};

const SECTIONS: [&str; 5] =
    ["pipe.txt2img", "pipe.txt2img_wide", "pipe.txt2img_true_cfg", "pipe.img2img", "pipe.inpaint"];

/// T5 tokens of the goldens' prompts, and where the empty prompt is in the sections `tokens.*`.
const T5_TOKENS: usize = 32;
const EMPTY_PROMPT: usize = 2;

fn open(golden: &Golden) -> FluxPipeline {
    FluxPipeline::open(&golden.model, &Device::flex(), FloatDType::F32).unwrap()
}

/// The embeddings of a section, `negative_` or not.
fn embeds(golden: &Golden, section: &str, kind: &str) -> PromptEmbeds {
    PromptEmbeds {
        prompt: golden.tensor(&format!("{section}.{kind}prompt_embeds")),
        pooled: golden.tensor(&format!("{section}.{kind}pooled_prompt_embeds")),
    }
}

/// The settings of a section.
fn request(golden: &Golden, section: &str, pipeline: &FluxPipeline) -> Request {
    let number = |key: &str| golden.section(section)[key].as_f64();
    let of = |name: &str| format!("{section}.{name}");
    let side = |key: &str| number(key).unwrap() as usize / pipeline.vae.downsampling();
    let noise = match golden.has(&of("latents")) {
        true => unpack(golden.tensor(&of("latents")), side("height"), side("width")),
        false => golden.tensor(&of("noise.1")),
    };
    let steps = number("num_inference_steps").unwrap() as usize;
    Request {
        guidance: number("guidance_scale").unwrap(),
        negative: number("true_cfg_scale").map(|scale| (embeds(golden, section, "negative_"), scale)),
        start: start(golden, section, pipeline),
        ..Request::new(embeds(golden, section, ""), noise, vec![0], steps)
    }
}

#[test]
fn every_step_the_output_and_the_image_match() {
    for golden in goldens("FluxPipeline") {
        let pipeline = open(&golden);
        for section in SECTIONS {
            let of = |name: &str| format!("{section}.{name}");
            let request = request(&golden, section, &pipeline);
            let mut steps = Vec::new();
            let latents = pipeline.generate(&request, &mut |step| {
                steps.push(pack(step.latents.clone()));
                assert!(step.number == steps.len() && step.number <= step.of);
            });
            let latents = latents.unwrap();
            golden.check(&of("steps"), Tensor::stack::<4>(steps, 0));
            golden.check(&of("output"), pack(latents.clone()));

            check_picture(&golden, &of("decoded_image"), &pipeline, latents);
        }
    }
}

#[test]
fn token_ids_lead_to_the_embeddings_and_the_output() {
    for golden in goldens("FluxPipeline") {
        let pipeline = open(&golden);
        let encoders = TextEncoders::open(&golden.model, &Device::flex(), Some(FloatDType::F32)).unwrap();
        let row = |name: &str, row: usize| {
            let length = golden.shape(name)[1];
            golden.ids(name)[row * length..(row + 1) * length].to_vec()
        };
        let ids = |clip: &str, t5: &str, at| PromptIds { clip: row(clip, at), t5: row(t5, at) };
        let prompt = ids("clip.input_ids", "t5.input_ids", 0);
        let empty = ids("tokens.clip.input_ids", "tokens.t5.input_ids", EMPTY_PROMPT);
        let tokenizers = Tokenizers::open(&golden.model, T5_TOKENS).unwrap();
        let text = golden.section("clip")["prompts"][0].as_str().unwrap();
        assert_eq!(tokenizers.tokenize(text).unwrap(), prompt);
        assert_eq!(tokenizers.tokenize("").unwrap(), empty);

        for section in SECTIONS {
            let mut request = request(&golden, section, &pipeline);
            request.text = encoders.encode(std::slice::from_ref(&prompt));
            golden.check(&format!("{section}.prompt_embeds"), request.text.prompt.clone());
            golden.check(&format!("{section}.pooled_prompt_embeds"), request.text.pooled.clone());
            if let Some((negative, _)) = &mut request.negative {
                *negative = encoders.encode(std::slice::from_ref(&empty));
                golden.check(&format!("{section}.negative_prompt_embeds"), negative.prompt.clone());
                golden.check(&format!("{section}.negative_pooled_prompt_embeds"), negative.pooled.clone());
            }
            golden.check(&format!("{section}.output"), pack(pipeline.generate(&request, &mut |_| ()).unwrap()));
        }
    }
}

#[test]
fn an_image_does_not_depend_on_the_others_of_its_batch() {
    for golden in goldens("FluxPipeline") {
        let pipeline = open(&golden);
        let one = request(&golden, "pipe.txt2img", &pipeline);
        let rows = |text: &PromptEmbeds| PromptEmbeds {
            prompt: text.prompt.clone().repeat_dim(0, 2),
            pooled: text.pooled.clone().repeat_dim(0, 2),
        };
        let other = one.noise.clone().neg();
        let noise = Tensor::cat(vec![other, one.noise.clone()], 0);
        let batch = Request { text: rows(&one.text), noise, seeds: vec![0, 0], ..one };
        let second = pipeline.generate(&batch, &mut |_| ()).unwrap().narrow(0, 1, 1);
        golden.check("pipe.txt2img.output", pack(second));
    }
}

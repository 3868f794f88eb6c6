//! Five steps of diffusers' InstructPix2Pix script, replayed: dropout, losses, first gradients, final weights, running mean.

mod support;

use burn::tensor::{Device, FloatDType, Tensor};
use kiln::{
    data::joint_dropout,
    models::{
        Segmented,
        text::TextEncoders,
        unet::UNet,
        vae::{AutoencoderKl, Moments},
    },
    nn::Parameters,
    schedulers::SchedulerConfig,
    tokenizer::PromptIds,
    training::{
        EditConfig, Ema, Mode, OptimizerConfig,
        backward::{self, backward},
        objective::Denoising,
        optimizer::{AdamW, clip},
    },
};
use support::{Golden, goldens};

const SECTION: &str = "train_ip2p";

fn key(name: &str) -> String {
    format!("{SECTION}.{name}")
}

/// The embeddings of token ids `[rows, 77]`.
fn embed(golden: &Golden, text: &TextEncoders, name: &str) -> Tensor<3> {
    let ids = golden.ids(&key(name));
    let prompts = ids.chunks(77).map(|clip| PromptIds { clip: clip.to_vec(), t5: vec![] }).collect::<Vec<_>>();
    text.encode(&prompts).prompt
}

fn parameter(model: &mut UNet, wanted: &str) -> Tensor<1> {
    let mut found = None;
    model.parameters("", &mut |name, parameter| {
        if name == wanted {
            found = Some(parameter.flat());
        }
    });
    found.expect("the model has this tensor")
}

fn replay(golden: &Golden, groups: fn(usize) -> Vec<std::ops::Range<usize>>) {
    let device = Device::flex();
    let f32 = Some(FloatDType::F32);
    let mut model = UNet::open(golden.model.join("unet"), &device, f32).unwrap();
    if model.config.in_channels == 4 {
        model.widen(8);
    }
    golden.check_data(&key("init.conv_in.weight"), parameter(&mut model, "conv_in.weight").into_data());
    golden.check_data(&key("init.conv_in.bias"), parameter(&mut model, "conv_in.bias").into_data());
    let vae = AutoencoderKl::open(golden.model.join("vae"), &device, f32).unwrap();
    let text = TextEncoders::open(&golden.model, &device, f32).unwrap();
    let scheduler = SchedulerConfig::open(golden.model.join("scheduler")).unwrap();
    let objective = Denoising {
        config: EditConfig::default(),
        schedule: scheduler.noise_schedule(),
        prediction: scheduler.prediction_type,
    };
    let number = |name: &str| golden.section(SECTION)[name].as_f64().unwrap();
    let mut optimizer = AdamW::new(OptimizerConfig {
        learning_rate: number("lr"),
        weight_decay: number("weight_decay"),
        epsilon: number("eps"),
        ..Default::default()
    });
    let mut ema = Ema::new(number("ema_decay"));
    let edited = vae.encode(golden.tensor(&key("edited_pixels")));
    let original: Tensor<4> = vae.encode(golden.tensor(&key("original_pixels"))).mode();
    let (prompts, null) = (embed(golden, &text, "input_ids"), embed(golden, &text, "null_ids"));
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 1..=5 {
        let of = |part: &str| key(&format!("step{step}.{part}"));
        let sample = Moments::from_tensor(edited.clone().into_tensor()).sample(golden.tensor(&of("vae_noise")));
        let latents = vae.latent_scale().normalize(sample);
        golden.check(&of("latents"), latents.clone());
        let draws = golden.floats(&of("random_p"));
        let dropped: Vec<_> = draws.iter().map(|&u| joint_dropout(u, number("conditioning_dropout_prob"))).collect();
        let flags = |values: Vec<bool>| values.into_iter().map(|v| f32::from(u8::from(v))).collect::<Vec<_>>();
        assert_eq!(flags(dropped.iter().map(|d| !d.image).collect()), golden.floats(&of("image_mask")));
        let text_dropped: Vec<_> = golden.ids(&of("prompt_dropped")).into_iter().map(|id| id != 0).collect();
        assert_eq!(dropped.iter().map(|d| d.text).collect::<Vec<_>>(), text_dropped);
        let rows = dropped.iter().enumerate();
        let rows = rows.map(|(i, d)| if d.text { null.clone() } else { prompts.clone().narrow(0, i, 1) });
        let words = Tensor::cat(rows.collect(), 0);
        let condition = original.clone() * golden.tensor::<1>(&of("image_mask")).reshape([-1, 1, 1, 1]);
        let (noise, timesteps) = (golden.tensor(&of("noise")), golden.ids(&of("timesteps")));
        let example = objective.example(latents, condition, words, noise, &timesteps, FloatDType::F32);
        golden.check(&of("prediction"), model.predict(&example.inputs));
        let groups = groups(model.segments().len());
        let loss = |prediction| example.loss(prediction);
        let (loss, mut gradients) = backward(&model, Mode::Full, &example.inputs, &groups, loss);
        losses.push(loss);
        if step == 1 {
            let names = golden.names(&key("grad1."));
            assert!(names.len() > 10, "{names:?}");
            for name in names {
                golden.check_data(&name, gradients[&name[key("grad1.").len()..]].to_data());
            }
        }
        norms.push(clip(&mut gradients, 1.0, number("max_grad_norm")));
        optimizer.step(number("lr"), &mut model, gradients);
        ema.update(&mut model);
    }
    golden.check(&key("loss"), Tensor::<1>::cat(losses, 0));
    golden.check(&key("grad_norm"), Tensor::<1>::cat(norms, 0));
    for name in ["conv_in.weight", "conv_in.bias"] {
        golden.check_data(&key(&format!("final.{name}")), parameter(&mut model, name).into_data());
    }
    golden.check_data(&key("ema.conv_in.weight"), ema.means()["conv_in.weight"].to_data());
}

#[test]
fn five_steps_of_an_editing_model_match() {
    for golden in goldens("StableDiffusionInstructPix2PixPipeline") {
        replay(&golden, backward::blockwise);
        replay(&golden, backward::full);
    }
}

#[test]
fn five_steps_of_a_widened_model_match() {
    for golden in goldens("StableDiffusionPipeline") {
        replay(&golden, backward::blockwise);
    }
}

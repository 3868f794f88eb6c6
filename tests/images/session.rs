//! A session serves one request after another: each as if it were alone, and nothing is loaded twice.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use image::{GrayImage, Luma, RgbImage};
use kiln::{
    generation::{Images, SamplingOptions, Session},
    lending::Residence,
    pipelines::{OnStep, Outcome},
};

use crate::support::{
    goldens,
    program::{copy, succeeds},
    sampling::{EDITS, MAKES, draw},
};

const FLUX: &str = "FluxPipeline";
const CLASSES: [&str; 3] = [FLUX, MAKES, EDITS];

fn folder(class: &str) -> PathBuf {
    goldens(class)[0].model.clone()
}

fn open(model: &Path) -> Session {
    Session::open(model.to_str().unwrap(), &Device::flex()).unwrap()
}

/// A smooth image.
fn original(width: usize, height: usize) -> RgbImage {
    RgbImage::from_fn(width as u32, height as u32, |x, y| image::Rgb([(x * 3) as u8, (y * 5) as u8, (x + y) as u8]))
}

/// Images of these prompts, five steps each.
fn images(session: &Session, prompts: &[&str], first_seed: u64, width: usize, height: usize) -> Images {
    Images {
        prompts: prompts.iter().map(ToString::to_string).collect(),
        seeds: (first_seed..).take(prompts.len()).collect(),
        width,
        height,
        originals: if session.family().edits() { vec![original(width, height); prompts.len()] } else { vec![] },
        strength: 1.0,
        mask: None,
        sampling: SamplingOptions { steps: Some(5), ..SamplingOptions::default() },
    }
}

/// Lets it be done.
fn to_the_end() -> impl FnMut(kiln::pipelines::Step<'_>) -> ControlFlow<()> {
    |_| ControlFlow::Continue(())
}

fn made(session: &mut Session, images: &Images) -> Vec<RgbImage> {
    session.make(images, &mut to_the_end()).unwrap().finished().expect("nobody cancelled it")
}

#[test]
fn a_second_request_loads_nothing_and_is_what_a_process_of_its_own_makes() {
    for class in CLASSES {
        let temporary = tempfile::tempdir().unwrap();
        let model = temporary.path().join("model");
        copy(folder(class), &model);
        let mut session = open(&model).keeping_text_encoders();
        let first = images(&session, &["a red circle", "rain"], 3, 64, 48);
        made(&mut session, &first);
        std::fs::remove_dir_all(&model).unwrap();
        // Other prompts, another size, another seed, other options.
        let mut second = images(&session, &["a blue square"], 11, 48, 80);
        second.sampling.guidance = Some(5.0);
        second.sampling.negative_prompt = Some("snow".into());
        let second = made(&mut session, &second);

        let (out, source) = (temporary.path().join("out"), temporary.path().join("original.png"));
        original(48, 80).save(&source).unwrap();
        let model = folder(class);
        let (edits, shared) = (
            ["edit", "--instruction", "a blue square", "--image", source.to_str().unwrap()],
            ["--seed", "11", "--steps", "5", "--guidance", "5", "--negative-prompt", "snow", "--output"],
        );
        let makes = ["generate", "--prompt", "a blue square", "--width", "48", "--height", "80"];
        let own = if session.family().edits() { &edits[..] } else { &makes[..] };
        let rest = [&["--model", model.to_str().unwrap()], &shared[..], &[out.to_str().unwrap()]].concat();
        let (files, _) = succeeds(&[own, &rest].concat());
        let alone = image::open(files.trim_end()).unwrap().into_rgb8();
        assert!(second == [alone], "{class}");
    }
}

#[test]
fn prompts_that_are_known_need_no_text_encoder_and_others_say_what_is_missing() {
    for class in CLASSES {
        let temporary = tempfile::tempdir().unwrap();
        copy(folder(class), temporary.path());
        let mut session = open(temporary.path());
        let first = images(&session, &["one", "two"], 0, 32, 32);
        let before = made(&mut session, &first);
        std::fs::remove_dir_all(temporary.path().join("text_encoder")).unwrap();
        assert!(made(&mut session, &first) == before, "{class}");
        let both = images(&session, &["two", "one", "two"], 5, 48, 32);
        assert_eq!(made(&mut session, &both).len(), 3);
        let new = images(&session, &["one", "three"], 0, 32, 32);
        let error = session.make(&new, &mut to_the_end()).unwrap_err().to_string();
        assert!(error.contains("text_encoder"), "{error}");
        assert!(made(&mut session, &first) == before, "{class}: the session is as good as before");
    }
}

#[test]
fn cancelling_stops_within_a_step_and_the_session_stays_usable() {
    for class in CLASSES {
        let mut session = open(&folder(class));
        let request = images(&session, &["a red circle"], 1, 32, 48);
        let before = made(&mut session, &request);
        for last in [1, 3, 5] {
            let mut seen = Vec::new();
            let on_step: OnStep = &mut |step| {
                assert_eq!(step.latents.dims()[2..], [48 / 8, 32 / 8].map(|side: usize| side.max(1)), "to be shown");
                seen.push((step.number, step.of));
                if step.number == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let outcome = session.make(&request, on_step).unwrap();
            assert_eq!(outcome, Outcome::Cancelled(last), "{class}");
            assert_eq!(seen.len(), last, "nothing was done after it");
            assert!(seen.iter().map(|(number, _)| *number).eq(1..=last) && seen.iter().all(|(_, of)| *of >= 5));
            assert!(made(&mut session, &request) == before, "{class}");
        }
    }
}

#[test]
fn adapters_are_switched_between_requests_and_leave_no_trace() {
    for class in [FLUX, EDITS] {
        let golden = &goldens(class)[0];
        let files = ["lora_r4_a4", "lora_all_r4_a2", "lora_r4_a8"]
            .map(|name| golden.folder.join(name).join("pytorch_lora_weights.safetensors"));
        let mut session = open(&golden.model);
        let request = images(&session, &["a red circle"], 2, 32, 32);
        let plain = made(&mut session, &request);
        let loras = files.each_ref().map(|path| session.read_adapter(path).unwrap());
        let mut with = |scales: &[(usize, f64)]| {
            session.set_adapters(scales.iter().map(|&(number, scale)| (&loras[number], scale))).unwrap();
            made(&mut session, &request)
        };
        let alone: Vec<_> = (0..3).map(|number| with(&[(number, 3.0)])).collect();
        let both = with(&[(0, 3.0), (1, -2.0)]);
        assert!(alone.iter().chain([&both]).all(|worn| *worn != plain), "{class}");
        assert!(alone[0] != alone[1] && both != alone[0] && both != alone[1], "{class}");
        assert!(with(&[]) == plain && with(&[(1, 3.0)]) == alone[1] && with(&[]) == plain, "{class}");

        // As the program does it in a process of its own.
        let temporary = tempfile::tempdir().unwrap();
        let out = temporary.path().join("out");
        let worn = [format!("{}@3", files[0].display()), format!("{}@-2", files[1].display())];
        let source = temporary.path().join("original.png");
        original(32, 32).save(&source).unwrap();
        let (edits, makes) = (
            ["edit", "--instruction", "a red circle", "--image", source.to_str().unwrap()],
            ["generate", "--prompt", "a red circle", "--width", "32"],
        );
        let mut arguments = if class == EDITS { edits.to_vec() } else { [&makes[..], &["--height", "32"]].concat() };
        arguments.extend(["--model", golden.model.to_str().unwrap(), "--lora", &worn[0], "--lora", &worn[1]]);
        arguments.extend(["--seed", "2", "--steps", "5", "--output", out.to_str().unwrap()]);
        let (printed, _) = succeeds(&arguments);
        assert!(both == [image::open(printed.trim_end()).unwrap().into_rgb8()], "{class}");
    }
}

/// Each with its own steps, guidance, adapters and number of images; one joins after two steps, one is dropped after three.
#[test]
fn images_of_many_requests_share_the_calls_of_the_denoiser_and_each_is_as_if_alone() {
    for class in CLASSES {
        let golden = &goldens(class)[0];
        let mut session = open(&golden.model);
        let file = |name: &str| golden.folder.join(name).join("pytorch_lora_weights.safetensors");
        let loras = ["lora_r4_a4", "lora_all_r4_a2"].map(file).into_iter().filter(|path| path.is_file());
        let loras: Vec<_> = loras.map(|path| session.read_adapter(&path).unwrap()).collect();
        let worn: Vec<_> =
            (0..4).map(|number| session.wear(loras.get(number).map(|lora| (lora, 3.0))).unwrap()).collect();
        assert!(class == MAKES || loras.len() == 2, "{class} has adapters to wear");
        let request = |number: usize, prompts: &[&str]| {
            let mut request = images(&session, prompts, 10 * number as u64, 48, 32);
            request.sampling.steps = Some(4 + number);
            request.sampling.guidance = Some([3.0, 1.0, 7.5, 5.0][number]);
            request
        };
        let requests = [
            request(0, &["a red circle"]),
            request(1, &["rain", "snow"]),
            request(2, &["a cat"]),
            request(3, &[""; 1]),
        ];
        let requests = requests.map(|mut request| {
            request.prompts.iter_mut().filter(|prompt| prompt.is_empty()).for_each(|prompt| *prompt = "fog".into());
            request
        });
        let alone: Vec<_> = requests
            .iter()
            .zip(&worn)
            .map(|(request, worn)| {
                let mut one = session.begin(request, worn).unwrap();
                while !one.is_done() {
                    session.advance(&mut [&mut one]).unwrap();
                }
                session.decode(one.latents().clone()).unwrap()
            })
            .collect();
        assert!(alone[2..].iter().zip(&requests[2..]).all(|(images, request)| *images == made(&mut session, request)));

        let mut begin = |number: usize| (number, session.begin(&requests[number], &worn[number]).unwrap());
        let (last, mut running) = (begin(3), vec![begin(0), begin(1), begin(2)]);
        let (mut last, mut together) = (Some(last), vec![None; 4]);
        for step in 0.. {
            if step == 2 {
                running.extend(last.take());
            }
            if step == 3 {
                running.retain(|(number, _)| *number != 2);
            }
            if running.is_empty() {
                break;
            }
            session.advance(&mut running.iter_mut().map(|(_, one)| one).collect::<Vec<_>>()).unwrap();
            for (number, one) in running.iter().filter(|(_, one)| one.is_done()) {
                together[*number] = Some(session.decode(one.latents().clone()).unwrap());
            }
            running.retain(|(_, one)| !one.is_done());
        }
        for number in [0, 1, 3] {
            assert!(together[number].as_ref().unwrap() == &alone[number], "{class}: request {number} has other bits");
        }
        assert!(together[2].is_none());
    }
}

#[test]
fn an_adapter_of_another_model_is_refused_before_any_weights_are_read() {
    let temporary = tempfile::tempdir().unwrap();
    copy(folder(FLUX), temporary.path());
    let mut session = open(temporary.path());
    std::fs::remove_dir_all(temporary.path()).unwrap();
    let flux = goldens(FLUX)[0].folder.join("lora_r4_a4/pytorch_lora_weights.safetensors");
    let unet = goldens(EDITS)[0].folder.join("lora_r4_a4/pytorch_lora_weights.safetensors");
    let lora = session.read_adapter(&flux).unwrap();
    let error = session.read_adapter(&unet).unwrap_err().to_string();
    assert!(error.contains(unet.to_str().unwrap()) && error.contains("no such layer"), "{error}");
    let other = kiln::selftest::lora_steps::adapter(&goldens(FLUX)[0], "train_lora").unwrap();
    session.set_adapters([(&lora, 1.0), (&other, 1.0)]).unwrap();
}

#[test]
fn wherever_weights_lie_between_uses_the_images_are_the_same() {
    for class in CLASSES {
        let mut resident = open(&folder(class));
        let mut streamed = open(&folder(class)).placed(Residence::Streamed.into());
        let mut request = images(&resident, &["a red circle", "rain"], 4, 48, 32);
        if class != EDITS {
            request.originals = vec![original(48, 32); 2];
            request.strength = 0.6;
            request.mask = Some(GrayImage::from_fn(48, 32, |x, _| Luma([if x < 24 { 255 } else { 0 }])));
        }
        let expected = made(&mut resident, &request);
        assert!(made(&mut streamed, &request) == expected, "{class}");
        resident.release().unwrap();
        assert!(made(&mut resident, &request) == expected, "{class}: after all weights were let go of");
    }
}

#[test]
fn what_cannot_be_made_is_said_before_any_weights_are_read() {
    for class in CLASSES {
        let temporary = tempfile::tempdir().unwrap();
        copy(folder(class), temporary.path());
        let mut session = open(temporary.path());
        std::fs::remove_dir_all(temporary.path()).unwrap();
        let right = images(&session, &["a", "b"], 0, 64, 32);
        let with = |change: fn(&mut Images)| {
            let mut images = right.clone();
            change(&mut images);
            images
        };
        type Change = fn(&mut Images);
        let wrong: [(&str, Change); 9] = [
            ("prompts", |images| images.prompts.clear()),
            ("seeds", |images| images.seeds.truncate(1)),
            ("width", |images| images.width = 63),
            ("height", |images| images.height = 0),
            ("originals", |images| images.originals = vec![RgbImage::new(64, 32)]),
            ("originals", |images| images.originals = vec![RgbImage::new(32, 32); 2]),
            ("mask", |images| images.mask = Some(GrayImage::new(16, 32))),
            ("steps", |images| images.sampling.steps = Some(0)),
            ("guidance", |images| images.sampling.guidance = Some(f64::NAN)),
        ];
        for (field, change) in wrong {
            let error = session.make(&with(change), &mut to_the_end()).unwrap_err().message();
            assert!(error.starts_with(&format!("`{field}`")), "{class}, {field}: {error}");
        }
        let images = with(|images| {
            images.originals = vec![RgbImage::new(64, 32); 2];
            images.strength = 0.1; // of five steps
        });
        match class == EDITS {
            true => session.check_images(&images).unwrap(),
            false if class == MAKES => {
                assert!(session.check_images(&images).unwrap_err().message().starts_with("`strength`"));
            }
            false => {}
        }
        session.check_images(&right).unwrap();
    }
}

#[test]
fn a_model_trained_on_scaled_originals_sees_them_scaled() {
    let mut session = open(&folder(EDITS));
    let raw = images(&session, &["rain"], 0, 64, 64);
    let mut scaled = raw.clone();
    scaled.sampling.scaled_condition = true;
    assert!(made(&mut session, &raw) != made(&mut session, &scaled));

    // What was scaled before is not scaled again.
    let golden = &goldens(EDITS)[0];
    let pipeline =
        kiln::pipelines::StableDiffusionPipeline::open(&golden.model, &Device::flex(), burn::tensor::FloatDType::F32)
            .unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let picture = draw(&temporary.path().join("picture.png"), 64, 64, 0);
    let picture = image::open(picture).unwrap().into_rgb8();
    let latents = kiln::pipelines::Pipeline::encode(&pipeline, &[picture]).mode();
    let scale = pipeline.vae.latent_scale();
    let file = |name: &str, latents: burn::tensor::Tensor<4>| {
        crate::support::sampling::write(&temporary.path().join(name), vec![("latents", latents.into_data())])
    };
    // A file holds scaled latents: the flag leaves them as they are, so scaling them twice in the file is the same without it.
    let once = file("once.safetensors", scale.normalize(latents.clone()));
    let twice = file("twice.safetensors", scale.normalize(scale.normalize(latents)));
    let edit = |input: &str, more: &[&str]| {
        let out = temporary.path().join("out.safetensors");
        let model = golden.model.to_str().unwrap();
        let common = ["edit", "--model", model, "--latents-in", input, "--instruction", "rain", "--steps", "3"];
        succeeds(&[&common, &["--latents", out.to_str().unwrap()][..], more].concat());
        let [(_, found)] = crate::support::program::tensors(&out).try_into().unwrap();
        found.into_vec::<f32>().unwrap()
    };
    let (flagged, doubled) = (edit(&once, &["--scaled-condition"]), edit(&twice, &[]));
    let largest = flagged.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let difference = flagged.iter().zip(&doubled).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(difference <= 1e-4 * largest && flagged != edit(&once, &[]), "{difference} of {largest}");
}

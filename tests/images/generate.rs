//! `kiln generate`: the latents of diffusers from its noise and ids, and what seeds, strengths and files mean.

use std::{path::PathBuf, sync::LazyLock};

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use image::{GrayImage, Luma};
use kiln::{
    models::flux::unpack,
    pipelines::{FluxPipeline, Pipeline, StableDiffusionPipeline},
    tokenizer::Tokenizers,
};

use crate::support::{
    goldens,
    program::{MODEL, copy, fails, kiln, succeeds, tensors, train, truncate, workshop},
    sampling::{EDITS, MAKES, draw, model, start, write},
};

/// The `model_max_length` of the model's second tokenizer.
const T5_TOKENS: usize = 64;

static WORKSHOP: LazyLock<PathBuf> = LazyLock::new(|| workshop("generate"));

/// A trained adapter.
static LORA: LazyLock<String> = LazyLock::new(|| {
    let run = train(&WORKSHOP, "adapter", &["optimizer.learning_rate=0.05", "training.max_steps=5"]);
    run.join("adapter.safetensors").to_str().unwrap().to_string()
});

#[test]
fn noise_and_ids_of_a_golden_give_its_latents_with_and_without_lora_files() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for golden in goldens("FluxPipeline") {
        let rows = |name: &str| {
            let length = golden.shape(name)[1];
            TensorData::new(golden.ids(name)[..length].to_vec(), [1, length])
        };
        let ids = vec![("clip", rows("clip.input_ids")), ("t5", rows("t5.input_ids"))];
        let ids = write(&at("ids.safetensors"), ids);
        let mut cases = vec![("pipe.txt2img".to_string(), None), ("pipe.txt2img_wide".to_string(), None)];
        for case in ["lora_r4_a4", "lora_r4_a8", "lora_all_r4_a2"] {
            for file in ["pytorch_lora_weights", "kohya"] {
                let file = golden.folder.join(case).join(file).with_extension("safetensors");
                cases.push((format!("{case}.txt2img"), Some(file.to_str().unwrap().to_string())));
            }
        }
        for (section, lora) in cases {
            let number = |key: &str| golden.section(&section)[key].as_f64().unwrap();
            let start: Tensor<3> = golden.tensor(&format!("{section}.latents"));
            // The places of the noise follow from its tokens and the shape of the image.
            let ratio = number("width") / number("height");
            let rows = ((start.dims()[1] as f64 / ratio).sqrt().round() as usize) * 2;
            let noise = unpack(start.clone(), rows, start.dims()[1] * 4 / rows);
            let noise = write(&at("noise.safetensors"), vec![("noise", noise.into_data())]);
            let (steps, guidance) = (number("num_inference_steps").to_string(), number("guidance_scale").to_string());
            let latents = at("latents.safetensors");
            let mut arguments = vec!["generate", "--model", golden.model.to_str().unwrap(), "--prompt-ids", &ids];
            arguments.extend(["--noise", &noise, "--steps", &steps, "--guidance", &guidance]);
            arguments.extend(["--latents", latents.to_str().unwrap()]);
            arguments.extend(lora.iter().flat_map(|file| ["--lora", file.as_str()]));
            let (out, _) = succeeds(&arguments);
            assert_eq!(out, format!("{}\n", latents.display()));
            let [(name, found)] = tensors(&latents).try_into().unwrap();
            assert_eq!(name, "latents");
            golden.check(&format!("{section}.output"), Tensor::<3>::from_data(found, &Device::flex()));
        }
    }
}

/// Generates into a folder of its own with these arguments added; returns the images' bytes.
fn pictures(more: &[&str]) -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = vec!["generate", "--model", MODEL, "--output", folder.path().to_str().unwrap()];
    arguments.extend(["--width", "64", "--height", "32", "--steps", "2"]);
    if !more.contains(&"--prompt-ids") {
        arguments.extend(["--prompt", "a red circle on white"]);
    }
    arguments.extend(more);
    let (out, _) = succeeds(&arguments);
    let files: Vec<_> = out.lines().map(PathBuf::from).collect();
    assert_eq!(files.len(), std::fs::read_dir(folder.path()).unwrap().count());
    let read = |path: &PathBuf| {
        let picture = image::open(path).unwrap();
        assert_eq!((picture.width(), picture.height()), (64, 32));
        std::fs::read(path).unwrap()
    };
    files.iter().map(read).collect()
}

#[test]
fn equal_seeds_give_equal_bytes_and_other_seeds_do_not() {
    let one = pictures(&["--seed", "7"]);
    assert_eq!(one, pictures(&["--seed", "7"]));
    assert_ne!(one, pictures(&["--seed", "8"]));
}

#[test]
fn each_prompt_gets_as_many_images_as_are_asked_for() {
    let many = pictures(&["--prompt", "another", "--count", "3"]);
    assert_eq!(many.len(), 6);
    assert!((1..6).all(|i| !many[..i].contains(&many[i])), "two images are the same");
}

#[test]
fn a_prompt_and_its_ids_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let ids = Tokenizers::open(MODEL, T5_TOKENS).unwrap().tokenize("a red circle on white").unwrap();
    let row = |ids: Vec<i64>| {
        let length = ids.len();
        TensorData::new(ids, [1, length])
    };
    let content = vec![("clip", row(ids.clip)), ("t5", row(ids.t5))];
    let file = write(&folder.path().join("ids.safetensors"), content);
    assert_eq!(pictures(&["--prompt-ids", &file]), pictures(&[]));
}

#[test]
fn scales_apply_to_adapters_and_several_add_up() {
    let [half, none] = ["0.5", "0"].map(|scale| format!("{}@{scale}", *LORA));
    let plain = pictures(&[]);
    let full = pictures(&["--lora", &LORA]);
    assert_ne!(full, plain);
    assert_eq!(pictures(&["--lora", &none]), plain);
    let halves = pictures(&["--lora", &half]);
    assert!(halves != plain && halves != full);
    // Twice a half is one, up to rounding: no pixel may be off by more than one level.
    let pixels = |bytes: &[u8]| image::load_from_memory(bytes).unwrap().into_rgb8().into_raw();
    let twice = pictures(&["--lora", &half, "--lora", &half]);
    let pairs = pixels(&twice[0]).into_iter().zip(pixels(&full[0]));
    assert!(pairs.into_iter().all(|(one, other)| one.abs_diff(other) <= 1));
}

#[test]
fn a_negative_prompt_changes_the_image() {
    let negative = ["--negative-prompt", "a blue square"];
    assert_ne!(pictures(&negative), pictures(&[]));
    // At a guidance scale of one the negative prompt has no effect.
    let one = pictures(&[&negative[..], &["--true-guidance", "1"]].concat());
    let pixels = |bytes: &[u8]| image::load_from_memory(bytes).unwrap().into_rgb8().into_raw();
    let pairs = pixels(&one[0]).into_iter().zip(pixels(&pictures(&[])[0]));
    assert!(pairs.into_iter().all(|(one, other)| one.abs_diff(other) <= 1));
}

#[test]
fn existing_images_are_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().to_str().unwrap();
    let arguments = ["generate", "--model", MODEL, "--prompt", "p", "--width", "32", "--height", "32", "--steps", "1"];
    let names = [0, 1].map(|_| succeeds(&[&arguments[..], &["--output", output]].concat()).0);
    assert_eq!(names, ["0000.png", "0001.png"].map(|name| format!("{output}/{name}\n")));
}

#[test]
fn wrong_sizes_ids_and_noise_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let latents = folder.path().join("latents.safetensors");
    let start = ["generate", "--model", MODEL, "--latents", latents.to_str().unwrap()];
    let said = |more: &[&str]| {
        let said = fails(&[&start[..], more].concat());
        assert!(!latents.exists(), "{more:?}");
        said
    };
    let text = ["--prompt", "p", "--steps", "1", "--width", "64", "--height", "64"];
    let with_text = |more: &[&str]| said(&[&text[..], more].concat());
    for (option, size, near) in [("--width", "100", "96"), ("--height", "0", "16"), ("--width", "65", "64")] {
        let answer = said(&["--prompt", "p", option, size]);
        assert!(answer.contains(&format!("{size} is not a multiple of 16")), "{answer}");
        assert!(answer.contains(&option[2..]) && answer.contains(&format!("hint: use {near}")), "{answer}");
    }
    for (option, value) in [("--steps", "0"), ("--count", "0")] {
        let answer = said(&["--prompt", "p", option, value]);
        assert!(answer.contains(option), "{answer}");
    }

    let ids = |length: usize, value: i64| TensorData::new(vec![value; length], [1, length]);
    let file = |name: &str, content| write(&folder.path().join(name), content);
    for (name, content, problem) in [
        ("flat", vec![("clip", TensorData::new(vec![1i64; 77], [77])), ("t5", ids(8, 1))], "`clip` has shape [77]"),
        ("lacking", vec![("clip", ids(77, 1))], "tensor `t5` is missing"),
        ("rows", vec![("clip", ids(77, 1)), ("t5", TensorData::new(vec![1i64; 16], [2, 8]))], "1 rows, `t5` has 2"),
        ("long", vec![("clip", ids(78, 1)), ("t5", ids(8, 1))], "`clip`"),
        ("empty", vec![("clip", ids(77, 1)), ("t5", ids(0, 1))], "`t5`"),
        ("beyond", vec![("clip", ids(77, 1)), ("t5", ids(8, 1 << 20))], "`t5`"),
        ("below", vec![("clip", ids(77, -1)), ("t5", ids(8, 1))], "`clip`"),
    ] {
        let file = file(name, content);
        let answer = said(&["--prompt-ids", &file, "--width", "64", "--height", "64", "--steps", "1"]);
        assert!(answer.contains(&file) && answer.contains(problem), "{name}: {answer}");
    }
    let zeros = |shape: [usize; 4]| TensorData::zeros::<f32, _>(shape);
    for (name, content, problem) in [
        ("none", vec![("other", zeros([1, 16, 8, 8]))], "tensor `noise` is missing"),
        ("channels", vec![("noise", zeros([1, 4, 8, 8]))], "expected [images, 16, even, even]"),
        ("batch", vec![("noise", zeros([2, 16, 8, 8]))], "expected [1, 16, 8, 8]"),
        ("odd", vec![("noise", zeros([1, 16, 7, 8]))], "expected [images, 16, even, even]"),
    ] {
        let file = file(name, content);
        let answer = with_text(&["--noise", &file]);
        assert!(answer.contains(&file) && answer.contains(problem), "{name}: {answer}");
    }
    let short = file("short", vec![("clip", ids(77, 1)), ("t5", ids(8, 1))]);
    let answer = said(&["--prompt-ids", &short, "--negative-prompt", "n"]);
    assert!(
        answer.contains(&format!("{short}: `t5` has 8 ids for a prompt, the negative prompt {T5_TOKENS}")),
        "{answer}"
    );
    let answer = with_text(&["--lora", &format!("{}@1e38", *LORA)]);
    assert!(answer.contains("latents.safetensors: would hold values that are not finite"), "{answer}");
    assert!(kiln(&[&start[..], &text].concat()).status.success());
}

#[test]
fn the_images_of_a_folder_are_not_all_made_together() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = folder.path().join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    for number in 0..17 {
        draw(&pictures.join(format!("{number}.png")), 32, 32, number);
    }
    for (name, model) in [("flux", MODEL.to_string()), ("sd", model(MAKES))] {
        let output = folder.path().join(name);
        let start = ["generate", "--model", &model, "--prompt", "p", "--steps", "1", "--strength", "1"];
        let files = ["--image", pictures.to_str().unwrap(), "--output", output.to_str().unwrap()];
        let (out, said) = succeeds(&[&start[..], &files].concat());
        assert_eq!(out.lines().count(), 17);
        assert!((2..=17).contains(&said.matches("denoising: 1/1").count()), "{said}");
    }
}

#[test]
fn initial_images_and_masks_give_the_output_of_diffusers() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for class in ["FluxPipeline", MAKES] {
        for golden in goldens(class) {
            let pipeline: Box<dyn Pipeline> = match class {
                MAKES => {
                    Box::new(StableDiffusionPipeline::open(&golden.model, &Device::flex(), FloatDType::F32).unwrap())
                }
                _ => Box::new(FluxPipeline::open(&golden.model, &Device::flex(), FloatDType::F32).unwrap()),
            };
            for section in ["pipe.img2img", "pipe.inpaint"] {
                let of = |name: &str| format!("{section}.{name}");
                let number = |key: &str| golden.section(section)[key].as_f64().unwrap();
                let latents = start(&golden, section, &*pipeline).unwrap().latents.into_data();
                let latents = write(&at("in.safetensors"), vec![("latents", latents)]);
                let noise = golden.tensor::<4>(&of("noise.1")).into_data();
                let noise = write(&at("noise.safetensors"), vec![("noise", noise)]);
                // The goldens' prompts: of FLUX.1 the first of two, of Stable Diffusion the second.
                let row = |name: &str, row: usize| {
                    let length = golden.shape(name)[1];
                    TensorData::new(golden.ids(name)[row * length..(row + 1) * length].to_vec(), [1, length])
                };
                let ids = match class {
                    MAKES => vec![("clip", row("clip.input_ids", 1))],
                    _ => vec![("clip", row("clip.input_ids", 0)), ("t5", row("t5.input_ids", 0))],
                };
                let ids = write(&at("ids.safetensors"), ids);
                let [steps, guidance, strength] =
                    ["num_inference_steps", "guidance_scale", "strength"].map(|key| number(key).to_string());
                let out = at("out.safetensors");
                let mut arguments = vec!["generate", "--model", golden.model.to_str().unwrap(), "--prompt-ids", &ids];
                arguments.extend(["--latents-in", &latents, "--noise", &noise, "--steps", &steps]);
                arguments.extend(["--guidance", &guidance, "--strength", &strength]);
                arguments.extend(["--latents", out.to_str().unwrap()]);
                let mask = at("mask.png");
                if golden.has(&of("mask_image")) {
                    let (size, values) = (golden.shape(&of("mask_image")), golden.floats(&of("mask_image")));
                    let pixel = |x: u32, y: u32| Luma([(values[y as usize * size[3] + x as usize] * 255.0) as u8]);
                    GrayImage::from_fn(size[3] as u32, size[2] as u32, pixel).save(&mask).unwrap();
                    arguments.extend(["--mask", mask.to_str().unwrap()]);
                }
                succeeds(&arguments);
                let [(_, found)] = tensors(&out).try_into().unwrap();
                golden.check_data(&of("output"), found);
            }
        }
    }
}

#[test]
fn a_model_of_stable_diffusion_makes_images_of_its_own_size() {
    let folder = tempfile::tempdir().unwrap();
    let [one, two, other] = ["one", "two", "other"].map(|name| folder.path().join(name));
    let make = |output: &PathBuf, more: &[&str]| {
        let model = model(MAKES);
        let start = ["generate", "--model", &model, "--prompt", "a cat", "--steps", "2"];
        succeeds(&[&start[..], &["--output", output.to_str().unwrap()], more].concat());
        std::fs::read(output.join("0000.png")).unwrap()
    };
    assert_eq!(make(&one, &[]), make(&two, &[]));
    assert_eq!(image::image_dimensions(one.join("0000.png")).unwrap(), (64, 64));
    let plain = make(&one, &[]);
    for more in
        [&["--seed", "1"][..], &["--scheduler", "euler_ancestral"], &["--guidance", "2"], &["--negative-prompt", "x"]]
    {
        let _ = std::fs::remove_dir_all(&other);
        assert!(make(&other, more) != plain, "{more:?}");
    }
    let _ = std::fs::remove_dir_all(&other);
    make(&other, &["--width", "72", "--height", "40"]);
    assert_eq!(image::image_dimensions(other.join("0000.png")).unwrap(), (72, 40));
}

#[test]
fn latents_that_were_written_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let text = ["--prompt", "p", "--steps", "2"];
    let size = ["--width", "48", "--height", "32"];
    for model in [MODEL.to_string(), model(MAKES)] {
        let start = [&["generate", "--model", &model][..], &text].concat();
        succeeds(&[&start[..], &size, &["--latents", first.to_str().unwrap()]].concat());
        let again = ["--latents-in", first.to_str().unwrap(), "--latents", second.to_str().unwrap()];
        let flux = model == MODEL;
        let again = [&start[..], if flux { &size[..] } else { &[] }, &again].concat();
        succeeds(&again);
        let shape = |path| tensors(path)[0].1.shape.clone();
        assert_eq!(shape(&first), shape(&second));
        if flux {
            let without_size: Vec<_> = again.iter().filter(|a| !size.contains(a)).copied().collect();
            let said = fails(&without_size);
            assert!(said.contains("6 tokens") && said.contains("hint: give the size"), "{said}");
        }
    }
}

#[test]
fn options_that_a_model_does_not_support_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let picture = draw(&folder.path().join("picture.png"), 40, 24, 0);
    let mask = draw(&folder.path().join("mask.png"), 16, 16, 0);
    let (flux, makes, edits) = (MODEL.to_string(), model(MAKES), model(EDITS));
    // Of a model that cannot be loaded: what is wrong with the rest is found before.
    let cut = folder.path().join("cut").to_str().unwrap().to_string();
    copy(&makes, &cut);
    truncate(folder.path().join("cut/text_encoder/model.safetensors"));
    // The same of a transformer, beside a VAE of another model.
    let mixed = folder.path().join("mixed").to_str().unwrap().to_string();
    copy(&flux, &mixed);
    truncate(folder.path().join("mixed/transformer/diffusion_pytorch_model.safetensors"));
    std::fs::copy(format!("{makes}/vae/config.json"), folder.path().join("mixed/vae/config.json")).unwrap();
    let numbers = || TensorData::zeros::<f32, _>([1, 4, 4, 4]);
    let noise = write(&folder.path().join("noise"), vec![("noise", numbers())]);
    let latents = write(&folder.path().join("latents"), vec![("latents", numbers())]);
    let broken = format!("{}@1e38", *LORA);
    for (model, more, wanted) in [
        (&flux, &["--scheduler", "ddim"][..], "`--scheduler`: is not supported by FLUX.1"),
        (&makes, &["--negative-prompt", "x", "--true-guidance", "2"], "hint: use `--guidance`"),
        (&makes, &["--image-guidance", "2"], "`--image-guidance`: is not supported by Stable Diffusion"),
        (&makes, &["--scaled-condition"], "`--scaled-condition`: is not supported by Stable Diffusion"),
        (&cut, &[], "text_encoder"),
        (&cut, &["--steps", "0"], "`--steps`: must be at least 1"),
        (&cut, &["--steps", "2000"], "`--steps`: 2000 steps"),
        (&cut, &["--guidance=-1"], "`--guidance`: must be a number of at least 0, not -1"),
        (
            &flux,
            &["--negative-prompt", "n", "--true-guidance", "nan"],
            "`--true-guidance`: must be a number of at least 0, not NaN",
        ),
        (
            &cut,
            &["--noise", &noise, "--width", "40"],
            "`--width`: is 40, but the initial image, latents or noise have 32",
        ),
        (&cut, &["--latents-in", &latents, "--height", "40"], "`--height`: is 40"),
        (
            &flux,
            &["--lora", &broken, "--width", "32", "--height", "32", "--steps", "1"],
            "`generated image 1 of 1`: would hold",
        ),
        (&cut, &["--width", "50"], "50 is not a multiple of 8"),
        (&cut, &["--image", &picture, "--strength", "0"], "`--strength`: 0 is not above 0"),
        (&cut, &["--image", &picture, "--steps", "4", "--strength", "0.1"], "leaves none of the 4 steps"),
        (&cut, &["--image", &picture, "--mask", &mask], "the mask is 16 × 16 pixels, the image 40 × 24"),
        (&cut, &["--image", "no/such.png"], "no/such.png"),
        (&cut, &["--lora", &LORA], "the model has no such layer"),
        (&edits, &[], "unet/config.json: `in_channels` is 8"),
        (&mixed, &[], "the VAE has 4 latent channels, the transformer takes 64 features per token"),
    ] {
        let start = ["generate", "--model", model, "--prompt", "p", "--output", output.to_str().unwrap()];
        let said = fails(&[&start[..], more].concat());
        assert!(said.contains(wanted), "{more:?}: {said}");
        assert!(!output.exists(), "{more:?}");
    }
    let nowhere = folder.path().join("none/latents.safetensors");
    let said = fails(&["generate", "--model", &cut, "--prompt", "p", "--latents", nowhere.to_str().unwrap()]);
    assert!(said.contains("none: there is no such folder"), "{said}");
}

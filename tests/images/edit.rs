//! `kiln edit`: the latents of diffusers, what seeds and batches mean, and images of every size.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, FloatDType, TensorData};
use image::{ImageEncoder, Rgb, RgbImage, codecs::jpeg::JpegEncoder};
use kiln::pipelines::InstructPix2PixPipeline;

use crate::support::{
    goldens,
    program::{MODEL, copy, fails, succeeds, tensors, truncate},
    sampling::{EDITS, MAKES, draw, model, same_picture, write},
};

/// Edits into `output` in few steps; returns the files printed.
fn edit(output: &Path, more: &[&str]) -> Vec<PathBuf> {
    let model = model(EDITS);
    let start = ["edit", "--model", &model, "--steps", "3", "--output", output.to_str().unwrap()];
    let text: &[&str] = if more.contains(&"--prompt-ids") { &[] } else { &["--instruction", "make it snowy"] };
    let (out, _) = succeeds(&[&start[..], text, more].concat());
    out.lines().map(PathBuf::from).collect()
}

#[test]
fn latents_noise_and_ids_of_a_golden_give_its_latents() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let section = "pipe.ip2p_dpmpp"; // a sampler that adds no noise of its own
    for golden in goldens(EDITS) {
        let of = |name: &str| format!("{section}.{name}");
        let pipeline = InstructPix2PixPipeline::open(&golden.model, &Device::flex(), FloatDType::F32).unwrap();
        let raw = pipeline.vae.encode(golden.tensor::<4>(&of("image")) * 2.0 - 1.0).mode();
        let latents = pipeline.vae.latent_scale().normalize(raw).into_data();
        let latents = write(&at("in.safetensors"), vec![("latents", latents)]);
        let noise = write(&at("noise.safetensors"), vec![("noise", golden.tensor::<4>(&of("latents")).into_data())]);
        let length = golden.shape("clip.input_ids")[1];
        let ids = TensorData::new(golden.ids("clip.input_ids")[length..2 * length].to_vec(), [1, length]);
        let ids = write(&at("ids.safetensors"), vec![("clip", ids)]);
        let number = |key: &str| golden.section(section)[key].as_f64().unwrap().to_string();
        let numbers = ["num_inference_steps", "guidance_scale", "image_guidance_scale"].map(number);
        let out = at("out.safetensors");
        let mut arguments = vec!["edit", "--model", golden.model.to_str().unwrap(), "--prompt-ids", &ids];
        arguments.extend(["--latents-in", &latents, "--noise", &noise, "--scheduler", "dpm_solver_karras"]);
        arguments.extend(["--steps", &numbers[0], "--guidance", &numbers[1], "--image-guidance", &numbers[2]]);
        arguments.extend(["--latents", out.to_str().unwrap()]);
        succeeds(&arguments);
        let [(name, found)] = tensors(&out).try_into().unwrap();
        assert_eq!(name, "latents");
        golden.check_data(&of("output"), found);
    }
}

#[test]
fn equal_seeds_give_equal_bytes_and_other_seeds_guidance_or_samplers_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let picture = draw(&folder.path().join("picture.png"), 64, 48, 0);
    let bytes = |name: &str, more: &[&str]| {
        let files = edit(&folder.path().join(name), &[&["--image", &picture], more].concat());
        assert_eq!(files, [folder.path().join(name).join("picture.png")]);
        std::fs::read(&files[0]).unwrap()
    };
    let one = bytes("one", &["--seed", "7"]);
    assert!(bytes("again", &["--seed", "7"]) == one);
    for (name, more) in [
        ("seed", &["--seed", "8"][..]),
        ("text", &["--seed", "7", "--guidance", "3"]),
        ("image", &["--seed", "7", "--image-guidance", "3"]),
        ("sampler", &["--seed", "7", "--scheduler", "ddim"]),
        ("negative", &["--seed", "7", "--negative-prompt", "rain"]),
        ("scaled", &["--seed", "7", "--scaled-condition"]),
    ] {
        assert!(bytes(name, more) != one, "{name}");
    }
}

#[test]
fn a_folder_is_edited_as_its_images_are_alone_and_every_size_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = folder.path().join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    let sizes = [(64, 48), (64, 48), (300, 200), (21, 90), (64, 48)];
    let names: Vec<String> = (0..sizes.len()).map(|i| format!("{i}.png")).collect();
    for (i, ((width, height), name)) in sizes.into_iter().zip(&names).enumerate() {
        draw(&pictures.join(name), width, height, i as u32);
    }
    std::fs::write(pictures.join("notes.txt"), "not an image").unwrap();
    let together = folder.path().join("together");
    let files = edit(&together, &["--image", pictures.to_str().unwrap(), "--batch-size", "2"]);
    assert_eq!(files.len(), sizes.len());
    let alone = folder.path().join("alone");
    for (size, name) in sizes.into_iter().zip(&names) {
        edit(&alone, &["--image", pictures.join(name).to_str().unwrap()]);
        assert_eq!(image::image_dimensions(alone.join(name)).unwrap(), size);
        same_picture(&alone.join(name), &together.join(name));
    }
}

#[test]
fn a_turned_photo_is_edited_as_it_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    // A dark and a light half, of whole blocks of JPEG, which then changes nothing. A quarter turn to the right brings what is
    // at the left to the top.
    let shade = |first: bool| if first { Rgb([40, 40, 40]) } else { Rgb([200, 200, 200]) };
    let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let output = folder.path().join("out");
    for (name, picture, exif) in [
        ("turned.jpg", RgbImage::from_fn(48, 32, |x, _| shade(x < 24)), Some(exif)),
        ("upright.jpg", RgbImage::from_fn(32, 48, |_, y| shade(y < 24)), None),
    ] {
        let path = folder.path().join(name);
        let mut encoder = JpegEncoder::new_with_quality(std::fs::File::create(&path).unwrap(), 100);
        if let Some(exif) = exif {
            encoder.set_exif_metadata(exif.to_vec()).unwrap();
        }
        let (width, height) = picture.dimensions();
        encoder.write_image(&picture, width, height, image::ExtendedColorType::Rgb8).unwrap();
        edit(&output, &["--image", path.to_str().unwrap()]);
    }
    same_picture(&output.join("turned.jpg"), &output.join("upright.jpg"));
    assert_eq!(image::image_dimensions(output.join("turned.jpg")).unwrap(), (32, 48));
}

#[test]
fn several_instructions_make_several_images_and_none_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let picture = draw(&folder.path().join("a.png"), 32, 32, 0);
    let output = folder.path().join("out");
    let more = ["--image", &picture, "--instruction", "make it night", "--count", "2"];
    let files = edit(&output, &more);
    let names = ["a.png", "a-2.png", "a-3.png", "a-4.png"].map(|name| output.join(name));
    assert_eq!(files, names);
    let bytes: Vec<_> = names.iter().map(|name| std::fs::read(name).unwrap()).collect();
    assert!((1..4).all(|i| !bytes[..i].contains(&bytes[i])), "two images are the same");
}

#[test]
fn an_image_and_its_latents_are_edited_alike_and_edits_can_be_edited() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let picture = draw(&at("picture.png"), 64, 48, 0);
    let pipeline = InstructPix2PixPipeline::open(model(EDITS), &Device::flex(), FloatDType::F32).unwrap();
    let raw = kiln::pipelines::Pipeline::encode(&pipeline, &[image::open(&picture).unwrap().into_rgb8()]).mode();
    let latents = pipeline.vae.latent_scale().normalize(raw).into_data();
    let latents = write(&at("picture.safetensors"), vec![("latents", latents)]);
    let from_picture = edit(&at("one"), &["--image", &picture]);
    let from_latents = edit(&at("two"), &["--latents-in", &latents]);
    assert_eq!(from_latents, [at("two").join("0000.png")]);
    same_picture(&from_picture[0], &from_latents[0]);

    let [first, second] = ["first", "second"].map(|name| at(name).to_str().unwrap().to_string());
    let model = model(EDITS);
    let start = ["edit", "--model", &model, "--steps", "2", "--instruction", "make it snowy"];
    succeeds(&[&start[..], &["--image", &picture, "--latents", &first]].concat());
    succeeds(&[&start[..], &["--latents-in", &first, "--latents", &second]].concat());
    let shape = |path: &str| tensors(path)[0].1.shape.clone();
    assert_eq!((shape(&first).to_vec(), shape(&second).to_vec()), (vec![1, 4, 6, 8], vec![1, 4, 6, 8]));
}

#[test]
fn wrong_models_files_and_numbers_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let picture = draw(&at("picture.png"), 64, 48, 0);
    let output = at("out");
    std::fs::create_dir(at("empty")).unwrap();
    std::fs::create_dir(at("mixed")).unwrap();
    draw(&at("mixed").join("a.png"), 64, 48, 0);
    draw(&at("mixed").join("b.png"), 32, 48, 0);
    std::fs::write(at("broken.png"), &std::fs::read(&picture).unwrap()[..60]).unwrap();
    copy(model(EDITS), at("kind"));
    let index = std::fs::read_to_string(at("kind").join("model_index.json")).unwrap();
    std::fs::write(at("kind").join("model_index.json"), index.replace(EDITS, "StableDiffusionXLPipeline")).unwrap();
    copy(model(EDITS), at("inpaints"));
    let config = std::fs::read_to_string(at("inpaints").join("unet/config.json")).unwrap();
    let config = config.replace("\"in_channels\": 8", "\"in_channels\": 9");
    std::fs::write(at("inpaints").join("unet/config.json"), config).unwrap();
    // Of a model that cannot be loaded: what is wrong with the rest is found before.
    copy(model(EDITS), at("cut"));
    truncate(at("cut").join("text_encoder/model.safetensors"));
    let noise = write(&at("noise"), vec![("noise", TensorData::zeros::<f32, _>([1, 4, 5, 5]))]);
    let latents = write(&at("latents"), vec![("latents", TensorData::zeros::<f32, _>([1, 16, 6, 8]))]);
    let ids = write(&at("ids"), vec![("clip", TensorData::new(vec![1i64; 78], [1, 78]))]);
    let short = write(&at("short"), vec![("clip", TensorData::new(vec![1i64; 20], [1, 20]))]);
    let [kind, inpaints, cut, empty, mixed, broken] =
        ["kind", "inpaints", "cut", "empty", "mixed", "broken.png"].map(|name| at(name).to_str().unwrap().to_string());
    let (edits, makes) = (model(EDITS), model(MAKES));
    let image = ["--image", &picture];
    for (model, more, wanted) in [
        (makes.as_str(), &image[..], "unet/config.json: `in_channels` is 4"),
        (MODEL, &image, "FLUX.1 does not edit by instruction"),
        (&kind, &image, "`_class_name` is StableDiffusionXLPipeline"),
        (&inpaints, &image, "unet/config.json: `in_channels` is 9: to read an image"),
        (&edits, &["--image", &empty], "no images"),
        (&edits, &["--image", &broken], "broken.png"),
        (&cut, &image, "text_encoder"),
        (&cut, &["--image", "no/such.png"], "no/such.png"),
        (&cut, &["--image", &picture, "--instruction", ""], "`--instruction`: is empty"),
        (&edits, &["--image", &mixed, "--noise", &noise], "2 different sizes"),
        (&edits, &["--latents-in", &latents], "expected [images, 4, height, width]"),
        (&edits, &["--image", &picture, "--noise", &noise], "expected [1, 4, 6, 8]"),
        (&edits, &["--image", &picture, "--steps", "0"], "`--steps`: must be at least 1"),
        (&cut, &["--image", &picture, "--steps", "2000"], "`--steps`: 2000 steps"),
        (&edits, &["--image", &picture, "--batch-size", "0"], "`--batch-size`: must be at least 1"),
        (&edits, &["--image", &picture, "--count", "0"], "`--count`: must be at least 1"),
        (&edits, &["--image", &picture, "--prompt-ids", &ids], "`clip` has 78 ids"),
        (&edits, &["--image", &picture, "--prompt-ids", &short], "short: `clip` has 20 ids"),
    ] {
        let mut arguments = vec!["edit", "--model", model, "--output", output.to_str().unwrap()];
        if !more.contains(&"--prompt-ids") {
            arguments.extend(["--instruction", "make it snowy"]);
        }
        let said = fails(&[&arguments[..], more].concat());
        assert!(said.contains(wanted), "{more:?}: {said}");
        assert!(!output.exists(), "{more:?}");
    }
}

//! What the goldens of all pipelines have in common.

use std::{collections::BTreeMap, path::Path};

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use image::{Rgb, RgbImage};
use kiln::{
    models::text::PromptEmbeds,
    pipelines::{Pipeline, StableDiffusionPipeline, Start},
    schedulers::SchedulerName,
    weights::write_tensors,
};

use super::{Golden, goldens};

/// The class of models that edit.
pub const EDITS: &str = "StableDiffusionInstructPix2PixPipeline";

/// The class of models that generate images from text.
pub const MAKES: &str = "StableDiffusionPipeline";

/// The folder of the first tiny model of a class.
pub fn model(class: &str) -> String {
    goldens(class)[0].model.to_str().unwrap().into()
}

/// The pipeline of a golden, with the sampler of a section.
pub fn open(golden: &Golden, section: &str) -> StableDiffusionPipeline {
    let mut pipeline = StableDiffusionPipeline::open(&golden.model, &Device::flex(), FloatDType::F32).unwrap();
    if section.ends_with("_dpmpp") {
        pipeline.scheduler = pipeline.scheduler.with_name(SchedulerName::DpmSolverKarras);
    }
    pipeline
}

/// The embeddings of a section, `negative_` or not. Stable Diffusion reads no pooled ones.
pub fn embeds(golden: &Golden, section: &str, kind: &str) -> PromptEmbeds {
    let prompt: Tensor<3> = golden.tensor(&format!("{section}.{kind}prompt_embeds"));
    PromptEmbeds { pooled: Tensor::zeros([prompt.dims()[0], 1], &Device::flex()), prompt }
}

/// Writes tensors to a file; returns its path.
pub fn write(path: &Path, content: Vec<(&str, TensorData)>) -> String {
    let content: BTreeMap<_, _> = content.into_iter().map(|(name, data)| (name.to_string(), data)).collect();
    write_tensors(path, &content, &BTreeMap::new()).unwrap();
    path.to_str().unwrap().to_string()
}

/// A smooth image, a little different for each `number`; returns its path.
pub fn draw(path: &Path, width: u32, height: u32, number: u32) -> String {
    let level = |at: u32, side: u32| (at * 255 / side) as u8;
    let pixel = |x, y| Rgb([level(x, width), level(y, height), (number * 40 + x + y) as u8]);
    RgbImage::from_fn(width, height, pixel).save(path).unwrap();
    path.to_str().unwrap().into()
}

/// Asserts that two images are the same but for rounding: no pixel is off by more than one level.
#[track_caller]
pub fn same_picture(one: &Path, other: &Path) {
    let open = |path| image::open(path).unwrap().into_rgb8();
    let (one, other) = (open(one), open(other));
    assert_eq!(one.dimensions(), other.dimensions());
    assert!(one.as_raw().iter().zip(other.as_raw()).all(|(a, b)| a.abs_diff(*b) <= 1));
}

/// The image, posterior noise, strength and mask of a section, if it starts from an image.
pub fn start(golden: &Golden, section: &str, pipeline: &dyn Pipeline) -> Option<Start> {
    let of = |name: &str| format!("{section}.{name}");
    let strength = golden.section(section)["strength"].as_f64()?;
    let moments = pipeline.vae().encode(golden.tensor::<4>(&of("image")) * 2.0 - 1.0);
    let latents = pipeline.vae().latent_scale().normalize(moments.sample(golden.tensor(&of("noise.0"))));
    let mask = golden.has(&of("mask_image")).then(|| {
        // As diffusers downscales it: the first of the pixels of each latent pixel.
        let [_, _, height, width] = latents.dims();
        let whole = golden.floats(&of("mask_image"));
        let factor = pipeline.vae().downsampling();
        let pixel = |row: usize, column: usize| whole[row * factor * width * factor + column * factor];
        let places = (0..height).flat_map(|row| (0..width).map(move |column| (row, column)));
        let values: Vec<f32> = places.map(|(row, column)| pixel(row, column)).collect();
        Tensor::from_data(TensorData::new(values, [1, 1, height, width]), pipeline.device())
    });
    Some(Start { latents, strength, mask })
}

/// Asserts that scaled latents give the golden's image, as numbers and as bytes.
#[track_caller]
pub fn check_picture(golden: &Golden, name: &str, pipeline: &dyn Pipeline, latents: Tensor<4>) {
    let raw = pipeline.vae().latent_scale().denormalize(latents.clone());
    golden.check(name, ((pipeline.vae().decode(raw) + 1.0) / 2.0).clamp(0.0, 1.0));
    let picture = pipeline.decode(latents).unwrap().remove(0);
    let want: Tensor<4> = golden.tensor(name);
    assert_eq!([1, 3, picture.height() as usize, picture.width() as usize], want.dims());
    let want: Vec<f32> = want.permute([0, 2, 3, 1]).into_data().into_vec().unwrap();
    for (got, want) in picture.as_raw().iter().zip(want) {
        assert!((f32::from(*got) - want * 255.0).abs() < 0.51, "{name}: {got} for {}", want * 255.0);
    }
}

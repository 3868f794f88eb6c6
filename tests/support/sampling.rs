//! What the goldens of all pipelines have in common.

use burn::tensor::{Tensor, TensorData};
use kiln::pipelines::{Pipeline, Start};

use super::Golden;

/// The picture, posterior noise, strength and mask of a section, if it starts from a picture.
pub fn start(golden: &Golden, section: &str, pipeline: &dyn Pipeline) -> Option<Start> {
    let of = |name: &str| format!("{section}.{name}");
    let strength = golden.section(section)["strength"].as_f64()?;
    let moments = pipeline.vae().encode(golden.tensor::<4>(&of("image")) * 2.0 - 1.0);
    let latents = pipeline.vae().latent_scale().normalize(moments.sample(golden.tensor(&of("noise.0"))));
    let mask = golden.has(&of("mask_image")).then(|| {
        // As diffusers makes it smaller: the first of the pixels that a latent pixel stands for.
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

/// Asserts that scaled latents give the golden's picture, as numbers and as bytes.
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

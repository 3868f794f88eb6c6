//! The quickstart as a user sees it: with the adapter the images at held-out prompts are in the second style, without it they
//! are not, and each still shows its own thing.
//!
//! Icons of the second style are in blue ink. So what is measured is how much redder than blue a pixel is, which in blue ink none
//! is, and how much darker than white.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
};

use image::RgbImage;

use crate::support::{
    program::{succeeds, workshop},
    snapshot::{assert_output, without_folders, without_numbers},
};

const CONFIG: &str = "configs/quickstart.toml";

/// Prompts and seeds of the quickstart's grid.
const PROMPTS: usize = 4;
const SEEDS: usize = 2;

/// Side of an image, and the margin about it.
const SIDE: u32 = 64;
const MARGIN: u32 = 4;

/// The folder of this test.
static WORKSHOP: LazyLock<PathBuf> = LazyLock::new(|| workshop("style"));

/// The images without and with the adapter, prompt by prompt and seed by seed, at the end of the quickstart.
static PAIRS: LazyLock<Vec<[RgbImage; 2]>> = LazyLock::new(|| {
    let workshop = &*WORKSHOP;
    let output = format!("run.output='{}'", workshop.join("runs").display());
    let cache = format!("data.cache='{}'", workshop.join("cache").display());
    let settings = ["--set", &output, "--set", &cache, "--set", "validation.every=0"];
    let (out, _) = succeeds(&[&["train", "--config", CONFIG], &settings[..]].concat());
    let samples = Path::new(out.lines().last().unwrap()).join("samples");
    let last = std::fs::read_dir(samples).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    let grid = image::open(last).unwrap().into_rgb8();
    let cell = |row: usize, column: usize| {
        let at = |i: usize| MARGIN + i as u32 * (SIDE + MARGIN);
        image::imageops::crop_imm(&grid, at(column), at(row), SIDE, SIDE).to_image()
    };
    let places = (0..PROMPTS).flat_map(|row| (0..SEEDS).map(move |seed| (row, 2 * seed)));
    places.map(|(row, column)| [cell(row, column), cell(row, column + 1)]).collect()
});

/// The mean of a value over all pixels.
fn mean(image: &RgbImage, of: impl Fn([f64; 3]) -> f64) -> f64 {
    let all = image.pixels().map(|pixel| of(pixel.0.map(|channel| f64::from(channel) / 255.0)));
    all.sum::<f64>() / f64::from(image.width() * image.height())
}

/// How much redder than blue.
fn warmth([r, _, b]: [f64; 3]) -> f64 {
    (r - b).max(0.0)
}

/// How much darker than white.
fn ink([r, g, b]: [f64; 3]) -> f64 {
    1.0 - (r + g + b) / 3.0
}

/// For the drawings of a folder: the minimum and maximum of their ink, and the maximum of their warmth.
fn drawings(folder: &str) -> [f64; 3] {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let images = paths.filter(|path| path.extension().is_some_and(|kind| kind == "png"));
    images.map(|path| image::open(path).unwrap().into_rgb8()).fold([1.0, 0.0, 0.0], |[least, most, warm], image| {
        let amount = mean(&image, ink);
        [amount.min(least), amount.max(most), mean(&image, warmth).max(warm)]
    })
}

#[test]
fn the_log_of_the_quickstart_is_what_the_snapshot_shows() {
    let output = format!("run.output='{}'", WORKSHOP.join("logged").display());
    let cache = format!("data.cache='{}'", WORKSHOP.join("logged/cache").display());
    let short = ["training.max_steps=20", "checkpoint.every=10", "validation.every=10"];
    let settings = [output.as_str(), &cache].into_iter().chain(short).flat_map(|setting| ["--set", setting]);
    let arguments: Vec<&str> = ["train", "--config", CONFIG, "--ui", "plain"].into_iter().chain(settings).collect();
    let (out, said) = succeeds(&arguments);
    let masked = without_numbers(&without_folders(&said, &WORKSHOP));
    assert_output("quickstart", &format!("{masked}\n── standard output\n{}", without_folders(&out, &WORKSHOP)));
}

#[test]
fn the_adapter_draws_in_blue_ink_and_the_model_does_not() {
    let [least, most, warm] = drawings("datasets/icons");
    assert!(warm < 0.001, "blue ink is never warm: {warm}");
    for (number, [without, with]) in PAIRS.iter().enumerate() {
        let (before, after) = (mean(without, warmth), mean(with, warmth));
        assert!(before > 0.05, "image {number}: the model draws in colors: {before}");
        assert!(after < 0.2 * before, "image {number}: warmth of {before} without the adapter, and of {after} with it");
        let amount = mean(with, ink);
        assert!(amount > 0.7 * least && amount < 1.5 * most, "ink of {amount}, the drawings have {least} to {most}");
    }
}

/// The similarity of the ink of two images: the correlation over all pixels.
fn alike(one: &RgbImage, other: &RgbImage) -> f64 {
    let values = |image: &RgbImage| -> Vec<f64> {
        let middle = mean(image, ink);
        image.pixels().map(|pixel| ink(pixel.0.map(|channel| f64::from(channel) / 255.0)) - middle).collect()
    };
    let (one, other) = (values(one), values(other));
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    product(&one, &other) / (product(&one, &one) * product(&other, &other)).sqrt()
}

#[test]
fn each_image_with_the_adapter_still_shows_what_it_did_without() {
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for (i, [without, _]) in PAIRS.iter().enumerate() {
        for (j, [_, with]) in PAIRS.iter().enumerate() {
            let list = if i / SEEDS == j / SEEDS { &mut own } else { &mut others };
            list.push(alike(without, with));
        }
    }
    let [own, others] = [own, others].map(|list| list.iter().sum::<f64>() / list.len() as f64);
    assert!(own > others + 0.2, "alike by {own} of one prompt, by {others} of two");
}

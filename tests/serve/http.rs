//! `kiln serve` from outside: its three dialects, access control, and hostile input.
#![cfg(unix)]

mod clients;
mod crowd;
mod dialects;
mod doors;
mod hostile;
mod waiting;

use image::RgbImage;

/// Red on the left, blue on the right.
fn halves(width: u32, height: u32) -> Vec<u8> {
    let image =
        RgbImage::from_fn(width, height, |x, _| image::Rgb(if x < width / 2 { [220, 40, 30] } else { [30, 60, 200] }));
    png(image)
}

fn png(image: impl Into<image::DynamicImage>) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn pixels(bytes: &[u8]) -> RgbImage {
    image::load_from_memory(bytes).unwrap().into_rgb8()
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(bytes)
}

fn from_base64(text: &serde_json::Value) -> Vec<u8> {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.decode(text.as_str().unwrap()).unwrap()
}

/// The mean difference of two images, of 255.
fn distance(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let all: u64 = a.iter().zip(b.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    all as f64 / a.as_raw().len() as f64
}

/// Prints a measurement.
fn say(text: impl std::fmt::Display) {
    use std::io::Write;
    _ = writeln!(std::io::stderr(), "{text}");
}

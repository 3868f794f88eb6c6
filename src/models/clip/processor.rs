//! From images to inputs of CLIP's vision model, as in transformers' `CLIPImageProcessor`.

use std::path::Path;

use burn::tensor::TensorData;
use image::{RgbImage, imageops};
use serde::Deserialize;

use crate::{
    error::{Error, Result},
    weights::read_json,
};

/// Scales the shortest side to the model's size, crops to the centre, and normalizes each channel.
#[derive(Clone, Debug)]
pub struct ClipImageProcessor {
    /// The length that the shortest side is scaled to.
    size: u32,
    /// The side of the square crop.
    crop: u32,
    /// Per channel, in [0, 1].
    mean: [f32; 3],
    /// Per channel, in [0, 1].
    deviation: [f32; 3],
}

/// `preprocessor_config.json`; what is missing takes transformers' values.
#[derive(Deserialize)]
#[serde(default)]
struct Config {
    size: Size,
    crop_size: Size,
    image_mean: [f32; 3],
    image_std: [f32; 3],
    resample: u8,
    rescale_factor: f64,
    do_resize: bool,
    do_center_crop: bool,
    do_rescale: bool,
    do_normalize: bool,
}

/// The three forms of a size.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Size {
    Side(u32),
    Shortest { shortest_edge: u32 },
    Rectangle { height: u32, width: u32 },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            size: Size::Side(224),
            crop_size: Size::Side(224),
            image_mean: [0.48145466, 0.4578275, 0.40821073],
            image_std: [0.26862954, 0.261_302_6, 0.275_777_1],
            resample: BICUBIC,
            rescale_factor: 1.0 / 255.0,
            do_resize: true,
            do_center_crop: true,
            do_rescale: true,
            do_normalize: true,
        }
    }
}

/// Pillow's number of the filter.
const BICUBIC: u8 = 3;

impl ClipImageProcessor {
    /// Opens `preprocessor_config.json` of a CLIP model whose images have the side `image_size`.
    ///
    /// # Errors
    /// The file is missing or broken, or its steps are not those of CLIP models, or its size is not that of the model.
    pub fn open(folder: impl AsRef<Path>, image_size: usize) -> Result<Self> {
        let path = folder.as_ref().join("preprocessor_config.json");
        let config: Config = read_json(&path)?;
        Self::new(&config, image_size).map_err(|problem| Error::file(path, problem))
    }

    fn new(config: &Config, image_size: usize) -> std::result::Result<Self, String> {
        let size = match config.size {
            Size::Side(side) | Size::Shortest { shortest_edge: side } => side,
            Size::Rectangle { .. } => return Err("`size` names both sides, expected the shortest".into()),
        };
        let crop = match config.crop_size {
            Size::Side(side) => side,
            Size::Rectangle { height, width } if height == width => width,
            _ => return Err("`crop_size` is not square".into()),
        };
        if crop as usize != image_size || crop > size {
            return Err(format!("`size` {size} and `crop_size` {crop} do not fit images of {image_size} pixels"));
        }
        let steps = config.do_resize && config.do_center_crop && config.do_rescale && config.do_normalize;
        if !steps || config.resample != BICUBIC || (config.rescale_factor * 255.0 - 1.0).abs() > 1e-6 {
            return Err("describes other steps than CLIP models have: bicubic resize, crop, x/255, normalise".into());
        }
        if config.image_std.contains(&0.0) {
            return Err("`image_std` holds a zero".into());
        }
        Ok(Self { size, crop, mean: config.image_mean, deviation: config.image_std })
    }

    /// Images of any sizes → `[B, 3, S, S]`, f32.
    pub fn pixels(&self, pictures: &[&RgbImage]) -> TensorData {
        let side = self.crop as usize;
        let cut: Vec<_> = pictures.iter().map(|picture| self.cut(picture)).collect();
        let values = cut.iter().flat_map(|picture| {
            (0..3).flat_map(move |c| {
                let channel = picture.as_raw().iter().skip(c).step_by(3);
                channel.map(move |&v| (f32::from(v) / 255.0 - self.mean[c]) / self.deviation[c])
            })
        });
        TensorData::new(values.collect::<Vec<f32>>(), [pictures.len(), 3, side, side])
    }

    /// The centre square, after scaling. The filter is Pillow's bicubic one (Catmull–Rom, a = -1/2), widened for downscaling; first along
    /// the rows, then along the columns, rounded to 8 bits after each. Values half way between two of the 255 steps may be rounded the
    /// other way.
    fn cut(&self, picture: &RgbImage) -> RgbImage {
        let (width, height) = picture.dimensions();
        // Rounded down, as in transformers.
        let scaled = |side: u32| (u64::from(self.size) * u64::from(side) / u64::from(width.min(height).max(1))) as u32;
        let (width, height) = (scaled(width), scaled(height));
        let filter = imageops::FilterType::CatmullRom;
        let rows = imageops::resize(picture, width, picture.height(), filter);
        let picture = imageops::resize(&rows, width, height, filter);
        let (left, top) = ((width - self.crop) / 2, (height - self.crop) / 2);
        imageops::crop_imm(&picture, left, top, self.crop, self.crop).to_image()
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn processor(json: &str) -> std::result::Result<ClipImageProcessor, String> {
        ClipImageProcessor::new(&serde_json::from_str(json).unwrap(), 224)
    }

    #[test]
    fn sizes_are_read_in_every_spelling() {
        for json in [
            "{}",
            r#"{"size": 224, "crop_size": 224}"#,
            r#"{"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}"#,
        ] {
            let processor = processor(json).unwrap();
            assert_eq!((processor.size, processor.crop), (224, 224));
        }
    }

    #[test]
    fn other_steps_and_sizes_are_refused_by_name() {
        for (json, named) in [
            (r#"{"size": {"height": 224, "width": 224}}"#, "`size`"),
            (r#"{"size": 200}"#, "`size`"),
            (r#"{"crop_size": {"height": 224, "width": 200}}"#, "`crop_size`"),
            (r#"{"crop_size": 200}"#, "`crop_size`"),
            (r#"{"do_normalize": false}"#, "steps"),
            (r#"{"resample": 2}"#, "bicubic"),
            (r#"{"image_std": [1.0, 0.0, 1.0]}"#, "`image_std`"),
        ] {
            let problem = processor(json).unwrap_err();
            assert!(problem.contains(named), "{json}: {problem}");
        }
    }

    #[test]
    fn the_middle_is_seen_channel_by_channel() {
        let processor = processor(r#"{"image_mean": [0, 0, 0.5], "image_std": [1, 0.5, 0.5]}"#).unwrap();
        // Left to right: black, then a colour, then black; the middle is what stays.
        let colour = |x: u32| if (224..448).contains(&x) { [255, 255, 0] } else { [0; 3] };
        let data = processor.pixels(&[&RgbImage::from_fn(672, 224, |x, _| Rgb(colour(x)))]);
        assert_eq!(data.shape.as_slice(), [1, 3, 224, 224]);
        let values = data.into_vec::<f32>().unwrap();
        let expected = [1.0, 2.0, -1.0];
        for (c, channel) in values.chunks(224 * 224).enumerate() {
            assert!(channel.iter().all(|&v| v == expected[c]));
        }
    }
}

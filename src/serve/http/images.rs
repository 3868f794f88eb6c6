//! Encodings of images: base64 and data URLs in requests, PNG, JPEG and WebP in responses.

use std::io::Cursor;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use image::{
    DynamicImage, GrayImage, ImageFormat, ImageReader, Limits, RgbImage, codecs::jpeg::JpegEncoder,
    codecs::png::PngEncoder, codecs::webp::WebPEncoder, imageops,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    error::{Error, Result},
    panics::guarded,
};

/// base64, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The default quality of a JPEG, from 1 to 100.
pub(super) const QUALITY: u8 = 90;

/// The format of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    /// Lossless.
    #[default]
    Png,
    /// Lossy.
    #[serde(alias = "jpg")]
    Jpeg,
    /// Lossless.
    WebP,
}

impl Format {
    pub fn word(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::WebP => "webp",
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::WebP => "image/webp",
        }
    }
}

/// The bytes of a file in the parameter `field`: base64, or a data URL.
///
/// # Errors
/// It is neither; URLs are never fetched.
pub(super) fn from_text(field: &str, text: &str) -> Result<Vec<u8>> {
    let text = text.trim();
    if text.starts_with("http://") || text.starts_with("https://") {
        return Err(Error::setting(field, "is a URL; this server does not fetch URLs").hint("send the image in base64"));
    }
    let data = match text.strip_prefix("data:") {
        Some(rest) => rest.split_once(";base64,").map(|(_, data)| data),
        None => Some(text),
    };
    data.and_then(|data| BASE64.decode(data).ok())
        .filter(|bytes| !bytes.is_empty())
        .ok_or_else(|| Error::setting(field, "is not an image in base64"))
}

/// Bytes as base64.
pub(super) fn to_text(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// Decodes a PNG, JPEG or WebP of at most `most_pixels`; the size is checked from the header before memory is allocated.
///
/// # Errors
/// It is not such an image, is damaged, or is too large.
pub(super) fn decode(field: &str, bytes: &[u8], most_pixels: u64) -> Result<DynamicImage> {
    let reader = || ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let wrong = |problem: String| Error::setting(field, problem.lines().next().unwrap_or_default());
    let cannot = |e: String| wrong(format!("cannot be decoded ({e})"));
    let size = guarded(|| reader().map_err(|e| e.to_string())?.into_dimensions().map_err(|e| e.to_string()));
    let (width, height) = size.unwrap_or_else(Err).map_err(cannot)?;
    if u64::from(width) * u64::from(height) > most_pixels {
        return Err(wrong(format!("has {width} × {height} pixels, more than the maximum of {most_pixels}")));
    }
    let image = guarded(|| {
        let mut reader = reader().map_err(|e| e.to_string())?;
        let mut limits = Limits::default();
        // Four channels of 16 bits, twice: the image and the decoder's buffers.
        limits.max_alloc = Some(most_pixels.saturating_mul(16).saturating_add(1 << 20));
        reader.limits(limits);
        reader.decode().map_err(|e| e.to_string())
    });
    image.unwrap_or_else(Err).map_err(cannot)
}

/// Converts an OpenAI mask to a PNG that is white where the image may change: where the mask is transparent or, if it has no alpha
/// channel, where it is white.
///
/// # Errors
/// As [`decode`].
pub(super) fn mask_of_transparency(field: &str, bytes: &[u8], most_pixels: u64) -> Result<Vec<u8>> {
    let image = decode(field, bytes, most_pixels)?;
    if !image.color().has_alpha() {
        return Ok(bytes.to_vec());
    }
    let rgba = image.into_rgba8();
    let white = |x, y| image::Luma([255 - rgba.get_pixel(x, y).0[3]]);
    png(&DynamicImage::from(GrayImage::from_fn(rgba.width(), rgba.height(), white)))
}

/// The mask with black and white swapped, as a PNG.
///
/// # Errors
/// As [`decode`].
pub(super) fn inverted(field: &str, bytes: &[u8], most_pixels: u64) -> Result<Vec<u8>> {
    let mut mask = DynamicImage::from(decode(field, bytes, most_pixels)?.into_luma8());
    mask.invert();
    png(&mask)
}

fn png(image: &DynamicImage) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let written = image.write_with_encoder(PngEncoder::new(&mut bytes));
    written.map_err(|e| Error::setting("mask", format!("cannot be written as PNG ({e})")))?;
    Ok(bytes)
}

/// Converts one of kiln's own PNG files to another format; `size` enlarges a preview.
///
/// # Errors
/// The file is damaged, or too large for the format.
pub(super) fn convert(bytes: Vec<u8>, format: Format, quality: u8, size: Option<(u32, u32)>) -> Result<Vec<u8>> {
    let broken =
        |e: image::ImageError| Error::setting("image", format!("cannot be written as {} ({e})", format.word()));
    if format == Format::Png && size.is_none() {
        return Ok(bytes);
    }
    let mut image: RgbImage =
        image::load_from_memory_with_format(&bytes, ImageFormat::Png).map_err(broken)?.into_rgb8();
    if let Some((width, height)) = size.filter(|size| *size != image.dimensions()) {
        image = imageops::resize(&image, width, height, imageops::FilterType::Triangle);
    }
    let mut out = Vec::new();
    let written = match format {
        Format::Png => image.write_with_encoder(PngEncoder::new(&mut out)),
        Format::Jpeg => image.write_with_encoder(JpegEncoder::new_with_quality(&mut out, quality.clamp(1, 100))),
        Format::WebP => image.write_with_encoder(WebPEncoder::new_lossless(&mut out)),
    };
    written.map_err(broken)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use image::{Rgba, RgbaImage};

    use super::*;

    fn file(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn base64_comes_alone_or_as_a_data_url_and_addresses_are_not_fetched() {
        for text in ["AQID", " AQID\n", "data:image/png;base64,AQID"] {
            assert_eq!(from_text("image", text).unwrap(), [1, 2, 3]);
        }
        assert_eq!(from_text("image", "AQIDBA").unwrap(), from_text("image", "AQIDBA==").unwrap());
        for text in ["", "data:,abc", "data:image/png,abc", "***", "file:///etc/passwd"] {
            let error = from_text("image", text).unwrap_err().to_string();
            assert_eq!(error, "`image`: is not an image in base64", "{text}");
        }
        let error = from_text("image", "http://169.254.169.254/x.png").unwrap_err().to_string();
        assert!(error.contains("does not fetch URLs"), "{error}");
    }

    #[test]
    fn pixels_are_counted_in_the_header() {
        let image = file(RgbImage::new(20, 10), ImageFormat::Png);
        assert!(decode("image", &image, 200).is_ok());
        let error = decode("image", &image, 199).unwrap_err().to_string();
        assert_eq!(error, "`image`: has 20 × 10 pixels, more than the maximum of 199");
        // A header that claims 400,000 × 400,000 pixels, with its checksum.
        let mut bomb = file(RgbImage::new(2, 2), ImageFormat::Png);
        bomb[16..24].copy_from_slice(&[400_000u32.to_be_bytes(), 400_000u32.to_be_bytes()].concat());
        bomb[29..33].copy_from_slice(&0xeaf9_0534_u32.to_be_bytes());
        assert!(decode("image", &bomb, 1 << 22).unwrap_err().to_string().contains("400000 × 400000"));
        assert!(decode("image", b"GIF89a", 1 << 22).is_err() && decode("image", &image[..50], 1 << 22).is_err());
    }

    #[test]
    fn an_openai_mask_may_change_where_it_is_transparent() {
        let mask = RgbaImage::from_fn(2, 1, |x, _| Rgba([9, 9, 9, if x == 0 { 0 } else { 255 }]));
        let white = mask_of_transparency("mask", &file(mask, ImageFormat::Png), 100).unwrap();
        assert_eq!(image::load_from_memory(&white).unwrap().into_luma8().into_raw(), [255, 0]);
        let grey = file(GrayImage::from_raw(2, 1, vec![255, 0]).unwrap(), ImageFormat::Png);
        assert_eq!(mask_of_transparency("mask", &grey, 100).unwrap(), grey);
        let black = inverted("mask", &grey, 100).unwrap();
        assert_eq!(image::load_from_memory(&black).unwrap().into_luma8().into_raw(), [0, 255]);
    }

    #[test]
    fn an_image_is_the_same_in_every_format_without_loss_and_near_it_in_jpeg() {
        let image = RgbImage::from_fn(16, 8, |x, y| image::Rgb([x as u8 * 16, y as u8 * 32, 128]));
        let png = file(image.clone(), ImageFormat::Png);
        assert_eq!(convert(png.clone(), Format::Png, 1, None).unwrap(), png);
        let webp = convert(png.clone(), Format::WebP, 1, None).unwrap();
        assert_eq!(image::load_from_memory_with_format(&webp, ImageFormat::WebP).unwrap().into_rgb8(), image);
        let jpeg = convert(png.clone(), Format::Jpeg, 95, None).unwrap();
        let jpeg = image::load_from_memory_with_format(&jpeg, ImageFormat::Jpeg).unwrap().into_rgb8();
        let far = image.iter().zip(jpeg.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(far < 24, "{far}");
        let large = convert(png, Format::Png, 1, Some((32, 16))).unwrap();
        assert_eq!(image::load_from_memory(&large).unwrap().into_rgb8().dimensions(), (32, 16));
    }
}

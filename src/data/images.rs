//! From an image file to pixels in the size of a bucket.

use std::{io::Cursor, path::Path};

use burn::tensor::TensorData;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage, imageops, metadata::Orientation};

use super::Bucket;
use crate::{
    error::{Error, Result},
    panics::guarded,
};

/// Describes all of the processing below. It is part of the key of every latent: change it with the code.
pub const TRANSFORM: &str = "oriented, on white, lanczos3 cover, centre crop, [-1, 1]; version 1";

/// File name extensions of the images that are read and written.
pub const PICTURE_ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// The largest decoded image in bytes: 18918 × 18918 pixels of 8-bit RGB. A header can claim any size, and a failed allocation aborts
/// the process.
const MOST_DECODED: u64 = 1 << 30;

/// Facts about an image that was decoded once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// BLAKE3 hash of the file in hexadecimal.
    pub hash: String,
    /// Width in pixels, after the EXIF orientation.
    pub width: usize,
    /// Height in pixels, after the EXIF orientation.
    pub height: usize,
}

/// Decodes the whole image, so that damage is found now and not in the middle of encoding.
///
/// # Errors
/// One line with the reason why the image cannot be used.
pub fn inspect(bytes: &[u8]) -> std::result::Result<Inspected, String> {
    let image = decode(bytes)?;
    Ok(Inspected { hash: hash(bytes), width: image.width() as usize, height: image.height() as usize })
}

/// The pixels of an image in `bucket`, `[1, 3, H, W]` in [-1, 1], one for each entry of `flips`.
///
/// # Errors
/// One line: the image is not the one that was inspected.
pub fn pixels(
    bytes: &[u8],
    expected_hash: &str,
    bucket: Bucket,
    flips: &[bool],
) -> std::result::Result<Vec<TensorData>, String> {
    if hash(bytes) != expected_hash {
        return Err("was changed while it was being prepared: run the command again".into());
    }
    let image = fit(&decode(bytes)?, bucket);
    Ok(flips
        .iter()
        .map(|&flip| if flip { to_pixels(&imageops::flip_horizontal(&image)) } else { to_pixels(&image) })
        .collect())
}

/// The image as displayed: rotated by its EXIF orientation, transparency on white, 8-bit RGB.
///
/// # Errors
/// The file cannot be read, or is not a complete image.
pub fn read_picture(path: &Path) -> Result<RgbImage> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    decode(&bytes).map_err(|problem| Error::file(path, problem))
}

/// The same from the bytes of a file, if it has at most `most_pixels` pixels by its header; more are not decoded.
///
/// # Errors
/// One line: it has more pixels, or is not a complete image.
pub fn decode_picture(bytes: &[u8], most_pixels: u64) -> std::result::Result<RgbImage, String> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let size = guarded(|| reader.into_dimensions().map_err(|e| e.to_string())).unwrap_or_else(Err);
    let (width, height) = size.map_err(|e| format!("cannot be decoded ({})", e.lines().next().unwrap_or_default()))?;
    if u64::from(width) * u64::from(height) > most_pixels {
        return Err(format!("has {width} × {height} pixels, and {most_pixels} are the most"));
    }
    decode(bytes)
}

/// Width and height of that image, from the header of its file.
///
/// # Errors
/// The file cannot be read, or is not an image.
pub fn picture_size(path: &Path) -> Result<(u32, u32)> {
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(|e| Error::io(path, e))?;
    let size = || {
        let mut decoder = reader.into_decoder()?;
        let (width, height) = decoder.dimensions();
        Ok(match decoder.orientation()? {
            Orientation::NoTransforms
            | Orientation::Rotate180
            | Orientation::FlipHorizontal
            | Orientation::FlipVertical => (width, height),
            _ => (height, width), // a quarter turn
        })
    };
    let read = guarded(|| size().map_err(|e: image::ImageError| e.to_string())).unwrap_or_else(Err);
    let (width, height) = read.map_err(|e| Error::file(path, format!("cannot be decoded ({e})")))?;
    if u64::from(width) * u64::from(height) * 3 > MOST_DECODED {
        return Err(Error::file(path, format!("cannot be decoded ({width} × {height} pixels are beyond the limit)")));
    }
    Ok((width, height))
}

fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// [`read_picture`] from the bytes of a file; or one line with the reason why not.
fn decode(bytes: &[u8]) -> std::result::Result<RgbImage, String> {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MOST_DECODED);
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    reader.limits(limits.clone());
    if reader.format() == Some(ImageFormat::Jpeg) && !jpeg_has_end(bytes) {
        return jpeg_without_end(bytes).ok_or_else(|| "is cut short: the end of the JPEG is missing".into());
    }
    let image = || {
        let mut decoder = reader.into_decoder()?;
        // The reader's own limits do not count the image itself.
        limits.reserve(decoder.total_bytes())?;
        let orientation = decoder.orientation()?;
        let mut image = DynamicImage::from_decoder(decoder)?;
        image.apply_orientation(orientation);
        Ok(image)
    };
    let image = guarded(|| image().map_err(|e: image::ImageError| e.to_string())).unwrap_or_else(Err);
    let image = image.map_err(|e| format!("cannot be decoded ({})", e.lines().next().unwrap_or_default()))?;
    if !image.color().has_alpha() {
        return Ok(image.into_rgb8());
    }
    let rgba = image.into_rgba8();
    Ok(RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [r, g, b, alpha] = rgba.get_pixel(x, y).0.map(u32::from);
        image::Rgb([r, g, b].map(|c| ((c * alpha + 255 * (255 - alpha) + 127) / 255) as u8))
    }))
}

/// A JPEG that lacks only its end marker, as some cameras and programs write it; `None` if pixels are missing, too. The decoder fills
/// in missing data, so if bytes appended to the file change the image, it was not complete. A progressive JPEG may lack its last
/// scans unnoticed.
fn jpeg_without_end(bytes: &[u8]) -> Option<RgbImage> {
    const PROGRESSIVE: [u8; 2] = [0xFF, 0xC2];
    if jpeg_start_of_scan(bytes).is_none_or(|scan| bytes[..scan].windows(2).any(|pair| pair == PROGRESSIVE)) {
        return None;
    }
    let ended = |filler: &[u8]| decode(&[bytes, filler, &[0xFF, 0xD9]].concat()).ok();
    let whole = ended(&[])?;
    [0x55, 0x00, 0xAA].iter().all(|&byte| ended(&[byte; 64]).as_ref() == Some(&whole)).then_some(whole)
}

/// The position of the first scan of a JPEG.
fn jpeg_start_of_scan(bytes: &[u8]) -> Option<usize> {
    let mut at = 2; // after the start marker
    while let Some(&[0xFF, marker, high, low]) = bytes.get(at..at + 4) {
        match marker {
            0xFF => at += 1, // padding between segments
            0xDA => return Some(at),
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    None
}

/// Whether the end marker follows the start of the image data. The decoder itself fills missing data with grey.
fn jpeg_has_end(bytes: &[u8]) -> bool {
    jpeg_start_of_scan(bytes).is_some_and(|scan| bytes[scan..].windows(2).any(|pair| pair == [0xFF, 0xD9]))
}

/// Scales the image so that it just covers the bucket, with an antialiasing filter, and crops it to the centre.
fn fit(image: &RgbImage, bucket: Bucket) -> RgbImage {
    let scale = bucket.scale(image.width() as usize, image.height() as usize);
    let cover = |side: u32, target: usize| ((f64::from(side) * scale).round() as u32).max(target as u32);
    let (width, height) = (cover(image.width(), bucket.width), cover(image.height(), bucket.height));
    let scaled = imageops::resize(image, width, height, imageops::FilterType::Lanczos3);
    let (left, top) = ((width - bucket.width as u32) / 2, (height - bucket.height as u32) / 2);
    imageops::crop_imm(&scaled, left, top, bucket.width as u32, bucket.height as u32).to_image()
}

/// `[1, 3, H, W]`: `2·x/255 - 1`.
pub fn to_pixels(image: &RgbImage) -> TensorData {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let raw = image.as_raw();
    let channel = |c: usize| raw.iter().skip(c).step_by(3).map(|&v| f32::from(v) / 255.0 * 2.0 - 1.0);
    TensorData::new((0..3).flat_map(channel).collect::<Vec<f32>>(), [1, 3, height, width])
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn transparent_pixels_become_white() {
        let clear = image::RgbaImage::from_fn(2, 1, |x, _| image::Rgba([255, 0, 0, if x == 0 { 0 } else { 255 }]));
        assert_eq!(decode(&png(clear)).unwrap().as_raw(), &[255, 255, 255, 255, 0, 0]);
    }

    #[test]
    fn grey_and_sixteen_bit_images_are_read() {
        let grey = image::GrayImage::from_pixel(3, 2, image::Luma([100]));
        assert_eq!(decode(&png(grey)).unwrap(), RgbImage::from_pixel(3, 2, Rgb([100; 3])));
        let deep = image::ImageBuffer::from_pixel(3, 2, Rgb([51400u16, 0, 65535]));
        assert_eq!(
            decode(&png(DynamicImage::ImageRgb16(deep))).unwrap(),
            RgbImage::from_pixel(3, 2, Rgb([200, 0, 255]))
        );
    }

    #[test]
    fn an_image_covers_its_bucket_and_is_cropped_to_the_centre() {
        // Left to right: black, then white, then black; the middle is what stays.
        let image = RgbImage::from_fn(96, 32, |x, _| Rgb([if (32..64).contains(&x) { 255 } else { 0 }; 3]));
        let cut = fit(&image, Bucket { width: 32, height: 32 });
        assert_eq!(cut, RgbImage::from_pixel(32, 32, Rgb([255; 3])));
    }

    #[test]
    fn pixels_lie_between_minus_one_and_one_channel_by_channel() {
        let data = to_pixels(&RgbImage::from_fn(2, 1, |x, _| if x == 0 { Rgb([0, 255, 0]) } else { Rgb([255, 0, 0]) }));
        assert_eq!(data.shape.as_slice(), [1, 3, 1, 2]);
        assert_eq!(data.into_vec::<f32>().unwrap(), [-1.0, 1.0, 1.0, -1.0, -1.0, -1.0]);
    }

    #[test]
    fn cut_files_are_refused() {
        let image = DynamicImage::from(RgbImage::from_fn(64, 64, |x, y| Rgb([x as u8, y as u8, (x * y) as u8])));
        for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP] {
            let mut bytes = Cursor::new(Vec::new());
            image.write_to(&mut bytes, format).unwrap();
            let bytes = bytes.into_inner();
            assert!(decode(&bytes).is_ok());
            for cut in [0, 10, bytes.len() / 2, bytes.len() - 16] {
                assert!(decode(&bytes[..cut]).is_err(), "{format:?} cut to {cut} of {}", bytes.len());
            }
        }
    }

    #[test]
    fn a_header_that_claims_a_giant_image_is_refused_before_allocation() {
        let mut bytes = png(RgbImage::new(2, 2));
        bytes[16..24].copy_from_slice(&[400_000u32.to_be_bytes(), 400_000u32.to_be_bytes()].concat());
        bytes[29..33].copy_from_slice(&0xeaf9_0534_u32.to_be_bytes()); // the checksum of that header
        let problem = decode(&bytes).unwrap_err();
        assert!(problem.contains("cannot be decoded") && problem.to_lowercase().contains("limit"), "{problem}");
        assert!(!problem.contains('\n'));
    }
}

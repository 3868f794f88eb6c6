//! Thumbnails of images, cached on disk.

use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use image::{ImageFormat, codecs::jpeg::JpegEncoder, imageops};

use crate::{
    data::read_picture,
    disk::replace,
    error::{Error, Result},
};

/// The longest side of a thumbnail, in pixels.
const LONGEST: u32 = 320;

/// The quality of the JPEG.
const QUALITY: u8 = 82;

/// A folder of thumbnails, each named by a hash of the path, size and time of the image's file: a replaced image gets a new one.
#[derive(Debug)]
pub struct Thumbnails {
    folder: PathBuf,
}

/// A thumbnail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thumbnail {
    /// A JPEG file, or PNG if the image itself is small.
    pub bytes: Vec<u8>,
    /// Its media type.
    pub kind: &'static str,
}

impl Thumbnails {
    /// Uses this folder, which is created when needed.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The name of the image's current thumbnail, which can serve as its `ETag`.
    ///
    /// # Errors
    /// There is no such image.
    pub fn name(&self, image: &Path) -> Result<String> {
        let metadata = fs::metadata(image).map_err(|e| Error::io(image, e))?;
        let changed =
            metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        let mut hasher = blake3::Hasher::new();
        hasher.update(image.as_os_str().as_encoded_bytes());
        [metadata.len(), changed.as_nanos() as u64, u64::from(LONGEST)]
            .iter()
            .for_each(|n| _ = hasher.update(&n.to_le_bytes()));
        Ok(hasher.finalize().to_hex()[..32].into())
    }

    /// The thumbnail of an image: rotated according to its EXIF data, at most 320 pixels wide and high.
    ///
    /// # Errors
    /// The image cannot be read, or the thumbnail cannot be written.
    pub fn of(&self, image: &Path) -> Result<Thumbnail> {
        let path = self.folder.join(self.name(image)?);
        if let Ok(bytes) = fs::read(&path) {
            return Ok(Thumbnail { kind: kind(&bytes), bytes });
        }
        let bytes = small(image)?;
        fs::create_dir_all(&self.folder).map_err(|e| Error::io(&self.folder, e))?;
        replace(&path, |partial| fs::write(partial, &bytes).map_err(|e| Error::io(&path, e)))?;
        Ok(Thumbnail { kind: kind(&bytes), bytes })
    }
}

fn small(path: &Path) -> Result<Vec<u8>> {
    let image = read_picture(path)?;
    let (width, height) = image.dimensions();
    let mut bytes = Cursor::new(Vec::new());
    let written = if width.max(height) <= LONGEST {
        image.write_to(&mut bytes, ImageFormat::Png)
    } else {
        let scale = f64::from(LONGEST) / f64::from(width.max(height));
        let side = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
        let small = imageops::thumbnail(&image, side(width), side(height));
        JpegEncoder::new_with_quality(&mut bytes, QUALITY).encode_image(&small)
    };
    written.map_err(|e| Error::file(path, format!("has no thumbnail ({e})")))?;
    Ok(bytes.into_inner())
}

fn kind(bytes: &[u8]) -> &'static str {
    if bytes.starts_with(b"\x89PNG") { "image/png" } else { "image/jpeg" }
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;

    #[test]
    fn thumbnails_are_small_kept_and_made_again_when_the_image_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        RgbImage::from_pixel(800, 400, Rgb([200, 30, 30])).save(&path).unwrap();
        let thumbnails = Thumbnails::new(folder.path().join("thumbnails"));
        let first = thumbnails.of(&path).unwrap();
        let decoded = image::load_from_memory(&first.bytes).unwrap().into_rgb8();
        assert_eq!((decoded.dimensions(), first.kind), ((320, 160), "image/jpeg"));
        assert!(decoded[(100, 100)].0[0] > 180);
        let name = thumbnails.name(&path).unwrap();
        let kept = folder.path().join("thumbnails").join(&name);
        assert_eq!(fs::read(&kept).unwrap(), first.bytes);
        RgbImage::from_pixel(40, 20, Rgb([1, 2, 3])).save(&path).unwrap();
        assert_ne!(thumbnails.name(&path).unwrap(), name);
        let second = thumbnails.of(&path).unwrap();
        assert_eq!(second.kind, "image/png");
        assert_eq!(image::load_from_memory(&second.bytes).unwrap().into_rgb8()[(3, 3)], Rgb([1, 2, 3]));
        fs::write(&path, "no image").unwrap();
        assert!(thumbnails.of(&path).is_err());
    }
}

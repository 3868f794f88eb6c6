//! Image files as inputs of a model: found, scaled to a size it supports, and scaled back.

use std::{
    fs,
    io::BufWriter,
    path::{Path, PathBuf},
};

use image::{
    RgbImage,
    codecs::jpeg::JpegEncoder,
    imageops::{self, FilterType},
};

use crate::{
    data::{self, PICTURE_ENDINGS},
    disk::replace,
    error::{Error, Result},
    pipelines::ImageSizes,
};

/// Width and height.
pub(crate) type Size = (u32, u32);

/// Quality of JPEG files, of 100.
const JPEG_QUALITY: u8 = 95;

/// An image file, and the size at which the model processes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PictureFile {
    pub path: PathBuf,
    /// The displayed size.
    pub size: Size,
    /// The processed size.
    pub fitted: Size,
}

impl PictureFile {
    /// The file at `path`, with this `size` in its header. The processed size is at most the model's native size: a larger image is
    /// scaled down to about that many pixels with the same proportions, a smaller one is not scaled up; then both sides are rounded to
    /// multiples that the model supports.
    pub fn new(path: &Path, size: Size, sizes: &ImageSizes) -> Self {
        Self { path: path.into(), size, fitted: fit(size, sizes.native, sizes.step) }
    }

    /// The image at the processed size.
    pub fn read(&self) -> Result<RgbImage> {
        Ok(resize(data::read_picture(&self.path)?, self.fitted))
    }

    /// Scales a result to the size of the file.
    pub fn restore(&self, picture: RgbImage) -> RgbImage {
        resize(picture, self.size)
    }
}

/// A size of about the same proportions, of no more pixels than a square of this `resolution`, with sides that are multiples of the
/// step.
pub(super) fn fit((width, height): Size, resolution: usize, step: usize) -> Size {
    let area = f64::from(width) * f64::from(height);
    let scale = (resolution as f64 / area.sqrt()).min(1.0);
    let side = |side: u32| ((f64::from(side) * scale / step as f64).round().max(1.0) * step as f64) as u32;
    (side(width), side(height))
}

/// Scales an image; one that already has the size is returned unchanged.
pub(crate) fn resize(picture: RgbImage, size: Size) -> RgbImage {
    match picture.dimensions() == size {
        true => picture,
        false => imageops::resize(&picture, size.0, size.1, FilterType::Lanczos3),
    }
}

/// The image itself, or all images in a folder (without sub-folders and hidden files), by name.
pub(super) fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let entries = fs::read_dir(path).map_err(|e| Error::io(path, e))?;
    // macOS leaves `._a.png` beside `a.png` on shares and in archives.
    let shown = entries.flatten().filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
    let mut files: Vec<_> = shown.map(|entry| entry.path()).filter(|path| ending(path).is_some()).collect();
    files.sort_unstable();
    match files.is_empty() {
        true => Err(Error::file(path, "no images").hint(format!("images end in {}", PICTURE_ENDINGS.join(", ")))),
        false => Ok(files),
    }
}

/// The extension of an image's name, if it is one.
fn ending(path: &Path) -> Option<&'static str> {
    let own = path.extension()?.to_str()?.to_ascii_lowercase();
    PICTURE_ENDINGS.into_iter().find(|ending| *ending == own)
}

/// The path of the result for `picture`: its name in the folder `output`, with a number if that file exists.
pub(super) fn free_name(output: &Path, picture: &Path) -> PathBuf {
    let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let (stem, ending) = (part(picture.file_stem()), part(picture.extension()));
    let numbered = (2..).map(|number: u32| output.join(format!("{stem}-{number}.{ending}")));
    let mut names = std::iter::once(output.join(format!("{stem}.{ending}"))).chain(numbered);
    names.find(|path| !path.exists()).expect("the numbers go on")
}

/// The path of a result without an initial image: the first number without an image in the folder `output`.
pub(super) fn free_number(output: &Path) -> PathBuf {
    let mut names = (0..).map(|number: u32| output.join(format!("{number:04}.png")));
    names.find(|path| !path.exists()).expect("the numbers go on")
}

/// Writes an image in the format of its extension, atomically.
pub(crate) fn save(picture: &RgbImage, path: &Path) -> Result<()> {
    let problem = |e: image::ImageError| Error::file(path, e.to_string());
    replace(path, |partial| match ending(path) {
        Some("jpg" | "jpeg") => {
            let file = fs::File::create(partial).map_err(|e| Error::io(path, e))?;
            picture
                .write_with_encoder(JpegEncoder::new_with_quality(BufWriter::new(file), JPEG_QUALITY))
                .map_err(problem)
        }
        Some("webp") => picture.save_with_format(partial, image::ImageFormat::WebP).map_err(problem),
        _ => picture.save_with_format(partial, image::ImageFormat::Png).map_err(problem),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_macos_leaves_beside_pictures_is_passed_over_in_folders() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.png", "._b.png", "a.jpg", ".DS_Store", "notes.txt"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let names: Vec<_> =
            files(folder.path()).unwrap().iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["a.jpg", "b.png"]);
        let hidden = folder.path().join("._b.png");
        assert_eq!(files(&hidden).unwrap(), std::slice::from_ref(&hidden), "by its own name it is meant");
    }

    #[test]
    fn large_pictures_shrink_to_the_models_area_and_small_ones_stay() {
        assert_eq!(fit((2048, 1024), 512, 8), (728, 360)); // 512² pixels, 2 : 1
        assert_eq!(fit((512, 512), 512, 8), (512, 512));
        assert_eq!(fit((100, 60), 512, 8), (104, 64)); // rounded, not enlarged
        assert_eq!(fit((3, 10_000), 512, 8), (8, 10_000)); // no side vanishes
        assert_eq!(fit((100, 60), 512, 16), (96, 64));
    }
}

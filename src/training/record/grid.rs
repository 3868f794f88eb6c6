//! Grids of sample images.

use std::path::{Path, PathBuf};

use image::{ImageFormat, RgbImage, imageops};

use crate::{
    disk::replace,
    error::{Error, Result},
    training::record::run_folder,
};

/// Pixels between two images of a grid.
const GAP: u32 = 4;

/// Images in rows of `columns`, on white, in cells of the size of the largest.
pub(in crate::training) fn arrange(pictures: &[&RgbImage], columns: usize) -> RgbImage {
    let largest = |side: fn(&RgbImage) -> u32| pictures.iter().map(|picture| side(picture)).max().unwrap_or(0);
    let (width, height) = (largest(RgbImage::width), largest(RgbImage::height));
    let rows = pictures.len().div_ceil(columns) as u32;
    let side = |count: u32, size: u32| count * (size + GAP) + GAP;
    let mut grid = RgbImage::from_pixel(side(columns as u32, width), side(rows, height), image::Rgb([255; 3]));
    for (i, picture) in pictures.iter().enumerate() {
        let (row, column) = ((i / columns) as u32, (i % columns) as u32);
        let (x, y) = (GAP + column * (width + GAP), GAP + row * (height + GAP));
        imageops::replace(&mut grid, *picture, i64::from(x), i64::from(y));
    }
    grid
}

/// Writes a grid into a run's `samples/`.
///
/// # Errors
/// The file cannot be written.
pub(in crate::training) fn save_grid(run: &Path, step: u64, grid: &RgbImage) -> Result<PathBuf> {
    let path = run_folder::grid(run, step);
    let folder = path.parent().expect("a grid lies in a folder of the run");
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    replace(&path, |partial| {
        grid.save_with_format(partial, ImageFormat::Png).map_err(|e| Error::file(&path, e.to_string()))
    })?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_shows_pictures_row_by_row() {
        let colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]].map(image::Rgb);
        let pictures = colours.map(|colour| RgbImage::from_pixel(3, 2, colour));
        let grid = arrange(&pictures.iter().collect::<Vec<_>>(), 2);
        assert_eq!(grid.dimensions(), (2 * 7 + 4, 2 * 6 + 4));
        assert_eq!([grid[(4, 4)], grid[(11, 4)], grid[(4, 10)], grid[(11, 11)]], colours);
        assert_eq!(grid[(0, 0)], image::Rgb([255; 3]));
    }
}

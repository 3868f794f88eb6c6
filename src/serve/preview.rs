//! Previews of latents without the VAE: each pixel is a linear function of a latent pixel's channels, fitted by least squares to
//! images that the model's VAE decoded.

use image::{Rgb, RgbImage};

/// The maximum number of latent pixels per image that the fit uses.
const LOOKED_AT: usize = 1024;

/// The maximum number of terms: latent channels and one constant.
const MOST_TERMS: usize = 65;

/// Latents of one image, on the host.
#[derive(Clone, Debug)]
pub struct Latents {
    /// The values, in the order of `shape`.
    pub values: Vec<f32>,
    /// The numbers of channels, rows and columns.
    pub shape: [usize; 3],
}

impl Latents {
    /// The channels of a latent pixel, followed by 1.
    fn terms(&self, row: usize, column: usize) -> impl Iterator<Item = f64> + '_ {
        let [channels, rows, columns] = self.shape;
        let at = move |channel| f64::from(self.values[(channel * rows + row) * columns + column]);
        (0..channels).map(at).chain([1.0])
    }
}

/// The fit from a model's latents to colors.
#[derive(Debug, Default)]
pub struct Colors {
    /// The sums of the normal equations: products of terms with terms, and of terms with colors.
    square: Vec<Vec<f64>>,
    colors: Vec<[f64; 3]>,
    /// The solution, one row per term.
    fit: Option<Vec<[f64; 3]>>,
}

impl Colors {
    /// Whether nothing has been fitted yet.
    pub fn is_empty(&self) -> bool {
        self.square.is_empty()
    }

    /// Adds the latents of a decoded image to the fit.
    pub fn learn(&mut self, latents: &Latents, image: &RgbImage) {
        let [channels, rows, columns] = latents.shape;
        let terms = channels + 1;
        if terms > MOST_TERMS || rows * columns == 0 || !latents.values.iter().all(|value| value.is_finite()) {
            return;
        }
        if self.square.len() != terms {
            (self.square, self.colors) = (vec![vec![0.0; terms]; terms], vec![[0.0; 3]; terms]);
        }
        let side = (image.height() as usize / rows).max(1);
        let stride = (rows * columns).div_ceil(LOOKED_AT);
        for place in (0..rows * columns).step_by(stride) {
            let (row, column) = (place / columns, place % columns);
            let color = mean(image, column * side, row * side, side);
            let values: Vec<f64> = latents.terms(row, column).collect();
            for (i, one) in values.iter().enumerate() {
                self.square[i].iter_mut().zip(&values).for_each(|(sum, other)| *sum += one * other);
                self.colors[i].iter_mut().zip(color).for_each(|(sum, value)| *sum += one * value);
            }
        }
        self.fit = None;
    }

    /// A preview with one pixel per latent pixel; `None` before anything has been fitted.
    pub fn show(&mut self, latents: &Latents) -> Option<RgbImage> {
        if self.square.len() != latents.shape[0] + 1 {
            return None;
        }
        let fit = self.fit.get_or_insert_with(|| solve(&self.square, &self.colors));
        let [_, rows, columns] = latents.shape;
        Some(RgbImage::from_fn(columns as u32, rows as u32, |x, y| {
            let mut color = [0.0; 3];
            for (term, weights) in latents.terms(y as usize, x as usize).zip(&*fit) {
                color.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += term * weight);
            }
            Rgb(color.map(|value| value.round().clamp(0.0, 255.0) as u8))
        }))
    }
}

/// The mean color of a square.
fn mean(image: &RgbImage, left: usize, top: usize, side: usize) -> [f64; 3] {
    let (mut sum, mut count) = ([0.0; 3], 0.0_f64);
    for y in top..(top + side).min(image.height() as usize) {
        for x in left..(left + side).min(image.width() as usize) {
            let pixel = image.get_pixel(x as u32, y as u32).0;
            sum.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += f64::from(value));
            count += 1.0;
        }
    }
    sum.map(|sum| sum / count.max(1.0))
}

/// Solves the normal equations by elimination, with a small ridge term so that the solution is unique.
fn solve(square: &[Vec<f64>], colors: &[[f64; 3]]) -> Vec<[f64; 3]> {
    let terms = square.len();
    let ridge = 1e-4 * (0..terms).map(|i| square[i][i]).sum::<f64>() / terms as f64 + 1e-12;
    let mut rows: Vec<Vec<f64>> = (0..terms)
        .map(|i| {
            let mut row: Vec<f64> = square[i].iter().chain(&colors[i]).copied().collect();
            row[i] += ridge;
            row
        })
        .collect();
    for pivot in 0..terms {
        // The matrix is positive definite: no pivot is zero, and their order does not matter.
        let scale = rows[pivot][pivot];
        rows[pivot].iter_mut().for_each(|value| *value /= scale);
        let own = rows[pivot].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != pivot) {
            let factor = row[pivot];
            row.iter_mut().zip(&own).for_each(|(value, own)| *value -= factor * own);
        }
    }
    rows.iter().map(|row| [row[terms], row[terms + 1], row[terms + 2]]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Latents of four channels that look random, and the image of which they are a linear function.
    fn pair(rows: usize, columns: usize, start: u64) -> (Latents, RgbImage) {
        let mut state = start;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        };
        let values: Vec<f32> = (0..4 * rows * columns).map(|_| next()).collect();
        let latents = Latents { values, shape: [4, rows, columns] };
        let image = RgbImage::from_fn(8 * columns as u32, 8 * rows as u32, |x, y| {
            let c: Vec<f64> = latents.terms(y as usize / 8, x as usize / 8).collect();
            Rgb([120.0 + 40.0 * c[0] - 20.0 * c[3], 100.0 + 30.0 * c[1], 90.0 - 50.0 * c[2] + 10.0 * c[0]]
                .map(|value| value.round() as u8))
        });
        (latents, image)
    }

    #[test]
    fn linear_colors_are_found_and_shown_again() {
        let mut colors = Colors::default();
        let (latents, image) = pair(16, 12, 1);
        assert!(colors.is_empty() && colors.show(&latents).is_none());
        colors.learn(&latents, &image);
        let (others, expected) = pair(8, 10, 2);
        let shown = colors.show(&others).unwrap();
        assert_eq!(shown.dimensions(), (10, 8));
        for (x, y, pixel) in shown.enumerate_pixels() {
            let expected = expected.get_pixel(8 * x, 8 * y).0;
            assert!(pixel.0.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 2), "{pixel:?} {expected:?}");
        }
    }

    #[test]
    fn one_color_and_values_that_are_no_numbers_do_no_harm() {
        let mut colors = Colors::default();
        let (mut latents, image) = pair(4, 4, 3);
        let good = latents.clone();
        latents.values[3] = f32::NAN;
        colors.learn(&latents, &image);
        assert!(colors.is_empty());
        let flat = Latents { values: vec![0.5; 64], shape: [4, 4, 4] };
        colors.learn(&flat, &RgbImage::from_pixel(32, 32, Rgb([7, 8, 9])));
        assert!(
            colors.show(&flat).unwrap().pixels().all(|pixel| pixel
                .0
                .iter()
                .zip([7, 8, 9])
                .all(|(a, b)| a.abs_diff(b) <= 1))
        );
        assert!(colors.show(&good).is_some());
    }
}

//! Detects broken images, as caused by a model that overflowed or a LoRA scale that is too high.

use image::RgbImage;

/// A flaw of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It has values that are not finite.
    NotFinite,
    /// It is a single color.
    Flat,
    /// Nearly all of its values are 0 or 255.
    Saturated,
}

/// The largest difference within a channel of an image that counts as a single color.
const FLAT: u8 = 2;

/// The share of values at 0 or 255 above which an image is saturated.
const SATURATED: f64 = 0.99;

impl Flaw {
    /// The flaw of an image, if it has one.
    pub fn of(image: &RgbImage) -> Option<Self> {
        let (mut least, mut most, mut extreme) = ([u8::MAX; 3], [0; 3], 0usize);
        for pixel in image.pixels() {
            for (channel, value) in pixel.0.into_iter().enumerate() {
                least[channel] = value.min(least[channel]);
                most[channel] = value.max(most[channel]);
                extreme += usize::from(value == 0 || value == u8::MAX);
            }
        }
        let is_flat = least.iter().zip(most).all(|(least, most)| most.saturating_sub(*least) <= FLAT);
        if is_flat {
            return Some(Self::Flat);
        }
        let share = extreme as f64 / image.as_raw().len().max(1) as f64;
        (share > SATURATED).then_some(Self::Saturated)
    }

    /// The problem as a clause for an error.
    pub fn words(self) -> &'static str {
        match self {
            Self::NotFinite => "the image is not finite",
            Self::Flat => "the image is one color",
            Self::Saturated => "the image is saturated: nearly all of its values are 0 or 255",
        }
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn one_color_is_flat_whichever_it_is_and_a_faint_texture_is_not() {
        for color in [[0, 0, 0], [255, 255, 255], [10, 200, 30]] {
            assert_eq!(Flaw::of(&RgbImage::from_pixel(64, 32, Rgb(color))), Some(Flaw::Flat));
        }
        let with =
            |change: u8| RgbImage::from_fn(64, 32, |x, y| Rgb([10 + change * u8::from((x, y) == (9, 9)), 200, 30]));
        assert_eq!(Flaw::of(&with(2)), Some(Flaw::Flat));
        assert_eq!(Flaw::of(&with(3)), None);
    }

    #[test]
    fn full_values_alone_are_saturated_and_a_drawing_on_white_is_not() {
        let stripes = RgbImage::from_fn(100, 100, |x, _| Rgb(if x % 2 == 0 { [0, 255, 0] } else { [255, 0, 255] }));
        assert_eq!(Flaw::of(&stripes), Some(Flaw::Saturated));
        let drawing = RgbImage::from_fn(100, 100, |x, y| Rgb(if x < 2 && y < 60 { [40, 90, 9] } else { [255; 3] }));
        assert_eq!(Flaw::of(&drawing), None);
        let dot = RgbImage::from_fn(100, 100, |x, y| Rgb(if x < 1 && y < 90 { [40, 90, 9] } else { [255; 3] }));
        assert_eq!(Flaw::of(&dot), Some(Flaw::Saturated));
    }
}

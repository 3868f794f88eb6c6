//! bitsandbytes' dynamic 8-bit levels, whose spacing grows with the magnitude, for scales and for an optimizer's moments (Dettmers
//! 2015, "8-Bit Approximations for Parallelism"; Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization").

use std::sync::LazyLock;

use rayon::prelude::*;

/// The number of values of a moment that share one scale.
pub const MOMENT_BLOCK: usize = 256;

/// The range of the levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DynamicMap {
    /// From near -1 to 1.
    Signed,
    /// From 0 to 1.
    Unsigned,
}

static SIGNED: LazyLock<[f32; 256]> = LazyLock::new(dynamic_levels);

static UNSIGNED: LazyLock<[f32; 256]> = LazyLock::new(|| {
    let levels = (0..7).flat_map(|decade| means(decade, 2 << decade)).chain([0.0, 1.0]);
    sorted(levels.collect())
});

impl DynamicMap {
    /// The 256 levels in ascending order.
    pub fn levels(self) -> &'static [f32; 256] {
        match self {
            Self::Signed => &SIGNED,
            Self::Unsigned => &UNSIGNED,
        }
    }

    /// The index of the level nearest to each value, relative to the largest magnitude of its block, and these magnitudes.
    pub fn encode(self, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
        let levels = self.levels();
        let blocks = values.par_chunks(MOMENT_BLOCK).map(|block| {
            let largest = block.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
            let inverse = if largest > 0.0 { 1.0 / largest } else { 0.0 };
            let codes = block.iter().map(|value| nearest(levels, value * inverse)).collect::<Vec<u8>>();
            (codes, largest)
        });
        let (codes, largest): (Vec<_>, Vec<_>) = blocks.collect::<Vec<_>>().into_iter().unzip();
        (codes.concat(), largest)
    }

    /// Decodes values: `levels[code]·largest`.
    pub fn decode(self, codes: &[u8], largest: &[f32]) -> Vec<f32> {
        let levels = self.levels();
        let mut values = vec![0.0; codes.len()];
        let blocks = values.par_chunks_mut(MOMENT_BLOCK).zip(codes.par_chunks(MOMENT_BLOCK)).zip(largest);
        blocks.for_each(|((values, codes), largest)| {
            for (value, code) in values.iter_mut().zip(codes) {
                *value = levels[usize::from(*code)] * largest;
            }
        });
        values
    }
}

/// The index of the level nearest to a value from -1 to 1; of two that are equally near, the lower one.
fn nearest(levels: &[f32; 256], value: f32) -> u8 {
    let above = levels.partition_point(|&level| level < value).min(255);
    let below = above.saturating_sub(1);
    (if (value - levels[below]).abs() <= (levels[above] - value).abs() { below } else { above }) as u8
}

/// The 256 signed levels in ascending order, from near -1 to 1.
///
/// The decades from 10⁻⁶ to 1 are divided into 1, 2, 4 … 64 equal parts; the levels are the means of these parts with either sign,
/// and 0 and 1. Unsigned levels have twice as many parts. Computed in f32, in the order of bitsandbytes' `create_dynamic_map`.
fn dynamic_levels() -> [f32; 256] {
    let both = (0..7).flat_map(|decade| means(decade, 1 << decade)).flat_map(|level| [level, -level]);
    sorted(both.chain([0.0, 1.0]).collect())
}

/// The means of `count` equal parts of a decade; the last decade, number 6, ends at 1.
fn means(decade: i32, count: usize) -> Vec<f32> {
    let bounds = linspace(count + 1);
    // The power of ten is a double in Python, and becomes an f32 when it is multiplied by the mean.
    let power = 10f64.powi(decade - 6) as f32;
    bounds.windows(2).map(|pair| power * ((pair[0] + pair[1]) / 2.0)).collect()
}

fn sorted(mut levels: Vec<f32>) -> [f32; 256] {
    levels.sort_by(f32::total_cmp);
    // -0.0 does not occur; 0.0 occurs once.
    levels.try_into().expect("the parts of seven decades and 2 levels are 256")
}

/// `count` numbers from 0.1 to 1, computed as torch does: from either end to the middle.
fn linspace(count: usize) -> Vec<f32> {
    let step = (1.0f32 - 0.1) / (count - 1) as f32;
    (0..count)
        .map(|i| match i < count / 2 {
            true => 0.1 + step * i as f32,
            false => 1.0 - step * (count - 1 - i) as f32,
        })
        .collect()
}

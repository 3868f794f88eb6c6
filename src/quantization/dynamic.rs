//! The signed 8-bit levels in which bitsandbytes stores scales (Dettmers 2015, "8-Bit Approximations for Parallelism").

/// The 256 levels in rising order, from near -1 to 1.
///
/// The decades from 10⁻⁶ to 1 are cut into 1, 2, 4 … 64 equal parts, of which the means are levels, with either sign; and 0 and 1.
/// In f32, in the order of bitsandbytes' `create_dynamic_map`.
pub fn dynamic_levels() -> [f32; 256] {
    let mut levels = vec![0.0, 1.0];
    for decade in 0..7 {
        let count = 1usize << decade;
        let bounds = linspace(count + 1);
        for pair in bounds.windows(2) {
            let mean = (pair[0] + pair[1]) / 2.0;
            // The power of ten is a double in Python, and becomes an f32 when the mean is multiplied with it.
            let level = 10f64.powi(decade - 6) as f32 * mean;
            levels.extend([level, -level]);
        }
    }
    levels.sort_by(f32::total_cmp);
    // -0.0 does not arise; 0.0 stands once.
    levels.try_into().expect("2·(1 + 2 + … + 64) + 2 levels")
}

/// `count` numbers from 0.1 to 1, as torch has them: from either end to the middle.
fn linspace(count: usize) -> Vec<f32> {
    let step = (1.0f32 - 0.1) / (count - 1) as f32;
    (0..count)
        .map(|i| match i < count / 2 {
            true => 0.1 + step * i as f32,
            false => 1.0 - step * (count - 1 - i) as f32,
        })
        .collect()
}

//! 8-bit floats (Micikevicius et al. 2022, "FP8 formats for deep learning").

/// The value of each byte as e4m3 without infinities: four exponent bits, three mantissa bits; the largest is 448.
pub static E4M3: [f32; 256] = levels(4, 3, true);

/// The value of each byte as e5m2: five exponent bits, two mantissa bits; the largest is 57,344.
pub static E5M2: [f32; 256] = levels(5, 2, false);

/// The values of all bytes: sign, exponent and mantissa from the top bit. `finite`: the highest exponent is an ordinary one, except
/// for one NaN.
const fn levels(exponent_bits: u32, mantissa_bits: u32, finite: bool) -> [f32; 256] {
    let mut levels = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        let bits = byte as u32;
        let sign = (bits >> 7) << 31;
        let top = (1 << exponent_bits) - 1;
        let (exponent, mantissa) = (bits >> mantissa_bits & top, bits & ((1 << mantissa_bits) - 1));
        let bias = (1 << (exponent_bits - 1)) - 1;
        let magnitude = if exponent == top && (!finite || mantissa == (1 << mantissa_bits) - 1) {
            if mantissa == 0 { f32::INFINITY.to_bits() } else { f32::NAN.to_bits() }
        } else if exponent == 0 {
            // Subnormal: a multiple of the smallest positive number.
            (mantissa as f32 * f32::from_bits((127 + 1 - bias - mantissa_bits) << 23)).to_bits()
        } else {
            (exponent + 127 - bias) << 23 | mantissa << (23 - mantissa_bits)
        };
        levels[byte] = f32::from_bits(sign | magnitude);
        byte += 1;
    }
    levels
}

/// Rounds a finite number to the nearest e4m3, ties to even; magnitudes beyond 448 become 448.
pub fn to_e4m3(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs().min(448.0);
    // Bytes are in the order of their magnitudes, up to the NaN at 127.
    let above = E4M3[..127].partition_point(|&level| level < magnitude).min(126);
    let below = above.saturating_sub(1);
    let (down, up) = (magnitude - E4M3[below], E4M3[above] - magnitude);
    let nearest = if down < up || down == up && below % 2 == 0 { below } else { above };
    sign | nearest as u8
}

//! Loops compiled for the widest vectors of the machine, and mathematical functions that vectorize.

use std::mem::MaybeUninit;

/// Runs `work` compiled for AVX-512, for AVX2, or for the target's own features. Whatever `work` calls must be
/// `#[inline(always)]`, or it is compiled without them.
#[inline]
pub fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        match Vectors::widest() {
            // SAFETY: all the features were found.
            Vectors::Avx512 => return unsafe { avx512(work) },
            // SAFETY: both features were found.
            Vectors::Avx2 => return unsafe { avx2(work) },
            Vectors::Plain => {}
        }
    }
    work()
}

/// Vectors for which loops are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vectors {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The target's own features.
    Plain,
}

impl Vectors {
    /// The widest vectors of this machine. The standard library caches the detection.
    #[inline]
    fn widest() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            let wider = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            return if wider { Self::Avx512 } else { Self::Avx2 };
        }
        Self::Plain
    }
}

/// The name of the vectors that loops on the CPU use on this machine.
pub fn vectors() -> &'static str {
    match Vectors::widest() {
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx512 => "AVX-512",
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx2 => "AVX2",
        Vectors::Plain => "no wide vectors",
    }
}

/// `e^x` to two units in the last place, with `x` clamped to [-87, 88]; NaN stays NaN.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`, then a polynomial for `e^r` (coefficients of Cephes' expf) times `2^n`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5·2²³: adding it leaves the nearest integer in the low bits
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, so that n·ln 2 is accurate enough.
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = (p * r).mul_add(r, r) + 1.0;
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

/// `(σ(x), 1 - σ(x))` of the logistic function σ; both keep their relative precision.
#[inline(always)]
pub fn sigmoid(x: f32) -> (f32, f32) {
    let x = if x < -80.0 { -80.0 } else { x };
    let e = exp(-x);
    let s = 1.0 / (1.0 + e);
    (s, e * s)
}

/// `(Φ(x), φ(x))`, the standard normal distribution function and density, to one or two units in the last place of 1.
///
/// `Φ(-t) = φ(t)·M(t)` for `t ≥ 0`. Mills' ratio `M` is smooth and falls slowly, so a polynomial in `1/(1 + 0.35·t)` gives
/// `M/√(2π)` to 3e-8 of itself for `t` up to 14 (fitted for this; the form is Abramowitz & Stegun's 7.1.26).
#[inline(always)]
pub fn normal(x: f32) -> (f32, f32) {
    let t = x.abs();
    let e = exp(-0.5 * t * t);
    let u = 1.0 / 0.35f32.mul_add(t, 1.0);
    let p = -0.029_145_94_f32;
    let p = p.mul_add(u, 0.143_971_74);
    let p = p.mul_add(u, -0.255_714_33);
    let p = p.mul_add(u, 0.159_174_25);
    let p = p.mul_add(u, -0.023_109_896);
    let p = p.mul_add(u, 0.105_508_03);
    let p = p.mul_add(u, 0.119_832_86);
    let p = p.mul_add(u, 0.139_861_87);
    let p = p.mul_add(u, 0.139_621_4);
    let tail = p * u * e;
    // 1/√(2π).
    (if x < 0.0 { tail } else { 1.0 - tail }, 0.398_942_3 * e)
}

/// The number of parallel partial sums: two of the widest vectors.
const LANES: usize = 32;

/// `Σ f` over rows of equal length, in an order that vectorizes and does not depend on the machine.
#[inline(always)]
pub fn sum<const N: usize>(rows: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    reduce(
        rows,
        0.0,
        #[inline(always)]
        |sum, at| sum + f(at),
        #[inline(always)]
        |a, b| a + b,
    )
}

/// The maximum of a row, ignoring NaN.
#[inline(always)]
pub fn max(row: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    reduce(
        [row],
        f32::NEG_INFINITY,
        #[inline(always)]
        |most, [at]| larger(most, at),
        larger,
    )
}

#[inline(always)]
fn reduce<const N: usize>(
    rows: [&[f32]; N],
    start: f32,
    step: impl Fn(f32, [f32; N]) -> f32,
    join: impl Fn(f32, f32) -> f32,
) -> f32 {
    let n = same_length(&rows);
    let mut lanes = [start; LANES];
    for block in 0..n / LANES {
        for (lane, value) in lanes.iter_mut().enumerate() {
            *value = step(*value, at(&rows, block * LANES + lane));
        }
    }
    let mut rest = start;
    for i in n / LANES * LANES..n {
        rest = step(rest, at(&rows, i));
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = join(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    join(lanes[0], rest)
}

/// Writes `f` of rows of equal length to uninitialized memory of that length, and returns it initialized.
#[inline(always)]
pub fn fill<'a, const N: usize>(
    place: &'a mut [MaybeUninit<f32>],
    rows: [&[f32]; N],
    f: impl Fn([f32; N]) -> f32,
) -> &'a mut [f32] {
    assert_eq!(same_length(&rows), place.len(), "rows of one length");
    for (i, place) in place.iter_mut().enumerate() {
        place.write(f(at(&rows, i)));
    }
    // SAFETY: every element was just written.
    unsafe { place.assume_init_mut() }
}

/// Writes both results of `f` for rows of equal length, each to its own uninitialized memory of that length.
#[inline(always)]
pub fn fill_both<const N: usize>(
    [first, second]: [&mut [MaybeUninit<f32>]; 2],
    rows: [&[f32]; N],
    f: impl Fn([f32; N]) -> [f32; 2],
) {
    let n = same_length(&rows);
    assert!(first.len() == n && second.len() == n, "rows of one length");
    for (i, (first, second)) in first.iter_mut().zip(second).enumerate() {
        let [one, other] = f(at(&rows, i));
        first.write(one);
        second.write(other);
    }
}

/// Replaces the elements of a row by `f` of them and of rows of the same length.
#[inline(always)]
pub fn update<const N: usize>(row: &mut [f32], rows: [&[f32]; N], f: impl Fn(f32, [f32; N]) -> f32) {
    assert!(rows.iter().all(|other| other.len() == row.len()), "rows of one length");
    for (i, value) in row.iter_mut().enumerate() {
        *value = f(*value, at(&rows, i));
    }
}

#[inline(always)]
fn same_length<const N: usize>(rows: &[&[f32]; N]) -> usize {
    let n = rows[0].len();
    assert!(rows.iter().all(|row| row.len() == n), "rows of one length");
    n
}

#[inline(always)]
fn at<const N: usize>(rows: &[&[f32]; N], i: usize) -> [f32; N] {
    let mut values = [0.0; N];
    for (value, row) in values.iter_mut().zip(rows) {
        // SAFETY: the callers above stay within the common length of the rows, which they checked.
        *value = unsafe { *row.get_unchecked(i) };
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_sigmoid_are_as_exact_as_f32_allows() {
        for i in -860_000..870_000 {
            let x = i as f32 * 1e-4;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 3e-7, "exp({x}) = {got}, not {want}");
            let (s, t) = sigmoid(x.clamp(-79.0, 79.0));
            let want = 1.0 / (1.0 + (-f64::from(x.clamp(-79.0, 79.0))).exp());
            assert!((f64::from(s) / want - 1.0).abs() < 5e-7, "sigmoid({x})");
            assert!((s + t - 1.0).abs() < 3e-7);
        }
        assert!(exp(f32::NAN).is_nan() && sigmoid(f32::NAN).0.is_nan());
        assert!(exp(f32::INFINITY).is_finite() && exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn normal_distribution_is_that_of_tables() {
        // Φ to 15 digits or more, by `erfc` in 40-digit arithmetic.
        let table: [(f32, f64); 34] = [
            (-12.0, 1.776482112077679e-33),
            (-9.5, 1.049451507536261e-21),
            (-7.25, 2.083858158672069e-13),
            (-6.0, 9.86587645037698e-10),
            (-5.0, 2.866515718791939e-7),
            (-4.5, 3.39767312473006e-6),
            (-4.0, 3.167124183311992e-5),
            (-3.5, 0.000232629079035525),
            (-3.0, 0.001349898031630095),
            (-2.75, 0.002979763235054557),
            (-2.5, 0.006209665325776135),
            (-2.25, 0.0122244726550447),
            (-2.0, 0.02275013194817921),
            (-1.75, 0.04005915686381709),
            (-1.5, 0.06680720126885807),
            (-1.25, 0.1056497736668553),
            (-1.0, 0.1586552539314571),
            (-0.875, 0.1907869528525106),
            (-0.75, 0.2266273523768682),
            (-0.625, 0.2659855290487005),
            (-0.5, 0.3085375387259869),
            (-0.375, 0.3538302333272762),
            (-0.25, 0.4012936743170763),
            (-0.125, 0.4502617751698871),
            (-0.0078125, 0.4968832951391574),
            (0.0, 0.5),
            (0.25, 0.5987063256829237),
            (0.5, 0.6914624612740131),
            (1.0, 0.8413447460685429),
            (1.5, 0.9331927987311419),
            (2.0, 0.9772498680518208),
            (3.0, 0.9986501019683699),
            (4.0, 0.9999683287581669),
            (6.0, 0.9999999990134124),
        ];
        for (x, want) in table {
            let got = f64::from(normal(x).0);
            assert!((got - want).abs() < 1.5e-7 && (got / want - 1.0).abs() < 2e-6, "Φ({x}) = {got}, not {want}");
        }
        assert!(normal(f32::NAN).0.is_nan());
        assert_eq!(normal(1e30).0, 1.0);
        assert!(normal(-1e30).0 < 1e-37);
    }

    #[test]
    fn sums_and_maxima_cover_every_length() {
        for n in [0, 1, 31, 32, 33, 100] {
            let values: Vec<f32> = (0..n).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
            assert_eq!(sum([&values], |[x]| x), values.iter().sum::<f32>());
            assert_eq!(max(&values), values.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}

//! Noise levels between two ends, spread along a curve.

/// `steps` levels from `most` to `least`, even in their seventh root: equation 5 of Karras et al. 2022.
pub(super) fn karras(least: f64, most: f64, steps: usize) -> Vec<f64> {
    let (low, high) = (least.powf(1.0 / 7.0), most.powf(1.0 / 7.0));
    let share = |i| if i == 0 { 0.0 } else { i as f64 / (steps - 1) as f64 };
    (0..steps).map(|i| (high + share(i) * (low - high)).powi(7)).collect()
}

/// `steps` levels from `most` to `least`, both above zero, even in their logarithm.
pub(super) fn exponential(least: f64, most: f64, steps: usize) -> Vec<f64> {
    let (low, high) = (least.ln(), most.ln());
    let share = |i| if i == 0 { 0.0 } else { i as f64 / (steps - 1) as f64 };
    (0..steps).map(|i| (high + share(i) * (low - high)).exp()).collect()
}

/// `steps` levels from `most` to `least` at even quantiles of the beta distribution with both parameters 0.6, which is denser at
/// its ends (Lee et al. 2024, arXiv 2407.12173).
pub(super) fn beta(least: f64, most: f64, steps: usize) -> Vec<f64> {
    let share = |i| if i == 0 { 0.0 } else { i as f64 / (steps - 1) as f64 };
    (0..steps).map(|i| least + quantile(1.0 - share(i)) * (most - least)).collect()
}

/// Both parameters of the beta distribution.
const SHAPE: f64 = 0.6;

/// `B(0.6, 0.6)`.
const BETA: f64 = 2.415_344_208_002_472_3;

/// Where the beta distribution reaches `probability`, by halving. It is symmetric.
fn quantile(probability: f64) -> f64 {
    if probability > 0.5 {
        return 1.0 - quantile(1.0 - probability);
    }
    let (mut low, mut high) = (0.0, 0.5);
    // Until the two are neighbours; a quantile near zero needs more than the 53 bits of a number near one.
    for _ in 0..200 {
        let middle = (low + high) / 2.0;
        *(if cumulative(middle) < probability { &mut low } else { &mut high }) = middle;
    }
    high
}

/// The regularized incomplete beta function at `x` in [0, 0.5], as a continued fraction (DLMF 8.17.22), which converges fast there.
fn cumulative(x: f64) -> f64 {
    let coefficient = |n: usize| {
        let (m, a) = ((n / 2) as f64, SHAPE);
        match n % 2 {
            0 => m * (a - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m)),
            _ => -(a + m) * (2.0 * a + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0)),
        }
    };
    let fraction = (1..=80).rev().fold(1.0, |fraction, n| 1.0 + coefficient(n) / fraction);
    (x * (1.0 - x)).powf(SHAPE) / (SHAPE * BETA * fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_beta_distribution() {
        // scipy.stats.beta.ppf(p, 0.6, 0.6)
        for (p, expected) in [
            (0.0, 0.0),
            (1e-6, 1.855_882_462_405_304_3e-10),
            (0.01, 0.000_861_238_821_542_905_9),
            (0.1, 0.039_584_405_588_780_81),
            (0.25, 0.175_680_378_652_694_98),
            (0.5, 0.5),
            (0.6, 0.637_299_009_246_785_6),
            (0.9, 0.960_415_594_411_219_2),
            (0.999, 0.999_981_441_261_482_6),
            (1.0, 1.0),
        ] {
            let found = quantile(p);
            assert!((found - expected).abs() <= 1e-12 * expected + 1e-30, "{p}: {found} is not {expected}");
        }
    }
}

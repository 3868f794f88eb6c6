//! Counter-based random numbers: every draw is a pure function of (seed, purpose, step, sample).
//!
//! No state is carried from one draw to the next, so a resumed run continues bit for bit, validation cannot affect training, and the
//! values are the same on every device: they are computed on the host, in f32, by ChaCha8.

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rand_distr::{Distribution, StandardNormal, StandardUniform};

/// The purpose of a draw. Two purposes never share values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The noise of the VAE posterior.
    Posterior,
    /// The noise that is mixed into the latents in training.
    Noise,
    /// The noise that a generated image starts from.
    Start,
    /// The noise level.
    Sigma,
    /// Dropping the caption or the condition of a sample.
    Condition,
    /// Dropout inside a LoRA adapter.
    Dropout,
    /// The order of the samples in an epoch.
    Order,
    /// Initial values of adapters.
    Init,
    /// Weights that stand in for a checkpoint.
    Weights,
    /// The split into training and held-out samples.
    Split,
    /// The noise of held-out losses.
    Validation,
    /// The noise that a sampler adds between two steps.
    Sampler,
    /// The common offset of a channel's noise in training.
    Offset,
}

impl Purpose {
    /// The key of its streams. Changing one changes every resumed run.
    fn key(self) -> &'static [u8] {
        match self {
            Self::Posterior => b"posterior",
            Self::Noise => b"noise",
            Self::Start => b"start",
            Self::Sigma => b"sigma",
            Self::Condition => b"condition",
            Self::Dropout => b"dropout",
            Self::Order => b"order",
            Self::Init => b"init",
            Self::Weights => b"weights",
            Self::Split => b"split",
            Self::Validation => b"validation",
            Self::Sampler => b"sampler",
            Self::Offset => b"offset",
        }
    }
}

/// The root of all randomness of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub u64);

impl Seed {
    /// The stream for `purpose`, `step` and `sample`. Equal arguments give equal numbers, always.
    pub fn draw(self, purpose: Purpose, step: u64, sample: u64) -> Stream {
        self.keyed(purpose, &[&step.to_le_bytes(), &sample.to_le_bytes()])
    }

    /// The stream for `purpose` and a name, for things that are known by name, such as a layer.
    pub fn named(self, purpose: Purpose, name: &str) -> Stream {
        self.keyed(purpose, &[name.as_bytes()])
    }

    /// A seed of its own for the thing called `name`.
    pub fn derive(self, name: &str) -> Self {
        let key = self.hash(&[b"derive", name.as_bytes()]);
        Self(u64::from_le_bytes(key[..8].try_into().expect("a hash has 32 bytes")))
    }

    fn keyed(self, purpose: Purpose, parts: &[&[u8]]) -> Stream {
        let parts: Vec<&[u8]> = std::iter::once(purpose.key()).chain(parts.iter().copied()).collect();
        Stream(ChaCha8Rng::from_seed(self.hash(&parts)))
    }

    fn hash(self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("kiln random stream, version 1");
        hasher.update(&self.0.to_le_bytes());
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        *hasher.finalize().as_bytes()
    }
}

/// One stream of numbers.
#[derive(Clone, Debug)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// `count` numbers from N(0, 1).
    pub fn normal(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| StandardNormal.sample(&mut self.0)).collect()
    }

    /// `count` numbers, uniform in [0, 1).
    pub fn uniform(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| StandardUniform.sample(&mut self.0)).collect()
    }

    /// The numbers 0..count in random order (Fisher–Yates).
    pub fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            let draw: f64 = StandardUniform.sample(&mut self.0);
            order.swap(last, (draw * (last + 1) as f64) as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_give_equal_numbers_and_different_keys_do_not() {
        let noise = |seed, step, sample| Seed(seed).draw(Purpose::Noise, step, sample).normal(8);
        assert_eq!(noise(1, 2, 3), noise(1, 2, 3));
        assert_ne!(noise(1, 2, 3), noise(2, 2, 3));
        assert_ne!(noise(1, 2, 3), noise(1, 3, 3));
        assert_ne!(noise(1, 2, 3), noise(1, 3, 2));
        assert_ne!(noise(1, 2, 3), Seed(1).draw(Purpose::Posterior, 2, 3).normal(8));
    }

    #[test]
    fn the_numbers_are_those_of_the_first_release() {
        let drawn = Seed(42).draw(Purpose::Noise, 7, 3).normal(3);
        assert_eq!(drawn, [-1.7077048, -0.7904895, -0.22445986]);
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let draws = Seed(7).draw(Purpose::Noise, 0, 0).normal(100_000);
        let mean = draws.iter().sum::<f32>() / draws.len() as f32;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / draws.len() as f32;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "mean {mean}, variance {variance}");
    }

    #[test]
    fn a_permutation_holds_every_number_once() {
        let mut order = Seed(3).draw(Purpose::Order, 5, 0).permutation(100);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}

//! The error of a computed value, and its tolerance.
//!
//! - **f32** against a golden: the largest difference, within the golden's own tolerance.
//! - **bf16** against a golden: the relative error (root mean square) of each tensor, within twice that of diffusers itself in bf16. Two
//!   programs that round at different points are about as far from each other as from the truth; one with a larger error than rounding
//!   is further away.
//! - **TF32** against a golden: some backends multiply f32 matrices on a GPU's tensor cores, which read 10 bits of each factor, a
//!   relative 2⁻¹¹. Where f32 misses its bound on a GPU, the bound is twice what diffusers makes with factors rounded so.
//! - **a kernel** against the CPU in f32: the relative error of its output, and of each gradient. In f32 a few units in the last
//!   place. In TF32 one rounding for each factor of the products that stand one behind the other; in bf16 two more, within and of
//!   the result. Roundings are independent: their squares add up.
//!
//! A single number may be right by chance, in diffusers too: no bound is below one rounding.

use burn::tensor::{DType, Device, FloatDType, TensorData};
use serde::Serialize;

use super::{
    Golden,
    golden::{relative, share},
};
use crate::{
    device,
    error::{Error, Result},
};

/// The largest relative error of rounding to bf16: 8 bits, to the nearest.
const BF16_ROUNDING: f64 = 1.0 / 256.0;
/// The same for TF32, of 11 bits with the leading one.
const TF32_ROUNDING: f64 = 1.0 / 2048.0;
/// The relative error of a kernel in f32, whose sums may run in another order: 84 units in the last place.
const F32_KERNEL: f64 = 1e-5;

/// The dtype that values are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 24 bits.
    F32,
    /// f32 with factors of products rounded to 11 bits.
    Tf32,
    /// 8 bits.
    Bf16,
}

/// An error and its bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Check {
    /// The precision.
    pub precision: Precision,
    /// The error.
    pub error: f64,
    /// The tolerance.
    pub bound: f64,
}

impl Check {
    /// Compares a tensor computed with a model in `dtype` with its golden.
    ///
    /// # Errors
    /// There is no such golden, it has another shape, or diffusers was not measured in this precision.
    pub fn golden(golden: &Golden, name: &str, got: TensorData, dtype: FloatDType) -> Result<Self> {
        let difference = golden.compare(name, got)?;
        let lower = |precision, measured: f64, rounding| {
            let bound = (2.0 * measured).max(rounding);
            Self { precision, error: difference.relative, bound }
        };
        if dtype == FloatDType::F32 {
            let exact = Self { precision: Precision::F32, error: difference.largest, bound: difference.allowed };
            // Without a measurement there is no such bound.
            let tf32 = golden.precision(name).ok().map(|(_, tf32)| lower(Precision::Tf32, tf32, TF32_ROUNDING));
            return Ok(exact.or(!device::is_cpu(&golden.device), tf32));
        }
        let bf16 = golden.precision(name)?.0.ok_or_else(|| {
            let problem = format!("`{name}` of {} was not measured in bf16", golden.name());
            Error::file(golden.folder.with_file_name("precision.json"), problem)
        })?;
        Ok(lower(Precision::Bf16, bf16, BF16_ROUNDING))
    }

    /// Compares the result of a kernel in `dtype` on `device` with that of the CPU from the same values in f32. `products` is the length of
    /// its chain of matrix products.
    pub fn kernel(got: TensorData, want: &TensorData, dtype: FloatDType, products: u32, device: &Device) -> Self {
        let floats = |data: TensorData| data.convert_dtype(DType::F32).into_vec::<f32>().expect("it was converted");
        let error = relative(&floats(got), &floats(want.clone()));
        let check = |precision, bound| Self { precision, error, bound };
        let factors = f64::from(2 * products);
        match dtype {
            FloatDType::F32 => {
                let tf32 = (products > 0).then(|| check(Precision::Tf32, TF32_ROUNDING * factors.sqrt()));
                check(Precision::F32, F32_KERNEL).or(!device::is_cpu(device), tf32)
            }
            _ => check(Precision::Bf16, BF16_ROUNDING * (2.0 + factors).sqrt()),
        }
    }

    /// Itself, or the check in TF32 if that is possible and the error is too large for f32.
    fn or(self, tensor_cores: bool, tf32: Option<Self>) -> Self {
        tf32.filter(|_| tensor_cores && !self.passes()).unwrap_or(self)
    }

    /// Whether the error is within the tolerance. NaN is not.
    pub fn passes(&self) -> bool {
        self.error <= self.bound
    }

    /// The error as a share of its tolerance.
    pub fn share(&self) -> f64 {
        share((self.error, self.bound))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(precision: Precision, error: f64) -> Check {
        Check { precision, error, bound: 1e-3 }
    }

    #[test]
    fn tf32_counts_only_where_it_is_possible_and_f32_is_missed() {
        let tf32 = check(Precision::Tf32, 1e-4);
        let (good, bad) = (check(Precision::F32, 1e-4), check(Precision::F32, f64::NAN));
        assert_eq!(good.or(true, Some(tf32)), good);
        assert_eq!(bad.or(true, Some(tf32)), tf32);
        assert!(!bad.or(false, Some(tf32)).passes() && !bad.or(true, None).passes());
        assert!(bad.share() > check(Precision::F32, 1e9).share(), "no number is worse than any");
    }

    #[test]
    fn a_kernel_is_held_to_the_roundings_of_its_type() {
        let device = Device::flex();
        let numbers = |by: f32| TensorData::new((1..100).map(|i| i as f32 * by).collect(), [99]);
        let check = |by, dtype, products| Check::kernel(numbers(by), &numbers(1.0), dtype, products, &device);
        assert!(check(1.000_005, FloatDType::F32, 0).passes() && !check(1.000_02, FloatDType::F32, 3).passes());
        assert!(check(1.005, FloatDType::BF16, 0).passes() && !check(1.006, FloatDType::BF16, 0).passes());
        assert!(check(1.01, FloatDType::BF16, 3).passes() && !check(1.012, FloatDType::BF16, 3).passes());
        let short = TensorData::new(vec![1.0f32], [1]);
        assert!(!Check::kernel(short, &numbers(1.0), FloatDType::BF16, 3, &device).passes());
    }
}

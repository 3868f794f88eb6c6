//! `[objective]` of kind `flow_matching`: the distribution and weighting of noise levels.

use documented::DocumentedFields;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Rule;

/// `[objective]` of kind `flow_matching`, for FLUX.1. The model learns `velocity = noise - latents` at a noise level `sigma` in (0, 1):
/// 0 is the image, 1 is noise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct FlowMatchingConfig {
    /// Distribution of the noise level sigma. Default `logit_normal`: the middle more often than the ends, as FLUX.1 was trained. `uniform`
    /// spends more steps on fine detail and on overall layout; `mode` is in between.
    pub sampling: Sampling,
    /// `logit_normal`: mean of n in sigma = 1 / (1 + e⁻ⁿ). Default 0. Above 0 means more noise (diffusers' scripts
    /// count the other way round): 0.5 for composition, -0.5 for texture.
    pub logit_mean: f64,
    /// `logit_normal`: standard deviation of n. Default 1. Smaller values stay closer to the middle.
    pub logit_std: f64,
    /// `mode`: how far from uniform. Default 1.29, as in the SD3 paper.
    pub mode_scale: f64,
    /// Timestep shift s of the drawn sigma: s·sigma / (1 + (s − 1)·sigma), more noise for s above 1. Default `resolution`: by the
    /// image's size, as at inference (1.88 at 512², 3.16 at 1024²). Or a number (1.0 changes nothing), or `none`.
    pub shift: Shift,
    /// Loss weighting by sigma. Default `none`: all the same. `sigma_sqrt` is sigma⁻²: nearly clean images count most. `cosmap`
    /// is 2 / (π·(1 − 2·sigma + 2·sigma²)): the middle counts most.
    pub weighting: Weighting,
    /// Guidance input of a distilled model while training. Default 1.0: other values train the adapter against the distillation.
    /// Images are sampled at `validation.guidance`.
    pub guidance: f64,
}

/// Distribution of noise levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// Uniform.
    Uniform,
    /// The logistic function of a normal variable.
    #[default]
    #[serde(alias = "logit-normal")]
    LogitNormal,
    /// Uniform, shifted to the middle by `mode_scale`.
    Mode,
}

/// Weight of a sample in the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// 1.
    #[default]
    None,
    /// sigma⁻²: nearly clean images count most.
    SigmaSqrt,
    /// 2 / (π·(1 − 2·sigma + 2·sigma²)): the middle counts most.
    Cosmap,
}

/// Shift of the drawn noise levels. In TOML `"none"`, `"resolution"` or a number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Shift {
    /// No shift.
    None,
    /// By the size of the image.
    #[default]
    Resolution,
    /// By this number, for all sizes.
    Static(f64),
}

impl Default for FlowMatchingConfig {
    fn default() -> Self {
        Self {
            sampling: Sampling::LogitNormal,
            logit_mean: 0.0,
            logit_std: 1.0,
            mode_scale: 1.29,
            shift: Shift::Resolution,
            weighting: Weighting::None,
            guidance: 1.0,
        }
    }
}

impl FlowMatchingConfig {
    /// The rules for its values.
    pub(super) fn rules(&self) -> Vec<Rule> {
        let shift_is_positive = !matches!(self.shift, Shift::Static(s) if !(s.is_finite() && s > 0.0));
        vec![
            (self.logit_mean.is_finite(), "objective.logit_mean", "must be a finite number"),
            (self.logit_std.is_finite() && self.logit_std > 0.0, "objective.logit_std", "must be above 0"),
            (
                (-1.0..=1.75).contains(&self.mode_scale),
                "objective.mode_scale",
                "must be from -1 to 1.75, or sigma would leave 0 to 1",
            ),
            (shift_is_positive, "objective.shift", "must be above 0 (1.0 changes nothing)"),
            (self.guidance.is_finite() && self.guidance >= 0.0, "objective.guidance", "must be at least 0"),
        ]
    }
}

impl Serialize for Shift {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::Resolution => serializer.serialize_str("resolution"),
            Self::Static(shift) => serializer.serialize_f64(*shift),
        }
    }
}

impl<'de> Deserialize<'de> for Shift {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Shift;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a number, \"resolution\" or \"none\"")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Shift, E> {
                match word {
                    "none" => Ok(Shift::None),
                    "resolution" => Ok(Shift::Resolution),
                    _ => Err(E::unknown_variant(word, &["resolution", "none"])),
                }
            }

            fn visit_f64<E>(self, shift: f64) -> Result<Shift, E> {
                Ok(Shift::Static(shift))
            }

            fn visit_i64<E>(self, shift: i64) -> Result<Shift, E> {
                Ok(Shift::Static(shift as f64))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

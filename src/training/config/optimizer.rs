//! `[optimizer]` and `[schedule]`: the update rule and the learning rate.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::Rule;
use crate::quantization::MOMENT_BLOCK;

/// `[optimizer]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// The update rule. Default `adamw`, as in torch: decoupled weight decay, bias-corrected moments, state in f32. `adamw8bit` keeps the
    /// moments in 8 bits between steps, as bitsandbytes does: 2 bytes for each trainable parameter instead of 8. Use it when all weights of
    /// a UNet are trained and memory is short; the moments of a LoRA are small.
    pub name: OptimizerName,
    /// Step size after warm-up. Default 1e-4, the usual one for LoRA with gaussian start. Lower it (3e-5) when samples
    /// become noisy or over-saturated; raise it (3e-4) for small ranks or very short runs.
    pub learning_rate: f64,
    /// Decay of the two moments: the moving averages of the gradient and of its square. Default `[0.9, 0.999]`. A second value of
    /// 0.99 reacts faster in runs of a few hundred steps.
    pub betas: [f64; 2],
    /// Added to the root of the second moment. Default 1e-8, as torch. Rarely changed.
    pub epsilon: f64,
    /// Decoupled weight decay: each step shrinks every trained parameter by learning_rate × weight_decay. Default 1e-4, as in
    /// diffusers' trainers (torch and others use 1e-2). At the default learning rate even 1e-2 is one part in a million per step,
    /// so it hardly matters in a LoRA run of a few thousand steps; to hold an adapter back, lower the rank.
    pub weight_decay: f64,
    /// Gradient clipping: the norm over all trained parameters is scaled down to this. Default 1.0; 0 turns it off. It limits
    /// the damage of a single odd batch.
    pub max_grad_norm: f64,
}

/// The update rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay.
    #[default]
    Adamw,
    /// The same with moments in 8 bits, for tensors of at least 4096 values.
    Adamw8bit,
}

/// `[schedule]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// Learning rate after warm-up. Default `constant`, which lets a run be lengthened; `cosine` ends smoother when `max_steps`
    /// is final. Also `linear`, `cosine_with_restarts` and `polynomial`.
    pub name: ScheduleName,
    /// Optimizer steps over which the learning rate rises from 0. Default 0: bias correction and clipping are enough for a LoRA,
    /// which starts without effect. Use 50 to 100 with large learning rates.
    pub warmup_steps: u64,
    /// Number of cycles of `cosine_with_restarts`. Default 1.
    pub cycles: u64,
    /// Exponent of `polynomial`. Default 1.0, a straight line.
    pub power: f64,
}

/// Shape of the learning rate over the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleName {
    /// Constant.
    #[default]
    Constant,
    /// Linear decay to 0 at `max_steps`.
    Linear,
    /// Half a cosine wave down to 0.
    Cosine,
    /// Half a cosine wave down to 0, `cycles` times.
    CosineWithRestarts,
    /// Polynomial decay to 1e-7.
    Polynomial,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            name: OptimizerName::Adamw,
            learning_rate: 1e-4,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 1e-4,
            max_grad_norm: 1.0,
        }
    }
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { name: ScheduleName::Constant, warmup_steps: 0, cycles: 1, power: 1.0 }
    }
}

impl OptimizerName {
    /// Whether the moments of a tensor of so many values are kept in 8 bits; those of small tensors are f32, as in bitsandbytes.
    pub fn is_eight_bit(self, count: usize) -> bool {
        const LEAST: usize = 4096;
        self == Self::Adamw8bit && count >= LEAST
    }

    /// The size in bytes of both moments of a tensor of so many values.
    pub fn bytes_of_moments(self, count: usize) -> u64 {
        let count = count as u64;
        match self.is_eight_bit(count as usize) {
            true => 2 * (count + 4 * count.div_ceil(MOMENT_BLOCK as u64)),
            false => 8 * count,
        }
    }
}

impl OptimizerConfig {
    /// The rules for its values.
    pub(super) fn rules(&self) -> Vec<Rule> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let not_negative = |x: f64| x.is_finite() && x >= 0.0;
        let betas_hold = self.betas.iter().all(|beta| (0.0..1.0).contains(beta));
        vec![
            (positive(self.learning_rate), "optimizer.learning_rate", "must be above 0"),
            (betas_hold, "optimizer.betas", "must both be at least 0 and below 1"),
            (positive(self.epsilon), "optimizer.epsilon", "must be above 0"),
            (not_negative(self.weight_decay), "optimizer.weight_decay", "must be at least 0"),
            (not_negative(self.max_grad_norm), "optimizer.max_grad_norm", "must be at least 0 (0 turns it off)"),
        ]
    }
}

impl ScheduleConfig {
    /// The rules for its values.
    pub(super) fn rules(&self) -> Vec<Rule> {
        vec![
            (self.cycles > 0, "schedule.cycles", "must be at least 1"),
            (self.power.is_finite() && self.power > 0.0, "schedule.power", "must be above 0"),
        ]
    }
}

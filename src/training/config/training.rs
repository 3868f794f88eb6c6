//! `[training]`: the mode and length of a training.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::Rule;

/// `[training]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct LoopConfig {
    /// What to train. Default `lora`: adapters on the layers that `[lora]` names. `full` trains every parameter of the
    /// denoiser, with a tenth of the learning rate or less; it needs `model.dtype = "f32"` and four times the memory of the
    /// weights, or two and a half times with `optimizer.name = "adamw8bit"`.
    pub mode: Mode,
    /// Optimizer steps of the whole run. Default 1000. A style or a subject of 10 to 30 images needs 500 to 2000;
    /// watch the held-out loss.
    pub max_steps: u64,
    /// Batches whose gradients are averaged into one step: the effective batch is `data.batch_size` times this, at the
    /// memory of one batch. Default 1. Raise it when the loss is too noisy and a larger batch does not fit.
    pub gradient_accumulation: u64,
    /// Decay of the EMA of the trained parameters, such as 0.9999. Default 0, no EMA. With one, validation and export use the EMA,
    /// which is smoother; it ramps up from the start, and costs the memory of the trained parameters once more: on the device at
    /// the memory level `none`, else on the host, which takes time for the copy at each step.
    pub ema_decay: f64,
    /// Activation checkpointing. Default `blockwise`: keeps the input of each block and recomputes the block in the backward
    /// pass, so that peak memory is one block. `full` keeps all activations: faster where they fit.
    pub activations: Activations,
    /// Steps between two lines of `metrics.jsonl` and of the display. Default 10. Reading the loss waits for the
    /// device, so 1 costs a little speed on a GPU and nothing on a CPU.
    pub log_every: u64,
}

/// The training mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Low-rank adapters on a frozen model.
    #[default]
    Lora,
    /// All weights of the denoiser.
    Full,
}

/// Activations kept for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activations {
    /// The input of each block.
    #[default]
    Blockwise,
    /// Every intermediate result.
    Full,
}

/// The most optimizer steps of a run: at one step per millisecond, twelve days.
const MOST_STEPS: u64 = 1_000_000_000;

/// The most batches per step.
const MOST_BATCHES: u64 = 1_000_000;

impl Default for LoopConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Lora,
            max_steps: 1000,
            gradient_accumulation: 1,
            ema_decay: 0.0,
            activations: Activations::Blockwise,
            log_every: 10,
        }
    }
}

impl LoopConfig {
    /// The rules for its values.
    pub(super) fn rules(&self) -> Vec<Rule> {
        vec![
            ((1..=MOST_STEPS).contains(&self.max_steps), "training.max_steps", "must be from 1 to 1000000000"),
            (
                (1..=MOST_BATCHES).contains(&self.gradient_accumulation),
                "training.gradient_accumulation",
                "must be from 1 to 1000000",
            ),
            ((0.0..1.0).contains(&self.ema_decay), "training.ema_decay", "must be at least 0 and below 1"),
            (self.log_every > 0, "training.log_every", "must be at least 1"),
        ]
    }
}

//! `[validation]`: how progress is judged.

use serde::{Deserialize, Serialize};

use super::Rule;

/// `[validation]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationConfig {
    /// Steps between two validations; Default 250. Before the first and after the last step there is one
    /// anyway, and with 0 only these. It does not disturb training: its noise is its own.
    pub every: u64,
    /// Captions to generate pictures for, without and with the adapter. Default none. Include one without the subject,
    /// to see what else the adapter changes.
    pub prompts: Vec<String>,
    /// Start noise of the pictures; each prompt is generated once a seed. Default `[0]`.
    pub seeds: Vec<u64>,
    /// Denoising steps a picture. Default 20.
    pub steps: usize,
    /// Width in pixels, a multiple of 16. Default 512.
    pub width: usize,
    /// Height in pixels, a multiple of 16. Default 512.
    pub height: usize,
    /// Distilled guidance of the pictures. Default 3.5, what FLUX.1-dev is sampled with. It has nothing to do with
    /// `objective.guidance`, and does nothing in models without a guidance input.
    pub guidance: f64,
    /// Noise levels at which the held-out loss is measured. Default `[0.1, 0.3, 0.5, 0.7, 0.9]`.
    pub sigmas: Vec<f64>,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self {
            every: 250,
            prompts: vec![],
            seeds: vec![0],
            steps: 20,
            width: 512,
            height: 512,
            guidance: 3.5,
            sigmas: vec![0.1, 0.3, 0.5, 0.7, 0.9],
        }
    }
}

impl ValidationConfig {
    /// What must hold.
    pub(super) fn rules(&self) -> Vec<Rule> {
        let size_holds = |pixels: usize| pixels > 0 && pixels.is_multiple_of(16);
        let seeds_hold = self.prompts.is_empty() || !self.seeds.is_empty();
        let sigmas_hold = !self.sigmas.is_empty() && self.sigmas.iter().all(|&sigma| sigma > 0.0 && sigma <= 1.0);
        vec![
            (seeds_hold, "validation.seeds", "must hold at least one seed for the prompts"),
            (self.steps > 0, "validation.steps", "must be at least 1"),
            (size_holds(self.width), "validation.width", "must be a multiple of 16 pixels"),
            (size_holds(self.height), "validation.height", "must be a multiple of 16 pixels"),
            (self.guidance.is_finite() && self.guidance >= 0.0, "validation.guidance", "must be at least 0"),
            (sigmas_hold, "validation.sigmas", "must hold noise levels above 0 and up to 1"),
        ]
    }
}

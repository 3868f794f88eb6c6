//! The `[lora]` table of a configuration file.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::Targets;
use crate::error::{Error, Result};

/// Which layers get an adapter, how large it is and how it starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of every adapter, at least 1. Default 16. A higher rank holds more detail, costs memory in proportion and overfits a
    /// small dataset sooner.
    pub rank: usize,
    /// An adapter's output is scaled by `alpha / rank`, so that one learning rate fits every rank. Default: equal to `rank`,
    /// which is scale 1.
    pub alpha: Option<f64>,
    /// The layers that get an adapter. Default `"attention"`: the layers that diffusers trains by default, which are attention and
    /// for FLUX also feed-forward layers. `"blocks"`: every linear layer that all programs load. `"all"`: every linear layer. Or a
    /// list of patterns such as `["attn.to_q", "transformer_blocks.{0-9}.*"]`.
    pub targets: Targets,
    /// Initial values of the matrix A; B starts at zero. Default `"gaussian"`, as in diffusers. `"kaiming"` is the choice of kohya and
    /// ai-toolkit. Their scales differ a lot, so a learning rate for one does not suit the other.
    pub init: Init,
    /// Dropout between an adapter's two matrices, from 0 to below 1. Default 0. It acts where kohya's `network_dropout` does, not on
    /// the layer's input as PEFT's `lora_dropout`.
    pub dropout: f64,
}

/// Initial values of the matrix A of an adapter; B starts at zero, so the model is unchanged at first. The scales of the two differ a
/// lot, so a learning rate for one does not suit the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// N(0, 1/rank²), that is standard deviation 1/rank, as diffusers does (PEFT's "gaussian").
    #[default]
    Gaussian,
    /// U(−1/√in, 1/√in), as kohya and ai-toolkit do (Kaiming-uniform with a = √5).
    Kaiming,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 16, alpha: None, targets: Targets::Attention, init: Init::default(), dropout: 0.0 }
    }
}

/// The width of FLUX.1's layers: a higher rank would not be low.
const LARGEST_RANK: usize = 3072;

impl LoraConfig {
    /// `alpha`, or the rank where it is not set.
    pub fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(self.rank as f64)
    }

    /// Checks every value by itself. Checking that the targets exist needs the model.
    ///
    /// # Errors
    /// Names the first field with an invalid value.
    pub fn validate(&self) -> Result<()> {
        if !(1..=LARGEST_RANK).contains(&self.rank) {
            let problem = format!("is {}, but must be from 1 to {LARGEST_RANK}", self.rank);
            return Err(Error::setting("lora.rank", problem).hint("4 to 64 are usual"));
        }
        if !(self.alpha().is_finite() && self.alpha() > 0.0) {
            return Err(Error::setting("lora.alpha", format!("is {}, but must be above 0", self.alpha()))
                .hint("leave it out to get alpha = rank"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::setting("lora.dropout", format!("is {}, but must be in [0, 1)", self.dropout)));
        }
        self.targets.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_is_the_default_and_unknown_keys_are_refused() {
        assert_eq!(toml::from_str::<LoraConfig>("").unwrap(), LoraConfig::default());
        assert!(toml::from_str::<LoraConfig>("rnak = 4").unwrap_err().to_string().contains("rnak"));
        let text = "rank = 4\nalpha = 8.0\ntargets = [\"attn.to_q\"]\ninit = \"kaiming\"\ndropout = 0.5\n";
        let config: LoraConfig = toml::from_str(text).unwrap();
        assert_eq!(toml::from_str::<LoraConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
        assert_eq!((config.rank, config.alpha(), config.init), (4, 8.0, Init::Kaiming));
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        for (text, field) in [
            ("rank = 0", "lora.rank"),
            ("alpha = 0.0", "lora.alpha"),
            ("alpha = inf", "lora.alpha"),
            ("dropout = 1.0", "lora.dropout"),
            ("targets = []", "lora.targets"),
            ("targets = [\"blocks.{1,x}.a\"]", "lora.targets"),
        ] {
            let error = toml::from_str::<LoraConfig>(text).unwrap().validate().unwrap_err().to_string();
            assert!(error.contains(field), "{text}: {error}");
        }
    }
}

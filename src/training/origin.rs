//! The origin of a run: its model, its data and their fingerprints.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::TrainConfig;
use crate::{
    data::{self, LatentDataset},
    error::{Error, Result},
    families::Family,
};

/// The origin of a run, by content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Fingerprint of images, captions, and their encoders.
    pub dataset: String,
    /// Fingerprint of the denoiser and the noise schedule.
    pub base_model: String,
}

impl Origin {
    /// The origin of a run on the model of this family in the folder `model`, and a dataset.
    ///
    /// # Errors
    /// The model cannot be read.
    pub fn of(model: &Path, family: &dyn Family, dataset: &LatentDataset) -> Result<Self> {
        Ok(Self { dataset: dataset.fingerprint(), base_model: Self::base_model(model, family)? })
    }

    fn base_model(model: &Path, family: &dyn Family) -> Result<String> {
        data::fingerprint(&family.parts().map(|part| model.join(part)), "")
    }

    /// # Errors
    /// `now` differs from the origin that the run of `config` was started with.
    pub fn check(&self, now: &Self, config: &TrainConfig) -> Result<()> {
        if self.dataset != now.dataset {
            let problem = "the images or captions are not those that the run was started with";
            return Err(Error::file(&config.data.path, problem)
                .hint("bring the data back, or start a new run without `resume`"));
        }
        let next_move = "bring that model back, or start a new run without `resume`";
        self.same_model(&now.base_model, Path::new(&config.model.path)).map_err(|e| e.hint(next_move))
    }

    /// # Errors
    /// The model of this family in the folder `model` is not the base model that the run was started with.
    pub fn check_model(&self, model: &Path, family: &dyn Family) -> Result<()> {
        let next_move = "tell where that model is now with `model`";
        self.same_model(&Self::base_model(model, family)?, model).map_err(|e| e.hint(next_move))
    }

    fn same_model(&self, now: &str, model: &Path) -> Result<()> {
        let problem = "the base model is not the one that the run was started with";
        if self.base_model == now { Ok(()) } else { Err(Error::file(model, problem)) }
    }
}

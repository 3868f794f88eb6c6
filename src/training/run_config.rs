//! Reading the configuration of a run from its folder, written by any version of kiln.

use std::path::Path;

use super::{CONFIG, Mode, TrainConfig, checkpoint::Checkpoint};
use crate::{config::Sources, error::Result, families::ObjectiveKind, weights::TensorFile};

/// The resolved configuration in the folder of a run, with overrides as in [`TrainConfig::load`].
///
/// Version 0.1 wrote two tables of objectives into every run, `[objective]` for FLUX.1 and `[edit]` for Stable Diffusion, and the
/// model decided which one counted. The checkpoint shows which model it was.
///
/// # Errors
/// As [`TrainConfig::load`]; or a checkpoint is broken.
pub fn run_config(run: &Path, overrides: &[String]) -> Result<TrainConfig> {
    let path = run.join(CONFIG);
    let sources = Sources::read(&path, overrides)?;
    let mut document = sources.document()?;
    let kind = match document.take_table("edit") {
        None => document.take("objective", "kind")?.unwrap_or_default(),
        Some(edit) if trained_a_unet(run)? => {
            document.put_table("objective", edit);
            ObjectiveKind::InstructPix2Pix
        }
        Some(_) => ObjectiveKind::FlowMatching,
    };
    TrainConfig::from_document(document, kind, &path)
}

/// Whether the newest checkpoint of a run of version 0.1 holds a UNet, or an adapter for one; `None` without a checkpoint.
fn trained_a_unet(run: &Path) -> Result<bool> {
    let Some(checkpoint) = Checkpoint::all(run)?.pop() else { return Ok(false) };
    if checkpoint.state()?.mode == Mode::Full {
        return Ok(true);
    }
    Ok(TensorFile::open(checkpoint.trained(false)?)?.names().iter().any(|name| name.starts_with("unet.")))
}

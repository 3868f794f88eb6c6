//! The metadata of adapter files, for kiln, viewers and other trainers.

use std::collections::BTreeMap;

use super::{TrainConfig, origin::Origin, prepare::Prepared};
use crate::{
    data::LatentDataset,
    error::Result,
    families::Architecture,
    lora::{self, Lora},
};

/// The metadata of a run's adapters.
///
/// # Errors
/// A configuration of the base model is missing or broken.
pub(super) fn describe(config: &TrainConfig, prepared: &Prepared, origin: &Origin) -> Result<BTreeMap<String, String>> {
    let Prepared { model, family, dataset, .. } = prepared;
    let Architecture { name, implementation, version } = family.architecture(model)?;
    let trigger = config.data.trigger.trim();
    let pairs = [
        ("kiln.version", env!("CARGO_PKG_VERSION").to_string()),
        (lora::CONFIG, config.to_toml()?),
        (lora::BASE_MODEL, config.model.path.clone()),
        ("kiln.base_model_fingerprint", origin.base_model.clone()),
        ("kiln.dataset_fingerprint", origin.dataset.clone()),
        ("modelspec.sai_model_spec", "1.0.0".into()),
        ("modelspec.architecture", format!("{name}/lora")),
        ("modelspec.implementation", implementation.into()),
        ("modelspec.title", config.run.name.clone()),
        ("modelspec.resolution", format!("{0}x{0}", config.data.resolution)),
        ("ss_output_name", config.run.name.clone()),
        ("ss_sd_model_name", lora::name_of(&config.model.path)),
        ("ss_base_model_version", version.into()),
        ("ss_tag_frequency", tag_frequency(config, dataset)),
    ];
    let trigger = (!trigger.is_empty()).then(|| ("modelspec.trigger_phrase", trigger.to_string()));
    let pairs = pairs.into_iter().chain(trigger).chain(Lora::base_metadata(model)?);
    Ok(pairs.map(|(key, value)| (key.to_string(), value)).collect())
}

/// The frequency of tags in the captions, as kohya's scripts write it: tags are separated by commas, and counted below the name of the
/// data folder. Only the most frequent ones.
fn tag_frequency(config: &TrainConfig, dataset: &LatentDataset) -> String {
    const MOST: usize = 1000;
    let mut counts = BTreeMap::<&str, usize>::new();
    let captions = dataset.samples().iter().map(|sample| sample.caption.as_str());
    for tag in captions.flat_map(|caption| caption.split(',')).map(str::trim).filter(|tag| !tag.is_empty()) {
        *counts.entry(tag).or_default() += 1;
    }
    let mut tags: Vec<_> = counts.into_iter().collect();
    tags.sort_by_key(|(_, count)| std::cmp::Reverse(*count)); // stable: equal ones by name
    tags.truncate(MOST);
    let tags: BTreeMap<_, _> = tags.into_iter().collect();
    let folder = config.data.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    serde_json::json!({ folder: tags }).to_string()
}

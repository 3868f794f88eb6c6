//! All keys of a configuration, with their documentation and defaults, which come from the types.

use documented::DocumentedFields;

use super::{
    CheckpointConfig, DataConfig, FlowMatchingConfig, InstructPix2PixConfig, LoopConfig, LoraConfig, MemoryConfig,
    ModelConfig, ObjectiveConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig, ValidationConfig,
};
use crate::{
    config::reference::{self, KeyReference, TableReference},
    device::Dtype,
    families::ObjectiveKind,
};

/// Keys without a default, each with an example.
const REQUIRED: [(&str, &str, &str); 3] =
    [("run", "name", "my_run"), ("model", "path", "models/my_model"), ("data", "path", "datasets/my_images")];

/// Every key that a training of this kind reads.
pub fn reference(kind: ObjectiveKind) -> Vec<TableReference> {
    let defaults = toml::Table::try_from(defaults(kind)).expect("it is written into every run folder");
    let objective = match kind {
        ObjectiveKind::FlowMatching => (FlowMatchingConfig::FIELD_NAMES, FlowMatchingConfig::FIELD_DOCS),
        ObjectiveKind::InstructPix2Pix => (InstructPix2PixConfig::FIELD_NAMES, InstructPix2PixConfig::FIELD_DOCS),
    };
    let names = TrainConfig::<ObjectiveConfig>::FIELD_NAMES.iter().zip(TrainConfig::<ObjectiveConfig>::FIELD_DOCS);
    let table = |(&name, docs): (&&'static str, &&str)| {
        let (fields, field_docs) = match name {
            "run" => (RunConfig::FIELD_NAMES, RunConfig::FIELD_DOCS),
            "model" => (ModelConfig::FIELD_NAMES, ModelConfig::FIELD_DOCS),
            "data" => (DataConfig::FIELD_NAMES, DataConfig::FIELD_DOCS),
            "lora" => (LoraConfig::FIELD_NAMES, LoraConfig::FIELD_DOCS),
            "objective" => objective,
            "optimizer" => (OptimizerConfig::FIELD_NAMES, OptimizerConfig::FIELD_DOCS),
            "schedule" => (ScheduleConfig::FIELD_NAMES, ScheduleConfig::FIELD_DOCS),
            "training" => (LoopConfig::FIELD_NAMES, LoopConfig::FIELD_DOCS),
            "checkpoint" => (CheckpointConfig::FIELD_NAMES, CheckpointConfig::FIELD_DOCS),
            "validation" => (ValidationConfig::FIELD_NAMES, ValidationConfig::FIELD_DOCS),
            "memory" => (MemoryConfig::FIELD_NAMES, MemoryConfig::FIELD_DOCS),
            other => unreachable!("a table `{other}` without a reference; a test reads all of them"),
        };
        let values = defaults.get(name).and_then(toml::Value::as_table);
        let required: Vec<_> = REQUIRED.iter().filter(|(table, ..)| *table == name).map(|(_, key, _)| *key).collect();
        let mut table = TableReference::new(name, docs, (fields, field_docs), values, &required);
        table.keys.retain(|key| is_for(key, kind));
        if name == "objective" {
            let docs = "The objective of the training; it decides which other keys there are. Default `flow_matching`, for FLUX.1; \
                        Stable Diffusion needs `instruct_pix2pix`.";
            let value = values.and_then(|values| values.get("kind")).map(toml::Value::to_string);
            table.keys.insert(0, KeyReference { name: "kind", docs: docs.into(), value, is_required: false });
        }
        table
    };
    names.map(table).collect()
}

/// The same as a configuration file: every key below its documentation.
pub fn commented(kind: ObjectiveKind) -> String {
    let first = format!("Every key of a training with `objective.kind = \"{}\"`, with its default.", kind.word());
    reference::commented(&first, &reference(kind))
}

/// Whether a training of this kind reads the key: the documentation of others begins with the family that they are for.
fn is_for(key: &KeyReference, kind: ObjectiveKind) -> bool {
    !key.docs.starts_with(match kind {
        ObjectiveKind::FlowMatching => "Stable Diffusion:",
        ObjectiveKind::InstructPix2Pix => "FLUX.1:",
    })
}

/// A configuration with all defaults, and an example for every key without one.
fn defaults(kind: ObjectiveKind) -> TrainConfig {
    let [name, model, data] = REQUIRED.map(|(_, _, example)| example);
    TrainConfig {
        run: RunConfig { name: name.into(), seed: 0, output: super::run::checkpoints() },
        model: ModelConfig { path: model.into(), dtype: Dtype::default(), init: Default::default() },
        data: DataConfig { path: data.into(), ..Default::default() },
        objective: match kind {
            ObjectiveKind::FlowMatching => ObjectiveConfig::FlowMatching(Default::default()),
            ObjectiveKind::InstructPix2Pix => ObjectiveConfig::InstructPix2Pix(Default::default()),
        },
        lora: Default::default(),
        optimizer: Default::default(),
        schedule: Default::default(),
        training: Default::default(),
        checkpoint: Default::default(),
        validation: Default::default(),
        memory: Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reference::documented;

    const KINDS: [ObjectiveKind; 2] = [ObjectiveKind::FlowMatching, ObjectiveKind::InstructPix2Pix];

    #[test]
    fn the_commented_default_is_a_configuration_in_which_all_is_as_if_left_out() {
        for kind in KINDS {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), commented(kind)).unwrap();
            assert_eq!(TrainConfig::load(file.path(), &[]).unwrap(), defaults(kind));
        }
    }

    #[test]
    fn every_key_is_there_with_its_default_and_says_it() {
        let mut seen = std::collections::BTreeSet::new();
        for kind in KINDS {
            seen.extend(documented(&reference(kind)));
            let written = toml::Table::try_from(defaults(kind)).unwrap();
            for (table, keys) in &written {
                for key in keys.as_table().unwrap().keys() {
                    let read_by_another = reference(kind).iter().all(|t| t.keys.iter().all(|k| k.name != key));
                    assert!(seen.contains(&format!("{table}.{key}")) || read_by_another, "{table}.{key}");
                }
            }
        }
        assert!(
            seen.contains("validation.prompts") && seen.contains("validation.edits") && seen.len() > 60,
            "{seen:?}"
        );
    }
}

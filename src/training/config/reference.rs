//! All keys of a configuration with what they mean and their defaults. Both come from the types: the doc comments of the fields, and
//! [`Default`].

use documented::DocumentedFields;

use super::{
    CheckpointConfig, DataConfig, FlowMatchingConfig, InstructPix2PixConfig, LoopConfig, LoraConfig, MemoryConfig,
    ModelConfig, ObjectiveConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig, ValidationConfig,
};
use crate::{device::Dtype, families::ObjectiveKind};

/// One table of a configuration.
#[derive(Clone, Debug)]
pub struct TableReference {
    /// Its name, such as `lora`.
    pub name: &'static str,
    /// What it is about.
    pub docs: String,
    /// Its keys, in the order of their declaration.
    pub keys: Vec<KeyReference>,
}

/// One key of a table.
#[derive(Clone, Debug)]
pub struct KeyReference {
    /// Its name, such as `rank`.
    pub name: &'static str,
    /// What it does, and when to change it.
    pub docs: String,
    /// Its default as TOML; an example where `is_required`; nothing if it is not set by default.
    pub value: Option<String>,
    /// Whether there is no default.
    pub is_required: bool,
}

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
        let value = |key: &str| defaults.get(name).and_then(|table| table.get(key)).map(toml::Value::to_string);
        let key = |(&key, docs): (&&'static str, &&str)| KeyReference {
            name: key,
            docs: one_line(docs),
            value: value(key),
            is_required: REQUIRED.iter().any(|(table, required, _)| (*table, *required) == (name, key)),
        };
        let mut keys: Vec<_> = fields.iter().zip(field_docs).map(key).filter(|key| key.is_for(kind)).collect();
        if name == "objective" {
            let docs = "What the model is trained for; it decides which other keys there are. Default `flow_matching`, for FLUX.1; \
                        Stable Diffusion needs `instruct_pix2pix`.";
            keys.insert(0, KeyReference { name: "kind", docs: docs.into(), value: value("kind"), is_required: false });
        }
        TableReference { name, docs: one_line(docs), keys }
    };
    names.map(table).collect()
}

/// The same as a configuration file: every key with its documentation above it.
pub fn commented(kind: ObjectiveKind) -> String {
    let mut lines = vec![
        format!("# Every key of a training with `objective.kind = \"{}\"`, with its default.", kind.word()),
        "# Keys without a default hold an example; those behind a `#` are not set. What you leave out keeps its default.".into(),
    ];
    for TableReference { name, docs, keys } in reference(kind) {
        lines.push(String::new());
        lines.extend(comment(&docs));
        lines.push(format!("[{name}]"));
        for (number, KeyReference { name, docs, value, .. }) in keys.into_iter().enumerate() {
            if number > 0 {
                lines.push(String::new());
            }
            lines.extend(comment(&docs));
            lines.push(value.map_or_else(|| format!("# {name} ="), |value| format!("{name} = {value}")));
        }
    }
    lines.join("\n")
}

impl KeyReference {
    /// Whether a training of this kind reads it: the documentation of others begins with the family that they are for.
    fn is_for(&self, kind: ObjectiveKind) -> bool {
        !self.docs.starts_with(match kind {
            ObjectiveKind::FlowMatching => "Stable Diffusion:",
            ObjectiveKind::InstructPix2Pix => "FLUX.1:",
        })
    }
}

/// A configuration in which all is the default that has one.
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

fn one_line(docs: &str) -> String {
    docs.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A text as lines of a comment, at most 100 characters wide.
fn comment(text: &str) -> Vec<String> {
    let mut lines = vec!["#".to_string()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is one at least");
        if line.chars().count() + 1 + word.chars().count() > 100 {
            lines.push(format!("# {word}"));
        } else {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

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
            for table in reference(kind) {
                assert!(!table.keys.is_empty() && table.docs.ends_with('.'), "{}", table.name);
                for key in &table.keys {
                    let name = format!("{}.{}", table.name, key.name);
                    assert!(key.docs.ends_with('.') && !key.docs.contains("[`"), "{name}: {}", key.docs);
                    let says = if key.is_required { "No default" } else { "Default" };
                    assert!(key.docs.contains(says), "`{name}` does not say its default: {}", key.docs);
                    seen.insert(name);
                }
            }
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

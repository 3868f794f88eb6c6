//! All keys of `serve.toml`, with their documentation and defaults, which come from the types.

use documented::DocumentedFields;

use super::config::{ClusterConfig, LimitsConfig, ModelEntry, PageConfig, ResultsConfig, ServeConfig};
use crate::{
    config::reference::{self, TableForm, TableReference},
    memory::LevelChoice,
};

/// Every key of a server's configuration.
pub fn reference() -> Vec<TableReference> {
    let defaults = toml::Table::try_from(defaults()).expect("a configuration is a table of TOML's types");
    let own = (ServeConfig::FIELD_NAMES, ServeConfig::FIELD_DOCS);
    let docs = "The server: its address, its keys and its folders.";
    let mut top =
        TableReference { form: TableForm::Top, ..TableReference::new("", docs, own, Some(&defaults), &["state"]) };
    let (tables, keys) = top.keys.into_iter().partition(|key| {
        let value = defaults.get(key.name);
        key.name == "cluster" || value.is_some_and(|value| value.is_table() || key.name == "models")
    });
    top.keys = keys;
    let tables: Vec<_> = tables;
    let table = |key: reference::KeyReference| {
        let values = defaults.get(key.name).and_then(toml::Value::as_table);
        let new = |fields, values, required| TableReference::new(key.name, &key.docs, fields, values, required);
        match key.name {
            "models" => {
                let models = defaults["models"].as_array().and_then(|models| models.first()?.as_table());
                let table = new((ModelEntry::FIELD_NAMES, ModelEntry::FIELD_DOCS), models, &["name", "path"]);
                TableReference { form: TableForm::Repeated, ..table }
            }
            "limits" => new((LimitsConfig::FIELD_NAMES, LimitsConfig::FIELD_DOCS), values, &[]),
            "results" => new((ResultsConfig::FIELD_NAMES, ResultsConfig::FIELD_DOCS), values, &[]),
            "page" => new((PageConfig::FIELD_NAMES, PageConfig::FIELD_DOCS), values, &[]),
            "cluster" => {
                let values = toml::Table::try_from(cluster()).expect("a configuration is a table of TOML's types");
                let fields = (ClusterConfig::FIELD_NAMES, ClusterConfig::FIELD_DOCS);
                TableReference { form: TableForm::Optional, ..new(fields, Some(&values), &["queue", "store"]) }
            }
            other => unreachable!("a table `{other}` without a reference; a test reads all of them"),
        }
    };
    std::iter::once(top).chain(tables.into_iter().map(table)).collect()
}

/// The same as a configuration file: every key below its documentation.
pub fn commented() -> String {
    reference::commented(
        "Every key of the configuration of `kiln serve` and `kiln worker`, with its default.",
        &reference(),
    )
}

/// A configuration with all defaults, and an example for every key without one.
fn defaults() -> ServeConfig {
    let model = ModelEntry { name: "flux".into(), path: "models/my_model".into(), memory: LevelChoice::Auto };
    ServeConfig::new("checkpoints/serve", vec![model])
}

/// `[cluster]` with its defaults, and an example for every key without one.
fn cluster() -> ClusterConfig {
    ClusterConfig { queue: "nats://127.0.0.1:4222".into(), store: "/mnt/kiln".into(), ..ClusterConfig::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reference::documented;

    #[test]
    fn the_commented_default_is_a_configuration_with_all_defaults() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), commented()).unwrap();
        let all = defaults();
        assert_eq!(ServeConfig::load(file.path(), &[]).unwrap(), all);
        let least = "state = \"checkpoints/serve\"\n[[models]]\nname = \"flux\"\npath = \"models/my_model\"\n";
        std::fs::write(file.path(), least).unwrap();
        assert_eq!(ServeConfig::load(file.path(), &[]).unwrap(), all, "keys that are left out have these defaults");
        let set = commented()
            .replace("# [cluster]", "[cluster]")
            .replace("# queue =", "queue =")
            .replace("# store =", "store =");
        std::fs::write(file.path(), set).unwrap();
        assert_eq!(ServeConfig::load(file.path(), &[]).unwrap().cluster, Some(cluster()));
    }

    #[test]
    fn every_key_is_there_and_says_its_default() {
        let tables = reference();
        let seen = documented(&tables);
        for (table, key) in tables.iter().flat_map(|table| table.keys.iter().map(move |key| (table, key))) {
            assert_eq!(key.docs.contains("No default"), key.is_required, "{}.{}", table.name, key.name);
        }
        let with_cluster = ServeConfig { cluster: Some(cluster()), ..defaults() };
        for (name, value) in &toml::Table::try_from(with_cluster).unwrap() {
            let tables: Vec<_> = match value {
                toml::Value::Table(table) => vec![table],
                toml::Value::Array(tables) => tables.iter().filter_map(toml::Value::as_table).collect(),
                _ => vec![],
            };
            let keys = tables.into_iter().flat_map(|table| table.keys().map(|key| format!("{name}.{key}")));
            let own = (!value.is_table() && name != "models").then(|| format!(".{name}"));
            keys.chain(own).for_each(|key| assert!(seen.contains(&key), "`{key}` is missing"));
        }
        assert_eq!(seen.len(), 6 + 3 + 9 + 2 + 4 + 7, "{seen:?}");
    }
}

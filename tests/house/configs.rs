//! Every shipped configuration can be used, and matches the code.

use std::path::PathBuf;

use kiln::{
    config::reference::{KeyReference, TableReference},
    families::ObjectiveKind,
    serve::{
        self,
        config::{LimitsConfig, ResultsConfig, ServeConfig},
    },
    training::{TrainConfig, reference},
};

const SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/serve.toml");

/// The configurations of trainings.
fn shipped() -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/configs");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml") && !path.ends_with("serve.toml"));
    files.sort();
    files
}

#[test]
fn every_shipped_configuration_parses_validates_and_reads_back() {
    let files = shipped();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        let config = TrainConfig::load(&file, &[]).unwrap_or_else(|e| panic!("{e}"));
        let resolved = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(resolved.path(), config.to_toml().unwrap()).unwrap();
        assert_eq!(TrainConfig::load(resolved.path(), &[]).unwrap(), config, "{}", file.display());
        let stem = file.file_stem().unwrap().to_string_lossy();
        assert_eq!(config.run.name, stem, "two configurations must not share a run folder");
    }
}

#[test]
fn an_unknown_key_in_any_table_is_refused_with_its_line() {
    for file in shipped() {
        let text = std::fs::read_to_string(&file).unwrap();
        let tables: Vec<_> = text.lines().filter(|line| line.starts_with('[')).map(|line| line.trim()).collect();
        for table in tables {
            let broken = text.replacen(table, &format!("{table}\nlerning_rate = 1"), 1);
            let line = broken.lines().position(|line| line.starts_with("lerning_rate")).unwrap() + 1;
            let name = table.trim_matches(['[', ']']);
            let target = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(target.path(), broken).unwrap();
            let error = TrainConfig::load(target.path(), &[]).unwrap_err().to_string();
            let expected = format!("line {line}: `{name}.lerning_rate`: unknown key `lerning_rate`");
            assert!(error.contains(&expected), "{}: {error}", file.display());
        }
    }
}

#[test]
fn an_unknown_table_is_refused_with_a_suggestion() {
    let text = std::fs::read_to_string(&shipped()[0]).unwrap() + "\n[optimiser]\nlearning_rate = 1\n";
    let target = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(target.path(), text).unwrap();
    let error = TrainConfig::load(target.path(), &[]).unwrap_err().to_string();
    assert!(error.contains("unknown key `optimiser`") && error.ends_with("did you mean `optimizer`?"), "{error}");
}

#[test]
fn the_shipped_server_says_what_the_code_says() {
    let config = ServeConfig::load(SERVER, &[]).unwrap_or_else(|e| panic!("{e}"));
    let models: Vec<_> = config.models.iter().map(|model| model.path.as_str()).collect();
    assert_eq!(models, ["checkpoints/nano-flux", "checkpoints/nano-sd"]);
    // What it shows is the default, but for fewer pixels, for a laptop.
    let limits = LimitsConfig { pixels: config.limits.pixels, ..LimitsConfig::default() };
    assert_eq!((config.limits, config.results), (limits, ResultsConfig::default()));
    assert_eq!((config.host.to_string().as_str(), config.port, config.keys), ("127.0.0.1", 7800, None));
    let broken = tempfile::NamedTempFile::new().unwrap();
    let text = std::fs::read_to_string(SERVER).unwrap().replacen("[limits]", "[limits]\nqeue = 1", 1);
    std::fs::write(broken.path(), text).unwrap();
    let error = ServeConfig::load(broken.path(), &[]).unwrap_err().to_string();
    assert!(error.contains("`limits.qeue`: unknown key `qeue`") && error.ends_with("did you mean `queue`?"), "{error}");
}

#[test]
fn options_may_complete_what_a_configuration_says_of_a_cluster() {
    let target = tempfile::NamedTempFile::new().unwrap();
    let text = std::fs::read_to_string(SERVER).unwrap() + "\n[cluster]\nstore = \"pictures\"\n";
    std::fs::write(target.path(), text).unwrap();
    let error = ServeConfig::load(target.path(), &[]).unwrap().check().unwrap_err();
    let (named, next) = match cfg!(feature = "cluster") {
        true => ("cluster.queue", "option `queue`"),
        false => ("cluster", "build it"),
    };
    assert!(error.message().contains(named) && error.hint.unwrap().contains(next));
}

/// The keys of both kinds of training; those of only the second follow the key before them there.
fn merged(mut keys: Vec<KeyReference>, others: Vec<KeyReference>) -> Vec<KeyReference> {
    let mut place = 0;
    for key in others {
        match keys.iter().position(|own| own.name == key.name) {
            Some(found) => place = found + 1,
            None => {
                keys.insert(place, key);
                place += 1;
            }
        }
    }
    keys
}

/// A table of the README.
fn section(title: &str, docs: &str, keys: &[KeyReference]) -> String {
    let row = |KeyReference { name, docs, value, is_required }: &KeyReference| {
        let value = match value.as_deref().filter(|_| !is_required) {
            None => String::new(),
            Some(value) => format!("`{value}`"),
        };
        format!("| `{name}` | {value} | {docs} |\n")
    };
    let rows: String = keys.iter().map(row).collect();
    format!("**{title}** {docs}\n\n| key | default | |\n|---|---|---|\n{rows}\n")
}

/// Compares the list of keys below `summary` in the README with `listed`, or replaces it where snapshots are updated.
fn is_in_the_readme(summary: &str, listed: &str) {
    const END: &str = "</details>";
    let start = format!("<summary>{summary}</summary>\n\n");
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let text = std::fs::read_to_string(readme).unwrap();
    let (before, rest) = text.split_once(&start).expect("the README has a list of keys");
    let (found, after) = rest.split_once(END).unwrap();
    if std::env::var_os("INSTA_UPDATE").is_some_and(|mode| mode == "always") {
        std::fs::write(readme, format!("{before}{start}{listed}{END}{after}")).unwrap();
        return;
    }
    assert!(found == listed, "the keys in README.md are not those of the code: run this test with INSTA_UPDATE=always");
}

#[test]
fn the_readme_lists_every_key_as_the_code_documents_it() {
    let mut listed = String::new();
    let others = reference(ObjectiveKind::InstructPix2Pix);
    for (table, other) in reference(ObjectiveKind::FlowMatching).into_iter().zip(others) {
        match table.name {
            "objective" => {
                let title = |kind: &str| format!("`[objective]` with `kind = \"{kind}\"`");
                listed += &section(&title("flow_matching"), &table.docs, &table.keys);
                listed += &section(&title("instruct_pix2pix"), &table.docs, &other.keys);
            }
            _ => listed += &section(&format!("`{}`", table.heading()), &table.docs, &merged(table.keys, other.keys)),
        }
    }
    is_in_the_readme("Every key of a training", &listed);
    let of_server = |table: TableReference| match table.name {
        "" => section("Before the first table", &table.docs, &table.keys),
        _ => section(&format!("`{}`", table.heading()), &table.docs, &table.keys),
    };
    is_in_the_readme("Every key of a server", &serve::reference().into_iter().map(of_server).collect::<String>());
}

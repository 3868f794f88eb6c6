//! The source keeps its shape: modules import only from those above them in `src/lib.rs`, files stay short, and nothing is
//! called `utils`.

use std::path::{Path, PathBuf};

use clap::CommandFactory;
use kiln::cli::Cli;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All Rust files below `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let rust = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    rust.chain(folders.iter().flat_map(|folder| self::files(folder))).collect()
}

/// The modules in the order of `lib.rs`.
fn order() -> Vec<String> {
    let text = std::fs::read_to_string(source().join("lib.rs")).unwrap();
    let modules = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    modules.map(String::from).collect()
}

/// The modules of this crate that a source text names after `crate::`, alone or as a list in braces.
fn imports(text: &str) -> Vec<String> {
    let code: String = text.lines().map(|line| line.split("//").next().unwrap_or("").to_string() + "\n").collect();
    let mut found = vec![];
    for rest in code.split("crate::").skip(1) {
        match rest.trim_start().strip_prefix('{') {
            None => found.push(word(rest)),
            Some(list) => {
                // Names at depth 0 of the list, up to its closing brace.
                let (mut depth, mut at_start) = (0, true);
                for (i, letter) in list.char_indices() {
                    match letter {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => at_start = true,
                        letter if letter.is_alphanumeric() && at_start => {
                            found.push(word(&list[i..]));
                            at_start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

fn word(text: &str) -> String {
    text.trim_start().chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

#[test]
fn imports_are_found_in_every_spelling() {
    let text = "use crate::error::Result;\nuse crate::{\n    data::{Batch, Plan},\n    lora,\n    nn::Linear,\n};\n\
                fn f() -> crate::weights::Weights { crate :: x } // crate::cli\npub(crate) struct S;\n";
    assert_eq!(imports(text), ["error", "data", "lora", "nn", "weights"]);
}

#[test]
fn a_module_imports_only_from_modules_above_it() {
    let order = order();
    assert!(order.len() > 10, "{order:?}");
    let rank = |module: &str| order.iter().position(|name| name == module);
    let mut broken = vec![];
    for file in files(&source()) {
        let below = file.strip_prefix(source()).unwrap();
        let module = below.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_string();
        let Some(own) = rank(&module) else {
            assert!(["main", "lib"].contains(&module.as_str()), "{} is in no module of lib.rs", below.display());
            continue;
        };
        for import in imports(&std::fs::read_to_string(&file).unwrap()) {
            match rank(&import) {
                Some(other) if other <= own => {}
                Some(_) => broken.push(format!("{} imports `{import}`, which stands below it", below.display())),
                None => broken.push(format!("{} imports `{import}`, which is no module", below.display())),
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn only_the_command_line_spells_its_flags() {
    let program = Cli::command();
    let arguments = program.get_subcommands().chain([&program]).flat_map(|command| command.get_arguments());
    let flags: Vec<_> = arguments.filter_map(|argument| argument.get_long()).collect();
    assert!(flags.len() > 30 && flags.contains(&"width"), "{flags:?}");
    let mut spelled = vec![];
    for file in files(&source()).into_iter().filter(|file| !file.starts_with(source().join("cli"))) {
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for (number, line) in code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for flag in line
                .split("--")
                .skip(1)
                .filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '-').next())
            {
                if flags.contains(&flag) {
                    spelled.push(format!("{}:{}: --{flag}", file.display(), number + 1));
                }
            }
        }
    }
    assert!(spelled.is_empty(), "libraries say the field, in backticks in a hint:\n{}", spelled.join("\n"));
}

#[test]
fn no_file_is_long_or_called_utils() {
    for file in files(&source()) {
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 400, "{}: {lines} lines: two nouns in one file?", file.display());
        let name = file.file_stem().unwrap().to_string_lossy();
        assert!(!["util", "utils", "helpers", "common", "misc"].contains(&name.as_ref()), "{}", file.display());
    }
}

#[test]
fn a_command_fits_on_a_screen() {
    for command in
        ["prepare", "train", "validate", "export", "generate", "edit", "batch", "inspect", "bench", "selftest"]
    {
        let file = source().join("cli").join(format!("{command}.rs"));
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 80, "{}: {lines} lines", file.display());
    }
}

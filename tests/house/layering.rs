//! The structure of the source: modules import only from those above them, in `src/lib.rs` and in their own folder; files stay short,
//! and nothing is called `utils`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

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

/// The modules that a source text declares in files of their own, in their order.
fn declared(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.strip_suffix(';'));
    let names = lines.filter_map(|line| {
        let rest = line.strip_prefix("pub").map_or(line, |rest| match rest.strip_prefix('(') {
            Some(rest) => rest.split_once(')').map_or(rest, |(_, rest)| rest),
            None => rest,
        });
        rest.trim_start().strip_prefix("mod ")
    });
    names.map(String::from).collect()
}

/// A source text without comments and without what is below its unit tests.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    code.lines().map(|line| line.split("//").next().unwrap().to_string() + "\n").collect()
}

/// The paths that a list in braces, or a single one, adds to `start`.
fn tree(start: &[String], list: &str, found: &mut Vec<Vec<String>>) {
    let (mut depth, mut from) = (0, 0);
    let ends = list.char_indices().filter(|(_, letter)| {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        depth == 0 && *letter == ','
    });
    let mut parts = Vec::new();
    for (end, _) in ends.chain([(list.len(), ',')]) {
        parts.push(list[from..end].trim());
        from = (end + 1).min(list.len());
    }
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        let (path, below) = part.split_once('{').map_or((part, None), |(path, below)| (path, below.strip_suffix('}')));
        let names = path.split("::").map(word).filter(|name| !name.is_empty());
        let whole: Vec<String> = start.iter().cloned().chain(names).collect();
        match below {
            Some(below) => tree(&whole, below, found),
            None => found.push(whole),
        }
    }
}

/// All paths that begin with `crate::`, `super::` or `self::`, and all that `use` imports, name by name.
fn paths(code: &str) -> Vec<Vec<String>> {
    let (mut found, mut rest) = (Vec::new(), String::new());
    for (number, piece) in code.split("use ").enumerate() {
        let is_use = number > 0 && code[..piece.as_ptr() as usize - code.as_ptr() as usize].ends_with("use ");
        match piece.split_once(';') {
            Some((list, after)) if is_use && !list.contains(['(', '=', '"']) => {
                tree(&[], list, &mut found);
                rest += after;
            }
            _ => rest += piece,
        }
        rest += " ";
    }
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in rest.match_indices(start) {
            if rest[..at].ends_with(|letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':') {
                continue;
            }
            let path: String =
                rest[at..].chars().take_while(|letter| letter.is_alphanumeric() || "_:".contains(*letter)).collect();
            found.push(path.split("::").map(word).filter(|name| !name.is_empty()).collect());
        }
    }
    found
}

fn word(text: &str) -> String {
    text.trim_start().chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// A module of this crate.
struct Module {
    code: String,
    /// Those below it, in the order in which they are declared.
    children: Vec<String>,
    /// What it takes from those below it and calls its own: the name, and the child.
    shown: BTreeMap<String, String>,
}

/// All modules by their paths; `lib.rs` is the empty one.
fn modules() -> BTreeMap<Vec<String>, Module> {
    let mut all = BTreeMap::new();
    for file in files(&source()) {
        let below = file.strip_prefix(source()).unwrap().with_extension("");
        let mut path: Vec<String> = below.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        // Tests see everything.
        if path == ["main"] || path.contains(&"tests".to_string()) {
            continue;
        }
        path.pop_if(|last| last == "mod" || last == "lib");
        let text = std::fs::read_to_string(&file).unwrap();
        let (code, mut children) = (code(&text), declared(&text));
        children.retain(|child| child != "tests");
        let shown = paths(&code).into_iter().filter(|path| path.len() > 1 && children.contains(&path[0]));
        let shown = shown.map(|path| (path.last().unwrap().clone(), path[0].clone())).collect();
        all.insert(path, Module { code, children, shown });
    }
    all
}

/// The module that a path in the module `own` leads to, as far as modules go.
fn resolve(all: &BTreeMap<Vec<String>, Module>, own: &[String], path: &[String]) -> Option<Vec<String>> {
    let mut rest = path;
    let mut found = match path.first()?.as_str() {
        "crate" => Vec::new(),
        "super" | "self" => own.to_vec(),
        child if all[own].children.iter().any(|own| own == child) => own.to_vec(),
        _ => return None,
    };
    while let [first, after @ ..] = rest
        && ["crate", "self", "super"].contains(&first.as_str())
    {
        if first == "super" {
            found.pop();
        }
        rest = after;
    }
    for name in rest {
        let module = all.get(&found)?;
        let child = module.children.iter().find(|child| *child == name).or_else(|| module.shown.get(name));
        let Some(child) = child else { break };
        found.push(child.clone());
    }
    Some(found)
}

#[test]
fn imports_are_found_in_every_spelling() {
    let text = "use crate::error::Result;\nuse crate::{\n    data::{Batch, BatchOrder},\n    lora,\n    nn::Linear,\n};\n\
                use super::{a::B, c};\npub use d::E as F;\n\
                fn f() -> crate::weights::Weights { super::super::x(self::y) } // crate::cli\npub(crate) struct S;\n\
                #[cfg(test)]\nmod tests { use super::*; }\n";
    let found: Vec<String> = paths(&code(text)).into_iter().map(|path| path.join("::")).collect();
    assert_eq!(
        found,
        [
            "crate::error::Result",
            "crate::data::Batch",
            "crate::data::BatchOrder",
            "crate::lora",
            "crate::nn::Linear",
            "super::a::B",
            "super::c",
            "d::E",
            "crate::weights::Weights",
            "super::super::x",
            "self::y"
        ]
    );
    assert_eq!(
        declared("mod a;\npub mod b;\npub(crate) mod c;\npub(in crate::d) mod e;\nmodel;\n"),
        ["a", "b", "c", "e"]
    );
}

#[test]
fn a_module_imports_only_from_modules_above_it_in_the_crate_and_in_its_room() {
    let all = modules();
    assert!(all[&Vec::new()].children.len() > 10, "lib.rs declares the modules of the crate");
    let mut broken = Vec::new();
    for (own, module) in &all {
        for path in paths(&module.code) {
            let Some(found) = resolve(&all, own, &path) else { continue };
            // The room is where the two part: there each stands in a child of its own.
            let together = own.iter().zip(&found).take_while(|(own, found)| own == found).count();
            let (Some(mine), Some(other)) = (own.get(together), found.get(together)) else { continue };
            let children = &all[&own[..together]].children;
            let rank = |name: &String| children.iter().position(|child| child == name);
            let room = own[..together].join("::");
            if rank(other) > rank(mine) {
                broken.push(format!("{} imports `{}`, below it in `{room}`", own.join("::"), path.join("::")));
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
        ["prepare", "train", "validate", "export", "generate", "edit", "batch", "inspect", "bench", "selftest", "serve"]
    {
        let file = source().join("cli").join(format!("{command}.rs"));
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 80, "{}: {lines} lines", file.display());
    }
}

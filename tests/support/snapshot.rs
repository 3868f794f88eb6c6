//! Whole outputs of the program, as files in `tests/snapshots`. `INSTA_UPDATE=always cargo test --release` rewrites them; then
//! `git diff` shows what changed for users.

use std::{path::Path, sync::LazyLock};

use fancy_regex::Regex;

/// Asserts that `output` equals the file of this name.
#[track_caller]
pub fn assert_output(name: &str, output: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, output));
}

/// The text with folders that depend on where the tests run in brackets: that of the tests' files, and the package's.
pub fn without_folders(text: &str, workshop: &Path) -> String {
    static CACHE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[^ ]+/hub(?=,|$)").unwrap());
    let text = text.replace(workshop.to_str().unwrap(), "[folder]");
    CACHE.replace_all(&text.replace(env!("CARGO_MANIFEST_DIR"), "[kiln]"), "[cache]").into_owned()
}

/// The text with `#` for every number and time, and for spaces that fill a column before one. Lines that then equal the previous
/// one are left out: how often progress is reported depends on the machine.
pub fn without_numbers(text: &str) -> String {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r" *(?<![A-Za-z0-9_\-])[0-9][0-9.,]*(e[-+]?[0-9]+|[hms]( [0-9]+[ms])*(?= left))?(?![A-Za-z0-9_])")
            .unwrap()
    });
    let mask = |found: &fancy_regex::Captures| if found[0].starts_with(' ') { " #" } else { "#" }.to_string();
    let masked = NUMBER.replace_all(text, mask);
    let mut lines: Vec<&str> = masked.lines().collect();
    lines.dedup();
    lines.join("\n")
}

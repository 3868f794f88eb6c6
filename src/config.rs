//! Configuration files: TOML to a type, with errors that name the place and the likely key.
//!
//! Unknown keys, wrong types and impossible options are refused, whether they stand in the file or in a `--set`
//! override: both become one document, in which every value still knows where it came from.

use std::path::Path;

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue, Deserializer};

use crate::error::{Error, Result};

/// Reads the file `path` as a `T`. Each override is `table.key=value`, with the value as TOML or as a bare word:
/// `lora.rank=8`, `lora.targets=all`, `optimizer.betas=[0.9, 0.99]`. Later overrides win.
///
/// # Errors
/// The file cannot be read, is no TOML, or has an unknown key or a value that does not fit; the message names the line
/// (or the override), the key and what would fit.
pub fn load<T: DeserializeOwned>(path: impl AsRef<Path>, overrides: &[String]) -> Result<T> {
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    parse(path.as_ref(), &text, overrides)
}

/// As [`load`], for a text that was already read; `path` is what errors call it.
///
/// # Errors
/// As [`load`].
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str, overrides: &[String]) -> Result<T> {
    // An override is TOML itself (a dotted key). Blanks before it move its spans behind those of everything before, so
    // that a position tells the source.
    let mut sources = vec![text.to_string()];
    for setting in overrides {
        let start = sources.last().map_or(0, String::len) + 1;
        sources.push(" ".repeat(start) + &as_toml(setting)?);
    }
    let place = Place { path, sources: &sources, overrides };
    let mut document = DeTable::parse(&sources[0]).map_err(|e| place.explain(None, &e, 0))?;
    for (i, source) in sources.iter().enumerate().skip(1) {
        let setting = DeTable::parse(source).map_err(|e| place.explain(None, &e, i))?;
        merge(document.get_mut(), setting.into_inner());
    }
    let known = document.clone();
    T::deserialize(Deserializer::from(document)).map_err(|e| {
        let start = e.span().map_or(0, |span| span.start);
        let source = sources.iter().position(|source| start <= source.len()).unwrap_or(0);
        place.explain(Some(known.get_ref()), &e, source)
    })
}

/// `key=value` as a line of TOML: a value that is no TOML is a bare word, and becomes a string.
fn as_toml(setting: &str) -> Result<String> {
    let Some((key, value)) = setting.split_once('=') else {
        return Err(Error::setting(format!("--set {setting}"), "no `=` in it").hint("write it as `--set lora.rank=8`"));
    };
    let (key, value) = (key.trim(), value.trim());
    if DeValue::parse(value).is_ok() || value.starts_with(['"', '\'', '[', '{']) {
        return Ok(format!("{key}={value}"));
    }
    Ok(format!("{key}={}", toml::Value::from(value)))
}

/// Puts `from` over `into`, table by table.
fn merge<'a>(into: &mut DeTable<'a>, from: DeTable<'a>) {
    for (key, value) in from {
        let (span, value) = (value.span(), value.into_inner());
        match (into.get_mut(&key).map(|old| old.get_mut()), value) {
            (Some(DeValue::Table(old)), DeValue::Table(new)) => merge(old, new),
            (_, value) => {
                into.remove(&key); // with its position: an insertion would keep the old key
                into.insert(key, toml::Spanned::new(span, value));
            }
        }
    }
}

/// What is needed to say where an error is.
struct Place<'a> {
    path: &'a Path,
    sources: &'a [String],
    overrides: &'a [String],
}

impl Place<'_> {
    /// `e` in the words of a person who writes configurations. `source` is 0 for the file, else the override.
    fn explain(&self, document: Option<&DeTable<'_>>, e: &toml::de::Error, source: usize) -> Error {
        let start = e.span().map_or(0, |span| span.start);
        let key = document.and_then(|table| key_at(table, start)).map_or(String::new(), |key| format!("`{key}`: "));
        let problem = format!("{key}{}", plain(e.message()));
        let error = match source {
            0 => {
                let line = 1 + self.sources[0].bytes().take(start).filter(|&b| b == b'\n').count();
                Error::file(self.path, format!("line {line}: {problem}"))
            }
            i => Error::setting(format!("--set {}", self.overrides[i - 1]), problem),
        };
        let wants_text = e.message().ends_with("expected a string");
        match (nearest(e.message()), source) {
            (Some(name), _) => error.hint(format!("did you mean `{name}`?")),
            (None, 1..) if wants_text => {
                error.hint("text that looks like a number or a truth value needs quotes: --set 'key=\"2024\"'")
            }
            (None, 0) if wants_text => error.hint("put the value in quotes"),
            (None, _) => error,
        }
    }
}

/// The dotted key whose name or value stands at `position`: the innermost one.
fn key_at(table: &DeTable<'_>, position: usize) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let inner = match value.get_ref() {
            DeValue::Table(inner) => key_at(inner, position),
            _ => None,
        };
        match inner {
            Some(inner) => Some(format!("{}.{inner}", key.get_ref())),
            None => {
                (key.span().contains(&position) || value.span().contains(&position)).then(|| key.get_ref().to_string())
            }
        }
    })
}

/// A message of the parser without its programmer's words.
fn plain(message: &str) -> String {
    const WORDS: [(&str, &str); 13] = [
        ("unknown field", "unknown key"),
        ("missing field", "missing key"),
        ("unknown variant", "unknown value"),
        ("there are no fields", "there are no keys"),
        ("expected usize", "expected a whole number"),
        ("expected u64", "expected a whole number"),
        ("expected u32", "expected a whole number"),
        ("expected f64", "expected a number"),
        ("expected a boolean", "expected true or false"),
        ("floating point ", "number "),
        ("a sequence", "a list"),
        ("invalid type: sequence", "invalid type: list"),
        ("invalid type: map", "invalid type: table"),
    ];
    WORDS.iter().fold(message.trim().to_string(), |text, (from, to)| text.replace(from, to))
}

/// The known name nearest to an unknown one, both taken from "unknown … `x`, expected one of `a`, `b`".
fn nearest(message: &str) -> Option<&str> {
    let mut names = message.strip_prefix("unknown ")?.split('`').skip(1).step_by(2);
    let wrong = names.next()?;
    let (distance, name) = names.map(|name| (distance(wrong, name), name)).min()?;
    (distance <= 1 + wrong.chars().count() / 3).then_some(name)
}

/// Levenshtein distance: insertions, deletions and replacements of letters that turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.chars().count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Oven {
        lora: Lora,
        #[serde(default)]
        steps: u64,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Lora {
        rank: usize,
        #[serde(default)]
        targets: Vec<String>,
        #[serde(default)]
        init: Option<Init>,
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Init {
        Gaussian,
        Kaiming,
    }

    fn parse_with(text: &str, overrides: &[&str]) -> std::result::Result<Oven, String> {
        let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
        parse(Path::new("oven.toml"), text, &overrides).map_err(|e| e.to_string())
    }

    const GOOD: &str = "steps = 3\n[lora]\nrank = 4\n";

    #[test]
    fn overrides_replace_values_and_later_ones_win() {
        let oven = parse_with(GOOD, &["lora.rank=8", "lora.rank = 16", "lora.init=kaiming", "steps=9"]).unwrap();
        assert_eq!((oven.lora.rank, oven.lora.init, oven.steps), (16, Some(Init::Kaiming), 9));
        assert_eq!(parse_with(GOOD, &["lora.targets=['a','b']"]).unwrap().lora.targets, ["a", "b"]);
    }

    #[test]
    fn an_unknown_key_is_refused_with_line_key_and_suggestion() {
        let error = parse_with("[lora]\nrank = 4\nrnak = 5\n", &[]).unwrap_err();
        assert!(error.starts_with("oven.toml: line 3: `lora.rnak`: unknown key `rnak`"), "{error}");
        assert!(error.ends_with("hint: did you mean `rank`?"), "{error}");
    }

    #[test]
    fn a_wrong_type_and_a_wrong_option_name_line_and_key() {
        let error = parse_with("[lora]\nrank = \"four\"\n", &[]).unwrap_err();
        assert!(
            error.starts_with("oven.toml: line 2: `lora.rank`: invalid type: string \"four\", expected"),
            "{error}"
        );
        let error = parse_with("[lora]\nrank = 1\ninit = \"gausian\"", &[]).unwrap_err();
        assert!(error.starts_with("oven.toml: line 3: `lora.init`: unknown value `gausian`"), "{error}");
        assert!(error.ends_with("hint: did you mean `gaussian`?"), "{error}");
    }

    #[test]
    fn a_missing_key_names_its_table() {
        let error = parse_with("steps = 1\n\n[lora]\ntargets = []\n", &[]).unwrap_err();
        assert_eq!(error, "oven.toml: line 3: `lora`: missing key `rank`");
    }

    #[test]
    fn an_error_in_an_override_names_the_override() {
        for (setting, said) in [
            ("lora.rnak=8", "`--set lora.rnak=8`: `lora.rnak`: unknown key `rnak`"),
            ("lora.rank=many", "`--set lora.rank=many`: `lora.rank`: invalid type: string \"many\""),
            ("lora.targets=[1]", "`--set lora.targets=[1]`: `lora.targets`: invalid type: integer `1`"),
            ("lora=3", "`--set lora=3`: `lora`: invalid type: integer `3`"),
            ("steps=[1", "`--set steps=[1`: "),
            ("steps", "`--set steps`: no `=` in it"),
        ] {
            let error = parse_with(GOOD, &["lora.rank=2", setting]).unwrap_err();
            assert!(error.starts_with(said), "{setting}: {error}");
        }
    }

    #[test]
    fn broken_toml_names_the_line() {
        let error = parse_with("[lora]\nrank = = 3\n", &[]).unwrap_err();
        assert!(error.starts_with("oven.toml: line 2: "), "{error}");
    }

    #[test]
    fn distance_counts_edits() {
        assert_eq!([distance("rank", "rank"), distance("rnak", "rank"), distance("", "abc")], [0, 2, 3]);
    }
}

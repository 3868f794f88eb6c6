//! Configuration files: TOML to a type, with errors that name the place and the likely key.
//!
//! Unknown keys, wrong types and impossible options are refused, whether they stand in the file or in a `--set`
//! override: both become one document, in which every value still knows where it came from.

pub mod reference;

use std::path::{Path, PathBuf};

use serde::{Deserialize, de::DeserializeOwned};
use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue, Deserializer, ValueDeserializer},
};

use crate::error::{Error, Result};

/// Reads the file `path` as a `T`. Each override is `table.key=value`, with the value as TOML or as a bare word:
/// `lora.rank=8`, `lora.targets=all`, `optimizer.betas=[0.9, 0.99]`. Later overrides win.
///
/// # Errors
/// The file cannot be read, is no TOML, or has an unknown key or a value that does not fit; the message names the line
/// (or the override), the key and what would fit.
pub fn load<T: DeserializeOwned>(path: impl AsRef<Path>, overrides: &[String]) -> Result<T> {
    Sources::read(path, overrides)?.document()?.into()
}

/// A configuration file and its overrides, as text.
pub struct Sources {
    path: PathBuf,
    /// The file, then each override as a line of TOML.
    texts: Vec<String>,
    overrides: Vec<String>,
}

impl Sources {
    /// Reads the file `path`.
    ///
    /// # Errors
    /// The file cannot be read, or an override has no `=`.
    pub fn read(path: impl AsRef<Path>, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        Self::new(path.as_ref(), text, overrides)
    }

    /// The text of the file.
    pub fn text(&self) -> &str {
        &self.texts[0]
    }

    fn new(path: &Path, text: String, overrides: &[String]) -> Result<Self> {
        // An override is TOML itself (a dotted key). Blanks before it move its spans behind those of everything before, so
        // that a position tells the source.
        let mut texts = vec![text];
        for setting in overrides {
            let start = texts.last().map_or(0, String::len) + 1;
            texts.push(" ".repeat(start) + &as_toml(setting)?);
        }
        Ok(Self { path: path.into(), texts, overrides: overrides.to_vec() })
    }

    /// All of it as one document.
    ///
    /// # Errors
    /// The file or an override is no TOML.
    pub fn document(&self) -> Result<Document<'_>> {
        let mut table = DeTable::parse(&self.texts[0]).map_err(|e| self.explain(None, &e, 0))?;
        for (number, text) in self.texts.iter().enumerate().skip(1) {
            let setting = DeTable::parse(text).map_err(|e| self.explain(None, &e, number))?;
            merge(table.get_mut(), setting.into_inner());
        }
        Ok(Document { sources: self, table })
    }
}

/// A configuration in which every value knows where it came from.
pub struct Document<'a> {
    sources: &'a Sources,
    table: Spanned<DeTable<'a>>,
}

impl<'a> Document<'a> {
    /// As a `T`.
    ///
    /// # Errors
    /// There is an unknown key, or a value that does not fit.
    pub fn into<T: DeserializeOwned>(self) -> Result<T> {
        let known = self.table.clone();
        T::deserialize(Deserializer::from(self.table)).map_err(|e| self.sources.locate(known.get_ref(), &e))
    }

    /// Takes the value `key` out of a table, as a `T`; `None` if it is not there.
    ///
    /// # Errors
    /// The value does not fit.
    pub fn take<T: DeserializeOwned>(&mut self, table: &str, key: &str) -> Result<Option<T>> {
        let known = self.table.clone();
        let Some(DeValue::Table(inner)) = self.table.get_mut().get_mut(table).map(Spanned::get_mut) else {
            return Ok(None);
        };
        let value = inner.remove(key).map(|value| T::deserialize(ValueDeserializer::from(value)));
        value.transpose().map_err(|e| self.sources.locate(known.get_ref(), &e))
    }

    /// Takes a whole table out; `None` if there is none.
    pub fn take_table(&mut self, name: &str) -> Option<Table<'a>> {
        match self.table.get_mut().remove_entry(name) {
            Some((key, value)) if matches!(value.get_ref(), DeValue::Table(_)) => Some(Table { key, value }),
            Some((key, value)) => {
                self.table.get_mut().insert(key, value);
                None
            }
            None => None,
        }
    }

    /// Puts a table that was taken out in the place of the one called `name`.
    pub fn put_table(&mut self, name: &'a str, table: Table<'a>) {
        self.table.get_mut().remove(name); // with its position: an insertion would keep the old key
        self.table.get_mut().insert(Spanned::new(table.key.span(), name.into()), table.value);
    }

    /// An error about a table that was taken out: it names the line, or the override.
    pub fn error(&self, table: &Table<'_>, problem: &str) -> Error {
        self.sources.error(table.key.span().start, &format!("`{}`: {problem}", table.key.get_ref()))
    }
}

/// A table of a [`Document`].
pub struct Table<'a> {
    key: Spanned<DeString<'a>>,
    value: Spanned<DeValue<'a>>,
}

impl Table<'_> {
    /// Its keys with their values, as TOML, in the order of their names.
    pub fn entries(&self) -> Vec<(String, String)> {
        let DeValue::Table(table) = self.value.get_ref() else { return Vec::new() };
        let text = |value: &Spanned<DeValue<'_>>| {
            let value = toml::Value::deserialize(ValueDeserializer::from(value.clone()));
            value.map_or_else(|_| "…".into(), |value| value.to_string())
        };
        let mut entries: Vec<_> = table.iter().map(|(key, value)| (key.get_ref().to_string(), text(value))).collect();
        entries.sort();
        entries
    }
}

/// `key=value` as a line of TOML: a value that is no TOML is a bare word, and becomes a string.
fn as_toml(setting: &str) -> Result<String> {
    let Some((key, value)) = setting.split_once('=') else {
        return Err(Error::setting(format!("set {setting}"), "no `=` in it").hint("write it as `set lora.rank=8`"));
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
                into.insert(key, Spanned::new(span, value));
            }
        }
    }
}

impl Sources {
    /// `e`, which knows its position, about a document with these values.
    fn locate(&self, known: &DeTable<'_>, e: &toml::de::Error) -> Error {
        let start = e.span().map_or(0, |span| span.start);
        self.explain(Some(known), e, self.source_at(start))
    }

    /// The number of the text in which a position lies.
    fn source_at(&self, start: usize) -> usize {
        self.texts.iter().position(|text| start <= text.len()).unwrap_or(0)
    }

    /// A problem at a position: with its line in the file, or with the override.
    fn error(&self, start: usize, problem: &str) -> Error {
        self.error_in(self.source_at(start), start, problem)
    }

    fn error_in(&self, source: usize, start: usize, problem: &str) -> Error {
        match source {
            0 => {
                let line = 1 + self.texts[0].bytes().take(start).filter(|&b| b == b'\n').count();
                Error::file(&self.path, format!("line {line}: {problem}"))
            }
            i => Error::setting(format!("set {}", self.overrides[i - 1]), problem),
        }
    }

    /// `e` in the words of a person who writes configurations. `source` is 0 for the file, else the override.
    fn explain(&self, document: Option<&DeTable<'_>>, e: &toml::de::Error, source: usize) -> Error {
        let start = e.span().map_or(0, |span| span.start);
        let key = document.and_then(|table| key_at(table, start)).map_or(String::new(), |key| format!("`{key}`: "));
        let error = self.error_in(source, start, &format!("{key}{}", plain(e.message())));
        let wants_text = e.message().ends_with("expected a string");
        match (nearest(e.message()), source) {
            (Some(name), _) => error.hint(format!("did you mean `{name}`?")),
            (None, 1..) if wants_text => {
                error.hint("text that looks like a number or a truth value needs quotes: `set 'key=\"2024\"'`")
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
pub(crate) fn plain(message: &str) -> String {
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
    nearest_of(wrong, names)
}

/// The one of these names that is meant by a wrong one, if one is near enough.
pub(crate) fn nearest_of<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
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
        let sources = Sources::new(Path::new("oven.toml"), text.to_string(), &overrides).map_err(|e| e.to_string())?;
        sources.document().and_then(Document::into).map_err(|e| e.to_string())
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
            ("lora.rnak=8", "`set lora.rnak=8`: `lora.rnak`: unknown key `rnak`"),
            ("lora.rank=many", "`set lora.rank=many`: `lora.rank`: invalid type: string \"many\""),
            ("lora.targets=[1]", "`set lora.targets=[1]`: `lora.targets`: invalid type: integer `1`"),
            ("lora=3", "`set lora=3`: `lora`: invalid type: integer `3`"),
            ("steps=[1", "`set steps=[1`: "),
            ("steps", "`set steps`: no `=` in it"),
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

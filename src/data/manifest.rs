//! Which pictures there are and what their captions say.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use serde_json::Value;

use super::{DataConfig, DatasetKind, Place};
use crate::error::{Error, Result};

/// The extensions of pictures that can be read.
const READABLE: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// The extensions of other pictures, which a folder should not hold without a word.
const OTHER_PICTURES: [&str; 12] =
    ["avif", "bmp", "dng", "gif", "heic", "heif", "jp2", "jxl", "psd", "raw", "tif", "tiff"];

/// One picture and its caption, or one edit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The picture; of an edit, the edited one.
    pub picture: Place,
    /// Of an edit, the picture before it.
    pub original: Option<Place>,
    /// The caption, with the trigger word; of an edit, the instruction.
    pub caption: String,
    /// What the original shows, where it is said.
    pub original_caption: Option<String>,
    /// What the edited picture shows, where it is said.
    pub edited_caption: Option<String>,
}

impl Row {
    fn captioned(file: String, caption: &str) -> Self {
        Self {
            picture: file.into(),
            original: None,
            caption: clean(caption),
            original_caption: None,
            edited_caption: None,
        }
    }
}

/// The rows of a data folder, sorted by picture, and everything that is wrong with the others.
#[derive(Debug, Default)]
pub struct Manifest {
    /// The usable rows.
    pub rows: Vec<Row>,
    /// One line for each problem.
    pub problems: Vec<String>,
}

impl Manifest {
    /// Reads `metadata.jsonl` or `metadata.csv` if the folder has one, else lists its pictures and their `.txt` files.
    /// Pictures themselves are not opened yet.
    ///
    /// # Errors
    /// The folder itself cannot be read. Problems with single rows are collected in [`problems`](Self::problems).
    pub fn read(config: &DataConfig, kind: DatasetKind) -> Result<Self> {
        let _ = kind;
        let folder = &config.path;
        if !folder.is_dir() {
            let problem = if folder.exists() { "is a file, not a folder" } else { "there is no such folder" };
            return Err(Error::file(folder, problem).hint("`data.path` is the folder that holds the pictures"));
        }
        let mut manifest = Self::default();
        let (jsonl, csv) = (folder.join("metadata.jsonl"), folder.join("metadata.csv"));
        match (jsonl.is_file(), csv.is_file()) {
            (true, true) => manifest.problem("metadata.csv", "there is a metadata.jsonl too: keep one of them"),
            (true, false) => manifest.read_jsonl(&jsonl)?,
            (false, true) => manifest.read_csv(&csv)?,
            (false, false) => manifest.list(folder)?,
        }
        manifest.rows.sort_unstable();
        if manifest.rows.is_empty() && manifest.problems.is_empty() {
            manifest.problems.push("there are no pictures (.jpg, .jpeg, .png, .webp) in the folder".into());
        }
        manifest.apply_trigger(config.trigger.trim());
        Ok(manifest)
    }

    fn problem(&mut self, place: impl std::fmt::Display, problem: impl std::fmt::Display) {
        self.problems.push(format!("{place}: {problem}"));
    }

    fn apply_trigger(&mut self, trigger: &str) {
        for row in self.rows.iter_mut().filter(|row| !trigger.is_empty() && !has_words(&row.caption, trigger)) {
            row.caption = match row.caption.as_str() {
                "" => trigger.into(),
                caption => format!("{trigger}, {caption}"),
            };
        }
        let empty: Vec<_> = self.rows.extract_if(.., |row| row.caption.is_empty()).collect();
        for row in empty {
            self.problem(row.picture, "its caption is empty: write one, or set `data.trigger`");
        }
    }

    /// Pictures with `.txt` files of the same name.
    fn list(&mut self, folder: &Path) -> Result<()> {
        for file in files_below(folder)? {
            let extension = extension(&file);
            if OTHER_PICTURES.contains(&extension.as_str()) {
                self.problem(&file, "is not JPEG, PNG or WebP: convert it or move it out of the folder");
            } else if READABLE.contains(&extension.as_str()) {
                let text = Path::new(&file).with_extension("txt");
                match std::fs::read_to_string(folder.join(&text)) {
                    Ok(caption) => self.rows.push(Row::captioned(file, &caption)),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                        self.problem(&file, format!("there is no caption file {}", text.display()));
                    }
                    Err(e) => self.problem(text.display(), e),
                }
            }
        }
        Ok(())
    }

    fn read_jsonl(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let mut seen = BTreeSet::new();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            let place = format!("metadata.jsonl line {number}");
            let columns: Value = match serde_json::from_str(line.trim_start_matches('\u{feff}')) {
                Ok(columns) => columns,
                Err(e) => {
                    self.problem(place, format!("is not JSON ({e})"));
                    continue;
                }
            };
            self.add(path, place, &mut seen, |column| columns.get(column).and_then(Value::as_str));
        }
        Ok(())
    }

    fn read_csv(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let mut reader =
            csv::ReaderBuilder::new().flexible(true).from_reader(text.trim_start_matches('\u{feff}').as_bytes());
        let header = reader.headers().map_err(|e| Error::file(path, e.to_string()))?.clone();
        let mut seen = BTreeSet::new();
        for record in reader.records() {
            let record = record.map_err(|e| Error::file(path, e.to_string()))?;
            let place = format!("metadata.csv line {}", record.position().map_or(0, |p| p.line()));
            let column = |name: &str| record.get(header.iter().position(|column| column.trim() == name)?);
            self.add(path, place, &mut seen, column);
        }
        Ok(())
    }

    /// Adds one row of a metadata file.
    fn add<'a>(
        &mut self,
        metadata: &Path,
        place: String,
        seen: &mut BTreeSet<String>,
        column: impl Fn(&str) -> Option<&'a str>,
    ) {
        let Some(name) = column("file_name").map(str::trim).filter(|name| !name.is_empty()) else {
            return self.problem(place, "has no `file_name`");
        };
        let Some(file) = relative(name) else {
            return self.problem(place, format!("`{name}` must be a path inside the folder"));
        };
        let place = format!("{place}, {file}");
        if !seen.insert(file.clone()) {
            return self.problem(place, "is listed twice");
        }
        if !READABLE.contains(&extension(&file).as_str()) {
            return self.problem(place, "is not a JPEG, PNG or WebP file (by its extension)");
        }
        if !metadata.with_file_name(&file).is_file() {
            return self.problem(place, "there is no such picture");
        }
        match column("text").or_else(|| column("caption")) {
            Some(caption) => self.rows.push(Row::captioned(file, caption)),
            None => self.problem(place, "has no caption (column `text` or `caption`)"),
        }
    }
}

/// Whether `words` stand in `text`, in any case and not as a part of other words: "art" is in "Art deco" but not in "a party".
fn has_words(text: &str, words: &str) -> bool {
    let (text, words) = (text.to_lowercase(), words.to_lowercase());
    let alphanumeric = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let (first, last) = (alphanumeric(words.chars().next()), alphanumeric(words.chars().next_back()));
    // Every place, overlapping ones too: the first may be inside a word and the second not.
    text.char_indices().any(|(start, _)| {
        let inside = first && alphanumeric(text[..start].chars().next_back());
        text[start..].strip_prefix(&words).is_some_and(|rest| !(inside || last && alphanumeric(rest.chars().next())))
    })
}

/// A caption as it is encoded: without a byte-order mark and the white space around it.
fn clean(caption: &str) -> String {
    caption.trim_start_matches('\u{feff}').trim().into()
}

fn extension(file: &str) -> String {
    Path::new(file).extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// `name` with `/` and without `.`, if it stays inside the folder.
fn relative(name: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in Path::new(&name.replace('\\', "/")).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(parts.join("/"))
}

/// All files in `folder` and its sub-folders except hidden ones, relative to it. Each folder is entered once, however many
/// links lead to it.
fn files_below(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut entered = BTreeSet::new();
    // The nearest first, in the order of names, so that of several ways to a folder the same one is always taken.
    let mut open = BTreeSet::from([(0, PathBuf::new())]);
    while let Some((depth, below)) = open.pop_first() {
        let here = folder.join(&below);
        if !entered.insert(here.canonicalize().map_err(|e| Error::io(&here, e))?) {
            continue;
        }
        for entry in std::fs::read_dir(&here).map_err(|e| Error::io(&here, e))? {
            let name = entry.map_err(|e| Error::io(&here, e))?.file_name();
            let name = below.join(&name);
            if name.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
                continue;
            }
            if folder.join(&name).is_dir() {
                open.insert((depth + 1, name));
            } else {
                found.push(name.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        folder
    }

    fn read(folder: &tempfile::TempDir, trigger: &str) -> Manifest {
        let config = DataConfig { path: folder.path().into(), trigger: trigger.into(), ..Default::default() };
        Manifest::read(&config, DatasetKind::Captions).unwrap()
    }

    fn captions(manifest: &Manifest) -> Vec<(&str, &str)> {
        assert!(manifest.problems.is_empty(), "{:?}", manifest.problems);
        manifest.rows.iter().map(|row| (row.picture.file.as_str(), row.caption.as_str())).collect()
    }

    #[test]
    fn captions_stand_beside_their_pictures() {
        let folder = folder(&[
            ("b.png", ""),
            ("b.txt", " a boat \n"),
            ("more/a.JPG", ""),
            ("more/a.txt", "an apple"),
            (".hidden/c.png", ""),
        ]);
        assert_eq!(captions(&read(&folder, "")), [("b.png", "a boat"), ("more/a.JPG", "an apple")]);
    }

    #[test]
    fn the_trigger_is_added_once() {
        let folder = folder(&[
            ("a.png", ""),
            ("a.txt", "zpf style, a boat"),
            ("b.png", ""),
            ("b.txt", "a tree"),
            ("c.png", ""),
            ("c.txt", ""),
        ]);
        assert_eq!(
            captions(&read(&folder, "zpf style")),
            [("a.png", "zpf style, a boat"), ("b.png", "zpf style, a tree"), ("c.png", "zpf style")]
        );
    }

    #[test]
    fn the_trigger_is_a_word_of_its_own_in_any_case() {
        for caption in ["art", "Art deco", "a piece of ART.", "party art", "art-house"] {
            assert!(has_words(caption, "art"), "{caption}");
        }
        for caption in ["a party", "artist", "smart art2", "été-artère", ""] {
            assert!(!has_words(caption, "art"), "{caption}");
        }
        assert!(has_words("Un ÉTÉ à Paris", "été"));
        assert!(!has_words("l'étéx", "été"));
        assert!(has_words("a<zpf>tree", "<zpf>"), "what is no letter keeps words apart itself");
    }

    #[cfg(unix)]
    #[test]
    fn links_that_lead_back_do_not_multiply_the_pictures() {
        let folder = folder(&[("a.png", ""), ("a.txt", "a"), ("more/b.png", ""), ("more/b.txt", "b")]);
        for (target, link) in [(".", "all"), ("..", "more/up"), ("more", "again")] {
            std::os::unix::fs::symlink(target, folder.path().join(link)).unwrap();
        }
        let manifest = read(&folder, "");
        assert!(manifest.problems.is_empty(), "{:?}", manifest.problems);
        let captions: Vec<_> = manifest.rows.iter().map(|row| row.caption.as_str()).collect();
        assert_eq!(captions, ["a", "b"]);
    }

    #[test]
    fn metadata_files_say_the_same_in_both_formats() {
        let pictures = [("b.png", ""), ("more/a.webp", "")];
        let json = "{\"file_name\": \"more/a.webp\", \"text\": \"an apple, \\\"red\\\"\"}\n\n{\"file_name\": \"./b.png\", \"caption\": \"a boat\"}\n";
        let csv = "file_name,text,extra\nmore/a.webp,\"an apple, \"\"red\"\"\",1\nb.png,a boat,2\n";
        for (name, text) in [("metadata.jsonl", json), ("metadata.csv", csv)] {
            let folder = folder(&[pictures[0], pictures[1], (name, text)]);
            assert_eq!(captions(&read(&folder, "")), [("b.png", "a boat"), ("more/a.webp", "an apple, \"red\"")]);
        }
    }

    #[test]
    fn every_problem_of_a_metadata_file_is_a_line() {
        let rows = [
            "{\"file_name\": \"a.png\", \"text\": \"x\"}",
            "{\"file_name\": \"a.png\", \"text\": \"x\"}",
            "{]",
            "{\"text\": \"x\"}",
            "{\"file_name\": \"b.gif\", \"text\": \"x\"}",
            "{\"file_name\": \"c.png\", \"text\": \"x\"}",
            "{\"file_name\": \"../d.png\", \"text\": \"x\"}",
            "{\"file_name\": \"e.png\"}",
        ];
        let folder = folder(&[("a.png", ""), ("b.gif", ""), ("e.png", ""), ("metadata.jsonl", &rows.join("\n"))]);
        let manifest = read(&folder, "");
        assert_eq!(manifest.rows.len(), 1);
        let expected = [
            "line 2, a.png: is listed twice",
            "line 3: is not JSON",
            "line 4: has no `file_name`",
            "line 5, b.gif: is not a JPEG",
            "line 6, c.png: there is no such picture",
            "line 7: `../d.png` must be",
            "line 8, e.png: has no caption",
        ];
        assert_eq!(manifest.problems.len(), expected.len(), "{:#?}", manifest.problems);
        for (problem, expected) in manifest.problems.iter().zip(expected) {
            assert!(problem.contains(expected), "{problem}");
        }
    }

    #[test]
    fn an_empty_folder_and_missing_captions_are_problems() {
        assert_eq!(read(&folder(&[("notes.md", "")]), "").problems.len(), 1);
        let manifest = read(&folder(&[("a.png", ""), ("b.gif", ""), ("c.png", ""), ("c.txt", " ")]), "");
        assert_eq!(manifest.problems.len(), 3, "{:#?}", manifest.problems);
    }
}

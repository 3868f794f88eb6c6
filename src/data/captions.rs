//! Pictures and their captions, as a data folder holds them.

use std::{collections::BTreeSet, path::Path};

use super::{
    manifest::{FileKind, Manifest, Row, files_below, kind_of, relative},
    metadata::{Record, records},
};
use crate::error::Result;

impl Manifest {
    /// Reads `metadata.jsonl` or `metadata.csv` if the folder has one, else lists its pictures and their `.txt` files; then
    /// puts `trigger` before the captions without it.
    ///
    /// # Errors
    /// The folder, or its metadata file, cannot be read.
    pub(super) fn read_captions(&mut self, folder: &Path, trigger: &str) -> Result<()> {
        match records(folder)? {
            Some(records) => {
                let mut seen = BTreeSet::new();
                for record in records {
                    let row = record.and_then(|record| captioned(folder, &record, &mut seen));
                    self.add(row);
                }
            }
            None => self.list_captioned(folder)?,
        }
        if self.rows.is_empty() && self.problems.is_empty() {
            self.problems.push("there are no pictures (.jpg, .jpeg, .png, .webp) in the folder".into());
        }
        self.apply_trigger(trigger);
        Ok(())
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
    fn list_captioned(&mut self, folder: &Path) -> Result<()> {
        for file in files_below(folder)? {
            match kind_of(&file) {
                FileKind::OtherPicture => {
                    self.problem(&file, "is not JPEG, PNG or WebP: convert it or move it out of the folder");
                }
                FileKind::Picture => {
                    let text = Path::new(&file).with_extension("txt");
                    match std::fs::read_to_string(folder.join(&text)) {
                        Ok(caption) => self.rows.push(Row::new(file.into(), None, &caption)),
                        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                            self.problem(&file, format!("there is no caption file {}", text.display()));
                        }
                        Err(e) => self.problem(text.display(), e),
                    }
                }
                FileKind::Table | FileKind::Other => {}
            }
        }
        Ok(())
    }
}

/// The row of a record of a metadata file.
fn captioned(folder: &Path, record: &Record, seen: &mut BTreeSet<String>) -> std::result::Result<Row, String> {
    let place = &record.place;
    let name = record.column(&["file_name"]).map(str::trim).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| format!("{place}: has no `file_name`"))?;
    let file = relative(name).ok_or_else(|| format!("{place}: `{name}` must be a path inside the folder"))?;
    let problem = |problem: &str| Err(format!("{place}, {file}: {problem}"));
    if !seen.insert(file.clone()) {
        return problem("is listed twice");
    }
    if kind_of(&file) != FileKind::Picture {
        return problem("is not a JPEG, PNG or WebP file (by its extension)");
    }
    if !folder.join(&file).is_file() {
        return problem("there is no such picture");
    }
    match record.column(&["text", "caption"]) {
        Some(caption) => Ok(Row::new(file.into(), None, caption)),
        None => problem("has no caption (column `text` or `caption`)"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{DataConfig, DatasetKind};

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

//! Reading a data folder of images with captions.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{
    listing::{Listing, repeats},
    manifest::{FileKind, Manifest, Row, clean, kind_of, named},
    metadata::{Record, is_metadata, records},
    table::{Images, Table, tables},
    text_file::read_text,
};
use crate::error::Result;

/// Names of the columns in metadata and Parquet files; the first one present counts.
pub(super) const CAPTION: &[&str] = &["text", "caption"];
const PICTURE: &[&str] = &["image", "picture", "img", "image_bytes", "jpg", "png", "webp", "file_name", "image_path"];

impl Manifest {
    /// Reads the images below a `metadata.jsonl` or `metadata.csv` with the captions in it, and the others with their `.txt` files; in a
    /// folder without images, Parquet files. Then puts `trigger` before captions that do not contain it.
    ///
    /// # Errors
    /// The folder, or a metadata file, cannot be read.
    pub(super) fn read_captions(&mut self, listing: &Listing, folder: &Path, trigger: &str) -> Result<()> {
        let governed = self.read_metadata(listing, folder)?;
        let tables = tables(folder)?;
        let has_texts = || {
            listing
                .files
                .iter()
                .any(|file| kind_of(file) == FileKind::Picture && listing.find(&text_of(file)).is_some())
        };
        if governed.is_empty() && !tables.read.is_empty() && !has_texts() {
            tables.read.iter().for_each(|file| self.read_captioned_table(listing, folder, file));
            self.leave_out(".parquet files of other splits than train", &tables.others);
            let used: BTreeSet<&str> = self.rows.iter().map(|row| row.picture.file.as_str()).collect();
            let is_unlisted = |file: &&String| {
                ![FileKind::Table, FileKind::Other].contains(&kind_of(file)) && !used.contains(file.as_str())
            };
            let unlisted: Vec<String> = listing.files.iter().filter(is_unlisted).cloned().collect();
            self.leave_out("images that no .parquet file lists", &unlisted);
        } else {
            self.list_captioned(listing, folder, &governed);
            self.leave_out(".parquet files beside images", &[tables.read, tables.others].concat());
        }
        if self.rows.is_empty() && self.problems.is_empty() {
            let problem = "there are no images (.jpg, .jpeg, .png, .webp) in the folder, nor .parquet files with rows";
            self.problems.push(problem.into());
        }
        self.apply_trigger(trigger);
        Ok(())
    }

    /// Reads all metadata files; returns the folders whose images they cover, each empty or ending in `/`.
    fn read_metadata(&mut self, listing: &Listing, folder: &Path) -> Result<BTreeSet<String>> {
        let governed = listing.files.iter().filter(|file| is_metadata(file));
        let governed: BTreeSet<String> = governed.map(|file| parent(file).to_string()).collect();
        let mut listed = BTreeMap::new();
        for below in &governed {
            let Some(records) = records(folder, below)? else { continue };
            self.unused.extend(records.unread(&[&["file_name"], CAPTION]));
            for record in records.rows {
                let row = record.and_then(|record| captioned(listing, below, &record, &mut listed));
                self.add(row);
            }
        }
        let pictures =
            || listing.files.iter().filter(|file| kind_of(file) != FileKind::Other && speaks_for(&governed, file));
        let picture = |file: &&String| kind_of(file) != FileKind::Table && !listed.contains_key(*file);
        self.leave_out("images that no metadata file lists", &pictures().filter(picture).collect::<Vec<_>>());
        let texts = pictures().filter_map(|file| listing.find(&text_of(file))).collect::<Vec<_>>();
        self.leave_out(".txt files of images whose captions are in a metadata file", &texts);
        Ok(governed)
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

    /// Images with `.txt` files of the same name, where no metadata file covers them.
    fn list_captioned(&mut self, listing: &Listing, folder: &Path, governed: &BTreeSet<String>) {
        let mut texts: BTreeSet<&String> = BTreeSet::new();
        let mut used = BTreeSet::new();
        for file in listing.files.iter().filter(|file| !speaks_for(governed, file)) {
            match kind_of(file) {
                FileKind::OtherPicture => {
                    self.problem(file, "is not JPEG, PNG or WebP: convert it or move it out of the folder");
                }
                FileKind::Picture => {
                    let Some(text) = listing.find(&text_of(file)) else {
                        self.problem(file, format!("there is no caption file {}", text_of(file)));
                        continue;
                    };
                    match (read_text(&folder.join(&text)), repeats(file)) {
                        (Ok(caption), Ok(repeats)) => {
                            self.rows.push(Row { repeats, ..Row::new(file.clone().into(), None, &caption) });
                        }
                        (Err(e), _) => self.problem(&text, e),
                        (_, Err(problem)) => self.problem(file, problem),
                    }
                    used.insert(text);
                }
                FileKind::Other if file.ends_with(".txt") => _ = texts.insert(file),
                FileKind::Table | FileKind::Other => {}
            }
        }
        texts.retain(|text| !used.contains(*text));
        if !used.is_empty() {
            self.leave_out(".txt files without an image of that name", &texts.into_iter().collect::<Vec<_>>());
        }
    }

    /// The rows of a Parquet file: a column of images or of their paths, and one of captions.
    fn read_captioned_table(&mut self, listing: &Listing, folder: &Path, file: &str) {
        let rows = || {
            let table = Table::open(&folder.join(file))?;
            let missing = |what: &str, names: &[&str]| format!("has no column of {what} ({})", names.join(", "));
            let images = Images::of(&table, PICTURE).ok_or_else(|| missing("images or their paths", PICTURE))?;
            let caption = table.first(CAPTION, "").ok_or_else(|| missing("captions", CAPTION))?;
            let captions = table.texts(&caption)?;
            let places = images.places(&table, file, listing)?.into_iter();
            let rows = places.zip(&captions).map(|(place, caption)| place.map(|place| Row::new(place, None, caption)));
            Ok::<_, String>((rows.collect::<Vec<_>>(), table.unread(file, &[images.column(), &caption])))
        };
        match rows() {
            Ok((rows, unread)) => {
                rows.into_iter().for_each(|row| self.add(row));
                self.unused.extend(unread);
            }
            Err(problem) => self.problem(file, problem),
        }
    }
}

/// The folder of a file: empty, or ending in `/`.
pub(super) fn parent(file: &str) -> &str {
    file.rfind('/').map_or("", |end| &file[..=end])
}

/// Whether there is a metadata file in the folder of `file`, or in one above it.
pub(super) fn speaks_for(governed: &BTreeSet<String>, file: &str) -> bool {
    let ends = file.char_indices().filter(|(_, letter)| *letter == '/').map(|(end, _)| end + 1);
    std::iter::once(0).chain(ends).any(|end| governed.contains(&file[..end]))
}

/// The name of the caption file of an image.
pub(super) fn text_of(file: &str) -> String {
    Path::new(file).with_extension("txt").to_string_lossy().into_owned()
}

/// A record of the metadata file in the folder `below` as a row.
fn captioned(
    listing: &Listing,
    below: &str,
    record: &Record,
    listed: &mut BTreeMap<String, String>,
) -> std::result::Result<Row, String> {
    let place = &record.place;
    let name = record.text(&["file_name"]).map_err(|e| format!("{place}: {e}"))?.map(str::trim);
    let name = name.filter(|name| !name.is_empty()).ok_or_else(|| format!("{place}: has no `file_name`"))?;
    if kind_of(name) != FileKind::Picture {
        return Err(format!("{place}, {name}: is not a JPEG, PNG or WebP file (by its extension)"));
    }
    let file = named(listing, below, name).map_err(|problem| format!("{place}, {name}: {problem}"))?;
    let problem = |problem: String| format!("{place}, {file}: {problem}");
    if let Some(first) = listed.insert(file.clone(), place.clone()) {
        return Err(problem(format!("is listed twice (also {first})")));
    }
    match record.text(CAPTION).map_err(problem)? {
        Some(caption) => Ok(Row::new(file.clone().into(), None, &clean(caption))),
        None => Err(problem("has no caption (column `text` or `caption`)".into())),
    }
}

/// Whether `text` contains `words` as whole words, in any case: "art" is in "Art deco" but not in "a party".
fn has_words(text: &str, words: &str) -> bool {
    let (text, words) = (text.to_lowercase(), words.to_lowercase());
    let alphanumeric = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let (first, last) = (alphanumeric(words.chars().next()), alphanumeric(words.chars().next_back()));
    // Every match, overlapping ones included: the first may be inside a word and the second not.
    text.char_indices().any(|(start, _)| {
        let inside = first && alphanumeric(text[..start].chars().next_back());
        text[start..].strip_prefix(&words).is_some_and(|rest| !(inside || last && alphanumeric(rest.chars().next())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        data::{DataConfig, DatasetKind},
        disk::folder_of as folder,
    };

    fn read(folder: &tempfile::TempDir, trigger: &str) -> Manifest {
        let config = DataConfig { path: folder.path().into(), trigger: trigger.into(), ..Default::default() };
        Manifest::read(&config, DatasetKind::Captions).unwrap()
    }

    fn captions(manifest: &Manifest) -> Vec<(&str, &str)> {
        assert!(manifest.problems.is_empty(), "{:?}", manifest.problems);
        manifest.rows.iter().map(|row| (row.picture.file.as_str(), row.caption.as_str())).collect()
    }

    #[test]
    fn captions_are_beside_their_images() {
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
    fn links_that_lead_back_do_not_multiply_the_images() {
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
            "line 6, c.png: there is no such image",
            "line 7, ../d.png: `../d.png` must be",
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

//! A caption in a row of a metadata file, edited without touching anything else in the file.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use super::{
    manifest::clean,
    metadata::{Record, rows_of},
};

/// The location of a caption in a `metadata.jsonl` or `metadata.csv`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptionCell {
    path: PathBuf,
    /// The number of the row, from 0.
    row: usize,
    /// What identifies the row: a column and its value.
    key: (String, String),
    column: String,
}

impl CaptionCell {
    /// The caption in the first of the columns `texts` of a row that names its image in the first of the columns `names`; `None` if it
    /// has no such columns.
    pub(super) fn of(path: PathBuf, row: usize, record: &Record, names: &[&str], texts: &[&str]) -> Option<Self> {
        let [key, caption] = [names, texts].map(|columns| record.cell(columns).ok().flatten());
        let (key, (column, _)) = (key?, caption?);
        Some(Self { path, row, key: (key.0.into(), key.1.into()), column: column.into() })
    }

    /// The metadata file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of that file.
    pub fn name(&self) -> std::borrow::Cow<'_, str> {
        self.path.file_name().unwrap_or_default().to_string_lossy()
    }

    /// The text of the cell, if the row still belongs to its image.
    fn found<'a>(&self, rows: &'a [Result<Record, String>]) -> Option<&'a str> {
        let record = rows.get(self.row)?.as_ref().ok()?;
        let is_the_one = record.text(&[self.key.0.as_str()]).ok().flatten() == Some(&self.key.1);
        record.text(&[self.column.as_str()]).ok().flatten().filter(|_| is_the_one)
    }

    /// The bytes of the file with the caption `before` replaced by `after`.
    ///
    /// # Errors
    /// A clause: the file cannot be read, is not UTF-8, or has another caption there.
    pub fn rewritten(&self, before: &str, after: &str) -> Result<Vec<u8>, String> {
        let bytes = fs::read(&self.path).map_err(|e| format!("cannot be read ({e})"))?;
        let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
        let text = text.ok_or("is not UTF-8: save it as UTF-8, or edit it in another program")?;
        let changed = || "has changed in the meantime".to_string();
        let rows = rows_of(&self.path, &text).map_err(|_| changed())?;
        if self.found(&rows).map(clean).as_deref() != Some(before) {
            return Err(changed());
        }
        let is_csv = self.path.extension().is_some_and(|extension| extension == "csv");
        let span =
            if is_csv { csv_cell(&text, self.row, &self.column) } else { json_cell(&text, self.row, &self.column) };
        let written = span.map(|span| {
            let cell =
                if is_csv { csv_text(after, &text[span.clone()]) } else { serde_json::Value::from(after).to_string() };
            [&text[..span.start], &cell, &text[span.end..]].concat()
        });
        // Whatever form the file has, nothing but this caption may have changed.
        let is_right = |written: &String| {
            let now = rows_of(&self.path, written).unwrap_or_default();
            let others = || rows.iter().zip(&now).enumerate().filter(|(row, _)| *row != self.row);
            now.len() == rows.len()
                && others().all(|(_, (before, after))| before == after)
                && self.found(&now) == Some(after)
                && matches!((&rows[self.row], &now[self.row]), (Ok(a), Ok(b)) if a.differs_only_in(b, &self.column))
        };
        let written = written.filter(is_right).ok_or("is in a form in which captions cannot be edited here")?;
        Ok(written.into_bytes())
    }
}

/// The range of a key's value in the line of a record.
fn json_cell(text: &str, row: usize, key: &str) -> Option<Range<usize>> {
    let mut start = 0;
    let lines = text.split_inclusive('\n').map(|line| {
        start += line.len();
        (start - line.len(), line)
    });
    let (start, line) = lines.filter(|(_, line)| !line.trim().is_empty()).nth(row)?;
    let (bytes, mut at, mut depth, mut found) = (line.as_bytes(), 0, 0, None);
    while at < bytes.len() {
        match bytes[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            b'"' => {
                let end = string_end(bytes, at)?;
                let after = end + line[end..].find(|c: char| !c.is_ascii_whitespace())?;
                if depth == 1 && bytes[after] == b':' {
                    let value = after + 1 + line[after + 1..].find(|c: char| !c.is_ascii_whitespace())?;
                    let is_it = serde_json::from_str::<String>(&line[at..end]).is_ok_and(|name| name == key);
                    if is_it && bytes[value] == b'"' {
                        found = Some(value..string_end(bytes, value)?); // of one that is there twice, the last counts
                    }
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found.map(|span: Range<usize>| start + span.start..start + span.end)
}

/// The position after the closing quote of the string that begins at `at`.
fn string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let mut end = at + 1;
    loop {
        match bytes.get(end)? {
            b'"' => return Some(end + 1),
            b'\\' => end += 2,
            _ => end += 1,
        }
    }
}

/// The range of a column's field in a record.
fn csv_cell(text: &str, row: usize, column: &str) -> Option<Range<usize>> {
    let mark = text.len() - text.trim_start_matches('\u{feff}').len();
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(&text.as_bytes()[mark..]);
    let column = reader.headers().ok()?.iter().position(|name| name.trim() == column)?;
    let record = reader.records().nth(row)?.ok()?;
    let bytes = text.as_bytes();
    let mut at = mark + record.position()?.byte() as usize;
    while matches!(bytes.get(at), Some(b'\r' | b'\n')) {
        at += 1;
    }
    for number in 0.. {
        let from = at;
        if bytes.get(at) == Some(&b'"') {
            at += 1;
            while let Some(byte) = bytes.get(at) {
                let is_quote = *byte == b'"';
                let is_doubled = is_quote && bytes.get(at + 1) == Some(&b'"');
                at += if is_doubled { 2 } else { 1 };
                if is_quote && !is_doubled {
                    break;
                }
            }
        }
        while !matches!(bytes.get(at), None | Some(b',' | b'\r' | b'\n')) {
            at += 1;
        }
        if number == column {
            return Some(from..at);
        }
        if bytes.get(at) != Some(&b',') {
            return None;
        }
        at += 1;
    }
    None
}

/// A text as a field, in quotes where necessary or where the previous value had them.
fn csv_text(text: &str, before: &str) -> String {
    match text.is_empty() || text.contains([',', '"', '\r', '\n']) || before.starts_with('"') {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(path: &Path, row: usize, name: &str) -> CaptionCell {
        CaptionCell { path: path.into(), row, key: ("file_name".into(), name.into()), column: "text".into() }
    }

    fn read(cell: &CaptionCell) -> Option<String> {
        let text = crate::data::text_file::read_text(&cell.path).ok()?;
        cell.found(&rows_of(&cell.path, &text).ok()?).map(clean)
    }

    #[test]
    fn a_caption_changes_and_all_other_bytes_stay() {
        let folder = tempfile::tempdir().unwrap();
        let jsonl = folder.path().join("metadata.jsonl");
        let lines = "\u{feff}{\"file_name\": \"a.png\",  \"text\" : \"a \\\"cat\\\" \\u00e9\", \"n\": {\"text\": \"x\"}}\r\n\n\
                     {\"text\":\"one\",\"file_name\":\"b.png\",\"text\":\"a dog\"}\n{\"file_name\":\"c.png\",\"text\":null}";
        fs::write(&jsonl, lines).unwrap();
        assert_eq!(read(&cell(&jsonl, 0, "a.png")).unwrap(), "a \"cat\" é");
        let after = cell(&jsonl, 0, "a.png").rewritten("a \"cat\" é", "line\n\"two\"").unwrap();
        assert_eq!(
            String::from_utf8(after).unwrap(),
            lines.replace("\"a \\\"cat\\\" \\u00e9\"", "\"line\\n\\\"two\\\"\"")
        );
        let after = cell(&jsonl, 1, "b.png").rewritten("a dog", "").unwrap();
        assert_eq!(String::from_utf8(after).unwrap(), lines.replace("\"a dog\"", "\"\""));
        assert!(cell(&jsonl, 2, "c.png").rewritten("", "x").is_err(), "there is no text");
        assert!(cell(&jsonl, 0, "b.png").rewritten("a \"cat\" é", "x").unwrap_err().contains("changed"));
        assert!(cell(&jsonl, 1, "b.png").rewritten("one", "x").unwrap_err().contains("changed"));

        let csv = folder.path().join("metadata.csv");
        let table =
            "\u{feff}file_name,  text ,more\r\na.png,\"a \"\"cat\"\", ink\",1\r\n\r\nb.png,a dog\r\nc.png,,3\r\n";
        fs::write(&csv, table).unwrap();
        for (row, name, before, written) in [
            (0, "a.png", "a \"cat\", ink", ("\"a \"\"cat\"\", ink\"", "\"new, \"\"n\"\"\"")),
            (1, "b.png", "a dog", ("a dog", "\"new, \"\"n\"\"\"")),
            (2, "c.png", "", ("c.png,", "c.png,\"new, \"\"n\"\"\"")),
        ] {
            let after = cell(&csv, row, name).rewritten(before, "new, \"n\"").unwrap();
            assert_eq!(String::from_utf8(after).unwrap(), table.replace(written.0, written.1), "{name}");
        }
        let after = cell(&csv, 1, "b.png").rewritten("a dog", "two\nlines").unwrap();
        fs::write(&csv, after).unwrap();
        assert_eq!(read(&cell(&csv, 1, "b.png")).unwrap(), "two\nlines");
        assert_eq!(read(&cell(&csv, 2, "c.png")).unwrap(), "");
        fs::write(&csv, b"file_name,text\na.png,caf\xe9\n").unwrap();
        assert_eq!(read(&cell(&csv, 0, "a.png")).unwrap(), "café");
        assert!(cell(&csv, 0, "a.png").rewritten("café", "x").unwrap_err().contains("UTF-8"));
    }
}

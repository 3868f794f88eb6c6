//! The files of a data folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    paths::composed,
};

/// All files in a folder and its sub-folders that can be data.
#[derive(Debug, Default)]
pub struct Listing {
    folder: PathBuf,
    /// The files, relative to the folder, with `/` on every system, sorted.
    pub files: Vec<String>,
    /// Names that are not UTF-8, with `�` for what is not: such files cannot be named in a configuration.
    pub nameless: Vec<String>,
    /// Run folders of kiln, which hold samples and are not data.
    pub runs: Vec<String>,
    /// The names that are not ASCII, by their composed Unicode form.
    forms: BTreeMap<String, Vec<String>>,
}

impl Listing {
    /// Lists `folder` without hidden files and run folders. Each folder is entered once, however many links lead to it.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn of(folder: &Path) -> Result<Self> {
        let mut listing = Self { folder: folder.into(), ..Self::default() };
        let mut entered = BTreeSet::new();
        // The nearest first, in the order of names, so that of several paths to a folder the same one is always taken.
        let mut open = BTreeSet::from([(0, PathBuf::new())]);
        while let Some((depth, below)) = open.pop_first() {
            let here = folder.join(&below);
            if !entered.insert(here.canonicalize().map_err(|e| Error::io(&here, e))?) {
                continue;
            }
            if depth > 0 && is_run(&here) {
                listing.runs.push(spelled(&below).unwrap_or_else(|lossy| lossy));
                continue;
            }
            for entry in std::fs::read_dir(&here).map_err(|e| Error::io(&here, e))? {
                let name = below.join(entry.map_err(|e| Error::io(&here, e))?.file_name());
                if name.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
                    continue;
                }
                if folder.join(&name).is_dir() {
                    open.insert((depth + 1, name));
                    continue;
                }
                match spelled(&name) {
                    Ok(name) => listing.files.push(name),
                    Err(lossy) => listing.nameless.push(lossy),
                }
            }
        }
        listing.files.sort_unstable();
        listing.nameless.sort_unstable();
        for name in listing.files.iter().filter(|name| !name.is_ascii()) {
            listing.forms.entry(composed(name)).or_default().push(name.clone());
        }
        Ok(listing)
    }

    /// The listed file with this name, possibly in another Unicode form, as in archives from macOS. `None` if there is no such file, or
    /// several.
    pub fn find(&self, name: &str) -> Option<String> {
        if self.folder.join(name).is_file() {
            return Some(name.into());
        }
        match self.forms.get(&composed(name)).map(Vec::as_slice) {
            Some([only]) => Some(only.clone()),
            _ => None,
        }
    }
}

/// A relative path with `/` between its parts; `Err` with a lossy form if it is not UTF-8.
fn spelled(path: &Path) -> std::result::Result<String, String> {
    let slashes = |text: &str| if cfg!(windows) { text.replace('\\', "/") } else { text.to_string() };
    path.to_str().map(slashes).ok_or_else(|| slashes(&path.to_string_lossy()))
}

/// Whether a folder holds a run of kiln.
fn is_run(folder: &Path) -> bool {
    ["config.toml", "metrics.jsonl"].iter().all(|name| folder.join(name).is_file())
}

/// How often the images of a file's folder count in an epoch, by kohya's convention: `10_dog` is ten times.
pub fn repeats(file: &str) -> std::result::Result<usize, String> {
    let Some((folder, _)) = file.rsplit_once('/') else { return Ok(1) };
    let folder = folder.rsplit('/').next().unwrap_or(folder);
    let Some(count) = repeats_of(folder) else { return Ok(1) };
    match count.parse() {
        Ok(count) if (1..=super::config::MOST_REPEATS).contains(&count) => Ok(count),
        _ => Err(format!(
            "its folder {folder} asks for {count} repeats, as kohya's scripts read it: use 1 to {}, or rename it",
            super::config::MOST_REPEATS
        )),
    }
}

/// The number at the start of a folder's name, if the name follows kohya's convention.
pub fn repeats_of(folder: &str) -> Option<&str> {
    let (count, name) = folder.split_once('_')?;
    let digits = !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit());
    (digits && !name.is_empty()).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_named_by_kohyas_convention_says_how_often_its_images_count() {
        let count = |file| repeats(file).unwrap();
        assert_eq!([count("a.png"), count("10_dog/a.png"), count("more/3_big cat/a.png")], [1, 10, 3]);
        assert_eq!(["10_/a.png", "x10_dog/a.png", "10dog/a.png", "10_dog.png", "10_dog/more/a.png"].map(count), [1; 5]);
        for (file, named) in
            [("0_dog/a.png", "0 repeats"), ("99999999999999999999_dog/a.png", "99999999999999999999 repeats")]
        {
            assert!(repeats(file).unwrap_err().contains(named), "{file}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn names_of_every_kind_are_listed_as_they_are() {
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| std::fs::write(folder.path().join(name), "").unwrap();
        write("a\\b.png");
        write("e\u{301}.png");
        let odd = std::ffi::OsStr::from_bytes(b"x\xff.png");
        if std::fs::write(folder.path().join(odd), "").is_err() {
            return; // a file system that takes no such names
        }
        let listing = Listing::of(folder.path()).unwrap();
        assert_eq!(listing.files, ["a\\b.png", "e\u{301}.png"]);
        assert_eq!(listing.nameless, ["x\u{fffd}.png"]);
        assert_eq!(listing.find("\u{e9}.png").as_deref(), Some("e\u{301}.png"));
        assert_eq!(listing.find("e.png"), None);
    }

    #[test]
    fn runs_are_no_data_unless_one_is_the_folder_itself() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("runs/first");
        std::fs::create_dir_all(run.join("samples")).unwrap();
        for name in ["config.toml", "metrics.jsonl", "samples/step-000000.png"] {
            std::fs::write(run.join(name), "").unwrap();
        }
        std::fs::write(folder.path().join("a.png"), "").unwrap();
        let listing = Listing::of(folder.path()).unwrap();
        assert_eq!((listing.files, listing.runs), (vec!["a.png".to_string()], vec!["runs/first".to_string()]));
        assert_eq!(Listing::of(&run).unwrap().files.len(), 3);
    }
}

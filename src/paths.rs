//! Paths as users write them, and checks that results can be written before the work starts.

use std::path::{Component, Path, PathBuf};

use unicode_normalization::UnicodeNormalization;

use crate::error::{Error, Result};

/// The longest name of a file or folder in common file systems, in bytes.
const LONGEST_NAME: usize = 255;

/// Resolves `path`: `~` is the home folder, and a name that exists in another Unicode form (macOS decomposes accents) is that
/// one.
///
/// # Errors
/// One clause about the path: it begins with the `~name` of another person's folder, there is no home folder, or it has
/// backslashes where they separate no folders.
pub fn meant(path: &Path) -> std::result::Result<PathBuf, String> {
    let Some(text) = path.to_str() else { return Ok(path.into()) };
    if path.symlink_metadata().is_ok() {
        return Ok(path.into()); // whatever its name looks like
    }
    if let Some(rest) = text.strip_prefix('~') {
        let Some(rest) = rest.strip_prefix('/').or(rest.is_empty().then_some("")) else {
            let who = text.split('/').next().unwrap_or(text);
            return Err(format!("begins with `{who}`, and only `~` itself is understood: write the full path"));
        };
        let home = std::env::home_dir().filter(|home| home.is_absolute());
        let home = home.ok_or("begins with `~`, and there is no home folder: write the full path")?;
        return Ok(other_form(&home.join(rest.trim_start_matches('/'))));
    }
    if cfg!(unix) && text.contains('\\') {
        return Err(format!(
            "has backslashes, which do not separate folders on this system: write `{}`",
            text.replace('\\', "/")
        ));
    }
    Ok(other_form(path))
}

/// The resolved path of the setting `key`; see [`meant`].
///
/// # Errors
/// As [`meant`], naming the setting.
pub fn meant_by(key: &str, path: &Path) -> Result<PathBuf> {
    meant(path).map_err(|problem| Error::setting(key, format!("`{}` {problem}", path.display())))
}

/// The text in composed Unicode form, in which equal-looking texts are equal.
pub fn composed(text: &str) -> String {
    text.nfc().collect()
}

/// The path with existing names: a missing part that exists in exactly one other Unicode form is replaced by that.
fn other_form(path: &Path) -> PathBuf {
    if path.to_str().is_none_or(str::is_ascii) || path.exists() {
        return path.into();
    }
    let mut found = PathBuf::new();
    for part in path.components() {
        let next = found.join(part);
        let (Component::Normal(name), false) = (part, next.symlink_metadata().is_ok()) else {
            found = next;
            continue;
        };
        let folder = if found.as_os_str().is_empty() { Path::new(".") } else { &found };
        let wanted = composed(&name.to_string_lossy());
        let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let same: Vec<_> = names.filter(|name| name.to_str().is_some_and(|name| composed(name) == wanted)).collect();
        found = match same.as_slice() {
            [same] => found.join(same),
            _ => next,
        };
    }
    found
}

/// Checks that a folder for results can be written to or created, by writing a small file where it is or will be.
///
/// # Errors
/// Something else is in its place, a name is too long, or it cannot be written to.
pub fn check_folder(folder: &Path) -> Result<()> {
    let cannot = |problem: String| Error::file(folder, format!("results cannot be written here: {problem}"));
    let long = |part: &Component| part.as_os_str().len() > LONGEST_NAME;
    if let Some(part) = folder.components().find(long) {
        let length = part.as_os_str().len();
        return Err(cannot(format!("a name in it has {length} bytes, and the limit is {LONGEST_NAME}")));
    }
    if folder.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(cannot("there is a zero byte in its name".into()));
    }
    let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let there = here.ancestors().map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    let there = there.into_iter().find(|folder| folder.symlink_metadata().is_ok()).unwrap_or(Path::new("."));
    if !there.is_dir() {
        return Err(cannot(format!("{} is not a folder", there.display())));
    }
    let probe = there.join(format!(".kiln-{}.probe", std::process::id()));
    let written = std::fs::File::create(&probe);
    _ = std::fs::remove_file(&probe); // there is none if it could not be written
    written.map(drop).map_err(|e| cannot(format!("{} cannot be written to ({e})", there.display())))
}

/// Checks that a file for results can be written: its folder exists and is writable, and no folder has its name.
///
/// # Errors
/// As [`check_folder`]; or the folder is missing.
pub fn check_file(file: &Path) -> Result<()> {
    if file.is_dir() {
        return Err(Error::file(file, "is a folder, but a file is to be written there").hint("add the name of a file"));
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(Error::file(folder, format!("there is no such folder, so {} cannot be written", file.display())));
    }
    let name = file.file_name().ok_or_else(|| Error::file(file, "is not a file name"))?;
    if name.len() > LONGEST_NAME || name.as_encoded_bytes().contains(&0) {
        let problem = format!("its name must be of at most {LONGEST_NAME} bytes, none of them zero");
        return Err(Error::file(file, problem));
    }
    check_folder(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_is_the_home_folder_and_nobody_elses() {
        let Some(home) = std::env::home_dir() else { return };
        assert_eq!(meant(Path::new("~")), Ok(home.join("")));
        assert_eq!(meant(Path::new("~/a/b")), Ok(home.join("a/b")));
        assert_eq!(meant(Path::new("a/~/b")), Ok("a/~/b".into()));
        let problem = meant(Path::new("~nobody/a")).unwrap_err();
        assert!(problem.contains("`~nobody`") && problem.contains("full path"), "{problem}");
    }

    #[cfg(unix)]
    #[test]
    fn backslashes_are_refused_unless_a_file_is_called_so() {
        let problem = meant(Path::new(r"runs\first")).unwrap_err();
        assert!(problem.contains("`runs/first`"), "{problem}");
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join(r"a\b");
        std::fs::write(&odd, "").unwrap();
        assert_eq!(meant(&odd), Ok(odd));
    }

    #[test]
    fn a_name_in_another_unicode_form_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (apart, together) = ("e\u{301}te\u{301}", "\u{e9}t\u{e9}");
        std::fs::create_dir(folder.path().join(apart)).unwrap();
        assert!(meant(&folder.path().join(together)).unwrap().is_dir());
        // Missing parts keep their given names, below the existing ones.
        let new = meant(&folder.path().join(together).join("\u{e0}.png")).unwrap();
        assert!(new.parent().unwrap().is_dir() && new.ends_with("\u{e0}.png"), "{}", new.display());
    }

    #[test]
    fn a_folder_for_results_is_tried_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        check_folder(&folder.path().join("new/deeper")).unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = check_folder(&file.join("pictures")).unwrap_err().to_string();
        assert!(error.contains("file is not a folder"), "{error}");
        assert!(check_file(&file).is_ok() && check_file(&folder.path().join("none/file")).is_err());
        assert!(check_file(folder.path()).is_err());
        let long = folder.path().join("x".repeat(256));
        assert!(check_folder(&long).is_err() && check_file(&long).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left");
    }
}

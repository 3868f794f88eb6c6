//! Safe files: atomic replacement, removal of what dead processes left, locks between processes, checksums.

mod lock;

use std::{
    fs::{self, File},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::error::{Error, Result};
pub use lock::{FolderLock, hold, hold_alone, writer};

/// The extension of an unfinished file.
const PARTIAL: &str = "partial";

/// Replaces the file at `path` atomically. `write` fills a temporary file beside it, which is synced and then renamed, so that `path`
/// is always either the old file or the complete new one. On failure the temporary file is removed; if the process dies, [`sweep`]
/// removes it.
///
/// # Errors
/// That of `write`, or the file cannot be written.
pub fn replace(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    // With the process id, because two processes that fill one cache may write the same entry at the same time.
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut partial = path.with_extension(format!("{}-{number}.{PARTIAL}", std::process::id()));
    if partial.file_name().is_some_and(|name| name.len() > 255) {
        // The temporary name can be too long where the file's own is not: then the hash of the name takes its place.
        let hash = blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex();
        partial = path.with_file_name(format!("{}.{}-{number}.{PARTIAL}", &hash[..32], std::process::id()));
    }
    let io = |e| Error::io(path, e);
    let claim = File::create(&partial).map_err(|e| Error::file(path, format!("cannot be written ({e})")))?;
    // The lock shows that the writer is alive. On a file system without locks, nothing is swept.
    _ = claim.try_lock();
    let sync = || File::open(&partial).and_then(|file| file.sync_all()).map_err(io);
    let renamed = || fs::rename(&partial, path).map_err(io);
    let done = write(&partial).and_then(|()| sync()).and_then(|()| renamed());
    if done.is_err() {
        _ = fs::remove_file(&partial); // the first error is the one to tell
    }
    done
}

/// Removes the temporary files in `folder` (not below it) whose processes died. Files that another process is writing stay. A folder
/// that cannot be read is left alone.
pub fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if !is_leftover(&path) || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let Ok(file) = File::options().write(true).open(&path) else { continue };
        if file.try_lock().is_ok() && fs::remove_file(&path).is_ok() {
            tracing::debug!("removed {}, left behind by a process that died", path.display());
        }
    }
}

/// Whether this is the name of a temporary file of [`replace`]: `NAME.PROCESS-ID.partial`.
fn is_leftover(path: &Path) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let process = || Path::new(path.file_stem()?).extension()?.to_str();
    path.extension().is_some_and(|extension| extension == PARTIAL)
        && process()
            .is_some_and(|process| process.split_once('-').map_or(digits(process), |(p, n)| digits(p) && digits(n)))
}

/// Removes a folder with its contents. A missing folder is not an error.
///
/// # Errors
/// It cannot be removed.
pub fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(folder, e)),
        _ => Ok(()),
    }
}

/// Removes a folder atomically, by renaming it to the extension `removed` first: whenever the process ends, the folder is complete or
/// gone. [`sweep_folders`] finishes interrupted removals.
///
/// # Errors
/// It cannot be renamed or removed.
pub fn remove_whole(folder: &Path) -> Result<()> {
    let removed = folder.with_extension(REMOVED);
    remove_folder(&removed)?;
    fs::rename(folder, &removed).map_err(|e| Error::io(folder, e))?;
    remove_folder(&removed)
}

/// The extension of a folder that is being removed.
const REMOVED: &str = "removed";

/// Removes the folders in `folder` whose names start with `start` and end in `.partial` or `.removed`: their creation or removal was
/// interrupted. Only for a folder in which nobody else writes.
///
/// # Errors
/// One cannot be removed.
pub fn sweep_folders(folder: &Path, start: &str) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(start);
        let unfinished = path.extension().is_some_and(|extension| extension == PARTIAL || extension == REMOVED);
        if ours && unfinished && path.is_dir() {
            remove_folder(&path)?;
            tracing::debug!("removed {}, left behind by a process that died", path.display());
        }
    }
    Ok(())
}

/// Syncs `folder`, so that renames in it survive a loss of power. Where folders cannot be synced, this does nothing.
pub fn sync_folder(folder: &Path) {
    _ = File::open(folder).and_then(|folder| folder.sync_all());
}

/// The BLAKE3 hash of a file in hexadecimal, as `b3sum` prints it.
///
/// # Errors
/// It cannot be read.
pub fn checksum(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let hashed = File::open(path).and_then(|file| hasher.update_reader(file).map(drop));
    hashed.map_err(|e| Error::io(path, e))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// The host name of this machine.
pub fn host() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

/// For unit tests: a folder with these files, each with its content.
#[cfg(test)]
pub(crate) fn folder_of(files: &[(impl AsRef<Path>, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = entries.collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        fs::write(&path, "old").unwrap();
        let full = |partial: &Path| {
            fs::write(partial, "ne").unwrap();
            Err(Error::io(partial, std::io::ErrorKind::StorageFull.into()))
        };
        assert!(replace(&path, full).is_err());
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names(folder.path())), ("old", vec!["a.json".into()]));
        replace(&path, |partial| fs::write(partial, "new").map_err(|e| Error::io(partial, e))).unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names(folder.path())), ("new", vec!["a.json".into()]));
    }

    #[test]
    fn only_leftovers_of_dead_processes_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let kept = ["a.partial", "b.json", "b.x-1.partial", "c.1-x.partial", "1-2.partial.json"];
        for name in kept.iter().chain(&["b.123-4.partial", "b.123.partial"]) {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir(folder.path().join("d.123-4.partial")).unwrap();
        let path = folder.path().join("live.json");
        replace(&path, |partial| {
            sweep(folder.path()); // this one's writer is alive
            assert!(partial.exists());
            fs::write(partial, "{}").map_err(|e| Error::io(partial, e))
        })
        .unwrap();
        let mut expected: Vec<String> =
            kept.iter().chain(&["d.123-4.partial", "live.json"]).map(ToString::to_string).collect();
        expected.sort_unstable();
        assert_eq!(names(folder.path()), expected);
        sweep(&folder.path().join("none"));
    }

    #[test]
    fn unfinished_and_half_removed_folders_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["step-000001", "step-000002.removed", "step-000003.partial", "other.partial"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("file"), "").unwrap();
        }
        sweep_folders(folder.path(), "step-").unwrap();
        assert_eq!(names(folder.path()), ["other.partial", "step-000001"]);
        remove_whole(&folder.path().join("step-000001")).unwrap();
        assert_eq!(names(folder.path()), ["other.partial"]);
    }
}

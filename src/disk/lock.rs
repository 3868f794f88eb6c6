//! File locks between processes. The operating system releases those of a process that dies.

use std::{
    fs::{self, File, TryLockError},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use super::host;
use crate::error::{Error, Result};

/// Name of the lock file in a folder.
const NAME: &str = ".lock";

/// The exclusive right to write into a folder. The lock file names the process, and is removed when the lock is dropped. A file left
/// behind by a dead process locks nothing.
#[derive(Debug)]
pub struct FolderLock {
    path: PathBuf,
    /// Locked while open.
    _file: File,
}

impl FolderLock {
    /// The path of the lock file.
    pub const FILE: &str = NAME;

    /// Locks `folder` for writing.
    ///
    /// # Errors
    /// Another process holds the lock, or the lock file cannot be written.
    pub fn take(folder: &Path) -> Result<Self> {
        Self::try_take(folder)?.ok_or_else(|| {
            let problem = format!("another kiln is writing to this folder: {}", holder(folder));
            Error::file(folder, problem)
                .hint("wait until it has finished, or stop it; `validate` and `export` work meanwhile")
        })
    }

    /// The same; `None` if another process holds the lock.
    ///
    /// # Errors
    /// The lock file cannot be written.
    pub fn try_take(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(NAME);
        let io = |e| Error::io(&path, e);
        loop {
            let options = || File::options().read(true).write(true).create(true).truncate(false).open(&path);
            let mut file = options().map_err(io)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(e)) => {
                    tracing::warn!("{}: cannot be locked ({e}): run nothing else in this folder", folder.display());
                }
            }
            // The last holder may have removed the file after it was opened here.
            if !is_same(&file, &path) {
                continue;
            }
            let name = format!("process {} on {} (kiln {})\n", std::process::id(), host(), env!("CARGO_PKG_VERSION"));
            file.set_len(0).and_then(|()| file.write_all(name.as_bytes())).map_err(io)?;
            return Ok(Some(Self { path, _file: file }));
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.path); // while it is locked; a file that stays locks nothing
    }
}

/// The id of the process that is writing in `folder`, for readers. `None` if there is none, or if it runs on another machine.
pub fn writer(folder: &Path) -> Option<u32> {
    let file = File::open(folder.join(NAME)).ok()?;
    // The lock file of a dead process can be locked by anyone.
    if !matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
        return None;
    }
    let text = holder(folder);
    let (process, rest) = text.strip_prefix("process ")?.split_once(" on ")?;
    (rest.rsplit_once(" (kiln ")?.0 == host()).then(|| process.parse().ok())?
}

/// The first line of the lock file of `folder`: the process that is writing there.
fn holder(folder: &Path) -> String {
    let mut text = String::new();
    // Some systems do not let others read a locked file.
    let read = File::open(folder.join(NAME)).and_then(|file| file.take(300).read_to_string(&mut text));
    match (read, text.trim()) {
        (Err(_), _) | (_, "") => "a process whose number is not known".into(),
        (_, name) => name.into(),
    }
}

/// A shared lock on the file at `path`: while it is held, nobody removes what the file stands for. `None` if that is being removed, or
/// gone.
///
/// # Errors
/// The file cannot be opened.
pub fn hold(path: &Path) -> Result<Option<File>> {
    locked(path, File::try_lock_shared)
}

/// An exclusive lock on the file at `path`; `None` if somebody holds a lock on it, or it is gone.
///
/// # Errors
/// The file cannot be opened.
pub fn hold_alone(path: &Path) -> Result<Option<File>> {
    locked(path, File::try_lock)
}

fn locked(path: &Path, lock: fn(&File) -> std::result::Result<(), TryLockError>) -> Result<Option<File>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|e| Error::io(path, e))?,
    };
    match lock(&file) {
        Err(TryLockError::WouldBlock) => Ok(None),
        // A file system without locks cannot keep anybody away.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(is_same(&file, path).then_some(file)),
    }
}

/// Whether `path` still leads to the open `file`.
fn is_same(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let [open, named] = [file.metadata(), fs::metadata(path)].map(|metadata| metadata.map(identity).ok());
        open.is_some() && open == named
    }
    #[cfg(not(unix))]
    {
        _ = file;
        path.exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_writes_at_a_time_and_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(folder.path()).unwrap();
        assert!(FolderLock::try_take(folder.path()).unwrap().is_none());
        let error = FolderLock::take(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {} on ", std::process::id())) && error.contains("hint: "), "{error}");
        assert_eq!(writer(folder.path()), Some(std::process::id()));
        drop(lock);
        assert!(!folder.path().join(NAME).exists());
        assert_eq!(writer(folder.path()), None);
    }

    #[test]
    fn the_lock_file_of_a_dead_process_locks_nothing() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(NAME), "process 1 on elsewhere, and more than the next one has to say of itself")
            .unwrap();
        assert_eq!(writer(folder.path()), None);
        let lock = FolderLock::take(folder.path()).unwrap();
        assert!(holder(folder.path()).starts_with(&format!("process {} on ", std::process::id())));
        assert!(!holder(folder.path()).contains("elsewhere"));
        drop(lock);
    }

    #[test]
    fn readers_share_a_lock_that_keeps_removal_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        assert!(hold(&path).unwrap().is_none());
        fs::write(&path, "{}").unwrap();
        let (one, other) = (hold(&path).unwrap().unwrap(), hold(&path).unwrap().unwrap());
        assert!(hold_alone(&path).unwrap().is_none());
        drop(one);
        assert!(hold_alone(&path).unwrap().is_none());
        drop(other);
        let alone = hold_alone(&path).unwrap().unwrap();
        assert!(hold(&path).unwrap().is_none());
        fs::remove_file(&path).unwrap();
        drop(alone);
        assert!(hold(&path).unwrap().is_none());
    }
}

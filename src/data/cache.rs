//! The cache of encoded images and captions, addressed by content.
//!
//! An entry is one safetensors file, `latents/ab/abcd….safetensors` or `prompts/…`, named by a hash of everything its content depends
//! on; the first two digits spread a large set over 256 folders. A changed input therefore leads to new entries and leaves the others
//! valid, and entries written before an interruption are found afterwards. Files are replaced atomically and carry a checksum of their
//! tensors. Unused entries are kept; deleting the folder is always safe.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

use burn::tensor::TensorData;

use crate::{
    disk,
    error::{Error, Result},
    weights::{TensorFile, write_tensors},
};

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `moments` `[2C, h, w]`: means, then log variances; in `data.cache_dtype`.
    Latents,
    /// `prompt` `[L, D]` and `pooled` `[P]`, in the text encoders' dtype, and their token ids, i64: `clip`, and `t5` where there is
    /// one.
    Prompts,
}

impl Kind {
    /// The name of its folder in the cache.
    fn folder(self) -> &'static str {
        match self {
            Self::Latents => "latents",
            Self::Prompts => "prompts",
        }
    }
}

/// A cache folder.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The cache in `folder`, which need not exist yet.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, kind: Kind, key: &str) -> PathBuf {
        self.folder.join(kind.folder()).join(&key[..2]).join(key).with_extension("safetensors")
    }

    /// Removes unfinished entries of dead processes.
    pub fn sweep(&self) {
        disk::sweep(&self.folder);
        for kind in [Kind::Latents, Kind::Prompts] {
            let folders = std::fs::read_dir(self.folder.join(kind.folder()));
            folders.into_iter().flatten().flatten().for_each(|folder| disk::sweep(&folder.path()));
        }
    }

    /// Whether the entry exists. One that was modified after `trusted` is opened: if its header or its length is wrong, it is removed and
    /// counts as missing. [`read`](Self::read) verifies the checksum.
    pub fn holds(&self, kind: Kind, key: &str, trusted: SystemTime) -> bool {
        let path = self.path(kind, key);
        let Ok(modified) = std::fs::metadata(&path).and_then(|m| m.modified()) else { return false };
        match (modified > trusted).then(|| TensorFile::open(&path)) {
            None | Some(Ok(_)) => true,
            Some(Err(error)) => {
                if !error.is_io() {
                    let _ = std::fs::remove_file(&path); // else its age would vouch for it at the next start
                }
                false
            }
        }
    }

    /// The tensors of an entry, verified by checksum.
    ///
    /// # Errors
    /// The entry is missing, or damaged; a damaged one is removed.
    pub fn read(&self, kind: Kind, key: &str) -> Result<BTreeMap<String, TensorData>> {
        let path = self.path(kind, key);
        let damage = match verified(&path) {
            Ok(Some(tensors)) => return Ok(tensors),
            Ok(None) => "its checksum does not match".into(),
            Err(error) if error.is_io() => return Err(error),
            Err(error) => error.problem.to_string(),
        };
        // Once removed, it is missing for the next preparation, which encodes it again.
        let (fate, first) = match std::fs::remove_file(&path) {
            Ok(()) => ("has been removed", ""),
            Err(_) => ("cannot be removed", "delete it and "),
        };
        Err(Error::file(path, format!("this cache entry is damaged ({damage}) and {fate}"))
            .hint(format!("{first}run `kiln prepare` with the same configuration: only this entry is rebuilt")))
    }

    /// Writes an entry.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, kind: Kind, key: &str, tensors: &BTreeMap<String, TensorData>) -> Result<()> {
        let path = self.path(kind, key);
        let parent = path.parent().expect("an entry lies in a folder");
        std::fs::create_dir_all(parent).map_err(|e| {
            Error::file(parent, format!("cannot be created ({e})"))
                .hint("set `data.cache` to a folder that can be written to")
        })?;
        write_tensors(&path, tensors, &BTreeMap::from([("checksum".into(), checksum(tensors))]))
    }
}

/// The key of an entry: a hash of `parts`, each with its length, so that no two different lists of parts coincide.
pub fn key(parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("kiln cache entry, version 1");
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// The tensors of the file at `path`, if their checksum matches.
fn verified(path: &Path) -> Result<Option<BTreeMap<String, TensorData>>> {
    let file = TensorFile::open(path)?;
    let names = file.names().into_iter();
    let tensors: BTreeMap<_, _> = names.map(|name| Ok((name.clone(), file.read(&name)?))).collect::<Result<_>>()?;
    Ok((file.metadata().get("checksum") == Some(&checksum(&tensors))).then_some(tensors))
}

fn checksum(tensors: &BTreeMap<String, TensorData>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, data) in tensors {
        hasher.update(format!("{name} {:?} {:?} ", data.dtype, data.shape.as_slice()).as_bytes());
        hasher.update(data.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> BTreeMap<String, TensorData> {
        BTreeMap::from([("moments".into(), TensorData::new(vec![1f32, 2.0, 3.0, 4.0], [2, 2]))])
    }

    fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        bytes
    }

    #[test]
    fn a_damaged_entry_is_refused_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().join("cache"));
        let key = key(&["a"]);
        assert!(!cache.holds(Kind::Latents, &key, SystemTime::UNIX_EPOCH));
        cache.write(Kind::Latents, &key, &entry()).unwrap();
        assert!(
            cache.holds(Kind::Latents, &key, SystemTime::UNIX_EPOCH)
                && !cache.holds(Kind::Prompts, &key, SystemTime::UNIX_EPOCH)
        );
        assert_eq!(cache.read(Kind::Latents, &key).unwrap(), entry());

        let path = cache.path(Kind::Latents, &key);
        let whole = std::fs::read(&path).unwrap();
        let last = whole.len() - 1;
        // A tensor, the length of the header, the header, and nothing at all.
        for damaged in [flipped(&whole, last), flipped(&whole, 6), flipped(&whole, 8), Vec::new()] {
            std::fs::write(&path, damaged).unwrap();
            let error = cache.read(Kind::Latents, &key).unwrap_err().to_string();
            assert!(error.contains("damaged") && error.contains("kiln prepare"), "{error}");
            assert!(!path.exists());
        }
    }

    #[test]
    fn an_entry_from_before_the_last_check_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().into());
        let key = key(&["a"]);
        cache.write(Kind::Prompts, &key, &entry()).unwrap();
        let path = cache.path(Kind::Prompts, &key);
        std::fs::write(&path, "damaged without a trace").unwrap();
        let checked = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(checked).unwrap();
        assert!(cache.holds(Kind::Prompts, &key, checked));
        assert!(!cache.holds(Kind::Prompts, &key, checked - std::time::Duration::from_secs(1)));
        assert!(!cache.holds(Kind::Prompts, &key, checked), "damaged, so removed");
    }

    #[test]
    fn keys_do_not_run_together() {
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_ne!(key(&["a"]), key(&["a", ""]));
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
    }
}

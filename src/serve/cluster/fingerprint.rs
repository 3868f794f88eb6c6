//! Whether two machines have the same model under one name.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    hub,
};

/// Files up to this many bytes are read whole.
const SMALL: u64 = 64 << 10;

/// Of larger ones, so many pieces of so many bytes, evenly spaced: two trainings of one model differ in each.
const PIECES: u64 = 16;
const PIECE: u64 = 4 << 10;

/// A hash of the names, the sizes and parts of the files of a model.
///
/// # Errors
/// It does not exist, or cannot be read.
pub fn of(model: &str) -> Result<String> {
    let folder = hub::resolve(model)?;
    let mut files = Vec::new();
    collect(&folder, &mut files)?;
    files.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    for path in files {
        add(&mut hasher, &folder, &path).map_err(|e| Error::io(&path, e))?;
    }
    Ok(hasher.finalize().to_hex()[..32].into())
}

/// Of models, the configurations, vocabularies and weights.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        if path.is_dir() {
            collect(&path, files)?;
        } else if path
            .extension()
            .is_some_and(|ending| ["json", "txt", "model", "safetensors"].iter().any(|e| ending == *e))
        {
            files.push(path);
        }
    }
    Ok(())
}

fn add(hasher: &mut blake3::Hasher, folder: &Path, path: &Path) -> std::io::Result<()> {
    let name = path.strip_prefix(folder).unwrap_or(path).to_string_lossy().replace('\\', "/");
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(&size.to_le_bytes());
    if size <= SMALL {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        hasher.update(&bytes);
        return Ok(());
    }
    let mut piece = [0; PIECE as usize];
    for number in 0..PIECES {
        file.seek(SeekFrom::Start((size - PIECE) * number / (PIECES - 1)))?;
        file.read_exact(&mut piece)?;
        hasher.update(&piece);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_known_wherever_it_lies_and_not_after_one_weight_has_changed() {
        let copy = tempfile::tempdir().unwrap();
        let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/nano-flux");
        let mut files = Vec::new();
        collect(&nano, &mut files).unwrap();
        for path in &files {
            let to = copy.path().join(path.strip_prefix(&nano).unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(path, to).unwrap();
        }
        let own = |folder: &Path| of(folder.to_str().unwrap()).unwrap();
        assert_eq!(own(&nano), own(copy.path()));
        fs::write(copy.path().join(".note"), "x").unwrap();
        fs::write(copy.path().join("README.md"), "x").unwrap();
        assert_eq!(own(&nano), own(copy.path()), "what is no part of it does not count");
        let weights = files.iter().find(|path| path.to_str().unwrap().ends_with(".safetensors")).unwrap();
        let weights = copy.path().join(weights.strip_prefix(&nano).unwrap());
        let mut bytes = fs::read(&weights).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&weights, bytes).unwrap();
        assert_ne!(own(&nano), own(copy.path()));
    }
}

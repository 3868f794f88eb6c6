//! Fingerprints of models, so that cache entries of one model are never used for another.

use std::{
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    stop,
    weights::{PartView, VIEW, has_weights, shards},
};

/// The configuration file of a model part. Tokenizers have a fingerprint of their own.
const SETTINGS: [&str; 2] = ["config.json", "scheduler_config.json"];

/// A fingerprint of model parts, such as `vae/` or both text encoders together, and of the `settings` they are used with (lengths,
/// dtype): 64 hexadecimal digits.
///
/// It covers what loading a part would read, its configuration and its weights, but no other files (half-precision copies, leftovers
/// of file managers). Files up to 512 MiB are hashed whole. Hashing 24 GB at every start would take longer than it is worth: of a
/// larger file, the name, the length, the first MiB (for safetensors: names, dtypes, shapes and offsets of all tensors) and 1024
/// pieces of 64 KiB spread evenly over it are hashed. This detects a retrained or converted model, but perhaps not an edit of a few
/// bytes in place. A missing folder is hashed as missing.
///
/// # Errors
/// A file cannot be read, it is not clear which weights a folder holds, or the process is asked to stop.
pub fn fingerprint(folders: &[PathBuf], settings: &str) -> Result<String> {
    let mut hasher = blake3::Hasher::new_derive_key("kiln model fingerprint, version 2");
    hasher.update(settings.as_bytes());
    for folder in folders {
        hasher.update(format!("\nfolder {}", folder.is_dir()).as_bytes());
        if !folder.is_dir() {
            continue;
        }
        let settings = SETTINGS.iter().map(|name| folder.join(name)).filter(|path| path.is_file());
        let weights = if has_weights(folder)? { shards(folder)? } else { Vec::new() };
        for path in settings.chain(weights) {
            stop::check()?;
            let of_view = if path.file_name().is_some_and(|name| name == VIEW) {
                Some(PartView::read(&path)?.file)
            } else {
                None
            };
            let path = of_view.unwrap_or(path);
            hash_file(&mut hasher, &path).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn hash_file(hasher: &mut blake3::Hasher, path: &Path) -> std::io::Result<()> {
    const WHOLE: u64 = 512 << 20;
    const HEAD: u64 = 1 << 20;
    const PIECE: u64 = 64 << 10;
    const PIECES: u64 = 1024;
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    hasher.update(format!("\nfile {} {name} {length}\n", name.len()).as_bytes());
    if length <= WHOLE {
        hasher.update_reader(file)?;
        return Ok(());
    }
    hasher.update_reader((&mut file).take(HEAD))?;
    for piece in 1..=PIECES {
        file.seek(SeekFrom::Start((length - PIECE) / PIECES * piece))?;
        hasher.update_reader((&mut file).take(PIECE))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn it_depends_on_names_settings_and_content() {
        let folder = tempfile::tempdir().unwrap();
        let of = |settings| fingerprint(&[folder.path().into(), folder.path().join("none")], settings).unwrap();
        let mut seen = vec![of("512"), of("256")];
        let mut changed = |what: &str| {
            let now = of("512");
            assert!(!seen.contains(&now), "{what}");
            assert_eq!(of("512"), now);
            seen.push(now);
        };
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, [1, 2, 3]).unwrap();
        changed("weights");
        std::fs::write(&path, [1, 2, 4]).unwrap();
        changed("other weights");
        for name in SETTINGS {
            std::fs::write(folder.path().join(name), "{}").unwrap();
            changed(name);
        }
        std::fs::rename(&path, folder.path().join("diffusion_pytorch_model.safetensors")).unwrap();
        changed("another name");
    }

    #[test]
    fn files_that_loading_does_not_read_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let of = || fingerprint(&[folder.path().into()], "").unwrap();
        let write = |name: &str, content: &str| std::fs::write(folder.path().join(name), content).unwrap();
        let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
        write("model.safetensors.index.json", index);
        write("model-1.safetensors", "one");
        write("model-2.safetensors", "two");
        let first = of();
        for stray in [".DS_Store", "README.md", "model.fp16.safetensors", "model.fp16.safetensors.index.json"] {
            write(stray, "stray");
            assert_eq!(of(), first, "{stray}");
        }
        write("model-2.safetensors", "three");
        assert_ne!(of(), first);
    }

    #[test]
    fn a_large_file_is_told_apart_by_samples() {
        let folder = tempfile::tempdir().unwrap();
        let of = || fingerprint(&[folder.path().into()], "").unwrap();
        let mut file = std::fs::File::create(folder.path().join("model.safetensors")).unwrap();
        file.set_len(600 << 20).unwrap(); // a hole: takes no space
        let empty = of();
        file.seek(SeekFrom::Start(300 << 20)).unwrap();
        file.write_all(&vec![1; 1 << 20]).unwrap();
        assert_ne!(of(), empty);
    }
}

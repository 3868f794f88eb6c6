//! `state.json` of a checkpoint: the state, the checksums of the other files, and at the end the checksum of everything before it, so
//! that any flipped bit and any edit is detected.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    training::checkpoint::State,
};

/// The problem of a file with a wrong checksum.
pub(in crate::training) const DAMAGED: &str =
    "does not match its checksum: it was damaged or changed after it was written";

/// The text between the content and its checksum.
const SEAL: &str = ",\n  \"checksum\": \"";

/// The text after the checksum.
const END: &str = "\"\n}";

/// BLAKE3 hashes in hexadecimal, by file name.
pub(in crate::training) type Sums = BTreeMap<String, String>;

#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    state: &'a State,
    files: &'a Sums,
}

#[derive(Deserialize)]
struct Read {
    #[serde(flatten)]
    state: State,
    /// Empty in checkpoints from before there were checksums.
    files: Option<Sums>,
}

/// The text of the file.
pub(in crate::training) fn text(state: &State, files: &Sums) -> String {
    let json = serde_json::to_string_pretty(&Written { state, files }).expect("the state is text and numbers");
    let content = json.strip_suffix("\n}").expect("an object with fields ends in a line of its own");
    format!("{content}{SEAL}{}{END}", hash(content))
}

/// The state in the file, and the checksums of the other files, which are empty in checkpoints from before there were any.
///
/// # Errors
/// It is missing, broken or damaged.
pub(in crate::training) fn read(path: &Path) -> Result<(State, Sums)> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let text = str::from_utf8(&bytes).map_err(|_| Error::file(path, DAMAGED))?;
    let sealed = match text.rsplit_once(SEAL) {
        Some((content, rest)) if rest.strip_suffix(END) == Some(&hash(content)) => true,
        Some(_) => return Err(Error::file(path, DAMAGED)),
        None => false,
    };
    let Read { state, files } = serde_json::from_str(text).map_err(|e| Error::file(path, e.to_string()))?;
    match (sealed, files) {
        (true, Some(files)) => Ok((state, files)),
        (false, None) => Ok((state, Sums::new())),
        _ => Err(Error::file(path, DAMAGED)),
    }
}

fn hash(content: &str) -> String {
    blake3::hash(content.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::{Mode, Origin};

    fn state() -> State {
        State {
            step: 12,
            mode: Mode::Lora,
            averaged: false,
            origin: Origin { dataset: "d".into(), base_model: "m".into() },
            version: "0.1.0".into(),
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let files = Sums::from([("adapter.safetensors".to_string(), hash("a")), ("ema.safetensors".into(), hash("b"))]);
        let text = text(&state(), &files);
        std::fs::write(&path, &text).unwrap();
        assert_eq!(read(&path).unwrap(), (state(), files));
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                std::fs::write(&path, &bytes).unwrap();
                let error = read(&path).expect_err(&format!("byte {at}, bit {bit}")).to_string();
                assert!(error.contains("state.json: "), "{error}");
            }
        }
        for shorter in 0..text.len() {
            std::fs::write(&path, &text[..shorter]).unwrap();
            assert!(read(&path).is_err(), "{shorter} bytes");
        }
    }

    #[test]
    fn a_changed_step_is_refused_and_a_file_from_before_checksums_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let text = text(&state(), &Sums::new());
        std::fs::write(&path, text.replace("\"step\": 12", "\"step\": 13")).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("does not match its checksum"));
        std::fs::write(&path, serde_json::to_string_pretty(&state()).unwrap()).unwrap();
        assert_eq!(read(&path).unwrap(), (state(), Sums::new()));
    }
}

//! Text files in UTF-8, or in the encodings that Windows writes.

use std::path::Path;

use encoding_rs::{UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};

use crate::notice::warn_once;

/// The text of a file in UTF-8, or in UTF-16 or UTF-8 with a byte-order mark. Anything else is read as Windows-1252, with a warning
/// once for each folder, because it may be another encoding.
///
/// # Errors
/// One clause: the file cannot be read, or is in an encoding that cannot be guessed.
pub(super) fn read_text(path: &Path) -> Result<String, String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    text_of_bytes(&bytes, path)
}

/// The same from bytes that were read from the file at `path`.
///
/// # Errors
/// One clause: they are in an encoding that cannot be guessed.
pub(super) fn text_of_bytes(bytes: &[u8], path: &Path) -> Result<String, String> {
    let (text, encoding) = decode(bytes).ok_or("is not UTF-8, nor UTF-16 or Windows-1252: save it as UTF-8")?;
    if encoding == WINDOWS_1252 {
        let folder = path.parent().unwrap_or(path).display();
        warn_once(format!(
            "{folder}: texts that are not UTF-8 are read as Windows-1252; if they look wrong, save them as UTF-8"
        ));
    }
    Ok(text)
}

fn decode(bytes: &[u8]) -> Option<(String, &'static encoding_rs::Encoding)> {
    // A byte-order mark, or the zeros that Latin letters have in UTF-16.
    let zeros = |odd: usize| bytes.chunks_exact(2).filter(|pair| pair[odd] == 0 && pair[1 - odd] != 0).count();
    let mostly = |count: usize| bytes.len() >= 4 && bytes.len().is_multiple_of(2) && count * 4 > bytes.len();
    let encoding = match encoding_rs::Encoding::for_bom(bytes) {
        Some((encoding, _)) => encoding,
        None if mostly(zeros(1)) => UTF_16LE,
        None if mostly(zeros(0)) => UTF_16BE,
        None => UTF_8,
    };
    let (text, _, broken) = encoding.decode(bytes); // takes the mark off
    if !broken {
        return Some((text.into_owned(), encoding));
    }
    let (text, _, _) = WINDOWS_1252.decode(bytes);
    let is_text = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t');
    (encoding == UTF_8 && text.chars().all(is_text)).then(|| (text.into_owned(), WINDOWS_1252))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_in_the_encoding_that_they_are_in() {
        let utf_16 = |text: &str, big: bool, mark: bool| -> Vec<u8> {
            let units = mark.then_some(0xfeff).into_iter().chain(text.encode_utf16());
            units.flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
        };
        let text = "the cat’s café, 猫";
        for (bytes, encoding) in [
            (text.as_bytes().to_vec(), UTF_8),
            ([b"\xef\xbb\xbf", text.as_bytes()].concat(), UTF_8),
            (utf_16(text, false, true), UTF_16LE),
            (utf_16(text, true, true), UTF_16BE),
            (utf_16(text, false, false), UTF_16LE),
            (utf_16(text, true, false), UTF_16BE),
        ] {
            assert_eq!(decode(&bytes), Some((text.to_string(), encoding)), "{bytes:?}");
        }
        assert_eq!(decode(b"the cat\x92s caf\xe9"), Some(("the cat’s café".into(), WINDOWS_1252)));
        assert_eq!(decode(b"").unwrap().0, "");
        // Shift-JIS, whose second bytes Windows-1252 does not have, and what is no text at all.
        assert_eq!(decode(b"\x83\x81\x81\x5b\x8d"), None);
        assert_eq!(decode(b"\xff\x00\x01\x02\xfe"), None);
    }
}

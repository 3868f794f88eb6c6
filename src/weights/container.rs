//! Recognizes files that are not safetensors by their first bytes, so that the error can say what to do.

/// A kind of file, recognized by a mark near its start.
struct Kind {
    mark: &'static [u8],
    /// The offset of the mark in bytes.
    at: usize,
    name: &'static str,
    hint: &'static str,
}

const SAVE_AGAIN: &str = "convert it to safetensors (`safetensors.torch.save_file`), but only if you trust its author: loading a pickle \
                          runs the code in it";

const DOWNLOAD: &str = "download the file itself: on its page, use the link with `download` or `resolve`, not `blob`; gated files need a login";

const KINDS: [Kind; 15] = [
    Kind {
        mark: b"version https://git-lfs",
        at: 0,
        name: "a git-lfs pointer, not the file itself",
        hint: "run `git lfs pull` in its repository, or download the file directly",
    },
    Kind {
        mark: b"PK\x03\x04",
        at: 0,
        name: "a PyTorch pickle (.pt, .pth, .bin, .ckpt) or another zip archive",
        hint: SAVE_AGAIN,
    },
    Kind { mark: b"\x80\x02", at: 0, name: "a PyTorch pickle (.pt, .pth, .bin, .ckpt)", hint: SAVE_AGAIN },
    Kind { mark: b"\x80\x03", at: 0, name: "a Python pickle", hint: SAVE_AGAIN },
    Kind { mark: b"\x80\x04", at: 0, name: "a Python pickle", hint: SAVE_AGAIN },
    Kind { mark: b"\x80\x05", at: 0, name: "a Python pickle", hint: SAVE_AGAIN },
    Kind {
        mark: b"\x93NUMPY",
        at: 0,
        name: "a NumPy array",
        hint: "save it as safetensors (`safetensors.numpy.save_file`)",
    },
    Kind { mark: b"\x89HDF", at: 0, name: "an HDF5 file", hint: "save its tensors as safetensors" },
    Kind { mark: b"\x89PNG", at: 0, name: "a PNG image", hint: "give the file with the weights, not its preview" },
    Kind {
        mark: b"\xff\xd8\xff",
        at: 0,
        name: "a JPEG image",
        hint: "give the file with the weights, not its preview",
    },
    Kind { mark: b"WEBP", at: 8, name: "a WebP image", hint: "give the file with the weights, not its preview" },
    Kind { mark: b"\x1f\x8b", at: 0, name: "a gzip archive", hint: "unpack it first" },
    Kind { mark: b"7z\xbc\xaf", at: 0, name: "a 7z archive", hint: "unpack it first" },
    Kind { mark: b"Rar!", at: 0, name: "a RAR archive", hint: "unpack it first" },
    Kind { mark: b"%PDF", at: 0, name: "a PDF", hint: "give the file with the weights" },
];

/// The kind of a file that begins with `bytes`, and a hint; `None` if it may well be a damaged safetensors file.
pub(crate) fn of(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    if bytes.is_empty() {
        return Some(("an empty file", "download or copy it again"));
    }
    if let Some(kind) = KINDS.iter().find(|kind| bytes.get(kind.at..).is_some_and(|rest| rest.starts_with(kind.mark))) {
        return Some((kind.name, kind.hint));
    }
    let start: String = bytes.iter().take(512).map(|&byte| byte.to_ascii_lowercase() as char).collect();
    let start = start.trim_start_matches(['\u{ef}', '\u{bb}', '\u{bf}']).trim_start();
    if start.starts_with("<!doctype html") || start.starts_with("<html") || start.starts_with("<?xml") {
        return Some(("a web page (HTML)", DOWNLOAD));
    }
    if bytes.len() > 8 && bytes[8] == b'{' {
        return None; // the header of a safetensors file begins so
    }
    if start.starts_with(['{', '[']) {
        return Some(("a JSON file", "give the file with the weights beside it"));
    }
    let is_text = bytes.iter().take(512).all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~'));
    is_text.then_some(("a text file", DOWNLOAD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_called_by_what_they_are() {
        for (bytes, name) in [
            (&b""[..], "an empty file"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git-lfs"),
            (b"PK\x03\x04\x00\x00", "pickle"),
            (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle"),
            (b"\n <!DOCTYPE html><html>", "HTML"),
            (b"\xef\xbb\xbf<html lang>", "HTML"),
            (b"{\"error\": \"gated\"}", "JSON"),
            (b"Entry not found", "text"),
            (b"Access to model X is restricted.", "text"),
            (b"\x89PNG\r\n", "PNG"),
            (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "WebP"),
        ] {
            let found = of(bytes).unwrap_or_else(|| panic!("{bytes:?}"));
            assert!(found.0.contains(name), "{found:?}");
        }
        for bytes in [&b"\x10\x00\x00\x00\x00\x00\x00\x00{\"a\":"[..], b"\x01\x02\x03"] {
            assert_eq!(of(bytes), None);
        }
    }
}

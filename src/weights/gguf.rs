//! The GGUF container: metadata pairs, a list of tensors, then their bytes. This reads names, shapes and byte ranges only; how
//! the bytes of a tensor encode its values is in [`quantization`](crate::quantization).
//!
//! Source of the layout: ggml's published specification, versions 2 and 3.

use std::{collections::BTreeMap, ops::Range};

use safetensors::tensor::Dtype;

use super::element::{Element, Entry};
use crate::quantization::Ggml;

/// The first bytes of such a file.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// The default alignment of tensors in bytes; a file may declare another.
const ALIGNMENT: u64 = 32;

/// The dtypes that kiln reads, by their numbers in the file.
const ELEMENTS: [(u32, Element); 8] = [
    (0, Element::Plain(Dtype::F32)),
    (1, Element::Plain(Dtype::F16)),
    (2, Element::Ggml(Ggml::Q4_0)),
    (8, Element::Ggml(Ggml::Q8_0)),
    (12, Element::Ggml(Ggml::Q4K)),
    (13, Element::Ggml(Ggml::Q5K)),
    (14, Element::Ggml(Ggml::Q6K)),
    (30, Element::Plain(Dtype::BF16)),
];

/// Names of common types that kiln does not read, for error messages.
const OTHERS: [(u32, &str); 9] = [
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (20, "IQ4_NL"),
    (23, "IQ4_XS"),
    (28, "F64"),
];

/// The tensors of a file and its metadata.
pub(super) type Content = (BTreeMap<String, Entry>, BTreeMap<String, String>);

/// Reads the header of a file, given its bytes.
pub(super) fn read(file: &[u8]) -> Result<Content, String> {
    let mut header = Header { file, at: MAGIC.len() };
    let version = header.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("is GGUF version {version}; kiln reads versions 2 and 3"));
    }
    let (tensors, pairs) = (header.u64()?, header.u64()?);
    let mut metadata = BTreeMap::new();
    for _ in 0..pairs {
        let (name, kind) = (header.text()?, header.u32()?);
        if let Some(text) = header.value(kind, 0)? {
            metadata.insert(name, text);
        }
    }
    let alignment = match metadata.get("general.alignment").map(|text| text.parse()) {
        None => ALIGNMENT,
        Some(Ok(alignment)) if alignment > 0 => alignment,
        Some(_) => return Err("`general.alignment` is not a positive number".into()),
    };
    let (mut entries, mut starts) = (BTreeMap::new(), Vec::new());
    for _ in 0..tensors {
        let name = header.text()?;
        let axes = header.u32()?;
        if axes > 8 {
            return Err(format!("tensor `{name}` has {axes} axes"));
        }
        // GGUF lists the contiguous axis first.
        let mut shape = (0..axes).map(|_| header.size()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let (kind, offset) = (header.u32()?, header.u64()?);
        let element = element(kind).map_err(|problem| format!("tensor `{name}` {problem}"))?;
        let bytes = bytes(element, &shape).map_err(|problem| format!("tensor `{name}` {problem}"))?;
        starts.push((name.clone(), offset));
        if entries.insert(name.clone(), Entry { element, shape, range: 0..bytes }).is_some() {
            return Err(format!("tensor `{name}` is listed twice"));
        }
    }
    let data = (header.at as u64).next_multiple_of(alignment);
    for (name, offset) in starts {
        let entry = entries.get_mut(&name).expect("just put in");
        let start = data.checked_add(offset).and_then(|start| usize::try_from(start).ok());
        let range: Option<Range<usize>> = start.and_then(|start| Some(start..start.checked_add(entry.range.end)?));
        entry.range = range.filter(|range| range.end <= file.len()).ok_or_else(|| {
            format!("tensor `{name}` extends past the end of the file: the download or copy may have been cut short")
        })?;
    }
    Ok((entries, metadata))
}

fn element(kind: u32) -> Result<Element, String> {
    if let Some((_, element)) = ELEMENTS.iter().find(|(number, _)| *number == kind) {
        return Ok(*element);
    }
    let name = OTHERS
        .iter()
        .find(|(number, _)| *number == kind)
        .map_or_else(|| format!("type {kind}"), |(_, n)| n.to_string());
    let known: Vec<_> = Ggml::ALL.iter().map(|kind| kind.name()).collect();
    Err(format!("is stored as {name}, which kiln does not read; it reads F32, F16, BF16, {}", known.join(", ")))
}

/// The size of a tensor in bytes.
fn bytes(element: Element, shape: &[usize]) -> Result<usize, String> {
    let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size)).ok_or("is larger than memory")?;
    let bytes = match element {
        Element::Plain(dtype) => count.checked_mul(dtype.bitsize() / 8),
        Element::Ggml(kind) => {
            if shape.last().is_none_or(|columns| !columns.is_multiple_of(kind.values())) {
                return Err(format!("has shape {shape:?}, which does not divide into blocks of {}", kind.name()));
            }
            (count / kind.values()).checked_mul(kind.bytes())
        }
    };
    bytes.ok_or_else(|| "is larger than memory".into())
}

/// A cursor in the header of a file.
struct Header<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Header<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        let bytes = end.and_then(|end| self.file.get(self.at..end)).ok_or("the header is cut short")?;
        self.at += bytes.len();
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N as u64)?.try_into().expect("take returns as many bytes as requested"))
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn size(&mut self) -> Result<usize, String> {
        usize::try_from(self.u64()?).map_err(|_| "a size is larger than memory".into())
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.u64()?;
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "a name is not valid UTF-8")?;
        Ok(text.into())
    }

    /// Reads one value as text; a list is skipped and gives `None`.
    fn value(&mut self, kind: u32, depth: u32) -> Result<Option<String>, String> {
        Ok(Some(match kind {
            0 => self.array().map(u8::from_le_bytes)?.to_string(),
            1 => self.array().map(i8::from_le_bytes)?.to_string(),
            2 => self.array().map(u16::from_le_bytes)?.to_string(),
            3 => self.array().map(i16::from_le_bytes)?.to_string(),
            4 => self.u32()?.to_string(),
            5 => self.array().map(i32::from_le_bytes)?.to_string(),
            6 => self.array().map(f32::from_le_bytes)?.to_string(),
            7 => (self.array::<1>()?[0] != 0).to_string(),
            8 => self.text()?,
            9 if depth < 4 => {
                let (kind, count) = (self.u32()?, self.u64()?);
                // Each value takes at least one byte, so a corrupt count ends with the file.
                for _ in 0..count {
                    self.value(kind, depth + 1)?;
                }
                return Ok(None);
            }
            10 => self.u64()?.to_string(),
            11 => self.array().map(i64::from_le_bytes)?.to_string(),
            12 => self.array().map(f64::from_le_bytes)?.to_string(),
            other => return Err(format!("a metadata value has type {other}, which is not part of the format")),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use burn::tensor::DType;

    use super::*;
    use crate::weights::TensorFile;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    #[test]
    fn a_file_of_gguf_has_the_tensors_that_were_put_in() {
        let (file, golden) = (TensorFile::open(fixture("quantized.gguf")).unwrap(), fixture("quantized.safetensors"));
        let golden = TensorFile::open(golden).unwrap();
        assert_eq!(file.names().len(), Ggml::ALL.len() + 3);
        assert_eq!(file.metadata()["general.architecture"], "flux");
        assert_eq!(file.metadata()["answer"], "42");
        for kind in Ggml::ALL {
            let (name, dense) = (format!("{}.weight", kind.name()), format!("{}.dense", kind.name()));
            assert_eq!(file.dtype(&name).unwrap(), kind.name());
            assert_eq!(file.shape(&name), golden.shape(&dense));
            assert_eq!(file.read(&name).unwrap(), golden.read(&dense).unwrap());
            let packed = file.ggml(&name).unwrap();
            assert_eq!((packed.format(), packed.dims.as_slice()), (kind.name(), golden.shape(&dense).unwrap()));
        }
        let values = golden.read("rest.values").unwrap();
        for (name, dtype) in [("f32.weight", DType::F32), ("f16.weight", DType::F16), ("bf16.weight", DType::BF16)] {
            assert_eq!(file.read(name).unwrap(), values.clone().convert_dtype(dtype));
            assert!(file.ggml(name).is_none());
        }
    }

    #[test]
    fn a_file_that_is_cut_short_or_damaged_is_refused_and_never_read_beyond() {
        let bytes = std::fs::read(fixture("quantized.gguf")).unwrap();
        let entries = read(&bytes).unwrap().0;
        // The last tensor is padded to the alignment.
        let (whole, end) = (entries.len(), entries.values().map(|entry| entry.range.end).max().unwrap());
        for length in (4..end).step_by(7) {
            assert!(read(&bytes[..length]).is_err(), "{length} of {end} bytes");
        }
        // Whatever value a byte of the header has, tensors lie inside the file.
        for at in 4..800 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                if let Ok((entries, _)) = read(&bytes) {
                    assert!(entries.len() <= whole && entries.values().all(|entry| entry.range.end <= bytes.len()));
                }
            }
        }
        let mut other = bytes.clone();
        other[4] = 9;
        assert!(read(&other).unwrap_err().contains("version 9"));
    }
}

//! One safetensors file: memory-mapped reading, atomic writing.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    path::{Path, PathBuf},
};

use burn::tensor::{DType, TensorData};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{
    SafeTensors,
    tensor::{Dtype, Metadata, TensorInfo, View},
};

use crate::error::{Error, Result};

/// A safetensors file, memory-mapped: opening reads only the header, a tensor's bytes are read when it is asked for.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    data_start: usize,
    header: Metadata,
}

impl TensorFile {
    /// Maps `path` and checks that header and length fit.
    ///
    /// # Errors
    /// The file cannot be opened, is no safetensors file, or is shorter or longer than its header says.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        // SAFETY: kiln replaces its own files by renaming and never writes into them; a foreign program that cuts the
        // file while it is mapped can end this process, as with every memory-mapped reader.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        let broken = |e: safetensors::SafeTensorError| {
            Error::file(path, format!("not a complete safetensors file ({e})"))
                .hint("the download or copy may have been cut short: fetch the file again")
        };
        SafeTensors::deserialize(&map).map_err(broken)?;
        let (header_length, header) = SafeTensors::read_metadata(&map).map_err(broken)?;
        Ok(Self { path: path.into(), map, data_start: header_length + size_of::<u64>(), header })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.header.offset_keys();
        names.sort_unstable();
        names
    }

    /// Whether a tensor of this name is in the file.
    pub fn has(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// The shape of a tensor, if the file has it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.info(name).map(|info| info.shape.as_slice())
    }

    /// The element type of a tensor as the file format spells it (`F32`, `BF16`, …), if the file has it.
    pub fn dtype(&self, name: &str) -> Option<String> {
        self.header.info(name).map(|info| info.dtype.to_string())
    }

    /// The text pairs under `__metadata__`, sorted.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// Copies one tensor to host memory, in the file's own element type.
    ///
    /// # Errors
    /// The tensor is missing or of a type that kiln does not compute with.
    pub fn read(&self, name: &str) -> Result<TensorData> {
        let info =
            self.header.info(name).ok_or_else(|| Error::file(&self.path, format!("tensor `{name}` is missing")))?;
        self.decode(name, info)
    }

    /// Copies one tensor to host memory as f32.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_f32(&self, name: &str) -> Result<TensorData> {
        Ok(self.read(name)?.convert_dtype(DType::F32))
    }

    fn decode(&self, name: &str, info: &TensorInfo) -> Result<TensorData> {
        let (start, end) = info.data_offsets;
        let bytes = &self.map[self.data_start + start..self.data_start + end];
        let shape = info.shape.clone();
        // Element by element: the file gives no alignment.
        macro_rules! elements {
            ($t:ty) => {{
                let chunks = bytes.chunks_exact(size_of::<$t>());
                let values =
                    chunks.map(|c| <$t>::from_le_bytes(c.try_into().expect("chunks have the size of the type")));
                TensorData::new(values.collect::<Vec<$t>>(), shape)
            }};
        }
        let data = match info.dtype {
            Dtype::F32 => elements!(f32),
            Dtype::F64 => elements!(f64),
            Dtype::BF16 => elements!(bf16),
            Dtype::F16 => elements!(f16),
            Dtype::I64 => elements!(i64),
            Dtype::I32 => elements!(i32),
            Dtype::U8 => elements!(u8),
            other => {
                let problem = format!("tensor `{name}` is of type {other}, which kiln does not read");
                return Err(Error::file(&self.path, problem).hint("convert the file to float32, bfloat16 or float16"));
            }
        };
        self.forget(self.data_start + start, end - start);
        Ok(data)
    }

    /// Lets the system take back the pages of what was just copied: otherwise a model that is loaded stays in memory twice.
    fn forget(&self, start: usize, length: usize) {
        // SAFETY: the map is read-only and of a file, so dropped pages are read again when they are touched.
        #[cfg(unix)]
        let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, length) };
    }
}

/// One tensor on its way to a file.
struct Stored<'a>(&'a TensorData, Dtype);

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        self.1
    }
    fn shape(&self) -> &[usize] {
        self.0.shape.as_slice()
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.0.as_bytes().into()
    }
    fn data_len(&self) -> usize {
        self.0.as_bytes().len()
    }
}

/// Writes `tensors` and `metadata` as one safetensors file: to a temporary name first, synced, then renamed, so that
/// `path` is always either the old file or the whole new one.
///
/// # Errors
/// A tensor's type is not one of f32, f64, bf16, f16, i64, i32, u8; or the disk refuses.
pub fn write_tensors(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, TensorData>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let path = path.as_ref();
    let mut stored = Vec::with_capacity(tensors.len());
    for (name, data) in tensors {
        let dtype = match data.dtype {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            DType::I64 => Dtype::I64,
            DType::I32 => Dtype::I32,
            DType::U8 => Dtype::U8,
            other => return Err(Error::file(path, format!("tensor `{name}` of type {other:?} cannot be stored"))),
        };
        stored.push((name, Stored(data, dtype)));
    }
    let metadata: HashMap<_, _> = metadata.clone().into_iter().collect();
    replace(path, |partial| {
        safetensors::serialize_to_file(stored, Some(metadata), partial)
            .map_err(|e| Error::file(path, format!("cannot be written ({e})")))
    })
}

/// Replaces the file at `path` by what `write` puts into the file it is given: that one stands beside it until it is whole
/// and synced, so that `path` is always either the old file or the whole new one. If anything fails it is removed again.
///
/// # Errors
/// What `write` says, or the disk refuses.
pub fn replace(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    // With the process's number: two that fill one cache may write the same entry at the same time.
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let sync = || File::open(&partial).and_then(|file| file.sync_all()).map_err(|e| Error::io(path, e));
    let renamed = || std::fs::rename(&partial, path).map_err(|e| Error::io(path, e));
    let done = write(&partial).and_then(|()| sync()).and_then(|()| renamed());
    if done.is_err() {
        _ = std::fs::remove_file(&partial); // it may not even exist; the first error is the one to tell
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_reads_back_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let tensors = BTreeMap::from([
            ("ids".to_string(), TensorData::new(vec![1i64, -2, 3], [3])),
            ("w".to_string(), TensorData::new(vec![1.5f32, -2.0, 0.25, 8.0], [2, 2])),
            ("h".to_string(), TensorData::new(vec![bf16::from_f32(0.5)], [1])),
        ]);
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        write_tensors(&path, &tensors, &metadata).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names(), ["h", "ids", "w"]);
        assert_eq!(file.metadata(), metadata);
        for (name, data) in &tensors {
            assert_eq!(&file.read(name).unwrap(), data);
        }
    }

    #[test]
    fn a_truncated_file_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.safetensors");
        let tensors = BTreeMap::from([("w".to_string(), TensorData::new(vec![1f32; 64], [64]))]);
        write_tensors(&path, &tensors, &BTreeMap::new()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for keep in [0, 4, 20, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..keep]).unwrap();
            let text = TensorFile::open(&path).unwrap_err().to_string();
            assert!(text.contains("cut.safetensors"), "{text}");
        }
    }
}

//! One safetensors file: memory-mapped reading, atomic writing.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fs::File,
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{
    SafeTensors,
    tensor::{Dtype, Metadata, TensorInfo, View},
};

use crate::{
    disk::replace,
    error::{Error, Result},
};

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
        // Once: the header of a large file takes seconds. It also compares all offsets with the length of the file.
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
        let info = self.header.info(name).ok_or_else(|| Error::tensor(&self.path, name, "is missing"))?;
        self.decode(name, info)
    }

    /// Copies one tensor to host memory as f32.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_f32(&self, name: &str) -> Result<TensorData> {
        Ok(self.read(name)?.convert_dtype(DType::F32))
    }

    /// Copies one tensor of the given shape to `device`: its numbers in order, as one row in f32.
    ///
    /// # Errors
    /// As [`read`](Self::read); or the tensor has another shape.
    pub fn row(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor<1>> {
        let mut data = self.read_f32(name)?;
        if data.shape.as_slice() != shape {
            let problem = format!("has shape {:?}, expected {shape:?}", data.shape.as_slice());
            return Err(Error::tensor(&self.path, name, problem));
        }
        data.shape = [data.num_elements()].into();
        Ok(Tensor::from_data(data, (device, DType::F32)))
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
                let problem = format!("is of type {other}, which kiln does not read");
                return Err(
                    Error::tensor(&self.path, name, problem).hint("convert the file to float32, bfloat16 or float16")
                );
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

/// A tensor on its way to a file. Its bytes are asked for when their turn comes, so that only one tensor's are on the host.
pub trait Stored {
    /// Its element type in the file.
    fn dtype(&self) -> DType;

    /// Its shape in the file.
    fn shape(&self) -> &[usize];

    /// Its elements in order.
    fn bytes(&self) -> Cow<'_, [u8]>;
}

/// What is on the host already.
impl Stored for TensorData {
    fn dtype(&self) -> DType {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        self.shape.as_slice()
    }
    fn bytes(&self) -> Cow<'_, [u8]> {
        self.as_bytes().into()
    }
}

/// The values of one tensor, where they were computed.
#[derive(Clone, Debug)]
pub struct Values {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its numbers in order, as one row.
    pub numbers: Tensor<1>,
}

impl Stored for Values {
    fn dtype(&self) -> DType {
        self.numbers.dtype()
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn bytes(&self) -> Cow<'_, [u8]> {
        self.numbers.to_data().as_bytes().to_vec().into()
    }
}

/// On the CPU.
impl From<TensorData> for Values {
    fn from(mut data: TensorData) -> Self {
        let (shape, dtype) = (data.shape.to_vec(), data.dtype);
        data.shape = [data.num_elements()].into();
        Self { shape, numbers: Tensor::from_data(data, (&Device::flex(), dtype)) }
    }
}

/// A tensor whose type the file format has.
struct Entry<'a, T>(&'a T, Dtype);

impl<T: Stored> View for Entry<'_, T> {
    fn dtype(&self) -> Dtype {
        self.1
    }
    fn shape(&self) -> &[usize] {
        self.0.shape()
    }
    fn data(&self) -> Cow<'_, [u8]> {
        self.0.bytes()
    }
    fn data_len(&self) -> usize {
        self.0.shape().iter().product::<usize>() * self.0.dtype().size()
    }
}

/// Writes `tensors` and `metadata` as one safetensors file: to a temporary name first, synced, then renamed, so that
/// `path` is always either the old file or the whole new one.
///
/// # Errors
/// A tensor's type is not one of f32, f64, bf16, f16, i64, i32, u8; or the disk refuses.
pub fn write_tensors<T: Stored>(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, T>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let path = path.as_ref();
    let mut entries = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            DType::I64 => Dtype::I64,
            DType::I32 => Dtype::I32,
            DType::U8 => Dtype::U8,
            other => return Err(Error::file(path, format!("tensor `{name}` of type {other:?} cannot be stored"))),
        };
        entries.push((name, Entry(tensor, dtype)));
    }
    let metadata: HashMap<_, _> = metadata.clone().into_iter().collect();
    replace(path, |partial| {
        safetensors::serialize_to_file(entries, Some(metadata), partial)
            .map_err(|e| Error::file(path, format!("cannot be written ({e})")))
    })
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
    fn what_comes_from_a_device_makes_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["host", "device"].map(|name| folder.path().join(name));
        let tensors = BTreeMap::from([
            ("w".to_string(), TensorData::new(vec![1.5f32, -2.0, f32::NAN, 8.0, 0.0, -0.0], [2, 3])),
            ("h".to_string(), TensorData::new(vec![bf16::from_f32(0.5)], Vec::<usize>::new())),
        ]);
        write_tensors(&paths[0], &tensors, &BTreeMap::new()).unwrap();
        let values: BTreeMap<_, Values> = tensors.into_iter().map(|(name, data)| (name, data.into())).collect();
        write_tensors(&paths[1], &values, &BTreeMap::new()).unwrap();
        let [host, device] = paths.each_ref().map(|path| std::fs::read(path).unwrap());
        assert_eq!(host, device);

        let file = TensorFile::open(&paths[1]).unwrap();
        let row = file.row("w", &[2, 3], &Device::flex()).unwrap().into_data();
        assert_eq!((row.shape.to_vec(), row.as_bytes()), (vec![6], file.read("w").unwrap().as_bytes()));
        let text = file.row("w", &[3, 2], &Device::flex()).unwrap_err().to_string();
        assert!(text.contains("`w` has shape [2, 3], expected [3, 2]"), "{text}");
    }

    #[test]
    fn a_name_as_long_as_names_may_be_can_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(format!("{}.safetensors", "x".repeat(243)));
        let tensors = BTreeMap::from([("w".to_string(), TensorData::new(vec![1f32], [1]))]);
        write_tensors(&path, &tensors, &BTreeMap::new()).unwrap();
        assert!(TensorFile::open(&path).unwrap().has("w"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
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

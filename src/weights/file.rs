//! Memory-mapped reading of one file of tensors, safetensors or GGUF.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{SafeTensors, tensor::Dtype};

use super::{
    Elsewhere, PartView, VIEW, container,
    element::{Element, Entry},
    gguf,
};
use crate::{
    error::{Error, Result},
    quantization::{Code, E4M3, E5M2, Packed, SharedBytes},
};

/// A memory-mapped file of tensors: opening reads only the header; a tensor's bytes are read when it is requested.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Arc<Mmap>,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
    /// Where the tensors are, if this is a view of a file of another layout.
    view: Option<View>,
}

/// The file behind a view, and where in it the tensors are.
#[derive(Debug)]
struct View {
    whole: Box<TensorFile>,
    places: BTreeMap<String, Elsewhere>,
}

impl TensorFile {
    /// Maps `path` and checks that its length fits its header. The format is recognized by the first bytes.
    ///
    /// # Errors
    /// The file cannot be opened, is neither safetensors nor GGUF, or is shorter or longer than its header says.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.file_name().is_some_and(|name| name == VIEW) {
            return Self::open_view(PartView::read(path)?);
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Err(Error::file(path, "is a folder, not a safetensors file").hint("give a file in it"));
        }
        // SAFETY: kiln replaces its own files by renaming and never writes into them; another program that truncates the
        // file while it is mapped can crash this process, as with every memory-mapped reader.
        let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?);
        let broken = |e: safetensors::SafeTensorError| match container::of(&map) {
            Some((kind, hint)) => Error::file(path, format!("is {kind}; kiln reads safetensors")).hint(hint),
            None => Error::file(path, format!("not a complete safetensors file ({e})"))
                .hint("the download or copy may have been cut short: fetch the file again"),
        };
        let (tensors, metadata) = match map.starts_with(gguf::MAGIC) {
            true => gguf::read(&map).map_err(|problem| Error::file(path, problem))?,
            false => safetensors(&map).map_err(broken)?,
        };
        Ok(Self { path: path.into(), map, tensors, metadata, view: None })
    }

    /// Opens a view: each of its tensors has its own byte range of the file.
    fn open_view(PartView { file, tensors: places }: PartView) -> Result<Self> {
        let whole = Self::open(file)?;
        let mut tensors = BTreeMap::new();
        for (name, place) in &places {
            let entry = whole.part(place).ok_or_else(|| {
                let problem = format!("does not match `{name}`, which was made from this file: the file has changed");
                Error::tensor(&whole.path, &place.name, problem)
            })?;
            tensors.insert(name.clone(), entry);
        }
        let (path, map, metadata) = (whole.path.clone(), whole.map.clone(), whole.metadata.clone());
        Ok(Self { path, map, tensors, metadata, view: Some(View { whole: Box::new(whole), places }) })
    }

    /// The rows of the file's tensor that a tensor of the view consists of.
    fn part(&self, place: &Elsewhere) -> Option<Entry> {
        let Entry { element, range, .. } = self.tensors.get(&place.name)?;
        let shape = self.dense_shape(&place.name)?;
        let rows = shape.first().copied().unwrap_or(1);
        let [first, last] = place.rows.unwrap_or([0, rows]);
        let own = place.shape.first().copied().unwrap_or(1);
        if first > last || last > rows || own != last - first || place.shape.get(1..) != shape.get(1..) {
            return None;
        }
        let row = range.len().checked_div(rows).unwrap_or(0);
        let range = range.start + first * row..range.start + last * row;
        Some(Entry { element: *element, shape: place.shape.clone(), range })
    }

    /// Whether this is a view of a file of another layout.
    pub(super) fn is_view(&self) -> bool {
        self.view.is_some()
    }

    /// The file behind this view, and where in it the tensor `name` is; `None` if this is not a view.
    pub(super) fn elsewhere(&self, name: &str) -> Option<(&Self, &Elsewhere)> {
        let View { whole, places } = self.view.as_ref()?;
        Some((whole, places.get(name)?))
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// Whether a tensor of this name is in the file.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor, if the file has it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The dtype of a tensor in the file format's spelling (`F32`, `BF16`, `Q4_K`, …), if the file has the tensor.
    pub fn dtype(&self, name: &str) -> Option<String> {
        self.tensors.get(name).map(|entry| entry.element.to_string())
    }

    /// The key–value metadata of the file, sorted; for GGUF, numbers are included as text.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.metadata.clone()
    }

    /// The bytes of a tensor as stored in the file, if they are in order there. They stay mapped; nothing is read yet.
    pub fn bytes(&self, name: &str) -> Option<SharedBytes> {
        let entry = self.tensors.get(name).filter(|_| !self.is_swapped(name))?;
        Some(SharedBytes::new(self.map.clone(), entry.range.clone()))
    }

    /// A tensor as a matrix of ggml blocks, if it has two axes and is stored so.
    pub fn ggml(&self, name: &str) -> Option<Packed> {
        let entry = self.tensors.get(name)?;
        let (Element::Ggml(kind), &[rows, columns]) = (entry.element, entry.shape.as_slice()) else { return None };
        Some(Packed { dims: [rows, columns], code: Code::Ggml(kind, self.bytes(name)?) })
    }

    /// Whether the two halves of a tensor are swapped as it is read.
    fn is_swapped(&self, name: &str) -> bool {
        self.elsewhere(name).is_some_and(|(_, place)| place.swapped)
    }

    /// Copies one tensor to host memory in its own dtype; fp8 becomes bf16, which represents each of its values, and ggml blocks
    /// become f32.
    ///
    /// # Errors
    /// The tensor is missing or of a dtype that kiln does not support.
    pub fn read(&self, name: &str) -> Result<TensorData> {
        let entry = self.tensors.get(name).ok_or_else(|| Error::tensor(&self.path, name, "is missing"))?;
        let data = self.decode(name, entry)?;
        if !self.is_swapped(name) {
            return Ok(data);
        }
        let (mut bytes, dtype) = (data.as_bytes().to_vec(), data.dtype);
        let half = bytes.len() / 2;
        bytes.rotate_left(half);
        Ok(TensorData::from_bytes_vec(bytes, entry.shape.clone(), dtype))
    }

    /// Copies one tensor to host memory as f32.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_f32(&self, name: &str) -> Result<TensorData> {
        Ok(self.read(name)?.convert_dtype(DType::F32))
    }

    /// Copies one tensor of the given shape to `device`, flattened, as f32.
    ///
    /// # Errors
    /// As [`read`](Self::read), or the tensor has another shape.
    pub fn row(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor<1>> {
        let mut data = self.read_f32(name)?;
        if data.shape.as_slice() != shape {
            let problem = format!("has shape {:?}, expected {shape:?}", data.shape.as_slice());
            return Err(Error::tensor(&self.path, name, problem));
        }
        data.shape = [data.num_elements()].into();
        Ok(Tensor::from_data(data, (device, DType::F32)))
    }

    fn decode(&self, name: &str, entry: &Entry) -> Result<TensorData> {
        let bytes = &self.map[entry.range.clone()];
        let shape = entry.shape.clone();
        // Element by element: the file guarantees no alignment.
        macro_rules! elements {
            ($t:ty) => {{
                let chunks = bytes.chunks_exact(size_of::<$t>());
                let values =
                    chunks.map(|c| <$t>::from_le_bytes(c.try_into().expect("chunks have the size of the type")));
                TensorData::new(values.collect::<Vec<$t>>(), shape)
            }};
        }
        let fp8 = |levels: &[f32; 256]| {
            let values = bytes.iter().map(|&byte| bf16::from_f32(levels[usize::from(byte)]));
            TensorData::new(values.collect::<Vec<bf16>>(), shape.clone())
        };
        let dtype = match entry.element {
            Element::Plain(dtype) => dtype,
            Element::Ggml(kind) => {
                let code = Code::Ggml(kind, SharedBytes::new(self.map.clone(), entry.range.clone()));
                // Blocks run along the last axis; all other axes are rows.
                let columns = shape.last().copied().unwrap_or(1).max(1);
                let dims = [shape.iter().product::<usize>() / columns, columns];
                return Ok(TensorData::new(Packed { dims, code }.to_f32(), shape));
            }
        };
        let data = match dtype {
            Dtype::F32 => elements!(f32),
            Dtype::F64 => elements!(f64),
            Dtype::BF16 => elements!(bf16),
            Dtype::F16 => elements!(f16),
            Dtype::I64 => elements!(i64),
            Dtype::I32 => elements!(i32),
            Dtype::I8 => elements!(i8),
            Dtype::U8 => elements!(u8),
            Dtype::F8_E4M3 => fp8(&E4M3),
            Dtype::F8_E5M2 => fp8(&E5M2),
            other => {
                let problem = format!("is of type {other}, which kiln does not read");
                return Err(
                    Error::tensor(&self.path, name, problem).hint("convert the file to float32, bfloat16 or float16")
                );
            }
        };
        self.forget(entry.range.start, entry.range.len());
        Ok(data)
    }

    /// Lets the system reclaim the pages of what was just copied; otherwise a loaded model stays in memory twice.
    fn forget(&self, start: usize, length: usize) {
        // SAFETY: the map is read-only and backed by a file, so dropped pages are read again when they are touched.
        #[cfg(unix)]
        let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, length) };
    }
}

/// The tensors and metadata of a safetensors file.
fn safetensors(file: &[u8]) -> std::result::Result<gguf::Content, safetensors::SafeTensorError> {
    // Read once: the header of a large file takes seconds. This also checks all offsets against the length of the file.
    let (header_length, header) = SafeTensors::read_metadata(file)?;
    let data = header_length + size_of::<u64>();
    let entries = header.tensors().into_iter().map(|(name, info)| {
        let (start, end) = info.data_offsets;
        let entry =
            Entry { element: Element::Plain(info.dtype), shape: info.shape.clone(), range: data + start..data + end };
        (name, entry)
    });
    let metadata = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone()));
    Ok((entries.collect(), metadata.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{FlatTensor, write_tensors};

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
        let values: BTreeMap<_, FlatTensor> = tensors.into_iter().map(|(name, data)| (name, data.into())).collect();
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

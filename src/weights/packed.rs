//! Quantized matrices as stored in files: which tensors beside a weight belong to it, and whether they fit.
//!
//! | written by | the weight `X.weight` | beside it |
//! |---|---|---|
//! | bitsandbytes, 4 bits | U8, in one column | `X.weight.absmax`, `.quant_map`, `.quant_state.bitsandbytes__nf4`; nested: `.nested_absmax`, `.nested_quant_map` |
//! | bitsandbytes, int8 | I8 | `X.SCB`, perhaps `X.weight_format` |
//! | ComfyUI, fp8 | F8_E4M3 or F8_E5M2 | `X.scale_weight` or `X.weight_scale`, if anything |
//! | transformers, fp8 | F8_E4M3 | `X.weight_scale_inv`, one scale per tile of 128 × 128 |
//! | ggml | blocks | nothing |
//!
//! For a view (a file of another layout) the scales are looked up beside the file's tensor, and the rows of the view are cut out
//! of the dequantized matrix.
//!
//! Scales for quantized activations are ignored, with one warning: products are computed in the dtype of the model.

use std::{ops::Range, sync::Arc};

use serde::Deserialize;

use super::{
    TensorFile,
    source::{Content, Source},
};
use crate::{
    notice::warn_once,
    quantization::{
        Absmax, BLOCK, Code, EightBit, EightBitKind, FourBit, FourBitKind, Nested, Packed, Scales, SharedBytes,
    },
};

type Result<T> = std::result::Result<T, String>;

/// Rows and columns of a tile with one scale, as in transformers.
pub(super) const SQUARE: usize = 128;

/// The scales by which ComfyUI and transformers multiply a weight.
const SCALES: [&str; 3] = ["scale_weight", "weight_scale", "weight_scale_inv"];

/// The scales for quantizing a layer's input.
const UNUSED: [&str; 2] = ["scale_input", "input_scale"];

/// Other tensors beside the weight of a layer.
const OTHERS: [&str; 3] = ["comfy_quant", "SCB", "weight_format"];

/// The JSON that bitsandbytes writes beside a 4-bit weight.
#[derive(Deserialize)]
struct QuantState {
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// A quantized matrix, and how the requested tensor is made from it.
pub(super) struct Found {
    whole: Packed,
    rows: Range<usize>,
    swapped: bool,
}

impl Found {
    /// The matrix as it is stored; `None` where its rows begin inside a block or its halves are swapped, so that it must be
    /// dequantized.
    pub fn packed(&self) -> Option<Packed> {
        match self.rows == (0..self.whole.dims[0]) {
            _ if self.swapped => None,
            true => Some(self.whole.clone()),
            false => self.whole.rows(self.rows.clone()),
        }
    }

    /// Its values, row after row.
    pub fn values(&self) -> Vec<f32> {
        let columns = self.whole.dims[1];
        let mut values = match self.whole.rows(self.rows.clone()) {
            Some(own) => own.to_f32(),
            None => self.whole.to_f32()[self.rows.start * columns..self.rows.end * columns].to_vec(),
        };
        if self.swapped {
            let half = values.len() / 2;
            values.rotate_left(half);
        }
        values
    }
}

impl Source {
    /// The matrix `name` of shape `dims`, if it is quantized in the files; its scales are taken with it. Tensors of more axes are
    /// matrices whose columns are all axes but the first.
    pub(super) fn quantized(&self, name: &str, dims: [usize; 2]) -> Option<Result<Found>> {
        let Content::Files { files, home } = &self.content else { return None };
        let (stored, own, place) = match files[*home.get(name)?].elsewhere(name) {
            Some((whole, place)) => (Stored { source: self, whole: Some(whole) }, place.name.as_str(), Some(place)),
            None => (Stored { source: self, whole: None }, name, None),
        };
        let packed = stored.packed(own)?;
        self.taken().insert(name.into(), dims.into());
        Some(packed.and_then(|whole| {
            let rows = place.and_then(|place| place.rows).map_or(0..whole.dims[0], |[start, end]| start..end);
            shaped(name, &[rows.len(), whole.dims[1]], &dims)?;
            Ok(Found { whole, rows, swapped: place.is_some_and(|place| place.swapped) })
        }))
    }
}

impl TensorFile {
    /// The shape of a tensor; where it is quantized to four bits, that of its values.
    pub(crate) fn dense_shape(&self, name: &str) -> Option<Vec<usize>> {
        let state = FOUR_BIT.into_iter().find_map(|kind| self.bytes(&state_name(name, kind)));
        let state = state.and_then(|state| serde_json::from_slice::<QuantState>(&state).ok());
        state.map(|state| state.shape).or_else(|| self.shape(name).map(<[usize]>::to_vec))
    }
}

const FOUR_BIT: [FourBitKind; 2] = [FourBitKind::Nf4, FourBitKind::Fp4];

fn state_name(name: &str, kind: FourBitKind) -> String {
    format!("{name}.quant_state.bitsandbytes__{}", kind.name())
}

/// The files in which the tensors beside a weight are looked up: all files of a part, or the file behind a view.
struct Stored<'a> {
    source: &'a Source,
    whole: Option<&'a TensorFile>,
}

impl Stored<'_> {
    /// The file that has this tensor.
    fn file(&self, name: &str) -> Option<&TensorFile> {
        match (self.whole, &self.source.content) {
            (Some(whole), _) => whole.has(name).then_some(whole),
            (None, Content::Files { files, home }) => Some(&files[*home.get(name)?]),
            (None, Content::Random(..)) => None,
        }
    }

    /// The matrix `name`, if it is quantized.
    fn packed(&self, name: &str) -> Option<Result<Packed>> {
        let file = self.file(name)?;
        let four_bit = FOUR_BIT.into_iter().find(|kind| self.file(&state_name(name, *kind)).is_some());
        Some(match (file.dtype(name)?.as_str(), four_bit) {
            (_, Some(kind)) => self.four_bit(name, kind),
            ("U8", None) => Err(format!(
                "tensor `{name}` has dtype U8, but the `{}` that describes it is missing",
                state_name(name, FourBitKind::Nf4)
            )),
            ("I8", None) => self.int8(name),
            ("F8_E4M3", None) => self.fp8(name, EightBitKind::E4m3),
            ("F8_E5M2", None) => self.fp8(name, EightBitKind::E5m2),
            _ => Ok(file.ggml(name)?),
        })
    }

    /// The file with a tensor beside a weight; the tensor counts as taken.
    fn beside(&self, name: &str) -> Option<&TensorFile> {
        let file = self.file(name)?;
        if self.whole.is_none() {
            self.source.taken().insert(name.into(), Vec::new());
        }
        Some(file)
    }

    /// The bytes of a tensor beside a weight.
    fn bytes_beside(&self, name: &str, dtype: &str, count: Option<usize>) -> Result<SharedBytes> {
        let file = self.beside(name).ok_or_else(|| format!("tensor `{name}` is missing"))?;
        let (found, shape) = (file.dtype(name).unwrap_or_default(), file.shape(name).unwrap_or_default());
        if found != dtype {
            return Err(format!("tensor `{name}` has dtype {found}, expected {dtype}"));
        }
        let values = shape.iter().product::<usize>();
        match count {
            Some(count) if count != values => Err(format!("tensor `{name}` has {values} values, expected {count}")),
            _ => Ok(file.bytes(name).expect("it has its dtype")),
        }
    }

    /// The values of a tensor beside a weight.
    fn floats_beside(&self, name: &str, count: usize) -> Result<Vec<f32>> {
        let values = self.bytes_beside(name, "F32", Some(count))?.to_f32();
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(format!("tensor `{name}` holds values that are not finite")),
        }
    }

    fn four_bit(&self, name: &str, kind: FourBitKind) -> Result<Packed> {
        let side = |part: &str| format!("{name}.{part}");
        let state_name = state_name(name, kind);
        let state = self.bytes_beside(&state_name, "U8", None)?;
        let state: QuantState =
            serde_json::from_slice(&state).map_err(|e| format!("tensor `{state_name}` cannot be parsed ({e})"))?;
        let dims = matrix(name, &state.shape)?;
        let count = dims[0] * dims[1];
        if !state.blocksize.is_power_of_two() || !(32..=4096).contains(&state.blocksize) {
            return Err(format!("tensor `{state_name}`: unsupported `blocksize` {}, usually {BLOCK}", state.blocksize));
        }
        let blocks = count.div_ceil(state.blocksize);
        let values = self.bytes_beside(name, "U8", Some(count.div_ceil(2)))?;
        let levels = self.floats_beside(&side("quant_map"), 16)?;
        let absmax = side("absmax");
        let absmax = if let Some(block) = state.nested_blocksize {
            if block == 0 {
                return Err(format!("tensor `{state_name}`: `nested_blocksize` is 0"));
            }
            let levels = self.floats_beside(&side("nested_quant_map"), 256)?;
            Absmax::Nested(Nested {
                codes: self.bytes_beside(&absmax, "U8", Some(blocks))?,
                levels: Arc::new(levels.try_into().expect("256 were requested")),
                block,
                scales: self.floats_beside(&side("nested_absmax"), blocks.div_ceil(block))?.into(),
                offset: state
                    .nested_offset
                    .filter(|offset| offset.is_finite())
                    .ok_or_else(|| format!("tensor `{state_name}` has no finite `nested_offset`"))?,
            })
        } else {
            Absmax::Plain(self.floats_beside(&absmax, blocks)?.into())
        };
        let levels = levels.try_into().expect("16 were requested");
        Ok(Packed { dims, code: Code::FourBit(FourBit { kind, values, levels, block: state.blocksize, absmax }) })
    }

    fn int8(&self, name: &str) -> Result<Packed> {
        let layer = layer(name);
        let dims = self.stored_dims(name)?;
        let values = self.bytes_beside(name, "I8", None)?;
        let absmax = self.floats_beside(&format!("{layer}.SCB"), dims[0])?;
        let format = format!("{layer}.weight_format");
        if let Some(file) = self.beside(&format) {
            // 0 is row-major; the others are layouts for old GPUs.
            if file.bytes(&format).is_none_or(|bytes| bytes.iter().any(|&byte| byte != 0)) {
                return Err(format!("tensor `{format}` is not 0: the weight is not stored row-major"));
            }
        }
        Ok(Packed { dims, code: Code::EightBit(EightBit::int8(values, absmax.into(), dims[1])) })
    }

    fn fp8(&self, name: &str, kind: EightBitKind) -> Result<Packed> {
        let layer = layer(name);
        let dims = self.stored_dims(name)?;
        let values = self.beside(name).and_then(|file| file.bytes(name)).expect("its dtype was seen");
        for unused in UNUSED {
            if self.beside(&format!("{layer}.{unused}")).is_some() {
                warn_once(format!(
                    "{}: kiln does not quantize activations, so the tensors named `{unused}` are ignored",
                    self.source.path.display()
                ));
            }
        }
        let note = format!("{layer}.comfy_quant");
        if let Some(file) = self.beside(&note) {
            comfy(&file.bytes(&note).expect("it is there"), kind)
                .map_err(|problem| format!("tensor `{note}` {problem}"))?;
        }
        let found = SCALES
            .into_iter()
            .find_map(|side| Some((format!("{layer}.{side}"), self.beside(&format!("{layer}.{side}"))?)));
        let scales = match found {
            None => Scales { values: Arc::new([1f32]), block: dims.map(|size| size.max(1)) },
            Some((side, file)) => scales(&side, file, dims)?,
        };
        Ok(Packed { dims, code: Code::EightBit(EightBit { kind, values, scales, factor: 1.0 }) })
    }

    fn stored_dims(&self, name: &str) -> Result<[usize; 2]> {
        matrix(name, self.file(name).and_then(|file| file.shape(name)).unwrap_or_default())
    }
}

/// The weight that the tensor of this name belongs to, if it is one of those beside a weight.
pub(crate) fn weight_beside(name: &str) -> Option<String> {
    if let Some((weight, _)) = name.split_once(".weight.") {
        return Some(format!("{weight}.weight"));
    }
    let (layer, side) = name.rsplit_once('.')?;
    let is_side = SCALES.iter().chain(&UNUSED).chain(&OTHERS).any(|other| *other == side);
    is_side.then(|| format!("{layer}.weight"))
}

/// Whether a tensor only marks a ComfyUI file as scaled fp8.
pub(crate) fn is_marker(name: &str) -> bool {
    name == "scaled_fp8" || name.ends_with(".scaled_fp8")
}

/// The layer of a weight.
fn layer(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

fn shaped(name: &str, found: &[usize], expected: &[usize]) -> Result<()> {
    match found == expected {
        true => Ok(()),
        false => Err(format!("tensor `{name}` has shape {found:?}, expected {expected:?}")),
    }
}

/// Rows and columns of a tensor: all axes but the first one are columns.
fn matrix(name: &str, shape: &[usize]) -> Result<[usize; 2]> {
    match shape {
        [] => Err(format!("tensor `{name}` is a single number, expected a matrix")),
        [rows, rest @ ..] => Ok([*rows, rest.iter().product()]),
    }
}

/// ComfyUI's JSON note beside a weight.
fn comfy(note: &[u8], kind: EightBitKind) -> Result<()> {
    #[derive(Deserialize)]
    struct Note {
        format: String,
    }
    let note: Note = serde_json::from_slice(note).map_err(|e| format!("is not understood ({e})"))?;
    let expected = if kind == EightBitKind::E5m2 { "float8_e5m2" } else { "float8_e4m3fn" };
    match note.format == expected {
        true => Ok(()),
        false => Err(format!("says that the weight is stored as `{}`, expected `{expected}`", note.format)),
    }
}

/// One scale for the matrix, one for each row, or one for each square of 128 × 128.
fn scales(name: &str, file: &TensorFile, dims: [usize; 2]) -> Result<Scales> {
    let [rows, columns] = dims.map(|size| size.max(1));
    let shape = file.shape(name).unwrap_or_default();
    let block = match *shape {
        [] | [1] | [1, 1] => [rows, columns],
        [count] | [count, 1] if count == rows => [1, columns],
        [down, across] if [down, across] == [rows.div_ceil(SQUARE), columns.div_ceil(SQUARE)] => [SQUARE; 2],
        _ => {
            return Err(format!(
                "tensor `{name}` has shape {shape:?}, expected one scale, {rows} (one per row), or {:?} (one per {SQUARE} × {SQUARE} tile)",
                [rows.div_ceil(SQUARE), columns.div_ceil(SQUARE)]
            ));
        }
    };
    let dtype = file.dtype(name).unwrap_or_default();
    if !["F32", "BF16", "F16"].contains(&dtype.as_str()) {
        return Err(format!("tensor `{name}` has dtype {dtype}, expected F32"));
    }
    let values = file.read_f32(name).map_err(|e| e.message())?;
    let values: Vec<f32> = values.iter::<f32>().collect();
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(Scales { values: values.into(), block }),
        false => Err(format!("tensor `{name}` holds values that are not finite")),
    }
}

//! The tensors of a quantized matrix, computed as they are written.

use std::{borrow::Cow, sync::OnceLock};

use burn::tensor::DType;

use super::{QuantizedTo, TensorBytes, TensorFile, packed::SQUARE};
use crate::quantization::{
    BLOCK, DynamicMap, FourBitKind, NESTED_BLOCK, Nested, absmax, nested, quantize_fp8, quantize_int8, quantize_nf4,
};

/// A matrix that is quantized as it is written. Its values are read again for each of its tensors, so that only one matrix is in
/// host memory; the small scales are kept.
pub(super) struct Layer<'a> {
    file: &'a TensorFile,
    name: &'a str,
    pub dims: [usize; 2],
    scales: OnceLock<Nested>,
}

/// One tensor of the file.
pub(super) enum Entry<'a> {
    /// Copied unchanged.
    Kept { file: &'a TensorFile, name: &'a str, dtype: DType },
    /// One tensor of a quantized matrix.
    Made { layer: &'a Layer<'a>, shape: Vec<usize>, dtype: DType, fp8: bool, make: fn(&Layer) -> Vec<u8> },
}

impl<'a> Layer<'a> {
    pub fn new(file: &'a TensorFile, name: &'a str) -> Self {
        let dims = file.shape(name).and_then(|shape| shape.try_into().ok()).expect("only matrices are quantized");
        Self { file, name, dims, scales: OnceLock::new() }
    }

    fn values(&self) -> Vec<f32> {
        let data = self.file.read_f32(self.name).expect("its dtype was seen in the header");
        data.into_vec().expect("it was read as f32")
    }

    fn nested(&self) -> &Nested {
        self.scales.get_or_init(|| nested(&absmax(&self.values())))
    }

    /// The tensors of the quantized matrix, by name.
    pub fn entries(&'a self, to: QuantizedTo) -> Vec<(String, Entry<'a>)> {
        let [rows, columns] = self.dims;
        let (count, layer) = (rows * columns, self.name.strip_suffix(".weight").expect("it was chosen by its name"));
        let made = |name: String, shape: Vec<usize>, dtype: DType, make: fn(&Layer) -> Vec<u8>| {
            (name, Entry::Made { layer: self, shape, dtype, fp8: false, make })
        };
        let side = |part: &str| format!("{}.{part}", self.name);
        match to {
            QuantizedTo::Nf4 => {
                let (blocks, state) = (count.div_ceil(BLOCK), side("quant_state.bitsandbytes__nf4"));
                vec![
                    made(self.name.into(), vec![count.div_ceil(2), 1], DType::U8, |layer| {
                        let values = layer.values();
                        quantize_nf4(&values, &absmax(&values))
                    }),
                    made(side("absmax"), vec![blocks], DType::U8, |layer| layer.nested().codes.to_vec()),
                    made(side("nested_absmax"), vec![blocks.div_ceil(NESTED_BLOCK)], DType::F32, |layer| {
                        little_endian(&layer.nested().scales)
                    }),
                    made(side("quant_map"), vec![16], DType::F32, |_| little_endian(&FourBitKind::nf4_levels())),
                    made(side("nested_quant_map"), vec![256], DType::F32, |_| {
                        little_endian(DynamicMap::Signed.levels())
                    }),
                    made(state, vec![self.state().len()], DType::U8, |layer| layer.state().into_bytes()),
                ]
            }
            QuantizedTo::Int8 => vec![
                made(self.name.into(), self.dims.into(), DType::I8, |layer| {
                    quantize_int8(&layer.values(), layer.dims[1]).0
                }),
                made(format!("{layer}.SCB"), vec![rows], DType::F32, |layer| {
                    little_endian(&quantize_int8(&layer.values(), layer.dims[1]).1)
                }),
                made(format!("{layer}.weight_format"), vec![], DType::U8, |_| vec![0]),
            ],
            QuantizedTo::Fp8 => vec![
                (
                    self.name.into(),
                    Entry::Made {
                        layer: self,
                        shape: self.dims.into(),
                        dtype: DType::U8,
                        fp8: true,
                        make: |layer| quantize_fp8(&layer.values(), layer.dims[1], SQUARE).0,
                    },
                ),
                made(
                    format!("{layer}.weight_scale_inv"),
                    vec![rows.div_ceil(SQUARE), columns.div_ceil(SQUARE)],
                    DType::F32,
                    |layer| little_endian(&quantize_fp8(&layer.values(), layer.dims[1], SQUARE).1),
                ),
            ],
        }
    }

    /// The JSON that bitsandbytes writes beside a weight, byte for byte as Python formats it.
    fn state(&self) -> String {
        let dtype = match self.file.dtype(self.name).as_deref() {
            Some("BF16") => "bfloat16",
            Some("F16") => "float16",
            _ => "float32",
        };
        let ([rows, columns], offset) = (self.dims, f64::from(self.nested().offset));
        format!(
            "{{\"quant_type\": \"nf4\", \"blocksize\": {BLOCK}, \"dtype\": \"{dtype}\", \"shape\": [{rows}, {columns}], \
             \"nested_blocksize\": {NESTED_BLOCK}, \"nested_dtype\": \"float32\", \"nested_offset\": {offset:?}}}"
        )
    }
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

impl<'a> Entry<'a> {
    pub fn kept(file: &'a TensorFile, name: &'a str) -> Self {
        let dtype = match file.dtype(name).as_deref() {
            Some("BF16") => DType::BF16,
            Some("F16") => DType::F16,
            Some("F64") => DType::F64,
            Some("I64") => DType::I64,
            Some("I32") => DType::I32,
            _ => DType::F32,
        };
        Self::Kept { file, name, dtype }
    }
}

impl TensorBytes for Entry<'_> {
    fn dtype(&self) -> DType {
        match self {
            Self::Kept { dtype, .. } | Self::Made { dtype, .. } => *dtype,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Kept { file, name, .. } => file.shape(name).unwrap_or_default(),
            Self::Made { shape, .. } => shape,
        }
    }

    fn bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Kept { file, name, .. } => file.bytes(name).expect("it is in the header").to_vec().into(),
            Self::Made { layer, make, .. } => make(layer).into(),
        }
    }

    fn is_fp8(&self) -> bool {
        matches!(self, Self::Made { fp8: true, .. })
    }
}

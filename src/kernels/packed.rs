//! Products with a quantized weight, which is dequantized for one product at a time.

use std::sync::Arc;

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};

use super::{
    composed::unpack::Unpack,
    linear::Linear,
    operation::{Operation, RawTensor, apply, assert_one_dtype},
};
use crate::{device, quantization::Packed};

/// A quantized matrix `[out, in]` on the device that uses it. Cheap to clone.
///
/// For the CPU it stays in the mapped file; on other devices its bytes are stored as in the file, or nearly so.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    packed: Packed,
    uploaded: Option<Arc<Unpack>>,
    dtype: FloatDType,
    device: Device,
}

impl PackedMatrix {
    /// Uploads it to `device`, for products in `dtype`.
    pub fn new(packed: Packed, device: &Device, dtype: FloatDType) -> Self {
        let uploaded = (!device::is_cpu(device)).then(|| {
            // It lasts as long as the model, so memory of its exact size is allocated.
            Arc::new(device.memory_persistent_allocations((), |()| Unpack::new(&packed, device)))
        });
        Self { packed, uploaded, dtype, device: device.clone() }
    }

    /// The same without uploading anything, for inspecting what is stored.
    pub fn unread(packed: Packed, device: &Device, dtype: FloatDType) -> Self {
        Self { packed, uploaded: None, dtype, device: device.clone() }
    }

    /// Its format: `nf4`, `int8`, `fp8`, `Q4_K`, …
    pub fn format(&self) -> &'static str {
        self.packed.format()
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.packed.bytes()
    }

    /// The dtype in which products are computed.
    pub fn dtype(&self) -> FloatDType {
        self.dtype
    }

    /// The device on which products are computed.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dequantized matrix: decoded in f32, rounded once to the dtype.
    pub fn dense(&self) -> Tensor<2> {
        self.make(|packed, device| {
            let data = TensorData::new(packed.to_f32(), packed.dims);
            Tensor::from_data(data, (device, DType::F32))
        })
    }

    /// The same, prepacked for forward products on the CPU: column-major.
    fn prepacked(&self) -> Tensor<2> {
        self.make(|packed, device| {
            let [rows, columns] = packed.dims;
            let data = TensorData::new(packed.to_f32_by_columns(), [columns, rows]);
            Tensor::<2>::from_data(data, (device, DType::F32)).transpose()
        })
    }

    fn make(&self, decode: impl FnOnce(&Packed, &Device) -> Tensor<2>) -> Tensor<2> {
        let dense = match &self.uploaded {
            Some(uploaded) => uploaded.dense(),
            None => decode(&self.packed, &self.device),
        };
        if self.dtype == FloatDType::F32 { dense } else { dense.cast(self.dtype) }
    }
}

/// `x·Wᵀ + b`: `x` `[M, in]`, `bias` `[out]` → `[M, out]`. `x` and the bias get gradients if they are on a tape; the weight gets
/// none. It is dense during a product, and again during that of the backward pass, but not in between.
pub fn linear_packed(x: Tensor<2>, weight: &PackedMatrix, bias: Option<Tensor<1>>) -> Tensor<2> {
    linear_packed_by_sample(x, weight, bias, 1)
}

/// [`linear_packed`] of `samples` samples with equally many rows of `x`: on the CPU in f32 each sample gets the same bits as
/// alone.
pub fn linear_packed_by_sample(
    x: Tensor<2>,
    weight: &PackedMatrix,
    bias: Option<Tensor<1>>,
    samples: usize,
) -> Tensor<2> {
    let dtype = weight.dtype.into();
    assert_one_dtype("a linear layer", &[x.dtype(), dtype, bias.as_ref().map_or(dtype, Tensor::dtype)]);
    let operation = LinearPacked { weight: weight.clone(), samples };
    match bias {
        Some(bias) => apply(operation, [x.into_dispatch(), bias.into_dispatch()]),
        None => apply(operation, [x.into_dispatch()]),
    }
}

#[derive(Clone, Debug)]
struct LinearPacked {
    weight: PackedMatrix,
    samples: usize,
}

/// The inputs are `x` and perhaps a bias.
impl<const N: usize> Operation<N> for LinearPacked {
    type Saved = ();

    fn forward(&self, inputs: [RawTensor; N]) -> (RawTensor, ()) {
        let weight = self.weight.prepacked().into_dispatch();
        let linear = Linear { trained: false, samples: self.samples };
        let mut inputs = inputs.into_iter();
        let x = inputs.next().expect("a linear layer has an input");
        let (y, _) = match inputs.next() {
            Some(bias) => linear.forward([x, weight, bias]),
            None => linear.forward([x, weight]),
        };
        (y, ())
    }

    fn backward(self, (): (), gradient: RawTensor, wanted: [bool; N]) -> [Option<RawTensor>; N] {
        let [wants_x, wants_bias] = [0, 1].map(|i| wanted.get(i) == Some(&true));
        // A placeholder if the weight is not needed.
        let weight = if wants_x { self.weight.dense().into_dispatch() } else { gradient.clone() };
        let [x, _, bias] =
            Linear { trained: false, samples: 1 }.backward((None, weight), gradient, [wants_x, false, wants_bias]);
        let mut gradients = [x, bias].into_iter();
        std::array::from_fn(|_| gradients.next().flatten())
    }
}

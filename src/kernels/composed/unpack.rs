//! Dequantizes matrices on any device, with operations that every backend has. The result is, bit for bit, that of
//! [`Packed::to_f32`] on the CPU: the same products of the same numbers.
//!
//! Besides the dense matrix it temporarily takes four bytes per value for the codes.

use burn::tensor::{DType, Device, Int, IntDType, Tensor, TensorData};

use crate::quantization::{Absmax, Code, EightBit, FourBit, Ggml, Nested, Packed};

/// The bytes and tables of a matrix on a device.
#[derive(Clone, Debug)]
pub struct Unpack {
    dims: [usize; 2],
    code: Uploaded,
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // behind one pointer
enum Uploaded {
    FourBit {
        /// Two values per byte.
        bytes: Tensor<1, Int>,
        levels: Tensor<1>,
        block: usize,
        absmax: UploadedAbsmax,
    },
    EightBit {
        bytes: Tensor<1, Int>,
        levels: Tensor<1>,
        /// One scale per block of the grid.
        scales: Tensor<2>,
        block: [usize; 2],
        factor: f32,
    },
    Ggml {
        kind: Ggml,
        /// `[blocks, bytes of each]`.
        blocks: Tensor<2, Int>,
    },
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // as above
enum UploadedAbsmax {
    Plain(Tensor<1>),
    Nested { codes: Tensor<1, Int>, levels: Tensor<1>, block: usize, scales: Tensor<1>, offset: f32 },
}

fn bytes<const D: usize>(bytes: &[u8], shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(bytes.to_vec(), shape), (device, DType::U8))
}

fn floats<const D: usize>(values: &[f32], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, DType::F32))
}

/// Widens bytes for arithmetic, which would otherwise wrap around.
fn wide<const D: usize>(bytes: Tensor<D, Int>) -> Tensor<D, Int> {
    bytes.cast(IntDType::I32)
}

/// Repeats each value `times` times, the copies adjacent; returns the first `count`.
fn spread(values: Tensor<1>, times: usize, count: usize) -> Tensor<1> {
    let all = values.dims()[0];
    values.reshape([all, 1]).repeat_dim(1, times).reshape([all * times]).narrow(0, 0, count)
}

impl Unpack {
    pub fn new(packed: &Packed, device: &Device) -> Self {
        let code = match &packed.code {
            Code::FourBit(FourBit { values, levels, block, absmax, .. }) => Uploaded::FourBit {
                bytes: bytes(values, [values.len()], device),
                levels: floats(levels, [16], device),
                block: *block,
                absmax: match absmax {
                    Absmax::Plain(scales) => UploadedAbsmax::Plain(floats(scales, [scales.len()], device)),
                    Absmax::Nested(Nested { codes, levels, block, scales, offset }) => UploadedAbsmax::Nested {
                        codes: bytes(codes, [codes.len()], device),
                        levels: floats(&**levels, [256], device),
                        block: *block,
                        scales: floats(scales, [scales.len()], device),
                        offset: *offset,
                    },
                },
            },
            Code::EightBit(EightBit { kind, values, scales, factor }) => Uploaded::EightBit {
                bytes: bytes(values, [values.len()], device),
                levels: floats(kind.levels(), [256], device),
                scales: floats(&scales.values, scales.grid(packed.dims), device),
                block: scales.block,
                factor: *factor,
            },
            Code::Ggml(kind, all) => {
                let shape = [all.len() / kind.bytes(), kind.bytes()];
                Uploaded::Ggml { kind: *kind, blocks: bytes(all, shape, device) }
            }
        };
        Self { dims: packed.dims, code }
    }

    /// The dequantized matrix in f32.
    pub fn dense(&self) -> Tensor<2> {
        let [rows, columns] = self.dims;
        let count = rows * columns;
        match &self.code {
            Uploaded::FourBit { bytes, levels, block, absmax } => {
                let pairs = wide(bytes.clone());
                let halves = [pairs.clone().bitwise_right_shift_scalar(4), pairs.bitwise_and_scalar(15)];
                let codes = Tensor::stack::<2>(halves.to_vec(), 1).flatten::<1>(0, 1).narrow(0, 0, count);
                let values = levels.clone().select(0, codes);
                (values * spread(absmax.dense(), *block, count)).reshape(self.dims)
            }
            Uploaded::EightBit { bytes, levels, scales, block, factor } => {
                let values = levels.clone().select(0, wide(bytes.clone())).reshape(self.dims);
                let mut scales = scales.clone();
                for (axis, size) in self.dims.into_iter().enumerate() {
                    let count = scales.dims()[axis];
                    // One scale for a whole axis, or one per element of it, needs no copies.
                    if count > 1 && block[axis] > 1 {
                        let each = scales.unsqueeze_dim::<3>(axis + 1).repeat_dim(axis + 1, block[axis]);
                        scales = each.flatten::<2>(axis, axis + 1).narrow(axis, 0, size);
                    }
                }
                values * scales * *factor
            }
            Uploaded::Ggml { kind, blocks } => ggml(*kind, blocks.clone()).reshape(self.dims),
        }
    }
}

impl UploadedAbsmax {
    fn dense(&self) -> Tensor<1> {
        match self {
            Self::Plain(scales) => scales.clone(),
            Self::Nested { codes, levels, block, scales, offset } => {
                let count = codes.dims()[0];
                let values = levels.clone().select(0, wide(codes.clone()));
                values * spread(scales.clone(), *block, count) + *offset
            }
        }
    }
}

/// The values of ggml's blocks `[blocks, bytes]`, `[blocks, values]`.
fn ggml(kind: Ggml, blocks: Tensor<2, Int>) -> Tensor<2> {
    let blocks = wide(blocks);
    let count = blocks.dims()[0];
    let part = |start: usize, length: usize| blocks.clone().narrow(1, start, length);
    let low = |bytes: Tensor<2, Int>| bytes.bitwise_and_scalar(15);
    let high = |bytes: Tensor<2, Int>| bytes.bitwise_right_shift_scalar(4);
    match kind {
        Ggml::Q4_0 => {
            let codes = Tensor::cat(vec![low(part(2, 16)), high(part(2, 16))], 1);
            half(part(0, 2)) * (codes.float() - 8.0)
        }
        Ggml::Q8_0 => half(part(0, 2)) * signed(part(2, 32)),
        Ggml::Q4K | Ggml::Q5K => {
            let [scales, minima] = scales(part(4, 12)).map(|six_bits| six_bits.float());
            // [blocks, groups, 1]
            let scales = (half(part(0, 2)) * scales).unsqueeze_dim::<3>(2);
            let minima = (half(part(2, 2)) * minima).unsqueeze_dim::<3>(2);
            let five = kind == Ggml::Q5K;
            let bytes = part(if five { 48 } else { 16 }, 128).reshape([count, 4, 32]);
            let halves = [bytes.clone().bitwise_and_scalar(15), bytes.bitwise_right_shift_scalar(4)];
            let mut codes = Tensor::stack::<4>(halves.to_vec(), 2).reshape([count, 8, 32]);
            if five {
                let fifth = (0..8).map(|group| part(16, 32).bitwise_right_shift_scalar(group).bitwise_and_scalar(1));
                codes = codes + Tensor::stack::<3>(fifth.collect(), 1) * 16;
            }
            (scales * codes.float() - minima).reshape([count, 256])
        }
        Ggml::Q6K => {
            let lower = part(0, 128).reshape([count, 2, 64]);
            let halves = [lower.clone().bitwise_and_scalar(15), lower.bitwise_right_shift_scalar(4)];
            // [blocks, 2, 2, 64]: halves of a block, halves of its bytes.
            let lower = Tensor::stack::<4>(halves.to_vec(), 2).reshape([count, 256]);
            let upper = part(128, 64).reshape([count, 2, 32]);
            let pairs = (0..4).map(|pair| upper.clone().bitwise_right_shift_scalar(2 * pair).bitwise_and_scalar(3));
            let upper = Tensor::stack::<4>(pairs.collect(), 2).reshape([count, 256]);
            let codes = (lower + upper * 16).float() - 32.0;
            let scales = (half(part(208, 2)) * signed(part(192, 16))).unsqueeze_dim::<3>(2);
            (scales * codes.reshape([count, 16, 16])).reshape([count, 256])
        }
    }
}

/// Bytes as integers from -128 to 127.
fn signed(bytes: Tensor<2, Int>) -> Tensor<2> {
    let sign = bytes.clone().bitwise_right_shift_scalar(7);
    (bytes - sign * 256).float()
}

/// Unpacks the two lists of eight 6-bit numbers in 12 bytes.
fn scales(bytes: Tensor<2, Int>) -> [Tensor<2, Int>; 2] {
    let part = |start: usize| bytes.clone().narrow(1, start, 4);
    let six = |bytes: Tensor<2, Int>| bytes.bitwise_and_scalar(63);
    let top = |bytes: Tensor<2, Int>| bytes.bitwise_right_shift_scalar(6) * 16;
    [
        Tensor::cat(vec![six(part(0)), part(8).bitwise_and_scalar(15) + top(part(0))], 1),
        Tensor::cat(vec![six(part(4)), part(8).bitwise_right_shift_scalar(4) + top(part(4))], 1),
    ]
}

/// Two bytes as a finite half-precision number, `[blocks, 2]` → `[blocks, 1]`.
fn half(bytes: Tensor<2, Int>) -> Tensor<2> {
    let (low, high) = (bytes.clone().narrow(1, 0, 1), bytes.narrow(1, 1, 1));
    let exponent = high.clone().bitwise_right_shift_scalar(2).bitwise_and_scalar(31);
    let mantissa = (high.clone().bitwise_and_scalar(3) * 256 + low).float();
    let sign = high.bitwise_right_shift_scalar(7).float() * -2.0 + 1.0;
    // Exponents 0 and 1 have the same unit; numbers with exponent 0 lack the leading one.
    let leading = exponent.clone().clamp(0, 1).float() * 1024.0;
    let units: Vec<f32> = (0..32).map(|exponent: i32| 2f32.powi(exponent.max(1) - 25)).collect();
    let units = Tensor::<1>::from_data(TensorData::new(units, [32]), (&sign.device(), DType::F32));
    let blocks = exponent.dims()[0];
    let unit = units.select(0, exponent.reshape([blocks])).reshape([blocks, 1]);
    sign * (mantissa + leading) * unit
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        quantization::{
            EightBitKind, FourBitKind, Scales, SharedBytes, nested, quantize_fp8, quantize_int8, quantize_nf4,
        },
        rng::{Purpose, Seed},
        weights::TensorFile,
    };

    #[track_caller]
    fn same_bits(packed: Packed) {
        let expected: Vec<u32> = packed.to_f32().into_iter().map(f32::to_bits).collect();
        let found = Unpack::new(&packed, &Device::flex()).dense();
        assert_eq!(found.dims(), packed.dims);
        let found: Vec<u32> = found.into_data().iter::<f32>().map(f32::to_bits).collect();
        assert!(found == expected, "{} {:?}", packed.format(), packed.dims);
    }

    fn normal(dims: [usize; 2]) -> Vec<f32> {
        Seed(3).named(Purpose::Weights, "w").normal(dims[0] * dims[1])
    }

    #[test]
    fn composed_operations_give_the_bits_that_the_cpu_decodes() {
        for dims in [[8, 128], [48, 48], [5, 13], [140, 160], [260, 130]] {
            let values = normal(dims);
            let absmax = crate::quantization::absmax(&values);
            let nibbles = SharedBytes::from(quantize_nf4(&values, &absmax));
            for absmax in [Absmax::Plain(absmax.clone().into()), Absmax::Nested(nested(&absmax))] {
                let (kind, values) = (FourBitKind::Nf4, nibbles.clone());
                let code = FourBit { kind, values, levels: FourBitKind::nf4_levels(), block: 64, absmax };
                same_bits(Packed { dims, code: Code::FourBit(code) });
            }
            let (bytes, absmax) = quantize_int8(&values, dims[1]);
            let code = EightBit::int8(bytes.into(), absmax.into(), dims[1]);
            same_bits(Packed { dims, code: Code::EightBit(code) });
            let (bytes, scales) = quantize_fp8(&values, dims[1], 128);
            let scales = Scales { values: scales.into(), block: [128; 2] };
            let code = EightBit { kind: EightBitKind::E4m3, values: bytes.into(), scales, factor: 1.0 };
            same_bits(Packed { dims, code: Code::EightBit(code) });
        }
    }

    #[test]
    fn blocks_of_ggml_are_the_same_on_every_device() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantized.safetensors");
        let file = TensorFile::open(path).unwrap();
        for kind in Ggml::ALL {
            let name = format!("{}.bytes", kind.name());
            let [rows, bytes] = file.shape(&name).unwrap().try_into().unwrap();
            let dims = [rows, bytes / kind.bytes() * kind.values()];
            same_bits(Packed { dims, code: Code::Ggml(kind, file.bytes(&name).unwrap()) });
        }
    }

    #[test]
    fn every_finite_half_is_itself() {
        let all = (0..=u16::MAX).filter(|bits| half::f16::from_bits(*bits).is_finite());
        let bits: Vec<u16> = all.collect();
        let raw: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let found = half(wide(bytes(&raw, [bits.len(), 2], &Device::flex()))).into_data();
        for (found, bits) in found.iter::<f32>().zip(bits) {
            assert_eq!(found, half::f16::from_bits(bits).to_f32());
        }
    }
}

//! Blockwise 8-bit storage of f32 values: an optimizer's moments between two steps.

use burn::tensor::{DType, Device, Int, IntDType, Tensor, TensorData};

use crate::{
    device,
    quantization::{DynamicMap, MOMENT_BLOCK},
};

/// Flattened f32 values, each stored as the nearest of 256 levels relative to the largest magnitude of its block. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Blockwise {
    /// The indices of the levels, `[count]`, u8.
    pub codes: Tensor<1, Int>,
    /// The largest magnitude of each block of [`MOMENT_BLOCK`], f32.
    pub largest: Tensor<1>,
    /// The set of levels.
    pub map: DynamicMap,
}

impl Blockwise {
    /// Quantizes `values` (f32) on their device. Every device gives the same levels.
    pub fn of(values: Tensor<1>, map: DynamicMap) -> Self {
        let device = values.device();
        if !device::is_cpu(&device) {
            return Self::by_operations(values, map);
        }
        let values = values.into_data();
        let (codes, largest) = map.encode(values.as_slice::<f32>().expect("moments are f32"));
        Self::from_parts(codes, largest, map, &device)
    }

    /// Takes the output of [`DynamicMap::encode`].
    pub fn from_parts(codes: Vec<u8>, largest: Vec<f32>, map: DynamicMap, device: &Device) -> Self {
        let (count, blocks) = (codes.len(), largest.len());
        Self {
            codes: Tensor::from_data(TensorData::new(codes, [count]), (device, DType::U8)),
            largest: Tensor::from_data(TensorData::new(largest, [blocks]), (device, DType::F32)),
            map,
        }
    }

    /// The dequantized values, f32.
    pub fn dense(&self) -> Tensor<1> {
        let device = self.codes.device();
        if !device::is_cpu(&device) {
            return self.dense_by_operations();
        }
        let (codes, largest) = (self.codes.to_data(), self.largest.to_data());
        let values = self.map.decode(codes.as_bytes(), largest.as_slice::<f32>().expect("they were made as f32"));
        let count = values.len();
        Tensor::from_data(TensorData::new(values, [count]), (&device, DType::F32))
    }

    /// Quantizes with operations that every backend has: a binary search over the levels.
    fn by_operations(values: Tensor<1>, map: DynamicMap) -> Self {
        let (device, [count]) = (values.device(), values.dims());
        let blocks = count.div_ceil(MOMENT_BLOCK);
        let rest = Tensor::zeros([blocks * MOMENT_BLOCK - count], (&device, DType::F32));
        let values = Tensor::cat(vec![values, rest], 0).reshape([blocks, MOMENT_BLOCK]);
        let largest = values.clone().abs().max_dim(1);
        // The inverse of a block of zeros is not finite, and not used.
        let inverse = largest.clone().recip().mask_fill(largest.clone().equal_elem(0.0), 0.0);
        let values = (values * inverse).reshape([blocks * MOMENT_BLOCK]);
        let levels = levels(map, &device);
        let level = |number: Tensor<1, Int>| levels.clone().select(0, number);
        let mut above = Tensor::<1, Int>::zeros([blocks * MOMENT_BLOCK], (&device, DType::I32));
        for bit in [128, 64, 32, 16, 8, 4, 2, 1] {
            let is_less = level(above.clone() + (bit - 1)).lower(values.clone());
            above = above + is_less.int().cast(IntDType::I32) * bit;
        }
        let below = (above.clone() - 1).clamp_min(0);
        let is_below = (values.clone() - level(below.clone())).abs().lower_equal((level(above.clone()) - values).abs());
        let codes = above.mask_where(is_below, below).narrow(0, 0, count).cast(IntDType::U8);
        Self { codes, largest: largest.reshape([blocks]), map }
    }

    fn dense_by_operations(&self) -> Tensor<1> {
        let (device, [count], [blocks]) = (self.codes.device(), self.codes.dims(), self.largest.dims());
        let levels = levels(self.map, &device);
        let largest = self.largest.clone().reshape([blocks, 1]).repeat_dim(1, MOMENT_BLOCK);
        let largest = largest.reshape([blocks * MOMENT_BLOCK]).narrow(0, 0, count);
        levels.select(0, self.codes.clone().cast(IntDType::I32)) * largest
    }
}

fn levels(map: DynamicMap, device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(map.levels().to_vec(), [256]), (device, DType::F32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::TensorFile;

    /// The levels of the golden come from one build of torch; another may round the last bit differently. Of two levels that are
    /// equally near up to that, either is right.
    #[test]
    fn levels_codes_and_values_are_those_of_bitsandbytes_on_every_path() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/adamw8bit.safetensors");
        let file = TensorFile::open(path).unwrap();
        let floats = |name: &str| file.read_f32(name).unwrap().into_vec::<f32>().unwrap();
        let near = |a: f32, b: f32| (a - b).abs() <= 3e-7 * b.abs();
        for (name, map) in [("signed", DynamicMap::Signed), ("unsigned", DynamicMap::Unsigned)] {
            let side = |part: &str| format!("{name}.{part}");
            let levels = map.levels();
            assert!(levels.iter().zip(floats(&side("levels"))).all(|(own, golden)| near(*own, golden)), "{levels:?}");
            let values = floats(&side("values"));
            let tensor = || Tensor::<1>::from_data(TensorData::new(values.clone(), [values.len()]), &Device::flex());
            let codes = file.bytes(&side("codes")).unwrap().to_vec();
            let (by_cpu, by_operations) = (Blockwise::of(tensor(), map), Blockwise::by_operations(tensor(), map));
            let data = [&by_cpu, &by_operations].map(|found| found.codes.to_data());
            assert!(data[0].as_bytes() == data[1].as_bytes(), "{name}: the paths have the same bits");
            let largest = by_cpu.largest.to_data().into_vec::<f32>().unwrap();
            assert_eq!(largest, floats(&side("absmax")));
            assert_eq!(largest, by_operations.largest.to_data().into_vec::<f32>().unwrap());
            for (at, (own, code)) in data[0].as_bytes().iter().zip(&codes).enumerate() {
                let scale = largest[at / MOMENT_BLOCK];
                let away = |code: u8| (levels[usize::from(code)] * scale - values[at]).abs();
                let is_tie = own.abs_diff(*code) == 1 && (away(*own) - away(*code)).abs() <= 1e-6 * scale;
                // In a block of zeros any level is zero.
                assert!(own == code || is_tie || scale == 0.0, "{name} {at}: {own}, bitsandbytes {code}");
            }
            let others = data[0].as_bytes().iter().zip(&codes).filter(|(own, code)| own != code).count();
            assert!(others < 512, "{name}: {others} of 1000");
            let dense = [by_cpu.dense(), by_cpu.dense_by_operations()].map(|dense| dense.into_data());
            assert_eq!(dense[0], dense[1]);
            let same_code = |at: &usize| data[0].as_bytes()[*at] == codes[*at];
            let (own, golden) = (dense[0].as_slice::<f32>().unwrap(), floats(&side("dense")));
            assert!((0..own.len()).filter(same_code).all(|at| near(own[at], golden[at])), "{name}");
        }
    }
}

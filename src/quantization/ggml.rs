//! ggml's block formats, as in GGUF files: each block holds the scales and codes of some values.

use half::f16;

/// A block format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ggml {
    /// 32 values: a scale and 4-bit integers.
    Q4_0,
    /// 32 values: a scale and 8-bit integers.
    Q8_0,
    /// 256 values in groups of 32, each with a 6-bit scale and a 6-bit minimum; 4-bit integers.
    Q4K,
    /// The same with 5-bit integers.
    Q5K,
    /// 256 values in groups of 16, each with an 8-bit scale; 6-bit integers.
    Q6K,
}

impl Ggml {
    /// All formats that kiln reads.
    pub const ALL: [Self; 5] = [Self::Q4_0, Self::Q8_0, Self::Q4K, Self::Q5K, Self::Q6K];

    /// Its name in ggml.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// The number of values in a block.
    pub const fn values(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// The size of a block in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 2 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q4K => 2 + 2 + 12 + 128,
            Self::Q5K => 2 + 2 + 12 + 32 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Decodes whole blocks, from the first one on, until `out` is full.
    pub(super) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        for (block, out) in bytes.chunks_exact(self.bytes()).zip(out.chunks_exact_mut(self.values())) {
            match self {
                Self::Q4_0 => q4_0(block, out),
                Self::Q8_0 => q8_0(block, out),
                Self::Q4K => q4_k(block, out),
                Self::Q5K => q5_k(block, out),
                Self::Q6K => q6_k(block, out),
            }
        }
    }
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// `d·(q - 8)`; the first 16 values are in the lower halves of the bytes.
fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half(block);
    for (i, byte) in block[2..].iter().enumerate() {
        out[i] = d * (f32::from(byte & 15) - 8.0);
        out[i + 16] = d * (f32::from(byte >> 4) - 8.0);
    }
}

/// `d·q`.
fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = half(block);
    for (value, &byte) in out.iter_mut().zip(&block[2..]) {
        *value = d * f32::from(byte as i8);
    }
}

/// Scale and minimum of each of eight groups, six bits each: those of the first four groups take one byte each; those of the others
/// have their upper two bits in the bytes of the first four.
fn scales(bytes: &[u8]) -> [(f32, f32); 8] {
    std::array::from_fn(|i| {
        let (scale, minimum) = match i {
            0..4 => (bytes[i] & 63, bytes[i + 4] & 63),
            _ => (bytes[i + 4] & 15 | bytes[i - 4] >> 6 << 4, bytes[i + 4] >> 4 | bytes[i] >> 6 << 4),
        };
        (f32::from(scale), f32::from(minimum))
    })
}

/// `d·scale·q - dmin·minimum`; two groups share 32 bytes, the first in the lower half of each.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin, scales) = (half(block), half(&block[2..]), scales(&block[4..16]));
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = (d * scales[group].0, dmin * scales[group].1);
        let bytes = &block[16 + group / 2 * 32..];
        for (value, byte) in out.iter_mut().zip(bytes) {
            *value = scale * f32::from(byte >> (4 * (group % 2)) & 15) - minimum;
        }
    }
}

/// The same with a fifth bit: for group `g` it is bit `g` of 32 separate bytes.
fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin, scales) = (half(block), half(&block[2..]), scales(&block[4..16]));
    let high = &block[16..48];
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = (d * scales[group].0, dmin * scales[group].1);
        let bytes = &block[48 + group / 2 * 32..];
        for ((value, byte), high) in out.iter_mut().zip(bytes).zip(high) {
            let q = byte >> (4 * (group % 2)) & 15 | (high >> group & 1) << 4;
            *value = scale * f32::from(q) - minimum;
        }
    }
}

/// `d·scale·(q - 32)`. Each half of the values has 64 bytes of lower and 32 bytes of upper bits: the 32 values of group `g` have
/// their lower four bits in the bytes from `32·(g mod 2)` on, in half `g / 2` of each byte, and their upper two bits as pair `g`.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(&block[208..]));
    for (run, out) in out.chunks_exact_mut(32).enumerate() {
        let (side, group) = (run / 4, run % 4);
        let low = &low[64 * side + 32 * (group % 2)..];
        let high = &high[32 * side..];
        for (i, value) in out.iter_mut().enumerate() {
            let q = low[i] >> (4 * (group / 2)) & 15 | (high[i] >> (2 * group) & 3) << 4;
            let scale = d * f32::from(scales[8 * side + 2 * group + i / 16] as i8);
            *value = scale * (f32::from(q) - 32.0);
        }
    }
}

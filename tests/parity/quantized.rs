//! Quantization matches bitsandbytes, torch and gguf on the same values: `tests/parity/quantized.py`.

use std::path::Path;

use kiln::{quantization::*, weights::TensorFile};

const MATRICES: [&str; 6] = ["whole", "rows", "rest", "odd", "zeros", "many"];

fn golden() -> TensorFile {
    TensorFile::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantized.safetensors")).unwrap()
}

fn floats(file: &TensorFile, name: &str) -> Vec<f32> {
    file.read_f32(name).unwrap().iter::<f32>().collect()
}

fn raw(file: &TensorFile, name: &str) -> SharedBytes {
    file.bytes(name).unwrap_or_else(|| panic!("{name}"))
}

fn dims(file: &TensorFile, name: &str) -> [usize; 2] {
    file.shape(name).unwrap().try_into().unwrap()
}

#[track_caller]
fn same_bits(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(found.to_bits() == expected.to_bits(), "{what}, value {i}: {found:e}, expected {expected:e}");
    }
}

#[test]
fn four_bit_codes_match_bitsandbytes() {
    let file = golden();
    for matrix in MATRICES {
        let values = floats(&file, &format!("{matrix}.values"));
        let scales = absmax(&values);
        same_bits(&scales, &floats(&file, &format!("{matrix}.nf4.plain.absmax")), matrix);
        assert!(quantize_nf4(&values, &scales) == raw(&file, &format!("{matrix}.nf4.plain.weight"))[..], "{matrix}");
        let of = |side: &str| format!("{matrix}.nf4.weight.{side}");
        let nested = nested(&scales);
        assert!(nested.codes[..] == raw(&file, &of("absmax"))[..], "{matrix}: scales in eight bits");
        // The mean is summed in another order.
        for (found, expected) in nested.scales.iter().zip(floats(&file, &of("nested_absmax"))) {
            assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{matrix}: {found} {expected}");
        }
        same_bits(&FourBitKind::nf4_levels(), &floats(&file, &of("quant_map")), matrix);
    }
}

#[test]
fn four_bit_values_match_bitsandbytes() {
    let file = golden();
    for (matrix, kind) in MATRICES.iter().flat_map(|m| [(m, FourBitKind::Nf4), (m, FourBitKind::Fp4)]) {
        let of = |side: &str| format!("{matrix}.{}.{side}", kind.name());
        let levels = floats(&file, &of("weight.quant_map")).try_into().unwrap();
        let state: serde_json::Value =
            serde_json::from_slice(&raw(&file, &of(&format!("weight.quant_state.bitsandbytes__{}", kind.name()))))
                .unwrap();
        let nested = Nested {
            codes: raw(&file, &of("weight.absmax")),
            levels: std::sync::Arc::new(floats(&file, &of("weight.nested_quant_map")).try_into().unwrap()),
            block: state["nested_blocksize"].as_u64().unwrap() as usize,
            scales: floats(&file, &of("weight.nested_absmax")).into(),
            offset: state["nested_offset"].as_f64().unwrap() as f32,
        };
        for (absmax, dense) in [
            (Absmax::Plain(floats(&file, &of("plain.absmax")).into()), "plain.dense"),
            (Absmax::Nested(nested), "dense"),
        ] {
            let code = FourBit { kind, values: raw(&file, &of("plain.weight")), levels, block: BLOCK, absmax };
            let packed = Packed { dims: dims(&file, &of(dense)), code: Code::FourBit(code) };
            let expected = floats(&file, &of(dense));
            same_bits(&packed.to_f32(), &expected, &of(dense));
            let ([rows, columns], turned) = (packed.dims, packed.to_f32_by_columns());
            let back: Vec<f32> = (0..rows * columns).map(|i| turned[i % columns * rows + i / columns]).collect();
            same_bits(&back, &expected, &of(dense));
        }
    }
}

#[test]
fn int8_matches_bitsandbytes() {
    let file = golden();
    for matrix in MATRICES {
        let of = |side: &str| format!("{matrix}.int8.{side}");
        let (dims, values) = (dims(&file, &of("values")), floats(&file, &of("values")));
        let (bytes, absmax) = quantize_int8(&values, dims[1]);
        same_bits(&absmax, &floats(&file, &of("SCB")), matrix);
        assert!(bytes == raw(&file, &of("weight"))[..], "{matrix}");
        let packed = Packed { dims, code: Code::EightBit(EightBit::int8(bytes.into(), absmax.into(), dims[1])) };
        same_bits(&packed.to_f32(), &floats(&file, &of("dense")), matrix);
    }
    assert_eq!(quantize_int8(&[0.0, 0.0, 1.0, -2.0], 2), (vec![0, 0, 64, 129], vec![0.0, 2.0]));
}

#[test]
fn fp8_values_match_torch() {
    let file = golden();
    for (kind, levels) in [("e4m3", &E4M3), ("e5m2", &E5M2)] {
        for (found, expected) in levels.iter().zip(floats(&file, &format!("{kind}.levels"))) {
            assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{found} {expected}");
        }
    }
    let bytes = raw(&file, "e4m3.bytes");
    for (value, &byte) in floats(&file, "e4m3.numbers").into_iter().zip(&*bytes) {
        assert_eq!(to_e4m3(value), byte, "{value}");
    }
    assert_eq!([500.0, -1e9, 0.0, -0.0].map(to_e4m3), [0x7e, 0xfe, 0, 0x80]);
}

#[test]
fn levels_of_scales_match_bitsandbytes() {
    let (found, expected) = (*DynamicMap::Signed.levels(), floats(&golden(), "dynamic"));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.into_iter().zip(expected) {
        // The last bits depend on torch's vector width. Files contain the levels that they were made with.
        assert!((found - expected).abs() <= 2.5e-7 * expected.abs(), "{found:e} {expected:e}");
    }
    assert_eq!([127, 255].map(|i| DynamicMap::Signed.levels()[i]), [0.0, 1.0]);
}

#[test]
fn values_of_ggml_blocks_match_gguf() {
    let file = golden();
    for kind in Ggml::ALL {
        let (bytes, dense) = (format!("{}.bytes", kind.name()), format!("{}.dense", kind.name()));
        let packed = Packed { dims: dims(&file, &dense), code: Code::Ggml(kind, raw(&file, &bytes)) };
        same_bits(&packed.to_f32(), &floats(&file, &dense), kind.name());
    }
}

#[test]
fn a_piece_is_decoded_as_part_of_the_whole() {
    let dims = [300, 130];
    let values = kiln::rng::Seed(0).named(kiln::rng::Purpose::Weights, "w").normal(dims[0] * dims[1]);
    let (bytes, scales) = quantize_fp8(&values, dims[1], 128);
    let scales = Scales { values: scales.into(), block: [128; 2] };
    let code = EightBit { kind: EightBitKind::E4m3, values: bytes.into(), scales, factor: 1.0 };
    let packed = Packed { dims, code: Code::EightBit(code) };
    let mut whole = vec![0.0; values.len()];
    packed.decode(0, &mut whole);
    same_bits(&packed.to_f32(), &whole, "all pieces");
    for (found, value) in whole.iter().zip(&values) {
        assert!((found - value).abs() <= value.abs() / 16.0 + 1e-3, "{found} {value}");
    }
}

#[test]
fn a_range_of_rows_matches_the_whole() {
    let file = golden();
    let dims = [256, 128];
    let values = kiln::rng::Seed(0).named(kiln::rng::Purpose::Weights, "w").normal(dims[0] * dims[1]);
    let scales = absmax(&values);
    let (kind, levels) = (FourBitKind::Nf4, FourBitKind::nf4_levels());
    let (bytes, rows) = quantize_int8(&values, dims[1]);
    let (floats, squares) = quantize_fp8(&values, dims[1], 128);
    let eight = |values: Vec<u8>, scales: Vec<f32>, block| {
        let scales = Scales { values: scales.into(), block };
        Code::EightBit(EightBit { kind: EightBitKind::E4m3, values: values.into(), scales, factor: 1.0 })
    };
    let nested = Absmax::Nested(nested(&scales));
    let mut all: Vec<_> = [
        Code::FourBit(FourBit {
            kind,
            levels,
            block: 64,
            values: quantize_nf4(&values, &scales).into(),
            absmax: nested,
        }),
        Code::EightBit(EightBit::int8(bytes.into(), rows.into(), dims[1])),
        eight(floats.clone(), squares, [128, 128]),
        eight(floats, vec![0.5], dims),
    ]
    .map(|code| Packed { dims, code })
    .into();
    all.extend(Ggml::ALL.map(|kind| {
        let code = Code::Ggml(kind, raw(&file, &format!("{}.bytes", kind.name())));
        Packed { dims: dims_of(&file, kind), code }
    }));
    for packed in all {
        let [count, columns] = packed.dims;
        let whole = packed.to_f32();
        let turned = packed.to_f32_by_columns();
        for (i, value) in whole.iter().enumerate() {
            assert_eq!(value.to_bits(), turned[i % columns * count + i / columns].to_bits(), "{}", packed.format());
        }
        for rows in [0..count, count / 2..count, 0..count / 2] {
            let part = packed.rows(rows.clone()).unwrap();
            assert_eq!(part.dims, [rows.len(), columns]);
            same_bits(&part.to_f32(), &whole[rows.start * columns..rows.end * columns], part.format());
        }
    }
}

fn dims_of(file: &TensorFile, kind: Ggml) -> [usize; 2] {
    dims(file, &format!("{}.dense", kind.name()))
}

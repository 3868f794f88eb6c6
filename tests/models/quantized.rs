//! Quantized weights: the output of `kiln quantize`, what is refused, and that training on them equals training on the dequantized
//! values.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use kiln::{
    kernels::{PackedMatrix, linear, linear_packed},
    lending::Residence::{Resident, Streamed},
    models::flux::FluxTransformer,
    quantization::{
        Absmax, Code, EightBit, EightBitKind, FourBit, FourBitKind, Packed, Scales, absmax, nested, quantize_fp8,
        quantize_int8, quantize_nf4,
    },
    rng::{Purpose, Seed},
    weights::{QuantizeOptions, QuantizedTo, TensorFile, quantize_folder, write_tensors},
};

use crate::support::{
    goldens,
    program::{TINY_EDIT, fails, kiln, succeeds, tensors, train, workshop},
    quantized::{ALL, dense, quantized, safetensors},
    run::{numbers, state},
};

fn normal(name: &str, count: usize) -> Vec<f32> {
    Seed(5).named(Purpose::Weights, name).normal(count)
}

/// A matrix in each format.
fn packed(dims: [usize; 2], values: &[f32]) -> BTreeMap<&'static str, Packed> {
    let scales = absmax(values);
    let four = FourBit {
        kind: FourBitKind::Nf4,
        values: quantize_nf4(values, &scales).into(),
        levels: FourBitKind::nf4_levels(),
        block: 64,
        absmax: Absmax::Nested(nested(&scales)),
    };
    let (bytes, rows) = quantize_int8(values, dims[1]);
    let int8 = EightBit::int8(bytes.into(), rows.into(), dims[1]);
    let (bytes, squares) = quantize_fp8(values, dims[1], 128);
    let scales = Scales { values: squares.into(), block: [128; 2] };
    let fp8 = EightBit { kind: EightBitKind::E4m3, values: bytes.into(), scales, factor: 1.0 };
    [("nf4", Code::FourBit(four)), ("int8", Code::EightBit(int8)), ("fp8", Code::EightBit(fp8))]
        .into_iter()
        .map(|(name, code)| (name, Packed { dims, code }))
        .collect()
}

#[test]
fn products_with_weights_of_real_shape_keep_most_of_their_signal() {
    // A layer of a block of FLUX.1, as training leaves weights: normal, and some rows larger than others.
    let dims = [3072, 3072];
    let mut values = normal("weight", dims[0] * dims[1]);
    for (row, values) in values.chunks_mut(dims[1]).enumerate() {
        values.iter_mut().for_each(|value| *value *= 0.02 * (1.0 + (row % 7) as f32));
    }
    let device = Device::flex();
    let x = Tensor::<2>::from_data(TensorData::new(normal("x", 32 * dims[1]), [32, dims[1]]), &device);
    let exact = linear(x.clone(), Tensor::from_data(TensorData::new(values.clone(), dims), &device), None);
    let power = |y: Tensor<2>| y.square().sum().into_scalar::<f32>();
    for (format, packed) in packed(dims, &values) {
        let bits = 8.0 * packed.bytes() as f64 / values.len() as f64;
        let weight = PackedMatrix::new(packed, &device, FloatDType::F32);
        let error = linear_packed(x.clone(), &weight, None) - exact.clone();
        let ratio = 10.0 * (power(exact.clone()) / power(error)).log10();
        let (least, most_bits) = match format {
            "nf4" => (20.0, 4.13),
            "int8" => (35.0, 8.02),
            _ => (30.0, 8.01),
        };
        assert!(ratio >= least && bits <= most_bits, "{format}: {ratio:.2} dB, {bits:.3} bits a value");
    }
}

#[test]
fn a_product_and_its_gradients_are_those_of_the_dense_weight() {
    let (rows, dims) = (7, [40, 72]);
    let device = Device::flex();
    let make = |name: &str, shape: [usize; 2]| {
        Tensor::<2>::from_data(TensorData::new(normal(name, shape[0] * shape[1]), shape), &device)
    };
    let (x, g) = (make("x", [rows, dims[1]]), make("g", [rows, dims[0]]));
    let bias = Tensor::<1>::from_data(TensorData::new(normal("bias", dims[0]), [dims[0]]), &device);
    for (format, packed) in packed(dims, &normal("w", dims[0] * dims[1])) {
        let weight = PackedMatrix::new(packed.clone(), &device, FloatDType::F32);
        let dense = Tensor::<2>::from_data(TensorData::new(packed.to_f32(), dims), &device);
        let run = |product: &dyn Fn(Tensor<2>, Option<Tensor<1>>) -> Tensor<2>, with_bias: bool| {
            let x = Tensor::from_inner(x.clone()).require_grad();
            let bias = with_bias.then(|| Tensor::from_inner(bias.clone()).require_grad());
            let y = product(x.clone(), bias.clone());
            let mut tape = (y.clone() * Tensor::from_inner(g.clone())).sum().backward();
            let gradients =
                [x.grad_remove(&mut tape).map(|x| x.flatten::<1>(0, 1)), bias.and_then(|b| b.grad_remove(&mut tape))];
            let values = gradients.into_iter().flatten().map(Tensor::into_data);
            std::iter::once(y.inner().into_data()).chain(values).collect::<Vec<_>>()
        };
        for with_bias in [false, true] {
            let found = run(&|x, bias| linear_packed(x, &weight, bias), with_bias);
            let expected = run(&|x, bias| linear(x, Tensor::from_inner(dense.clone()), bias), with_bias);
            assert_eq!(found.len(), 2 + usize::from(with_bias));
            assert!(found == expected, "{format}");
        }
        let half = PackedMatrix::new(packed, &device, FloatDType::BF16);
        assert_eq!(half.dense().into_data(), dense.cast(FloatDType::BF16).into_data(), "{format}");
    }
}

#[test]
fn the_same_model_is_quantized_to_the_same_bytes_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    for to in ["nf4", "int8", "fp8"] {
        let outputs = [1, 2].map(|i| folder.path().join(format!("{to}-{i}")).to_string_lossy().into_owned());
        for output in &outputs {
            let arguments = ["quantize", "tests/fixtures/tiny-flux", "--to", to, "--text-encoder", "--output", output];
            let (out, said) = succeeds(&arguments);
            assert_eq!(out.trim_end(), output);
            assert!(said.contains("signal-to-noise") && said.contains("read back"), "{said}");
        }
        for file in ["transformer/diffusion_pytorch_model.safetensors", "text_encoder_2/model.safetensors"] {
            let [one, other] = outputs.each_ref().map(|output| fs::read(Path::new(output).join(file)).unwrap());
            assert!(one == other, "{to} {file}");
            let whole = fs::metadata(Path::new("tests/fixtures/tiny-flux").join(file)).unwrap().len();
            assert!((one.len() as u64) < whole, "{to} {file}: {} of {whole} bytes", one.len());
        }
        let config = fs::read_to_string(Path::new(&outputs[0]).join("transformer/config.json")).unwrap();
        let method = if to == "fp8" { "fp8" } else { "bitsandbytes" };
        assert!(config.contains(&format!("\"quant_method\": \"{method}\"")), "{config}");
        // It generates images, and cannot be quantized again.
        let pictures = folder.path().join(format!("{to}-pictures")).to_string_lossy().into_owned();
        let size = ["--width", "64", "--height", "64", "--steps", "1"];
        let mut generate = vec!["generate", "--model", &outputs[0], "--prompt", "a red circle", "--output", &pictures];
        generate.extend(size);
        succeeds(&generate);
        let again = folder.path().join("again").to_string_lossy().into_owned();
        let said = fails(&["quantize", &outputs[0], "--to", "nf4", "--output", &again]);
        assert!(said.contains("already quantized"), "{said}");
        let said = fails(&["quantize", "tests/fixtures/tiny-flux", "--to", to, "--output", &outputs[0]]);
        assert!(said.contains("exists already"), "{said}");
        assert!(!Path::new(&again).exists());
    }
    let names = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| !name.ends_with(".partial")));
}

#[test]
fn only_a_t5_is_a_text_encoder_to_quantize_and_values_must_be_finite() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("q").to_string_lossy().into_owned();
    let said = fails(&["quantize", "tests/fixtures/tiny-sd", "--to", "nf4", "--text-encoder", "--output", &output]);
    assert!(said.contains("--text-encoder") && said.contains("has no T5"), "{said}");

    let broken = folder.path().join("broken");
    crate::support::program::copy("tests/fixtures/tiny-flux", &broken);
    let path = safetensors(&broken.join("transformer")).remove(0);
    let mut all: BTreeMap<_, _> = tensors(&path).into_iter().collect();
    let name = all.keys().find(|name| name.ends_with("to_q.weight")).unwrap().clone();
    let data = all.get_mut(&name).unwrap();
    let mut values: Vec<f32> = data.iter::<f32>().collect();
    values[3] = f32::NAN;
    *data = TensorData::new(values, data.shape.clone());
    write_tensors(&path, &all, &BTreeMap::new()).unwrap();
    let broken = broken.to_string_lossy().into_owned();
    let said = fails(&["quantize", &broken, "--to", "nf4", "--output", &output]);
    assert!(said.contains(&format!("`{name}`")) && said.contains("not finite"), "{said}");
    assert!(!Path::new(&output).exists() && !Path::new(&format!("{output}.partial")).exists());
}

#[test]
fn ends_norms_embeddings_and_biases_stay_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let model = &goldens("FluxPipeline")[0].model;
    for (to, for_diffusers) in ALL.into_iter().flat_map(|to| [(to, false), (to, true)]) {
        let output = folder.path().join(format!("{to:?}-{for_diffusers}"));
        quantize_folder(model, &["transformer"], &output, QuantizeOptions { to, for_diffusers }).unwrap();
        let written: BTreeMap<_, _> =
            tensors(output.join("transformer/diffusion_pytorch_model.safetensors")).into_iter().collect();
        for path in safetensors(&model.join("transformer")) {
            for (name, data) in tensors(path) {
                let block = name.starts_with("transformer_blocks.") || name.starts_with("single_transformer_blocks.");
                let last = name == "proj_out.weight" && for_diffusers && to != QuantizedTo::Fp8;
                let quantized = name.ends_with(".weight") && data.shape.len() == 2 && (block || last);
                assert_eq!(written[&name] != data, quantized, "{to:?} {name}");
            }
        }
        let config = fs::read_to_string(output.join("transformer/config.json")).unwrap();
        assert!(config.contains("\"x_embedder\"") && !config.contains("\"transformer_blocks."), "{config}");
    }
}

/// Problems of a tensor beside a weight: missing, of another size, of another dtype.
#[test]
fn side_tensors_that_do_not_fit_are_found_at_the_start_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let model = &goldens("FluxPipeline")[0].model;
    for to in ALL {
        let sides: &[&str] = match to {
            QuantizedTo::Nf4 => &[
                "weight.absmax",
                "weight.nested_absmax",
                "weight.quant_map",
                "weight.nested_quant_map",
                "weight.quant_state.bitsandbytes__nf4",
            ],
            QuantizedTo::Int8 => &["SCB"],
            QuantizedTo::Fp8 => &[],
        };
        let output = quantized(model, "transformer", to, folder.path());
        let path = output.join("transformer/diffusion_pytorch_model.safetensors");
        let whole = fs::read(&path).unwrap();
        let open = || {
            let errors = [Resident, Streamed].map(|residence| {
                let opened = FluxTransformer::open_as(residence, output.join("transformer"), &Device::flex(), None);
                opened.map(drop).map_err(|error| error.to_string())
            });
            assert_eq!(errors[0], errors[1], "both say the same");
            errors[0].clone()
        };
        assert_eq!(open(), Ok(()));
        let layer = "transformer_blocks.1.ff.net.0.proj";
        let change = |change: &dyn Fn(&mut BTreeMap<String, TensorData>)| {
            let mut all: BTreeMap<_, _> = tensors(&path).into_iter().collect();
            change(&mut all);
            write_tensors(&path, &all, &BTreeMap::new()).unwrap();
            let error = open().unwrap_err();
            fs::write(&path, &whole).unwrap();
            error
        };
        if to == QuantizedTo::Fp8 {
            continue; // the writer of these tests has no fp8: see below
        }
        for side in sides {
            let name = format!("{layer}.{side}");
            let error = change(&|all| _ = all.remove(&name).unwrap());
            assert!(error.contains(&name), "{name} gone: {error}");
            let error = change(&|all| _ = all.insert(name.clone(), TensorData::zeros::<f32, _>([3])));
            assert!(error.contains(&name), "{name} misshapen: {error}");
        }
        let weight = format!("{layer}.weight");
        let error = change(&|all| _ = all.insert(weight.clone(), TensorData::zeros::<u8, _>([3, 1])));
        assert!(error.contains(&weight), "{error}");
        let stray = format!("{layer}.stray");
        let error = change(&|all| _ = all.insert(stray.clone(), TensorData::zeros::<f32, _>([3])));
        assert!(error.contains(&stray), "{error}");
    }
}

#[test]
fn an_adapter_trains_on_quantized_weights_as_on_their_values() {
    let workshop = workshop("quantized");
    let model = Path::new("tests/fixtures/tiny-flux");
    for to in ALL {
        let folder = quantized(model, "transformer", to, &workshop);
        let runs = [folder.clone(), dense(model, "transformer", &folder)].map(|model| {
            let name = format!("{to:?}-{}", if model == folder { "quantized" } else { "dense" });
            let path = format!("model.path='{}'", model.display());
            train(&workshop, &name, &["training.max_steps=12", "lora.targets='all'", "validation.every=6", &path])
        });
        let [quantized, dense] = runs.each_ref().map(|run| (numbers(run), state(run, 12)));
        assert!(quantized.0.len() > 30, "{to:?}: {}", quantized.0.len());
        assert!(quantized.0 == dense.0, "{to:?}: losses and gradients\n{:?}\n{:?}", quantized.0, dense.0);
        assert!(quantized.1 == dense.1, "{to:?}: adapter and optimizer");
    }
}

#[test]
fn training_the_weights_themselves_is_refused_by_name() {
    let workshop = workshop("quantized_full");
    let folder = quantized(Path::new("tests/fixtures/tiny-sd"), "unet", QuantizedTo::Nf4, &workshop);
    let mut arguments = vec!["train".to_string(), "--config".into(), TINY_EDIT.into()];
    for setting in [
        format!("model.path='{}'", folder.display()),
        format!("run.output='{}'", workshop.join("runs").display()),
        format!("data.cache='{}'", workshop.join("cache").display()),
        "training.mode='full'".into(),
        "training.max_steps=1".into(),
    ] {
        arguments.extend(["--set".to_string(), setting]);
    }
    let output = kiln(&arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("training.mode") && said.contains("nf4") && said.contains("lora"), "{said}");
    assert!(!workshop.join("runs/quickstart_edit").exists(), "no run was begun");
}

/// A single safetensors file with fp8 weights of a kind that kiln does not write, built by hand.
fn fp8_file(path: &Path, tensors: &[(String, &str, Vec<usize>, Vec<u8>)]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }));
        data.extend(bytes);
    }
    let header = serde_json::to_string(&header).unwrap();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    fs::write(path, bytes).unwrap();
}

/// The transformer's folder with every matrix as ComfyUI has it: fp8 with one scale, called `side`, or without one; and with
/// `more` tensors.
fn comfy(model: &Path, folder: &Path, side: Option<&str>, more: &[(String, &str, Vec<usize>, Vec<u8>)]) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    fs::copy(model.join("transformer/config.json"), folder.join("config.json")).unwrap();
    let mut all = Vec::new();
    for path in safetensors(&model.join("transformer")) {
        let file = TensorFile::open(path).unwrap();
        for name in file.names() {
            let (shape, values) = (file.shape(&name).unwrap().to_vec(), file.read_f32(&name).unwrap());
            let values: Vec<f32> = values.iter::<f32>().collect();
            let float = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
            match (name.strip_suffix(".weight"), shape.len()) {
                (Some(layer), 2) => {
                    let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
                    let scale = side.map_or(1.0, |_| largest / 448.0);
                    let bytes = values.iter().map(|value| kiln::quantization::to_e4m3(value / scale)).collect();
                    if let Some(side) = side {
                        all.push((format!("{layer}.{side}"), "F32", vec![], float(&[scale])));
                    }
                    all.push((name, "F8_E4M3", shape, bytes));
                }
                // Without scales everything is fp8.
                _ if side.is_none() => {
                    let bytes = values.iter().map(|&value| kiln::quantization::to_e4m3(value)).collect();
                    all.push((name, "F8_E4M3", shape, bytes));
                }
                _ => all.push((name, "F32", shape, float(&values))),
            }
        }
    }
    all.extend_from_slice(more);
    fp8_file(&folder.join("diffusion_pytorch_model.safetensors"), &all);
    folder.into()
}

#[test]
fn fp8_of_comfyui_is_read_and_what_does_not_fit_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let golden = &goldens("FluxPipeline")[0];
    let open = |folder: &Path| FluxTransformer::open(folder, &Device::flex(), Some(FloatDType::F32));
    let exact = open(&golden.model.join("transformer")).unwrap();
    let inputs = kiln::selftest::flux::inputs(golden, &exact, "transformer.0", FloatDType::F32).unwrap();
    let expected = exact.forward(&inputs);
    let power = |y: Tensor<3>| y.square().sum().into_scalar::<f32>();
    let layer = "transformer_blocks.0.attn.to_q";
    let marker = ("scaled_fp8".to_string(), "F8_E4M3", vec![2], vec![0, 0]);
    let input = (format!("{layer}.scale_input"), "F32", vec![], 1f32.to_le_bytes().to_vec());
    let note = |format: &str| {
        let note = format!("{{\"format\": \"{format}\"}}").into_bytes();
        (format!("{layer}.comfy_quant"), "U8", vec![note.len()], note)
    };
    let cases = [
        ("scaled", Some("scale_weight"), vec![marker, input]),
        ("noted", Some("weight_scale"), vec![note("float8_e4m3fn")]),
        ("plain", None, vec![]),
    ];
    for (name, side, more) in cases {
        let made = comfy(&golden.model, &folder.path().join(name), side, &more);
        let error = open(&made).unwrap().forward(&inputs) - expected.clone();
        let ratio = 10.0 * (power(expected.clone()) / power(error)).log10();
        assert!(ratio > 15.0, "{name}: {ratio:.1} dB");
    }
    let wrong = [
        (note("nvfp4"), "nvfp4"),
        ((format!("{layer}.scale_weight"), "F32", vec![5], vec![0; 20]), "scale_weight"),
        ((format!("{layer}.scale_weight"), "I32", vec![], vec![0; 4]), "scale_weight"),
    ];
    for (i, (tensor, named)) in wrong.into_iter().enumerate() {
        let made = comfy(&golden.model, &folder.path().join(format!("wrong-{i}")), None, &[tensor]);
        let error = open(&made).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains(layer), "{error}");
    }
}

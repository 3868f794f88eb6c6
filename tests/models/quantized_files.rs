//! FLUX in single files as GGUF, scaled fp8 and nf4: the model is, bit for bit, that of the dequantized weights.

use std::{fs, path::Path};

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use kiln::{
    hub,
    lending::Residence::{Resident, Single, Streamed},
    limits::Limits,
    models::{
        Network,
        flux::{FluxInputs, FluxTransformer},
    },
    quantization::Ggml,
    rng::{Purpose, Seed},
};

use crate::support::{
    flux_file::{FluxFile, Raw, Stored, write_gguf, write_safetensors},
    program::{fails, kiln, overrides, succeeds, tensors, train, with_overrides, workshop},
    run::{numbers, state},
};

fn inputs(model: &FluxTransformer, dtype: FloatDType) -> FluxInputs {
    let device = Device::flex();
    let values = |name: &str, shape: &[usize]| {
        let count = shape.iter().product();
        TensorData::new(Seed(3).named(Purpose::Noise, name).normal(count), shape.to_vec())
    };
    FluxInputs {
        img: Tensor::<3>::from_data(values("img", &[1, 12, 64]), &device).cast(dtype),
        txt: Tensor::<3>::from_data(values("txt", &[1, 5, 64]), &device).cast(dtype),
        pooled: Tensor::<2>::from_data(values("pooled", &[1, 32]), &device).cast(dtype),
        sigma: Tensor::from_floats([0.4], &device),
        guidance: Tensor::from_floats([3.5], &device),
        rope: model.config.rope(5, 6, 8, &device),
        limits: Limits::NONE,
    }
}

/// The output of a model's transformer, and the format of its weights.
fn outcome(model: &str, residence: kiln::lending::Residence, dtype: FloatDType) -> (TensorData, Option<&'static str>) {
    let folder = hub::resolve(model).unwrap().join("transformer");
    let model = FluxTransformer::open_as(residence, folder, &Device::flex(), Some(dtype)).unwrap();
    let stored = model.lender().quantized();
    (model.forward(&inputs(&model, dtype)).into_data(), stored)
}

#[test]
fn a_transformer_in_any_format_is_that_of_its_values() {
    let folder = tempfile::tempdir().unwrap();
    let kinds = Ggml::ALL.map(|kind| (kind.name(), Stored::Ggml(kind), Some(kind.name())));
    let dense = ["F32", "F16", "BF16"].map(|dtype| (dtype, Stored::Dense(dtype), None));
    let others = [
        ("fp8", Stored::Fp8(None), Some("fp8")),
        ("fp8-scaled", Stored::Fp8(Some("scale_weight")), Some("fp8")),
        ("fp8-noted", Stored::Fp8(Some("weight_scale")), Some("fp8")),
        ("fp8-rows", Stored::Fp8Rows, Some("fp8")),
        ("nf4", Stored::Nf4, Some("nf4")),
    ];
    for (name, stored, format) in kinds.into_iter().chain(dense).chain(others) {
        let mut file = FluxFile::new(stored, folder.path());
        let path = match stored {
            Stored::Ggml(_) | Stored::Dense(_) => {
                let path = folder.path().join(format!("{name}.gguf"));
                write_gguf(&path, "flux", &file.raw);
                path
            }
            _ => {
                // As in ComfyUI: below a prefix, with a marker, input scales and notes.
                file.raw.push(Raw::new("scaled_fp8", "F8_E4M3", &[2], vec![0; 2]));
                if name == "fp8-noted" {
                    let note = br#"{"format": "float8_e4m3fn"}"#.to_vec();
                    file.raw.push(Raw::new("double_blocks.1.img_attn.qkv.comfy_quant", "U8", &[note.len()], note));
                    file.raw.push(Raw::floats("double_blocks.1.img_attn.qkv.input_scale", &[], &[1.0]));
                }
                let prefix = if name == "fp8-scaled" { "" } else { "model.diffusion_model." };
                file.raw.iter_mut().for_each(|raw| raw.name = format!("{prefix}{}", raw.name));
                let path = folder.path().join(format!("{name}.safetensors"));
                write_safetensors(&path, &file.raw);
                path
            }
        };
        let dense = file.dense_folder(&format!("{name}-dense"));
        for dtype in [FloatDType::F32, FloatDType::BF16] {
            let (expected, _) = outcome(dense.to_str().unwrap(), Resident, dtype);
            assert!(expected.iter::<f32>().all(f32::is_finite), "{name}");
            for residence in [Resident, Streamed, Single] {
                let (found, as_stored) = outcome(&file.model(&path), residence, dtype);
                assert_eq!(as_stored, format, "{name}");
                assert!(found.as_bytes() == expected.as_bytes(), "{name} {residence:?} {dtype:?}");
            }
        }
    }
}

#[test]
fn a_gguf_file_generates_trains_and_validates_as_the_model_of_its_values() {
    let workshop = workshop("quantized_files");
    let file = FluxFile::new(Stored::Ggml(Ggml::Q4K), &workshop);
    let path = workshop.join("flux-Q4_K.gguf");
    write_gguf(&path, "flux", &file.raw);
    let models = [file.model(&path), file.dense_folder("dense").display().to_string()];

    let size = ["--width", "64", "--height", "64", "--steps", "2", "--prompt", "a red circle"];
    let latents = models.each_ref().map(|model| {
        let out = workshop.join(format!("{}.safetensors", model.len())).display().to_string();
        let (_, said) = succeeds(&[&["generate", "--model", model, "--latents", &out][..], &size].concat());
        assert!(!said.contains("not used"), "{said}");
        tensors(&out)
    });
    assert!(latents[0] == latents[1], "latents of generate");
    let (plan, _) =
        succeeds(&[&["generate", "--model", &models[0], "--output", "nowhere", "--dry-run"][..], &size].concat());
    assert!(plan.contains("denoiser") || plan.contains("memory"), "{plan}");

    let runs = [0, 1].map(|i| {
        let settings = [
            format!("model.path='{}'", models[i]),
            "training.max_steps=8".into(),
            "lora.targets='all'".into(),
            "validation.every=4".into(),
        ];
        train(&workshop, &format!("run-{i}"), &settings.each_ref().map(String::as_str))
    });
    let [quantized, dense] = runs.each_ref().map(|run| (numbers(run), state(run, 8)));
    assert!(quantized.0.len() > 20 && quantized.0 == dense.0, "losses\n{:?}\n{:?}", quantized.0, dense.0);
    assert!(quantized.1 == dense.1, "adapter and optimizer");
    let path = |run: &Path| run.display().to_string();
    let validated = runs.each_ref().map(|run| succeeds(&["validate", &path(run)]).0);
    assert!(validated[0].lines().count() > 0, "{validated:?}");

    let model = format!("model.path='{}'", models[0]);
    let mut arguments = with_overrides("train", &overrides(&workshop, "dry", &[&model]));
    arguments.push("--dry-run".into());
    let (said, _) = succeeds(&arguments);
    assert!(said.contains("memory"), "{said}");
    assert!(!workshop.join("runs/dry").exists());
}

#[test]
fn a_file_that_cannot_be_used_gives_one_error_that_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let file = FluxFile::new(Stored::Ggml(Ggml::Q8_0), folder.path());
    let refused = |path: &Path, said: &[&str]| {
        let output = folder.path().join("images").display().to_string();
        let error = fails(&["generate", "--model", &file.model(path), "--prompt", "a cat", "--output", &output]);
        let name = path.file_name().unwrap().to_str().unwrap();
        said.iter().chain([&name]).for_each(|part| assert!(error.contains(part), "`{part}` in {error}"));
    };
    let path = folder.path().join("whole.gguf");
    write_gguf(&path, "flux", &file.raw);
    let whole = fs::read(&path).unwrap();

    let path = folder.path().join("cut.gguf");
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    refused(&path, &["past the end of the file", "cut short"]);
    fs::write(&path, &whole[..100]).unwrap();
    refused(&path, &["header is cut short"]);

    // The type of the first tensor, which follows its name and sizes.
    let Raw { name, shape, .. } = &file.raw[0];
    let at = whole.windows(name.len()).position(|bytes| bytes == name.as_bytes()).unwrap();
    let at = at + name.len() + 4 + 8 * shape.len();
    for (number, said) in [(11u32, "Q3_K"), (77, "type 77")] {
        let path = folder.path().join("type.gguf");
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        refused(&path, &[said, name, "Q4_K"]);
    }

    let path = folder.path().join("llama.gguf");
    write_gguf(&path, "llama", &file.raw);
    refused(&path, &["`llama`", "`flux`"]);

    let path = folder.path().join("lacking.gguf");
    let lacking: Vec<Raw> = file.raw.iter().filter(|raw| raw.name != "img_in.weight").cloned().collect();
    write_gguf(&path, "flux", &lacking);
    refused(&path, &["`x_embedder.weight` is missing"]);

    let path = folder.path().join("scale.safetensors");
    let mut scaled = FluxFile::new(Stored::Fp8(Some("scale_weight")), folder.path()).raw;
    let side = scaled.iter_mut().find(|raw| raw.name == "double_blocks.0.img_attn.qkv.scale_weight").unwrap();
    *side = Raw::floats(side.name.clone(), &[5], &[1.0; 5]);
    write_safetensors(&path, &scaled);
    refused(&path, &["`double_blocks.0.img_attn.qkv.scale_weight`", "[5]"]);

    // Alone it lacks the other parts; training its own weights is refused.
    let path = folder.path().join("whole.gguf").display().to_string();
    let error = fails(&["generate", "--model", &path, "--prompt", "a cat", "--output", "nowhere"]);
    assert!(error.contains("whole.gguf") && error.contains("@FOLDER"), "{error}");
    let (said, _) = succeeds(&["inspect", &path]);
    assert!(said.contains("FLUX transformer, original layout") && said.contains("Q8_0"), "{said}");
    let output = kiln(&["generate", "--model", &file.rest.display().to_string(), "--prompt", "a", "--output", "x"]);
    assert_eq!(output.status.code(), Some(1), "the folder by itself has no transformer");
}

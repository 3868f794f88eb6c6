//! The U-Net computes what diffusers computes: forward, with LoRA, and the gradients of all its tensors.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData, activation::silu};
use kiln::{
    lending::Residence,
    limits::Limits,
    models::{
        Network, Segment,
        text::ClipTextModel,
        unet::{UNet, UNetConfig, UNetInputs, UNetState},
        vae::AutoencoderKl,
    },
    nn::{Adapter, Adapters, Parameters},
    selftest::unet,
    training::backward::{Subject, backward, blockwise, full},
    weights::{TensorFile, Weights, write_tensors},
};

use crate::support::{Golden, goldens};

fn every() -> impl Iterator<Item = (Golden, UNet)> {
    let all = ["StableDiffusionInstructPix2PixPipeline", "StableDiffusionPipeline"].map(goldens);
    all.into_iter().flatten().map(|golden| {
        let model = open(&golden, Some(FloatDType::F32));
        (golden, model)
    })
}

fn open(golden: &Golden, dtype: Option<FloatDType>) -> UNet {
    UNet::open(golden.model.join("unet"), &Device::flex(), dtype).unwrap()
}

/// The inputs of one golden section.
fn inputs(golden: &Golden, section: &str) -> UNetInputs {
    unet::inputs(golden, section, FloatDType::F32).unwrap()
}

fn weight_files(golden: &Golden) -> Vec<TensorFile> {
    let entries = std::fs::read_dir(golden.model.join("unet")).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    files.map(|path| TensorFile::open(path).unwrap()).collect()
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().convert_dtype(DType::F32).into_vec().unwrap()
}

#[test]
fn outputs_match_for_square_wide_and_odd_latents() {
    for (golden, _) in every() {
        golden.agrees(unet::outputs);
    }
}

#[test]
fn every_level_matches() {
    for (golden, model) in every() {
        golden.agrees(unet::levels);
        let stem = model.lend(0, None).run(&inputs(&golden, "unet.0"), UNetState::Start);
        let UNetState::Way { time, .. } = stem else { panic!("the stem makes an image") };
        let tap = "unet.0.taps.time_embedding";
        let difference = time - silu(golden.tensor::<2>(tap));
        let difference = f64::from(difference.abs().max().into_scalar::<f32>());
        assert!(difference <= golden.tolerance(tap), "the time differs by {difference}");
    }
}

#[test]
fn weights_keep_their_own_dtype_or_take_the_requested_one() {
    for (golden, _) in every() {
        let exact = inputs(&golden, "unet.0");
        let rounded = UNetInputs {
            sample: exact.sample.cast(FloatDType::BF16),
            text: exact.text.cast(FloatDType::BF16),
            ..exact
        };
        for upcast_attention in [false, true] {
            let folder = golden.model.join("unet");
            let config = UNetConfig { upcast_attention, ..UNetConfig::open(&folder).unwrap() };
            let weights = Weights::open(&folder, &Device::flex(), Some(FloatDType::BF16)).unwrap();
            let output = UNet::load(&weights, config, Residence::Resident).forward(&rounded);
            weights.finish().unwrap();
            assert_eq!(output.dtype(), DType::BF16);
            golden.check_roughly("unet.0.output", output, 0.05);
        }

        let files = weight_files(&golden);
        let mut names: Vec<_> = files.iter().flat_map(TensorFile::names).collect();
        let mut found = Vec::new();
        open(&golden, None).parameters("", &mut |name, parameter| {
            let file = files.iter().find(|file| file.has(name)).unwrap_or_else(|| panic!("no tensor {name}"));
            let tensor = parameter.flat();
            assert_eq!(file.shape(name).unwrap().iter().product::<usize>(), tensor.dims()[0], "{name}");
            assert_eq!(format!("{:?}", tensor.dtype()), file.dtype(name).unwrap());
            found.push(name.to_string());
        });
        names.sort();
        found.sort();
        assert_eq!(found, names, "every tensor of the file can be trained, under its own name");
    }
}

/// The factors of a LoRA file of diffusers, as adapters.
fn adapters(model: &UNet, file: &TensorFile, scale: f64) -> Adapters {
    let factor = |layer: &str, names: [&str; 2]| {
        let name = names.map(|name| format!("unet.{layer}.{name}.weight")).into_iter().find(|name| file.has(name))?;
        let shape = file.shape(&name).unwrap();
        let shape = [shape[0], shape[1]]; // those of convolutions have two more axes of one
        let numbers: Vec<f32> = file.read_f32(&name).unwrap().into_vec().unwrap();
        Some(Tensor::<2>::from_data(TensorData::new(numbers, shape), &Device::flex()))
    };
    let of = |name: String| {
        let factors = (factor(&name, ["lora_A", "lora.down"]), factor(&name, ["lora_B", "lora.up"]));
        let (Some(a), Some(b)) = factors else { return None };
        Some((name, Adapter::low_rank(a, b, scale)))
    };
    let found: Vec<_> = model.layers().into_iter().filter_map(|layer| of(layer.name)).collect();
    assert_eq!(2 * found.len(), file.names().len());
    found.into_iter().collect()
}

#[test]
fn adapters_on_every_kind_of_layer_match() {
    for (golden, model) in every() {
        let inputs = inputs(&golden, "lora");
        golden.check("lora.output_base", model.forward(&inputs));
        for case in ["lora_r4_a4", "lora_r4_a8", "lora_all_r4_a2"] {
            let file = TensorFile::open(golden.folder.join(case).join("pytorch_lora_weights.safetensors")).unwrap();
            let number = |key: &str| golden.section(case)[key].as_f64().unwrap();
            let scale = number("alpha") / number("rank");
            for (strength, output) in [(1.0, "output"), (0.5, "output_scale_half")] {
                let adapters = adapters(&model, &file, scale * strength);
                golden.check(&format!("{case}.{output}"), model.predict(&inputs, &[adapters]));
            }
        }
    }
}

/// A widened copy of `model`, and what the first step of the golden's InstructPix2Pix training calls it with.
fn training_step(golden: &Golden, model: &UNet) -> (UNet, UNetInputs) {
    let device = Device::flex();
    let mut model = model.clone();
    model.widen(8);
    let of = |name: &str| format!("train_ip2p.step1.{name}");
    let (latents, noise): (Tensor<4>, Tensor<4>) = (golden.tensor(&of("latents")), golden.tensor(&of("noise")));
    let batch = latents.dims()[0];

    // Scaled-linear betas, as in the scheduler's config.
    let (start, end) = (0.00085f64.sqrt(), 0.012f64.sqrt());
    let betas = (0..1000).map(|i| (start + (end - start) * f64::from(i) / 999.0).powi(2));
    let kept: Vec<f64> = betas
        .scan(1.0, |product, beta| {
            Some({
                *product *= 1.0 - beta;
                *product
            })
        })
        .collect();
    let timesteps = golden.ids(&of("timesteps"));
    let column = |f: fn(f64) -> f64| {
        let values: Vec<f32> = timesteps.iter().map(|&t| f(kept[t as usize]) as f32).collect();
        Tensor::<1>::from_floats(values.as_slice(), &device).reshape([batch, 1, 1, 1])
    };
    let noisy = latents * column(f64::sqrt) + noise * column(|kept| (1.0 - kept).sqrt());

    let vae = AutoencoderKl::open(golden.model.join("vae"), &device, Some(FloatDType::F32)).unwrap();
    let original = vae.encode(golden.tensor("train_ip2p.original_pixels")).mode();
    let mask: Tensor<1> = golden.tensor(&of("image_mask"));

    let clip = ClipTextModel::open(golden.model.join("text_encoder"), &device, Some(FloatDType::F32)).unwrap();
    let (ids, null) = (golden.ids("train_ip2p.input_ids"), golden.ids("train_ip2p.null_ids"));
    let dropped = golden.ids(&of("prompt_dropped"));
    let rows: Vec<&[i64]> = ids
        .chunks(null.len())
        .zip(&dropped)
        .map(|(ids, &dropped)| if dropped == 1 { &null[..] } else { ids })
        .collect();
    let inputs = UNetInputs {
        sample: Tensor::cat(vec![noisy, original * mask.reshape([batch, 1, 1, 1])], 1),
        timestep: golden.tensor(&of("timesteps")),
        text: clip.forward(&rows).last_hidden_state,
        limits: Limits::NONE,
    };
    (model, inputs)
}

#[test]
fn a_widened_model_predicts_what_it_did_until_it_is_trained() {
    for (golden, model) in every() {
        let (mut wide, inputs) = training_step(&golden, &model);
        assert_eq!(wide.config.in_channels, 8);
        wide.parameters("", &mut |name, parameter| {
            if name.starts_with("conv_in.") {
                assert_eq!(parameter.shape(), golden.shape(&format!("train_ip2p.init.{name}")));
                assert_eq!(values(&parameter.flat()), golden.floats(&format!("train_ip2p.init.{name}")));
            }
        });
        golden.check("train_ip2p.step1.prediction", wide.forward(&inputs));
        if model.config.in_channels == 4 {
            let narrow = UNetInputs { sample: inputs.sample.clone().narrow(1, 0, 4), ..inputs };
            golden.check("train_ip2p.step1.prediction", model.forward(&narrow));
        }
    }
}

#[test]
fn gradients_of_all_tensors_match_and_are_the_same_bits_segment_by_segment() {
    for (golden, model) in every() {
        let (mut model, inputs) = training_step(&golden, &model);
        let target: Tensor<4> = Tensor::from_inner(golden.tensor("train_ip2p.step1.noise"));
        let run = |model: &UNet, subject, groups: &[_]| {
            backward(model, subject, &inputs, groups, |prediction| (prediction - target.clone()).square().mean())
        };
        let count = model.len();
        let (loss, gradients) = run(&model, Subject::Weights, &full(count));
        golden.check_data("train_ip2p.loss", {
            let losses = golden.floats("train_ip2p.loss");
            let all: Vec<f32> = values(&loss).into_iter().chain(losses[1..].iter().copied()).collect();
            all.as_slice().into()
        });
        for name in golden.names("train_ip2p.grad1.") {
            let parameter = name.strip_prefix("train_ip2p.grad1.").unwrap();
            golden.check_data(&name, gradients[parameter].to_data());
        }
        let mut names = 0;
        model.parameters("", &mut |name, parameter| {
            assert_eq!(gradients[name].dims()[0], parameter.shape().iter().product::<usize>(), "{name}");
            names += 1;
        });
        assert_eq!(gradients.len(), names);
        let norm = gradients.values().flat_map(values).map(|g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let expected = f64::from(golden.floats("train_ip2p.grad_norm")[0]);
        assert!((norm - expected).abs() < 1e-4 * expected, "the norm is {norm}, expected {expected}");

        let same = |subject| {
            let (whole, kept) = (run(&model, subject, &full(count)), run(&model, subject, &blockwise(count)));
            assert_eq!(values(&whole.0), values(&kept.0));
            assert!(whole.1.keys().eq(kept.1.keys()) && !whole.1.is_empty());
            let different = whole.1.keys().filter(|&name| values(&whole.1[name]) != values(&kept.1[name]));
            assert_eq!(different.collect::<Vec<_>>(), Vec::<&String>::new());
        };
        let worn = ["lora_r4_a8", "lora_all_r4_a2"].map(|case| {
            let file = TensorFile::open(golden.folder.join(case).join("pytorch_lora_weights.safetensors")).unwrap();
            adapters(&model, &file, 1.0)
        });
        worn.iter().map(Subject::Adapters).chain([Subject::Weights]).for_each(same);
    }
}

#[test]
fn misfits_between_weights_and_config_are_reported_in_one_error() {
    let golden = &goldens("StableDiffusionPipeline")[0];
    let folder = tempfile::tempdir().unwrap();
    let from = golden.model.join("unet");
    let config = std::fs::read_to_string(from.join("config.json")).unwrap();
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let rename = |name: String| if name == "conv_out.bias" { "conv_out.offset".into() } else { name };
    let files = weight_files(golden);
    let named = |file: &TensorFile| {
        file.names().into_iter().map(|name| (rename(name.clone()), file.read(&name).unwrap())).collect::<Vec<_>>()
    };
    let tensors = files.iter().flat_map(named).collect();
    write_tensors(folder.path().join("diffusion_pytorch_model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    let error = UNet::open(folder.path(), &Device::flex(), None).unwrap_err().to_string();
    assert!(error.contains("`conv_out.bias` is missing") && error.contains("`conv_out.offset` is not part of"));
}

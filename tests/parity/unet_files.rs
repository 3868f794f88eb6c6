//! Files of UNets act on the model as in diffusers: adapters of every format, and folders of trained weights.

use std::{collections::BTreeMap, path::Path};

use burn::tensor::{Device, FloatDType, Tensor};
use kiln::{
    families::{Family, STABLE_DIFFUSION},
    limits::Limits,
    lora::{Denoiser, Format, Lora, LoraConfig, Targets, export},
    models::{
        Network,
        unet::{UNet, UNetInputs},
    },
    nn::Parameters,
    rng::Seed,
    weights::{FileDtype, FlatTensor, TrainedPart, export_folder},
};

use crate::support::{Golden, goldens};

const CASES: [&str; 3] = ["lora_r4_a4", "lora_r4_a8", "lora_all_r4_a2"];

fn every() -> impl Iterator<Item = (Golden, UNet, UNetInputs)> {
    let all = ["StableDiffusionInstructPix2PixPipeline", "StableDiffusionPipeline"].map(goldens);
    all.into_iter().flatten().map(|golden| {
        let model = open(&golden.model);
        let inputs = UNetInputs {
            sample: golden.tensor("lora.sample"),
            timestep: golden.tensor("lora.timestep"),
            text: golden.tensor("lora.encoder_hidden_states"),
            limits: Limits::NONE,
        };
        (golden, model, inputs)
    })
}

fn open(model: &Path) -> UNet {
    UNet::open(model.join("unet"), &Device::flex(), Some(FloatDType::F32)).unwrap()
}

/// The output of `model` for `inputs` with an adapter at a scale.
fn with(model: &UNet, lora: &Lora, strength: f64, inputs: &UNetInputs) -> Tensor<4> {
    let adapters = lora.adapters_for(&model.layers(), &Device::flex(), strength).unwrap();
    model.predict(inputs, &[adapters])
}

/// The part that training a UNet replaces.
fn part() -> TrainedPart {
    STABLE_DIFFUSION.trained_part()
}

/// All tensors of a model.
fn values(model: &UNet) -> BTreeMap<String, FlatTensor> {
    let mut values = BTreeMap::new();
    model.clone().parameters("", &mut |name, parameter| {
        values.insert(name.to_string(), FlatTensor { shape: parameter.shape(), values: parameter.flat() });
    });
    values
}

#[test]
fn adapters_give_the_output_of_diffusers_attached_merged_and_written_again() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("out.safetensors");
    for (golden, model, inputs) in every() {
        golden.check("lora.output_base", model.forward(&inputs));
        for case in CASES {
            let output = format!("{case}.output");
            let lora = Lora::read(golden.folder.join(case).join("pytorch_lora_weights.safetensors")).unwrap();
            golden.check(&output, with(&model, &lora, 1.0, &inputs));
            golden.check(&format!("{output}_scale_half"), with(&model, &lora, 0.5, &inputs));
            let mut merged = model.clone();
            lora.merge(&mut merged, 1.0).unwrap();
            golden.check(&output, merged.forward(&inputs));
            for format in [Format::Diffusers, Format::Kohya] {
                export(&lora, &path, format, FileDtype::F32).unwrap();
                golden.check(&output, with(&model, &Lora::read(&path).unwrap(), 1.0, &inputs));
            }
        }
    }
}

#[test]
fn a_new_adapter_knows_which_layers_the_checkpoint_has_as_convolutions() {
    for (_, model, _) in every() {
        let config = LoraConfig { targets: Targets::All, ..LoraConfig::default() };
        let lora = Lora::init(&config, Denoiser::Unet, Seed(0), &model.layers(), &Device::flex()).unwrap();
        let pointwise = lora.layers.iter().filter(|layer| layer.pointwise);
        assert_eq!(pointwise.count(), 2 * 16, "proj_in and proj_out of every attention block");
    }
}

#[test]
fn an_exported_model_computes_what_the_trained_one_did() {
    let temporary = tempfile::tempdir().unwrap();
    for (i, (golden, model, inputs)) in every().enumerate() {
        let folder = temporary.path().join(i.to_string());
        export_folder(&golden.model, &part(), &values(&model), &folder, FileDtype::F32).unwrap();
        open(&folder).forward(&inputs).into_data().assert_eq(&model.forward(&inputs).into_data(), true);
        if model.config.in_channels != 4 {
            continue;
        }
        let mut wide = model.clone();
        wide.widen(8);
        let folder = temporary.path().join(format!("wide-{i}"));
        let report = export_folder(&golden.model, &part(), &values(&wide), &folder, FileDtype::F32).unwrap();
        assert_eq!(report.class, "StableDiffusionInstructPix2PixPipeline");
        let wide = open(&folder);
        assert_eq!(wide.config.in_channels, 8);
        let sample = Tensor::cat(vec![inputs.sample.clone(), inputs.sample.ones_like()], 1);
        golden.check("lora.output_base", wide.forward(&UNetInputs { sample, ..inputs }));
    }
}

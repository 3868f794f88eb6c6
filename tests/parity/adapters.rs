//! Adapters other than plain LoRA act on the model as in PEFT and LyCORIS, which wrote the files.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use kiln::{
    lora::{Lora, inspect},
    models::{
        Network,
        text::{PromptEmbeds, TextEncoders},
        unet::{UNet, UNetInputs},
    },
    nn::Linears,
    rng::{Purpose, Seed},
    selftest::flux,
    tokenizer::PromptIds,
    weights::{TensorFile, write_tensors},
};

use crate::support::{Golden, goldens};

fn folder(model: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adapters").join(model)
}

fn golden(class: &str, name: &str) -> Option<Golden> {
    goldens(class).into_iter().find(|golden| golden.model.file_name().is_some_and(|file| file == name))
}

/// Every file or PEFT folder of a model.
fn adapters(model: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder(model)).unwrap().flatten().map(|entry| entry.path());
    let mut found: Vec<_> = entries.filter(|path| !path.ends_with("outputs.safetensors")).collect();
    found.sort();
    found
}

/// Whether `got` matches the other program: within four times the noise of its own f32, or 1e-4 of the largest value.
#[track_caller]
fn check<const D: usize>(outputs: &TensorFile, case: &str, what: &str, got: Tensor<D>) {
    let wanted = outputs.read_f32(&format!("{case}.f64")).unwrap();
    let wanted = Tensor::<D>::from_data(wanted, (&Device::flex(), DType::F32));
    let largest: f32 = wanted.clone().abs().max().into_scalar();
    let apart: f32 = (got - wanted).abs().max().into_scalar();
    assert!(apart <= 1e-4 * largest, "{case} {what}: {apart} of {largest}");
}

/// Attached and merged, each adapter of `model` gives the output of its own program.
fn run<N: Network + Clone, const D: usize>(
    name: &str,
    model: &N,
    inputs: &N::Inputs,
    shape: impl Fn(Tensor<4>) -> Tensor<D>,
) {
    let outputs = TensorFile::open(folder(name).join("outputs.safetensors")).unwrap();
    let base: Tensor<D> = shape(model.predict(inputs, &[]));
    let mut seen = BTreeSet::new();
    for path in adapters(name) {
        let case = path.file_stem().unwrap().to_str().unwrap().to_string();
        let lora = Lora::read(&path).unwrap();
        let adapters = lora.adapters_for(&model.wearable(), &Device::flex(), 1.0).unwrap();
        let worn = shape(model.predict(inputs, std::slice::from_ref(&adapters)));
        let changed: f32 = (worn.clone() - base.clone()).abs().max().into_scalar();
        assert!(changed > 1e-3, "{case} changes nothing");
        check(&outputs, &case, "worn", worn.clone());
        // The gain computed on first use is used again.
        check(&outputs, &case, "worn again", shape(model.predict(inputs, &[adapters])));
        let mut merged = model.clone();
        lora.merge(&mut merged, 1.0).unwrap();
        check(&outputs, &case, "merged", shape(merged.predict(inputs, &[])));
        let summary = inspect(&path).unwrap().lora.unwrap();
        assert!(summary.problems.is_empty(), "{case}: {:?}", summary.problems);
        seen.extend(summary.kinds.into_keys());
        // At scale zero it has no effect, except for the row norms that DoRA sets.
        if lora.foreign.iter().all(|layer| layer.magnitude.is_none()) {
            let none = lora.adapters_for(&model.wearable(), &Device::flex(), 0.0).unwrap();
            let apart: f32 = (shape(model.predict(inputs, &[none])) - base.clone()).abs().max().into_scalar();
            assert!(apart < 1e-5, "{case}: {apart}");
        }
    }
    assert!(["DoRA", "LoKr", "LoHa", "LoRA"].iter().all(|kind| seen.contains(*kind)), "{seen:?}");
}

#[test]
fn adapters_of_a_transformer_give_the_output_of_their_own_program() {
    let Some(golden) = golden("FluxPipeline", "flux") else { return };
    let model = flux::open(&golden, FloatDType::F32).unwrap();
    let inputs = flux::inputs(&golden, &model, "lora", FloatDType::F32).unwrap();
    run("flux", &model, &inputs, |y| y.squeeze_dim::<3>(1));
}

#[test]
fn adapters_of_a_unet_and_its_convolutions_give_the_output_of_their_own_program() {
    let Some(golden) = golden("StableDiffusionPipeline", "sd") else { return };
    let model = UNet::open(golden.model.join("unet"), &Device::flex(), Some(FloatDType::F32)).unwrap();
    let inputs = UNetInputs {
        sample: golden.tensor("lora.sample"),
        timestep: golden.tensor("lora.timestep"),
        text: golden.tensor("lora.encoder_hidden_states"),
        limits: kiln::limits::Limits::NONE,
    };
    run("sd", &model, &inputs, |y| y);
}

/// A pair of matrices and an alpha under kohya's name of a module.
fn pair(module: &str, [outputs, inputs]: [usize; 2], seed: u64) -> [(String, TensorData); 3] {
    let draw = |part: &str, count| Seed(seed).named(Purpose::Noise, part).normal(count);
    [
        (format!("{module}.lora_down.weight"), TensorData::new(draw("down", 2 * inputs), [2, inputs])),
        (format!("{module}.lora_up.weight"), TensorData::new(draw("up", 2 * outputs), [outputs, 2])),
        (format!("{module}.alpha"), TensorData::new(vec![1f32], Vec::<usize>::new())),
    ]
}

#[test]
fn parts_for_text_encoders_change_the_embeddings_as_changed_weights_would() {
    let Some(golden) = golden("FluxPipeline", "flux") else { return };
    let open = || TextEncoders::open(&golden.model, &Device::flex(), Some(FloatDType::F32)).unwrap();
    let mut layers = BTreeMap::new();
    open().linears("", &mut |name, layer| _ = layers.insert(name.to_string(), layer.weight().dims()));
    let clip = "text_encoder.encoder.layers.1.self_attn.q_proj";
    let t5 = "text_encoder_2.encoder.block.0.layer.1.DenseReluDense.wi_0";
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("te.safetensors");
    let tensors = [
        pair("lora_te1_text_model_encoder_layers_1_self_attn_q_proj", layers[clip], 1),
        pair("lora_te3_encoder_block_0_layer_1_DenseReluDense_wi_0", layers[t5], 2),
    ];
    write_tensors(&path, &tensors.into_iter().flatten().collect(), &BTreeMap::new()).unwrap();
    let lora = Lora::read(&path).unwrap();
    assert!(lora.layers.is_empty() && lora.foreign.len() == 2);
    let adapters = lora.text_adapters(&Device::flex(), 0.5);
    assert!(adapters.contains(clip) && adapters.contains(t5));

    let ids = PromptIds { clip: vec![1, 2, 3, 4, 5, 6], t5: vec![3, 4, 5, 1] };
    let embeds = |text: &TextEncoders| {
        let PromptEmbeds { prompt, pooled } = text.encode(std::slice::from_ref(&ids));
        (prompt, pooled)
    };
    let apart = |one: &(Tensor<3>, Tensor<2>), other: &(Tensor<3>, Tensor<2>)| -> [f32; 2] {
        let prompt = (one.0.clone() - other.0.clone()).abs().max().into_scalar();
        [prompt, (one.1.clone() - other.1.clone()).abs().max().into_scalar()]
    };
    let base = embeds(&open());
    let (mut worn, mut merged) = (open(), open());
    worn.wear(&adapters);
    merged.linears("", &mut |name, layer| adapters.of(name).iter().for_each(|adapter| layer.merge(adapter)));
    let (worn, merged) = (embeds(&worn), embeds(&merged));
    assert!(apart(&worn, &base).iter().all(|apart| *apart > 1e-2), "both encoders change");
    assert!(apart(&worn, &merged).iter().all(|apart| *apart < 1e-4));
}

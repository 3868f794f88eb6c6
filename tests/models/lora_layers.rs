//! LoRA on the layers of a model: targets, initial values, attaching, merging.

use std::collections::BTreeSet;

use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use kiln::{
    kernels,
    lora::{Denoiser, Init, Lora, LoraConfig, LoraLayer, Targets, export},
    nn::{Adapters, Linear, Weight},
    rng::Seed,
    weights::FileDtype,
};

use crate::support::{
    goldens,
    lora::{FORMATS, Layers, deltas, diffusers_file, each, folders, transformer},
};

#[test]
fn a_new_adapter_changes_nothing_and_can_be_exported() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("out.safetensors");
    let golden = &goldens("FluxPipeline")[0];
    let config = LoraConfig { targets: Targets::All, rank: 3, ..LoraConfig::default() };
    let lora =
        Lora::init(&config, Denoiser::Transformer, Seed(1), &transformer(golden).shapes(), &Device::flex()).unwrap();
    assert!(lora.layers.iter().all(|layer| layer.norm() == 0.0));
    for format in FORMATS {
        assert_eq!(export(&lora, &path, format, FileDtype::Bf16).unwrap().difference, 0.0);
        assert_eq!(Lora::read(&path).unwrap().layers.len(), lora.layers.len());
    }
}

#[test]
fn named_targets_are_the_layers_that_diffusers_trains() {
    each(|golden, folder| {
        let theirs: BTreeSet<_> =
            Lora::read(diffusers_file(folder)).unwrap().layers.into_iter().map(|l| l.name).collect();
        let all = folder.file_name().unwrap().to_str().unwrap().contains("_all");
        let targets = if all { Targets::All } else { Targets::Attention };
        let config = LoraConfig { targets, ..LoraConfig::default() };
        let ours = Lora::init(&config, Denoiser::Transformer, Seed(0), &transformer(golden).shapes(), &Device::flex())
            .unwrap();
        assert_eq!(ours.layers.iter().map(|l| l.name.clone()).collect::<BTreeSet<_>>(), theirs, "{}", folder.display());
    });
}

#[test]
fn initial_values_depend_on_seed_and_name_and_have_the_stated_spread() {
    let golden = &goldens("FluxPipeline")[0];
    let init = |seed, init, targets| {
        let config = LoraConfig { rank: 8, init, targets, ..LoraConfig::default() };
        Lora::init(&config, Denoiser::Transformer, Seed(seed), &transformer(golden).shapes(), &Device::flex()).unwrap()
    };
    let values = |layer: &LoraLayer| layer.a.to_data().into_vec::<f32>().unwrap();
    let find = |lora: Lora| lora.layers.into_iter().find(|l| l.name == "transformer_blocks.0.attn.to_k").unwrap();
    let some = find(init(1, Init::Gaussian, Targets::Attention));
    assert_eq!(values(&some), values(&find(init(1, Init::Gaussian, Targets::All))));
    assert_ne!(values(&some), values(&find(init(2, Init::Gaussian, Targets::Attention))));
    for (kind, spread) in [
        (Init::Gaussian, 1.0 / 8.0),
        // The deviation of a uniform number is its bound over the root of three.
        (Init::Kaiming, 1.0 / (3.0 * some.a.dims()[1] as f64).sqrt()),
    ] {
        let all: Vec<f32> = init(3, kind, Targets::Attention).layers.iter().take(6).flat_map(values).collect();
        let found = (all.iter().map(|v| f64::from(v * v)).sum::<f64>() / all.len() as f64).sqrt();
        assert!((found / spread - 1.0).abs() < 0.1, "{kind:?}: {found}, expected {spread}");
    }
}

/// The same layers in f32.
fn exact(layers: &mut Layers) -> Layers {
    let weights = layers.weights().into_iter();
    Layers(weights.map(|(name, weight)| (name, Linear::new(Weight::new(weight.cast(FloatDType::F32))))).collect())
}

#[test]
fn attaching_merging_and_adding_the_change_are_the_same() {
    each(|golden, folder| {
        let lora = Lora::read(diffusers_file(folder)).unwrap();
        let deltas = deltas(&lora);
        let (mut wearing, mut merged, mut base) = (transformer(golden), transformer(golden), transformer(golden));
        for model in [&mut wearing, &mut merged, &mut base] {
            *model = exact(model);
        }
        let adapters = lora.adapters_for(&wearing.shapes(), &Device::flex(), 0.5).unwrap();
        adapters.put_on("", &mut wearing);
        lora.merge(&mut merged, 0.5).unwrap();
        for (i, (name, layer)) in base.0.iter().enumerate() {
            let x = Tensor::<2>::random([3, layer.weight().dims()[1]], Distribution::Default, &Device::flex());
            let mut y = layer.forward(x.clone());
            if let Some(delta) = deltas.get(name) {
                y = y + kernels::matmul(x.clone(), delta.clone().transpose()) * 0.5;
            }
            for model in [&wearing, &merged] {
                let apart: f32 = (model.0[i].1.forward(x.clone()) - y.clone()).abs().max().into_scalar();
                assert!(apart < 1e-4, "{name}: {apart}");
            }
        }
        Adapters::default().put_on("", &mut wearing);
        assert!(wearing.0.iter_mut().all(|(_, layer)| layer.worn_mut().is_empty()));
        for layer in &lora.layers {
            let norm: f32 = layer.delta().square().sum().sqrt().into_scalar();
            assert!((layer.norm() - f64::from(norm)).abs() < 1e-4 * f64::from(norm), "{}", layer.name);
        }
    });
}

#[test]
fn merging_keeps_the_dtype_of_the_weights() {
    for golden in goldens("FluxPipeline") {
        let lora = Lora::read(diffusers_file(&folders(&golden)[0])).unwrap();
        let (mut merged, base) = (transformer(&golden), transformer(&golden));
        lora.merge(&mut merged, 1.0).unwrap();
        for ((name, new), (_, old)) in merged.0.iter().zip(&base.0) {
            assert_eq!(new.weight().dtype(), old.weight().dtype(), "{name}");
        }
    }
}

#[test]
fn an_adapter_for_another_model_is_refused_with_every_misfit() {
    let golden = &goldens("FluxPipeline")[0];
    let lora = Lora::read(diffusers_file(&folders(golden)[0])).unwrap();
    let mut wider = transformer(golden);
    let spared = lora.layers[0].name.clone();
    wider.0.retain(|(name, _)| *name != lora.layers[1].name);
    for (name, layer) in &mut wider.0 {
        if *name != spared {
            let wider = layer.weight().dims().map(|size| size + 2);
            *layer = Linear::new(Weight::new(Tensor::zeros(wider, &Device::flex())));
        }
    }
    let error = lora.adapters_for(&wider.shapes(), &Device::flex(), 1.0).unwrap_err();
    let text = error.problems().join("\n");
    assert!(text.contains("no such layer"), "{text}");
    for layer in &lora.layers[1..] {
        assert!(text.contains(&format!("`{}`", layer.name)), "{} in {text}", layer.name);
    }
    assert!(!text.contains(&format!("`{spared}`")), "{text}");
    let before = wider.weights();
    assert!(lora.merge(&mut wider, 1.0).is_err());
    for ((name, after), (_, before)) in wider.weights().into_iter().zip(before) {
        assert_eq!(after.into_data(), before.into_data(), "{name} was changed");
    }
}

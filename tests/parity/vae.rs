//! The VAE computes what diffusers computes.

use std::collections::BTreeMap;

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use kiln::{
    models::vae::{AutoencoderKl, Moments},
    weights::{TensorFile, read_json, write_tensors},
};
use serde_json::Value;

use crate::support::{Golden, goldens};

fn open(golden: &Golden, dtype: FloatDType) -> AutoencoderKl {
    AutoencoderKl::open(golden.model.join("vae"), &Device::flex(), Some(dtype)).unwrap()
}

fn cases(golden: &Golden) -> Vec<String> {
    let names = golden.names("vae.").into_iter();
    names.filter_map(|name| name.strip_suffix(".pixels").map(String::from)).collect()
}

fn vae_agrees(pipeline: &str) {
    for golden in goldens(pipeline) {
        let vae = open(&golden, FloatDType::F32);
        let cases = cases(&golden);
        assert!(!cases.is_empty());
        for case in cases {
            let [mean, noise, sample] = ["mean", "noise", "sample"].map(|part| format!("{case}.{part}"));
            let moments = vae.encode(golden.tensor(&format!("{case}.pixels")));
            golden.check(&mean, moments.mode());
            golden.check(&format!("{case}.std"), moments.deviation());
            golden.check(&sample, moments.sample(golden.tensor(&noise)));
            let scaled = vae.latent_scale().normalize(golden.tensor(&sample));
            golden.check(&format!("{case}.scaled_latents"), scaled.clone());
            golden.check(&sample, vae.latent_scale().denormalize(scaled));
            golden.check(&format!("{case}.moments"), moments.into_tensor());
            golden.check(&format!("{case}.decoded"), vae.decode(golden.tensor(&sample)));
        }
    }
}

#[test]
fn vae_of_flux_agrees_with_diffusers() {
    vae_agrees("FluxPipeline");
}

#[test]
fn moments_survive_a_round_trip_through_a_tensor() {
    let golden = &goldens("FluxPipeline")[0];
    let moments = Moments::from_tensor(golden.tensor("vae.0.moments"));
    golden.check("vae.0.mean", moments.mode());
    golden.check("vae.0.std", moments.deviation());
}

#[test]
fn vae_in_bf16_stays_within_its_precision() {
    for golden in goldens("FluxPipeline") {
        let vae = open(&golden, FloatDType::BF16);
        for case in cases(&golden) {
            let moments = vae.encode(golden.tensor(&format!("{case}.pixels")));
            let decoded = vae.decode(golden.tensor(&format!("{case}.sample")));
            assert_eq!(FloatDType::from(decoded.dtype()), FloatDType::BF16);
            golden.check_roughly(&format!("{case}.mean"), moments.mode(), 0.05);
            golden.check_roughly(&format!("{case}.decoded"), decoded, 0.05);
        }
    }
}

#[test]
fn a_batch_is_its_samples_one_by_one() {
    for golden in goldens("FluxPipeline") {
        let vae = open(&golden, FloatDType::F32);
        let pixels: Tensor<4> = golden.tensor("vae.0.pixels");
        let each = pixels.split(1, 0).into_iter().map(|one| vae.encode(one).into_tensor()).collect();
        golden.check("vae.0.moments", Tensor::cat(each, 0));
    }
}

/// A copy of a `vae/` folder with other tensors and another config.
fn altered(
    golden: &Golden,
    tensors: impl Fn(BTreeMap<String, TensorData>) -> BTreeMap<String, TensorData>,
    config: impl Fn(&mut Value),
) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(golden.model.join("vae")).unwrap().flatten() {
        if entry.path().extension().is_some_and(|e| e == "safetensors") {
            let file = TensorFile::open(entry.path()).unwrap();
            all.extend(file.names().into_iter().map(|name| (name.clone(), file.read_f32(&name).unwrap())));
        }
    }
    let path = folder.path().join("diffusion_pytorch_model.safetensors");
    write_tensors(path, &tensors(all), &BTreeMap::new()).unwrap();
    let mut settings: Value = read_json(golden.model.join("vae/config.json")).unwrap();
    config(&mut settings);
    std::fs::write(folder.path().join("config.json"), settings.to_string()).unwrap();
    folder
}

#[test]
fn attention_of_the_first_releases_means_the_same() {
    for golden in goldens("FluxPipeline") {
        let old_names = |all: BTreeMap<String, TensorData>| {
            let old = |(name, data): (String, TensorData)| {
                let new = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
                match new.iter().find(|(new, _)| name.contains(&format!("attentions.0.{new}."))) {
                    Some((new, old)) => {
                        let mut shape = data.shape.to_vec();
                        if name.ends_with("weight") {
                            shape.extend([1, 1]);
                        }
                        (name.replace(new, old), TensorData::new(data.into_vec::<f32>().unwrap(), shape))
                    }
                    None => (name, data),
                }
            };
            all.into_iter().map(old).collect()
        };
        let folder = altered(&golden, old_names, |_| ());
        let vae = AutoencoderKl::open(folder.path(), &Device::flex(), None).unwrap();
        golden.check("vae.0.mean", vae.encode(golden.tensor("vae.0.pixels")).mode());
    }
}

#[test]
fn pointwise_convolutions_stand_after_the_encoder_and_before_the_decoder() {
    for golden in goldens("FluxPipeline") {
        let channels = golden.shape("vae.0.mean")[1];
        // Twice the identity after the encoder, half of it before the decoder.
        let with_convolutions = |mut all: BTreeMap<String, TensorData>| {
            for (name, size, gain) in [("quant_conv", 2 * channels, 2.0), ("post_quant_conv", channels, 0.5)] {
                let eye = Tensor::<2>::eye(size, &Device::flex()) * gain;
                all.insert(format!("{name}.weight"), eye.reshape([size, size, 1, 1]).into_data());
                all.insert(format!("{name}.bias"), TensorData::zeros::<f32, _>([size]));
            }
            all
        };
        let switch = |config: &mut Value| {
            config["use_quant_conv"] = true.into();
            config["use_post_quant_conv"] = true.into();
        };
        let folder = altered(&golden, with_convolutions, switch);
        let vae = AutoencoderKl::open(folder.path(), &Device::flex(), None).unwrap();
        golden.check("vae.0.mean", vae.encode(golden.tensor("vae.0.pixels")).mode() / 2.0);
        golden.check("vae.0.decoded", vae.decode(golden.tensor::<4>("vae.0.sample") * 2.0));
    }
}

#[test]
fn a_config_of_another_size_is_one_error_that_names_the_tensors() {
    let golden = &goldens("FluxPipeline")[0];
    let folder = altered(golden, |all| all, |config| config["use_quant_conv"] = true.into());
    let error = AutoencoderKl::open(folder.path(), &Device::flex(), None).unwrap_err().to_string();
    assert!(error.contains("`quant_conv.weight` is missing"), "{error}");
}

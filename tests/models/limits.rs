//! Limits on how much is computed at once change no result: on the CPU in f32 they give the same bits as without limits.

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use kiln::{
    lending::Residence,
    limits::Limits,
    lora::{Denoiser, Lora, LoraConfig, Targets},
    models::{
        Network,
        flux::{FluxInputs, FluxTransformer},
        text::PromptEmbeds,
        unet::{UNet, UNetInputs},
        vae::{AutoencoderKl, VaeConfig},
    },
    nn::Adapters,
    pipelines::{FluxPipeline, Pipeline, Request, StableDiffusionPipeline},
    rng::{Purpose, Seed},
    training::{
        OptimizerConfig,
        backward::{Subject, backward, blockwise, full},
        optimizer::AdamW,
    },
    weights::Weights,
};

use crate::support::{Golden, goldens};

/// Every limit by itself, as low as possible, and all of them together.
fn each_limit() -> [(&'static str, Limits); 5] {
    let attention_scores = Some(1);
    let feed_forward_tokens = Some(1);
    let (vae_rows, vae_images) = (Some(6), Some(1));
    [
        ("scores", Limits { attention_scores, ..Limits::NONE }),
        ("tokens", Limits { feed_forward_tokens, ..Limits::NONE }),
        ("rows", Limits { vae_rows, ..Limits::NONE }),
        ("images", Limits { vae_images, ..Limits::NONE }),
        ("all", Limits { attention_scores, feed_forward_tokens, vae_rows, vae_images }),
    ]
}

fn normal<const D: usize>(shape: [usize; D], name: &str) -> Tensor<D> {
    let numbers = Seed(5).named(Purpose::Noise, name).normal(shape.iter().product());
    Tensor::from_data(TensorData::new(numbers, shape), &Device::flex())
}

fn bits<const D: usize>(tensor: Tensor<D>) -> Vec<u32> {
    tensor.into_data().iter::<f32>().map(f32::to_bits).collect()
}

/// A VAE of four levels that is wide enough for every way of computing a convolution.
fn wide_vae(dtype: FloatDType) -> AutoencoderKl {
    let config: VaeConfig = serde_json::from_value(serde_json::json!({
        "_class_name": "AutoencoderKL",
        "block_out_channels": [16, 32, 48, 64],
        "down_block_types": vec!["DownEncoderBlock2D"; 4],
        "up_block_types": vec!["UpDecoderBlock2D"; 4],
        "norm_num_groups": 8,
        "layers_per_block": 2,
    }))
    .unwrap();
    let weights = Weights::random(Seed(3), &Device::flex(), Some(dtype));
    AutoencoderKl::load(&weights, config, Residence::Resident)
}

fn vaes(dtype: FloatDType) -> Vec<AutoencoderKl> {
    let open = |golden: Golden| AutoencoderKl::open(golden.model.join("vae"), &Device::flex(), Some(dtype)).unwrap();
    let own = ["FluxPipeline", "StableDiffusionPipeline"].into_iter().flat_map(goldens).map(open);
    own.chain([wide_vae(dtype)]).collect()
}

/// Sizes of latents that bands of no number of rows divide, wide, high and square.
const SIZES: [[usize; 2]; 5] = [[1, 3], [5, 9], [13, 4], [8, 8], [17, 21]];

#[test]
fn a_vae_in_bands_has_the_bits_of_the_whole_image() {
    for vae in vaes(FloatDType::F32) {
        for [height, width] in SIZES {
            let latents = normal([2, vae.latent_channels(), height, width], "latents");
            let factor = vae.downsampling();
            let pixels = normal([2, 3, factor * height, factor * width], "pixels");
            let decoded = bits(vae.decode(latents.clone()));
            let encoded = bits(vae.encode(pixels.clone()).into_tensor());
            for rows in [1, 4, 10, 64] {
                let limits = Limits { vae_rows: Some(rows), ..Limits::NONE };
                let what = format!("{:?}, {height} × {width} in {rows} rows", vae.config.block_out_channels);
                assert!(bits(vae.decode_within(latents.clone(), &limits)) == decoded, "decoding: {what}");
                assert!(bits(vae.encode_within(pixels.clone(), &limits).into_tensor()) == encoded, "encoding: {what}");
            }
        }
    }
}

#[test]
fn images_have_the_bits_of_their_batch_one_by_one() {
    for vae in vaes(FloatDType::F32) {
        for [height, width] in SIZES {
            let latents = normal([3, vae.latent_channels(), height, width], "latents");
            let factor = vae.downsampling();
            let pixels = normal([3, 3, factor * height, factor * width], "pixels");
            for images in 1..=2 {
                let limits = Limits { vae_images: Some(images), ..Limits::NONE };
                let decoded = vae.decode_within(latents.clone(), &limits);
                assert!(bits(decoded) == bits(vae.decode(latents.clone())), "{height} × {width}");
                let encoded = vae.encode_within(pixels.clone(), &limits).into_tensor();
                assert!(bits(encoded) == bits(vae.encode(pixels.clone()).into_tensor()), "{height} × {width}");
            }
        }
    }
}

/// In bf16 the backend sums in its own order, so bands may round differently: within the precision of bf16's eight bits.
#[test]
fn a_vae_in_bf16_is_nearly_the_same_in_bands() {
    for vae in vaes(FloatDType::BF16) {
        let latents = normal([1, vae.latent_channels(), 9, 13], "latents");
        let limits = Limits { vae_rows: Some(6), ..Limits::NONE };
        let [whole, bands] =
            [vae.decode(latents.clone()), vae.decode_within(latents, &limits)].map(|t| t.cast(FloatDType::F32));
        let largest: f32 = whole.clone().abs().max().into_scalar();
        let difference: f32 = (whole - bands).abs().max().into_scalar();
        assert!(difference <= 0.04 * largest, "{difference} of {largest}");
    }
}

/// A side of latents for which the tokens are divided, in a UNet and, of patches, in FLUX.
const UNET_SIDE: usize = 34;
const FLUX_SIDE: usize = 68;

fn flux(golden: &Golden) -> (FluxTransformer, FluxInputs) {
    let folder = golden.model.join("transformer");
    let model = FluxTransformer::open(folder, &Device::flex(), Some(FloatDType::F32)).unwrap();
    let (config, tokens) = (&model.config, (FLUX_SIDE / 2).pow(2));
    let inputs = FluxInputs {
        img: normal([1, tokens, config.in_channels], "img"),
        txt: normal([1, 7, config.joint_attention_dim], "txt"),
        pooled: normal([1, config.pooled_projection_dim], "pooled").reshape([1, config.pooled_projection_dim]),
        sigma: Tensor::full([1], 0.6, &Device::flex()),
        guidance: Tensor::full([1], 3.5, &Device::flex()),
        rope: config.rope(7, FLUX_SIDE, FLUX_SIDE, &Device::flex()),
        limits: Limits::NONE,
    };
    (model, inputs)
}

fn unet(golden: &Golden) -> (UNet, UNetInputs) {
    let model = UNet::open(golden.model.join("unet"), &Device::flex(), Some(FloatDType::F32)).unwrap();
    let config = &model.config;
    let inputs = UNetInputs {
        sample: normal([1, config.in_channels, UNET_SIDE, UNET_SIDE], "sample"),
        timestep: Tensor::full([1], 500.0, &Device::flex()),
        text: normal([1, 7, config.cross_attention_dim], "text"),
        limits: Limits::NONE,
    };
    (model, inputs)
}

/// Adapters on every linear layer, both of whose matrices are random.
fn lora(denoiser: Denoiser, model: &impl Network) -> Lora {
    let config = LoraConfig { rank: 4, targets: Targets::All, ..LoraConfig::default() };
    let mut lora = Lora::init(&config, denoiser, Seed(4), &model.layers(), &Device::flex()).unwrap();
    for layer in &mut lora.layers {
        layer.b = normal(layer.b.dims(), &layer.name) * 0.1;
    }
    lora
}

/// The prediction, and the loss and all gradients of adapters and, where the model has them, of weights.
fn everything<M: Network>(model: &M, adapters: &Adapters, inputs: &M::Inputs, weights: bool) -> Vec<Vec<u32>> {
    let mut all = vec![bits(model.predict(inputs, std::slice::from_ref(adapters)))];
    let subjects = [Some(Subject::Adapters(adapters)), weights.then_some(Subject::Weights)];
    for subject in subjects.into_iter().flatten() {
        for groups in [blockwise(model.len()), full(model.len())] {
            let (loss, gradients) = backward(model, subject, inputs, &groups, |y| y.square().mean());
            assert!(!gradients.is_empty());
            all.push(bits(loss));
            all.extend(gradients.into_values().map(bits));
        }
    }
    all
}

#[test]
fn flux_predicts_and_learns_the_same_within_limits() {
    for golden in goldens("FluxPipeline") {
        let (model, inputs) = flux(&golden);
        let plain = lora(Denoiser::Transformer, &model).adapters(1.0);
        for adapters in [plain.clone(), plain.dropping_out(0.3, Seed(3), 5, 0)] {
            let expected = everything(&model, &adapters, &inputs, false);
            for (name, limits) in each_limit() {
                let inputs = FluxInputs { limits, ..inputs.clone() };
                assert!(everything(&model, &adapters, &inputs, false) == expected, "{name}");
            }
        }
    }
}

#[test]
fn a_unet_predicts_and_learns_the_same_within_limits() {
    for golden in goldens("StableDiffusionPipeline") {
        let (model, inputs) = unet(&golden);
        let adapters = lora(Denoiser::Unet, &model).adapters(1.0);
        let expected = everything(&model, &adapters, &inputs, true);
        for (name, limits) in each_limit() {
            let inputs = UNetInputs { limits, ..inputs.clone() };
            assert!(everything(&model, &adapters, &inputs, true) == expected, "{name}");
        }
    }
}

/// Adapters after 50 steps of AdamW, block by block.
fn trained<M: Network>(denoiser: Denoiser, model: &M, mut inputs: impl FnMut(u64) -> M::Inputs) -> Vec<Vec<u32>> {
    let mut lora = lora(denoiser, model);
    let mut optimizer = AdamW::new(OptimizerConfig::default());
    for step in 0..50 {
        let adapters = lora.adapters(1.0);
        let subject = Subject::Adapters(&adapters);
        let groups = blockwise(model.len());
        let (_, gradients) = backward(model, subject, &inputs(step), &groups, |y| (y - 0.1).square().mean());
        optimizer.step(1e-3, &mut lora, gradients, &Tensor::ones([1], &Device::flex()));
    }
    lora.layers.iter().flat_map(|layer| [bits(layer.a.clone()), bits(layer.b.clone())]).collect()
}

#[test]
fn fifty_training_steps_are_the_same_within_limits() {
    let all = each_limit()[4].1;
    let flux_model = flux(&goldens("FluxPipeline")[0]);
    let unet_model = unet(&goldens("StableDiffusionPipeline")[0]);
    let run = |limits| {
        let (model, inputs) = &flux_model;
        let flux = trained(Denoiser::Transformer, model, |step| {
            let img = inputs.img.clone() * (1.0 + step as f32 / 50.0);
            FluxInputs { img, limits, ..inputs.clone() }
        });
        let (model, inputs) = &unet_model;
        let unet = trained(Denoiser::Unet, model, |step| {
            let sample = inputs.sample.clone() * (1.0 + step as f32 / 50.0);
            UNetInputs { sample, limits, ..inputs.clone() }
        });
        [flux, unet]
    };
    assert!(run(all) == run(Limits::NONE));
}

fn pipelines() -> Vec<(Box<dyn Pipeline>, PromptEmbeds)> {
    let (device, dtype) = (Device::flex(), FloatDType::F32);
    let text =
        |width, pooled| PromptEmbeds { prompt: normal([2, 7, width], "prompt"), pooled: normal([2, pooled], "pooled") };
    let flux = FluxPipeline::open(&goldens("FluxPipeline")[0].model, &device, dtype).unwrap();
    let config = &flux.transformer.config;
    let of_flux = text(config.joint_attention_dim, config.pooled_projection_dim);
    let sd = StableDiffusionPipeline::open(&goldens("StableDiffusionPipeline")[0].model, &device, dtype).unwrap();
    let of_sd = text(sd.unet.config.cross_attention_dim, 1);
    vec![(Box::new(flux), of_flux), (Box::new(sd), of_sd)]
}

#[test]
fn latents_and_images_are_the_same_within_limits() {
    for (mut pipeline, text) in pipelines() {
        let factor = pipeline.vae().downsampling();
        // As many tokens as in the tests above.
        let side = factor * if text.pooled.dims()[1] > 1 { FLUX_SIDE } else { UNET_SIDE };
        let noise = (0..2).map(|seed| pipeline.start_noise(seed, side, side)).collect();
        let request = Request::new(text, Tensor::cat(noise, 0), vec![0, 1], 2);
        let mut expected = None;
        for (name, limits) in std::iter::once(("none", Limits::NONE)).chain(each_limit()) {
            pipeline.limit(limits);
            let latents = pipeline.generate(&request, &mut |_| ()).unwrap();
            let images = pipeline.decode(latents.clone()).unwrap();
            let again: Vec<_> = images.iter().map(|image| image.as_raw().clone()).collect();
            let moments = bits(pipeline.encode(&images).into_tensor());
            let got = (bits(latents), again, moments);
            let expected = expected.get_or_insert_with(|| got.clone());
            assert!(got == *expected, "{name}");
        }
    }
}

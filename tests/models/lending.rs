//! Wherever weights lie and whichever adapters are attached, the results are the same, bit for bit.

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use kiln::{
    lending::Residence::{self, Resident, Single, Streamed},
    lora::{Denoiser, Lora, LoraConfig, Targets},
    models::{
        Network,
        flux::FluxTransformer,
        text::PromptEmbeds,
        unet::{UNet, UNetInputs},
    },
    nn::Adapters,
    pipelines::{FluxPipeline, Pipeline, Request, StableDiffusionPipeline},
    rng::{Purpose, Seed},
    selftest::{flux, unet},
    training::backward::{Subject, backward, blockwise, full},
};

use crate::support::{
    Golden, goldens,
    quantized::{self as models, ALL},
};

const UNETS: [&str; 2] = ["StableDiffusionPipeline", "StableDiffusionInstructPix2PixPipeline"];

/// Everywhere that weights may lie.
const EVERYWHERE: [Residence; 3] = [Resident, Streamed, Single];

/// An adapter of this rank on every linear layer, both of whose matrices are random.
fn adapters(denoiser: Denoiser, model: &impl Network, rank: usize) -> Adapters {
    let config = LoraConfig { rank, targets: Targets::All, ..LoraConfig::default() };
    let mut lora = Lora::init(&config, denoiser, Seed(rank as u64), &model.layers(), &Device::flex()).unwrap();
    for layer in &mut lora.layers {
        let [outputs, rank] = layer.b.dims();
        let numbers = Seed(1).named(Purpose::Noise, &layer.name).normal(outputs * rank);
        layer.b = Tensor::from_data(TensorData::new(numbers, [outputs, rank]), &Device::flex()) * 0.1;
    }
    lora.adapters(1.0)
}

fn bits<const D: usize>(tensor: Tensor<D>) -> Vec<u32> {
    tensor.into_data().iter::<f32>().map(f32::to_bits).collect()
}

/// The result of one backward pass: the loss and every gradient, by name.
fn step<M: Network>(model: &M, subject: Subject, inputs: &M::Inputs, groups: &[std::ops::Range<usize>]) -> Step {
    let (loss, gradients) = backward(model, subject, inputs, groups, |prediction| prediction.square().mean());
    assert!(!gradients.is_empty(), "something is trained");
    (bits(loss), gradients.into_iter().map(|(name, gradient)| (name, bits(gradient))).collect())
}

type Step = (Vec<u32>, Vec<(String, Vec<u32>)>);

/// Asserts that all ways to compute gradients agree bit for bit: of each model, block by block and as a whole.
fn all_ways_are_one<M: Network>(models: &[M], inputs: &M::Inputs, subject: Subject) {
    let count = models[0].len();
    let expected = step(&models[0], subject, inputs, &full(count));
    for model in models {
        for groups in [blockwise(count), full(count)] {
            let found = step(model, subject, inputs, &groups);
            assert_eq!(found.0, expected.0, "the loss");
            for (found, expected) in found.1.iter().zip(&expected.1) {
                assert!(found == expected, "the gradient of {} and {}", found.0, expected.0);
            }
            assert_eq!(found.1.len(), expected.1.len());
        }
    }
}

fn open_flux(golden: &Golden, residence: Residence) -> FluxTransformer {
    let (folder, dtype) = (golden.model.join("transformer"), Some(FloatDType::F32));
    FluxTransformer::open_as(residence, folder, &Device::flex(), dtype).unwrap()
}

fn open_unet(golden: &Golden, residence: Residence) -> UNet {
    UNet::open_as(residence, golden.model.join("unet"), &Device::flex(), Some(FloatDType::F32)).unwrap()
}

#[test]
fn flux_has_one_loss_and_one_gradient_wherever_its_weights_lie_and_whatever_is_kept() {
    for golden in goldens("FluxPipeline") {
        let models = EVERYWHERE.map(|residence| open_flux(&golden, residence));
        let inputs = flux::inputs(&golden, &models[0], "transformer.2", FloatDType::F32).unwrap();
        let adapters = adapters(Denoiser::Transformer, &models[1], 4);
        all_ways_are_one(&models, &inputs, Subject::Adapters(&adapters));
        let dropping = adapters.dropping_out(0.3, Seed(3), 5, 0);
        all_ways_are_one(&models, &inputs, Subject::Adapters(&dropping));
    }
}

#[test]
fn a_unet_has_one_loss_and_one_gradient_wherever_its_weights_lie_and_whatever_is_kept() {
    for golden in UNETS.into_iter().flat_map(goldens) {
        let mut models = EVERYWHERE.map(|residence| open_unet(&golden, residence));
        let inputs = unet::inputs(&golden, "unet.2", FloatDType::F32).unwrap();
        all_ways_are_one(&models, &inputs, Subject::Adapters(&adapters(Denoiser::Unet, &models[1], 4)));
        all_ways_are_one(&models, &inputs, Subject::Weights);
        // A streamed model is widened every time its first layer is read.
        let channels = models[0].config.in_channels;
        models.iter_mut().for_each(|model| model.widen(2 * channels));
        let sample = Tensor::cat(vec![inputs.sample.clone(), inputs.sample.clone() * 0.5], 1);
        let wide = UNetInputs { sample, ..inputs };
        all_ways_are_one(&models, &wide, Subject::Weights);
    }
}

#[test]
fn quantized_models_have_one_loss_and_one_gradient_wherever_they_lie_and_are_the_dense_ones() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::flex();
    for to in ALL {
        for golden in goldens("FluxPipeline") {
            let quantized = models::quantized(&golden.model, "transformer", to, folder.path());
            let dense = models::dense(&golden.model, "transformer", &quantized);
            let open = |residence, model: &std::path::Path| {
                FluxTransformer::open_as(residence, model.join("transformer"), &device, Some(FloatDType::F32)).unwrap()
            };
            let models = EVERYWHERE.map(|residence| open(residence, &quantized));
            let inputs = flux::inputs(&golden, &models[0], "transformer.2", FloatDType::F32).unwrap();
            let adapters = adapters(Denoiser::Transformer, &models[1], 4);
            let format = format!("{to:?}").to_lowercase();
            assert!(models.iter().all(|model| model.lender().quantized() == Some(format.as_str())), "{format}");
            all_ways_are_one(&models, &inputs, Subject::Adapters(&adapters));
            let [resident, ..] = models;
            all_ways_are_one(&[open(Resident, &dense), resident], &inputs, Subject::Adapters(&adapters));
        }
        for golden in UNETS.into_iter().flat_map(goldens) {
            let quantized = models::quantized(&golden.model, "unet", to, folder.path());
            let dense = models::dense(&golden.model, "unet", &quantized);
            let open = |residence, model: &std::path::Path| {
                UNet::open_as(residence, model.join("unet"), &device, Some(FloatDType::F32)).unwrap()
            };
            let models = EVERYWHERE.map(|residence| open(residence, &quantized));
            let inputs = unet::inputs(&golden, "unet.2", FloatDType::F32).unwrap();
            let adapters = adapters(Denoiser::Unet, &models[1], 4);
            all_ways_are_one(&models, &inputs, Subject::Adapters(&adapters));
            let [resident, ..] = models;
            all_ways_are_one(&[open(Resident, &dense), resident], &inputs, Subject::Adapters(&adapters));
        }
    }
}

/// Random embeddings for `rows` images.
fn text(rows: usize, tokens: usize, width: usize, pooled: usize) -> PromptEmbeds {
    let draw = |name: &str, count| Seed(7).named(Purpose::Noise, name).normal(count);
    let prompt = TensorData::new(draw("prompt", rows * tokens * width), [rows, tokens, width]);
    let pooled = TensorData::new(draw("pooled", rows * pooled), [rows, pooled]);
    let device = Device::flex();
    PromptEmbeds { prompt: Tensor::from_data(prompt, &device), pooled: Tensor::from_data(pooled, &device) }
}

/// Four images, 40 × 56, each of its own prompt and noise.
fn request(pipeline: &dyn Pipeline, text: PromptEmbeds) -> Request {
    let step = pipeline.sizes().step;
    let noise = (0..4).map(|seed| pipeline.start_noise(seed, 5 * step, 7 * step));
    Request::new(text, Tensor::cat(noise.collect(), 0), vec![0, 1, 2, 3], 2)
}

/// The same for one image of it.
fn alone(request: &Request, row: usize) -> Request {
    let one = |embeds: &PromptEmbeds| PromptEmbeds {
        prompt: embeds.prompt.clone().narrow(0, row, 1),
        pooled: embeds.pooled.clone().narrow(0, row, 1),
    };
    Request {
        text: one(&request.text),
        noise: request.noise.clone().narrow(0, row, 1),
        seeds: vec![request.seeds[row]],
        original: request.original.clone().map(|(latents, scale)| (latents.narrow(0, row, 1), scale)),
        adapters: vec![request.adapters[row].clone()],
        ..request.clone()
    }
}

fn latents(pipeline: &dyn Pipeline, request: &Request) -> Vec<u32> {
    bits(pipeline.generate(request, &mut |_| ()).unwrap())
}

/// Asserts that images are the same from all, and that each of a batch is the one that it is alone.
fn pictures_are_the_same(pipelines: [&dyn Pipeline; 3], request: &Request) {
    let [resident, streamed, single] = pipelines.map(|pipeline| latents(pipeline, request));
    assert_eq!(resident, streamed, "from resident and from streamed weights");
    assert_eq!(resident, single, "from resident weights and from one part at a time");
    let pixels = |pipeline: &dyn Pipeline| {
        let made = pipeline.generate(request, &mut |_| ()).unwrap();
        pipeline.decode(made).unwrap().into_iter().map(|picture| picture.into_raw()).collect::<Vec<_>>()
    };
    let [resident_pixels, streamed_pixels, single_pixels] = pipelines.map(pixels);
    assert_eq!(resident_pixels, streamed_pixels);
    assert_eq!(resident_pixels, single_pixels);
    let each: Vec<_> = (0..4).flat_map(|row| latents(pipelines[0], &alone(request, row))).collect();
    assert_eq!(resident, each, "four rows together and one by one");
    let rows: Vec<_> = resident.chunks(resident.len() / 4).collect();
    assert!(rows.windows(2).all(|pair| pair[0] != pair[1]), "they are four images");
}

#[test]
fn four_rows_of_flux_with_four_adapters_give_the_images_they_give_alone() {
    for golden in goldens("FluxPipeline") {
        let [resident, streamed, single] = EVERYWHERE.map(|residence| {
            FluxPipeline::open_as(residence, &golden.model, &Device::flex(), FloatDType::F32).unwrap()
        });
        let config = &resident.transformer.config;
        let text = text(4, 9, config.joint_attention_dim, config.pooled_projection_dim);
        let ranks = [4, 8, 16].map(|rank| adapters(Denoiser::Transformer, &resident.transformer, rank));
        let adapters = ranks.into_iter().chain([Adapters::default()]).collect();
        let request = Request { adapters, guidance: 3.5, ..request(&resident, text) };
        pictures_are_the_same([&resident, &streamed, &single], &request);
    }
}

#[test]
fn four_rows_of_a_unet_with_four_adapters_give_the_images_they_give_alone() {
    for golden in UNETS.into_iter().flat_map(goldens) {
        let [resident, streamed, single] = EVERYWHERE.map(|residence| {
            StableDiffusionPipeline::open_as(residence, &golden.model, &Device::flex(), FloatDType::F32).unwrap()
        });
        let width = resident.unet.config.cross_attention_dim;
        let ranks = [4, 8, 16].map(|rank| adapters(Denoiser::Unet, &resident.unet, rank));
        let adapters = ranks.into_iter().chain([Adapters::default()]).collect();
        let request = Request { adapters, ..request(&resident, text(4, 9, width, 1)) };
        // Guidance makes each image two or three rows of one batch.
        let request = Request {
            negative: Some((self::text(1, 9, width, 1), 5.0)),
            original: resident.edits().then(|| (request.noise.clone() * 0.3, 1.5)),
            ..request
        };
        pictures_are_the_same([&resident, &streamed, &single], &request);
    }
}

#[test]
fn a_batch_without_one_set_of_adapters_per_image_is_refused() {
    let golden = &goldens("FluxPipeline")[0];
    let pipeline = FluxPipeline::open(&golden.model, &Device::flex(), FloatDType::F32).unwrap();
    let config = &pipeline.transformer.config;
    let text = text(4, 9, config.joint_attention_dim, config.pooled_projection_dim);
    let request = Request { adapters: vec![Adapters::default(); 3], ..request(&pipeline, text) };
    let error = pipeline.generate(&request, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("adapters"), "{error}");
}

#[test]
fn streamed_weights_that_do_not_fit_are_found_at_the_start() {
    let golden = &goldens("FluxPipeline")[0];
    let folder = tempfile::tempdir().unwrap();
    crate::support::program::copy(golden.model.join("transformer"), folder.path());
    let mut files = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let path = files.find(|path| path.extension().is_some_and(|kind| kind == "safetensors")).unwrap();
    let mut all: std::collections::BTreeMap<_, _> = crate::support::program::tensors(&path).into_iter().collect();
    let missing = all.keys().find(|name| name.ends_with("proj_mlp.weight")).unwrap().clone();
    let misshapen = all.keys().find(|name| name.ends_with("norm_q.weight")).unwrap().clone();
    let mistyped = all.keys().find(|name| name.ends_with("norm_k.weight")).unwrap().clone();
    all.remove(&missing);
    all.insert(misshapen.clone(), TensorData::zeros::<f32, _>([3]));
    let shape = all[&mistyped].shape.clone();
    all.insert(mistyped.clone(), TensorData::zeros::<i64, _>(shape));
    all.insert("stranger.weight".into(), TensorData::zeros::<f32, _>([2]));
    kiln::weights::write_tensors(&path, &all, &Default::default()).unwrap();
    let errors = EVERYWHERE.map(|residence| {
        FluxTransformer::open_as(residence, folder.path(), &Device::flex(), None).unwrap_err().to_string()
    });
    assert!(errors.iter().all(|error| *error == errors[0]), "all say the same");
    for named in [missing, misshapen, mistyped, "stranger.weight".into()] {
        assert!(errors[1].contains(&format!("`{named}`")), "{named}: {}", errors[1]);
    }
}

#[test]
#[should_panic(expected = "cannot be changed")]
fn a_streamed_model_refuses_to_be_changed() {
    let golden = &goldens("StableDiffusionPipeline")[0];
    let mut model = open_unet(golden, Streamed);
    kiln::nn::Parameters::parameters(&mut model, "", &mut |_, _| ());
}

//! What lending leaves in memory. One test, so that nothing else allocates in this process meanwhile.
#![cfg(target_os = "linux")]

mod support;

use std::{collections::BTreeMap, hash::Hasher, ops::ControlFlow, path::Path};

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use kiln::{
    generation::{Images, SamplingOptions, Session},
    lending::Residence::{self, Resident, Streamed},
    limits::Limits,
    lora::{Denoiser, Lora, LoraConfig},
    memory::{self, Stage, mib},
    models::{
        Network,
        flux::{FluxConfig, FluxInputs, FluxTransformer},
        unet::UNet,
    },
    nn::{Adapters, Parameters},
    rng::Seed,
    selftest::unet,
    training::backward::{Subject, backward, blockwise},
    weights::{Weights, write_tensors},
};
use support::goldens;

/// What the allocator may keep between two equal runs, in MiB.
const SLACK: f64 = 2.0;

/// Of every bit of a model's weights.
fn hash(model: &mut UNet) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    model.parameters("", &mut |name, parameter| {
        hasher.write(name.as_bytes());
        hasher.write(parameter.flat().into_data().as_bytes());
    });
    hasher.finish()
}

fn switching_a_thousand_times_leaves_weights_and_memory_as_they_were() {
    let golden = &goldens("StableDiffusionPipeline")[0];
    let mut model = unet::open(golden, FloatDType::F32).unwrap();
    let inputs = unet::inputs(golden, "unet.0", FloatDType::F32).unwrap();
    let worn = [4, 16].map(|rank| {
        let config = LoraConfig { rank, ..LoraConfig::default() };
        Lora::init(&config, Denoiser::Unet, Seed(0), &model.layers(), &Device::flex()).unwrap()
    });
    let device = Device::flex();
    let switch = |model: &UNet, times: usize| {
        for i in 0..times {
            let adapters = worn[i % 2].adapters_for(&model.layers(), &device, 1.0).unwrap();
            // Half of them on all rows, half of them on every second one.
            let rows = if i % 4 < 2 { vec![adapters] } else { vec![adapters, Adapters::default()] };
            assert!(rows.iter().any(|adapters| !adapters.is_empty()));
            model.predict(&inputs, &rows);
        }
        memory::release(&device);
        memory::usage(&device).resident_mib()
    };
    let (bits, plain) = (hash(&mut model), model.forward(&inputs).into_data());
    let before = switch(&model, 100); // what is made once
    let after = switch(&model, 1000);
    assert!(after <= before + SLACK, "{before:.1} MiB, and after a thousand times {after:.1} MiB");
    assert_eq!(hash(&mut model), bits);
    model.forward(&inputs).into_data().assert_eq(&plain, true);
}

fn a_session_sets_adapters_a_thousand_times_and_its_images_and_memory_stay() {
    let golden = &goldens("FluxPipeline")[0];
    let device = Device::flex();
    let mut session = Session::open(golden.model.to_str().unwrap(), &device).unwrap();
    let loras = ["lora_r4_a4", "lora_all_r4_a2"].map(|name| {
        let file = golden.folder.join(name).join("pytorch_lora_weights.safetensors");
        session.read_adapter(&file).unwrap()
    });
    let images = Images {
        prompts: vec!["a red circle".into()],
        seeds: vec![0],
        width: 32,
        height: 32,
        strength: 1.0,
        sampling: SamplingOptions { steps: Some(1), ..SamplingOptions::default() },
        ..Images::default()
    };
    let make = |session: &mut Session, worn: &[(&Lora, f64)]| {
        session.set_adapters(worn.iter().copied()).unwrap();
        session.make(&images, &mut |_| ControlFlow::Continue(())).unwrap().finished().unwrap()
    };
    let switch = |session: &mut Session, times: usize| {
        for i in 0..times {
            let worn = &[(&loras[i % 2], i as f64), (&loras[0], 0.5)][..1 + i % 3 / 2];
            match i % 20 {
                0 => _ = make(session, worn),
                _ => session.set_adapters(worn.iter().copied()).unwrap(),
            }
        }
        memory::release(&device);
        memory::usage(&device).resident_mib()
    };
    let plain = make(&mut session, &[]);
    let before = switch(&mut session, 100);
    let after = switch(&mut session, 1000);
    assert!(after <= before + SLACK, "{before:.1} MiB, and after a thousand sets {after:.1} MiB");
    assert!(make(&mut session, &[]) == plain);
    assert!(make(&mut session, &[(&loras[1], 3.0)]) != plain);
}

/// Eight double blocks of 36 MiB each, and little else.
const WIDTH: usize = 512;
const BLOCKS: usize = 8;
const BLOCK: f64 = (36 * WIDTH * WIDTH * 4) as f64 / (1 << 20) as f64;

fn config() -> FluxConfig {
    FluxConfig {
        in_channels: 16,
        num_layers: BLOCKS,
        num_single_layers: 0,
        num_attention_heads: WIDTH / 128,
        joint_attention_dim: 32,
        pooled_projection_dim: 32,
        ..FluxConfig::default()
    }
}

/// The weights of such a model as a file; whoever makes them holds one tensor at a time.
fn write(folder: &Path) {
    struct Numbers(Vec<usize>);
    impl kiln::weights::TensorBytes for Numbers {
        fn dtype(&self) -> burn::tensor::DType {
            burn::tensor::DType::F32
        }
        fn shape(&self) -> &[usize] {
            &self.0
        }
        fn bytes(&self) -> std::borrow::Cow<'_, [u8]> {
            let count = self.0.iter().product::<usize>();
            let numbers = (0..count).map(|i| ((i * 31 % 97) as f32 - 48.0) * 1e-3);
            numbers.flat_map(f32::to_le_bytes).collect::<Vec<u8>>().into()
        }
    }
    let weights = Weights::random(Seed(0), &Device::flex(), None);
    drop(FluxTransformer::load(&weights, config(), Streamed));
    let all: BTreeMap<_, _> = weights.taken().into_iter().map(|(name, shape)| (name, Numbers(shape))).collect();
    write_tensors(folder.join("diffusion_pytorch_model.safetensors"), &all, &BTreeMap::new()).unwrap();
}

/// What a training step and a prediction take: at the peak beside what there was before, weights included, in MiB; and seconds.
/// And the loss.
fn step(folder: &Path, residence: Residence) -> (f64, f64, TensorData) {
    let device = Device::flex();
    memory::release(&device);
    let stage = Stage::watch("step", &device);
    let weights = Weights::open(folder, &device, Some(FloatDType::F32)).unwrap();
    let model = FluxTransformer::load(&weights, config(), residence);
    weights.finish().unwrap();
    drop(weights);
    let lora_config = LoraConfig { rank: 2, ..LoraConfig::default() };
    let lora = Lora::init(&lora_config, Denoiser::Transformer, Seed(0), &model.layers(), &device).unwrap();
    let adapters = lora.adapters(1.0);
    let inputs = FluxInputs {
        img: Tensor::ones([1, 16, 16], &device),
        txt: Tensor::ones([1, 4, 32], &device),
        pooled: Tensor::ones([1, 32], &device),
        sigma: Tensor::ones([1], &device),
        guidance: Tensor::ones([1], &device),
        rope: model.config.rope(4, 8, 8, &device),
        limits: Limits::NONE,
    };
    let (mut loss, mut seconds) = (None, f64::INFINITY);
    for _ in 0..5 {
        let started = std::time::Instant::now();
        let groups = blockwise(model.len());
        let subject = Subject::Adapters(&adapters);
        let (value, gradients) =
            backward(&model, subject, &inputs, &groups, |prediction: Tensor<4>| prediction.square().mean());
        // Nothing reads the text that the last block makes: its last three layers have no gradient.
        assert_eq!(gradients.len(), 2 * lora.layers.len() - 2 * 3);
        model.predict(&inputs, std::slice::from_ref(&adapters));
        loss = Some(value.into_data());
        seconds = seconds.min(started.elapsed().as_secs_f64());
    }
    let measured = stage.measure();
    (mib(measured.taken()), seconds, loss.unwrap())
}

fn a_streamed_model_holds_two_blocks_at_most() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let (streamed, slow, loss) = step(folder.path(), Streamed);
    let (resident, fast, same) = step(folder.path(), Resident);
    // What is no block, such as activations and a matrix while it is turned around, is the same in both.
    let rest = resident - BLOCKS as f64 * BLOCK;
    let held = (streamed - rest) / BLOCK;
    loss.assert_eq(&same, true);
    assert!(
        (0.0..BLOCK).contains(&rest),
        "{resident:.0} MiB are {rest:.0} MiB beside {BLOCKS} blocks of {BLOCK:.0} MiB"
    );
    assert!(held < 2.5, "{streamed:.0} MiB are {held:.2} blocks; {slow:.3} s a step, resident {fast:.3} s");
}

#[test]
fn lending_leaves_memory_as_it_was() {
    memory::tune_allocator(); // as the program does
    a_streamed_model_holds_two_blocks_at_most();
    switching_a_thousand_times_leaves_weights_and_memory_as_they_were();
    a_session_sets_adapters_a_thousand_times_and_its_images_and_memory_stay();
}

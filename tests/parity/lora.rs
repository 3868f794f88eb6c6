//! LoRA files of diffusers and kohya, and our own, act on the model as in diffusers.

use std::path::PathBuf;

use burn::tensor::{Device, FloatDType, Tensor};
use kiln::{
    lora::{Format, Lora, export},
    models::{
        Network,
        flux::{FluxInputs, FluxTransformer, pack, unpack},
        text::PromptEmbeds,
    },
    nn::Adapters,
    pipelines::{FluxPipeline, Pipeline, Request},
    selftest::flux,
    weights::FileDtype,
};

use crate::support::{Golden, goldens};

const CASES: [&str; 3] = ["lora_r4_a4", "lora_r4_a8", "lora_all_r4_a2"];

fn open(golden: &Golden) -> FluxTransformer {
    flux::open(golden, FloatDType::F32).unwrap()
}

/// The inputs of the section `lora`.
fn inputs(golden: &Golden, model: &FluxTransformer) -> FluxInputs {
    flux::inputs(golden, model, "lora", FloatDType::F32).unwrap()
}

/// The files of a case: one adapter, as diffusers and as kohya store it.
fn files(golden: &Golden, case: &str) -> Vec<PathBuf> {
    ["pytorch_lora_weights", "kohya"]
        .map(|name| golden.folder.join(case).join(name).with_extension("safetensors"))
        .into()
}

/// An adapter with a scale, for the layers of `model`.
fn worn(model: &FluxTransformer, lora: &Lora, strength: f64) -> Adapters {
    lora.adapters_for(&model.layers(), &Device::flex(), strength).unwrap()
}

/// The output of `model` for `inputs` with an adapter at a scale.
fn output(model: &FluxTransformer, lora: &Lora, strength: f64, inputs: &FluxInputs) -> Tensor<3> {
    model.predict(inputs, &[worn(model, lora, strength)]).squeeze_dim(1)
}

#[test]
fn attached_files_give_the_output_of_diffusers_at_full_and_half_scale() {
    for golden in goldens("FluxPipeline") {
        let model = open(&golden);
        let inputs = inputs(&golden, &model);
        golden.check("lora.output_base", model.forward(&inputs));
        for case in CASES {
            for file in files(&golden, case) {
                let lora = Lora::read(&file).unwrap();
                assert_eq!(lora.layers.len() as u64, golden.section(case)["modules"].as_u64().unwrap());
                golden.check(&format!("{case}.output"), output(&model, &lora, 1.0, &inputs));
                golden.check(&format!("{case}.output_scale_half"), output(&model, &lora, 0.5, &inputs));
            }
        }
    }
}

#[test]
fn merged_files_give_the_output_of_diffusers() {
    for golden in goldens("FluxPipeline") {
        let model = open(&golden);
        let inputs = inputs(&golden, &model);
        for case in CASES {
            for file in files(&golden, case) {
                let lora = Lora::read(&file).unwrap();
                for (strength, output) in [(1.0, "output"), (0.5, "output_scale_half")] {
                    let mut merged = model.clone();
                    lora.merge(&mut merged, strength).unwrap();
                    golden.check(&format!("{case}.{output}"), merged.forward(&inputs));
                }
            }
        }
    }
}

#[test]
fn several_adapters_add_up_and_leave_the_base_as_it_is() {
    for golden in goldens("FluxPipeline") {
        let model = open(&golden);
        let inputs = inputs(&golden, &model);
        let base = model.forward(&inputs).into_data();
        for case in CASES {
            let [one, other] = files(&golden, case).try_into().unwrap();
            let [one, other] =
                [(one, 0.75), (other, 0.25)].map(|(file, strength)| worn(&model, &Lora::read(file).unwrap(), strength));
            let both = model.predict(&inputs, &[one.and(&other)]);
            golden.check(&format!("{case}.output"), both.squeeze_dim::<3>(1));
            model.forward(&inputs).into_data().assert_eq(&base, true);
        }
    }
}

#[test]
fn sampling_with_a_file_gives_the_latents_of_diffusers() {
    for golden in goldens("FluxPipeline") {
        let base = FluxPipeline::open(&golden.model, &Device::flex(), FloatDType::F32).unwrap();
        for case in CASES {
            let of = |name: &str| format!("{case}.txt2img.{name}");
            let number = |key: &str| golden.section(&format!("{case}.txt2img"))[key].as_f64().unwrap();
            let side = |key: &str| number(key) as usize / base.vae.downsampling();
            let text = PromptEmbeds {
                prompt: golden.tensor(&of("prompt_embeds")),
                pooled: golden.tensor(&of("pooled_prompt_embeds")),
            };
            let noise = unpack(golden.tensor(&of("latents")), side("height"), side("width"));
            let steps = number("num_inference_steps") as usize;
            let request = Request { guidance: number("guidance_scale"), ..Request::new(text, noise, vec![0], steps) };
            for file in files(&golden, case) {
                let lora = Lora::read(&file).unwrap();
                let request = Request { adapters: vec![worn(&base.transformer, &lora, 1.0)], ..request.clone() };
                let mut steps = Vec::new();
                let latents = base.generate(&request, &mut |step| steps.push(pack(step.latents.clone())));
                let latents = latents.unwrap();
                golden.check(&of("steps"), Tensor::stack::<4>(steps, 0));
                golden.check(&of("output"), pack(latents));
            }
        }
    }
}

#[test]
fn our_own_files_of_every_format_and_dtype_give_the_same_output() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("exported.safetensors");
    for golden in goldens("FluxPipeline") {
        let model = open(&golden);
        let inputs = inputs(&golden, &model);
        for case in CASES {
            let lora = Lora::read(&files(&golden, case)[0]).unwrap();
            for format in [Format::Diffusers, Format::Kohya, Format::ComfyUi] {
                let read_back = |dtype| {
                    export(&lora, &path, format, dtype).unwrap();
                    output(&model, &Lora::read(&path).unwrap(), 1.0, &inputs)
                };
                let name = format!("{case}.output");
                golden.check(&name, read_back(FileDtype::F32));
                golden.check_roughly(&name, read_back(FileDtype::Bf16), 5e-3);
                golden.check_roughly(&name, read_back(FileDtype::F16), 5e-4);
            }
        }
    }
}

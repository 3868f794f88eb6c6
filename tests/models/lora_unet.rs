//! LoRA files of Stable Diffusion's UNet: every spelling read, diffusers' and kohya's written, on the files that diffusers
//! wrote.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Device, TensorData};
use kiln::{
    lora::{Denoiser, Format, Lora, LoraConfig, LoraLayer, Targets, export, inspect},
    rng::Seed,
    weights::{FileDtype, TensorFile, write_tensors},
};

use crate::support::{
    Golden, goldens,
    lora::{diffusers_file, layers},
};

const CASES: [&str; 3] = ["lora_r4_a4", "lora_r4_a8", "lora_all_r4_a2"];
const PIPELINES: [&str; 2] = ["StableDiffusionPipeline", "StableDiffusionInstructPix2PixPipeline"];
const WRITTEN: [Format; 2] = [Format::Diffusers, Format::Kohya];

/// Every golden, the name of a case and the file that diffusers wrote for it.
fn each(mut check: impl FnMut(&Golden, &str, &Path)) {
    for golden in PIPELINES.into_iter().flat_map(goldens) {
        for case in CASES {
            check(&golden, case, &diffusers_file(&golden.folder.join(case)));
        }
    }
}

/// Layers and numbers, alpha divided by the rank.
fn content(lora: &Lora) -> BTreeMap<String, (TensorData, TensorData, f64, bool)> {
    let of = |layer: &LoraLayer| {
        (layer.name.clone(), (layer.a.to_data(), layer.b.to_data(), layer.scale(), layer.pointwise))
    };
    lora.layers.iter().map(of).collect()
}

/// The same as a reader of `lora`'s file sees it: the scale inside B.
fn folded(lora: &Lora) -> BTreeMap<String, (TensorData, TensorData, f64, bool)> {
    let mut folded = lora.clone();
    for layer in &mut folded.layers {
        layer.b = layer.b.clone() * layer.scale();
        layer.alpha = layer.rank() as f64;
    }
    content(&folded)
}

fn is_projection(name: &str) -> bool {
    name.ends_with(".proj_in") || name.ends_with(".proj_out")
}

/// A file with the tensors of `source` under other names; `alpha` beside each module.
fn renamed(source: &Path, path: PathBuf, alpha: f32, rename: impl Fn(&str, &str) -> String) -> PathBuf {
    let file = TensorFile::open(source).unwrap();
    let mut tensors = BTreeMap::new();
    for name in file.names() {
        let (module, rest) = name.strip_prefix("unet.").unwrap().split_once(".lora").unwrap();
        let down = rest.contains("_A") || rest.contains("down");
        let matrix = if down { "lora_down.weight" } else { "lora_up.weight" };
        tensors.insert(rename(module, matrix), file.read(&name).unwrap());
        tensors.insert(rename(module, "alpha"), TensorData::new(vec![alpha], Vec::<usize>::new()));
    }
    write_tensors(&path, &tensors, &BTreeMap::new()).unwrap();
    path
}

#[test]
fn the_files_of_diffusers_hold_the_layers_that_were_trained() {
    each(|golden, case, file| {
        let lora = Lora::read(file).unwrap();
        assert_eq!(lora.layers.len() as u64, golden.section(case)["modules"].as_u64().unwrap());
        for layer in &lora.layers {
            assert_eq!(layer.alpha, golden.section(case)["alpha"].as_f64().unwrap(), "{}", layer.name);
            assert_eq!(layer.pointwise, is_projection(&layer.name), "{}", layer.name);
        }
        assert_eq!(lora.layers.iter().any(|layer| layer.pointwise), case == "lora_r4_a8");
    });
}

#[test]
fn both_formats_read_back_bit_for_bit() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("out.safetensors");
    each(|_, case, file| {
        let lora = Lora::read(file).unwrap();
        for format in WRITTEN {
            let report = export(&lora, &path, format, FileDtype::F32).unwrap();
            // The scales of the goldens are powers of two.
            assert!(
                report.difference == 0.0 && report.notes[0].contains("in full in diffusers"),
                "{case} {format}: {report}"
            );
            assert_eq!(content(&Lora::read(&path).unwrap()), folded(&lora), "{case} {format}");
            for dtype in [FileDtype::Bf16, FileDtype::F16] {
                assert!(export(&lora, &path, format, dtype).unwrap().difference < 0.02);
            }
        }
        // What a checkpoint holds.
        write_tensors(&path, &lora.tensors(), &BTreeMap::new()).unwrap();
        assert_eq!(content(&Lora::read(&path).unwrap()), content(&lora), "{case}");
    });
}

#[test]
fn written_files_have_the_names_and_shapes_that_diffusers_and_kohya_write() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("out.safetensors");
    each(|_, case, file| {
        let lora = Lora::read(file).unwrap();
        let theirs = TensorFile::open(file).unwrap();
        export(&lora, &path, Format::Diffusers, FileDtype::F32).unwrap();
        let ours = TensorFile::open(&path).unwrap();
        // Of attention only, diffusers' script writes names of an older version, which mean the same.
        let newer = |name: String| name.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.");
        let names = |file: &TensorFile| file.names().into_iter().map(newer).collect::<BTreeSet<_>>();
        assert_eq!(names(&ours), names(&theirs), "{case}");
        for name in theirs.names() {
            assert_eq!(ours.shape(&newer(name.clone())), theirs.shape(&name), "{name}");
        }
        export(&lora, &path, Format::Kohya, FileDtype::F32).unwrap();
        let kohya = TensorFile::open(&path).unwrap();
        assert_eq!(kohya.names().len(), 3 * lora.layers.len());
        for layer in &lora.layers {
            let name = format!("lora_unet_{}", layer.name.replace('.', "_"));
            let ([rank, inputs], [outputs, _]) = (layer.a.dims(), layer.b.dims());
            let ones: &[usize] = if layer.pointwise { &[1, 1] } else { &[] };
            assert_eq!(kohya.shape(&format!("{name}.lora_down.weight")).unwrap(), [&[rank, inputs], ones].concat());
            assert_eq!(kohya.shape(&format!("{name}.lora_up.weight")).unwrap(), [&[outputs, rank], ones].concat());
        }
        assert_eq!(kohya.metadata()["ss_network_module"], "networks.lora");
    });
}

#[test]
fn all_spellings_of_one_adapter_are_read_alike() {
    let temporary = tempfile::tempdir().unwrap();
    each(|golden, case, file| {
        let wanted = content(&Lora::read(file).unwrap());
        let number = |key: &str| golden.section(case)[key].as_f64().unwrap();
        let spell = |rename: &dyn Fn(&str, &str) -> String| {
            let path = renamed(file, temporary.path().join("spelled"), number("alpha") as f32, rename);
            let read = Lora::read(&path).unwrap();
            assert_eq!(content(&read), wanted, "{case}: {:?}", TensorFile::open(&path).unwrap().names().last());
        };
        spell(&|module, rest| format!("unet.{module}.{rest}"));
        spell(&|module, rest| format!("{module}.{}", rest.replace("lora_down", "lora_A").replace("lora_up", "lora_B")));
        spell(&|module, rest| format!("lora_unet_{}.{rest}", module.replace('.', "_")));
        // diffusers' former attention processors.
        spell(&|module, rest| {
            if !module.contains(".attn") || rest == "alpha" {
                return format!(
                    "unet.{}.{rest}",
                    module.replace(".to_", ".processor.to_").replace("to_out.0", "to_out")
                );
            }
            let module = module.replace(".to_", ".processor.to_").replace("to_out.0", "to_out");
            format!("unet.{module}_{}", rest.replace("lora_", "lora."))
        });
        // The original code's names, dotted and flat.
        spell(&|module, rest| format!("diffusion_model.{}.{rest}", original(module)));
        spell(&|module, rest| format!("lora_unet_{}.{rest}", original(module).replace('.', "_")));
    });
}

/// The name of the original code for a layer, by counting blocks as it does.
fn original(layer: &str) -> String {
    let parts: Vec<_> = layer.splitn(5, '.').collect();
    let number = |i: usize| parts[i].parse::<usize>().unwrap();
    let rest =
        |from: usize| layer.splitn(from + 1, '.').last().unwrap().replace("time_emb_proj", "emb_layers.1").to_string();
    let inner = |kind: &str| usize::from(kind == "attentions");
    match parts[0] {
        "down_blocks" => format!("input_blocks.{}.{}.{}", 1 + 3 * number(1) + number(3), inner(parts[2]), rest(4)),
        "up_blocks" => format!("output_blocks.{}.{}.{}", 3 * number(1) + number(3), inner(parts[2]), rest(4)),
        "mid_block" if parts[1] == "attentions" => format!("middle_block.1.{}", rest(3)),
        "mid_block" => format!("middle_block.{}.{}", 2 * number(2), rest(3)),
        _ => {
            layer.replace("time_embedding.linear_1", "time_embed.0").replace("time_embedding.linear_2", "time_embed.2")
        }
    }
}

#[test]
fn named_targets_are_the_layers_that_diffusers_trains() {
    for golden in PIPELINES.into_iter().flat_map(goldens) {
        let shapes = layers(&golden.model.join("unet")).shapes();
        let init = |targets| {
            let config = LoraConfig { targets, rank: 4, ..LoraConfig::default() };
            Lora::init(&config, Denoiser::Unet, Seed(0), &shapes, &Device::flex()).unwrap()
        };
        let names = |lora: &Lora| lora.layers.iter().map(|layer| layer.name.clone()).collect::<BTreeSet<_>>();
        let theirs = |case: &str| names(&Lora::read(diffusers_file(&golden.folder.join(case))).unwrap());
        assert_eq!(names(&init(Targets::Attention)), theirs("lora_r4_a4"));
        // What are convolutions in diffusers are linear layers here: `all` has them, too.
        let all = init(Targets::All);
        let linear: BTreeSet<_> = names(&all).into_iter().filter(|name| !is_projection(name)).collect();
        assert_eq!(linear, theirs("lora_all_r4_a2"));
        assert!(all.layers.iter().all(|layer| layer.pointwise == is_projection(&layer.name)));
        assert!(all.layers.iter().any(|layer| layer.pointwise));
    }
}

#[test]
fn what_cannot_be_applied_or_written_is_refused_with_the_reason() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("bad.safetensors");
    let golden = goldens(PIPELINES[0]).remove(0);
    let lora = Lora::read(diffusers_file(&golden.folder.join(CASES[1]))).unwrap();
    let text = export(&lora, &path, Format::ComfyUi, FileDtype::F32).unwrap_err().to_string();
    assert!(text.contains("`format kohya`") && !path.exists(), "{text}");
    let mut unknown = lora.clone();
    unknown.layers[0].name = "down_blocks.0.attentions.0.norm".into();
    let text = export(&unknown, &path, Format::Kohya, FileDtype::F32).unwrap_err().to_string();
    assert!(text.contains("`down_blocks.0.attentions.0.norm` has no name"), "{text}");

    let refuse = |extra: &[(&str, &[usize])], parts: &[&str]| {
        let mut tensors = lora.tensors();
        for (name, shape) in extra {
            let data = TensorData::full(shape.to_vec(), 1.0).convert_dtype(DType::F32);
            tensors.insert(name.to_string(), data);
        }
        write_tensors(&path, &tensors, &BTreeMap::new()).unwrap();
        let text = Lora::read(&path).unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(text.contains(part), "`{part}` in {text}"));
    };
    refuse(
        &[("lora_unet_input_blocks_3_0_op.lora_down.weight", &[4, 8, 3, 3])],
        &["1 problem", "`lora_unet_input_blocks_3_0_op` has only one of its two matrices"],
    );
    refuse(
        &[
            ("lora_te_text_model_embeddings.lora_down.weight", &[4, 8]),
            ("lora_te_text_model_embeddings.lora_up.weight", &[8, 4]),
        ],
        &["1 problem", "not a linear layer of CLIP or T5", "without these parts"],
    );
    refuse(
        &[
            ("lora_unet_down_blocks_0_x.lora_down.weight", &[4, 8]),
            ("lora_unet_down_blocks_0_x.lora_up.weight", &[8, 4]),
        ],
        &["not a layer of FLUX or of Stable Diffusion's UNet"],
    );
}

#[test]
fn an_adapter_for_another_model_names_every_layer_that_does_not_fit() {
    let golden = goldens(PIPELINES[0]).remove(0);
    let flux = &goldens("FluxPipeline")[0];
    let unet = Lora::read(diffusers_file(&golden.folder.join(CASES[0]))).unwrap();
    let transformer = Lora::read(diffusers_file(&flux.folder.join(CASES[0]))).unwrap();
    let refuse = |lora: &Lora, model: &mut crate::support::lora::Layers| {
        let error = lora.adapters_for(&model.shapes(), &Device::flex(), 1.0).unwrap_err();
        let text = error.problems().join("\n");
        assert!(
            error.hint.unwrap().contains("kiln inspect") && lora.layers.iter().all(|layer| text.contains(&layer.name)),
            "{text}"
        );
    };
    refuse(&transformer, &mut layers(&golden.model.join("unet")));
    refuse(&unet, &mut crate::support::lora::transformer(flux));
}

#[test]
fn inspection_groups_the_layers_of_a_unet_by_their_blocks() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("out.safetensors");
    each(|_, case, file| {
        let lora = Lora::read(file).unwrap();
        for (format, name) in WRITTEN.into_iter().zip(["diffusers", "kohya"]) {
            export(&lora, &path, format, FileDtype::F16).unwrap();
            let inspection = inspect(&path).unwrap();
            let summary = inspection.lora.as_ref().unwrap();
            assert_eq!((inspection.kind.as_str(), summary.format.as_str()), ("LoRA", name));
            assert_eq!(summary.ranks.keys().collect::<Vec<_>>(), [&4]);
            assert_eq!(summary.targets["down_blocks.attentions.transformer_blocks"]["attn1.to_q"], 6);
            assert_eq!(summary.targets.contains_key("mid_block.attentions"), case == "lora_r4_a8");
            assert!(summary.problems.is_empty(), "{inspection}");
        }
    });
}

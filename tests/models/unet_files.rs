//! A fine-tuned UNet as a model folder, and adapters of UNets: the files, on the models and files that diffusers wrote.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Device, Tensor, TensorData};
use kiln::{
    families::{Family, STABLE_DIFFUSION},
    weights::{FileDtype, FlatTensor, TensorFile, TrainedPart, export_folder},
};
use serde_json::Value;

use crate::support::{Golden, goldens};

/// Every golden of a pipeline with a UNet.
fn models() -> Vec<Golden> {
    ["StableDiffusionPipeline", "StableDiffusionInstructPix2PixPipeline"].into_iter().flat_map(goldens).collect()
}

/// The tensors of a UNet as a model has them: `proj_in` and `proj_out` as matrices, all in f32, changed by `change`.
fn values(model: &Path, change: impl Fn(Tensor<1>) -> Tensor<1>) -> BTreeMap<String, FlatTensor> {
    let mut tensors = BTreeMap::new();
    for path in safetensors(&model.join("unet")) {
        let file = TensorFile::open(path).unwrap();
        for name in file.names() {
            let mut shape = file.shape(&name).unwrap().to_vec();
            let numbers = file.read_f32(&name).unwrap().into_vec::<f32>().unwrap();
            let numbers = change(Tensor::from_data(TensorData::new(numbers.clone(), [numbers.len()]), &Device::flex()));
            if let [outputs, inputs, 1, 1] = shape[..] {
                shape = vec![outputs, inputs];
            }
            tensors.insert(name, FlatTensor { shape, values: numbers });
        }
    }
    tensors
}

fn safetensors(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|kind| kind == "safetensors")).collect()
}

fn json(path: PathBuf) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// All files below `folder`, by their path in it.
fn files(folder: &Path) -> BTreeMap<PathBuf, PathBuf> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = PathBuf::from(entry.file_name().unwrap());
        if entry.is_dir() {
            found.extend(files(&entry).into_iter().map(|(below, path)| (name.join(below), path)));
        } else {
            found.insert(name, entry);
        }
    }
    found
}

/// The UNet.
fn part() -> TrainedPart {
    STABLE_DIFFUSION.trained_part()
}

/// The weights that an exported folder has.
fn written(folder: &Path) -> TensorFile {
    TensorFile::open(folder.join("unet/diffusion_pytorch_model.safetensors")).unwrap()
}

#[test]
fn an_exported_folder_is_the_base_with_new_weights() {
    let temporary = tempfile::tempdir().unwrap();
    for (i, golden) in models().into_iter().enumerate() {
        let folder = temporary.path().join(format!("model-{i}"));
        let tensors = values(&golden.model, |numbers| numbers * 1.01);
        let killed = temporary.path().join(format!("model-{i}.partial/unet"));
        fs::create_dir_all(&killed).unwrap();
        fs::write(killed.join("stray"), "").unwrap();
        let report = export_folder(&golden.model, &part(), &tensors, &folder, FileDtype::F32).unwrap();
        assert!(!killed.parent().unwrap().exists() && !folder.join("unet/stray").exists());
        assert_eq!((report.tensors, &report.path), (tensors.len(), &folder));
        assert!(report.to_string().contains("read back, identical"), "{report}");

        let base: BTreeMap<_, _> = safetensors(&golden.model.join("unet"))
            .into_iter()
            .map(|path| TensorFile::open(path).unwrap())
            .flat_map(|file| {
                file.names()
                    .into_iter()
                    .map(move |name| (name.clone(), file.shape(&name).unwrap().to_vec()))
                    .collect::<Vec<_>>()
            })
            .collect();
        let file = written(&folder);
        assert_eq!(file.names(), base.keys().cloned().collect::<Vec<_>>());
        for (name, shape) in base {
            assert_eq!(file.shape(&name).unwrap(), shape, "{name}");
            let expected = tensors[&name].values.to_data().into_vec::<f32>().unwrap();
            assert_eq!(file.read(&name).unwrap().into_vec::<f32>().unwrap(), expected, "{name}");
        }

        let (ours, theirs) = (files(&folder), files(&golden.model));
        assert!(theirs.keys().filter(|name| !name.starts_with("unet")).all(|name| ours.contains_key(name)));
        for (name, path) in &ours {
            assert!(!fs::symlink_metadata(path).unwrap().is_symlink(), "{}", name.display());
            if !name.ends_with("diffusion_pytorch_model.safetensors") || !name.starts_with("unet") {
                let same = |path: &PathBuf| match name.extension() {
                    Some(kind) if kind == "json" => json(path.clone()).to_string().into_bytes(),
                    _ => fs::read(path).unwrap(),
                };
                assert!(same(path) == same(&theirs[name]), "{}", name.display());
            }
        }
    }
}

#[test]
fn folders_of_the_machine_that_trained_are_in_no_file() {
    let temporary = tempfile::tempdir().unwrap();
    let golden = goldens("StableDiffusionPipeline").remove(0);
    let (base, folder) = (temporary.path().join("base"), temporary.path().join("exported"));
    crate::support::program::copy(&golden.model, &base);
    for name in ["model_index.json", "unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"]
    {
        let mut config = json(base.join(name));
        config["_name_or_path"] = "/home/jane/models/secret".into();
        fs::write(base.join(name), config.to_string()).unwrap();
    }
    export_folder(&base, &part(), &values(&base, |numbers| numbers), &folder, FileDtype::F32).unwrap();
    for (name, path) in files(&folder) {
        assert!(!String::from_utf8_lossy(&fs::read(path).unwrap()).contains("jane"), "{}", name.display());
    }
    assert_eq!(json(folder.join("text_encoder/config.json")), json(golden.model.join("text_encoder/config.json")));
}

#[test]
fn a_widened_unet_becomes_a_pipeline_of_instruct_pix2pix() {
    let temporary = tempfile::tempdir().unwrap();
    let golden = goldens("StableDiffusionPipeline").remove(0);
    let mut tensors = values(&golden.model, |numbers| numbers);
    let FlatTensor { shape, values: numbers } = tensors.remove("conv_in.weight").unwrap();
    let narrow = numbers.reshape([shape[0], shape[1], shape[2], shape[3]]);
    let wide = Tensor::<4>::cat(vec![narrow.clone(), narrow.zeros_like()], 1);
    let shape = wide.dims().to_vec();
    assert_eq!(shape[1], 8);
    tensors.insert("conv_in.weight".into(), FlatTensor { values: wide.clone().flatten(0, 3), shape });
    let folder = temporary.path().join("edits");
    let report = export_folder(&golden.model, &part(), &tensors, &folder, FileDtype::F32).unwrap();
    assert_eq!(report.class, "StableDiffusionInstructPix2PixPipeline");
    written(&folder).read("conv_in.weight").unwrap().assert_eq(&wide.into_data(), true);

    // Only what must change did.
    let mut index = json(folder.join("model_index.json"));
    assert_eq!(index["_class_name"], "StableDiffusionInstructPix2PixPipeline");
    index["_class_name"] = "StableDiffusionPipeline".into();
    assert_eq!(index, json(golden.model.join("model_index.json")));
    let mut config = json(folder.join("unet/config.json"));
    assert_eq!(config["in_channels"], 8);
    config["in_channels"] = 4.into();
    assert_eq!(config, json(golden.model.join("unet/config.json")));
}

#[test]
fn weights_of_other_parts_are_linked_and_small_files_are_copied() {
    use std::os::unix::fs::MetadataExt;
    let temporary = tempfile::tempdir().unwrap();
    let golden = goldens("StableDiffusionPipeline").remove(0);
    // As in the hub's cache: a folder of symbolic links. A link to a link's target must not be one itself.
    let base = temporary.path().join("base");
    for (name, path) in files(&golden.model) {
        let (blob, link) = (temporary.path().join("blobs").join(&name), base.join(&name));
        for file in [&blob, &link] {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
        }
        fs::copy(path, &blob).unwrap();
        std::os::unix::fs::symlink(&blob, &link).unwrap();
    }
    let mut index = json(base.join("model_index.json"));
    index["safety_checker"] = serde_json::json!(["stable_diffusion", "StableDiffusionSafetyChecker"]);
    index["requires_safety_checker"] = true.into();
    fs::remove_file(base.join("model_index.json")).unwrap();
    fs::write(base.join("model_index.json"), index.to_string()).unwrap();

    let folder = temporary.path().join("out.put");
    export_folder(&base, &part(), &values(&golden.model, |numbers| numbers), &folder, FileDtype::F32).unwrap();
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    let same = |name: &str| inode(folder.join(name)) == inode(base.join(name));
    assert!(same("vae/diffusion_pytorch_model.safetensors") && same("text_encoder/model.safetensors"));
    assert!(!same("scheduler/scheduler_config.json") && !same("vae/config.json"));
    assert!(files(&folder).values().all(|path| !fs::symlink_metadata(path).unwrap().is_symlink()));
    // The safety checker was never downloaded.
    let index = json(folder.join("model_index.json"));
    assert!(index["safety_checker"][0].is_null() && index["requires_safety_checker"] == false, "{index}");
}

#[test]
fn lower_precision_is_rounded_once_and_overflow_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let golden = models().remove(0);
    let tensors = values(&golden.model, |numbers| numbers * 1.001);
    for (dtype, name) in [(FileDtype::F16, "F16"), (FileDtype::Bf16, "BF16")] {
        let folder = temporary.path().join(name);
        export_folder(&golden.model, &part(), &tensors, &folder, dtype).unwrap();
        let file = written(&folder);
        for (key, values) in &tensors {
            assert_eq!(file.dtype(key).as_deref(), Some(name));
            let expected = values.values.to_data().convert_dtype(dtype.into()).convert_dtype(DType::F32);
            let (found, expected) = (file.read_f32(key).unwrap().into_vec::<f32>(), expected.into_vec::<f32>());
            assert_eq!(found.unwrap(), expected.unwrap(), "{key}");
        }
    }
    let folder = temporary.path().join("large");
    let large = values(&golden.model, |numbers| numbers * 1e6);
    let text = export_folder(&golden.model, &part(), &large, &folder, FileDtype::F16).unwrap_err().to_string();
    assert!(text.contains("not finite in F16") && text.contains("`dtype f32`"), "{text}");
    export_folder(&golden.model, &part(), &large, &folder, FileDtype::Bf16).unwrap();
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let golden = models().remove(0);
    let folder = temporary.path().join("out");
    let tensors = || values(&golden.model, |numbers| numbers);
    let refuse = |base: &Path, tensors: BTreeMap<String, FlatTensor>, parts: &[&str]| {
        let text = export_folder(base, &part(), &tensors, &folder, FileDtype::F32).unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(text.contains(part), "`{part}` in {text}"));
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "{text}");
    };
    let mut some = tensors();
    let bias = some.remove("conv_in.bias").unwrap();
    some.insert("conv_in.baas".into(), bias);
    some.get_mut("conv_out.weight").unwrap().shape.reverse();
    let wide = &mut some.get_mut("time_embedding.linear_1.weight").unwrap().shape;
    wide[1] += 1;
    let parts = [
        "4 problems",
        "`conv_in.bias` of the base",
        "`conv_in.baas` is not in the base model",
        "`conv_out.weight`",
        "`time_embedding.linear_1.weight`",
    ];
    refuse(&golden.model, some, &parts);
    refuse(&golden.folder, tensors(), &["unet"]);
    let mut broken = tensors();
    let first = broken.values_mut().next().unwrap();
    first.values = first.values.clone() * f64::NAN;
    refuse(&golden.model, broken, &["not finite"]);

    fs::create_dir(&folder).unwrap();
    let text = export_folder(&golden.model, &part(), &tensors(), &folder, FileDtype::F32).unwrap_err().to_string();
    assert!(text.contains("exists already"), "{text}");
}

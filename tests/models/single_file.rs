//! Single-file checkpoints give the same models as in diffusers: the name maps are checked against diffusers' own conversion.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, TensorData};
use kiln::{
    hub,
    models::text::ClipTextModel,
    models::unet::UNet,
    models::vae::AutoencoderKl,
    weights::{TensorFile, write_tensors},
};
use serde::Deserialize;

use crate::support::program::succeeds;

#[derive(Deserialize)]
struct Map {
    /// For each part, the tensors of the original layout and those of the folder that each is made of.
    parts: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    swapped: Vec<String>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn map(case: &str) -> Map {
    serde_json::from_str(&fs::read_to_string(fixture("single_file").join(case).with_extension("json")).unwrap())
        .unwrap()
}

/// The tensors of a part of a model folder.
fn part(folder: &Path) -> BTreeMap<String, TensorData> {
    let files = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    let weights = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.ends_with(".safetensors") || name == "weights.view.json"
    };
    let files = files.filter(weights).map(|path| TensorFile::open(path).unwrap());
    files
        .flat_map(|file| {
            file.names().into_iter().map(|name| (name.clone(), file.read(&name).unwrap())).collect::<Vec<_>>()
        })
        .collect()
}

/// A checkpoint in one file, from a model folder; `prefix` goes before the names of the transformer.
fn single(case: &str, model: &Path, prefix: &str, parts: &[&str], path: &Path) {
    let Map { parts: maps, swapped } = map(case);
    let mut tensors = BTreeMap::new();
    for name in parts {
        let own = part(&model.join(name));
        for (original, made_of) in &maps[*name] {
            let pieces: Vec<&TensorData> = made_of.iter().map(|name| &own[name]).collect();
            let mut shape = pieces[0].shape.to_vec();
            shape[0] = pieces.iter().map(|piece| piece.shape[0]).sum();
            let mut bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.as_bytes().to_vec()).collect();
            if swapped.contains(original) {
                let half = bytes.len() / 2;
                bytes.rotate_left(half);
            }
            let key = if *name == "transformer" { format!("{prefix}{original}") } else { original.clone() };
            tensors.insert(key, TensorData::from_bytes_vec(bytes, shape, pieces[0].dtype));
        }
    }
    tensors.insert("betas".into(), TensorData::new(vec![0.5f32; 4], [4]));
    write_tensors(path, &tensors, &BTreeMap::new()).unwrap();
}

/// Whether a part is the same in both folders, bit by bit; some checkpoints of CLIP have `text_model.` before all names.
fn assert_same(made: &Path, own: &Path) {
    let bare = |tensors: BTreeMap<String, TensorData>| -> BTreeMap<String, TensorData> {
        let of = |(name, data): (String, TensorData)| (name.trim_start_matches("text_model.").to_string(), data);
        tensors.into_iter().map(of).filter(|(name, _)| !name.ends_with("position_ids")).collect()
    };
    let (made_of, own_of) = (bare(part(made)), bare(part(own)));
    assert_eq!(made_of.keys().collect::<Vec<_>>(), own_of.keys().collect::<Vec<_>>(), "{}", own.display());
    for (name, data) in own_of {
        assert_eq!(made_of[&name].as_bytes(), data.as_bytes(), "{name} of {}", own.display());
        assert_eq!(made_of[&name].shape, data.shape, "{name}");
    }
}

fn resolve(file: &Path, rest: &Path) -> PathBuf {
    hub::resolve(&format!("{}@{}", file.display(), rest.display())).unwrap()
}

#[test]
fn stable_diffusion_of_either_version_is_what_diffusers_makes_of_it() {
    let (model, temporary) = (fixture("sd"), tempfile::tempdir().unwrap());
    for case in ["sd_v1", "sd_v2"] {
        let file = temporary.path().join(case).with_extension("safetensors");
        single(case, &model, "", &["unet", "vae", "text_encoder"], &file);
        let folder = resolve(&file, &model);
        for part in ["unet", "vae", "text_encoder"] {
            assert_same(&folder.join(part), &model.join(part));
        }
        UNet::open(folder.join("unet"), &Device::flex(), None).unwrap();
        AutoencoderKl::open(folder.join("vae"), &Device::flex(), None).unwrap();
        ClipTextModel::open(folder.join("text_encoder"), &Device::flex(), None).unwrap();
        assert_eq!(resolve(&file, &model), folder, "the same folder again");
    }
    // What the file lacks comes from the folder.
    let file = temporary.path().join("unet.safetensors");
    single("sd_v1", &model, "", &["unet"], &file);
    let folder = resolve(&file, &model);
    assert_same(&folder.join("unet"), &model.join("unet"));
    assert!(!folder.join("vae/weights.view.json").exists() && folder.join("vae/config.json").is_file());
}

#[test]
fn a_flux_transformer_is_read_with_and_without_the_prefix_of_comfyui() {
    let (model, temporary) = (fixture("flux"), tempfile::tempdir().unwrap());
    for prefix in ["", "model.diffusion_model."] {
        let file = temporary.path().join("flux.safetensors");
        single("flux", &model, prefix, &["transformer"], &file);
        let folder = resolve(&file, &model);
        assert_same(&folder.join("transformer"), &model.join("transformer"));
    }
}

#[test]
fn images_of_a_single_file_are_those_of_the_folder() {
    let (model, temporary) = (fixture("sd"), tempfile::tempdir().unwrap());
    let file = temporary.path().join("v1.safetensors");
    single("sd_v1", &model, "", &["unet", "vae", "text_encoder"], &file);
    let made = |model: &str, name: &str| {
        let latents = temporary.path().join(name);
        let latents_text = latents.to_str().unwrap();
        let arguments = [
            "generate",
            "--model",
            model,
            "--prompt",
            "a boat",
            "--width",
            "64",
            "--height",
            "64",
            "--steps",
            "2",
            "--latents",
            latents_text,
        ];
        succeeds(&arguments);
        part_of(&latents)
    };
    let own = made(model.to_str().unwrap(), "own.safetensors");
    let other = made(&format!("{}@{}", file.display(), model.display()), "single.safetensors");
    assert_eq!(own.as_bytes(), other.as_bytes());
}

fn part_of(latents: &Path) -> TensorData {
    TensorFile::open(latents).unwrap().read("latents").unwrap()
}

#[test]
fn files_that_are_no_such_checkpoint_and_folders_of_other_kinds_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("a.safetensors");
    single("flux", &fixture("flux"), "", &["transformer"], &file);
    let refuse = |model: String, parts: &[&str]| {
        let error = hub::resolve(&model).unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(error.contains(part), "`{part}` in {error}"));
    };
    refuse(
        format!("{}@{}", file.display(), fixture("sd").display()),
        &["checkpoint of FLUX.1", "no transformer/config.json", "same kind"],
    );
    refuse(file.display().to_string(), &["single file (FLUX transformer, original layout)", "@FOLDER"]);
    let vae = fixture("flux").join("vae/diffusion_pytorch_model.safetensors");
    refuse(
        format!("{}@{}", vae.display(), fixture("flux").display()),
        &["not a checkpoint of FLUX.1 or Stable Diffusion"],
    );
}

#[test]
fn what_stands_for_a_file_that_is_gone_is_removed() {
    let (model, temporary) = (fixture("sd"), tempfile::tempdir().unwrap());
    let [first, second] = ["first", "second"].map(|name| temporary.path().join(name).with_extension("safetensors"));
    [&first, &second].iter().for_each(|file| single("sd_v1", &model, "", &["vae", "unet"], file));
    let (gone, kept) = (resolve(&first, &model), resolve(&second, &model));
    fs::remove_file(&first).unwrap();
    assert!(gone != kept && resolve(&second, &model) == kept);
    assert!(!gone.exists() && kept.join("unet/config.json").is_file());
    assert!(model.join("unet/config.json").is_file(), "links are removed, not what they lead to");
}

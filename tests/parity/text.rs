//! Tokenizers and text encoders compute what transformers computes.

use std::{collections::BTreeMap, path::Path};

use burn::tensor::{Device, FloatDType, TensorData};
use kiln::{
    models::text::{ClipTextModel, T5Encoder, TextEncoders},
    selftest::encoders,
    tokenizer::{PromptIds, Tokenizers},
    weights::{TensorFile, write_tensors},
};
use serde_json::Value;

use crate::support::{Golden, goldens};

/// The `width` ids of each row.
fn rows(ids: &[i64], width: usize) -> Vec<&[i64]> {
    ids.chunks_exact(width).collect()
}

fn t5_length(golden: &Golden) -> usize {
    golden.section("tokens.t5")["max_length"].as_u64().unwrap_or(77) as usize
}

/// Compares the ids of every prompt that transformers and the folder's own `tokenizer.json` agree on.
fn ids_agree(golden: &Golden, tokenizers: &Tokenizers) {
    for (section, ids) in [
        ("tokens.clip", (|ids: PromptIds| ids.clip) as fn(PromptIds) -> Vec<i64>),
        ("tokens.t5", |ids: PromptIds| ids.t5),
    ] {
        let info = golden.section(section);
        let Some(prompts) = info["prompts"].as_array() else { continue };
        let name = format!("{section}.input_ids");
        let [_, length] = golden.shape(&name)[..] else { panic!("{name} has two axes") };
        let all = golden.ids(&name);
        let mut compared = 0;
        for (i, want) in rows(&all, length).into_iter().enumerate() {
            let prompt = prompts[i].as_str().unwrap();
            if info["tokenizer_json_agrees"][i] == true {
                assert_eq!(ids(tokenizers.tokenize(prompt).unwrap()), want, "{section} of {prompt:?}");
                compared += 1;
            }
        }
        assert!(compared > 0, "{}: no prompt of {section} can be compared", golden.folder.display());
    }
}

fn copy(from: &Path, to: &Path, leave_out: &[&str]) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        if !leave_out.contains(&entry.file_name().to_str().unwrap()) {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn tokenizers_agree(pipeline: &str) {
    for golden in goldens(pipeline) {
        let tokenizers = Tokenizers::open(&golden.model, t5_length(&golden)).unwrap();
        ids_agree(&golden, &tokenizers);
        // From vocabulary and merges alone, as the published folders are, the ids are the same.
        let folder = tempfile::tempdir().unwrap();
        copy(&golden.model.join("tokenizer"), &folder.path().join("tokenizer"), &["tokenizer.json"]);
        if golden.model.join("tokenizer_2").exists() {
            copy(&golden.model.join("tokenizer_2"), &folder.path().join("tokenizer_2"), &[]);
        }
        ids_agree(&golden, &Tokenizers::open(folder.path(), t5_length(&golden)).unwrap());
    }
}

fn text_encoders_agree(pipeline: &str) {
    for golden in goldens(pipeline) {
        golden.agrees(encoders::text);
        assert_eq!(golden.model.join("text_encoder_2").is_dir(), golden.has("t5.input_ids"));
    }
}

#[test]
fn tokenizers_of_flux_agree_with_transformers() {
    tokenizers_agree("FluxPipeline");
}

#[test]
fn text_encoders_of_flux_agree_with_transformers() {
    text_encoders_agree("FluxPipeline");
}

#[test]
fn prompts_become_embeddings() {
    for golden in goldens("FluxPipeline") {
        let tokenizers = Tokenizers::open(&golden.model, golden.shape("t5.input_ids")[1]).unwrap();
        let encoders = TextEncoders::open(&golden.model, &Device::flex(), Some(FloatDType::F32)).unwrap();
        let prompts = golden.section("t5")["prompts"].as_array().unwrap();
        let ids: Vec<_> = prompts.iter().map(|p| tokenizers.tokenize(p.as_str().unwrap()).unwrap()).collect();
        let embeds = encoders.encode(&ids);
        golden.check("t5.last_hidden_state", embeds.prompt);
        golden.check("clip.pooled", embeds.pooled);
    }
}

#[test]
fn text_encoders_in_bf16_stay_within_its_precision() {
    for golden in goldens("FluxPipeline") {
        let dtype = Some(FloatDType::BF16);
        let clip = ClipTextModel::open(golden.model.join("text_encoder"), &Device::flex(), dtype).unwrap();
        let ids = golden.ids("clip.input_ids");
        let output = clip.forward(&rows(&ids, golden.shape("clip.input_ids")[1]));
        assert_eq!(FloatDType::from(output.pooled.dtype()), FloatDType::BF16);
        golden.check_roughly("clip.last_hidden_state", output.last_hidden_state, 0.05);
        golden.check_roughly("clip.pooled", output.pooled, 0.05);
        let t5 = T5Encoder::open(golden.model.join("text_encoder_2"), &Device::flex(), dtype).unwrap();
        let ids = golden.ids("t5.input_ids");
        let state = t5.forward(&rows(&ids, golden.shape("t5.input_ids")[1]));
        assert_eq!(FloatDType::from(state.dtype()), FloatDType::BF16);
        golden.check_roughly("t5.last_hidden_state", state, 0.05);
    }
}

/// A copy of a text encoder's folder with its tensors renamed, and further ones added.
fn renamed(folder: &Path, rename: impl Fn(&str) -> String, more: &[(&str, TensorData)]) -> tempfile::TempDir {
    let copied = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("config.json"), copied.path().join("config.json")).unwrap();
    let mut tensors: BTreeMap<_, _> = more.iter().map(|(name, data)| (String::from(*name), data.clone())).collect();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.path().extension().is_some_and(|e| e == "safetensors") {
            let file = TensorFile::open(entry.path()).unwrap();
            tensors.extend(file.names().into_iter().map(|name| (rename(&name), file.read_f32(&name).unwrap())));
        }
    }
    write_tensors(copied.path().join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    copied
}

#[test]
fn names_of_older_and_newer_files_mean_the_same() {
    for golden in goldens("FluxPipeline") {
        let folder = golden.model.join("text_encoder");
        let ids = golden.ids("clip.input_ids");
        let bare = |name: &str| name.trim_start_matches("text_model.").to_string();
        let buffer = TensorData::from([[0i64, 1, 2]]);
        for model in [
            renamed(&folder, bare, &[("embeddings.position_ids", buffer.clone())]),
            renamed(
                &folder,
                |name| format!("text_model.{}", bare(name)),
                &[("text_model.embeddings.position_ids", buffer)],
            ),
        ] {
            let clip = ClipTextModel::open(model.path(), &Device::flex(), None).unwrap();
            let output = clip.forward(&rows(&ids, golden.shape("clip.input_ids")[1]));
            golden.check("clip.pooled", output.pooled);
        }
        let folder = golden.model.join("text_encoder_2");
        let ids = golden.ids("t5.input_ids");
        let old = |name: &str| name.replace("shared.", "encoder.embed_tokens.");
        let copy = TensorData::from([[0.0f32]]);
        for model in
            [renamed(&folder, old, &[]), renamed(&folder, str::to_string, &[("encoder.embed_tokens.weight", copy)])]
        {
            let t5 = T5Encoder::open(model.path(), &Device::flex(), None).unwrap();
            let state = t5.forward(&rows(&ids, golden.shape("t5.input_ids")[1]));
            golden.check("t5.last_hidden_state", state);
        }
    }
}

#[test]
fn a_padding_token_of_the_special_tokens_map_is_used() {
    let golden = &goldens("FluxPipeline")[0];
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = folder.path().join("tokenizer");
    copy(&golden.model.join("tokenizer"), &tokenizer, &["tokenizer.json", "tokenizer_config.json"]);
    std::fs::write(tokenizer.join("tokenizer_config.json"), r#"{"model_max_length": 9}"#).unwrap();
    std::fs::write(tokenizer.join("special_tokens_map.json"), r#"{"pad_token": {"content": "!"}}"#).unwrap();
    let vocabulary: Value = kiln::weights::read_json(tokenizer.join("vocab.json")).unwrap();
    let id = |token: &str| vocabulary[token].as_i64().unwrap();
    let tokenizers = Tokenizers::open(folder.path(), 77).unwrap();
    let ids = tokenizers.tokenize("").unwrap();
    let mut expected = vec![id("<|startoftext|>"), id("<|endoftext|>")];
    expected.resize(9, id("!"));
    assert_eq!((ids.clip, ids.t5), (expected, vec![]));
    // As in transformers, it is a separate token wherever it occurs.
    let ids = tokenizers.tokenize("a!").unwrap().clip;
    assert_eq!(ids[1..4], [id("a</w>"), id("!"), id("<|endoftext|>")]);
}

#[test]
fn fingerprint_changes_with_what_decides_ids_and_with_nothing_else() {
    let golden = &goldens("FluxPipeline")[0];
    let fingerprint = |model: &Path, length| Tokenizers::open(model, length).unwrap().fingerprint();
    let folder = tempfile::tempdir().unwrap();
    for part in ["tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"] {
        copy(&golden.model.join(part), &folder.path().join(part), &["spiece.model"]);
    }
    let original = fingerprint(&golden.model, 32);
    assert_eq!(original, fingerprint(folder.path(), 32), "a copy elsewhere");
    assert_ne!(original, fingerprint(folder.path(), 33), "another length");
    let map = folder.path().join("tokenizer_2/special_tokens_map.json");
    let mut text = std::fs::read_to_string(&map).unwrap();
    text.push('\n');
    std::fs::write(map, text).unwrap();
    assert_ne!(original, fingerprint(folder.path(), 32), "another file");
}

#[test]
fn a_folder_with_only_a_sentencepiece_model_says_what_to_do() {
    let golden = &goldens("FluxPipeline")[0];
    let folder = tempfile::tempdir().unwrap();
    copy(&golden.model.join("tokenizer"), &folder.path().join("tokenizer"), &[]);
    copy(&golden.model.join("tokenizer_2"), &folder.path().join("tokenizer_2"), &["tokenizer.json"]);
    let error = Tokenizers::open(folder.path(), 32).unwrap_err().to_string();
    assert!(error.contains("spiece.model") && error.contains("hint"), "{error}");
}

#[test]
fn a_length_without_room_for_text_is_refused() {
    let golden = &goldens("FluxPipeline")[0];
    let error = Tokenizers::open(&golden.model, 1).unwrap_err().to_string();
    assert!(error.contains("model_max_length") && error.contains("tokenizer_config.json"), "{error}");
}

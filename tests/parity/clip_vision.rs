//! CLIP models and the similarities of edits match transformers.

use std::path::Path;

use burn::tensor::{Device, FloatDType, TensorData};
use image::{DynamicImage, RgbImage};
use kiln::{
    models::clip::{ClipConfig, ClipImageProcessor, ClipModel},
    pipelines::Similarity,
    tokenizer::Tokenizers,
};
use serde_json::Value;

use crate::support::{Golden, goldens};

fn picture(golden: &Golden, name: &str) -> RgbImage {
    image::open(golden.folder.join(format!("{name}.png"))).unwrap().into_rgb8()
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

#[test]
fn features_agree_with_transformers() {
    for golden in goldens("CLIPModel") {
        let model = ClipModel::open(&golden.model, &Device::flex(), Some(FloatDType::F32)).unwrap();
        golden.check("image.features", model.image_features(golden.tensor("image.pixel_values")));
        let (ids, length) = (golden.ids("text.input_ids"), golden.shape("text.input_ids")[1]);
        golden.check("text.features", model.text_features(&ids.chunks_exact(length).collect::<Vec<_>>()));
    }
}

#[test]
fn features_in_bf16_stay_within_its_precision() {
    for golden in goldens("CLIPModel") {
        let model = ClipModel::open(&golden.model, &Device::flex(), Some(FloatDType::BF16)).unwrap();
        let features = model.image_features(golden.tensor("image.pixel_values"));
        assert_eq!(FloatDType::from(features.dtype()), FloatDType::BF16);
        golden.check_roughly("image.features", features, 0.05);
    }
}

#[test]
fn images_are_prepared_as_pillow_does_it() {
    for golden in goldens("CLIPModel") {
        let size = ClipConfig::open(&golden.model).unwrap().vision.image_size;
        let processor = ClipImageProcessor::open(&golden.model, size).unwrap();
        let names = words(&golden.section("image")["pictures"]);
        let pictures: Vec<_> = names.iter().map(|name| picture(&golden, name)).collect();
        let pixels = processor.pixels(&pictures.iter().collect::<Vec<_>>());
        assert_eq!(pixels.shape.to_vec(), golden.shape("image.pixel_values"));
        let (got, want) = (pixels.into_vec::<f32>().unwrap(), golden.floats("image.pixel_values"));
        let step = 1.0 / 255.0 / 0.26; // of 8 bits, after division by the smallest deviation
        for ((name, picture), (got, want)) in
            names.iter().zip(&pictures).zip(got.chunks(3 * size * size).zip(want.chunks(3 * size * size)))
        {
            let differences = got.iter().zip(want).map(|(g, w)| (g - w).abs());
            let (sum, most) = differences.fold((0.0, 0.0f32), |(sum, most), d| (sum + d, most.max(d)));
            // Nothing is resampled if the size is already right; else a few values are rounded the other way.
            let allowed = if picture.dimensions() == (size as u32, size as u32) { 1e-5 } else { 1.1 * step };
            let mean = sum / got.len() as f32;
            assert!(most <= allowed && mean <= allowed / 50.0, "{name}: {most:.4} at most, {mean:.6} on average");
        }
    }
}

#[test]
fn captions_become_the_same_ids() {
    for golden in goldens("CLIPModel") {
        let text = ClipConfig::open(&golden.model).unwrap().text;
        let tokenizers = Tokenizers::open_clip(&golden.model, text.vocab_size, text.max_position_embeddings).unwrap();
        let ids: Vec<i64> = words(&golden.section("text")["captions"])
            .iter()
            .flat_map(|caption| tokenizers.tokenize(caption).unwrap().clip)
            .collect();
        assert_eq!(ids, golden.ids("text.input_ids"));
    }
}

#[test]
fn similarities_agree_with_the_papers_code() {
    for golden in goldens("CLIPModel") {
        let similarity = Similarity::open(&golden.model, &Device::flex()).unwrap();
        let captions = words(&golden.section("text")["captions"]);
        let (original, edited) = (picture(&golden, "original"), picture(&golden, "edited"));
        let score = similarity.measure(&original, &edited, Some((captions[0], captions[1]))).unwrap();
        let scores = [score.image as f32, score.direction.unwrap() as f32];
        golden.check_data("similarity.scores", TensorData::from(scores));

        let without = similarity.measure(&original, &edited, None).unwrap();
        assert_eq!((without.image, without.direction), (score.image, None));
        // With original and edit swapped, both directions flip; an edit that changes nothing has none.
        let back = similarity.measure(&edited, &original, Some((captions[1], captions[0]))).unwrap();
        assert!((back.direction.unwrap() - score.direction.unwrap()).abs() < 1e-5);
        let nothing = similarity.measure(&original, &original, Some((captions[0], captions[1]))).unwrap();
        assert!((nothing.image - 1.0).abs() < 1e-6, "{nothing:?}");
        // Of any size and shape.
        let wide = DynamicImage::from(original.clone()).resize_exact(90, 40, image::imageops::Nearest).into_rgb8();
        assert!(similarity.measure(&wide, &original, None).unwrap().image.is_finite());
        let error = similarity.measure(&RgbImage::new(0, 4), &original, None).unwrap_err().to_string();
        assert!(error.contains("no pixels"), "{error}");
    }
}

/// A copy of a folder with its `config.json` changed.
fn with_config(folder: &Path, change: impl Fn(&mut Value)) -> tempfile::TempDir {
    let copied = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        std::fs::copy(entry.path(), copied.path().join(entry.file_name())).unwrap();
    }
    let path = copied.path().join("config.json");
    let mut config: Value = kiln::weights::read_json(&path).unwrap();
    change(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
    copied
}

fn refusal(folder: &Path) -> String {
    Similarity::open(folder, &Device::flex()).unwrap_err().to_string()
}

#[test]
fn other_models_are_refused_by_name() {
    let golden = &goldens("CLIPModel")[0];
    for class in ["CLIPTextModel", "CLIPVisionModelWithProjection", "T5EncoderModel"] {
        let folder = with_config(&golden.model, |config| config["architectures"] = vec![class].into());
        let error = refusal(folder.path());
        assert!(error.contains("config.json") && error.contains(class) && error.contains("CLIPModel"), "{error}");
    }
    let folder = with_config(&golden.model, |config| *config = serde_json::json!({}));
    assert!(refusal(folder.path()).contains("config.json"));
    assert!(refusal(Path::new("no/such/folder")).contains("config.json"));
}

#[test]
fn impossible_sizes_are_refused_by_name() {
    let golden = &goldens("CLIPModel")[0];
    for (part, key, value, named) in [
        ("text_config", "num_attention_heads", 3, "num_attention_heads"),
        ("vision_config", "num_attention_heads", 0, "num_attention_heads"),
        ("vision_config", "patch_size", 0, "patch_size"),
        ("vision_config", "num_channels", 1, "num_channels"),
        ("vision_config", "image_size", 40, "position_embedding"),
    ] {
        let folder = with_config(&golden.model, |config| config[part][key] = value.into());
        let error = refusal(folder.path());
        assert!(error.contains(named), "{error}");
    }
    // Images of another size than the model's.
    let folder = with_config(&golden.model, |_| {});
    std::fs::write(folder.path().join("preprocessor_config.json"), r#"{"size": 40, "crop_size": 40}"#).unwrap();
    assert!(refusal(folder.path()).contains("preprocessor_config.json"));
}

#[test]
fn configs_are_read_as_transformers_reads_them() {
    let golden = &goldens("CLIPModel")[0];
    // OpenAI's files have both spellings; the older one counts, whole.
    let folder = with_config(&golden.model, |config| {
        config["text_config_dict"] = serde_json::json!({"hidden_size": 768, "num_attention_heads": 12});
        config["vision_config_dict"] = Value::Null;
        config.as_object_mut().unwrap().remove("projection_dim");
    });
    let config = ClipConfig::open(folder.path()).unwrap();
    assert_eq!((config.text.hidden_size, config.text.vocab_size, config.text.eos_token_id), (768, 49408, 49407));
    assert_eq!((config.vision.image_size, config.projection_dim), (32, 512));
}

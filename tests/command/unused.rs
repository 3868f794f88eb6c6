//! What is not used is refused or reported, once, with the count.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use burn::tensor::TensorData;
use image::{Rgb, RgbImage};
use kiln::weights::write_tensors;
use parquet::{
    data_type::{ByteArray, ByteArrayType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};

use crate::support::program::{MODEL, copy, fails, overrides, succeeds, tensors, with_overrides, workshop};

static WORKSHOP: LazyLock<PathBuf> = LazyLock::new(|| workshop("inputs-unused"));

/// A folder of these files; each `.png` is an image of its own color.
fn data(name: &str, files: &[(&str, &str)]) -> PathBuf {
    let folder = WORKSHOP.join(name);
    for (number, (file, content)) in (1..).zip(files) {
        let path = folder.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match file.ends_with(".png") {
            true => RgbImage::from_pixel(64, 64, Rgb([number * 20, 100, 200])).save(path).unwrap(),
            false => fs::write(path, content).unwrap(),
        }
    }
    folder
}

/// `kiln prepare` on a folder, with a cache of its own.
fn prepare(folder: &Path) -> Vec<String> {
    let settings = [
        format!("data.path='{}'", folder.display()),
        format!("data.cache='{}'", folder.with_extension("cache").display()),
        "data.resolution=64".into(),
        "data.trigger=''".into(),
        "data.validation_split=0".into(),
    ];
    with_overrides("prepare", &overrides(&WORKSHOP, "any", &settings.each_ref().map(String::as_str)))
}

/// The warnings of `kiln prepare`.
fn warnings(folder: &Path) -> Vec<String> {
    let (_, said) = succeeds(&prepare(folder));
    said.lines().filter(|line| line.contains("WARN")).map(String::from).collect()
}

/// `kiln generate` with as little work as possible.
fn generate(model: &Path, latents: &Path, more: &[&str]) -> Vec<String> {
    let (model, latents) = (model.to_str().unwrap(), latents.to_str().unwrap());
    let steps: &[&str] = if more.contains(&"--steps") { &[] } else { &["--steps", "2"] };
    let size = [&["--width", "32", "--height", "32", "--latents", latents], steps].concat();
    [&["generate", "--model", model], &size[..], more].concat().into_iter().map(String::from).collect()
}

#[test]
fn a_row_with_more_fields_than_headings_is_an_error_with_its_line() {
    let folder = data("comma", &[("a.png", ""), ("metadata.csv", "file_name,text\na.png,a cat, sitting on a mat\n")]);
    let said = fails(&prepare(&folder));
    assert!(said.contains("metadata.csv line 2: has 3 fields under 2 headings") && said.contains("quotes"), "{said}");
    fs::write(folder.join("metadata.csv"), "file_name,text,text\na.png,a cat,a dog\n").unwrap();
    let said = fails(&prepare(&folder));
    assert!(said.contains("metadata.csv: two columns are called `text`"), "{said}");
    fs::write(folder.join("metadata.csv"), "file_name,text\na.png,\"a cat, sitting\"\n").unwrap();
    assert_eq!(warnings(&folder), [] as [String; 0]);
}

#[test]
fn a_caption_that_is_no_text_is_an_error() {
    let row = r#"{"file_name": "a.png", "text": ["a cat", "a dog"]}"#;
    let said = fails(&prepare(&data("listed", &[("a.png", ""), ("metadata.jsonl", row)])));
    assert!(said.contains("metadata.jsonl line 1, a.png: `text` is a list"), "{said}");
}

#[test]
fn images_columns_and_captions_that_are_left_out_are_counted_in_one_line() {
    let rows = "file_name,text,rating\na.png,a boat,5\n";
    let files = [("a.png", ""), ("b.png", ""), ("c.png", ""), ("a.txt", "old"), ("metadata.csv", rows)];
    let said = warnings(&data("unlisted", &files));
    let [line] = &said[..] else { panic!("{said:#?}") };
    for part in [
        "columns of metadata.csv: 1 (`rating`)",
        "images that no metadata file lists: 2 (`b.png` and `c.png`)",
        ".txt files of images whose captions are in a metadata file: 1 (`a.txt`)",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let said =
        warnings(&data("orphans", &[("a.png", ""), ("a.txt", "a boat"), ("boat.txt", "a boat"), ("x.parquet", "")]));
    let [line] = &said[..] else { panic!("{said:#?}") };
    assert!(line.contains(".txt files without an image of that name: 1 (`boat.txt`)"), "{line}");
    assert!(line.contains(".parquet files beside images: 1 (`x.parquet`)"), "{line}");
}

#[test]
fn metadata_in_a_sub_folder_speaks_for_the_images_there() {
    let row = r#"{"file_name": "a.png", "text": "a boat"}"#;
    let files = [("train/a.png", ""), ("train/metadata.jsonl", row), ("b.png", ""), ("b.txt", "a tree")];
    let (_, said) = succeeds(&prepare(&data("nested", &files)));
    assert!(said.contains("2 samples") && !said.contains("WARN"), "{said}");
}

#[test]
fn kohyas_folders_count_as_often_as_they_say() {
    let files = [("3_dog/a.png", ""), ("3_dog/a.txt", "a dog"), ("cat/b.png", ""), ("cat/b.txt", "a cat")];
    let (_, said) = succeeds(&prepare(&data("repeats", &files)));
    assert!(said.contains("repeats from the names of folders: 3_dog (1 image, 3 times each)"), "{said}");
    let said = fails(&prepare(&data("zero", &[("0_dog/a.png", ""), ("0_dog/a.txt", "a dog")])));
    assert!(said.contains("0_dog/a.png: ") && said.contains("0 repeats"), "{said}");
}

#[test]
fn captions_and_prompts_that_lose_their_end_are_counted_every_time() {
    let long = "one of many words ".repeat(60);
    let folder = data("long", &[("a.png", ""), ("a.txt", &long), ("b.png", ""), ("b.txt", "a boat")]);
    for _ in 0..2 {
        // The second time the cache is complete, and nothing is encoded.
        let said = warnings(&folder);
        let [line] = &said[..] else { panic!("{said:#?}") };
        assert!(line.contains("1 of 2 different captions are longer than the 64 tokens that T5 reads"), "{line}");
        assert!(line.contains("one of many words"), "{line}");
    }
    let latents = WORKSHOP.join("long.safetensors");
    let (_, said) = succeeds(&generate(Path::new(MODEL), &latents, &["--prompt", &long, "--prompt", "a boat"]));
    assert!(said.contains("1 of 2 prompts are longer than the 64 tokens that T5 reads"), "{said}");
    let (_, said) = succeeds(&generate(Path::new("tests/fixtures/tiny-sd"), &latents, &["--prompt", &long]));
    assert!(said.contains("1 of 2 prompts are longer than the 77 tokens that the text encoder reads"), "{said}");
}

#[test]
fn of_two_copies_of_the_weights_the_shards_are_read_and_the_other_is_named() {
    let model = WORKSHOP.join("two-sources");
    copy(MODEL, &model);
    let transformer = model.join("transformer");
    let [single, shard] = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-00001-of-00001.safetensors"];
    fs::copy(transformer.join(single), transformer.join(shard)).unwrap();
    let stale = tensors(transformer.join(single)).into_iter().map(|(name, data)| {
        let zeros = TensorData::zeros::<f32, _>(data.shape.to_vec());
        (name, zeros.convert_dtype(data.dtype))
    });
    let stale: std::collections::BTreeMap<_, _> = stale.collect();
    write_tensors(transformer.join(single), &stale, &Default::default()).unwrap();
    let map: serde_json::Map<_, _> = stale.keys().map(|name| (name.clone(), shard.into())).collect();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    fs::write(transformer.join(format!("{single}.index.json")), index).unwrap();

    let [found, wanted] = ["found", "wanted"].map(|name| WORKSHOP.join(name).with_extension("safetensors"));
    let (_, said) = succeeds(&generate(&model, &found, &["--prompt", "a boat"]));
    succeeds(&generate(Path::new(MODEL), &wanted, &["--prompt", "a boat"]));
    assert_eq!(tensors(&found), tensors(&wanted));
    let lines: Vec<_> = said.lines().filter(|line| line.contains("not reading 1")).collect();
    let [line] = &lines[..] else { panic!("{said}") };
    assert!(line.contains(&format!("`{shard}`")) && line.contains(&format!("`{single}`")), "{line}");
}

#[test]
fn settings_of_fluxs_scheduler_are_applied_or_refused_before_any_work() {
    let set = |name: &str, key: &str, value: serde_json::Value| {
        let model = WORKSHOP.join(name);
        copy(MODEL, &model);
        let path = model.join("scheduler/scheduler_config.json");
        let mut settings: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        settings[key] = value;
        fs::write(path, settings.to_string()).unwrap();
        model
    };
    let latents = |model: &Path| {
        let path = WORKSHOP.join("latents.safetensors");
        let (_, said) = succeeds(&generate(model, &path, &["--prompt", "a boat", "--steps", "4"]));
        (tensors(path), said)
    };
    let (plain, _) = latents(Path::new(MODEL));
    for (name, key, value) in [
        ("karras", "use_karras_sigmas", true.into()),
        ("terminal", "shift_terminal", 0.3.into()),
        ("linear", "time_shift_type", "linear".into()),
        ("stochastic", "stochastic_sampling", true.into()),
    ] {
        assert_ne!(latents(&set(name, key, value)).0, plain, "{key} changes nothing");
    }
    let (same, said) = latents(&set("stranger", "use_stranger_sigmas", true.into()));
    assert_eq!(same, plain);
    let line = said.lines().filter(|line| line.contains("WARN") && line.contains("`use_stranger_sigmas`")).count();
    assert_eq!(line, 1, "{said}");
    for (name, key, value) in
        [("class", "_class_name", "FlowMatchHeunDiscreteScheduler".into()), ("inverted", "invert_sigmas", true.into())]
    {
        let model = set(name, key, value);
        let said = fails(&generate(&model, &WORKSHOP.join("never.safetensors"), &["--prompt", "a boat"]));
        assert!(said.contains("scheduler_config.json") && said.contains(key) && said.contains("\nhint: "), "{said}");
        let path = format!("model.path='{}'", model.display());
        let said = fails(&with_overrides("prepare", &overrides(&WORKSHOP, "any", &[&path])));
        assert!(said.contains(key), "{said}");
    }
}

#[test]
fn parts_of_two_models_are_refused_by_their_widths() {
    let model = WORKSHOP.join("mixed");
    copy(MODEL, &model);
    fs::remove_dir_all(model.join("text_encoder_2")).unwrap();
    copy("tests/fixtures/flux/text_encoder_2", model.join("text_encoder_2"));
    let said = fails(&generate(&model, &WORKSHOP.join("never.safetensors"), &["--prompt", "a boat"]));
    assert!(
        said.contains("transformer/config.json: `joint_attention_dim` is 64") && said.contains("text_encoder_2"),
        "{said}"
    );
}

/// A table of images and captions, as Hugging Face writes them.
fn table(path: &Path, rows: &[(Vec<u8>, &str)]) {
    let schema = "message schema { optional group image { optional binary bytes; optional binary path (UTF8); }
        optional binary text (UTF8); optional binary source (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let text = |text: &str| ByteArray::from(text.as_bytes().to_vec());
    let columns: [(i16, Vec<ByteArray>); 4] = [
        (2, rows.iter().map(|(image, _)| ByteArray::from(image.clone())).collect()),
        (2, rows.iter().map(|_| text("a.png")).collect()),
        (1, rows.iter().map(|(_, caption)| text(caption)).collect()),
        (1, rows.iter().map(|_| text("web")).collect()),
    ];
    for (level, values) in columns {
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&vec![level; rows.len()]), None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn tables_of_images_and_captions_are_read_where_there_are_no_images() {
    let folder = data("tables", &[("data/test.parquet", "")]);
    let image = |colour: u8| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        RgbImage::from_pixel(64, 64, Rgb([colour; 3])).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    };
    table(&folder.join("data/train-00000.parquet"), &[(image(10), "a boat"), (image(200), "a tree")]);
    let (_, said) = succeeds(&prepare(&folder));
    assert!(said.contains("2 samples"), "{said}");
    assert!(said.contains(".parquet files of other splits than train: 1 (`data/test.parquet`)"), "{said}");
    assert!(said.contains("columns of data/train-00000.parquet: 1 (`source`)"), "{said}");
}

/// The tensors of a low-rank pair on `module`, in kohya's names, with values that change an image.
fn pair(module: &str, outputs: usize, inputs: usize) -> [(String, TensorData); 2] {
    let values = |count: usize| (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 100.0).collect::<Vec<_>>();
    [
        (format!("{module}.lora_down.weight"), TensorData::new(values(2 * inputs), [2, inputs])),
        (format!("{module}.lora_up.weight"), TensorData::new(values(2 * outputs), [outputs, 2])),
    ]
}

#[test]
fn the_text_encoder_part_of_a_lora_is_left_out_only_on_request_and_reported() {
    let file = |name: &str, tensors: &[[(String, TensorData); 2]]| {
        let path = WORKSHOP.join(name).with_extension("safetensors");
        write_tensors(&path, &tensors.iter().flatten().cloned().collect(), &Default::default()).unwrap();
        path.to_str().unwrap().to_string()
    };
    let denoiser = pair("lora_unet_double_blocks_0_img_attn_proj", 96, 96);
    // Of another width than the model's, and in an encoder that the model does not have.
    let text = pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", 7, 5);
    let other = pair("lora_te2_text_model_encoder_layers_0_mlp_fc1", 7, 5);
    let alone = file("denoiser", std::slice::from_ref(&denoiser));
    let mixed = file("mixed", &[denoiser.clone(), text.clone()]);
    let unknown = file("unknown", &[denoiser, other]);
    let only = file("text", &[text]);
    let latents = |name: &str| WORKSHOP.join(name).with_extension("latents.safetensors");
    let generate = |name: &str, more: &[&str]| {
        generate(Path::new(MODEL), &latents(name), &[&["--prompt", "a boat"], more].concat())
    };
    succeeds(&generate("plain", &[]));
    succeeds(&generate("alone", &["--lora", &alone]));
    assert_ne!(tensors(latents("plain")), tensors(latents("alone")));
    for (name, path) in [("mixed", &mixed), ("unknown", &unknown)] {
        let said = fails(&generate(name, &["--lora", path]));
        assert!(said.contains("`--no-lora-text-encoders` leaves out the part for text encoders"), "{said}");
        assert!(!latents(name).exists());
        let (_, said) = succeeds(&generate(name, &["--lora", path, "--no-lora-text-encoders"]));
        let lines = said.lines().filter(|line| line.contains("WARN") && line.contains("2 tensors for text encoders"));
        assert_eq!(lines.count(), 1, "{said}");
        assert_eq!(tensors(latents(name)), tensors(latents("alone")));
    }
    let said = fails(&generate("only", &["--lora", &only, "--no-lora-text-encoders"]));
    assert!(said.contains("only text encoders"), "{said}");
    // If the model supports all of it, nothing else is offered; and a file without such a part loses nothing.
    let (_, said) = succeeds(&generate("kept", &["--lora", &alone, "--no-lora-text-encoders"]));
    assert!(!said.contains("left out"), "{said}");
    let said = fails(&generate("only", &["--lora", &only]));
    assert!(!said.contains("--no-lora-text-encoders"), "{said}");
}

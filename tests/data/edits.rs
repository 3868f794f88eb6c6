//! Preparing edits from each kind of source.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Cursor,
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::{Device, TensorData};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use kiln::{
    data::{
        BatchOrder, Cell, DataConfig, DatasetKind, Dropped, LatentDataset, Place, Prefetch, SampleIndex, joint_dropout,
        prepare,
    },
    error::{Error, Problem, Result},
    rng::Seed,
};
use parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use serde_json::json;
use tempfile::TempDir;

use crate::support::encoders::{Fake, silent};

/// An edit, its images as PNG files.
#[derive(Clone)]
struct Edit {
    original: Vec<u8>,
    edited: Vec<u8>,
    instruction: String,
}

const KEPT: Dropped = Dropped { text: false, image: false };

fn png(width: u32, height: u32, color: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let image = RgbImage::from_fn(width, height, |x, y| Rgb(color(x, y)));
    DynamicImage::from(image).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Edits of three shapes, all different.
fn edits(count: usize) -> Vec<Edit> {
    let edit = |i: usize| {
        let (width, height) = [(64, 64), (80, 48), (48, 80)][i % 3];
        Edit {
            original: png(width, height, |x, y| [(x * 3) as u8, (y * 3) as u8, (i * 5) as u8]),
            edited: png(width, height, |x, y| [(y * 3) as u8, (x * 3) as u8, 255 - (i * 5) as u8]),
            instruction: format!("make it number {i}"),
        }
    };
    (0..count).map(edit).collect()
}

fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A folder with `metadata.jsonl`.
fn listed(edits: &[Edit]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut lines = String::new();
    for (i, edit) in edits.iter().enumerate() {
        let (original, edited) = (format!("before/{i}.png"), format!("after/{i}.png"));
        write(folder.path().join(&original), &edit.original);
        write(folder.path().join(&edited), &edit.edited);
        lines += &json!({
            "original": original, "edited": edited, "instruction": edit.instruction,
            "original_caption": format!("thing {i}"), "edited_caption": " ", "score": 3,
        })
        .to_string();
        lines += "\n";
    }
    write(folder.path().join("metadata.jsonl"), lines);
    folder
}

/// A folder with `metadata.csv` and the columns of a Hugging Face folder of images.
fn listed_as_csv(edits: &[Edit]) -> TempDir {
    let folder = listed(edits);
    fs::remove_file(folder.path().join("metadata.jsonl")).unwrap();
    let mut text = "input_image_file_name, edited_image_file_name,edit_prompt,original_prompt\n".to_string();
    for (i, edit) in edits.iter().enumerate() {
        text += &format!("before/{i}.png,./after/{i}.png,\"{}\",thing {i}\n", edit.instruction);
    }
    write(folder.path().join("metadata.csv"), text);
    folder
}

/// Two folders with sub-folders, the instructions beside the edited images, the originals, or in a folder of their own.
fn paired(edits: &[Edit]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (i, edit) in edits.iter().enumerate() {
        let below = ["", "a/", "a/b.c/"][i % 3];
        write(folder.path().join(format!("original/{below}{i}.png")), &edit.original);
        write(folder.path().join(format!("edited/{below}{i}.PNG")), &edit.edited);
        let place = ["edited", "original", "instruction"][i / 3 % 3];
        write(folder.path().join(format!("{place}/{below}{i}.txt")), format!("{}\n", edit.instruction));
    }
    folder
}

/// The same under the names that diffusers' documentation has.
fn renamed(edits: &[Edit]) -> TempDir {
    let folder = paired(edits);
    for (name, other) in [("original", "original_images"), ("edited", "edited_images")] {
        fs::rename(folder.path().join(name), folder.path().join(other)).unwrap();
    }
    folder
}

/// `metadata.jsonl` and its images in a folder below, as Hugging Face's folders of images have it.
fn nested(edits: &[Edit]) -> TempDir {
    let (folder, listed) = (tempfile::tempdir().unwrap(), listed(edits));
    let train = folder.path().join("train");
    fs::create_dir_all(&train).unwrap();
    for name in ["before", "after", "metadata.jsonl"] {
        fs::rename(listed.path().join(name), train.join(name)).unwrap();
    }
    folder
}

/// A Parquet file of a plain column of bytes and one of paths, with these codecs for their pages.
fn plain_table(path: &Path, edits: &[Edit], edited: &[String], compression: Compression) {
    let schema =
        "message schema { required binary original; required binary edited (STRING); required binary edit (STRING); }";
    let schema = parse_message_type(schema).unwrap();
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema.into(), properties.into()).unwrap();
    let mut out = writer.next_row_group().unwrap();
    let bytes = |values: Vec<Vec<u8>>| values.into_iter().map(ByteArray::from).collect::<Vec<_>>();
    for values in [
        bytes(edits.iter().map(|edit| edit.original.clone()).collect()),
        bytes(edited.iter().map(|path| path.clone().into_bytes()).collect()),
        bytes(edits.iter().map(|edit| edit.instruction.clone().into_bytes()).collect()),
    ] {
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
    }
    out.close().unwrap();
    writer.close().unwrap();
}

/// A column of a Parquet file: where a cell of `None` ends in its levels, and its values.
fn column(cells: &[Option<Vec<u8>>], filled: i16) -> (Vec<ByteArray>, Vec<i16>) {
    let levels = cells.iter().map(|cell| if cell.is_some() { filled } else { filled - 1 });
    (cells.iter().flatten().map(|cell| cell.clone().into()).collect(), levels.collect())
}

/// Writes a Parquet file in the layout of Hugging Face, in groups of `rows` rows.
fn table(path: &Path, edits: &[Edit], rows: usize, compression: Compression) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let picture =
        |name: &str| format!("optional group {name} {{ optional binary bytes; optional binary path (STRING); }}");
    let (original, edited) = (picture("original_image"), picture("edited_image"));
    let text = "optional binary original_prompt (STRING); optional int64 score; optional binary edit_prompt (STRING);";
    let schema = parse_message_type(&format!("message schema {{ {original} {text} {edited} }}")).unwrap();
    // Small pages, so that there are several in a group.
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_data_page_size_limit(4000)
        .set_write_batch_size(3)
        .build();
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema.into(), properties.into()).unwrap();
    for (number, group) in edits.chunks(rows).enumerate() {
        let some = |text: String| Some(text.into_bytes());
        let bytes = |bytes: &Vec<u8>| Some(bytes.clone()).filter(|bytes| !bytes.is_empty());
        let things: Vec<_> = (0..group.len()).map(|i| some(format!("thing {}", number * rows + i))).collect();
        let columns = [
            column(&group.iter().map(|edit| bytes(&edit.original)).collect::<Vec<_>>(), 2),
            column(&vec![some("a.png".into()); group.len()], 2),
            column(&things, 1),
            (Vec::new(), vec![0; group.len()]),
            column(&group.iter().map(|edit| bytes(&edit.instruction.clone().into_bytes())).collect::<Vec<_>>(), 1),
            column(&group.iter().map(|edit| bytes(&edit.edited)).collect::<Vec<_>>(), 2),
            column(&vec![None; group.len()], 2),
        ];
        let mut out = writer.next_row_group().unwrap();
        for (i, (values, levels)) in columns.into_iter().enumerate() {
            let mut column = out.next_column().unwrap().unwrap();
            if i == 3 {
                let integers = column.typed::<parquet::data_type::Int64Type>();
                integers.write_batch(&[], Some(&levels), None).unwrap();
            } else {
                column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
            }
            column.close().unwrap();
        }
        out.close().unwrap();
    }
    writer.close().unwrap();
}

fn tabled(edits: &[Edit]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = edits.split_at(edits.len() / 2);
    table(&folder.path().join("data/train-00000-of-00002.parquet"), first, 5, Compression::SNAPPY);
    table(&folder.path().join("data/train-00001-of-00002.parquet"), second, 100, Compression::GZIP(Default::default()));
    // Another split of the same dataset, which is not trained on.
    table(&folder.path().join("data/test-00000-of-00001.parquet"), first, 5, Compression::SNAPPY);
    folder
}

fn config(folder: &TempDir) -> DataConfig {
    DataConfig { path: folder.path().into(), resolution: 64, batch_size: 2, ..Default::default() }
}

/// Prepares; also returns how many prompts and images were encoded.
fn run(config: &DataConfig) -> (LatentDataset, usize, usize) {
    let mut fake = Fake::default();
    let dataset = prepare(config, DatasetKind::Edits, &[], &mut fake, &silent).unwrap();
    (dataset, fake.prompts.len(), fake.pictures)
}

fn problems(folder: &TempDir) -> Vec<String> {
    match prepare(&config(folder), DatasetKind::Edits, &[], &mut Fake::default(), &silent).unwrap_err() {
        Error { problem: Problem::Many(problems), .. } => problems,
        error => panic!("{error}"),
    }
}

/// Asserts that there is one problem for each of `expected`, in any order.
#[track_caller]
fn assert_problems(folder: &TempDir, expected: &[&str]) {
    let problems = problems(folder);
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for expected in expected {
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{expected}: not in {problems:#?}");
    }
}

/// The samples in an order that follows from their content: instruction, moments of the original and of the edited image,
/// embeddings, what the original shows.
type Content = Vec<(String, Vec<f32>, Vec<f32>, Vec<f32>, Option<String>)>;

fn content(dataset: &LatentDataset) -> Content {
    let read = |sample| {
        let batch = dataset.read(&[SampleIndex { sample, flipped: false }], &[KEPT]).unwrap();
        let facts = &dataset.samples()[sample];
        let [original, edited, prompt] =
            [batch.original.unwrap(), batch.moments, batch.prompt].map(|v| v.into_vec().unwrap());
        (facts.caption.clone(), original, edited, prompt, facts.original_caption.clone())
    };
    let mut all: Content = (0..dataset.samples().len()).map(read).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn every_source_gives_the_same_samples() {
    let edits = edits(20);
    let listed = listed(&edits);
    let expected = run(&config(&listed)).0;
    assert_eq!(expected.samples().len(), 20);
    let folders = [
        (listed_as_csv(&edits), true),
        (paired(&edits), false),
        (renamed(&edits), false),
        (nested(&edits), true),
        (tabled(&edits), true),
    ];
    for (folder, has_captions) in folders {
        let config = config(&folder);
        let (dataset, prompts, pictures) = run(&config);
        assert_eq!((prompts, pictures), (21, 40), "each instruction and the empty prompt, both images of each edit");
        let mut samples = content(&expected);
        if !has_captions {
            samples.iter_mut().for_each(|sample| sample.4 = None);
        }
        if config.path.join("data").is_dir() {
            // Rows of a table are counted from its first one.
            samples.iter_mut().for_each(|sample| {
                let number: usize = sample.0.rsplit(' ').next().unwrap().parse().unwrap();
                sample.4 = Some(format!("thing {}", number % 10));
            });
        }
        assert!(content(&dataset) == samples, "{}", folder.path().display());
        assert_eq!(dataset.fingerprint(), expected.fingerprint());
        // Nothing is encoded again, with and without the index.
        assert_eq!((run(&config).1, run(&config).2), (0, 0));
        fs::remove_file(config.cache_folder().join("index.json")).unwrap();
        assert_eq!((run(&config).1, run(&config).2), (0, 0));
        assert!(LatentDataset::open(&config, DatasetKind::Edits, &[], "", "").is_ok());
    }
}

#[test]
fn tables_hold_bytes_or_name_files_and_are_compressed_in_any_usual_way() {
    let edits = edits(6);
    let expected = run(&config(&paired(&edits))).0.fingerprint();
    for compression in [Compression::ZSTD(Default::default()), Compression::LZ4_RAW, Compression::UNCOMPRESSED] {
        let folder = tempfile::tempdir().unwrap();
        for (i, edit) in edits.iter().enumerate() {
            // Below the folder of the table, or below the data folder.
            write(
                folder.path().join(if i % 2 == 0 { format!("data/img/{i}.png") } else { format!("img/{i}.png") }),
                &edit.edited,
            );
        }
        let names: Vec<String> = (0..edits.len()).map(|i| format!("img/{i}.png")).collect();
        plain_table(&folder.path().join("data/train.parquet"), &edits, &names, compression);
        let dataset = run(&config(&folder)).0;
        assert_eq!(dataset.fingerprint(), expected, "{compression:?}");
        assert_eq!(dataset.samples()[0].picture.place, Place::from("data/img/0.png".to_string()));
    }
    let folder = tempfile::tempdir().unwrap();
    let names = ["img/0.png", "../1.png", "/etc/2.png", "", "4.png", "5.png"].map(String::from);
    plain_table(&folder.path().join("a.parquet"), &edits, &names, Compression::SNAPPY);
    assert_problems(
        &folder,
        &[
            "a.parquet row 0 `edited`: there is no such image as img/0.png",
            "a.parquet row 1 `edited`: `../1.png` must be a path inside",
            "a.parquet row 2 `edited`: `/etc/2.png` must be a path inside",
            "a.parquet row 3 `edited`: holds no image",
            "a.parquet row 4 `edited`: there is no such image as 4.png",
            "a.parquet row 5 `edited`: there is no such image as 5.png",
        ],
    );
}

#[test]
fn the_edited_image_chooses_the_size_of_a_pair() {
    let mut all = edits(3);
    all[0].original = png(128, 128, |x, y| [x as u8, y as u8, 9]); // larger, of the same shape
    all[1].original = png(64, 64, |x, y| [x as u8, y as u8, 9]); // a square beside 80 × 48
    let folder = listed(&all);
    let (dataset, _, pictures) = run(&config(&folder));
    assert_eq!((dataset.samples().len(), pictures), (3, 6));
    for sample in dataset.samples() {
        let original = sample.original.as_ref().unwrap();
        assert_eq!(original.bucket, sample.picture.bucket);
    }
    assert_eq!(dataset.samples()[0].original.as_ref().unwrap().size, (128, 128));
    let batch = dataset.read(&[SampleIndex { sample: 1, flipped: false }], &[KEPT]).unwrap();
    assert_eq!(batch.original.unwrap().shape, batch.moments.shape);
}

#[test]
fn the_set_of_the_paper_is_read_with_its_list_of_good_seeds() {
    let all = edits(3);
    let folder = tempfile::tempdir().unwrap();
    for (i, edit) in all.iter().enumerate() {
        let below = folder.path().join(format!("000000{}", i / 2));
        write(below.join(format!("{i}_0.png")), &edit.original);
        write(below.join(format!("{i}_1.png")), &edit.edited);
        let prompt = json!({"input": format!("thing {}", i / 2), "edit": format!("make it number {}", i / 2), "output": "another"});
        write(below.join("prompt.json"), prompt.to_string());
        write(below.join("metadata.jsonl"), "{\"seed\": 0, \"p2p_threshold\": 0.3}\n");
    }
    let whole = run(&config(&folder)).0;
    assert_eq!(whole.samples().len(), 3);
    let sample = &whole.samples()[0];
    assert_eq!(sample.caption, "make it number 0");
    assert_eq!(
        (sample.original_caption.as_deref(), sample.edited_caption.as_deref()),
        (Some("thing 0"), Some("another"))
    );
    assert_eq!(sample.original.as_ref().unwrap().place, Place::from("0000000/0_0.png".to_string()));
    write(folder.path().join("seeds.json"), json!([["0000000", ["1"]], ["0000001", ["2"]]]).to_string());
    let files: Vec<_> = run(&config(&folder)).0.samples().iter().map(|s| s.picture.place.file.clone()).collect();
    assert_eq!(files, ["0000000/1_1.png", "0000001/2_1.png"]);
    fs::remove_file(folder.path().join("0000001/2_0.png")).unwrap();
    write(folder.path().join("0000000/prompt.json"), "{}");
    assert_problems(
        &folder,
        &["0000001/2_1.png: there is no image 2_0 beside it", "0000000/prompt.json: missing field"],
    );
}

#[test]
fn a_sample_knows_its_places_and_captions() {
    let edits = edits(3);
    let dataset = run(&config(&listed(&edits))).0;
    let sample = &dataset.samples()[1];
    assert_eq!(sample.picture.place, Place::from("after/1.png".to_string()));
    assert_eq!(sample.original.as_ref().unwrap().place, Place::from("before/1.png".to_string()));
    assert_eq!(sample.original.as_ref().unwrap().bucket, sample.picture.bucket);
    assert_eq!((sample.original_caption.as_deref(), sample.edited_caption.as_deref()), (Some("thing 1"), None));

    let dataset = run(&config(&tabled(&edits))).0;
    let cell = Cell { row: 1, column: "edited_image.bytes".into() };
    let place = Place { file: "data/train-00001-of-00002.parquet".into(), cell: Some(cell) };
    assert_eq!(dataset.samples()[2].picture.place, place);
    assert_eq!(place.to_string(), "data/train-00001-of-00002.parquet row 1 `edited_image.bytes`");
}

#[test]
fn rows_of_a_long_table_are_found_by_number() {
    // More windows than are kept, in groups that do not align with them.
    let edits: Vec<Edit> = (0..300u32)
        .map(|i| Edit {
            original: png(16, 16, |x, _| [i as u8, (i / 256) as u8, x as u8]),
            edited: png(16, 16, |x, _| [i as u8, (i / 256) as u8, 255 - x as u8]),
            instruction: format!("number {}", i % 7),
        })
        .collect();
    for (compression, rows) in [(Compression::UNCOMPRESSED, 1000), (Compression::SNAPPY, 33)] {
        let folder = tempfile::tempdir().unwrap();
        table(&folder.path().join("edits.parquet"), &edits, rows, compression);
        let (dataset, prompts, pictures) = run(&DataConfig { resolution: 16, ..config(&folder) });
        assert_eq!((dataset.samples().len(), prompts, pictures), (300, 8, 600));
        for (i, sample) in dataset.samples().iter().enumerate() {
            assert_eq!(sample.caption, format!("number {}", i % 7));
            let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
            assert_eq!(sample.picture.hash, hash(&edits[i].edited));
            assert_eq!(sample.original.as_ref().unwrap().hash, hash(&edits[i].original));
        }
    }
}

/// `tests/fixtures/tables/make.py` describes their contents; `KILN_TABLES` names another folder of such tables.
#[test]
fn tables_of_other_programs_are_read() {
    let folder = std::env::var_os("KILN_TABLES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tables"), PathBuf::from);
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|file| file.extension().is_some_and(|extension| extension == "parquet")).collect();
    assert!(files.len() > 1);
    for file in files {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(&file, folder.path().join("a.parquet")).unwrap();
        let dataset = run(&config(&folder)).0;
        assert!(dataset.samples().len() >= 20);
        for (sample, facts) in dataset.samples().iter().enumerate() {
            let batch = dataset.read(&[SampleIndex { sample, flipped: false }], &[KEPT]).unwrap();
            let red = |data: TensorData| ((data.into_vec::<f32>().unwrap()[0] + 1.0) * 127.5).round() as usize;
            let found = (red(batch.original.unwrap()), red(batch.moments), facts.caption.clone());
            assert_eq!(found, (sample, 255 - sample, format!("edit {sample}")), "{}", file.display());
        }
    }
}

#[test]
fn an_original_of_several_edits_is_encoded_once_and_stays_on_one_side() {
    let mut all = edits(60);
    for i in 0..60 {
        all[i].original = all[i / 6 * 6].original.clone(); // six edits of each of ten originals
        (all[i].edited, all[i].instruction) = (all[i / 6 * 6].edited.clone(), format!("edit {i}"));
    }
    let folder = listed(&all);
    let config = DataConfig { validation_split: 0.3, ..config(&folder) };
    let (dataset, _, pictures) = run(&config);
    assert_eq!(pictures, 20);
    for seed in 0..10 {
        let split = dataset.split(Seed(seed));
        assert_eq!(split.train.len() + split.held_out.len(), 60);
        let originals = |side: &[usize]| -> BTreeSet<String> {
            side.iter().map(|&i| dataset.samples()[i].original.as_ref().unwrap().hash.clone()).collect()
        };
        let (train, held_out) = (originals(&split.train), originals(&split.held_out));
        assert!(train.is_disjoint(&held_out) && !train.is_empty() && !held_out.is_empty());
        let measured: usize = dataset.held_out(Seed(seed)).iter().map(Vec::len).sum();
        assert_eq!(measured, split.held_out.len());
    }
}

#[test]
fn a_batch_holds_both_images_and_dropped_conditions_are_empty() {
    let folder = listed(&edits(8));
    let dataset = run(&config(&folder)).0;
    let samples = [0, 3, 6].map(|sample| SampleIndex { sample, flipped: false });
    let whole = dataset.batch(&samples, &[KEPT; 3], &Device::flex()).unwrap();
    let dropped = [
        Dropped { text: true, image: false },
        Dropped { text: true, image: true },
        Dropped { text: false, image: true },
    ];
    let batch = dataset.batch(&samples, &dropped, &Device::flex()).unwrap();
    let original = batch.original.unwrap();
    assert_eq!((original.dims(), batch.moments.dims()), ([3, 6, 8, 8], [3, 6, 8, 8]));
    let values = |tensor: burn::tensor::Tensor<4>| tensor.into_data().into_vec::<f32>().unwrap();
    assert_eq!(values(batch.moments), values(whole.moments), "the target is never dropped");
    let (original, kept) = (values(original), values(whole.original.unwrap()));
    let row = original.len() / 3;
    assert_eq!(original[..row], kept[..row]);
    assert!(original[row..].iter().all(|&v| v == 0.0) && kept[row..].iter().any(|&v| v != 0.0));
    let pooled: Vec<f32> = batch.pooled.into_data().into_vec().unwrap();
    assert_eq!(pooled, [0.0, 1.0, 0.0, 1.0, "make it number 6".len() as f32, 1.0]);
    let null = dataset.embeds(&[""], &Device::flex()).unwrap().prompt.into_data();
    assert_eq!(batch.prompt.slice(1..2).into_data(), null);
}

#[test]
fn both_images_are_mirrored_together() {
    // Red grows from left to right in the original, and falls in the edited image.
    let (original, edited) =
        (png(64, 64, |x, _| [(x * 3) as u8, 0, 0]), png(64, 64, |x, _| [255 - (x * 3) as u8, 0, 0]));
    let folder = listed(&[Edit { original, edited, instruction: "turn the light around".into() }]);
    let config = DataConfig { flip: true, ..config(&folder) };
    let (dataset, _, pictures) = run(&config);
    assert_eq!(pictures, 4);
    for flipped in [false, true] {
        let batch = dataset.read(&[SampleIndex { sample: 0, flipped }], &[KEPT]).unwrap();
        let grows = |data: TensorData| data.into_vec::<f32>().unwrap()[..8].is_sorted();
        assert_eq!((grows(batch.original.unwrap()), grows(batch.moments)), (!flipped, flipped));
    }
}

#[test]
fn a_run_continues_with_the_same_edits_from_whatever_source() {
    let edits = edits(20);
    let (listed, tabled) = (listed(&edits), tabled(&edits));
    let prepared = |folder: &TempDir| {
        let config = DataConfig { flip: true, conditioning_dropout: 0.2, validation_split: 0.2, ..config(folder) };
        Arc::new(run(&config).0)
    };
    let dataset = prepared(&listed);
    let all: Vec<_> =
        Prefetch::start(dataset.clone(), dataset.plan(Seed(4)), 0, 2).take(30).collect::<Result<_>>().unwrap();
    for (dataset, start) in [(&dataset, 7), (&prepared(&tabled), 0), (&prepared(&tabled), 13)] {
        let later = Prefetch::start(dataset.clone(), dataset.plan(Seed(4)), start as u64, 2).take(30 - start);
        for (later, first) in later.zip(&all[start..]) {
            let later = later.unwrap();
            assert_eq!(
                (&later.moments, &later.original, &later.prompt),
                (&first.moments, &first.original, &first.prompt)
            );
        }
    }
    assert!(all.iter().any(|batch| batch.original.as_ref().unwrap().iter::<f32>().all(|v| v == 0.0)));
}

#[test]
fn conditions_are_dropped_by_the_joint_rule() {
    let plan = |config: &DataConfig| BatchOrder::new(config, DatasetKind::Edits, Seed(2), Vec::new());
    let dropped = plan(&DataConfig { conditioning_dropout: 0.1, caption_dropout: 1.0, ..Default::default() });
    let all: Vec<Dropped> = (0..1000).flat_map(|n| dropped.dropped(n, 4)).collect();
    for (text, image, expected) in [(true, false, 400), (true, true, 400), (false, true, 400), (false, false, 2800)] {
        let count = all.iter().filter(|&&dropped| dropped == Dropped { text, image }).count();
        assert!(count.abs_diff(expected) < 80, "{count} of 4000 for {text} {image}");
    }
    assert_eq!(dropped.dropped(7, 4), dropped.dropped(7, 4));
    let never = plan(&DataConfig { conditioning_dropout: 0.0, ..Default::default() });
    assert!(never.dropped(0, 1000).iter().all(|&dropped| dropped == KEPT));
}

#[test]
fn the_joint_rule_is_that_of_diffusers() {
    for golden in crate::support::goldens("StableDiffusionInstructPix2PixPipeline") {
        let probability = golden.section("train_ip2p")["conditioning_dropout_prob"].as_f64().unwrap();
        for step in 1..=5 {
            let values = |name: &str| golden.floats(&format!("train_ip2p.step{step}.{name}"));
            let got: Vec<Dropped> = values("random_p").into_iter().map(|u| joint_dropout(u, probability)).collect();
            let flags = values("prompt_dropped").into_iter().zip(values("image_mask"));
            let want: Vec<Dropped> =
                flags.map(|(text, image)| Dropped { text: text != 0.0, image: image == 0.0 }).collect();
            assert_eq!(got, want, "{} step {step}", golden.folder.display());
        }
    }
}

#[test]
fn all_problems_of_a_list_are_found_together() {
    let mut all = edits(8);
    all[2].original.truncate(100);
    all[3].instruction = " ".into();
    all[4].original = png(8, 64, |_, _| [0; 3]);
    let folder = listed(&all);
    fs::remove_file(folder.path().join("before/5.png")).unwrap();
    let list = folder.path().join("metadata.jsonl");
    let more = [
        json!({"original": "before/0.png", "edited": "after/0.png", "instruction": "make it number 0"}),
        json!({"original": "../6.png", "instruction": "x"}),
        json!({"input_image": "before/7.png", "output_image": "after/7.gif", "edit": "x"}),
        json!({"original": "before/7.png", "edited": "after/7.png"}),
        json!({"original": "before/7.png", "edited": "after/7.png", "prompt": "another edit of the same"}),
    ];
    let more: Vec<String> = more.iter().map(ToString::to_string).collect();
    write(&list, fs::read_to_string(&list).unwrap() + &more.join("\n") + "\n{");
    assert_problems(
        &folder,
        &[
            "before/2.png: cannot be decoded",
            "line 4, after/3.png: its instruction is empty",
            "before/4.png: is too small",
            "line 6, original image: there is no such image as before/5.png",
            "line 9, after/0.png: is listed twice",
            "line 10, original image: `../6.png` must be a path inside",
            "line 10, edited image: is not given (column `edited`; also edited_image,",
            "line 11, edited image: after/7.gif is not a JPEG",
            "line 12, after/7.png: has no instruction (column `instruction`; also edit_prompt,",
            "line 14: is not JSON",
        ],
    );
}

#[test]
fn all_problems_of_two_folders_are_found_together() {
    let folder = paired(&edits(7));
    let at = |name: &str| folder.path().join(name);
    fs::remove_file(at("original/0.png")).unwrap();
    fs::remove_file(at("edited/a/1.PNG")).unwrap();
    fs::remove_file(at("edited/a/b.c/2.txt")).unwrap();
    write(at("original/3.txt"), "\u{feff} \n");
    fs::copy(at("original/a/4.png"), at("original/a/4.webp")).unwrap();
    write(at("edited/moving.gif"), "GIF89a");
    write(at("edited/notes.md"), "no image");
    assert_problems(
        &folder,
        &[
            "edited/0.PNG: there is no image original/0 of any extension",
            "original/a/1.png: there is no image edited/a/1 of any extension",
            "edited/a/b.c/2.PNG: there is no instruction edited/a/b.c/2.txt",
            "original/3.txt: its instruction is empty",
            "original/a/4.webp: has the same name as original/a/4.png",
            "edited/moving.gif: is not JPEG, PNG or WebP",
        ],
    );
    fs::remove_dir_all(at("edited")).unwrap();
    assert_problems(&folder, &["original/: there is no folder edited/ beside it"]);
}

#[test]
fn all_problems_of_tables_are_found_together() {
    let folder = tempfile::tempdir().unwrap();
    let mut all = edits(6);
    all[2].original.clear();
    all[3].instruction.clear();
    all[4].edited.truncate(60);
    table(&folder.path().join("a.parquet"), &all, 4, Compression::SNAPPY);
    write(folder.path().join("b.parquet"), "PAR1 and then nothing of use PAR1");
    let schema =
        parse_message_type("message schema { required binary original; required binary edit (STRING); }").unwrap();
    let file = File::create(folder.path().join("c.parquet")).unwrap();
    SerializedFileWriter::new(file, schema.into(), Default::default()).unwrap().close().unwrap();
    assert_problems(
        &folder,
        &[
            "a.parquet row 2 `original_image.bytes`: there is no such image as a.png",
            "a.parquet row 3: its instruction is empty",
            "a.parquet row 4 `edited_image.bytes`: cannot be decoded",
            "b.parquet: is not a Parquet file",
            "c.parquet: has no column of edited images (column `edited`;",
        ],
    );
    let whole = fs::read(folder.path().join("a.parquet")).unwrap();
    // A damaged table is a problem, or has bad images, or is read; it never crashes the program.
    for place in (0..whole.len()).step_by(whole.len() / 60) {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x55;
        write(folder.path().join("a.parquet"), &damaged);
        assert!(!problems(&folder).is_empty());
    }
}

#[test]
fn what_does_not_suit_edits_is_one_clear_error() {
    let folder = listed(&edits(2));
    let fails = |config: DataConfig| {
        prepare(&config, DatasetKind::Edits, &[], &mut Fake::default(), &silent).unwrap_err().to_string()
    };
    let trigger = fails(DataConfig { trigger: "zpf".into(), ..config(&folder) });
    assert!(trigger.starts_with("`data.trigger`: ") && trigger.contains("hint: remove"), "{trigger}");
    assert!(
        fails(DataConfig { conditioning_dropout: 0.4, ..config(&folder) }).starts_with("`data.conditioning_dropout`: ")
    );
    let empty = tempfile::tempdir().unwrap();
    assert!(fails(config(&empty)).contains("there are no edits"));
    let both = paired(&edits(2));
    table(&both.path().join("a.parquet"), &edits(2), 5, Compression::SNAPPY);
    assert!(fails(config(&both)).contains("a.parquet: there are folders of images too: keep one of them"));
}

#[test]
fn the_fixture_of_edits_is_ready_to_train_on() {
    let cache = tempfile::tempdir().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/picture-edits");
    let config = DataConfig {
        path,
        resolution: 64,
        cache: Some(cache.path().into()),
        validation_split: 0.2,
        ..Default::default()
    };
    let (dataset, prompts, pictures) = run(&config);
    assert_eq!(
        (dataset.samples().len(), prompts, pictures),
        (28, 7, 55),
        "six instructions; one original has two edits"
    );
    assert!(
        dataset.samples().iter().all(|sample| sample.original_caption.is_some() && sample.edited_caption.is_some())
    );
    assert!(!dataset.held_out(Seed(0)).is_empty());
}

//! Preparing a folder of images with captions.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    io::Cursor,
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::{Device, FloatDType, TensorData};
use image::{DynamicImage, ImageEncoder, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use kiln::{
    data::{DataConfig, DatasetKind, Dropped, LatentDataset, Phase, Prefetch, Sample, SampleIndex, prepare},
    device::Dtype,
    error::Result,
    rng::Seed,
    weights::TensorFile,
};

use crate::support::encoders::{Fake, silent};

/// A folder of images in three shapes, each with a caption of its own, and a configuration for it.
fn folder(pictures: u32) -> (tempfile::TempDir, DataConfig) {
    let folder = tempfile::tempdir().unwrap();
    for i in 0..pictures {
        let (width, height) = [(64, 64), (80, 48), (48, 80)][i as usize % 3];
        let image = RgbImage::from_fn(width, height, |x, y| Rgb([(x * 3) as u8, (y * 3) as u8, (i * 8) as u8]));
        add(folder.path(), &format!("{i:02}.png"), image.into(), &format!("image number {i}"));
    }
    let config = DataConfig { path: folder.path().into(), resolution: 64, batch_size: 2, ..Default::default() };
    (folder, config)
}

fn add(folder: &Path, name: &str, image: DynamicImage, caption: &str) {
    image.save(folder.join(name)).unwrap();
    std::fs::write(folder.join(name).with_extension("txt"), caption).unwrap();
}

const KEPT: [Dropped; 1] = [Dropped { text: false, image: false }];

/// Prepares, and returns which prompts and how many images were encoded.
fn run(config: &DataConfig, mut fake: Fake) -> (LatentDataset, Vec<String>, usize) {
    let dataset = prepare(config, DatasetKind::Captions, &[], &mut fake, &silent).unwrap();
    assert!(!fake.text_loaded && !fake.vae_loaded, "encoders are still in memory");
    (dataset, fake.prompts, fake.pictures)
}

fn entries(config: &DataConfig, kind: &str) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(config.cache_folder().join(kind)).unwrap().flatten();
    let mut found: Vec<_> = folders
        .flat_map(|folder| std::fs::read_dir(folder.path()).unwrap().flatten())
        .map(|file| file.path())
        .collect();
    found.sort();
    found
}

/// The samples in words: file, caption, and the latents and embeddings read back.
fn content(dataset: &LatentDataset) -> Vec<(String, String, Vec<f32>, Vec<f32>)> {
    let read = |sample| {
        let batch = dataset.read(&[SampleIndex { sample, flipped: false }], &KEPT).unwrap();
        let facts = &dataset.samples()[sample];
        let values = |data: TensorData| data.into_vec::<f32>().unwrap();
        (facts.picture.place.file.clone(), facts.caption.clone(), values(batch.moments), values(batch.prompt))
    };
    (0..dataset.samples().len()).map(read).collect()
}

#[test]
fn everything_is_encoded_once_and_a_complete_cache_loads_nothing() {
    let (_folder, config) = folder(7);
    let (dataset, prompts, pictures) = run(&config, Fake::default());
    assert_eq!((prompts.len(), pictures), (8, 7), "seven captions, the empty prompt, seven images");
    assert!(prompts.contains(&String::new()));
    let (again, prompts, pictures) = run(&config, Fake::default());
    assert_eq!((prompts.len(), pictures), (0, 0));
    assert_eq!(content(&again), content(&dataset));
    assert_eq!(again.fingerprint(), dataset.fingerprint());
    assert_eq!(content(&LatentDataset::open(&config, DatasetKind::Captions, &[], "", "").unwrap()), content(&dataset));
}

#[test]
fn a_lost_or_broken_index_costs_no_encoding() {
    let (_folder, config) = folder(4);
    run(&config, Fake::default());
    let index = config.cache_folder().join("index.json");
    std::fs::write(&index, "{ cut off").unwrap();
    assert_eq!(run(&config, Fake::default()).2, 0);
    std::fs::remove_file(&index).unwrap();
    let (_, prompts, pictures) = run(&config, Fake::default());
    assert_eq!((prompts.len(), pictures), (0, 0));
    assert!(index.is_file());
}

#[test]
fn the_index_of_captions_is_that_of_the_first_release() {
    let written = r#"{"picture":{"file":"a.png","hash":"b","size":[64,48],"bucket":{"width":64,"height":48},"latents":["c"],
        "stamp":[123,1760000000000000000]},"caption":"a boat","prompt":"d"}"#;
    let sample: Sample = serde_json::from_str(written).unwrap();
    assert_eq!((sample.picture.place.file.as_str(), sample.picture.size), ("a.png", (64, 48)));
    let again: serde_json::Value = serde_json::to_value(&sample).unwrap();
    assert_eq!(again, serde_json::from_str::<serde_json::Value>(written).unwrap());
}

#[test]
fn changing_one_caption_reencodes_one_caption_and_no_image() {
    let (folder, config) = folder(6);
    let before = run(&config, Fake::default()).0;
    std::fs::write(folder.path().join("03.txt"), "something else").unwrap();
    assert!(
        LatentDataset::open(&config, DatasetKind::Captions, &[], "", "")
            .unwrap_err()
            .to_string()
            .contains("0 images and 1 prompts")
    );
    let (after, prompts, pictures) = run(&config, Fake::default());
    assert_eq!((prompts, pictures), (vec!["something else".to_string()], 0));
    assert_ne!(after.fingerprint(), before.fingerprint());
    for (before, after) in content(&before).into_iter().zip(content(&after)) {
        assert_eq!(before.2, after.2, "latents");
        assert_eq!(before == after, before.0 != "03.png");
    }
}

#[test]
fn equal_captions_are_encoded_once() {
    let (folder, config) = folder(6);
    (0..6).for_each(|i| std::fs::write(folder.path().join(format!("{i:02}.txt")), "the same").unwrap());
    let (_, mut prompts, _) = run(&config, Fake::default());
    prompts.sort();
    assert_eq!(prompts, ["", "the same"]);
}

#[test]
fn changing_one_image_or_the_vae_rebuilds_that_part() {
    let (folder, config) = folder(6);
    run(&config, Fake::default());
    // A copy under another name and a renamed file are known by content; a repainted one is new.
    std::fs::copy(folder.path().join("01.png"), folder.path().join("copy.png")).unwrap();
    std::fs::copy(folder.path().join("01.txt"), folder.path().join("copy.txt")).unwrap();
    std::fs::rename(folder.path().join("02.png"), folder.path().join("99.png")).unwrap();
    std::fs::rename(folder.path().join("02.txt"), folder.path().join("99.txt")).unwrap();
    assert_eq!(run(&config, Fake::default()).2, 0);
    RgbImage::from_pixel(64, 64, Rgb([9, 9, 9])).save(folder.path().join("03.png")).unwrap();
    let (_, prompts, pictures) = run(&config, Fake::default());
    assert_eq!((prompts.len(), pictures), (0, 1));

    let (_, prompts, pictures) = run(&config, Fake { vae: "another".into(), ..Default::default() });
    assert_eq!((prompts.len(), pictures), (0, 6), "another VAE: all different images, no prompt");
    let (_, prompts, pictures) = run(&config, Fake { text: "another".into(), ..Default::default() });
    assert_eq!(
        (prompts.len(), pictures),
        (7, 0),
        "other text encoders: all prompts, and the first VAE's latents are still there"
    );
}

#[test]
fn an_interrupted_preparation_continues() {
    let (_folder, config) = folder(9);
    let mut fake = Fake { fail_after: Some(4), ..Default::default() };
    assert!(
        prepare(&config, DatasetKind::Captions, &[], &mut fake, &silent)
            .unwrap_err()
            .to_string()
            .contains("the power went out")
    );
    assert!(!fake.vae_loaded, "released also after a failure");
    assert!(config.cache_folder().join("index.json").is_file(), "the images need not be checked again");
    let (continued, prompts, pictures) = run(&config, Fake::default());
    assert_eq!((prompts.len(), pictures), (0, 5));

    let (_other, whole) = folder(9);
    assert_eq!(content(&continued), content(&run(&whole, Fake::default()).0));
}

#[test]
fn a_cut_or_garbled_entry_is_rebuilt() {
    let (_folder, config) = folder(5);
    let expected = content(&run(&config, Fake::default()).0);
    for kind in ["latents", "prompts"] {
        for damage in [
            |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2),
            |bytes: &mut Vec<u8>| bytes[8] ^= 4,
            |bytes: &mut Vec<u8>| bytes.clear(),
        ] {
            let entry = &entries(&config, kind)[2];
            let mut bytes = std::fs::read(entry).unwrap();
            damage(&mut bytes);
            std::fs::write(entry, bytes).unwrap();
            let (dataset, prompts, pictures) = run(&config, Fake::default());
            assert_eq!(prompts.len() + pictures, 1, "{kind}");
            assert_eq!(content(&dataset), expected);
        }
    }
}

#[test]
fn an_entry_that_rots_during_training_is_an_error_and_then_rebuilt() {
    let (_folder, config) = folder(3);
    let dataset = run(&config, Fake::default()).0;
    let index = std::fs::metadata(config.cache_folder().join("index.json")).unwrap().modified().unwrap();
    let older = index - std::time::Duration::from_secs(60);
    // In the last tensor, and in the header.
    for place in [|length: usize| length - 1, |_| 8] {
        for entry in entries(&config, "latents") {
            let mut bytes = std::fs::read(&entry).unwrap();
            let place = place(bytes.len());
            bytes[place] ^= 4;
            std::fs::write(&entry, bytes).unwrap();
            // As if the disk had done it: the modification time does not reveal it.
            std::fs::File::options().write(true).open(&entry).unwrap().set_modified(older).unwrap();
        }
        for sample in 0..3 {
            let error = dataset.read(&[SampleIndex { sample, flipped: false }], &KEPT).unwrap_err().to_string();
            assert!(error.contains("damaged") && error.contains("hint: run `kiln prepare`"), "{error}");
        }
        assert_eq!(run(&config, Fake::default()).2, 3);
    }
}

#[test]
fn mirror_images_are_cached_beside_the_images() {
    let (_folder, plain) = folder(3);
    run(&plain, Fake::default());
    let config = DataConfig { flip: true, ..plain };
    let (dataset, _, pictures) = run(&config, Fake::default());
    assert_eq!(pictures, 3, "only the mirrored ones were missing");
    let row = |flipped| {
        let batch = dataset.read(&[SampleIndex { sample: 0, flipped }], &KEPT).unwrap();
        batch.moments.into_vec::<f32>().unwrap()[..8].to_vec()
    };
    // Red grows from left to right, so it falls in the mirror image.
    assert!(row(false).is_sorted() && row(true).iter().rev().is_sorted() && row(false) != row(true));
}

#[test]
fn held_out_images_are_never_trained_on() {
    let (_folder, config) = folder(24);
    let config = DataConfig { flip: true, repeats: 3, validation_split: 0.25, ..config };
    let (dataset, ..) = run(&config, Fake::default());
    let seed = Seed(3);
    let split = dataset.split(seed);
    assert!(!split.held_out.is_empty() && split.held_out.len() < 16);
    let plan = dataset.plan(seed);
    let trained: BTreeSet<usize> =
        (0..20).flat_map(|epoch| plan.epoch(epoch)).flatten().map(|index| index.sample).collect();
    assert_eq!(trained, split.train.iter().copied().collect());
    let measured: BTreeSet<usize> = dataset.held_out(seed).into_iter().flatten().map(|index| index.sample).collect();
    assert_eq!(measured, split.held_out.iter().copied().collect());
    assert!(trained.is_disjoint(&measured));
    assert_eq!(trained.len() + measured.len(), 24);
}

#[test]
fn a_batch_holds_its_samples_and_dropped_captions_are_the_empty_prompt() {
    let (_folder, config) = folder(6);
    let (dataset, ..) = run(&config, Fake::default());
    let samples = [0, 3].map(|sample| SampleIndex { sample, flipped: false });
    let batch =
        dataset.batch(&samples, &[Dropped { text: true, image: false }, Dropped::default()], &Device::flex()).unwrap();
    assert_eq!((batch.moments.dims(), batch.prompt.dims(), batch.pooled.dims()), ([2, 6, 8, 8], [2, 20, 2], [2, 2]));
    assert_eq!(batch.samples, samples);
    let pooled: Vec<f32> = batch.pooled.into_data().into_vec().unwrap();
    assert_eq!(pooled, [0.0, 1.0, "image number 3".len() as f32, 1.0]);
    let caption = dataset.embeds(&["", "image number 3"], &Device::flex()).unwrap();
    assert_eq!(caption.prompt.into_data(), batch.prompt.into_data());
    let mixed = [0, 1].map(|sample| SampleIndex { sample, flipped: false });
    assert!(dataset.read(&mixed, &[Dropped::default(); 2]).unwrap_err().to_string().contains("cannot be one batch"));
}

#[test]
fn batches_read_ahead_are_those_of_the_plan() {
    let (_folder, config) = folder(10);
    let config = DataConfig { caption_dropout: 0.5, ..config };
    let dataset = Arc::new(run(&config, Fake::default()).0);
    let plan = dataset.plan(Seed(1));
    let ahead: Vec<_> = Prefetch::start(dataset.clone(), plan.clone(), 3, 2).take(12).collect::<Result<_>>().unwrap();
    for ((number, samples), ahead) in (3..).zip(plan.starting_at(3)).zip(ahead) {
        let batch = dataset.read(&samples, &plan.dropped(number, samples.len())).unwrap();
        assert_eq!((ahead.samples, ahead.moments, ahead.prompt), (batch.samples, batch.moments, batch.prompt));
    }
}

#[test]
fn half_the_disk_holds_the_same_within_bf16() {
    let (_folder, config) = folder(3);
    let exact = content(&run(&config, Fake::default()).0);
    let (dataset, prompts, pictures) = run(&DataConfig { cache_dtype: Dtype::Bf16, ..config }, Fake::default());
    assert_eq!((prompts.len(), pictures), (0, 3), "embeddings stay as they are");
    for (exact, rounded) in exact.iter().zip(content(&dataset)) {
        assert!(exact.2.iter().zip(&rounded.2).all(|(a, b)| (a - b).abs() <= a.abs() / 256.0));
        assert_ne!(exact.2, rounded.2);
        assert_eq!(exact.3, rounded.3);
    }
}

#[test]
fn embeddings_keep_the_dtype_of_the_encoders() {
    let (_folder, config) = folder(3);
    let exact = content(&run(&config, Fake::default()).0);
    let half = Fake { text: "bf16".into(), text_dtype: Some(FloatDType::BF16), ..Default::default() };
    let half_config = DataConfig { cache: Some(config.path.join("half")), ..config };
    let dataset = run(&half_config, half).0;
    for entry in entries(&half_config, "prompts") {
        let file = TensorFile::open(entry).unwrap();
        assert_eq!(["prompt", "pooled"].map(|name| file.dtype(name).unwrap()), ["BF16", "BF16"]);
    }
    // Whole numbers up to 256 are exact in bf16.
    assert_eq!(content(&dataset), exact);
}

#[test]
fn further_prompts_are_encoded_too() {
    let (_folder, config) = folder(3);
    let prompts = ["a castle".to_string()];
    let dataset = prepare(&config, DatasetKind::Captions, &prompts, &mut Fake::default(), &silent).unwrap();
    assert_eq!(dataset.embeds(&["a castle"], &Device::flex()).unwrap().pooled.dims(), [1, 2]);
    assert!(LatentDataset::open(&config, DatasetKind::Captions, &prompts, "", "").is_ok());
    assert!(LatentDataset::open(&config, DatasetKind::Captions, &["a tower".to_string()], "", "").is_err());
}

#[test]
fn captions_are_read_in_the_encodings_that_windows_writes() {
    let (folder, config) = folder(3);
    let utf_16: Vec<u8> = "\u{feff}the cat’s hat".encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(folder.path().join("00.txt"), utf_16).unwrap();
    std::fs::write(folder.path().join("01.txt"), b"the cat\x92s caf\xe9").unwrap();
    std::fs::write(folder.path().join("02.txt"), b"\xef\xbb\xbfa hat\n").unwrap();
    let dataset = run(&config, Fake::default()).0;
    let captions: Vec<&str> = dataset.samples().iter().map(|sample| sample.caption.as_str()).collect();
    assert_eq!(captions, ["the cat’s hat", "the cat’s café", "a hat"]);
    std::fs::write(folder.path().join("01.txt"), b"\x83\x81\x81\x5b\x8d").unwrap();
    let error = prepare(&config, DatasetKind::Captions, &[], &mut Fake::default(), &silent).unwrap_err().to_string();
    assert!(error.contains("01.txt: is not UTF-8") && error.contains("save it as UTF-8"), "{error}");
}

#[test]
fn a_jpeg_without_its_end_marker_is_read_if_no_pixel_is_missing() {
    for (quality, size) in [(100, 64), (60, 77), (20, 200)] {
        let picture = RgbImage::from_fn(size, size, |x, y| Rgb([(x * 3) as u8, (y * 5) as u8, (x * y) as u8]));
        let mut whole = Vec::new();
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut whole, quality);
        encoder.write_image(picture.as_raw(), size, size, image::ExtendedColorType::Rgb8).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.txt"), "an image").unwrap();
        let config = DataConfig { path: folder.path().into(), resolution: 64, ..Default::default() };
        let with = |bytes: &[u8]| {
            std::fs::write(folder.path().join("a.jpg"), bytes).unwrap();
            prepare(&config, DatasetKind::Captions, &[], &mut Fake::default(), &silent)
        };
        let expected = content(&with(&whole).unwrap())[0].2.clone();
        let endless = with(&whole[..whole.len() - 2]).unwrap();
        assert!(content(&endless)[0].2 == expected, "quality {quality}");
        for missing in [10, 40, whole.len() / 2] {
            let error = with(&whole[..whole.len() - missing]).unwrap_err().to_string();
            assert!(error.contains("the end of the JPEG is missing"), "{missing} bytes: {error}");
        }
    }
}

#[test]
fn exif_orientation_is_applied() {
    // Stored on its side, with orientation 6: to be rotated by 90° clockwise, so that its left edge becomes the top.
    let stored = RgbImage::from_fn(128, 64, |x, _| Rgb([if x < 64 { 250 } else { 5 }; 3]));
    let exif: &[u8] = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 100);
    encoder.set_exif_metadata(exif.to_vec()).unwrap();
    encoder.write_image(stored.as_raw(), 128, 64, image::ExtendedColorType::Rgb8).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.jpg"), bytes).unwrap();
    std::fs::write(folder.path().join("a.txt"), "a photograph").unwrap();
    let config = DataConfig { path: folder.path().into(), resolution: 128, ..Default::default() };
    let dataset = run(&config, Fake::default()).0;
    let picture = &dataset.samples()[0].picture;
    assert_eq!((picture.size, picture.bucket.width, picture.bucket.height), ((64, 128), 64, 128));
    let moments = &content(&dataset)[0].2;
    let (top, bottom) = (&moments[..8], &moments[15 * 8..16 * 8]);
    assert!(top.iter().all(|&v| v > 0.9) && bottom.iter().all(|&v| v < -0.9), "{top:?} {bottom:?}");
}

#[test]
fn transparent_pixels_become_white() {
    let folder = tempfile::tempdir().unwrap();
    // Black, but clear on the left half and half clear below.
    let alpha = |x, y| {
        if x < 32 {
            0
        } else if y < 32 {
            255
        } else {
            128
        }
    };
    let image = RgbaImage::from_fn(64, 64, |x, y| Rgba([0, 0, 0, alpha(x, y)]));
    add(folder.path(), "a.webp", image.into(), "a hole");
    let config = DataConfig { path: folder.path().into(), resolution: 64, ..Default::default() };
    let moments = content(&run(&config, Fake::default()).0).remove(0).2;
    assert_eq!((moments[0], moments[7]), (1.0, -1.0));
    assert!((moments[63] - 0.0).abs() < 0.02, "half clear black is grey, not {}", moments[63]);
}

#[test]
fn all_bad_rows_are_listed_together() {
    let (folder, config) = folder(4);
    let at = |name: &str| folder.path().join(name);
    std::fs::remove_file(at("00.txt")).unwrap();
    let whole = std::fs::read(at("01.png")).unwrap();
    std::fs::write(at("01.png"), &whole[..whole.len() / 2]).unwrap();
    let mut jpeg = Cursor::new(Vec::new());
    RgbImage::from_fn(64, 64, |x, y| Rgb([x as u8, y as u8, 0])).write_to(&mut jpeg, ImageFormat::Jpeg).unwrap();
    std::fs::write(at("cut.jpg"), &jpeg.get_ref()[..jpeg.get_ref().len() - 40]).unwrap();
    std::fs::write(at("cut.txt"), "cut short").unwrap();
    std::fs::write(at("text.png"), "this is no image").unwrap();
    std::fs::write(at("text.txt"), "text").unwrap();
    add(folder.path(), "tiny.png", RgbImage::new(8, 100).into(), "too small");
    std::fs::write(at("moving.gif"), "GIF89a").unwrap();

    let mut fake = Fake::default();
    let error = prepare(&config, DatasetKind::Captions, &[], &mut fake, &silent).unwrap_err();
    let problems = error.problems();
    assert_eq!(problems.len(), 6, "{error}");
    for name in ["00.png", "01.png", "cut.jpg", "text.png", "tiny.png", "moving.gif"] {
        assert!(problems.iter().any(|problem| problem.starts_with(&format!("{name}: "))), "{name} in {error}");
    }
    assert!(fake.prompts.is_empty() && fake.pictures == 0, "work started although images are bad");
}

#[test]
fn a_missing_folder_and_a_wrong_setting_are_one_clear_error() {
    let (folder, config) = folder(1);
    let fails = |config: DataConfig| {
        prepare(&config, DatasetKind::Captions, &[], &mut Fake::default(), &silent).unwrap_err().to_string()
    };
    let missing = fails(DataConfig { path: folder.path().join("none"), ..config.clone() });
    assert!(missing.contains("there is no such folder") && missing.contains("hint:"), "{missing}");
    assert!(fails(DataConfig { repeats: 0, ..config }).starts_with("`data.repeats`: "));
    let empty = tempfile::tempdir().unwrap();
    assert!(fails(DataConfig { path: empty.path().into(), ..Default::default() }).contains("there are no images"));
}

#[test]
fn progress_is_reported_from_nothing_to_everything() {
    let (_folder, config) = folder(5);
    let seen = RefCell::new(Vec::new());
    prepare(&config, DatasetKind::Captions, &[], &mut Fake::default(), &|progress| seen.borrow_mut().push(progress))
        .unwrap();
    for (phase, total) in [(Phase::Check, 5), (Phase::Prompts, 6), (Phase::Pictures, 5)] {
        let done: Vec<usize> =
            seen.borrow().iter().filter(|p| p.phase == phase && p.total == total).map(|p| p.done).collect();
        assert_eq!(done, (0..=total).collect::<Vec<_>>(), "{phase}");
    }
}

#[test]
fn the_images_are_ready_to_train_on() {
    let cache = tempfile::tempdir().unwrap();
    let config = DataConfig {
        path: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pictures"),
        resolution: 64,
        trigger: "two-drum print".into(),
        cache: Some(cache.path().into()),
        ..Default::default()
    };
    let (dataset, prompts, pictures) = run(&config, Fake::default());
    assert_eq!((dataset.samples().len(), prompts.len(), pictures), (24, 25, 24));
    let sizes: BTreeSet<_> =
        dataset.samples().iter().map(|s| (s.picture.bucket.width, s.picture.bucket.height)).collect();
    assert_eq!(sizes, [(64, 64), (80, 48), (48, 80)].into());
    assert!(dataset.samples().iter().all(|sample| sample.caption.starts_with("two-drum print, ")));
}

/// Some programs write other bytes of the same length and reset the modification time: the system's change time reveals it.
#[cfg(unix)]
#[test]
fn an_image_whose_bytes_changed_is_read_again_though_its_size_and_time_stayed() {
    let (folder, config) = folder(3);
    let path = folder.path().join("00.png");
    // From long ago, so that nothing is too new to be trusted.
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_500_000_000);
    let set_time = || std::fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    let picture = |colour: u8| {
        let mut bytes = Cursor::new(Vec::new());
        let image = DynamicImage::from(RgbImage::from_pixel(64, 64, Rgb([colour; 3])));
        image.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    };
    let (one, other) = (picture(10), picture(11));
    assert_eq!(one.len(), other.len());
    std::fs::write(&path, one).unwrap();
    set_time();
    run(&config, Fake::default());
    std::thread::sleep(std::time::Duration::from_millis(2100)); // what is newer than two seconds is read again anyway
    let (before, _, again) = run(&config, Fake::default());
    assert_eq!(again, 0);
    std::fs::write(&path, other).unwrap();
    set_time();
    let (after, _, again) = run(&config, Fake::default());
    assert_eq!(again, 1, "the other bytes are not seen");
    assert_ne!(before.fingerprint(), after.fingerprint());
}

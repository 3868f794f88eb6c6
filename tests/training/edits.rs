//! The editing quickstart as a user sees it: its edits of held-out originals follow the instructions, and the model can still do
//! what it could before.
//!
//! Every edit of the data set was made exactly, so it is known what an edit should look like, and what the other instructions would
//! have made of the same original.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::LazyLock,
};

use image::RgbImage;
use serde::Deserialize;

use crate::support::program::{succeeds, workshop};

const CONFIG: &str = "configs/quickstart_edit.toml";
const DATA: &str = "datasets/icon-edits";

/// The instructions that the quickstart teaches; of all others in the data set the model knows each before.
const NEW: [&str; 4] =
    ["make it green", "put it on a yellow background", "make it a photo negative", "make it a silhouette"];

/// Instructions of each original, and those of all.
const OF_EACH: usize = 6;
const OF_ALL: usize = 9;

/// Start noises of the grid, between its column of originals and that of targets.
const SEEDS: usize = 3;

/// Side of an image, and the margin about it.
const SIDE: u32 = 64;
const MARGIN: u32 = 4;

/// A row of `metadata.jsonl`.
#[derive(Clone, Deserialize)]
struct Pair {
    original: String,
    edited: String,
    instruction: String,
}

/// A held-out pair and the edits of its original.
struct Edited {
    pair: Pair,
    /// Before the training, by each seed.
    before: Vec<RgbImage>,
    /// After it.
    after: Vec<RgbImage>,
}

impl Edited {
    fn is_new(&self) -> bool {
        NEW.contains(&self.pair.instruction.as_str())
    }
}

fn read(file: &str) -> RgbImage {
    image::open(Path::new(DATA).join(file)).unwrap().into_rgb8()
}

/// How far apart two images are: the root mean square of the differences, of 1.
fn distance(one: &RgbImage, other: &RgbImage) -> f64 {
    assert_eq!(one.dimensions(), other.dimensions());
    let square = |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)).powi(2);
    let sum: f64 = one.as_raw().iter().zip(other.as_raw()).map(square).sum();
    (sum / one.as_raw().len() as f64).sqrt() / 255.0
}

/// The one of these that is nearest to an image.
fn nearest<'a, T>(image: &RgbImage, of: &'a [T], file: impl Fn(&T) -> &str) -> &'a T {
    of.iter().min_by(|a, b| distance(image, &read(file(a))).total_cmp(&distance(image, &read(file(b))))).unwrap()
}

/// All pairs of the data set.
static PAIRS: LazyLock<Vec<Pair>> = LazyLock::new(|| {
    let rows = std::fs::read_to_string(Path::new(DATA).join("metadata.jsonl")).unwrap();
    rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect()
});

/// The rows of a grid.
fn rows(grid: &Path) -> Vec<Vec<RgbImage>> {
    let grid = image::open(grid).unwrap().into_rgb8();
    let cell = |row: u32, column: usize| {
        let at = |i: u32| MARGIN + i * (SIDE + MARGIN);
        image::imageops::crop_imm(&grid, at(column as u32), at(row), SIDE, SIDE).to_image()
    };
    let count = (grid.height() - MARGIN) / (SIDE + MARGIN);
    (0..count).map(|row| (0..SEEDS + 2).map(|column| cell(row, column)).collect()).collect()
}

/// The quickstart's edits of its held-out pairs.
static EDITED: LazyLock<Vec<Edited>> = LazyLock::new(|| {
    let workshop = workshop("edits");
    let output = format!("run.output='{}'", workshop.join("runs").display());
    let cache = format!("data.cache='{}'", workshop.join("cache").display());
    let settings = [&output, &cache, "validation.every=0", "validation.seeds=[0, 1, 2]", "validation.edits=100"];
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    let (out, _) = succeeds(&["train", "--config", CONFIG].into_iter().chain(settings).collect::<Vec<_>>());
    let samples = Path::new(out.lines().last().unwrap()).join("samples");
    let grids: BTreeSet<PathBuf> = std::fs::read_dir(samples).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [before, after] = [grids.first(), grids.last()].map(|grid| rows(grid.unwrap()));
    assert!(grids.len() == 2 && before.len() == after.len());
    let edited = before.into_iter().zip(after).map(|(before, after)| {
        // Both are in the grid as the autoencoder reconstructs them.
        let original = &nearest(&before[0], &PAIRS, |pair| &pair.original).original;
        let edits: Vec<_> = PAIRS.iter().filter(|pair| pair.original == *original).cloned().collect();
        let pair = nearest(&before[SEEDS + 1], &edits, |pair| &pair.edited).clone();
        let of_seeds = |row: Vec<RgbImage>| row[1..=SEEDS].to_vec();
        Edited { pair, before: of_seeds(before), after: of_seeds(after) }
    });
    edited.collect()
});

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<_> = values.collect();
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn every_held_out_pair_is_shown() {
    let shown: BTreeSet<_> = EDITED.iter().map(|edited| &edited.pair.edited).collect();
    let originals: BTreeSet<_> = EDITED.iter().map(|edited| &edited.pair.original).collect();
    assert_eq!(shown.len(), EDITED.len(), "no pair twice");
    assert!(originals.len() >= 4 && shown.len() == OF_EACH * originals.len(), "{shown:?}");
}

#[test]
fn edits_of_each_instruction_are_near_to_what_they_should_be() {
    let mut of_instruction: BTreeMap<&str, Vec<&Edited>> = BTreeMap::new();
    EDITED.iter().for_each(|edited| of_instruction.entry(&edited.pair.instruction).or_default().push(edited));
    assert_eq!(of_instruction.len(), OF_ALL);
    for (instruction, edits) in of_instruction {
        let to_target = |images: fn(&Edited) -> Vec<RgbImage>| {
            mean(edits.iter().flat_map(|edited| {
                let target = read(&edited.pair.edited);
                images(edited).into_iter().map(move |image| distance(&image, &target))
            }))
        };
        let original = to_target(|edited| vec![read(&edited.pair.original)]);
        let [before, after] = [to_target(|edited| edited.before.clone()), to_target(|edited| edited.after.clone())];
        // The outlines of the model have always been heavier than the exact ones.
        assert!(after < 0.7 * original, "{instruction}: {after} from the target, the original {original}");
        let most = if edits[0].is_new() { 0.6 } else { 1.25 };
        assert!(after < most * before, "{instruction}: {after} from the target, untrained {before}");
    }
}

#[test]
fn an_edit_is_nearer_to_its_own_target_than_to_any_other() {
    let done = |new: bool, images: fn(&Edited) -> &[RgbImage]| {
        mean(EDITED.iter().filter(|edited| edited.is_new() == new).flat_map(|edited| {
            let original = &edited.pair.original;
            let edits = PAIRS.iter().filter(|pair| pair.original == *original).map(|pair| pair.edited.clone());
            let all: Vec<String> = edits.chain([original.clone()]).collect();
            let own = move |image| *nearest(image, &all, |file| file) == edited.pair.edited;
            images(edited).iter().map(move |image| f64::from(u8::from(own(image))))
        }))
    };
    let of = |new| [done(new, |edited| &edited.before), done(new, |edited| &edited.after)];
    let [before, after] = of(true);
    assert!(after > 0.9 && before < 0.4, "{after} of the new edits are what was asked for, untrained {before}");
    let [before, after] = of(false);
    assert!(after > 0.9 && before > 0.9, "{after} of the known edits are what was asked for, before {before}");
}

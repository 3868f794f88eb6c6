//! A data folder compared with its cache: the samples, and what is not encoded yet.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{
    Bucket, DataConfig, DatasetKind, Encoders, LatentDataset, Phase, Picture, Place, Progress, Sample,
    buckets::Buckets,
    cache::{Cache, Kind, key},
    images::{Inspected, TRANSFORM, inspect},
    manifest::Manifest,
    pairs::say_cut,
    parallel::in_parallel,
    sample::Stamp,
    source::Source,
};
use crate::{
    disk::replace,
    error::{Error, Result},
    stop,
    weights::read_json,
};

/// A data folder compared with its cache.
pub(super) struct Survey {
    pub dataset: LatentDataset,
    vae: String,
    /// Prompts without embeddings.
    pub prompts: Vec<String>,
    /// Images without latents, and the variants that lack them: plain (false) and mirrored (true).
    pub pictures: Vec<(Picture, Vec<bool>)>,
}

/// `index.json` in the cache folder: a record of the last preparation, finished or not. It spares reading unchanged files again;
/// without it everything is found by content.
#[derive(Serialize, Deserialize)]
struct Index {
    fingerprint: String,
    vae: String,
    text: String,
    folder: PathBuf,
    samples: Vec<Sample>,
}

impl Survey {
    /// Checks all settings, captions and images, and finds what the cache lacks.
    pub fn of(
        config: &DataConfig,
        kind: DatasetKind,
        prompts: &[String],
        vae: &str,
        text: &str,
        progress: &dyn Fn(Progress),
    ) -> Result<Self> {
        config.validate()?;
        let manifest = Manifest::read(config, kind)?;
        config.check_epoch(manifest.rows.iter().map(|row| row.repeats).fold(0, usize::saturating_add))?;
        let cache = Cache::new(config.cache_folder());
        let (known, trusted) = recall(&cache, &config.path);
        let pictures = check(config, vae, &manifest, &known, progress)?;

        let mut dataset = LatentDataset { config: config.clone(), kind, cache, samples: Vec::new(), text: text.into() };
        let cut_to_its_size_beside = |place: &Place, edited: &Picture| {
            let original = pictures[place].clone();
            let latents = latents(config, vae, &original.hash, edited.bucket);
            Picture { bucket: edited.bucket, latents, ..original }
        };
        let samples = manifest.rows.into_iter().map(|row| Sample {
            picture: pictures[&row.picture].clone(),
            original: row.original.map(|place| cut_to_its_size_beside(&place, &pictures[&row.picture])),
            prompt: dataset.prompt_key(&row.caption),
            caption: row.caption,
            repeats: row.repeats,
            original_caption: row.original_caption,
            edited_caption: row.edited_caption,
        });
        dataset.samples = samples.collect();
        let mut survey = Self { dataset, vae: vae.into(), prompts: Vec::new(), pictures: Vec::new() };
        survey.find_missing(prompts, trusted)?;
        Ok(survey)
    }

    /// Whether nothing is missing.
    pub fn is_complete(&self) -> bool {
        self.prompts.is_empty() && self.pictures.is_empty()
    }

    /// Lists prompts and images without complete entries, equal ones once. Entries from before `trusted` need not be read.
    fn find_missing(&mut self, prompts: &[String], trusted: SystemTime) -> Result<()> {
        let dataset = &self.dataset;
        let captions = dataset.samples.iter().map(|sample| &sample.caption);
        let prompts: BTreeSet<String> = prompts.iter().chain(captions).cloned().chain([String::new()]).collect();
        let prompts: Vec<String> = prompts.into_iter().collect();
        let has_embeds = |prompt: &String| dataset.cache.holds(Kind::Prompts, &dataset.prompt_key(prompt), trusted);
        in_parallel(&prompts, has_embeds, |prompt, there| {
            stop::check()?;
            self.prompts.extend((!there).then(|| prompt.clone()));
            Ok(())
        })?;

        let mut seen = BTreeSet::new();
        let pictures = dataset.samples.iter().flat_map(Sample::pictures);
        let different: Vec<&Picture> = pictures.filter(|picture| seen.insert(&picture.latents)).collect();
        let lacks = |picture: &&Picture| -> Vec<bool> {
            let variants = [false, true].into_iter().zip(&picture.latents);
            variants
                .filter(|(_, key)| !dataset.cache.holds(Kind::Latents, key, trusted))
                .map(|(flip, _)| flip)
                .collect()
        };
        in_parallel(&different, lacks, |&picture, flips| {
            stop::check()?;
            self.pictures.extend((!flips.is_empty()).then(|| (picture.clone(), flips)));
            Ok(())
        })?;
        self.prompts.sort_unstable();
        self.pictures.sort_unstable_by(|(a, _), (b, _)| a.place.cmp(&b.place));
        Ok(())
    }

    pub fn log(&self) {
        let LatentDataset { samples, cache, .. } = &self.dataset;
        let mut buckets: BTreeMap<Bucket, usize> = BTreeMap::new();
        samples.iter().for_each(|sample| *buckets.entry(sample.picture.bucket).or_default() += 1);
        let sizes: Vec<_> = buckets.iter().map(|(bucket, count)| format!("{count} of {bucket}")).collect();
        let (prompts, pictures) = (self.prompts.len(), self.pictures.len());
        tracing::info!("{} samples: {}", samples.len(), sizes.join(", "));
        let mut repeated: BTreeMap<(&str, usize), usize> = BTreeMap::new();
        for Sample { picture, repeats, .. } in samples.iter().filter(|sample| sample.repeats != 1) {
            let folder = picture.place.file.rsplit_once('/').map_or("", |(folder, _)| folder);
            *repeated.entry((folder, *repeats)).or_default() += 1;
        }
        if !repeated.is_empty() {
            let plural = |count: usize| if count == 1 { "image" } else { "images" };
            let folder = |((folder, repeats), count): (&(&str, usize), &usize)| {
                format!("{folder} ({count} {}, {repeats} times each)", plural(*count))
            };
            let folders: Vec<_> = repeated.iter().map(folder).collect();
            tracing::info!("repeats from the names of folders: {}", folders.join(", "));
        }
        tracing::info!("{pictures} images and {prompts} prompts to encode into {}", cache.folder().display());
    }

    /// Warns about captions, or instructions, and further `prompts` that are longer than the text encoders read.
    pub fn say_shortened(&self, prompts: &[String], encoders: &dyn Encoders) -> Result<()> {
        let LatentDataset { samples, kind, .. } = &self.dataset;
        let captions: BTreeSet<&str> = samples.iter().map(|sample| sample.caption.as_str()).collect();
        let prompts: BTreeSet<&str> = prompts.iter().map(String::as_str).collect();
        let own = match kind {
            DatasetKind::Captions => "different captions",
            DatasetKind::Edits => "different instructions",
        };
        for (what, texts) in [(own, captions), ("prompts of the validation", prompts)] {
            encoders.shortened(&texts.iter().copied().collect::<Vec<_>>())?.say(what, texts.len());
        }
        Ok(())
    }

    /// Writes `index.json`, after all images and entries that it lists. Without it the next start is only slower.
    pub fn record(&self) {
        if let Err(error) = self.write_index() {
            tracing::warn!("the next start will check all images again: {error}");
        }
    }

    fn write_index(&self) -> Result<()> {
        let LatentDataset { config, cache, samples, text, .. } = &self.dataset;
        let index = Index {
            fingerprint: self.dataset.fingerprint(),
            vae: self.vae.clone(),
            text: text.clone(),
            folder: config.path.clone(),
            samples: samples.clone(),
        };
        let path = cache.folder().join("index.json");
        let json = serde_json::to_string_pretty(&index).map_err(|e| Error::file(&path, e.to_string()))?;
        std::fs::create_dir_all(cache.folder()).map_err(|e| Error::io(cache.folder(), e))?;
        replace(&path, |partial| std::fs::write(partial, json).map_err(|e| Error::io(&path, e)))
    }
}

impl LatentDataset {
    /// Opens data that [`prepare`](super::prepare()) has encoded with the VAE and text encoders of these fingerprints. `prompts` are
    /// further texts that must have embeddings.
    ///
    /// # Errors
    /// A setting, image or caption is invalid (all of them are listed), or something is not encoded yet.
    pub fn open(config: &DataConfig, kind: DatasetKind, prompts: &[String], vae: &str, text: &str) -> Result<Self> {
        let survey = Survey::of(config, kind, prompts, vae, text, &|_| ())?;
        if survey.is_complete() {
            return Ok(survey.dataset);
        }
        let (pictures, prompts) = (survey.pictures.len(), survey.prompts.len());
        let problem = format!("{pictures} images and {prompts} prompts are not encoded for this configuration");
        Err(Error::file(config.cache_folder(), problem).hint("run `kiln prepare` with the same configuration"))
    }
}

/// Inspects the images of all rows, each once, except those `known` and unchanged since.
fn check(
    config: &DataConfig,
    vae: &str,
    manifest: &Manifest,
    known: &HashMap<Place, Picture>,
    progress: &dyn Fn(Progress),
) -> Result<HashMap<Place, Picture>> {
    let (buckets, source) = (Buckets::new(config), Source::new(&config.path));
    let look = |place: &&Place| -> std::result::Result<Picture, String> {
        let (stamp, changed) = stamp(&source.path(place)).map_err(|e| e.to_string())?;
        let (hash, size) = match known.get(*place) {
            Some(picture) if (picture.stamp, picture.changed) == (stamp, changed) => {
                (picture.hash.clone(), picture.size)
            }
            _ => inspect(&source.read(place)?).map(|Inspected { hash, width, height }| (hash, (width, height)))?,
        };
        let bucket = buckets.choose(size.0, size.1).ok_or_else(|| {
            let step = config.bucket_step;
            format!("is too small: {} × {} pixels; each side needs at least {step} without enlarging", size.0, size.1)
        })?;
        let latents = latents(config, vae, &hash, bucket);
        Ok(Picture { place: (*place).clone(), latents, hash, size, bucket, stamp, changed })
    };
    let places = manifest.rows.iter().flat_map(|row| std::iter::once(&row.picture).chain(&row.original));
    let places: Vec<&Place> = places.collect::<BTreeSet<_>>().into_iter().collect();
    let total = places.len();
    let (mut pictures, mut bad, mut done) = (HashMap::with_capacity(total), Vec::new(), 0);
    in_parallel(&places, look, |&place, picture| {
        stop::check()?;
        if done == 0 {
            progress(Progress { phase: Phase::Check, done, total });
        }
        done += 1;
        progress(Progress { phase: Phase::Check, done, total });
        match picture {
            Ok(picture) => drop(pictures.insert(place.clone(), picture)),
            Err(problem) => bad.push(format!("{place}: {problem}")),
        }
        Ok(())
    })?;
    bad.sort_unstable();
    let problems: Vec<String> = manifest.problems.iter().cloned().chain(bad).collect();
    if !problems.is_empty() {
        return Err(Error::many(&config.path, problems));
    }
    say_cut(&manifest.rows, &pictures);
    Ok(pictures)
}

/// The keys of the latents of an image in a bucket: plain and, if `data.flip` is on, mirrored.
fn latents(config: &DataConfig, vae: &str, hash: &str, bucket: Bucket) -> Vec<String> {
    let variants = if config.flip { &["plain", "mirrored"][..] } else { &["plain"] };
    let dtype = format!("{:?}", config.cache_dtype);
    let key = |flip: &&str| key(&["latents", hash, &bucket.to_string(), flip, TRANSFORM, vae, &dtype]);
    variants.iter().map(key).collect()
}

/// Known files and entries: the images in `index.json`, by location, and the time up to which entries count as checked. Files of
/// the last seconds before it was written are left out, because the clocks of file systems are coarse.
fn recall(cache: &Cache, folder: &Path) -> (HashMap<Place, Picture>, SystemTime) {
    let path = cache.folder().join("index.json");
    let index: Option<Index> = read_json(&path).ok();
    let written = index.as_ref().and_then(|_| std::fs::metadata(&path).and_then(|m| m.modified()).ok());
    let trusted = written.and_then(|time| time.checked_sub(Duration::from_secs(2))).unwrap_or(SystemTime::UNIX_EPOCH);
    let samples = index.filter(|index| index.folder == folder).map(|index| index.samples).unwrap_or_default();
    let pictures = samples.into_iter().flat_map(|sample| std::iter::once(sample.picture).chain(sample.original));
    let known = pictures.filter(|picture| picture.stamp.1.max(picture.changed) <= nanoseconds(trusted));
    (known.map(|picture| (picture.place.clone(), picture)).collect(), trusted)
}

/// The stamp of a file, and the time of its last change (see [`Picture::changed`]).
fn stamp(path: &Path) -> std::io::Result<(Stamp, u64)> {
    let metadata = std::fs::metadata(path)?;
    #[cfg(unix)]
    let changed = {
        use std::os::unix::fs::MetadataExt;
        (metadata.ctime().max(0) as u64).saturating_mul(1_000_000_000).saturating_add(metadata.ctime_nsec() as u64)
    };
    #[cfg(not(unix))]
    let changed = 0;
    Ok(((metadata.len(), nanoseconds(metadata.modified()?)), changed))
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

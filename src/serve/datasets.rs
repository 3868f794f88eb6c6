//! Datasets in their folders, for people to browse and to correct captions.
//!
//! Names from requests are looked up among the existing names; no part of a path comes from a client. A caption replaces only the
//! text that its author has seen, and its file is replaced atomically.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::caption::{Caption, NotSaved};
use crate::{
    data::{CaptionedFolder, CaptionedImage, Dated, picture_size},
    disk::sweep,
    error::Result,
};

/// A dataset in a list of datasets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DatasetSummary {
    /// The name of its folder.
    pub name: String,
    /// The number of its images.
    pub images: usize,
    /// The number of images with a non-empty caption.
    pub captioned: usize,
    /// Whether it is a dataset of edits, whose captions are instructions.
    pub edits: bool,
}

/// A dataset with its problems and tags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DatasetDetail {
    /// The fields of the list.
    #[serde(flatten)]
    pub summary: DatasetSummary,
    /// Why training would refuse some of its images, one line each.
    pub problems: Vec<String>,
    /// Files in the folder that are not used, one line per kind.
    pub unused: Vec<String>,
    /// The comma-separated tags of its captions, the most frequent first, at most 200.
    pub tags: Vec<TagCount>,
}

/// A tag and the number of captions with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct TagCount {
    /// The tag.
    pub tag: String,
    /// The number of captions with it.
    pub count: usize,
}

/// Selects images of a dataset.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wanted {
    /// The number of matching images to skip. Default 0.
    pub offset: Option<usize>,
    /// The maximum number of images, at most 500. Default 100.
    pub limit: Option<usize>,
    /// Only images with this text in their name or caption, ignoring case.
    pub search: Option<String>,
    /// Only images whose caption lacks this text, ignoring case: a trigger word, for example.
    pub without: Option<String>,
}

/// Some of the images of a dataset.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct DatasetPage {
    /// The number of matching images in all.
    pub total: usize,
    /// The index of the first of these among them.
    pub offset: usize,
    /// The images, sorted by name.
    pub images: Vec<DatasetImage>,
}

/// An image of a dataset.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct DatasetImage {
    /// Its file, relative to the folder.
    pub file: String,
    /// For an edit, the original image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original: Option<String>,
    /// Width in pixels; 0 if the image cannot be read.
    pub width: u32,
    /// Height in pixels; 0 if the image cannot be read.
    pub height: u32,
    /// The size of its file.
    pub bytes: u64,
    /// Its caption; empty if it has none.
    pub caption: String,
    /// The etag of the caption. `None` if it cannot be edited here: it is in a Parquet file, or its file is a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// Why the image cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Folders of images. A configured folder is one dataset.
#[derive(Debug, Default)]
pub struct Datasets {
    folders: BTreeMap<String, PathBuf>,
    /// The datasets as last read.
    read: Mutex<BTreeMap<String, Dated>>,
    /// Held from checking a caption to writing it.
    pub(super) writing: Mutex<()>,
}

impl Datasets {
    /// The datasets in these folders; of two with the same name, the first. Removes temporary files of a process that died while
    /// writing a caption.
    pub fn new(folders: Vec<PathBuf>) -> Self {
        let mut named = BTreeMap::new();
        for folder in folders {
            let Ok(whole) = folder.canonicalize() else {
                tracing::warn!("{}: no such folder; this dataset is not served", folder.display());
                continue;
            };
            sweep(&whole);
            if let Some(name) = whole.file_name().and_then(|name| name.to_str()).map(String::from) {
                named.entry(name).or_insert(whole);
            }
        }
        Self { folders: named, ..Self::default() }
    }

    /// All datasets by name.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn list(&self) -> Result<Vec<DatasetSummary>> {
        self.folders
            .keys()
            .filter_map(|name| Some(self.all(name).transpose()?.map(|read| summary(name, &read))))
            .collect()
    }

    /// A dataset as a whole; `None` if there is no such dataset.
    ///
    /// # Errors
    /// Its folder cannot be read.
    pub fn detail(&self, name: &str) -> Result<Option<DatasetDetail>> {
        let detail = |read: Arc<CaptionedFolder>| {
            let (summary, tags) = (summary(name, &read), tags(&read));
            DatasetDetail { summary, problems: read.problems.clone(), unused: read.unused.clone(), tags }
        };
        Ok(self.all(name)?.map(detail))
    }

    /// Images of a dataset; `None` if there is no such dataset.
    ///
    /// # Errors
    /// Its folder cannot be read.
    pub fn images(&self, name: &str, wanted: &Wanted) -> Result<Option<DatasetPage>> {
        let (Some(folder), Some(read)) = (self.folders.get(name), self.all(name)?) else { return Ok(None) };
        let lower = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(str::to_lowercase);
        let (search, without) = (lower(&wanted.search), lower(&wanted.without));
        let fits = |image: &&CaptionedImage| {
            let caption = image.caption.as_deref().unwrap_or_default().to_lowercase();
            let found = |text: &String| caption.contains(text) || image.file.to_lowercase().contains(text);
            search.as_ref().is_none_or(found) && without.as_ref().is_none_or(|text| !caption.contains(text))
        };
        let fitting: Vec<_> = read.images.iter().filter(fits).collect();
        let (offset, limit) = (wanted.offset.unwrap_or(0), wanted.limit.unwrap_or(100).min(500));
        let images = fitting.iter().skip(offset).take(limit).map(|image| described(folder, image)).collect();
        Ok(Some(DatasetPage { total: fitting.len(), offset, images }))
    }

    /// The path of an image of a dataset, including originals of edits; `None` if there is no such image.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn image(&self, name: &str, file: &str) -> Result<Option<PathBuf>> {
        let Some(folder) = self.folders.get(name) else { return Ok(None) };
        let has = |read: &CaptionedFolder| {
            read.images.iter().any(|image| image.file == file || image.original.as_deref() == Some(file))
        };
        // Many thumbnails are requested at once, so the last listing is good enough.
        let known = self.read().get(name).is_some_and(|read| has(&read.folder));
        Ok((known || self.all(name)?.is_some_and(|read| has(&read))).then(|| folder.join(file)))
    }

    /// The caption of an image; `None` if there is no such image.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn caption(&self, name: &str, file: &str) -> Result<Option<Caption>> {
        Ok(self.captioned(name, file)?.map(|image| Caption::of(&image)))
    }

    /// Replaces the caption with this `etag`.
    ///
    /// # Errors
    /// See [`NotSaved`].
    pub fn save(&self, name: &str, file: &str, text: &str, etag: &str) -> std::result::Result<Caption, NotSaved> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let image = self.captioned(name, file).map_err(NotSaved::Failed)?.ok_or(NotSaved::Unknown)?;
        let saved = Caption::of(&image).replace(&image, text, etag);
        self.changed(name);
        saved
    }

    /// A dataset with all captions, read again only if it has changed.
    pub(super) fn all(&self, name: &str) -> Result<Option<Arc<CaptionedFolder>>> {
        let Some(folder) = self.folders.get(name) else { return Ok(None) };
        let before = self.read().get(name).cloned();
        let now = CaptionedFolder::read_again(folder, before)?;
        self.read().insert(name.into(), now.clone());
        Ok(Some(now.folder))
    }

    fn read(&self) -> MutexGuard<'_, BTreeMap<String, Dated>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks a dataset as changed, whatever the times of its files say.
    pub(super) fn changed(&self, name: &str) {
        self.read().remove(name);
    }

    fn captioned(&self, name: &str, file: &str) -> Result<Option<CaptionedImage>> {
        Ok(self.all(name)?.and_then(|read| read.images.iter().find(|image| image.file == file).cloned()))
    }
}

fn summary(name: &str, read: &CaptionedFolder) -> DatasetSummary {
    let captioned = read.images.iter().filter(|image| image.caption.as_ref().is_some_and(|text| !text.is_empty()));
    DatasetSummary { name: name.into(), images: read.images.len(), captioned: captioned.count(), edits: read.edits }
}

fn tags(read: &CaptionedFolder) -> Vec<TagCount> {
    let mut counts = BTreeMap::<&str, usize>::new();
    for caption in read.images.iter().filter_map(|image| image.caption.as_ref()) {
        let tags: BTreeSet<&str> = caption.split(',').map(str::trim).collect();
        tags.into_iter().filter(|tag| !tag.is_empty()).for_each(|tag| *counts.entry(tag).or_default() += 1);
    }
    let mut tags: Vec<_> = counts.into_iter().map(|(tag, count)| TagCount { tag: tag.into(), count }).collect();
    tags.sort_by_key(|tag| std::cmp::Reverse(tag.count));
    tags.truncate(200);
    tags
}

fn described(folder: &Path, image: &CaptionedImage) -> DatasetImage {
    let path = folder.join(&image.file);
    let (size, problem) = match picture_size(&path) {
        Ok(size) => (size, None),
        Err(error) => ((0, 0), Some(error.problem.to_string())),
    };
    let caption = Caption::of(image);
    DatasetImage {
        file: image.file.clone(),
        original: image.original.clone(),
        width: size.0,
        height: size.1,
        bytes: fs::metadata(&path).map_or(0, |metadata| metadata.len()),
        caption: caption.text,
        etag: caption.etag,
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::folder_of;

    fn datasets(files: &[(&str, &str)]) -> (tempfile::TempDir, Datasets) {
        let files: Vec<_> = files.iter().map(|(name, content)| (format!("set/{name}"), *content)).collect();
        let folder = folder_of(&files);
        let datasets = Datasets::new(vec![folder.path().join("set"), folder.path().join("none")]);
        (folder, datasets)
    }

    const FILES: [(&str, &str); 6] = [
        ("a.png", ""),
        ("a.txt", "ink, a cat, a"),
        ("b/c.png", ""),
        ("b/c.txt", "a dog, Ink"),
        ("d.png", ""),
        (".secret.png", ""),
    ];

    #[test]
    fn images_are_found_by_what_their_captions_hold_and_lack() {
        let (_folder, datasets) = datasets(&FILES);
        let files = |wanted: Wanted| -> Vec<String> {
            datasets.images("set", &wanted).unwrap().unwrap().images.into_iter().map(|image| image.file).collect()
        };
        let text = |text: &str| Some(text.to_string());
        assert_eq!(files(Wanted::default()), ["a.png", "b/c.png", "d.png"]);
        assert_eq!(files(Wanted { search: text("INK"), ..Default::default() }), ["a.png", "b/c.png"]);
        assert_eq!(files(Wanted { without: text("ink"), ..Default::default() }), ["d.png"]);
        assert_eq!(files(Wanted { offset: Some(1), limit: Some(1), ..Default::default() }), ["b/c.png"]);
        let detail = datasets.detail("set").unwrap().unwrap();
        assert_eq!((detail.summary.images, detail.summary.captioned, detail.problems.len()), (3, 2, 1));
        assert_eq!(detail.tags.iter().find(|tag| tag.tag == "a cat").unwrap().count, 1);
        assert_eq!(datasets.list().unwrap().len(), 1);
    }

    #[test]
    fn names_from_outside_reach_only_what_is_listed() {
        let (folder, datasets) = datasets(&FILES);
        fs::write(folder.path().join("outside.png"), "").unwrap();
        assert!(datasets.image("set", "b/c.png").unwrap().is_some());
        for file in ["../outside.png", "b/../a.png", "/etc/passwd", ".secret.png", "a.txt", "", "b"] {
            assert!(datasets.image("set", file).unwrap().is_none(), "{file}");
            assert!(datasets.caption("set", file).unwrap().is_none(), "{file}");
            assert!(matches!(datasets.save("set", file, "x", "\"none\""), Err(NotSaved::Unknown)), "{file}");
        }
        for name in ["..", "none", "set/b", ""] {
            assert!(datasets.detail(name).unwrap().is_none(), "{name}");
        }
    }

    #[test]
    fn of_two_who_edit_one_caption_nobody_overwrites_the_other() {
        let (folder, datasets) = datasets(&FILES);
        let seen = datasets.caption("set", "a.png").unwrap().unwrap().etag.unwrap();
        let first = datasets.save("set", "a.png", "  a red cat ", &seen).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("set/a.txt")).unwrap(), "a red cat\n");
        let Err(NotSaved::Conflict(now)) = datasets.save("set", "a.png", "a blue cat", &seen) else { panic!() };
        assert_eq!(now, first);
        datasets.save("set", "a.png", "a blue cat", now.etag.as_deref().unwrap()).unwrap();
        // Of many concurrent writers with the same etag, one succeeds.
        let seen = datasets.caption("set", "d.png").unwrap().unwrap().etag.unwrap();
        let saved = |i: usize| datasets.save("set", "d.png", &format!("writer {i}"), &seen).is_ok();
        let count: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|i| scope.spawn(move || usize::from(saved(i)))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(count, 1);
    }

    #[test]
    fn captions_in_a_metadata_file_are_edited_row_by_row() {
        for (file, text) in [
            ("metadata.csv", "file_name,text,more\na.png,a cat,1\nb.png,\"a dog, ink\",2\n"),
            (
                "metadata.jsonl",
                "{\"file_name\": \"a.png\", \"text\": \"a cat\"}\n{\"file_name\": \"b.png\", \"text\": \"a dog, ink\"}\n",
            ),
        ] {
            let (folder, datasets) = datasets(&[("a.png", ""), ("b.png", ""), (file, text)]);
            let there = || fs::read_to_string(folder.path().join("set").join(file)).unwrap();
            let [a, b] = ["a.png", "b.png"].map(|image| datasets.caption("set", image).unwrap().unwrap().etag.unwrap());
            let saved = datasets.save("set", "a.png", " a red cat ", &a).unwrap();
            assert_eq!(there(), text.replace("a cat", "a red cat"));
            // This row has changed, the other one has not.
            let Err(NotSaved::Conflict(now)) = datasets.save("set", "a.png", "a blue cat", &a) else { panic!() };
            assert_eq!(now, saved);
            datasets.save("set", "b.png", "a dog", &b).unwrap();
            assert_eq!(there(), text.replace("a cat", "a red cat").replace("a dog, ink", "a dog"));
            // Changes by other programs are noticed.
            fs::write(folder.path().join("set").join(file), text.replace("a cat", "an owl")).unwrap();
            let captions = datasets.images("set", &Wanted::default()).unwrap().unwrap().images;
            assert_eq!(
                captions.iter().map(|image| image.caption.as_str()).collect::<Vec<_>>(),
                ["an owl", "a dog, ink"]
            );
        }
    }

    #[test]
    fn a_dataset_is_read_again_only_if_it_has_changed() {
        let (folder, datasets) = datasets(&FILES);
        let read = || datasets.all("set").unwrap().unwrap();
        let first = read();
        assert!(Arc::ptr_eq(&first, &read()), "nothing has changed");
        for (name, content) in [("a.txt", "a longer caption"), ("e.png", ""), ("b/c.txt", "x")] {
            let before = read();
            fs::write(folder.path().join("set").join(name), content).unwrap();
            assert!(!Arc::ptr_eq(&before, &read()), "{name}");
        }
        let before = read();
        fs::remove_file(folder.path().join("set/d.png")).unwrap();
        assert_eq!((before.images.len(), read().images.len()), (4, 3));
    }
}

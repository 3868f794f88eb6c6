//! Find and replace in all captions of a dataset, with a preview.

use std::sync::PoisonError;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    caption::{Caption, NotSaved},
    datasets::Datasets,
};

/// A find-and-replace request; matching is case-sensitive.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Replacement {
    /// The text to find.
    pub find: String,
    /// The text to replace it with.
    pub replace: String,
    /// Whether to only preview the changes.
    #[serde(default)]
    pub preview: bool,
    /// The `token` of the preview: nothing is written if a caption has changed since.
    #[serde(default)]
    pub token: Option<String>,
}

/// The changes of a replacement, previewed or done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Replaced {
    /// The captions with the text. Saving `before` with the `etag` undoes a change.
    pub changes: Vec<Change>,
    /// The number of captions with the text that cannot be edited here.
    pub read_only: usize,
    /// Identifies this preview.
    pub token: String,
    /// Whether it is done.
    pub done: bool,
}

/// A caption with the text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Change {
    /// The image.
    pub file: String,
    /// Its caption before.
    pub before: String,
    /// Its caption after.
    pub after: String,
    /// The etag of the caption as it is now.
    pub etag: String,
}

/// Why nothing was replaced, or not everywhere.
#[derive(Debug)]
pub enum NotReplaced {
    /// There is no such dataset.
    Unknown,
    /// The text to find is empty.
    Nothing,
    /// A caption has changed since the preview; the changes as of now.
    Conflict(Replaced),
    /// A caption could not be written. Those before it, in the order of names, were.
    Stopped(NotSaved),
}

impl Datasets {
    /// Replaces a text in all captions of a dataset, or previews the changes.
    ///
    /// # Errors
    /// See [`NotReplaced`].
    pub fn replace(&self, name: &str, replacement: &Replacement) -> Result<Replaced, NotReplaced> {
        if replacement.find.is_empty() {
            return Err(NotReplaced::Nothing);
        }
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let images = self.all(name).map_err(|e| NotReplaced::Stopped(NotSaved::Failed(e)))?;
        let mut found = Vec::new();
        let mut read_only = 0;
        let images = images.ok_or(NotReplaced::Unknown)?;
        for image in &images.images {
            let caption = Caption::of(image);
            if !caption.text.contains(&replacement.find) {
                continue;
            }
            let Some(etag) = caption.etag.clone() else {
                read_only += 1;
                continue;
            };
            let after = caption.text.replace(&replacement.find, &replacement.replace).trim().to_string();
            let change = Change { file: image.file.clone(), before: caption.text.clone(), after, etag };
            found.push((change, image, caption));
        }
        let token = token(replacement, found.iter().map(|(change, ..)| change));
        let result = |changes, done| Replaced { changes, read_only, token: token.clone(), done };
        let wanted = replacement.token.as_ref();
        if replacement.preview || wanted != Some(&token) {
            let shown = result(found.into_iter().map(|(change, ..)| change).collect(), false);
            return if replacement.preview { Ok(shown) } else { Err(NotReplaced::Conflict(shown)) };
        }
        let mut changes = Vec::new();
        for (change, image, caption) in found {
            self.changed(name);
            let saved = caption.replace(image, &change.after, &change.etag).map_err(NotReplaced::Stopped)?;
            changes.push(Change { etag: saved.etag.unwrap_or_default(), after: saved.text, ..change });
        }
        Ok(result(changes, true))
    }
}

/// A hash of a replacement and all captions that it changes.
fn token<'a>(replacement: &Replacement, changes: impl Iterator<Item = &'a Change>) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &str| _ = hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    [&replacement.find, &replacement.replace].into_iter().for_each(|text| add(text));
    changes.for_each(|change| [&change.file, &change.etag].into_iter().for_each(|text| add(text)));
    hasher.finalize().to_hex()[..32].into()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_replacement_is_previewed_done_once_and_undone() {
        let folder = tempfile::tempdir().unwrap();
        let set = folder.path().join("set");
        fs::create_dir(&set).unwrap();
        for (name, caption) in [("a", "a cat, ink"), ("b", "a dog"), ("c", "cat of cats")] {
            fs::write(set.join(name).with_extension("png"), "").unwrap();
            fs::write(set.join(name).with_extension("txt"), caption).unwrap();
        }
        let text = |name: &str| fs::read_to_string(set.join(name)).unwrap();
        let datasets = Datasets::new(vec![set.clone()]);
        let wish = |preview, token| Replacement { find: "cat".into(), replace: "fox".into(), preview, token };
        let preview = datasets.replace("set", &wish(true, None)).unwrap();
        let after: Vec<_> = preview.changes.iter().map(|change| change.after.as_str()).collect();
        assert_eq!(
            (after, preview.done, text("a.txt").as_str()),
            (vec!["a fox, ink", "fox of foxs"], false, "a cat, ink")
        );
        // Another edit in between.
        fs::write(set.join("c.txt"), "a cat asleep").unwrap();
        let Err(NotReplaced::Conflict(now)) = datasets.replace("set", &wish(false, Some(preview.token))) else {
            panic!()
        };
        assert_eq!((now.changes[1].after.as_str(), text("a.txt").as_str()), ("a fox asleep", "a cat, ink"));
        assert!(matches!(datasets.replace("set", &wish(false, None)), Err(NotReplaced::Conflict(_))));
        let done = datasets.replace("set", &wish(false, Some(now.token))).unwrap();
        assert_eq!(
            (done.done, text("a.txt").as_str(), text("c.txt").as_str()),
            (true, "a fox, ink\n", "a fox asleep\n")
        );
        for change in &done.changes {
            datasets.save("set", &change.file, &change.before, &change.etag).unwrap();
        }
        assert_eq!((text("a.txt").as_str(), text("c.txt").as_str()), ("a cat, ink\n", "a cat asleep\n"));
        assert!(matches!(datasets.replace("none", &wish(true, None)), Err(NotReplaced::Unknown)));
        let empty = Replacement { find: String::new(), ..wish(true, None) };
        assert!(matches!(datasets.replace("set", &empty), Err(NotReplaced::Nothing)));
    }
}

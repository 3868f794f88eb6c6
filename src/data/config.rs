//! The `[data]` table.

use std::path::{Path, PathBuf};

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use crate::{
    device::Dtype,
    error::{Error, Result},
};

/// The dataset, and how it becomes batches.
///
/// FLUX.1 trains on images with captions, InstructPix2Pix on edits: pairs of images (`original`, `edited`), which get the same bucket,
/// crop and flip, each with the `instruction` that leads from the first to the second. Edits come in one of these forms:
/// - a `metadata.jsonl` or `metadata.csv` with a column for each of the three, the images as paths in the folder;
/// - folders `original` and `edited` with images of the same names (the extension may differ), and for each pair a `.txt`
///   of that name in `edited`, `original` or `instruction`;
/// - Parquet files as Hugging Face writes them, in the folder or in its folder `data`: those whose names start with `train`, if there
///   are any, else all. Nothing is unpacked to disk.
///
/// Columns of metadata and Parquet files; the first one present in each list counts (in metadata, columns of images may also end
/// in `_file_name`):
/// - the original: `original`, `original_image`, `input_image`, `source_image`, `source_img`, `input`, `source`;
/// - the edited image: `edited`, `edited_image`, `output_image`, `target_image`, `target_img`, `output`, `target`;
/// - the instruction: `instruction`, `edit_prompt`, `edit_instruction`, `edit`, `prompt`, `text`;
/// - optional captions of the two images: `original_caption`, `original_prompt`, `source_caption`, `source_prompt`,
///   `input_caption`, `input_prompt`; and `edited_caption`, `edited_prompt`, `target_caption`, `target_prompt`,
///   `output_caption`, `output_prompt`. `kiln validate --clip` judges edits by them; they are not trained on.
///
/// Cache entries are addressed by content. Changing an image or a caption, `resolution`, `flip`, `trigger`, `cache_dtype` or one
/// of the bucket settings (`max_upscale`, `bucket_step`, `min_aspect`, `max_aspect`) leads to new entries for what changed.
/// `path`, `batch_size`, `repeats`, `caption_dropout`, `conditioning_dropout` and `validation_split` need none, as long as
/// `cache` is the same folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Folder of images (JPEG, PNG, WebP), with its sub-folders except kiln's own run folders. No default. Captions are `.txt` files of
    /// the same names, or the column `text` (or `caption`) of a `metadata.jsonl` or `metadata.csv` with a column `file_name`, which
    /// covers all images in its folder and below. Without images: Parquet files with a column `image` (or `picture`, `img`) and one
    /// of captions. Edits: pairs of images with an instruction, in a metadata file, in two folders or in Parquet files. A folder
    /// named as for kohya's scripts, such as `10_dog`, is repeated that many times. Files that are not used are reported.
    pub path: PathBuf,
    /// Images are scaled to an area of at most `resolution²` pixels. Default 1024. Lower it when memory is short (the cost of a step
    /// grows with the area); keep it near the size that images will be generated at. InstructPix2Pix was trained at 256.
    pub resolution: usize,
    /// Images per batch. Default 1. Raise it while memory allows; for larger batches than fit, raise
    /// `training.gradient_accumulation` instead.
    pub batch_size: usize,
    /// How often each image is seen in one epoch, from 1 to 10 000. Default 1. Raise it when few images of different shapes leave
    /// batches short.
    pub repeats: usize,
    /// Whether to train on mirror images, too, each time with probability one half; both images of an edit together. Default
    /// false. Leave it off for text, faces that must stay recognisable, anything else that has a left and a right, and edits whose
    /// instructions say "left" or "right". Doubles the cached latents.
    pub flip: bool,
    /// FLUX.1: the probability, from 0 to 1, that an image is trained with the empty prompt instead of its caption. Default 0.05.
    /// About 0.05 to 0.1 helps a model that is used with classifier-free guidance; use 0 to bind a style to its trigger word alone.
    pub caption_dropout: f64,
    /// Stable Diffusion: the probability p, from 0 to 1/3, that a sample is trained without its instruction, and the same each for
    /// without its original and without both. Default 0.05, as in the paper; 0 takes away both guidances.
    pub conditioning_dropout: f64,
    /// FLUX.1: a word that is put before every caption that does not contain it yet (as a whole word, in any case). Default: none.
    /// Use a rare one to call the trained subject by.
    pub trigger: String,
    /// The fraction of images (of edits: of originals, with all their edits) that is held out to measure the loss on, from 0
    /// to below 1. Default 0.1. Whether an image is held out depends on its content alone, so it stays so when others are added. Use 0
    /// to train on everything and measure nothing.
    pub validation_split: f64,
    /// Folder for encoded images and captions. Default: `.kiln-cache` in `path`. Set it when `path` is read-only or on a slow
    /// disk. Several configurations may share one folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// Dtype of cached latents. Default `f32`; `bf16` halves their disk space and rounds them. Embeddings are kept as the text
    /// encoders give them, in `model.dtype`.
    pub cache_dtype: Dtype,
    /// The most that an image is enlarged to fill its bucket; a smaller one gets a smaller bucket of its own shape. Default 1.0.
    /// Above about 1.5 a model learns the blur of enlarging.
    pub max_upscale: f64,
    /// The sides of buckets are multiples of this, itself a multiple of 16 pixels. Default 16. Raise it to 32 or 64 to get fewer
    /// bucket sizes and so fuller batches, at the cost of cropping more.
    pub bucket_step: usize,
    /// The narrowest bucket, width over height. Default 0.5. Narrower images are cropped.
    pub min_aspect: f64,
    /// The widest bucket, width over height. Default 2.0. Wider images are cropped.
    pub max_aspect: f64,
}

/// The most images in one forward pass.
const MOST_AT_ONCE: usize = 4096;

/// Sanity limit on `repeats`: catches a stray zero.
pub(super) const MOST_REPEATS: usize = 10_000;

/// The most samples in one epoch, counting repeats: their order is built in memory, at 12 bytes each.
const LONGEST_EPOCH: usize = 100_000_000;

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            resolution: 1024,
            batch_size: 1,
            repeats: 1,
            flip: false,
            caption_dropout: 0.05,
            conditioning_dropout: 0.05,
            trigger: String::new(),
            validation_split: 0.1,
            cache: None,
            cache_dtype: Dtype::F32,
            max_upscale: 1.0,
            bucket_step: 16,
            min_aspect: 0.5,
            max_aspect: 2.0,
        }
    }
}

impl DataConfig {
    /// The folder of encoded images and captions.
    pub fn cache_folder(&self) -> PathBuf {
        self.cache.clone().unwrap_or_else(|| self.path.join(".kiln-cache"))
    }

    /// Checks that the order of an epoch of so many samples fits in memory.
    pub(super) fn check_epoch(&self, samples: usize) -> Result<()> {
        match samples.checked_mul(self.repeats) {
            Some(slots) if slots <= LONGEST_EPOCH => Ok(()),
            _ => {
                let problem = format!("is {}, too many for one epoch of {samples} samples", self.repeats);
                Err(Error::setting("data.repeats", problem)
                    .hint(format!("use at most {}", (LONGEST_EPOCH / samples.max(1)).max(1))))
            }
        }
    }

    /// Checks every value against its limits.
    ///
    /// # Errors
    /// Names the first invalid field and what to write instead.
    pub fn validate(&self) -> Result<()> {
        let fraction = 0.0..=1.0;
        let limits = [
            ("path", self.path != Path::new(""), "name the folder of the images".to_string()),
            (
                "bucket_step",
                self.bucket_step >= 16 && self.bucket_step.is_multiple_of(16),
                format!("is {}, but sides must be multiples of 16 pixels: use 16, 32 or 64", self.bucket_step),
            ),
            (
                "resolution",
                (self.bucket_step..=8192).contains(&self.resolution),
                format!("is {}: use {} to 8192 pixels, such as 512 or 1024", self.resolution, self.bucket_step),
            ),
            (
                "batch_size",
                (1..=MOST_AT_ONCE).contains(&self.batch_size),
                format!("is {}: use 1 to {MOST_AT_ONCE}", self.batch_size),
            ),
            (
                "repeats",
                (1..=MOST_REPEATS).contains(&self.repeats),
                format!(
                    "is {}: use 1 to see each image once in an epoch, at most {MOST_REPEATS} (a longer run needs more \
                     steps, not longer epochs)",
                    self.repeats
                ),
            ),
            (
                "caption_dropout",
                fraction.contains(&self.caption_dropout),
                format!("is {}, but it is a probability: use 0 to 1", self.caption_dropout),
            ),
            (
                "conditioning_dropout",
                (0.0..=1.0 / 3.0).contains(&self.conditioning_dropout),
                format!(
                    "is {}, but without instruction, without original and without both have this probability each: use 0 \
                     to 0.33",
                    self.conditioning_dropout
                ),
            ),
            (
                "validation_split",
                (0.0..1.0).contains(&self.validation_split),
                format!("is {}, but it is a fraction of the images: use 0 to below 1", self.validation_split),
            ),
            (
                "max_upscale",
                (1.0..=8.0).contains(&self.max_upscale),
                format!("is {}: use 1 to enlarge nothing, at most 8", self.max_upscale),
            ),
            (
                "min_aspect",
                self.min_aspect > 0.0 && self.min_aspect <= 1.0,
                format!(
                    "is {}, but it is the width over the height of the narrowest bucket: use 0.25 to 1",
                    self.min_aspect
                ),
            ),
            (
                "max_aspect",
                self.max_aspect >= 1.0 && self.max_aspect.is_finite(),
                format!("is {}, but it is the width over the height of the widest bucket: use 1 to 4", self.max_aspect),
            ),
        ];
        match limits.into_iter().find(|(_, holds, _)| !holds) {
            Some((field, _, problem)) => Err(Error::setting(format!("data.{field}"), problem)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_out_of_range_is_named() {
        let good = DataConfig { path: "pictures".into(), ..Default::default() };
        good.validate().unwrap();
        let named = |config: DataConfig, field: &str| {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(&format!("`data.{field}`: ")), "{message}");
        };
        named(DataConfig::default(), "path");
        named(DataConfig { caption_dropout: 1.5, ..good.clone() }, "caption_dropout");
        named(DataConfig { caption_dropout: f64::NAN, ..good.clone() }, "caption_dropout");
        named(DataConfig { conditioning_dropout: 0.34, ..good.clone() }, "conditioning_dropout");
        named(DataConfig { validation_split: 1.0, ..good.clone() }, "validation_split");
        named(DataConfig { repeats: 0, ..good.clone() }, "repeats");
        named(DataConfig { repeats: usize::MAX, ..good.clone() }, "repeats");
        named(DataConfig { bucket_step: 24, ..good.clone() }, "bucket_step");
        named(DataConfig { resolution: 8, ..good.clone() }, "resolution");
        named(DataConfig { min_aspect: 0.0, ..good }, "min_aspect");
    }

    #[test]
    fn an_epoch_that_does_not_fit_in_memory_is_refused() {
        let config = DataConfig { repeats: 1000, ..Default::default() };
        config.check_epoch(100_000).unwrap();
        let message = config.check_epoch(100_001).unwrap_err().to_string();
        assert!(message.starts_with("`data.repeats`: is 1000") && message.contains("at most 999"), "{message}");
        assert!(config.check_epoch(usize::MAX).is_err());
    }

    #[test]
    fn a_configuration_reads_back_the_same_and_unknown_keys_are_errors() {
        let config = DataConfig { path: "pictures".into(), cache_dtype: Dtype::Bf16, ..Default::default() };
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<DataConfig>(&text).unwrap(), config);
        assert!(toml::from_str::<DataConfig>("path = 'images'\nresolutoin = 512").is_err());
    }
}

//! The quality of an edit, by CLIP: the two curves of the InstructPix2Pix paper (Brooks et al. 2023, section 4.1).

use std::path::Path;

use burn::tensor::{Device, FloatDType, Tensor};
use image::RgbImage;

use crate::{
    error::{Error, Result},
    models::clip::{ClipImageProcessor, ClipModel},
    tokenizer::Tokenizers,
};

/// A CLIP model to measure edits with; the paper's is openai/clip-vit-large-patch14.
#[derive(Clone, Debug)]
pub struct Similarity {
    model: ClipModel,
    processor: ClipImageProcessor,
    tokenizers: Tokenizers,
    device: Device,
}

/// CLIP scores of an edit. Both are in [-1, 1] and trade off against each other: with more image guidance the image stays closer to
/// the original, and the edit gets weaker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EditScore {
    /// `cos(E(original), E(edited))`: how much of the original is preserved.
    pub image: f64,
    /// `cos(E(edited) − E(original), E(caption after) − E(caption before))`: whether the image changed as the captions
    /// say (Gal et al. 2022). Without captions there is nothing to compare with.
    pub direction: Option<f64>,
}

impl Similarity {
    /// Opens the folder of a transformers `CLIPModel`; it runs in f32.
    ///
    /// # Errors
    /// Files are missing or broken, or belong to another model.
    pub fn open(folder: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let folder = folder.as_ref();
        let model = ClipModel::open(folder, device, Some(FloatDType::F32))?;
        let text = &model.config.text;
        Ok(Self {
            processor: ClipImageProcessor::open(folder, model.config.vision.image_size)?,
            tokenizers: Tokenizers::open_clip(folder, text.vocab_size, text.max_position_embeddings)?,
            device: device.clone(),
            model,
        })
    }

    /// Measures one edit; `captions` describe the image before and after it. As in the paper's own code, vectors are normalized before
    /// they are subtracted, and if nothing changed the direction is zero. Unlike there, images are prepared as for CLIP's training: scaled
    /// with an antialiasing filter, and cropped, not squeezed.
    ///
    /// # Errors
    /// An image is empty, or a caption has no tokens.
    pub fn measure(&self, original: &RgbImage, edited: &RgbImage, captions: Option<(&str, &str)>) -> Result<EditScore> {
        if [original, edited].iter().any(|picture| picture.is_empty()) {
            return Err(Error::setting("measure", "an image has no pixels"));
        }
        let pixels = Tensor::from_data(self.processor.pixels(&[original, edited]), &self.device);
        let [original, edited] = unit_rows(self.model.image_features(pixels));
        let direction = captions.map(|(before, after)| {
            let ids = [self.tokenizers.tokenize(before)?.clip, self.tokenizers.tokenize(after)?.clip];
            let [before, after] = unit_rows(self.model.text_features(&[&ids[0], &ids[1]]));
            Ok(cosine(&difference(&edited, &original), &difference(&after, &before)))
        });
        Ok(EditScore { image: cosine(&original, &edited), direction: direction.transpose()? })
    }
}

/// The two rows of `features` `[2, P]`, each with length one.
fn unit_rows(features: Tensor<2>) -> [Vec<f64>; 2] {
    let width = features.dims()[1];
    let values: Vec<f32> = features.cast(FloatDType::F32).into_data().into_vec().expect("just cast to f32");
    [0, 1].map(|row| {
        let row: Vec<f64> = values[row * width..][..width].iter().copied().map(f64::from).collect();
        let length = dot(&row, &row).sqrt();
        row.into_iter().map(|v| v / length).collect()
    })
}

fn difference(to: &[f64], from: &[f64]) -> Vec<f64> {
    to.iter().zip(from).map(|(to, from)| to - from).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `a·b / (|a|·|b|)`; zero where one of them is.
fn cosine(a: &[f64], b: &[f64]) -> f64 {
    // The smallest product of lengths, as in PyTorch's `cosine_similarity`.
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_is_that_of_the_angle_and_zero_without_one() {
        assert_eq!(cosine(&[3.0, 0.0], &[2.0, 0.0]), 1.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 5.0]), 0.0);
        assert_eq!(cosine(&[2.0, 0.0], &[-1.0, 0.0]), -1.0);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
    }
}

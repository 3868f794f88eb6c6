//! Input files of a request: tokens, noise, latents, masks.

use std::{collections::BTreeMap, path::Path};

use burn::tensor::{DType, Device, Tensor, TensorData};
use image::{
    GrayImage,
    imageops::{self, FilterType},
};

use super::picture::Size;
use crate::{
    data,
    error::{Error, Result},
    models::{
        flux::{pack, unpack},
        text::TextLimits,
    },
    pipelines::{
        ImageSizes,
        pipeline::{NOT_FINITE, WHY_NOT_FINITE},
    },
    tokenizer::PromptIds,
    weights::{TensorFile, write_tensors},
};

/// Reads token ids of at least one prompt: `clip` `[B, 77]` and, for a model with T5, `t5` `[B, L]`.
pub(super) fn ids(path: &Path, has_t5: bool) -> Result<Vec<PromptIds>> {
    let file = TensorFile::open(path)?;
    let rows = |name: &str| -> Result<Vec<Vec<i64>>> {
        let data = file.read(name)?.convert_dtype(DType::I64);
        let &[count, length] = data.shape.as_slice() else {
            return Err(Error::tensor(path, name, format!("has shape {:?}, expected two axes", data.shape.as_slice())));
        };
        let ids: Vec<i64> = data.into_vec().expect("just converted to i64");
        Ok((0..count).map(|row| ids[row * length..(row + 1) * length].to_vec()).collect())
    };
    let clip = rows("clip")?;
    let t5 = if has_t5 { rows("t5")? } else { vec![Vec::new(); clip.len()] };
    if clip.len() != t5.len() || clip.is_empty() {
        return Err(Error::file(path, format!("`clip` has {} rows, `t5` has {}", clip.len(), t5.len())));
    }
    Ok(clip.into_iter().zip(t5).map(|(clip, t5)| PromptIds { clip, t5 }).collect())
}

/// Checks that the prompts from `path` fit the text encoders of `model`, and are as long as the `negative` prompt, if there is one,
/// because both go through the network together.
pub(super) fn check_ids(path: &Path, ids: &[PromptIds], model: &Path, negative: Option<&PromptIds>) -> Result<()> {
    let limits = TextLimits::open(model)?;
    ids.iter().try_for_each(|ids| limits.check(ids)).map_err(|problem| Error::file(path, problem))?;
    let pairs = negative.map(|negative| [("clip", &ids[0].clip, &negative.clip), ("t5", &ids[0].t5, &negative.t5)]);
    if let Some((name, own, other)) = pairs.into_iter().flatten().find(|(_, own, other)| own.len() != other.len()) {
        let problem = format!("`{name}` has {} ids for a prompt, the negative prompt {}", own.len(), other.len());
        return Err(Error::file(path, problem).hint("pad the prompts as the tokenizer of the model does"));
    }
    Ok(())
}

/// Writes scaled latents `[B, C, h, w]` as `latents`, optionally packed as tokens `[B, L, 4·C]`.
///
/// # Errors
/// A value is not finite, or the file cannot be written.
pub(super) fn write_latents(latents: Tensor<4>, packed: bool, path: &Path) -> Result<()> {
    if !latents.clone().is_finite().all().into_scalar::<bool>() {
        return Err(Error::file(path, NOT_FINITE).hint(WHY_NOT_FINITE));
    }
    let latents = if packed { pack(latents).into_data() } else { latents.into_data() };
    write_tensors(path, &BTreeMap::from([("latents".to_string(), latents)]), &BTreeMap::new())
}

/// Reads initial noise, `noise` `[B, C, h, w]`, of a size that the model supports.
pub(super) fn noise(path: &Path, sizes: &ImageSizes, device: &Device) -> Result<Tensor<4>> {
    images(path, "noise", TensorFile::open(path)?.read_f32("noise")?, sizes, device)
}

/// Reads scaled latents, `latents` `[B, C, h, w]`, as they are written. If `packed` as tokens `[B, L, 4·C]`, the size (width and height
/// in latent pixels) must be given.
pub(super) fn latents(
    path: &Path,
    size: Option<(usize, usize)>,
    packed: bool,
    sizes: &ImageSizes,
    device: &Device,
) -> Result<Tensor<4>> {
    let data = TensorFile::open(path)?.read_f32("latents")?;
    match (data.shape.as_slice(), size) {
        (&[b, l, d], Some((w, h))) if packed && d == 4 * sizes.latent_channels && b * l > 0 && 4 * l == w * h => {
            Ok(unpack(Tensor::from_data(data, device), h, w))
        }
        (&[_, l, d], _) if packed && d == 4 * sizes.latent_channels => {
            let problem = format!("holds {l} tokens, which do not determine the size of the image");
            Err(Error::tensor(path, "latents", problem)
                .hint("give the size they were made for with `width` and `height`"))
        }
        _ => images(path, "latents", data, sizes, device),
    }
}

/// The tensor `name`, `[B, C, h, w]`, of a size that the model supports.
fn images(path: &Path, name: &str, data: TensorData, sizes: &ImageSizes, device: &Device) -> Result<Tensor<4>> {
    let (channels, step) = (sizes.latent_channels, sizes.step / sizes.latent_pixel);
    match data.shape.as_slice() {
        &[b, c, h, w] if c == channels && b * h * w > 0 && h % step == 0 && w % step == 0 => {
            Ok(Tensor::from_data(data, device))
        }
        shape => {
            let [h, w] = if step == 2 { ["even", "even"] } else { ["height", "width"] };
            Err(Error::tensor(path, name, format!("has shape {shape:?}, expected [images, {channels}, {h}, {w}]")))
        }
    }
}

/// # Errors
/// The header of the mask cannot be read, or its size is not that of the image.
pub(super) fn check_mask(path: &Path, size: Size) -> Result<()> {
    let ((width, height), (w, h)) = (data::picture_size(path)?, size);
    if (width, height) == (w, h) {
        return Ok(());
    }
    let problem = format!("the mask is {width} × {height} pixels, the image {w} × {h}");
    Err(Error::file(path, problem).hint("a mask must have the size of its image, white where it may change"))
}

/// A mask for images of `size`, processed at the size `fitted`, in latent pixels of `factor` × `factor` pixels: `[1, 1, h, w]`, 1 where
/// the mask is white, 0 where it is black. A latent pixel takes the value of its first pixel.
pub(super) fn mask(path: &Path, size: Size, fitted: Size, factor: usize, device: &Device) -> Result<Tensor<4>> {
    check_mask(path, size)?;
    let mask = imageops::grayscale(&data::read_picture(path)?);
    Ok(latent_mask(&imageops::resize(&mask, fitted.0, fitted.1, FilterType::Triangle), factor, device))
}

/// The same for a mask in memory, of the processed size.
pub(super) fn latent_mask(mask: &GrayImage, factor: usize, device: &Device) -> Tensor<4> {
    let (width, height) = (mask.width() as usize / factor, mask.height() as usize / factor);
    let at = |row: usize, column: usize| mask.get_pixel((column * factor) as u32, (row * factor) as u32).0[0];
    let places = (0..height).flat_map(|row| (0..width).map(move |column| (row, column)));
    let values: Vec<f32> = places.map(|(row, column)| f32::from(u8::from(at(row, column) >= 128))).collect();
    Tensor::from_data(TensorData::new(values, [1, 1, height, width]), device)
}

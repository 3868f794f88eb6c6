//! The images of a request by size, with their initial images.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor};
use image::RgbImage;

use super::{
    GenerateRequest, Session,
    generator::Batch,
    input,
    picture::{self, PictureFile, Size},
};
use crate::{
    error::{Error, Result},
    pipelines::ImageSizes,
};

/// Images of one size.
pub(super) struct Group {
    /// Width and height in latent pixels.
    pub size: (usize, usize),
    pub source: Source,
    noise: Option<Tensor<4>>,
}

/// The initial images.
pub(super) enum Source {
    /// Only noise.
    None,
    Files(Vec<PictureFile>),
    /// Scaled latents.
    Latents(Tensor<4>),
}

/// An image to generate.
#[derive(Clone, Copy)]
pub(super) struct Row {
    /// The number of its initial image in its group.
    pub picture: usize,
    prompt: usize,
    seed: u64,
    /// Its number in its group.
    number: usize,
}

impl Group {
    /// The groups of a request; if it gives a size, they must have it. Latents in files may be `packed` as tokens.
    pub fn all(
        request: &GenerateRequest,
        sizes: &ImageSizes,
        packed: bool,
        files: &[(Size, PathBuf)],
        device: &Device,
    ) -> Result<Vec<Self>> {
        let factor = sizes.latent_pixel;
        let given = [request.width, request.height];
        let noise = request.noise.as_ref().map(|path| input::noise(path, sizes, device)).transpose()?;
        let latent_size = |width: usize, height: usize| (width / factor, height / factor);
        let groups = match (&request.image, &noise) {
            (Some(path), _) if request.input_is_latents => {
                let size = given[0].zip(given[1]).map(|(width, height)| latent_size(width, height));
                let latents = input::latents(path, size, packed, sizes, device)?;
                let [_, _, height, width] = latents.dims();
                vec![Self { size: (width, height), source: Source::Latents(latents), noise }]
            }
            (Some(_), _) => {
                let mut fitted: BTreeMap<_, Vec<PictureFile>> = BTreeMap::new();
                for (size, path) in files {
                    let file = PictureFile::new(path, *size, sizes);
                    fitted.entry(latent_size(file.fitted.0 as usize, file.fitted.1 as usize)).or_default().push(file);
                }
                let group = |(size, files)| Self { size, source: Source::Files(files), noise: noise.clone() };
                fitted.into_iter().map(group).collect()
            }
            (None, Some(tensor)) => {
                let [_, _, height, width] = tensor.dims();
                vec![Self { size: (width, height), source: Source::None, noise }]
            }
            (None, None) => {
                let [width, height] = given.map(|side| side.unwrap_or(sizes.native));
                sizes.check(width, height)?;
                vec![Self { size: latent_size(width, height), source: Source::None, noise }]
            }
        };
        for Self { size: (width, height), .. } in &groups {
            for (option, given, own) in [("width", given[0], width * factor), ("height", given[1], height * factor)] {
                if let Some(given) = given.filter(|given| *given != own) {
                    return Err(Error::setting(
                        option,
                        format!("is {given}, but the initial image, latents or noise have {own}"),
                    )
                    .hint("leave it out"));
                }
            }
        }
        Ok(groups)
    }

    /// Every image with every prompt and every seed.
    pub fn rows(&self, request: &GenerateRequest, prompts: usize) -> Result<Vec<Row>> {
        let pictures = self.source.len();
        let row = |number: usize| Row {
            picture: number / request.count / prompts,
            prompt: number / request.count % prompts,
            seed: request.seed.wrapping_add((number % request.count) as u64),
            number,
        };
        let rows: Vec<Row> = (0..request.total(pictures, prompts)?).map(row).collect();
        if let (Some(path), Some(noise)) = (&request.noise, &self.noise) {
            let expected = [rows.len(), noise.dims()[1], self.size.1, self.size.0];
            if noise.dims() != expected {
                return Err(Error::tensor(
                    path,
                    "noise",
                    format!("has shape {:?}, expected {expected:?}", noise.dims()),
                ));
            }
        }
        Ok(rows)
    }

    /// The batch of these images: prompts and seeds, noise, initial images and mask.
    pub fn prepare(&self, rows: &[Row], request: &GenerateRequest, session: &mut Session) -> Result<Batch> {
        let factor = session.sizes().latent_pixel;
        let noise = |row: &Row| match &self.noise {
            Some(noise) => noise.clone().narrow(0, row.number, 1),
            None => session.pipeline.start_noise(row.seed, self.size.0 * factor, self.size.1 * factor),
        };
        let noise = Tensor::cat(rows.iter().map(noise).collect(), 0);
        // Rows of one initial image are adjacent; it is read and encoded once.
        let mut pictures: Vec<usize> = rows.iter().map(|row| row.picture).collect();
        pictures.dedup();
        let latents = match &self.source {
            Source::None => None,
            Source::Latents(latents) => Some(session.pipeline.vae().latent_scale().denormalize(latents.clone())),
            Source::Files(files) => {
                let images: Vec<_> = pictures.iter().map(|&i| files[i].read()).collect::<Result<_>>()?;
                Some(session.encode(&images)?)
            }
        };
        let place = |row: &Row| match &self.source {
            Source::Files(_) => row.picture - pictures[0],
            _ => row.picture,
        };
        let each = |tensor: Tensor<4>| {
            Tensor::cat(rows.iter().map(|row| tensor.clone().narrow(0, place(row), 1)).collect(), 0)
        };
        let mask = |path: &PathBuf| -> Result<Tensor<4>> {
            let size = |side: usize| (side * factor) as u32;
            let fitted = (size(self.size.0), size(self.size.1));
            let sizes = match &self.source {
                Source::Files(files) => pictures.iter().map(|&i| files[i].size).collect(),
                _ => vec![fitted; self.source.len()],
            };
            let masks = sizes.into_iter().map(|size| input::mask(path, size, fitted, factor, &session.device));
            Ok(each(Tensor::cat(masks.collect::<Result<_>>()?, 0)))
        };
        Ok(Batch {
            rows: rows.iter().map(|row| (row.prompt, row.seed)).collect(),
            noise,
            pictures: latents.map(each),
            strength: request.strength,
            mask: request.mask.as_ref().map(mask).transpose()?,
        })
    }
}

impl Source {
    /// The number of initial images; noise counts as one.
    fn len(&self) -> usize {
        match self {
            Self::None => 1,
            Self::Files(files) => files.len(),
            Self::Latents(latents) => latents.dims()[0],
        }
    }

    /// Writes an image made from the initial image of this number, with its size and name, or under the next free number.
    pub fn save(&self, picture: RgbImage, number: usize, output: &Path) -> Result<PathBuf> {
        std::fs::create_dir_all(output).map_err(|e| Error::io(output, e))?;
        let (picture, path) = match self {
            Self::Files(files) => (files[number].restore(picture), picture::free_name(output, &files[number].path)),
            _ => (picture, picture::free_number(output)),
        };
        picture::save(&picture, &path)?;
        Ok(path)
    }
}

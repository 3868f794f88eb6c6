//! `kiln generate` and `kiln edit`: from prompts and images to image files.

use std::{ops::ControlFlow, path::PathBuf};

use burn::tensor::{Device, Tensor};

use super::{
    GenerateRequest, Session,
    group::{Group, Row},
    input,
    picture::{self, Size},
    plan::AtOnce,
    session::Prompts,
};
use crate::{
    data, disk,
    error::{Error, Result},
    memory::{Level, Plan},
    pipelines::Outcome,
};

/// A checked request with its model.
struct Ready<'a> {
    session: Session,
    prompts: Prompts<'a>,
    groups: Vec<Group>,
    /// The prompts of each group.
    rows: Vec<Vec<Row>>,
    /// The memory plan at its level.
    plan: Plan,
}

impl<'a> Ready<'a> {
    /// Checks everything that can be checked before weights are loaded.
    fn of(request: &'a GenerateRequest, device: &Device) -> Result<Self> {
        request.check()?;
        let pictures = match &request.image {
            Some(path) if !request.input_is_latents => picture::files(path)?,
            _ => Vec::new(),
        };
        let sized = |path: PathBuf| Ok((data::picture_size(&path)?, path));
        let pictures: Vec<(Size, PathBuf)> = pictures.into_iter().map(sized).collect::<Result<_>>()?;
        if let Some(mask) = &request.mask {
            pictures.iter().try_for_each(|(size, _)| input::check_mask(mask, *size))?;
        }
        request.total(pictures.len().max(1), request.prompts.len().max(1))?;
        let mut session = Session::open_for(Some(request.edit), &request.model, device)?;
        let sampling = &request.sampling;
        session.check(sampling, &request.prompts, request.image.as_ref().map_or(1.0, |_| request.strength))?;
        let packed = session.family.packs_latents();
        let prompts = match &request.pre_tokenized_ids {
            Some(path) => Prompts::Ids(path, input::ids(path, session.family.t5_tokens(&session.folder)? > 0)?),
            None => Prompts::Texts(&request.prompts),
        };
        let groups = Group::all(request, &session.sizes(), packed, &pictures, device)?;
        if groups.len() > 1 && (request.noise.is_some() || request.return_latents) {
            let field = if request.return_latents { "latents" } else { "noise" };
            return Err(Error::setting(
                field,
                format!("the images would be processed at {} different sizes", groups.len()),
            )
            .hint("one file holds latents of one size: use images of one size"));
        }
        let rows = groups.iter().map(|group| group.rows(request, prompts.len())).collect::<Result<Vec<_>>>()?;
        let most = rows.iter().map(Vec::len).max().unwrap_or(1);
        let at_once = AtOnce {
            size: groups
                .iter()
                .map(|group| group.size)
                .max_by_key(|(width, height)| width * height)
                .unwrap_or_default(),
            images: request.batch_size.unwrap_or(1).min(most),
            encodes: request.image.is_some() && !request.input_is_latents,
        };
        // Before the level is chosen, because adapters take memory, too.
        session.put_on_files(&request.loras)?;
        let plan = session.fit(&request.memory, at_once, sampling)?;
        Ok(Self { session, prompts, groups, rows, plan })
    }
}

/// The memory plan of a request, at the requested level or the fastest that fits. Nothing is loaded.
///
/// # Errors
/// As [`generate`], as far as they show without weights.
pub fn plan(request: &GenerateRequest, device: &Device) -> Result<Plan> {
    Ok(Ready::of(request, device)?.plan)
}

/// Generates the images; returns the files written.
///
/// # Errors
/// The model, a LoRA or an input file cannot be used, sizes do not fit, or a file cannot be written. Or the process is asked to
/// stop: then the error names the files written.
pub fn generate(request: &GenerateRequest, device: &Device) -> Result<Vec<PathBuf>> {
    let Ready { mut session, prompts, groups, rows, .. } = Ready::of(request, device)?;
    let sampling = &request.sampling;
    let packed = session.family.packs_latents();
    if !request.return_latents {
        disk::sweep(&request.output);
    }
    let worn = session.worn.clone();
    let shown = session.fitting(|session| session.embed(&prompts, sampling, &worn))?;
    let mut made = Made { request, latents: Vec::new(), files: Vec::new() };
    // At this level the denoiser is dropped before images are decoded, so it is loaded only once.
    let decodes_last = |session: &Session| session.level == Level::Balanced;
    let mut denoise_all = || -> Result<()> {
        for (group, rows) in groups.iter().zip(&rows) {
            let batch_size = match request.batch_size {
                Some(batch_size) => batch_size,
                None => session.fitting(|session| session.pictures_that_fit(group.size, &shown))?,
            };
            for batch in rows.chunks(batch_size) {
                let outcome = session.fitting(|session| {
                    let prepared = group.prepare(batch, request, session)?;
                    session.denoise(&prepared, &shown, sampling, &mut |_| ControlFlow::Continue(()))
                })?;
                let Outcome::Finished(latents) = outcome else { continue };
                made.latents.push((latents, group, batch));
                if !decodes_last(&session) {
                    made.decode(&mut session)?;
                }
            }
        }
        Ok(())
    };
    let outcome = denoise_all();
    if decodes_last(&session) {
        session.release()?;
        made.decode(&mut session)?;
    }
    outcome.map_err(|error| stopped(error, &made.files))?;
    let Made { latents, mut files, .. } = made;
    if request.return_latents {
        let latents = latents.into_iter().map(|(latents, ..)| latents);
        input::write_latents(Tensor::cat(latents.collect(), 0), packed, &request.output)?;
        files.push(request.output.clone());
    }
    Ok(files)
}

/// The results so far.
struct Made<'a> {
    request: &'a GenerateRequest,
    /// Scaled latents not yet decoded, with their group and rows.
    latents: Vec<(Tensor<4>, &'a Group, &'a [Row])>,
    files: Vec<PathBuf>,
}

impl Made<'_> {
    /// Decodes and writes the images of all latents, unless latents are requested.
    fn decode(&mut self, session: &mut Session) -> Result<()> {
        if self.request.return_latents {
            return Ok(());
        }
        for (latents, group, rows) in self.latents.drain(..) {
            let pictures = session.fitting(|session| session.decode(latents.clone()))?;
            for (picture, row) in pictures.into_iter().zip(rows) {
                self.files.push(group.source.save(picture, row.picture, &self.request.output)?);
            }
        }
        Ok(())
    }
}

/// The error; with the `files` written, if it is a stop on request.
fn stopped(error: Error, files: &[PathBuf]) -> Error {
    match error.is_stop() {
        true => {
            let what = match files.len() {
                0 => "; nothing was written".into(),
                1 => "; 1 image was written".into(),
                count => format!("; {count} images were written"),
            };
            Error::stopped(what, files.into())
        }
        false => error,
    }
}

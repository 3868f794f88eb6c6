//! From a request to picture files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};

use super::{
    encoders::ModelEncoders,
    flux::{FluxPipeline, Request},
};
use crate::{
    data::Encoders,
    error::{Error, Result},
    hub,
    lora::Lora,
    memory::Stage,
    models::{flux::pack, text::PromptEmbeds},
    tokenizer::PromptIds,
    weights::{TensorFile, write_tensors},
};

/// What `kiln generate` is asked for.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// A folder, or `org/name`.
    pub model: String,
    /// LoRA files and their strengths; all are in force together.
    pub loras: Vec<(PathBuf, f64)>,
    /// Texts.
    pub prompts: Vec<String>,
    /// Tokens instead of texts: a file with `clip` `[B, 77]` and `t5` `[B, L]`.
    pub prompt_ids: Option<PathBuf>,
    /// What to keep away from, and how strongly (classifier-free guidance).
    pub negative: Option<(String, f64)>,
    /// Pixels; ignored when `noise` is given.
    pub width: usize,
    /// Pixels; ignored when `noise` is given.
    pub height: usize,
    /// Calls of the transformer for each picture.
    pub steps: usize,
    /// Distilled guidance.
    pub guidance: f64,
    /// Of the first picture of each prompt; the next has the next seed.
    pub seed: u64,
    /// Pictures for each prompt.
    pub count: usize,
    /// Start noise from a file: `noise` `[B, C, h, w]`.
    pub noise: Option<PathBuf>,
    /// Where to write the final latents, packed `[B, L, 4·C]`, instead of pictures.
    pub latents: Option<PathBuf>,
    /// Folder for pictures.
    pub output: Option<PathBuf>,
}

/// Makes the pictures, all as one batch; returns the files written.
///
/// # Errors
/// The model, a LoRA or an input file cannot be used, sizes do not fit, or the disk refuses.
pub fn generate(request: &GenerateRequest, device: &Device) -> Result<Vec<PathBuf>> {
    for (option, count) in [("--steps", request.steps), ("--count", request.count)] {
        if count == 0 {
            return Err(Error::setting(option, "must be at least 1"));
        }
    }
    let model = hub::resolve(&request.model)?;
    let dtype = if *device == Device::flex() { FloatDType::F32 } else { FloatDType::BF16 };
    let loras = request.loras.iter().map(|(path, strength)| Ok((Lora::read(path)?, *strength)));
    let loras: Vec<_> = loras.collect::<Result<_>>()?;

    let (text, negative) = {
        let _stage = Stage::enter("text", device);
        encode(request, &model, device, dtype)?
    };
    let mut pipeline = {
        let _stage = Stage::enter("load", device);
        FluxPipeline::open(&model, device, dtype)?
    };
    for ((lora, strength), (path, _)) in loras.iter().zip(&request.loras) {
        lora.attach(&mut pipeline.transformer, *strength).map_err(|e| e.at(path))?;
    }
    let rows = text.prompt.dims()[0] * request.count;
    let noise = start_noise(request, &pipeline, rows)?;
    let latents = {
        let _stage = Stage::enter("denoise", device);
        let negative = negative.map(|(embeds, scale)| (repeat(embeds, rows), scale));
        let text = repeat(text, request.count);
        let (steps, guidance) = (request.steps, request.guidance);
        let job = Request { text, noise, steps, guidance, negative };
        pipeline.generate(&job, |step, _| tracing::info!("denoising: {step}/{steps}"))
    };
    if let Some(path) = &request.latents {
        let tensors = BTreeMap::from([("latents".to_string(), pack(latents).into_data())]);
        write_tensors(path, &tensors, &BTreeMap::new())?;
        return Ok(vec![path.clone()]);
    }
    let output = request.output.as_deref().unwrap_or(Path::new("."));
    let images = {
        let _stage = Stage::enter("decode", device);
        pipeline.decode(latents)?
    };
    std::fs::create_dir_all(output).map_err(|e| Error::io(output, e))?;
    let mut files = Vec::new();
    let mut names = (0..).map(|number: u32| output.join(format!("{number:04}.png"))).filter(|path| !path.exists());
    for image in images {
        let path = names.next().expect("the numbers go on");
        image.save(&path).map_err(|e| Error::file(&path, e.to_string()))?;
        files.push(path);
    }
    Ok(files)
}

/// The embeddings of the prompts, and those of the negative prompt with its strength. The encoders are gone afterwards.
fn encode(
    request: &GenerateRequest,
    model: &Path,
    device: &Device,
    dtype: FloatDType,
) -> Result<(PromptEmbeds, Option<(PromptEmbeds, f64)>)> {
    let mut encoders = ModelEncoders::open(model, device, dtype)?;
    let ids = match &request.prompt_ids {
        Some(path) => {
            let ids = read_ids(path)?;
            let text = encoders.text()?;
            ids.iter().try_for_each(|ids| text.check(ids)).map_err(|problem| Error::file(path, problem))?;
            ids
        }
        None => request.prompts.iter().map(|prompt| encoders.tokenize(prompt)).collect::<Result<_>>()?,
    };
    let text = encoders.encode_prompts(&ids)?;
    let negative = match &request.negative {
        Some((prompt, scale)) => {
            let ids = encoders.tokenize(prompt)?;
            Some((encoders.encode_prompts(&[ids])?, *scale))
        }
        None => None,
    };
    Ok((text, negative))
}

/// `clip` `[B, 77]` and `t5` `[B, L]` of a file, as prompts.
fn read_ids(path: &Path) -> Result<Vec<PromptIds>> {
    let file = TensorFile::open(path)?;
    let rows = |name: &str| -> Result<Vec<Vec<i64>>> {
        let data = file.read(name)?.convert_dtype(DType::I64);
        let &[count, length] = data.shape.as_slice() else {
            let problem = format!("tensor `{name}` has shape {:?}, expected two axes", data.shape.as_slice());
            return Err(Error::file(path, problem));
        };
        let ids: Vec<i64> = data.into_vec().expect("just converted to i64");
        Ok((0..count).map(|row| ids[row * length..(row + 1) * length].to_vec()).collect())
    };
    let (clip, t5) = (rows("clip")?, rows("t5")?);
    if clip.len() != t5.len() || clip.is_empty() {
        return Err(Error::file(path, format!("`clip` has {} rows, `t5` has {}", clip.len(), t5.len())));
    }
    Ok(clip.into_iter().zip(t5).map(|(clip, t5)| PromptIds { clip, t5 }).collect())
}

/// Each row `count` times in a row.
fn repeat(text: PromptEmbeds, count: usize) -> PromptEmbeds {
    let [rows, tokens, width] = text.prompt.dims();
    let pooled = text.pooled.dims()[1];
    PromptEmbeds {
        prompt: text.prompt.reshape([rows, 1, tokens, width]).repeat_dim(1, count).reshape([
            rows * count,
            tokens,
            width,
        ]),
        pooled: text.pooled.reshape([rows, 1, pooled]).repeat_dim(1, count).reshape([rows * count, pooled]),
    }
}

/// `[rows, C, h, w]`, from the request's file or its seeds.
fn start_noise(request: &GenerateRequest, pipeline: &FluxPipeline, rows: usize) -> Result<Tensor<4>> {
    let Some(path) = &request.noise else {
        pipeline.check_size(request.width, request.height)?;
        let seeds = (0..rows).map(|row| request.seed.wrapping_add((row % request.count) as u64));
        let noise = seeds.map(|seed| pipeline.start_noise(seed, request.width, request.height));
        return Ok(Tensor::cat(noise.collect(), 0));
    };
    let data: TensorData = TensorFile::open(path)?.read_f32("noise")?;
    let channels = pipeline.vae.latent_channels();
    match data.shape.as_slice() {
        &[b, c, h, w] if b == rows && c == channels && h > 0 && w > 0 && h % 2 == 0 && w % 2 == 0 => {
            Ok(Tensor::from_data(data, pipeline.device()))
        }
        shape => Err(Error::file(
            path,
            format!("tensor `noise` has shape {shape:?}, expected [{rows}, {channels}, even, even]"),
        )),
    }
}

//! The memory plan of a run, from its configuration and file headers.

use std::path::Path;

use burn::tensor::{DType, Device};

use super::{Activations, Mode, ModelInit, TrainConfig};
use crate::{
    device::is_cpu,
    error::{Error, Result},
    families::{Family, ObjectiveKind},
    lending::Residence,
    lora::Lora,
    memory::{self, Level, LevelChoice, Phase, Plan},
    models::text::{TextEncoders, TextSizes},
    pipelines::{Pipeline, Placement},
    rng::Seed,
};

/// Facts about a run before anything is loaded.
pub(super) struct Outline {
    /// The number of trainable parameters.
    pub parameters: usize,
    /// The memory plan.
    pub memory: Plan,
}

impl Outline {
    /// The plan for a run of `config` on the model of this family in the folder `model`. The level is that of the configuration, or the
    /// fastest that fits and is not faster than `fastest`.
    ///
    /// # Errors
    /// The model's files do not fit each other, all weights of a quantized model are to be trained, a LoRA target matches no layer, or no
    /// level fits.
    pub fn of(
        config: &TrainConfig,
        family: &dyn Family,
        model: &Path,
        device: &Device,
        fastest: Level,
    ) -> Result<Self> {
        let place = Residence::Streamed.into();
        let pipeline = match config.model.init {
            ModelInit::Pretrained => family.open(place, model, device, config.model.dtype.into())?,
            ModelInit::Random => family.untrained(place, model, Seed(config.run.seed), device)?,
        };
        check_trainable(config.training.mode, pipeline.quantized())?;
        let counts = match config.training.mode {
            Mode::Lora => Lora::counts(&config.lora, &pipeline.layers())?,
            // Nearly all parameters are in large tensors.
            Mode::Full => vec![pipeline.denoiser_sizes().total as usize / config.model.dtype.size()],
        };
        let parameters = counts.iter().sum();
        let moments = counts.iter().map(|count| config.optimizer.name.bytes_of_moments(*count)).sum();
        let auto = config.memory.level == LevelChoice::Auto;
        let levels = levels(config.training.mode).iter().filter(|level| !auto || **level >= fastest);
        let text = TextEncoders::sizes(model, device, config.model.dtype.into())?;
        let tokens = family.prompt_tokens(model)?;
        let plan = |&level| plan(config, pipeline.as_ref(), text, tokens, (parameters, moments), level);
        // A level from the configuration may be planned for another device.
        let counted = |plan: Plan| if auto && is_cpu(device) { plan.on_cpu() } else { plan };
        let plans = levels.map(plan).map(counted).collect();
        Ok(Self { parameters, memory: Plan::choose(&config.memory, memory::available(device), plans)? })
    }
}

/// # Errors
/// The error for training all weights of a model that is `quantized`.
fn check_trainable(mode: Mode, quantized: Option<&'static str>) -> Result<()> {
    let Some(format) = quantized.filter(|_| mode == Mode::Full) else { return Ok(()) };
    let problem = format!("`full` trains the weights themselves, and those of this model are stored as {format}");
    Err(Error::setting("training.mode", problem)
        .hint("train an adapter (`training.mode = \"lora\"`), or use the model in bfloat16 or float32"))
}

/// The possible levels of a run: if all weights are trained, they stay on the device.
pub(super) fn levels(mode: Mode) -> &'static [Level] {
    match mode {
        Mode::Lora => &Level::ALL,
        Mode::Full => &[Level::None, Level::Balanced],
    }
}

/// The memory use of a run at a level, with prompts of so many `tokens`, so many trained parameters, and so many bytes of moments.
fn plan(
    config: &TrainConfig,
    pipeline: &dyn Pipeline,
    text: TextSizes,
    tokens: usize,
    (parameters, moments): (usize, u64),
    level: Level,
) -> Plan {
    let (place, dtype) = (Placement::from(level), config.model.dtype);
    let (denoiser, vae, sizes) = (pipeline.denoiser_sizes(), pipeline.vae().sizes(), pipeline.sizes());
    let (denoiser_kept, vae_kept) = (denoiser.kept_at(place.denoiser), vae.kept_at(place.vae));
    // If all weights are trained, the trainable parameters are already counted as weights.
    let (own, trained) = (u64::from(config.training.mode == Mode::Lora), 4 * parameters as u64);
    let ema = if config.training.ema_decay > 0.0 { trained } else { 0 };
    let (ema, ema_on_host) = if level.keeps_ema_on_host() { (0, ema) } else { (ema, 0) };
    let on_host = ("EMA", ema_on_host);
    // While images are generated with the EMA, the parameters wait in the EMA's place; on the CPU both are in host memory anyway.
    let waiting = if is_cpu(pipeline.device()) { 0 } else { ema_on_host };
    let (side, batch) = (config.data.resolution / sizes.latent_pixel, config.data.batch_size);
    let blockwise = config.training.activations == Activations::Blockwise;
    // Gradients of a batch are added to the sum group by group. Those of adapters are small.
    let added = match (config.training.gradient_accumulation > 1, config.training.mode, blockwise) {
        (false, ..) => 0,
        (true, Mode::Full, true) => denoiser.largest * 4 / DType::from(dtype).size() as u64,
        (true, ..) => trained,
    };
    let in_dtype = |bytes: u64| bytes * DType::from(dtype).size() as u64 / 4;
    let row = in_dtype(pipeline.bytes_of_training_row(side, side, tokens, blockwise));
    let mut phases = vec![
        Phase::new("prepare: text", [("text encoders", text.at(place.text))]),
        Phase::new(
            "prepare: images",
            [
                ("VAE", vae_kept.max(vae.largest)),
                ("activations", pipeline.vae().bytes_of_image([config.data.resolution; 2], &level.limits())),
            ],
        ),
        Phase::new(
            "training step",
            [
                ("denoiser", denoiser.at(place.denoiser)),
                ("VAE", vae_kept),
                ("trained values", own * trained),
                ("gradients", trained + added),
                ("moments of AdamW", moments),
                ("EMA", ema),
                ("activations", row * batch as u64),
            ],
        )
        .with_host([on_host]),
    ];
    let edits = config.objective.kind() == ObjectiveKind::InstructPix2Pix;
    let shown = if edits { config.validation.edits } else { config.validation.prompts.len() };
    if shown > 0 {
        // Edits have the size of their originals.
        let (width, height) = match config.validation.prompts.is_empty() {
            true => (side, side),
            false => (config.validation.width / sizes.latent_pixel, config.validation.height / sizes.latent_pixel),
        };
        let rows = match edits {
            true => 3,
            false => 1 + u64::from(config.validation.true_guidance > 1.0),
        };
        let kept = [("denoiser", denoiser_kept), ("trained values and moments", own * trained + ema + moments)];
        let image = [width * sizes.latent_pixel, height * sizes.latent_pixel];
        let image = pipeline.vae().bytes_of_image(image, &level.limits());
        let denoising = [
            ("denoiser", denoiser.at(place.denoiser)),
            kept[1],
            ("VAE", vae_kept),
            ("activations", in_dtype(pipeline.bytes_of_row(width, height, tokens, &level.limits())) * rows),
        ];
        let decoding = [kept[0], kept[1], ("VAE", vae_kept.max(vae.largest)), ("activations", image)];
        phases.push(Phase::new("validation: denoise", denoising).with_host([on_host, ("trained values", waiting)]));
        phases.push(Phase::new("validation: decode", decoding).with_host([on_host, ("trained values", waiting)]));
    }
    Plan { level, phases }
}

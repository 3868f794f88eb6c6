//! The options of every command that generates images.

use std::path::{Path, PathBuf};

use crate::{
    generation::{LoraFiles, SamplingOptions},
    paths,
    schedulers::SchedulerName,
};

/// The fields of [`SamplingOptions`], under the same names, and adapters.
#[derive(Debug, clap::Args)]
pub(super) struct SamplingArgs {
    /// LoRA file, or folder of PEFT, as `FILE` or `FILE@SCALE` (default scale 1); may be repeated
    #[arg(long = "lora", value_name = "FILE[@SCALE]", value_parser = lora)]
    loras: Vec<(PathBuf, f64)>,
    /// Leave out the text-encoder part of the LoRA files
    #[arg(long, requires = "loras")]
    no_lora_text_encoders: bool,
    /// Sampler of a Stable Diffusion model [default: the model's default]
    #[arg(long, value_name = "NAME")]
    scheduler: Option<SchedulerName>,
    /// Denoising steps [default: 28 for FLUX.1, 30 for Stable Diffusion, 20 for InstructPix2Pix]
    #[arg(long)]
    steps: Option<usize>,
    /// Guidance scale [default: 3.5 for FLUX.1 (ignored by models without guidance input), else 7.5]
    #[arg(long)]
    guidance: Option<f64>,
    /// Image guidance scale (InstructPix2Pix) [default: 1.5]
    #[arg(long)]
    image_guidance: Option<f64>,
    /// Negative prompt (FLUX.1: doubles the time per step)
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Guidance scale against the negative prompt (FLUX.1) [default: 4]
    #[arg(long, requires = "negative_prompt")]
    true_guidance: Option<f64>,
    /// Condition on scaled instead of raw latents of the image: for CosXL and models trained with `objective.scaled_condition`
    #[arg(long)]
    scaled_condition: bool,
}

/// The options, and the LoRA files with their scales.
impl From<SamplingArgs> for (SamplingOptions, LoraFiles) {
    #[rustfmt::skip] // one field a line would hide that nothing happens here
    fn from(args: SamplingArgs) -> Self {
        let SamplingArgs {
            loras, no_lora_text_encoders, scheduler, steps, guidance, image_guidance, negative_prompt, true_guidance, scaled_condition,
        } = args;
        let loras = LoraFiles { files: loras, no_text_encoders: no_lora_text_encoders };
        (SamplingOptions { scheduler, steps, guidance, image_guidance, negative_prompt, true_guidance, scaled_condition }, loras)
    }
}

/// `FILE@SCALE` or `FILE`. The text after the last `@` is a scale only if it is a number.
fn lora(text: &str) -> std::result::Result<(PathBuf, f64), String> {
    let scale = |text: &str| text.parse::<f64>().ok().filter(|scale| scale.is_finite());
    let scaled = text.rsplit_once('@').and_then(|(file, end)| Some((file, scale(end)?)));
    let (file, scale) = scaled.unwrap_or((text, 1.0));
    Ok((paths::meant(Path::new(file))?, scale))
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::*;
    use crate::families;

    #[test]
    fn help_says_the_defaults_of_every_family() {
        let command = SamplingArgs::augment_args(clap::Command::new("generate"));
        let help = |id: &str| {
            let argument = command.get_arguments().find(|argument| argument.get_id() == id).unwrap();
            argument.get_help().unwrap().to_string()
        };
        for family in families::ALL {
            let defaults = family.defaults();
            let steps = format!("{} for {}", defaults.steps, family.name());
            assert!(help("steps").contains(&steps), "{steps}");
            assert!(help("guidance").contains(&defaults.guidance.to_string()), "{family:?}");
            for (id, scale) in [("true_guidance", defaults.true_guidance), ("image_guidance", defaults.image_guidance)]
            {
                let told = scale.map(|scale| format!("({}) [default: {scale}]", family.name()));
                assert!(told.is_none_or(|told| help(id).contains(&told)), "{family:?}: {}", help(id));
            }
        }
    }
}

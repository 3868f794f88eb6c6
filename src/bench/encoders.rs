//! Text encoders and VAE: the work before and after the denoiser.

use burn::tensor::{Device, Tensor};

use super::{Case, Kind, Run, SEED, shape, subject::normal};
use crate::{
    error::Result,
    lending::Residence,
    models::{
        text::{ClipTextModel, T5Encoder},
        vae::AutoencoderKl,
    },
    rng::Purpose,
    weights::Weights,
};

/// The VAE or a text encoder of a case, prepared for a random batch.
pub fn prepare(case: &Case, device: &Device) -> Run {
    let weights = Weights::random(SEED, device, Some(case.float()));
    match case.kind {
        Kind::VaeEncode | Kind::VaeDecode => vae(case, device, &weights),
        Kind::T5 => {
            let model = T5Encoder::load(&weights, shape::t5(case), Residence::Resident);
            let ids = ids(case, model.config.vocab_size);
            Box::new(move || sum(model.forward(&rows(&ids))))
        }
        _ => {
            let model = ClipTextModel::load(&weights, shape::clip(case));
            let ids = ids(case, model.config.vocab_size);
            Box::new(move || sum(model.forward(&rows(&ids)).last_hidden_state))
        }
    }
}

fn vae(case: &Case, device: &Device, weights: &Weights) -> Run {
    let model = AutoencoderKl::load(weights, shape::vae(case), Residence::Resident);
    let size = case.size.expect("a case of the VAE has a size");
    let latent = size / model.downsampling();
    if case.kind == Kind::VaeEncode {
        let pixels = normal("pixels", [case.batch, 3, size, size], device, case.float());
        Box::new(move || sum(model.encode(pixels.clone()).into_tensor()))
    } else {
        let latents = normal("latents", [case.batch, 16, latent, latent], device, case.float());
        Box::new(move || sum(model.decode(latents.clone())))
    }
}

/// A scalar that is finite if all values are.
fn sum<const D: usize>(output: Tensor<D>) -> Result<Option<Tensor<1>>> {
    Ok(Some(output.mean()))
}

/// Random prompts, each a row.
fn ids(case: &Case, vocabulary: usize) -> Vec<Vec<i64>> {
    let prompt = |row| {
        let draws = SEED.draw(Purpose::Weights, 0, row).uniform(case.tokens());
        draws.into_iter().map(|draw| (f64::from(draw) * vocabulary as f64) as i64).collect()
    };
    (0..case.batch as u64).map(prompt).collect()
}

fn rows(ids: &[Vec<i64>]) -> Vec<&[i64]> {
    ids.iter().map(Vec::as_slice).collect()
}

//! The list of cases to measure.

use std::path::PathBuf;

use super::{Case, Kind, Model, Operation, TrainTarget, shape};
use crate::{
    device,
    error::{Error, Result},
    pipelines::LARGEST_SIDE,
    schedulers::flow_match::MOST_STEPS,
};
use burn::tensor::Device;
use clap::ValueEnum;

/// The options of a benchmark. An empty list takes the model's usual values.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The denoisers; with [`layers`](Self::layers) FLUX only.
    pub models: Vec<Model>,
    /// Kinds of cases, `operations` for all operations, or names of operations.
    pub only: Vec<String>,
    /// Side lengths in pixels.
    pub sizes: Vec<usize>,
    /// Batch sizes.
    pub batches: Vec<usize>,
    /// The parameters to train.
    pub targets: Vec<TrainTarget>,
    /// The numbers of FLUX's double and single blocks to build.
    pub layers: Vec<usize>,
    /// Small models, for a CPU.
    pub small: bool,
    /// Measured runs after the first.
    pub repeats: usize,
    /// The folder of a FLUX transformer to load.
    pub weights: Option<PathBuf>,
    /// Rank of the LoRA.
    pub rank: usize,
    /// Sampling steps.
    pub steps: usize,
}

impl Options {
    /// The cases, in order.
    ///
    /// # Errors
    /// A name or a number is invalid, or the cases would be too large for a CPU.
    pub fn cases(&self, device: &Device) -> Result<Vec<Case>> {
        let layers = self.check()?;
        let all = self.all(device, layers);
        let cases: Vec<_> = all.into_iter().filter(|case| self.wants(case)).collect();
        let fits =
            |case: &Case| case.kind == Kind::Operation || case.model == Some(Model::Flux) && case.layers.is_some();
        match cases.iter().find(|case| case.device == "cpu" && !case.small && !fits(case)) {
            Some(case) => {
                let problem = format!("`{case}` at full size is too large for a CPU");
                let next = "give `small` for models of the same layout that fit, `layers 1,1` for a few of FLUX's real \
                            blocks, or `device cuda`";
                Err(Error::setting("device cpu", problem).hint(next))
            }
            None if cases.is_empty() => Err(Error::setting("only", "no case matches these options")),
            None => Ok(cases),
        }
    }

    /// The blocks of both kinds, if not all.
    fn check(&self) -> Result<Option<[usize; 2]>> {
        let known = |word: &str| {
            word == "operations" || Kind::from_str(word, false).is_ok() || word.parse::<Operation>().is_ok()
        };
        if let Some(word) = self.only.iter().find(|word| !known(word)) {
            let kinds = Kind::value_variants().iter().map(super::case::name).filter(|kind| kind != "operation");
            let kinds: Vec<_> = kinds.chain(["operations".into()]).collect();
            let operations: Vec<_> = Operation::all().iter().map(ToString::to_string).collect();
            return Err(Error::setting("only", format!("`{word}` is not a case")).hint(format!(
                "the cases are {}; single operations {}",
                kinds.join(", "),
                operations.join(", ")
            )));
        }
        if let Some(size) = self.sizes.iter().find(|&&size| size == 0 || !size.is_multiple_of(64)) {
            return Err(Error::setting("size", format!("{size} is not a multiple of 64 pixels")));
        }
        let (repeats, rank, steps) = ([self.repeats], [self.rank], [self.steps]);
        for (field, numbers, most) in [
            ("size", &self.sizes[..], LARGEST_SIDE),
            ("batch", &self.batches, 1024),
            ("layers", &self.layers, 1000),
            ("rank", &rank, 3072),
            ("steps", &steps, MOST_STEPS),
            ("repeats", &repeats, 10_000),
        ] {
            if let Some(number) = numbers.iter().find(|number| !(1..=most).contains(*number)) {
                return Err(Error::setting(field, format!("must be at least 1 and at most {most}, not {number}")));
            }
        }
        match self.layers[..] {
            [] => Ok(None),
            [double, single] => Ok(Some([double, single])),
            _ => {
                Err(Error::setting("layers", "needs two numbers, of double and of single blocks").hint("such as 19,38"))
            }
        }
    }

    fn wants(&self, case: &Case) -> bool {
        let named = |word: &String| match case.operation {
            Some(operation) => word == "operations" || *word == operation.to_string(),
            None => *word == super::case::name(&case.kind),
        };
        match self.only.is_empty() {
            // With a few blocks, only the denoiser is of interest.
            true => self.layers.is_empty() || case.model == Some(Model::Flux),
            false => self.only.iter().any(named),
        }
    }

    fn all(&self, device: &Device, layers: Option<[usize; 2]>) -> Vec<Case> {
        let (name, dtype) = (device::name(device), device::dtype(device));
        let new = |kind| Case::new(kind, self.small, dtype, self.repeats, name.clone());
        let mut cases = Vec::new();
        for &model in &self.models {
            let flux = model == Model::Flux;
            cases.extend(self.denoising(model, layers.filter(|_| flux), &new));
            if flux {
                for kind in [Kind::VaeEncode, Kind::VaeDecode] {
                    let sizes = or(&self.sizes, if self.small { &[256] } else { &[1024] });
                    cases.extend(sizes.into_iter().map(|size| Case { size: Some(size), ..new(kind) }));
                }
                cases.extend([Kind::T5, Kind::Clip].map(&new));
                let few = if self.small { None } else { Some([1, 2]) };
                let layers = layers.or(few).filter(|_| self.weights.is_none());
                cases.push(Case { model: Some(model), layers, path: self.weights.clone(), ..new(Kind::Load) });
                cases.extend(self.operations(&new));
            }
        }
        cases
    }

    /// Steps of training and sampling.
    fn denoising(&self, model: Model, layers: Option<[usize; 2]>, new: &dyn Fn(Kind) -> Case) -> Vec<Case> {
        let (sizes, batches, trained): (&[usize], &[usize], &[TrainTarget]) = match (model, self.small) {
            (Model::Flux, false) => (&[512, 768, 1024], &[1, 2, 4], &[TrainTarget::Attention, TrainTarget::All]),
            (Model::Flux, true) => (&[256], &[2], &[TrainTarget::Attention, TrainTarget::All]),
            (Model::Unet, false) => (&[256, 512], &[1, 4], &[TrainTarget::Full, TrainTarget::Attention]),
            (Model::Unet, true) => (&[256], &[2], &[TrainTarget::Full, TrainTarget::Attention]),
        };
        let mut cases = Vec::new();
        for kind in [Kind::Train, Kind::Sample] {
            let trained: Vec<_> = match kind {
                Kind::Train => or(&self.targets, trained).into_iter().map(Some).collect(),
                _ => vec![None],
            };
            for trained in
                trained.into_iter().filter(|&trained| model == Model::Unet || trained != Some(TrainTarget::Full))
            {
                for size in or(&self.sizes, sizes) {
                    for batch in or(&self.batches, batches) {
                        cases.push(Case {
                            model: Some(model),
                            layers,
                            targets: trained,
                            rank: trained.filter(|&trained| trained != TrainTarget::Full).map(|_| self.rank),
                            steps: (kind == Kind::Sample).then_some(self.steps),
                            size: Some(size),
                            batch,
                            ..new(kind)
                        });
                    }
                }
            }
        }
        cases
    }

    /// The ceilings come first, because the others are compared with them.
    fn operations(&self, new: &dyn Fn(Kind) -> Case) -> Vec<Case> {
        let base = new(Kind::Operation);
        let config = shape::flux(&base);
        let sizes = or(&self.sizes, if self.small { &[256] } else { &[512, 768, 1024] });
        let image: Vec<_> = sizes.iter().map(|size| (size / 16).pow(2)).collect();
        let (width, head) = (config.width(), config.attention_head_dim);
        // Rank × (in + out) of the layers called `attention`.
        let double = 8 * 2 + 4 * 5;
        let trained = self.rank * width * (double * config.num_layers + 3 * 2 * config.num_single_layers);
        let mut operations = Operation::all();
        operations.sort_by_key(|operation| operation.ceiling().is_none());
        let shapes = |operation: Operation| {
            let shapes = operation.shapes(width, head, &image, base.text_tokens, trained);
            let case = |shape| Case { operation: Some(operation), shape, ..base.clone() };
            shapes.into_iter().map(case).collect::<Vec<_>>()
        };
        operations.into_iter().flat_map(shapes).collect()
    }
}

/// The given values, or the default.
fn or<T: Clone>(given: &[T], default: &[T]) -> Vec<T> {
    if given.is_empty() { default.to_vec() } else { given.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(change: impl FnOnce(&mut Options)) -> Result<Vec<Case>> {
        let mut options =
            Options { models: vec![Model::Flux, Model::Unet], repeats: 1, rank: 16, steps: 1, ..Options::default() };
        change(&mut options);
        options.cases(&Device::flex())
    }

    #[test]
    fn a_cpu_is_not_asked_for_twelve_billion_numbers() {
        let refused = |change: fn(&mut Options)| options(change).unwrap_err().to_string();
        assert!(refused(|_| ()).contains("`small`"));
        assert!(refused(|o| o.only = vec!["t5".into()]).contains("too large for a CPU"));
        let few = options(|o| (o.layers, o.sizes) = (vec![1, 1], vec![256])).unwrap();
        assert!(few.iter().all(|case| case.model == Some(Model::Flux) && case.layers == Some([1, 1])), "{few:?}");
        assert!(!options(|o| o.only = vec!["operations".into()]).unwrap().is_empty());
    }

    #[test]
    fn small_models_have_every_kind_of_case_and_names_choose_among_them() {
        let all = options(|o| o.small = true).unwrap();
        for kind in Kind::value_variants() {
            assert!(all.iter().any(|case| case.kind == *kind), "{kind:?}");
        }
        let chosen =
            options(|o| (o.small, o.only) = (true, vec!["train".into(), "gelu_tanh_backward".into()])).unwrap();
        assert!(chosen.len() < all.len() && chosen.iter().any(|case| case.operation.is_some()));
        let error = options(|o| o.only = vec!["tran".into()]).unwrap_err().to_string();
        assert!(
            error.contains("`tran`") && error.contains("vae_encode") && error.contains("attention_backward"),
            "{error}"
        );
    }

    #[test]
    fn the_adapter_has_as_many_numbers_as_flux_has() {
        let cases = options(|o| o.only = vec!["adamw".into()]).unwrap();
        // 19 double blocks with 8 square layers and 4 of four times the width on one side, 38 with 3 square ones.
        assert_eq!(cases[0].shape, [16 * 3072 * (19 * 36 + 38 * 6)]);
        assert_eq!(cases[0].shape, [44_826_624]);
    }
}

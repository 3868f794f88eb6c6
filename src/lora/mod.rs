//! LoRA adapters (Hu et al. 2021): which layers get one, how it starts, the files of diffusers, PEFT, kohya and ComfyUI, and
//! merging into the weights.
//!
//! In memory an adapter has one form: diffusers' layer names without a prefix, A `[rank, in]` and B `[out, rank]` in f32, and alpha.
//! Reading and writing convert from and to the file formats.

mod base;
mod keys;
mod matrix;
mod metadata;
mod part;
mod foreign;
mod targets;
mod config;
mod unet;
mod denoiser;
mod convolution;
mod text;
mod names;
mod settings;
mod role;
mod index;
mod forms;
mod read;
mod write;
mod export;
mod programs;
mod inspect;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::{
    error::{Error, Result},
    kernels,
    nn::{Adapter, Adapters, LayerShape, Linears, Parameter, Parameters},
    rng::{Purpose, Seed},
};
pub use config::{Init, LoraConfig};
pub use denoiser::Denoiser;
pub use export::{ExportReport, export, export_bare};
pub use foreign::ForeignLayer;
pub use inspect::{Inspection, LoraSummary, inspect};
pub(crate) use keys::{layers_of_original, swaps_halves};
pub use metadata::{BASE_MODEL, CONFIG, name_of, to_share};
pub use part::Part;
pub use programs::{Program, Reader, readers};
pub use targets::{ATTENTION, Targets, UNET_ATTENTION};
pub use write::Format;

/// A set of changes to the layers of one model.
#[derive(Clone, Debug)]
pub struct Lora {
    /// The denoiser that it is for.
    pub denoiser: Denoiser,
    /// Low-rank changes of the denoiser's linear layers, which are trained and written. In the order of the model after
    /// [`init`](Self::init), in natural order of names when read from a file.
    pub layers: Vec<LoraLayer>,
    /// All other changes in a file of another program: of other layers, or in other forms than a low-rank pair. They are applied and
    /// merged, but neither trained nor written.
    pub foreign: Vec<ForeignLayer>,
    /// The metadata of the file: text by key. Formats add their own keys when writing.
    pub metadata: BTreeMap<String, String>,
}

/// The change of one layer: `W' = W + alpha / rank · B·A`.
#[derive(Clone, Debug)]
pub struct LoraLayer {
    /// diffusers' name of the layer inside its model, such as `transformer_blocks.0.attn.to_q`.
    pub name: String,
    /// `[rank, in]`, f32.
    pub a: Tensor<2>,
    /// `[out, rank]`, f32.
    pub b: Tensor<2>,
    /// The change is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Whether the layer is a 1×1 convolution in the checkpoint, like `proj_in` and `proj_out` of Stable Diffusion 1: then files hold
    /// `[rank, in, 1, 1]` and `[out, rank, 1, 1]`.
    pub pointwise: bool,
}

impl LoraLayer {
    /// The rank.
    pub fn rank(&self) -> usize {
        self.a.dims()[0]
    }

    /// `alpha / rank`.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank() as f64
    }

    /// The change itself, `scale · B·A`: `[out, in]`, f32.
    pub fn delta(&self) -> Tensor<2> {
        kernels::matmul(self.b.clone(), self.a.clone()) * self.scale()
    }

    /// The Frobenius norm of [`delta`](Self::delta), without building that matrix: `‖BA‖² = Σ (BᵀB)∘(AAᵀ)`.
    pub fn norm(&self) -> f64 {
        let b = kernels::matmul(self.b.clone().transpose(), self.b.clone());
        let a = kernels::matmul(self.a.clone(), self.a.clone().transpose());
        let square: f32 = (a * b).sum().into_scalar();
        f64::from(square).max(0.0).sqrt() * self.scale()
    }
}

/// The name of the tensor `A` of the adapter on `layer`.
pub fn name_a(layer: &str) -> String {
    format!("{layer}.lora_A.weight")
}

/// The name of the tensor `B` of the adapter on `layer`.
pub fn name_b(layer: &str) -> String {
    format!("{layer}.lora_B.weight")
}

/// Both factors of every layer.
impl Parameters for Lora {
    fn parameters(&mut self, _: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        for layer in &mut self.layers {
            visit(&name_a(&layer.name), Parameter::Matrix(&mut layer.a));
            visit(&name_b(&layer.name), Parameter::Matrix(&mut layer.b));
        }
    }
}

impl Lora {
    /// Changes of these layers of a `denoiser`, without metadata.
    pub fn new(denoiser: Denoiser, layers: Vec<LoraLayer>) -> Self {
        Self { denoiser, layers, foreign: Vec::new(), metadata: BTreeMap::new() }
    }

    /// New adapters on `device` for the layers that the configuration targets. The values of each depend only on `seed` and the name
    /// of the layer.
    ///
    /// # Errors
    /// A setting is invalid, or a pattern matches no layer.
    pub fn init(
        config: &LoraConfig,
        denoiser: Denoiser,
        seed: Seed,
        layers: &[LayerShape],
        device: &Device,
    ) -> Result<Self> {
        config.validate()?;
        let names: Vec<_> = layers.iter().map(|layer| layer.name.clone()).collect();
        let targets = config.targets.resolve(&names)?;
        let (rank, alpha) = (config.rank, config.alpha());
        let mut next = targets.iter().peekable();
        let chosen = layers.iter().filter(|layer| next.next_if(|target| **target == layer.name).is_some());
        let new = |&LayerShape { ref name, inputs, outputs, pointwise }: &LayerShape| {
            let mut draw = seed.named(Purpose::Init, name);
            let a: Vec<f32> = match config.init {
                Init::Gaussian => draw.normal(rank * inputs).iter().map(|z| z / rank as f32).collect(),
                Init::Kaiming => {
                    let bound = 1.0 / (inputs as f32).sqrt();
                    draw.uniform(rank * inputs).iter().map(|u| (2.0 * u - 1.0) * bound).collect()
                }
            };
            let a = Tensor::from_data(TensorData::new(a, [rank, inputs]), (device, DType::F32));
            let b = Tensor::zeros([outputs, rank], (device, DType::F32));
            LoraLayer { name: name.clone(), a, b, alpha, pointwise }
        };
        Ok(Self::new(denoiser, chosen.map(new).collect()))
    }

    /// The number of values in each tensor of the adapters that a configuration gives a model of these `layers`.
    ///
    /// # Errors
    /// A target matches no layer.
    pub fn counts(config: &LoraConfig, layers: &[LayerShape]) -> Result<Vec<usize>> {
        let names: Vec<_> = layers.iter().map(|layer| layer.name.clone()).collect();
        let targets: BTreeSet<_> = config.targets.resolve(&names)?.into_iter().collect();
        let chosen = layers.iter().filter(|layer| targets.contains(&layer.name));
        Ok(chosen.flat_map(|layer| [layer.inputs, layer.outputs].map(|size| config.rank * size)).collect())
    }

    /// The adapters of the denoiser at the LoRA scale `strength` (1 is as trained), on the device of their tensors, which are shared.
    pub fn adapters(&self, strength: f64) -> Adapters {
        let of = |layer: &LoraLayer| {
            (layer.name.clone(), Adapter::low_rank(layer.a.clone(), layer.b.clone(), layer.scale() * strength))
        };
        let foreign = self.foreign.iter().filter(|layer| layer.part == Part::Denoiser);
        self.layers.iter().map(of).chain(foreign.map(|layer| layer.adapter(strength))).collect()
    }

    /// The same for a model with these `layers` on `device`.
    ///
    /// # Errors
    /// The model lacks layers, or their sizes differ: one error that lists all.
    pub fn adapters_for(&self, layers: &[LayerShape], device: &Device, strength: f64) -> Result<Adapters> {
        self.check(layers)?;
        Ok(self.clone().to_device(device).adapters(strength))
    }

    /// Whether it changes text encoders as well.
    pub fn changes_text(&self) -> bool {
        self.foreign.iter().any(|layer| layer.part != Part::Denoiser)
    }

    /// The adapters of the text encoders on `device`, for [`TextEncoders`](crate::models::text::TextEncoders).
    pub fn text_adapters(&self, device: &Device, strength: f64) -> Adapters {
        let text = self.foreign.iter().filter(|layer| layer.part != Part::Denoiser);
        text.map(|layer| layer.clone().on(device).adapter(strength)).collect()
    }

    /// Moves it to another device.
    pub fn to_device(mut self, device: &Device) -> Self {
        for layer in &mut self.layers {
            layer.a = layer.a.clone().to_device(device);
            layer.b = layer.b.clone().to_device(device);
        }
        self.foreign = self.foreign.into_iter().map(|layer| layer.on(device)).collect();
        self
    }

    /// Merges the changes, times `strength`, into the weights of `model`: computed in f32, rounded once to the weight's dtype.
    ///
    /// # Errors
    /// As [`adapters_for`](Self::adapters_for); then nothing is changed.
    pub fn merge(&self, model: &mut (impl Linears + ?Sized), strength: f64) -> Result<()> {
        let mut layers = LayerShape::all("", model);
        layers.extend(LayerShape::convolutions("", model));
        self.check(&layers)?;
        let here = self.adapters(strength);
        model.linears("", &mut |name, linear| {
            for adapter in here.of(name) {
                linear.merge(&adapter.clone().to_device(&linear.device()));
            }
        });
        model.convolutions("", &mut |name, convolution| {
            for adapter in here.of(name) {
                convolution.merge(&adapter.clone().to_device(&convolution.device()));
            }
        });
        Ok(())
    }

    /// Checks that a model with these `layers` fits the adapters of the denoiser.
    ///
    /// # Errors
    /// As [`adapters_for`](Self::adapters_for).
    pub fn check(&self, layers: &[LayerShape]) -> Result<()> {
        let foreign = self.foreign.iter().filter(|layer| layer.part == Part::Denoiser);
        let foreign = foreign.map(|layer| (layer.name.clone(), layer.delta.outputs(), layer.delta.inputs()));
        let own = self.layers.iter().map(|layer| (layer.name.clone(), layer.b.dims()[0], Some(layer.a.dims()[1])));
        fit(own.chain(foreign), layers)
    }

    /// Checks that text encoders with these `layers`, whose names begin with the encoder's folder, fit the adapters of text encoders.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_text(&self, layers: &[LayerShape]) -> Result<()> {
        let text = self.foreign.iter().filter(|layer| layer.part != Part::Denoiser);
        fit(text.map(|layer| (layer.full_name(), layer.delta.outputs(), layer.delta.inputs())), layers)
    }

    /// The number of parameters.
    pub fn parameters(&self) -> usize {
        let own = self.layers.iter().map(|layer| layer.a.shape().num_elements() + layer.b.shape().num_elements());
        own.chain(self.foreign.iter().map(|layer| layer.delta.parameters())).sum()
    }
}

/// Checks that `layers` have the layers of these changes: name, number of outputs, number of inputs (`None` fits any).
fn fit(changes: impl Iterator<Item = (String, usize, Option<usize>)>, layers: &[LayerShape]) -> Result<()> {
    let sizes: BTreeMap<_, _> = layers.iter().map(|layer| (&layer.name, (layer.outputs, layer.inputs))).collect();
    let misfit = |(name, outputs, inputs): (String, usize, Option<usize>)| {
        let Some(&(found_outputs, found_inputs)) = sizes.get(&name) else {
            return Some(format!("`{name}`: the model has no such layer"));
        };
        let inputs = inputs.unwrap_or(found_inputs);
        ((outputs, inputs) != (found_outputs, found_inputs)).then(|| {
            format!(
                "`{name}`: the adapter is for {inputs} inputs and {outputs} outputs, the layer has {found_inputs} and {found_outputs}"
            )
        })
    };
    let problems: Vec<_> = changes.filter_map(misfit).collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::many("LoRA", problems).hint("this adapter has another base model; `kiln inspect` shows which"))
}

/// Natural order: numbers between dots by value, so block 2 before block 10.
fn natural(one: &str, other: &str) -> Ordering {
    let parts =
        |name: &str| name.split('.').map(|part| (part.parse::<u64>().ok(), part.to_string())).collect::<Vec<_>>();
    parts(one).cmp(&parts(other))
}

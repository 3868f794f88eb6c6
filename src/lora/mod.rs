//! LoRA adapters (Hu et al. 2021): which layers get one, how it starts, the files of diffusers, PEFT, kohya and ComfyUI, and
//! merging into the weights.
//!
//! In memory an adapter has one form only: diffusers' layer names without a prefix, A `[rank, in]` and B `[out, rank]` in
//! f32, and alpha. What the file formats do differently is undone when reading and redone when writing.

mod base;
mod config;
mod export;
mod inspect;
mod keys;
mod matrix;
mod read;
mod targets;
mod unet;
mod write;

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
pub use export::{ExportReport, export};
pub use inspect::{Inspection, LoraSummary, inspect};
pub use targets::{ATTENTION, Targets, UNET_ATTENTION};
pub use write::Format;

/// A set of low-rank changes to the linear layers of one model.
#[derive(Clone, Debug)]
pub struct Lora {
    /// In the order of the model when made by [`init`](Self::init), in natural order of names when read from a file.
    pub layers: Vec<LoraLayer>,
    /// What the file said about itself, or is to say: free text by key. Formats add their own keys when writing.
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
    /// Whether the layer is a 1×1 convolution in the checkpoint, as `proj_in` and `proj_out` of Stable Diffusion 1: then files
    /// hold `[rank, in, 1, 1]` and `[out, rank, 1, 1]`.
    pub pointwise: bool,
}

impl LoraLayer {
    /// The inner size.
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

    /// The Frobenius norm of [`delta`](Self::delta), without making that matrix: `‖BA‖² = Σ (BᵀB)∘(AAᵀ)`.
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
    /// New adapters, on `device`, for those of a model's `layers` that the configuration means. Each layer's numbers depend on
    /// `seed` and its name only.
    ///
    /// # Errors
    /// A setting is impossible, or a pattern matches no layer.
    pub fn init(config: &LoraConfig, seed: Seed, layers: &[LayerShape], device: &Device) -> Result<Self> {
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
        Ok(Self { layers: chosen.map(new).collect(), metadata: BTreeMap::new() })
    }

    /// How many values the adapters of a configuration have on a model of these `layers`.
    ///
    /// # Errors
    /// A target matches no layer.
    pub fn count(config: &LoraConfig, layers: &[LayerShape]) -> Result<usize> {
        let names: Vec<_> = layers.iter().map(|layer| layer.name.clone()).collect();
        let targets: BTreeSet<_> = config.targets.resolve(&names)?.into_iter().collect();
        let chosen = layers.iter().filter(|layer| targets.contains(&layer.name));
        Ok(chosen.map(|layer| config.rank * (layer.inputs + layer.outputs)).sum())
    }

    /// The adapters as layers wear them, at `strength` (1 is as trained), where their tensors are. Nothing is copied.
    pub fn adapters(&self, strength: f64) -> Adapters {
        let of = |layer: &LoraLayer| {
            let (a, b, scale) = (layer.a.clone(), layer.b.clone(), layer.scale() * strength);
            (layer.name.clone(), Adapter { a, b, scale, dropout: None })
        };
        self.layers.iter().map(of).collect()
    }

    /// The same for a model with these `layers` on `device`.
    ///
    /// # Errors
    /// The model has no such layers, or they are of another size: one error that lists all.
    pub fn adapters_for(&self, layers: &[LayerShape], device: &Device, strength: f64) -> Result<Adapters> {
        self.check(layers)?;
        Ok(self.clone().to_device(device).adapters(strength))
    }

    /// The same on another device.
    pub fn to_device(mut self, device: &Device) -> Self {
        for layer in &mut self.layers {
            layer.a = layer.a.clone().to_device(device);
            layer.b = layer.b.clone().to_device(device);
        }
        self
    }

    /// Adds the changes, times `strength`, into the weights of `model`: computed in f32, rounded once to the weight's dtype.
    ///
    /// # Errors
    /// As [`adapters_for`](Self::adapters_for). Then nothing was changed.
    pub fn merge(&self, model: &mut (impl Linears + ?Sized), strength: f64) -> Result<()> {
        self.check(&LayerShape::all("", model))?;
        let layers: BTreeMap<_, _> = self.layers.iter().map(|layer| (layer.name.as_str(), layer)).collect();
        model.linears("", &mut |name, linear| {
            if let Some(layer) = layers.get(name) {
                let [a, b] = [&layer.a, &layer.b].map(|factor| factor.clone().to_device(&linear.device()));
                linear.merge(kernels::matmul(b, a) * (layer.scale() * strength));
            }
        });
        Ok(())
    }

    /// Whether a model with these `layers` can wear the adapters.
    ///
    /// # Errors
    /// As [`adapters_for`](Self::adapters_for).
    pub fn check(&self, layers: &[LayerShape]) -> Result<()> {
        let sizes: BTreeMap<_, _> = layers.iter().map(|layer| (&layer.name, [layer.outputs, layer.inputs])).collect();
        let misfit = |layer: &LoraLayer| {
            let wanted = [layer.b.dims()[0], layer.a.dims()[1]];
            match sizes.get(&layer.name) {
                None => Some(format!("`{}`: the model has no such linear layer", layer.name)),
                Some(found) if *found != wanted => Some(format!(
                    "`{}`: the adapter is for {} inputs and {} outputs, the layer has {} and {}",
                    layer.name, wanted[1], wanted[0], found[1], found[0]
                )),
                Some(_) => None,
            }
        };
        let problems: Vec<_> = self.layers.iter().filter_map(misfit).collect();
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::many("LoRA", problems)
            .hint("this adapter was made for another model; `kiln inspect` shows for which"))
    }

    /// The number of trained values.
    pub fn parameters(&self) -> usize {
        self.layers.iter().map(|layer| layer.a.shape().num_elements() + layer.b.shape().num_elements()).sum()
    }

    /// What diffusers calls the part of a pipeline that these layers belong to: `unet` or `transformer`.
    fn component(&self) -> &'static str {
        if self.is_unet() { "unet" } else { "transformer" }
    }

    /// Whether these are layers of Stable Diffusion's UNet.
    fn is_unet(&self) -> bool {
        self.layers.iter().any(|layer| unet::layer_named(&layer.name).is_some())
    }
}

/// The order in which people count: numbers between dots by value, so block 2 before block 10.
fn natural(one: &str, other: &str) -> Ordering {
    let parts =
        |name: &str| name.split('.').map(|part| (part.parse::<u64>().ok(), part.to_string())).collect::<Vec<_>>();
    parts(one).cmp(&parts(other))
}

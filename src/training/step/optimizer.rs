//! AdamW with torch's semantics, and clipping by the norm of all gradients together.

use std::{borrow::Cow, collections::BTreeMap};

use burn::tensor::{DType, Device, Int, Tensor};

use crate::{
    error::{Error, Result},
    kernels::{self, Blockwise, UPDATES_PER_LAUNCH, Update},
    nn::Parameters,
    quantization::{DynamicMap, MOMENT_BLOCK},
    training::{OptimizerConfig, step::backward::Gradients},
    weights::{FlatTensor, TensorBytes, TensorFile},
};

/// AdamW and its moments, by the name of each parameter.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: OptimizerConfig,
    steps: u64,
    moments: BTreeMap<String, Moments>,
}

/// The moving averages of a gradient and of its square.
#[derive(Clone, Debug)]
enum Moments {
    Full(Box<[Tensor<1>; 2]>),
    EightBit(Box<[Blockwise; 2]>),
}

/// The 8-bit codes of the two.
const MAPS: [DynamicMap; 2] = [DynamicMap::Signed, DynamicMap::Unsigned];

/// Their names in a checkpoint.
const NAMES: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// A moment, or a part of one, as stored in a file.
#[derive(Clone, Debug)]
pub enum Moment {
    /// Values in f32.
    Values(FlatTensor),
    /// Codes of one byte each.
    Codes([usize; 1], Tensor<1, Int>),
}

impl TensorBytes for Moment {
    fn dtype(&self) -> DType {
        match self {
            Self::Values(values) => values.dtype(),
            Self::Codes(..) => DType::U8,
        }
    }
    fn shape(&self) -> &[usize] {
        match self {
            Self::Values(values) => values.shape(),
            Self::Codes(shape, _) => shape,
        }
    }
    fn bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Values(values) => values.bytes(),
            Self::Codes(_, codes) => codes.to_data().as_bytes().to_vec().into(),
        }
    }
}

impl AdamW {
    /// Starts with empty moments.
    pub fn new(config: OptimizerConfig) -> Self {
        Self { config, steps: 0, moments: BTreeMap::new() }
    }

    /// The norm to which all gradients together are clipped; 0 turns clipping off.
    pub fn max_grad_norm(&self) -> f64 {
        self.config.max_grad_norm
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Updates `parameters` at `learning_rate`, by their gradients times `scale` `[1]`. Parameters without a gradient stay unchanged.
    pub fn step(
        &mut self,
        learning_rate: f64,
        parameters: &mut impl Parameters,
        mut gradients: Gradients,
        scale: &Tensor<1>,
    ) {
        self.steps += 1;
        let options = kernels::AdamW {
            learning_rate,
            beta1: self.config.betas[0],
            beta2: self.config.betas[1],
            epsilon: self.config.epsilon,
            weight_decay: self.config.weight_decay,
            step: self.steps,
        };
        let mut taken = Vec::with_capacity(gradients.len());
        parameters.parameters("", &mut |name, parameter| {
            if let Some(gradient) = gradients.remove(name) {
                let (parameter, shape) = parameter.take();
                taken.push((name.to_string(), shape, parameter, gradient));
            }
        });
        let mut updated = BTreeMap::new();
        let mut taken = taken.into_iter();
        // If moments are kept in 8 bits, only those of one launch are dense at a time.
        while taken.len() > 0 {
            let (places, updates): (Vec<_>, Vec<_>) = taken
                .by_ref()
                .take(UPDATES_PER_LAUNCH)
                .map(|(name, shape, parameter, gradient)| {
                    let moments = match self.moments.remove(&name) {
                        None => [gradient.zeros_like(), gradient.zeros_like()],
                        Some(Moments::Full(moments)) => *moments,
                        Some(Moments::EightBit(moments)) => moments.map(|moment| moment.dense()),
                    };
                    ((name, shape), Update { parameter, gradient, moments })
                })
                .unzip();
            for ((name, shape), (values, moments)) in places.into_iter().zip(kernels::adamw(updates, scale, &options)) {
                let kept = match self.config.name.is_eight_bit(values.dims()[0]) {
                    true => {
                        let [mean, square] = moments;
                        Moments::EightBit(Box::new([Blockwise::of(mean, MAPS[0]), Blockwise::of(square, MAPS[1])]))
                    }
                    false => Moments::Full(Box::new(moments)),
                };
                self.moments.insert(name.clone(), kept);
                updated.insert(name, (values, shape));
            }
        }
        parameters.parameters("", &mut |name, parameter| {
            if let Some((values, shape)) = updated.remove(name) {
                parameter.put(values, &shape);
            }
        });
    }

    /// All moments, for a checkpoint: `NAME.exp_avg` and `NAME.exp_avg_sq`; in 8 bits each with its `….absmax`.
    pub fn tensors(&self) -> BTreeMap<String, Moment> {
        let values = |row: &Tensor<1>| Moment::Values(FlatTensor { shape: row.dims().into(), values: row.clone() });
        let mut named = BTreeMap::new();
        for (name, moments) in &self.moments {
            for (number, kind) in NAMES.into_iter().enumerate() {
                let key = format!("{name}.{kind}");
                match moments {
                    Moments::Full(moments) => _ = named.insert(key, values(&moments[number])),
                    Moments::EightBit(moments) => {
                        let Blockwise { codes, largest, .. } = &moments[number];
                        named.insert(format!("{key}.absmax"), values(largest));
                        named.insert(key, Moment::Codes(codes.dims(), codes.clone()));
                    }
                }
            }
        }
        named
    }

    /// Continues from the moments of a checkpoint after `steps` steps.
    ///
    /// # Errors
    /// The file lacks a moment, or one has another shape.
    pub fn restore(
        config: OptimizerConfig,
        steps: u64,
        file: &TensorFile,
        parameters: &mut impl Parameters,
        device: &Device,
    ) -> Result<Self> {
        let mut moments = BTreeMap::new();
        let mut problem = None;
        parameters.parameters("", &mut |name, parameter| {
            if problem.is_some() || !file.has(&format!("{name}.exp_avg")) {
                return; // it never had a gradient
            }
            let count = parameter.shape().iter().product();
            let keys = NAMES.map(|kind| format!("{name}.{kind}"));
            let both = match config.name.is_eight_bit(count) {
                true => eight_bit(file, &keys[0], count, MAPS[0], device)
                    .and_then(|mean| Ok([mean, eight_bit(file, &keys[1], count, MAPS[1], device)?]))
                    .map(|both| Moments::EightBit(Box::new(both))),
                false => file
                    .row(&keys[0], &[count], device)
                    .and_then(|mean| Ok([mean, file.row(&keys[1], &[count], device)?]))
                    .map(|both| Moments::Full(Box::new(both))),
            };
            match both {
                Ok(both) => _ = moments.insert(name.to_string(), both),
                Err(e) => problem = Some(e),
            }
        });
        match problem {
            Some(problem) => Err(problem),
            None => Ok(Self { config, steps, moments }),
        }
    }
}

/// A moment of `count` values that a checkpoint stores in 8 bits.
fn eight_bit(file: &TensorFile, name: &str, count: usize, map: DynamicMap, device: &Device) -> Result<Blockwise> {
    let dtype = file.dtype(name).unwrap_or_default();
    let codes = file.bytes(name).filter(|codes| dtype == "U8" && codes.len() == count).ok_or_else(|| {
        let shape = file.shape(name).unwrap_or_default();
        Error::tensor(file.path(), name, format!("is {dtype} of shape {shape:?}, expected U8 of [{count}]"))
    })?;
    let largest = file.row(&format!("{name}.absmax"), &[count.div_ceil(MOMENT_BLOCK)], device)?;
    let largest = largest.into_data().into_vec::<f32>().expect("it was read as f32");
    Ok(Blockwise::from_parts(codes.to_vec(), largest, map, device))
}

/// The common norm of all gradients times `share`, and the factor that scales them by `share` and then clips them to `max_norm` (0 turns
/// clipping off). Both `[1]`, still on the device.
///
/// As `torch.nn.utils.clip_grad_norm_`: every gradient is multiplied by `min(1, max_norm / (norm + 1e-6))`.
pub fn clipping(gradients: &Gradients, share: f64, max_norm: f64) -> (Tensor<1>, Tensor<1>) {
    let norm = kernels::sum_of_squares(gradients.values().cloned()).sqrt() * share;
    let scale = match max_norm > 0.0 {
        true => ((norm.clone() + 1e-6).recip() * max_norm).clamp_max(1.0) * share,
        false => norm.ones_like() * share,
    };
    (norm, scale)
}

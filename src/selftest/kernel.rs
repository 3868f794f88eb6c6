//! Single kernels, forward and backward, against the CPU in f32, at sizes that are not multiples of a GPU's tiles.

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};

use super::{
    case::{Case, DTYPES},
    check::Check,
};
use crate::{
    kernels::{self, Activation, AdamW, Factors, Update},
    rng::{Purpose, Seed},
};

/// From inputs, each as one row, to the output as one row.
type Function = Box<dyn Fn(&[Tensor<1>]) -> Tensor<1>>;

/// A kernel at one size.
struct Kernel {
    name: &'static str,
    /// The number of values in each input.
    inputs: Vec<usize>,
    /// The length of its chain of matrix products, forward and backward.
    products: [u32; 2],
    function: Function,
}

/// All kernels at all sizes, in both dtypes.
pub(super) fn cases(device: &Device) -> Vec<Case<'_>> {
    let both = |make: fn() -> Vec<(String, Kernel)>| {
        let kernels = DTYPES.into_iter().flat_map(move |dtype| make().into_iter().map(move |kernel| (dtype, kernel)));
        kernels.map(|(dtype, (size, kernel))| {
            Case::new(format!("kernel {}", kernel.name), dtype, move |checked| {
                let inputs: Vec<_> = (0..).zip(&kernel.inputs).map(|(i, &count)| numbers(i, count, dtype)).collect();
                let got = run(device, dtype, &inputs, &kernel.function);
                let want = run(&Device::flex(), FloatDType::F32, &inputs, &kernel.function);
                for (i, (got, want)) in got.into_iter().zip(&want).enumerate() {
                    let (part, products) = match i {
                        0 => ("forward", kernel.products[0]),
                        _ => ("backward", kernel.products[1]),
                    };
                    let check = Check::kernel(got, want, dtype, products, device);
                    checked(&format!("{} {size} {part}", kernel.name), check);
                }
                Ok(())
            })
        })
    };
    let mut cases: Vec<_> = [matrices, tokens, pictures].into_iter().flat_map(both).collect();
    cases.push(Case::new("kernel adamw".into(), FloatDType::F32, move |checked| {
        let inputs = [0, 1, 2, 3].map(|i| numbers(i, 77 * 13, FloatDType::F32));
        let [got, want] = [device, &Device::flex()].map(|device| step(device, &inputs));
        checked("adamw 1001", Check::kernel(got, &want, FloatDType::F32, 0, device));
        Ok(())
    }));
    cases
}

/// Normal values, rounded to `dtype`.
fn numbers(sample: u64, count: usize, dtype: FloatDType) -> TensorData {
    let numbers = Seed(7).draw(Purpose::Noise, 0, sample).normal(count);
    TensorData::new(numbers, [count]).convert_dtype(dtype.into()).convert_dtype(DType::F32)
}

/// The output and the gradients of all inputs, for an output gradient that differs everywhere.
fn run(device: &Device, dtype: FloatDType, inputs: &[TensorData], function: &Function) -> Vec<TensorData> {
    let plain = |data: TensorData| Tensor::<1>::from_data(data, (device, DType::F32)).cast(dtype);
    let leaves: Vec<_> = inputs.iter().map(|data| Tensor::from_inner(plain(data.clone())).require_grad()).collect();
    let output = function(&leaves);
    let upstream = plain(numbers(100, output.dims()[0], dtype));
    let gradients = kernels::vjp_seed(output.clone(), upstream).backward();
    let mut all = vec![output.inner().into_data()];
    // A gradient that is missing has no values, which is wrong, too.
    let none = || TensorData::new(Vec::<f32>::new(), [0]);
    all.extend(leaves.iter().map(|leaf| leaf.grad(&gradients).map_or_else(none, Tensor::into_data)));
    all
}

/// Parameter, mean and mean square after one step: of these values, and of parts of them, whose sizes and alignments differ.
fn step(device: &Device, inputs: &[TensorData; 4]) -> TensorData {
    let all = inputs.clone().map(|data| Tensor::<1>::from_data(data, (device, DType::F32)));
    let count = all[0].dims()[0];
    let sizes = (0..30).map(|i| if i % 4 == 3 { count } else { (count / (i + 1)).max(1) });
    let updates = sizes.map(|size| {
        let [parameter, gradient, mean, square] = all.clone().map(|t| t.narrow(0, count - size, size));
        Update { parameter, gradient, moments: [mean, square.square()] }
    });
    let scale = Tensor::full([1], 0.5, device);
    let options = AdamW { learning_rate: 1e-2, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1, step: 3 };
    let updated = kernels::adamw(updates.collect(), &scale, &options);
    let rows = updated.into_iter().flat_map(|(parameter, [mean, square])| [parameter, mean, square]);
    Tensor::cat(rows.collect(), 0).into_data()
}

/// A kernel with the description of its size.
fn kernel<const N: usize>(
    name: &'static str,
    size: &[usize],
    inputs: [usize; N],
    products: [u32; 2],
    function: impl Fn([&Tensor<1>; N]) -> Tensor<1> + 'static,
) -> (String, Kernel) {
    let size = size.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
    let function: Function = Box::new(move |inputs| function(std::array::from_fn(|i| &inputs[i])));
    (size, Kernel { name, inputs: inputs.to_vec(), products, function })
}

fn shaped<const D: usize>(row: &Tensor<1>, shape: [usize; D]) -> Tensor<D> {
    row.clone().reshape(shape)
}

fn flat<const D: usize>(t: Tensor<D>) -> Tensor<1> {
    t.flatten(0, D - 1)
}

/// Products: linear layers, adapters, attention.
fn matrices() -> Vec<(String, Kernel)> {
    let mut all = Vec::new();
    for size @ [rows, inputs, outputs] in [[1, 7, 3], [77, 100, 130], [612, 96, 33]] {
        all.push(kernel("linear", &size, [rows * inputs, outputs * inputs, outputs], [1, 1], move |[x, w, bias]| {
            let weight = shaped(w, [outputs, inputs]);
            flat(kernels::linear(shaped(x, [rows, inputs]), weight, Some(bias.clone())))
        }));
    }
    for size @ [rows, inputs, outputs, rank] in [[77, 100, 130, 4], [612, 96, 33, 1]] {
        let counts = [rows * outputs, rows * inputs, rank * inputs, outputs * rank];
        all.push(kernel("low_rank", &size, counts, [2, 2], move |[y, x, a, b]| {
            // The factors are f32, whatever the dtype of the activations.
            let [a, b] = [(a, [rank, inputs]), (b, [outputs, rank])].map(|(t, shape)| shaped(t, shape));
            let (a, b) = (a.cast(FloatDType::F32), b.cast(FloatDType::F32));
            flat(kernels::low_rank(shaped(y, [rows, outputs]), shaped(x, [rows, inputs]), a, b, 0.7))
        }));
    }
    // A layer with its adapter and activation: its input gets a gradient from both products.
    for size @ [rows, inputs, outputs, rank] in [[77, 104, 136, 4], [33, 40, 33, 2]] {
        let counts = [rows * inputs, outputs * inputs, outputs, rank * inputs, outputs * rank];
        all.push(kernel("gelu_of_low_rank", &size, counts, [3, 4], move |[x, w, bias, a, b]| {
            let (x, w) = (shaped(x, [rows, inputs]), shaped(w, [outputs, inputs]));
            let [a, b] = [(a, [rank, inputs]), (b, [outputs, rank])].map(|(t, shape)| shaped(t, shape));
            let (a, b) = (a.cast(FloatDType::F32), b.cast(FloatDType::F32));
            let y = kernels::linear(x.clone(), w, Some(bias.clone()));
            flat(kernels::low_rank_activated(
                y,
                x,
                Factors { a: &a, b: &b, scale: 0.1 },
                Activation::GeluTanh,
                [1, rows, outputs],
            ))
        }));
        all.push(kernel(
            "gelu_of_linear",
            &size[..3],
            [rows * inputs, outputs * inputs, outputs],
            [2, 2],
            move |[x, w, bias]| {
                let (x, w) = (shaped(x, [rows, inputs]), shaped(w, [outputs, inputs]));
                flat(kernels::linear_activated(x, w, Some(bias.clone()), 1, Activation::GeluTanh, [1, rows, outputs]))
            },
        ));
    }
    for size @ [batch, heads, queries, keys, width] in [
        [2, 3, 77, 77, 64],
        [1, 2, 612, 612, 128],
        [1, 3, 612, 612, 64],
        [2, 2, 100, 77, 40],
        [1, 1, 33, 5, 40],
        [1, 2, 130, 130, 160],
        // Sizes of models: whole tiles of a GPU and more.
        [1, 2, 1152, 1152, 128],
        [2, 2, 512, 77, 64],
        [1, 2, 320, 512, 80],
    ] {
        let [of_queries, of_keys] = [queries, keys].map(|tokens| batch * heads * tokens * width);
        all.push(kernel("attention", &size, [of_queries, of_keys, of_keys], [2, 3], move |[q, k, v]| {
            // As in the models: a view with tokens before heads.
            let heads_first = |t, tokens| shaped(t, [batch, tokens, heads, width]).swap_dims(1, 2);
            flat(kernels::attention(heads_first(q, queries), heads_first(k, keys), heads_first(v, keys)))
        }));
    }
    let size @ [batch, heads, tokens, width] = [2, 2, 77, 64];
    all.push(kernel("attention_biased", &size, [batch * heads * tokens * width; 3], [2, 3], move |[q, k, v]| {
        let [q, k, v] = [q, k, v].map(|t| shaped(t, [batch, heads, tokens, width]));
        let after = (0..tokens * tokens).map(|i| if i % tokens > i / tokens { -1e4f32 } else { 0.0 }).collect();
        let bias = Tensor::from_data(TensorData::new(after, [1, 1, tokens, tokens]), &q.device().inner());
        flat(kernels::attention_biased(q, k, v, Some(bias), 0.125))
    }));
    all
}

/// Operations on tokens or single values.
fn tokens() -> Vec<(String, Kernel)> {
    let mut all = Vec::new();
    for count in [33, 7701] {
        all.push(kernel("gelu_tanh", &[count], [count], [0, 0], |[x]| kernels::gelu_tanh(x.clone())));
        all.push(kernel("silu", &[count], [count], [0, 0], |[x]| kernels::silu(x.clone())));
    }
    for size @ [batch, tokens, width] in [[2, 77, 100], [1, 612, 384], [3, 5, 1]] {
        let count = batch * tokens * width;
        let counts = [count, batch * width, batch * width];
        all.push(kernel("layer_norm_modulate", &size, counts, [0, 0], move |[x, shift, scale]| {
            let [shift, scale] = [shift, scale].map(|t| shaped(t, [batch, width]));
            // Rows of one value are zero except for the shift, whatever their variance: a large ε keeps them from being noise.
            flat(kernels::layer_norm_modulate(shaped(x, size), shift, scale, 1e-1))
        }));
        all.push(kernel("layer_norm", &size, [count, width, width], [0, 0], move |[x, weight, bias]| {
            flat(kernels::layer_norm(shaped(x, size), weight.clone(), bias.clone(), 1e-1))
        }));
        all.push(kernel("gated_add", &size, [count, batch * width, count], [0, 0], move |[x, gate, y]| {
            flat(kernels::gated_add(shaped(x, size), shaped(gate, [batch, width]), shaped(y, size)))
        }));
        all.push(kernel("geglu", &size, [2 * count], [0, 0], move |[x]| {
            flat(kernels::geglu(shaped(x, [batch, tokens, 2 * width])))
        }));
    }
    for size @ [batch, tokens, heads, width] in [[2, 77, 3, 64], [1, 612, 2, 128], [1, 5, 3, 40]] {
        all.push(kernel("rms_norm_rope", &size, [batch * tokens * heads * width], [0, 0], move |[x]| {
            let device = x.device().inner();
            let constant = |sample, shape: [usize; 2]| {
                let data = numbers(sample, shape[0] * shape[1], FloatDType::F32);
                Tensor::<1>::from_data(data, (&device, DType::F32)).reshape(shape)
            };
            let weight = constant(200, [1, width]).cast(FloatDType::from(x.dtype())).flatten(0, 1);
            let angles = constant(201, [tokens, width]);
            flat(kernels::rms_norm_rope(shaped(x, size), weight, angles.clone().cos(), angles.sin(), 1e-6))
        }));
    }
    all
}

/// Operations on images `[B, C, H, W]`.
fn pictures() -> Vec<(String, Kernel)> {
    let mut all = Vec::new();
    // Channels in and out, height, width, kernel, stride.
    for size @ [inputs, outputs, height, width, side, stride] in
        [[4, 33, 13, 11, 3, 1], [40, 24, 9, 7, 3, 2], [20, 40, 9, 7, 1, 1]]
    {
        let counts = [2 * inputs * height * width, outputs * inputs * side * side, outputs];
        all.push(kernel("conv2d", &size, counts, [1, 1], move |[x, weight, bias]| {
            let (x, weight) = (shaped(x, [2, inputs, height, width]), shaped(weight, [outputs, inputs, side, side]));
            flat(kernels::conv2d(x, weight, Some(bias.clone()), stride, side / 2))
        }));
    }
    for size @ [batch, channels, height, width] in [[2, 40, 9, 7], [1, 96, 33, 20]] {
        let count = batch * channels * height * width;
        all.push(kernel("group_norm", &size, [count, channels, channels], [0, 0], move |[x, weight, bias]| {
            flat(kernels::group_norm(shaped(x, size), weight.clone(), bias.clone(), 8, 1e-5))
        }));
        all.push(kernel("group_norm_silu", &size, [count, channels, channels], [0, 0], move |[x, weight, bias]| {
            flat(kernels::group_norm_silu(shaped(x, size), weight.clone(), bias.clone(), 8, 1e-5))
        }));
        all.push(kernel("upsample_nearest", &size, [count], [0, 0], move |[x]| {
            flat(kernels::upsample_nearest(shaped(x, size)))
        }));
    }
    all
}

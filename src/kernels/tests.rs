//! Every operation against its formula composed of tensor operations, with gradients by Burn's autodiff.

use std::sync::LazyLock;

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData, activation};

use super::*;
use crate::rng::{Purpose, Seed};

mod adamw;
mod attention;
mod conv;
mod parts;
mod samples;
mod unet;

type Function<'a> = &'a dyn Fn(&[Tensor<1>]) -> Tensor<1>;

/// Random values for a few inputs, given their counts.
fn draw(counts: &[usize], spread: f32) -> Vec<TensorData> {
    let numbers = |(i, &n): (usize, &usize)| {
        let numbers = Seed(7).draw(Purpose::Noise, 0, i as u64).normal(n);
        TensorData::new(numbers.into_iter().map(|x| x * spread).collect(), [n])
    };
    counts.iter().enumerate().map(numbers).collect()
}

/// Normally distributed values on the CPU, others for each `sample`.
fn normal<const D: usize>(shape: [usize; D], sample: u64) -> Tensor<D> {
    let numbers = Seed(11).draw(Purpose::Noise, 2, sample).normal(shape.iter().product());
    Tensor::from_data(TensorData::new(numbers, shape), &Device::flex())
}

/// The GPU on which operations are also compared with the CPU's composed form, if `KILN_TEST_DEVICE=cuda` is set.
fn gpu() -> Option<Device> {
    match std::env::var("KILN_TEST_DEVICE").as_deref() {
        Ok("cuda") => {
            static GPU: LazyLock<Device> =
                LazyLock::new(|| crate::cuda::open(0, None, Default::default()).expect("a GPU was asked for"));
            Some(GPU.clone())
        }
        Ok(other) => panic!("KILN_TEST_DEVICE={other}: it may be `cuda`, in a build with --features cuda"),
        Err(_) => None,
    }
}

/// The CPU, and the GPU if there is one to test.
fn devices() -> impl Iterator<Item = Device> {
    [Device::flex()].into_iter().chain(gpu())
}

/// The output and the gradients of all inputs, for an output gradient with distinct elements.
fn run(f: Function, inputs: &[TensorData], dtype: FloatDType) -> Vec<Tensor<1>> {
    run_on(&Device::flex(), f, inputs, dtype)
}

/// As [`run`], on a device; the results are on the CPU.
fn run_on(device: &Device, f: Function, inputs: &[TensorData], dtype: FloatDType) -> Vec<Tensor<1>> {
    let device = device.clone().autodiff();
    let leaf = |data: &TensorData| Tensor::<1>::from_data(data.clone(), &device).cast(dtype).detach().require_grad();
    let leaves: Vec<_> = inputs.iter().map(leaf).collect();
    let output = f(&leaves);
    let weights = Seed(8).draw(Purpose::Noise, 0, 0).normal(output.dims()[0]);
    let weights = Tensor::<1>::from_data(TensorData::new(weights, output.dims()), &device).cast(dtype);
    let gradients = (output.clone() * weights).sum().backward();
    let mut all = vec![output.inner()];
    all.extend(leaves.iter().map(|leaf| leaf.grad(&gradients).expect("every input gets a gradient")));
    all.into_iter().map(|t| t.to_device(&Device::flex())).collect()
}

#[track_caller]
fn close(got: &Tensor<1>, want: &Tensor<1>, tolerance: f32, what: &str) {
    let [got, want] = [got, want].map(|t| t.clone().cast(FloatDType::F32));
    let largest: f32 = want.clone().abs().max().into_scalar();
    let difference: f32 = (got - want).abs().max().into_scalar();
    assert!(difference <= tolerance * largest.max(0.1), "{what}: differs by {difference} of {largest}");
}

/// Asserts that `fused` equals `composed` in value and every gradient, in f32 and in bf16, with and without a tape, and twice.
#[track_caller]
fn agree(counts: &[usize], fused: Function, composed: Function) {
    agree_within(1e-5, counts, fused, composed);
}

/// As [`agree`], for matrix products: a GPU multiplies f32 with TF32's mantissa of ten bits.
#[track_caller]
fn agree_in_products(counts: &[usize], fused: Function, composed: Function) {
    agree_within(2e-3, counts, fused, composed);
}

#[track_caller]
fn agree_within(on_gpu: f32, counts: &[usize], fused: Function, composed: Function) {
    let inputs = draw(counts, 1.0);
    let got = run(fused, &inputs, FloatDType::F32);
    let want = run(composed, &inputs, FloatDType::F32);
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        close(got, want, 1e-5, &format!("{counts:?}, f32, {i} (0 is the output, then gradients)"));
    }
    for (again, got) in run(fused, &inputs, FloatDType::F32).into_iter().zip(&got) {
        assert_eq!(again.into_data(), got.clone().into_data(), "{counts:?}: not the same numbers twice");
    }
    let plain: Vec<_> = inputs.iter().map(|data| Tensor::from_data(data.clone(), &Device::flex())).collect();
    assert_eq!(fused(&plain).into_data(), got[0].clone().into_data(), "{counts:?}: the tape changes the value");
    for (i, (got, want)) in run(fused, &inputs, FloatDType::BF16).iter().zip(&want).enumerate() {
        assert_eq!(got.dtype(), DType::BF16);
        close(got, want, 4e-2, &format!("{counts:?}, bf16, {i} (0 is the output, then gradients)"));
    }
    let Some(gpu) = gpu() else { return };
    for (dtype, tolerance) in [(FloatDType::F32, on_gpu), (FloatDType::F16, 5e-3), (FloatDType::BF16, 4e-2)] {
        for (i, (got, want)) in run_on(&gpu, fused, &inputs, dtype).iter().zip(&want).enumerate() {
            assert_eq!(got.dtype(), dtype.into());
            close(
                got,
                want,
                tolerance,
                &format!("{counts:?}, {dtype:?} on a GPU, {i} (0 is the output, then gradients)"),
            );
        }
    }
}

/// The values as `[B, L, D]`, contiguous or as a view of a transposed tensor.
fn view(t: &Tensor<1>, [batch, tokens, width]: [usize; 3], contiguous: bool) -> Tensor<3> {
    match contiguous {
        true => t.clone().reshape([batch, tokens, width]),
        false => t.clone().reshape([batch, width, tokens]).swap_dims(1, 2),
    }
}

fn flat<const D: usize>(t: Tensor<D>) -> Tensor<1> {
    let n = t.shape().num_elements();
    t.reshape([n])
}

fn constant_like<const D: usize>(counts: [usize; D], sample: u64, like: &Tensor<1>) -> Tensor<D> {
    let n = counts.iter().product();
    let numbers = Seed(9).draw(Purpose::Noise, 1, sample).normal(n);
    let numbers = Tensor::<1>::from_data(TensorData::new(numbers, [n]), &like.device());
    operation::constant(numbers).reshape(counts).cast(like.dtype())
}

#[test]
fn activations() {
    let gelu = |t: &[Tensor<1>]| {
        let x = t[0].clone();
        let inner = (x.clone() + x.clone().powi_scalar(3) * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
        x * (inner.tanh() + 1.0) * 0.5
    };
    for n in [1, 7, 1023, 1025, 40_000] {
        agree(&[n], &|t| gelu_tanh(t[0].clone()), &gelu);
        agree(&[n], &|t| silu(t[0].clone()), &|t| t[0].clone() * activation::sigmoid(t[0].clone()));
    }
    agree(&[60], &|t| flat(gelu_tanh(view(&t[0], [3, 4, 5], false))), &|t| {
        flat(view(&t[0], [3, 4, 5], false)).map(gelu)
    });
    let far = TensorData::new(vec![-1e30, -50.0, 50.0, 1e30, f32::NAN], [5]);
    let y: Vec<f32> = gelu_tanh(Tensor::<1>::from_data(far, &Device::flex())).into_data().into_vec().unwrap();
    assert!(y[0].abs() < 1e-3 && y[1].abs() < 1e-30 && y[2] == 50.0 && y[3] == 1e30 && y[4].is_nan());
}

trait Map: Sized {
    /// Applies a function that takes its inputs as a slice.
    fn map(self, f: impl Fn(&[Self]) -> Self) -> Self {
        f(&[self])
    }
}
impl Map for Tensor<1> {}

#[test]
fn linear_layers() {
    for [rows, inputs, outputs, rank] in [[1, 5, 3, 2], [2, 64, 48, 4], [37, 33, 65, 1], [128, 96, 80, 16]] {
        for (biased, turned) in [(false, false), (true, false), (true, true)] {
            let weight = |t: &Tensor<1>| constant_like([outputs, inputs], 0, t);
            let given = |t: &Tensor<1>| if turned { prepack_weight(operation::constant(weight(t))) } else { weight(t) };
            let bias = |t: &Tensor<1>| biased.then(|| constant_like([outputs], 1, t));
            agree_in_products(
                &[rows * inputs],
                &|t| flat(linear(t[0].clone().reshape([rows, inputs]), given(&t[0]), bias(&t[0]))),
                &|t| {
                    let x = t[0].clone().reshape([rows, inputs]);
                    let y = matmul(x.clone(), on_tape_of(weight(&t[0]), &x).transpose());
                    flat(match bias(&t[0]) {
                        Some(bias) => y + on_tape_of(bias, &x).unsqueeze(),
                        None => y,
                    })
                },
            );
        }
        let parts = |t: &[Tensor<1>], contiguous: bool| {
            let x = view(&t[1], [1, rows, inputs], contiguous).squeeze_dim::<2>(0);
            let [a, b] = [(2, rank, inputs), (3, outputs, rank)].map(|(i, n, m)| t[i].clone().reshape([n, m]));
            (t[0].clone().reshape([rows, outputs]), x, a, b)
        };
        for contiguous in [true, false] {
            agree_in_products(
                &[rows * outputs, rows * inputs, rank * inputs, outputs * rank],
                &|t| {
                    let (y, x, a, b) = parts(t, contiguous);
                    // The factors are f32 whatever the dtype of the activations.
                    flat(low_rank(y, x, a.cast(FloatDType::F32), b.cast(FloatDType::F32), 0.7))
                },
                &|t| {
                    let (y, x, a, b) = parts(t, contiguous);
                    flat(y + matmul(matmul(x, a.transpose()), b.transpose()) * 0.7)
                },
            );
        }
    }
}

#[test]
fn an_adapter_changes_nobody_elses_tensor() {
    for device in devices() {
        let ones = |shape: [usize; 2]| Tensor::<2>::ones(shape, &device);
        let y = ones([4, 6]);
        let kept = y.clone();
        let sum = low_rank(y, ones([4, 5]), ones([2, 5]), ones([6, 2]), 1.0);
        assert_eq!(sum.into_data(), (ones([4, 6]) * 11.0).into_data());
        assert_eq!(kept.into_data(), ones([4, 6]).into_data());
    }
}

#[test]
fn modulated_norm() {
    for (shape @ [batch, tokens, width], contiguous) in
        [([1, 1, 1], true), ([2, 1, 3], true), ([2, 5, 33], true), ([2, 7, 40], false), ([2, 300, 96], true)]
    {
        let counts = [batch * tokens * width, batch * width, batch * width];
        let parts = |t: &[Tensor<1>]| {
            let [shift, scale] = [&t[1], &t[2]].map(|t| t.clone().reshape([batch, width]));
            (view(&t[0], shape, contiguous), shift, scale)
        };
        agree(
            &counts,
            &|t| {
                let (x, shift, scale) = parts(t);
                flat(layer_norm_modulate(x, shift, scale, 1e-1))
            },
            &|t| {
                let (x, shift, scale) = parts(t);
                let centred = x.clone() - x.mean_dim(2);
                let normed = centred.clone() / (centred.square().mean_dim(2) + 1e-1).sqrt();
                flat(normed * (scale.unsqueeze_dim::<3>(1) + 1.0) + shift.unsqueeze_dim::<3>(1))
            },
        );
        agree(
            &[counts[0], counts[1], counts[0]],
            &|t| {
                let gate = t[1].clone().reshape([batch, width]);
                flat(gated_add(view(&t[0], shape, contiguous), gate, view(&t[2], shape, contiguous)))
            },
            &|t| {
                let gate = t[1].clone().reshape([batch, 1, width]);
                flat(view(&t[0], shape, contiguous) + view(&t[2], shape, contiguous) * gate)
            },
        );
    }
}

#[test]
fn rotated_norm() {
    for ([batch, tokens, heads, width], whole) in
        [([1, 1, 1, 2], true), ([2, 3, 2, 6], true), ([2, 5, 3, 34], false), ([1, 70, 4, 64], true)]
    {
        // A view of the first half of a joined tensor, if not whole.
        let joined = if whole { tokens } else { 2 * tokens };
        let x = |t: &Tensor<1>| t.clone().reshape([batch, joined, heads, width]).narrow(1, 0, tokens);
        let [cos, sin] = [1, 2].map(|i| move |t: &Tensor<1>| constant_like([tokens, width], i, t));
        agree(
            &[batch * joined * heads * width, width],
            &|t| flat(rms_norm_rope(x(&t[0]), t[1].clone(), cos(&t[0]), sin(&t[0]), 1e-6)),
            &|t| {
                let x = x(&t[0]);
                let normed = x.clone() / (x.clone().square().mean_dim(3) + 1e-6).sqrt();
                let normed = normed * t[1].clone().reshape([1, 1, 1, width]);
                let pairs = normed.clone().reshape([batch, tokens, heads, width / 2, 2]);
                let (re, im) = (pairs.clone().narrow(4, 0, 1), pairs.narrow(4, 1, 1));
                let turned = Tensor::cat(vec![im.neg(), re], 4).reshape([batch, tokens, heads, width]);
                let [cos, sin] = [cos(&t[0]), sin(&t[0])].map(|a| on_tape_of(a, &x).reshape([1, tokens, 1, width]));
                flat((normed * cos + turned * sin).swap_dims(1, 2))
            },
        );
    }
}

#[test]
fn only_inputs_on_the_tape_get_gradients() {
    let device = Device::flex().autodiff();
    let x = Tensor::<3>::random([2, 3, 4], burn::tensor::Distribution::Default, &device).require_grad();
    let plain = Tensor::<2>::ones([2, 4], &Device::flex());
    let y = gated_add(x.clone(), plain.clone(), x.clone());
    let y = layer_norm_modulate(y, plain.clone(), plain, 1e-6);
    assert_eq!(x.grad(&y.square().sum().backward()).unwrap().dims(), [2, 3, 4]);
}

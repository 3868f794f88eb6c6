//! The convolution against Burn's, with gradients by Burn's autodiff.

use burn::tensor::{Device, FloatDType, Tensor, TensorData, module, ops::ConvOptions};

use crate::kernels::{conv2d, upsample_nearest};
use crate::rng::{Purpose, Seed};

/// A case: `x` `[B, in, H, W]`, channels of the output, kernel, stride, padding.
type Case = ([usize; 4], usize, usize, usize, usize);

const CASES: [Case; 17] = [
    ([1, 1, 1, 1], 1, 1, 1, 0),
    ([2, 5, 6, 7], 3, 1, 1, 0),
    ([3, 4, 5, 5], 2, 1, 2, 0),
    ([1, 3, 3, 3], 4, 3, 1, 0),
    ([1, 3, 2, 1], 4, 3, 1, 1),
    ([2, 3, 8, 10], 5, 3, 2, 1),
    ([2, 3, 9, 11], 5, 3, 2, 0),
    ([1, 70, 33, 20], 130, 3, 2, 0),
    ([2, 40, 4, 4], 70, 3, 1, 1),
    // Wide enough that a sum in bf16 would lose small terms.
    ([2, 64, 24, 40], 48, 1, 1, 0),
    // Large enough for Winograd's method; odd sizes, one tile across, several tasks.
    ([2, 20, 9, 7], 17, 3, 1, 1),
    ([3, 17, 8, 10], 33, 3, 1, 1),
    ([2, 16, 5, 37], 16, 3, 1, 1),
    ([2, 16, 33, 1], 16, 3, 1, 1),
    ([1, 70, 33, 20], 130, 3, 1, 1),
    ([1, 300, 20, 132], 16, 3, 1, 1),
    ([1, 3, 7, 5], 2, 4, 3, 2),
];

fn numbers<const D: usize>(shape: [usize; D], sample: u64) -> TensorData {
    TensorData::new(Seed(7).draw(Purpose::Noise, 0, sample).normal(shape.iter().product()), shape)
}

fn inputs(&(x, outputs, kernel, ..): &Case) -> (TensorData, TensorData, TensorData) {
    (numbers(x, 0), numbers([outputs, x[1], kernel, kernel], 1), numbers([outputs], 2))
}

/// `x` with another memory layout.
fn turned(x: Tensor<4>) -> Tensor<4> {
    let shape = x.dims();
    let x = x.swap_dims(1, 3).reshape([shape.iter().product::<usize>()]);
    x.reshape([shape[0], shape[3], shape[2], shape[1]]).swap_dims(1, 3)
}

#[track_caller]
fn close<const D: usize>(got: Tensor<D>, want: Tensor<D>, tolerance: f32, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let [got, want] = [got, want].map(|t| t.cast(FloatDType::F32));
    let largest: f32 = want.clone().abs().max().into_scalar();
    let difference: f32 = (got - want).abs().max().into_scalar();
    assert!(difference <= tolerance * largest.max(0.1), "{what}: differs by {difference} of {largest}");
}

/// The output, and the gradients of `x`, weight and bias, for an output gradient with distinct elements.
fn run(case: &Case, dtype: FloatDType, ours: bool) -> (Tensor<4>, Tensor<4>, Tensor<4>, Tensor<1>) {
    let &(.., stride, padding) = case;
    let device = Device::flex().autodiff();
    let (x, weight, bias) = inputs(case);
    let leaf = |data| Tensor::<4>::from_data(data, &device).cast(dtype).detach().require_grad();
    let (x, weight) = (leaf(x), leaf(weight));
    let bias = Tensor::<1>::from_data(bias, &device).cast(dtype).detach().require_grad();
    let y = if ours {
        conv2d(turned(x.clone()), weight.clone(), Some(bias.clone()), stride, padding)
    } else {
        let options = ConvOptions::new([stride; 2], [padding; 2], [1; 2], 1);
        #[expect(clippy::disallowed_methods, reason = "what it is compared with")]
        module::conv2d(turned(x.clone()), weight.clone(), Some(bias.clone()), options)
    };
    let seed = Tensor::<4>::from_data(numbers(y.dims(), 3), &device).cast(dtype);
    let tape = (y.clone() * seed).sum().backward();
    let gradient = "every input gets a gradient";
    (y.inner(), x.grad(&tape).expect(gradient), weight.grad(&tape).expect(gradient), bias.grad(&tape).expect(gradient))
}

#[test]
fn convolution_and_all_its_gradients_are_burns() {
    for case in &CASES {
        let want = run(case, FloatDType::F32, false);
        for (dtype, tolerance) in [(FloatDType::F32, 1e-5), (FloatDType::BF16, 5e-2)] {
            let got = run(case, dtype, true);
            let what = |name: &str| format!("{case:?}, {dtype:?}, {name}");
            close(got.0.clone(), want.0.clone(), tolerance, &what("y"));
            close(got.1.clone(), want.1.clone(), tolerance, &what("dx"));
            close(got.2.clone(), want.2.clone(), tolerance, &what("dw"));
            close(got.3.clone(), want.3.clone(), tolerance, &what("db"));
            let again = run(case, dtype, true);
            assert_eq!(again.0.into_data(), got.0.into_data(), "{}", what("y, twice"));
            assert_eq!(again.1.into_data(), got.1.into_data(), "{}", what("dx, twice"));
            assert_eq!(again.2.into_data(), got.2.into_data(), "{}", what("dw, twice"));
            assert_eq!(again.3.into_data(), got.3.into_data(), "{}", what("db, twice"));
        }
    }
}

/// In bf16, sums over thousands of pixels are exact up to rounding of the inputs and the result.
#[test]
fn gradients_of_pointwise_bf16_are_added_up_in_f32() {
    let case = ([2, 8, 64, 64], 4, 1, 1, 0);
    let [(_, dx, dw, db), want] = [FloatDType::BF16, FloatDType::F32].map(|dtype| run(&case, dtype, true));
    close(dx, want.1, 2e-2, "dx");
    close(dw, want.2, 2e-2, "dw");
    close(db, want.3, 1e-2, "db");
}

#[test]
fn channels_must_fit() {
    let zeros = |shape: [usize; 4]| Tensor::<4>::zeros(shape, &Device::flex());
    for (inputs, biases) in [(3, 5), (4, 1)] {
        let run = move || {
            conv2d(zeros([1, 4, 6, 6]), zeros([5, inputs, 3, 3]), Some(Tensor::zeros([biases], &Device::flex())), 1, 1)
        };
        assert!(std::panic::catch_unwind(run).is_err(), "{inputs} {biases}");
    }
}

#[test]
fn a_tape_changes_no_number_and_constants_need_none() {
    for case in &CASES {
        let &(.., stride, padding) = case;
        let (x, weight, bias) = inputs(case);
        let plain = |data: &TensorData| Tensor::<4>::from_data(data.clone(), &Device::flex());
        let (y, dx, dw, _) = run(case, FloatDType::F32, true);
        let bias = Tensor::<1>::from_data(bias, &Device::flex());
        let without = conv2d(turned(plain(&x)), plain(&weight), Some(bias.clone()), stride, padding);
        assert_eq!(without.into_data(), y.clone().into_data(), "{case:?}");

        let pull = |leaf: &Tensor<4>, y: Tensor<4>| {
            let seed = Tensor::from_data(numbers(y.dims(), 3), &y.device());
            leaf.grad(&(y * seed).sum().backward()).expect("the leaf is tracked")
        };
        let leaf = Tensor::from_inner(plain(&x)).require_grad();
        let frozen = conv2d(turned(leaf.clone()), plain(&weight), Some(bias.clone()), stride, padding);
        assert_eq!(pull(&leaf, frozen).into_data(), dx.into_data(), "{case:?}: constant weight");
        let leaf = Tensor::from_inner(plain(&weight)).require_grad();
        let y_without_bias = conv2d(turned(plain(&x)), leaf.clone(), None, stride, padding);
        let [_, outputs, ..] = y.dims();
        close(y_without_bias.clone().inner() + bias.reshape([1, outputs, 1, 1]), y, 1e-6, "without bias");
        assert_eq!(pull(&leaf, y_without_bias).into_data(), dw.into_data(), "{case:?}: constant picture");
    }
}

#[test]
fn the_number_of_threads_changes_no_number() {
    for case in &CASES {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
            let (y, dx, dw, db) = pool.install(|| run(case, FloatDType::F32, true));
            [y.into_data(), dx.into_data(), dw.into_data(), db.into_data()]
        };
        assert_eq!(on(1), on(3), "{case:?}");
    }
}

#[test]
fn every_pixel_comes_four_times_and_its_gradient_is_their_sum() {
    let double = |x: Tensor<4>| {
        let [batch, channels, height, width] = x.dims();
        let x: Tensor<6> = x.reshape([batch, channels, height, 1, width, 1]);
        x.expand([batch, channels, height, 2, width, 2]).reshape([batch, channels, 2 * height, 2 * width])
    };
    for shape in [[1, 1, 1, 1], [2, 3, 4, 5], [1, 40, 33, 20]] {
        for dtype in [FloatDType::F32, FloatDType::BF16] {
            let run = |f: &dyn Fn(Tensor<4>) -> Tensor<4>| {
                let leaf = Tensor::<4>::from_data(numbers(shape, 0), &Device::flex().autodiff()).cast(dtype);
                let leaf = leaf.detach().require_grad();
                let y = f(turned(leaf.clone()));
                let seed = Tensor::<4>::from_data(numbers(y.dims(), 1), &y.device()).cast(dtype);
                let tape = (y.clone() * seed).sum().backward();
                (y.inner(), leaf.grad(&tape).expect("the leaf is tracked"))
            };
            let (y, dx) = run(&upsample_nearest);
            let (want, want_dx) = run(&double);
            assert_eq!(y.into_data(), want.into_data(), "{shape:?}");
            close(dx, want_dx, if dtype == FloatDType::F32 { 1e-6 } else { 2e-2 }, "dx");
        }
    }
}

//! What each fused operation costs, beside its formula written out in tensors: medians of interleaved runs, at the sizes of
//! a small FLUX (width 512, 8 heads of 64, 320 tokens, batch 2) and of a small UNet (channels 64 to 320, pictures 32×32).
//! Run with `cargo bench --bench kernels [-- PART OF A NAME…]`.
#![allow(clippy::disallowed_macros)] // a bench may end when nobody reads its results

use std::{hint::black_box, time::Instant};

use burn::tensor::{Device, Distribution, Tensor, activation, module, ops::ConvOptions};
use kiln::{bench::median, kernels};

const ROUNDS: usize = 21;

type Function = fn(&[Tensor<4>]) -> Tensor<4>;

/// A function with its inputs; run forward on plain tensors, or forward and backward on a tape.
struct Case {
    name: &'static str,
    shapes: Vec<Vec<usize>>,
    fused: Function,
    composed: Function,
}

fn inputs(case: &Case, device: &Device) -> Vec<Tensor<4>> {
    let tensor = |shape: &Vec<usize>| {
        let shape: [usize; 4] = shape.clone().try_into().expect("four axes");
        let numbers = Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex());
        if device.is_autodiff() { Tensor::from_inner(numbers).require_grad() } else { numbers }
    };
    case.shapes.iter().map(tensor).collect()
}

fn milliseconds(f: Function, inputs: &[Tensor<4>], backward: bool) -> f64 {
    let start = Instant::now();
    let output = f(inputs);
    let forward = start.elapsed();
    let time = if backward {
        // The gradient of the output is dense, as a model has it; what it takes to make it is timed and taken off.
        let seed = output.clone().detach();
        let pull = |output: Tensor<4>| {
            let loss = (output * seed.clone()).sum();
            let start = Instant::now();
            black_box(loss.backward());
            start.elapsed()
        };
        let overhead = pull(seed.clone().require_grad());
        pull(output).saturating_sub(overhead)
    } else {
        forward
    };
    time.as_secs_f64() * 1e3
}

fn main() {
    kiln::memory::tune_allocator();
    println!("{:34} {:>12} {:>12} {:>12} {:>12}   milliseconds", "", "forward", "composed", "backward", "composed");
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for case in cases() {
        if !wanted.is_empty() && !wanted.iter().any(|part| case.name.contains(part)) {
            continue;
        }
        let mut medians = Vec::new();
        for backward in [false, true] {
            let device = if backward { Device::flex().autodiff() } else { Device::flex() };
            let inputs = inputs(&case, &device);
            let (mut fused, mut composed) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                fused.push(milliseconds(case.fused, &inputs, backward));
                composed.push(milliseconds(case.composed, &inputs, backward));
            }
            medians.extend([fused, composed].map(|times| median(&times).expect("a case runs at least once")));
        }
        let [forward, forward_composed, backward, backward_composed] = medians[..] else { unreachable!() };
        println!("{:34} {forward:12.3} {forward_composed:12.3} {backward:12.3} {backward_composed:12.3}", case.name);
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |name, shapes: &[[usize; 4]], fused: Function, composed: Function| {
        let shapes = shapes.iter().map(|shape| shape.to_vec()).collect();
        cases.push(Case { name, shapes, fused, composed });
    };
    case(
        "gelu_tanh 640×2048",
        &[[1, 1, 640, 2048]],
        |t| kernels::gelu_tanh(t[0].clone()),
        |t| activation::gelu_approximate(t[0].clone()),
    );
    case(
        "attention 2×8×320×64",
        &[[2, 320, 8, 64]; 3],
        |t| {
            let [q, k, v] = [0, 1, 2].map(|i| t[i].clone().swap_dims(1, 2));
            kernels::attention(q, k, v)
        },
        |t| {
            let [q, k, v] = [0, 1, 2].map(|i| t[i].clone().swap_dims(1, 2));
            kernels::attention_biased(q, k, v, None, 0.125)
        },
    );
    case(
        "layer_norm_modulate 2×320×512",
        &[[1, 2, 320, 512], [1, 1, 2, 512], [1, 1, 2, 512]],
        |t| {
            let [shift, scale] = [1, 2].map(|i| t[i].clone().reshape([2, 512]));
            kernels::layer_norm_modulate(t[0].clone().squeeze_dim(0), shift, scale, 1e-6).unsqueeze()
        },
        |t| {
            let [x, shift, scale] = [0, 1, 2].map(|i| t[i].clone());
            let centred = x.clone() - x.mean_dim(3);
            let normed = centred.clone() / (centred.square().mean_dim(3) + 1e-6).sqrt();
            normed * (scale.swap_dims(1, 2) + 1.0) + shift.swap_dims(1, 2)
        },
    );
    case(
        "gated_add 2×320×512",
        &[[1, 2, 320, 512], [1, 1, 2, 512], [1, 2, 320, 512]],
        |t| {
            let [x, y] = [0, 2].map(|i| t[i].clone().squeeze_dim(0));
            kernels::gated_add(x, t[1].clone().reshape([2, 512]), y).unsqueeze()
        },
        |t| t[0].clone() + t[2].clone() * t[1].clone().swap_dims(1, 2),
    );
    case(
        "rms_norm_rope 2×320×8×64",
        &[[2, 320, 8, 64]],
        |t| {
            let device = Device::flex();
            let angles = Tensor::ones([320, 64], &device);
            kernels::rms_norm_rope(t[0].clone(), Tensor::ones([64], &device), angles.clone(), angles, 1e-6)
        },
        |t| {
            let ones = |shape: [usize; 4]| kernels::on_tape_of(Tensor::<4>::ones(shape, &Device::flex()), &t[0]);
            let x = t[0].clone();
            let normed = x.clone() / (x.square().mean_dim(3) + 1e-6).sqrt() * ones([1, 1, 1, 64]);
            let pairs = normed.clone().reshape([2, 320, 8, 32, 2]);
            let (re, im) = (pairs.clone().narrow(4, 0, 1), pairs.narrow(4, 1, 1));
            let turned = Tensor::cat(vec![im.neg(), re], 4).reshape([2, 320, 8, 64]);
            (normed * ones([1, 320, 1, 64]) + turned * ones([1, 320, 1, 64])).swap_dims(1, 2)
        },
    );
    macro_rules! linear {
        ($rows:literal, $inputs:literal, $outputs:literal) => {
            case(
                concat!("linear ", $rows, ", ", $inputs, "→", $outputs),
                &[[1, 1, $rows, $inputs]],
                |t| {
                    let (weight, bias) = constants($inputs, $outputs);
                    kernels::linear(t[0].clone().reshape([$rows, $inputs]), weight, Some(bias)).unsqueeze()
                },
                |t| {
                    let (weight, bias) = constants($inputs, $outputs);
                    let x = t[0].clone().reshape([$rows, $inputs]);
                    let y = kernels::matmul(x.clone(), kernels::on_tape_of(weight, &x).transpose());
                    (y + kernels::on_tape_of(bias, &x).unsqueeze()).unsqueeze()
                },
            );
        };
    }
    linear!(640, 512, 512);
    linear!(640, 512, 2048);
    linear!(640, 2560, 512);
    linear!(640, 2048, 512);
    linear!(128, 512, 512);
    linear!(320, 512, 512);
    linear!(2, 512, 3072);
    case(
        "low_rank 640, 512→512, rank 16",
        &[[1, 1, 640, 512], [1, 1, 640, 512], [1, 1, 16, 512], [1, 1, 512, 16]],
        |t| {
            let [y, x, a, b] = matrices(t);
            kernels::low_rank(y * 1.0, x, a, b, 1.0).unsqueeze()
        },
        |t| {
            let [y, x, a, b] = matrices(t);
            (y * 1.0 + kernels::matmul(kernels::matmul(x, a.transpose()), b.transpose()) * 1.0).unsqueeze()
        },
    );
    unet_cases(&mut case);
    macro_rules! conv {
        ($inputs:literal, $outputs:literal, $size:literal, $kernel:literal, $stride:literal) => {
            case(
                concat!("conv2d ", $inputs, "→", $outputs, ", ", $size, "², kernel ", $kernel, ", stride ", $stride),
                &[[2, $inputs, $size, $size], [$outputs, $inputs, $kernel, $kernel]],
                |t| kernels::conv2d(t[0].clone(), t[1].clone(), None, $stride, $kernel / 2),
                |t| {
                    let options = ConvOptions::new([$stride; 2], [$kernel / 2; 2], [1; 2], 1);
                    #[expect(clippy::disallowed_methods, reason = "what it is compared with")]
                    module::conv2d(t[0].clone(), t[1].clone(), None, options)
                },
            );
        };
    }
    conv!(64, 64, 32, 3, 1);
    conv!(128, 128, 16, 3, 1);
    conv!(256, 256, 8, 3, 1);
    conv!(256, 256, 4, 3, 1);
    conv!(64, 64, 32, 3, 2);
    conv!(192, 64, 32, 1, 1);
    case(
        "upsample_nearest 2×64×32²",
        &[[2, 64, 32, 32]],
        |t| kernels::upsample_nearest(t[0].clone()),
        |t| {
            let x: Tensor<6> = t[0].clone().reshape([2, 64, 32, 1, 32, 1]);
            x.expand([2, 64, 32, 2, 32, 2]).reshape([2, 64, 64, 64])
        },
    );
    cases
}

/// What a UNet spends its time on, weights trained.
fn unet_cases(case: &mut impl FnMut(&'static str, &[[usize; 4]], Function, Function)) {
    fn group_norm(t: &[Tensor<4>]) -> Tensor<4> {
        let [weight, bias] = vectors(t);
        kernels::group_norm_silu(t[0].clone(), weight, bias, 32, 1e-5)
    }
    fn group_norm_composed(t: &[Tensor<4>]) -> Tensor<4> {
        let shape @ [batch, channels, ..] = t[0].dims();
        let rows = t[0].clone().reshape([batch as i32, 32, -1]);
        let centred = rows.clone() - rows.mean_dim(2);
        let normed = centred.clone() / (centred.square().mean_dim(2) + 1e-5).sqrt();
        let [weight, bias] = vectors(t).map(|t| t.reshape([1, channels, 1, 1]));
        activation::silu(normed.reshape(shape) * weight + bias)
    }
    for (name, channels, size) in [
        ("group_norm_silu 2×64×32×32", 64, 32),
        ("group_norm_silu 2×256×8×8", 256, 8),
        ("group_norm_silu 2×320×64×64", 320, 64),
    ] {
        let shapes = [[2, channels, size, size], [1, 1, 1, channels], [1, 1, 1, channels]];
        case(name, &shapes, group_norm, group_norm_composed);
    }
    fn layer_norm(t: &[Tensor<4>]) -> Tensor<4> {
        let [weight, bias] = vectors(t);
        kernels::layer_norm(t[0].clone(), weight, bias, 1e-5)
    }
    fn layer_norm_composed(t: &[Tensor<4>]) -> Tensor<4> {
        let centred = t[0].clone() - t[0].clone().mean_dim(3);
        let normed = centred.clone() / (centred.square().mean_dim(3) + 1e-5).sqrt();
        let [weight, bias] = vectors(t);
        normed * weight.unsqueeze() + bias.unsqueeze()
    }
    for (name, tokens, width) in
        [("layer_norm 2×1024×64", 1024, 64), ("layer_norm 2×256×128", 256, 128), ("layer_norm 2×4096×320", 4096, 320)]
    {
        let shapes = [[1, 2, tokens, width], [1, 1, 1, width], [1, 1, 1, width]];
        case(name, &shapes, layer_norm, layer_norm_composed);
    }
    for (name, tokens, width) in
        [("geglu 2×1024×512", 1024, 512), ("geglu 2×256×1024", 256, 1024), ("geglu 2×4096×2560", 4096, 2560)]
    {
        case(
            name,
            &[[1, 2, tokens, width]],
            |t| kernels::geglu(t[0].clone()),
            |t| {
                let halves = t[0].clone().chunk(2, 3);
                halves[0].clone() * activation::gelu(halves[1].clone())
            },
        );
    }
    for (name, rows, inputs, outputs) in [
        ("trained linear 2048, 64→64", 2048, 64, 64),
        ("trained linear 2048, 64→512", 2048, 64, 512),
        ("trained linear 2048, 256→64", 2048, 256, 64),
        ("trained linear 512, 128→128", 512, 128, 128),
        ("trained linear 512, 128→1024", 512, 128, 1024),
        ("trained linear 128, 256→256", 128, 256, 256),
        ("trained linear 128, 256→2048", 128, 256, 2048),
        ("trained linear 128, 1024→256", 128, 1024, 256),
        ("trained linear 154, 768→256", 154, 768, 256),
        ("trained linear 8192, 320→320", 8192, 320, 320),
    ] {
        case(
            name,
            &[[1, 1, rows, inputs], [1, 1, outputs, inputs], [1, 1, 1, outputs]],
            |t| {
                let [x, weight, bias] = matrices(t);
                kernels::linear(x, weight, Some(bias.squeeze_dim(0))).unsqueeze()
            },
            |t| {
                let [x, weight, bias] = matrices(t);
                (kernels::matmul(x, weight.transpose()) + bias).unsqueeze()
            },
        );
    }
    for (name, heads, queries, keys, width) in [
        ("attention 2×8×1024×1024×8", 8, 1024, 1024, 8),
        ("attention 2×8×256×256×16", 8, 256, 256, 16),
        ("attention 2×8×64×64×32", 8, 64, 64, 32),
        ("attention 2×8×1024×77×8", 8, 1024, 77, 8),
        ("attention 2×8×256×77×16", 8, 256, 77, 16),
        ("attention 2×8×64×77×32", 8, 64, 77, 32),
        ("attention 2×8×4096×77×40", 8, 4096, 77, 40),
        ("attention 2×8×1024×1024×80", 8, 1024, 1024, 80),
        ("attention 2×8×256×256×160", 8, 256, 256, 160),
        ("attention 2×8×1024×1024×40", 8, 1024, 1024, 40),
        ("attention 2×5×1024×1024×64", 5, 1024, 1024, 64),
        ("attention 2×8×256×256×4", 8, 256, 256, 4),
    ] {
        case(
            name,
            &[[2, queries, heads, width], [2, keys, heads, width], [2, keys, heads, width]],
            |t| {
                let [q, k, v] = [0, 1, 2].map(|i| t[i].clone().swap_dims(1, 2));
                kernels::attention(q, k, v)
            },
            |t| {
                let [q, k, v] = [0, 1, 2].map(|i| t[i].clone().swap_dims(1, 2));
                let scale = (q.dims()[3] as f64).powf(-0.5);
                kernels::attention_biased(q, k, v, None, scale)
            },
        );
    }
}

/// The weight and the bias of a norm.
fn vectors(t: &[Tensor<4>]) -> [Tensor<1>; 2] {
    [1, 2].map(|i| t[i].clone().flatten(0, 3))
}

fn matrices<const N: usize>(t: &[Tensor<4>]) -> [Tensor<2>; N] {
    std::array::from_fn(|i| {
        let [_, _, rows, columns] = t[i].dims();
        t[i].clone().reshape([rows, columns])
    })
}

/// The same weights every time: making them must not count.
fn constants(inputs: usize, outputs: usize) -> (Tensor<2>, Tensor<1>) {
    use std::{cell::RefCell, collections::HashMap};
    thread_local!(static MADE: RefCell<HashMap<(usize, usize), (Tensor<2>, Tensor<1>)>> = RefCell::default());
    MADE.with_borrow_mut(|made| {
        let make = || {
            let random = |shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 0.05), &Device::flex());
            (random([outputs, inputs]), random([1, outputs]).squeeze_dim(0))
        };
        made.entry((inputs, outputs)).or_insert_with(make).clone()
    })
}

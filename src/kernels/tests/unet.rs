//! The operations of a UNet.

use super::*;

/// A tensor of values near one, like the weights of norms.
fn near_one(t: &Tensor<1>) -> Tensor<1> {
    t.clone() * 0.2 + 1.0
}

#[test]
fn trained_linear_layers() {
    for [rows, inputs, outputs] in [[1, 5, 3], [2, 64, 48], [37, 33, 65], [300, 96, 80]] {
        let matrix =
            |t: &Tensor<1>, n: usize, m: usize, contiguous: bool| view(t, [1, n, m], contiguous).squeeze_dim::<2>(0);
        for contiguous in [true, false] {
            let composed = |x: Tensor<2>, weight: Tensor<2>| matmul(x, weight.transpose());
            agree_in_products(
                &[rows * inputs, outputs * inputs, outputs],
                &|t| {
                    let (x, weight) =
                        (matrix(&t[0], rows, inputs, contiguous), matrix(&t[1], outputs, inputs, contiguous));
                    flat(linear(x, weight, Some(t[2].clone())))
                },
                &|t| {
                    let (x, weight) =
                        (matrix(&t[0], rows, inputs, contiguous), matrix(&t[1], outputs, inputs, contiguous));
                    flat(composed(x, weight) + t[2].clone().unsqueeze())
                },
            );
            agree_in_products(
                &[outputs * inputs],
                &|t| {
                    flat(linear(
                        constant_like([rows, inputs], 0, &t[0]),
                        matrix(&t[0], outputs, inputs, contiguous),
                        None,
                    ))
                },
                &|t| {
                    let x = on_tape_of(constant_like([rows, inputs], 0, &t[0]), &t[0]);
                    flat(composed(x, matrix(&t[0], outputs, inputs, contiguous)))
                },
            );
            // A bias that is trained beside a weight that is not.
            agree_in_products(
                &[rows * inputs, outputs],
                &|t| {
                    let weight = constant_like([outputs, inputs], 0, &t[0]);
                    flat(linear(matrix(&t[0], rows, inputs, contiguous), weight, Some(t[1].clone())))
                },
                &|t| {
                    let weight = on_tape_of(constant_like([outputs, inputs], 0, &t[0]), &t[0]);
                    flat(composed(matrix(&t[0], rows, inputs, contiguous), weight) + t[1].clone().unsqueeze())
                },
            );
        }
    }
}

#[test]
fn norms_of_groups() {
    for (shape @ [batch, channels, height, width], groups, contiguous) in [
        ([1, 4, 1, 1], 2, true),
        ([2, 6, 3, 5], 3, true),
        ([3, 32, 7, 9], 32, false),
        ([2, 12, 1, 33], 1, false),
        ([1, 4, 70, 70], 2, true),
    ] {
        let numbers = shape.iter().product();
        let picture = |t: &Tensor<1>| match contiguous {
            true => t.clone().reshape(shape),
            false => t.clone().reshape([batch, height, width, channels]).permute([0, 3, 1, 2]),
        };
        let composed = |x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>| {
            let rows = x.reshape([batch, groups, channels / groups * height * width]);
            let centred = rows.clone() - rows.mean_dim(2);
            let normed = centred.clone() / (centred.square().mean_dim(2) + 1e-1).sqrt();
            normed.reshape(shape) * weight.reshape([1, channels, 1, 1]) + bias.reshape([1, channels, 1, 1])
        };
        agree(
            &[numbers, channels, channels],
            &|t| flat(group_norm(picture(&t[0]), near_one(&t[1]), t[2].clone(), groups, 1e-1)),
            &|t| flat(composed(picture(&t[0]), near_one(&t[1]), t[2].clone())),
        );
        agree(
            &[numbers, channels, channels],
            &|t| flat(group_norm_silu(picture(&t[0]), near_one(&t[1]), t[2].clone(), groups, 1e-1)),
            &|t| flat(activation::silu(composed(picture(&t[0]), near_one(&t[1]), t[2].clone()))),
        );
        // Frozen weights.
        let constants = |t: &Tensor<1>| [0, 1].map(|i| constant_like([channels], i, t));
        agree(
            &[numbers],
            &|t| {
                let [weight, bias] = constants(&t[0]);
                flat(group_norm_silu(picture(&t[0]), weight, bias, groups, 1e-1))
            },
            &|t| {
                let [weight, bias] = constants(&t[0]).map(|c| on_tape_of(c, &t[0]));
                flat(activation::silu(composed(picture(&t[0]), weight, bias)))
            },
        );
    }
}

#[test]
fn statistics_of_a_large_group_keep_their_digits() {
    // A million values of deviation one around a thousand: their squares are near a million, where f32 resolves 1/16.
    let (count, level) = (1 << 20, 1000.0);
    let x: Vec<f32> = Seed(3).draw(Purpose::Noise, 0, 0).normal(count).into_iter().map(|x| x + level).collect();
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / count as f64;
    let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count as f64;
    for device in devices() {
        let picture = Tensor::<1>::from_data(TensorData::new(x.clone(), [count]), &device).reshape([1, 1, 1024, 1024]);
        let y = group_norm(picture, Tensor::ones([1], &device), Tensor::zeros([1], &device), 1, 0.0);
        let y: Vec<f32> = y.into_data().into_vec().unwrap();
        for (&x, y) in x.iter().zip(y) {
            let want = (f64::from(x) - mean) / variance.sqrt();
            assert!((f64::from(y) - want).abs() < 5e-5, "{y} is not {want} on {device:?}");
        }
    }
}

#[test]
fn norms_of_tokens() {
    for (shape @ [batch, tokens, width], contiguous) in
        [([1, 1, 2], true), ([2, 5, 33], true), ([2, 7, 40], false), ([2, 300, 96], true)]
    {
        let composed = |x: Tensor<3>, weight: Tensor<1>, bias: Tensor<1>| {
            let centred = x.clone() - x.mean_dim(2);
            centred.clone() / (centred.square().mean_dim(2) + 1e-1).sqrt() * weight.unsqueeze() + bias.unsqueeze()
        };
        agree(
            &[batch * tokens * width, width, width],
            &|t| flat(layer_norm(view(&t[0], shape, contiguous), near_one(&t[1]), t[2].clone(), 1e-1)),
            &|t| flat(composed(view(&t[0], shape, contiguous), near_one(&t[1]), t[2].clone())),
        );
        agree(
            &[width],
            &|t| {
                let x = constant_like(shape, 0, &t[0]);
                flat(layer_norm(x, near_one(&t[0]), constant_like([width], 1, &t[0]), 1e-1))
            },
            &|t| {
                let [x, bias] = [flat(constant_like(shape, 0, &t[0])), constant_like([width], 1, &t[0])]
                    .map(|c| on_tape_of(c, &t[0]));
                flat(composed(x.reshape(shape), near_one(&t[0]), bias))
            },
        );
    }
}

#[test]
fn larger_pictures() {
    for shape @ [batch, channels, height, width] in [[1, 1, 1, 1], [2, 3, 5, 7], [1, 4, 16, 24]] {
        agree(&[shape.iter().product()], &|t| flat(upsample_nearest(t[0].clone().reshape(shape))), &|t| {
            let x = t[0].clone().reshape([batch, channels, height, 1, width, 1]);
            flat(x.repeat(&[1, 1, 1, 2, 1, 2]))
        });
    }
}

#[test]
fn gated_units() {
    for (shape @ [batch, tokens, width], contiguous) in
        [([1, 1, 2], true), ([2, 5, 34], true), ([2, 7, 40], false), ([2, 300, 96], true)]
    {
        agree(&[batch * tokens * width], &|t| flat(geglu(view(&t[0], shape, contiguous))), &|t| {
            let x = view(&t[0], shape, contiguous);
            let [a, b] = [0, 1].map(|half| x.clone().narrow(2, half * width / 2, width / 2));
            flat(a * b.clone() * ((b / 2f64.sqrt()).erf() + 1.0) * 0.5)
        });
    }
    let far = TensorData::new(vec![1.0, 1.0, 1.0, 1.0, 1.0, -1e30, -50.0, 50.0, 1e30, f32::NAN], [1, 10]);
    let y: Vec<f32> = geglu(Tensor::<2>::from_data(far, &Device::flex())).into_data().into_vec().unwrap();
    assert!(y[0].abs() < 1e-3 && y[1].abs() < 1e-30 && y[2] == 50.0 && y[3] == 1e30 && y[4].is_nan());
}

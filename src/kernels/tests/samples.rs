//! On the CPU in f32 the samples of a batch have the same bits as alone.

use super::*;

/// The results of a batch's samples, of `rows` rows each, computed one by one.
fn alone(x: &Tensor<2>, rows: usize, f: impl Fn(Tensor<2>, usize) -> Tensor<2>) -> TensorData {
    let each = x.clone().split(rows, 0).into_iter().enumerate().map(|(sample, x)| f(x, sample));
    Tensor::cat(each.collect(), 0).into_data()
}

#[test]
fn a_sample_of_a_linear_layer_has_the_bits_that_it_has_alone() {
    for rows in [1, 2, 7, 20, 64, 65, 150] {
        for (inputs, outputs) in [(16, 40), (512, 24), (600, 24), (1300, 64), (600, 65), (1100, 130), (3, 5), (2, 9)] {
            for samples in [2, 3, 8] {
                let x = normal([samples * rows, inputs], 0);
                let (weight, bias) = (normal([outputs, inputs], 1), normal([outputs], 2));
                for bias in [None, Some(bias)] {
                    for weight in [weight.clone(), prepack_weight(weight.clone())] {
                        let together = linear_by_sample(x.clone(), weight.clone(), bias.clone(), samples);
                        let alone = alone(&x, rows, |x, _| linear(x, weight.clone(), bias.clone()));
                        assert_eq!(together.into_data(), alone, "{samples} of {rows}, {inputs} to {outputs}");
                    }
                }
            }
        }
    }
}

#[test]
fn each_sample_has_what_its_own_adapters_add_to_it_alone() {
    let ranks: [&[usize]; 6] = [&[4], &[8], &[], &[16, 3], &[64], &[1]];
    for rows in [1, 2, 7, 77, 200] {
        for (inputs, outputs) in [(24, 40), (600, 24), (1100, 130)] {
            let samples = ranks.len();
            let (x, y) = (normal([samples * rows, inputs], 0), normal([samples * rows, outputs], 1));
            let pair = |&rank: &usize| (normal([rank, inputs], 2), normal([outputs, rank], 3), 1.0 / rank as f64);
            let pairs = ranks.map(|ranks| ranks.iter().map(pair).collect::<Vec<_>>());
            let factors = pairs
                .each_ref()
                .map(|pairs| pairs.iter().map(|(a, b, scale)| Factors { a, b, scale: *scale }).collect::<Vec<_>>());
            let one = |x: Tensor<2>, sample: usize| {
                let y = y.clone().narrow(0, sample * rows, rows);
                let add = |y, f: &Factors| low_rank(y, x.clone(), f.a.clone(), f.b.clone(), f.scale);
                factors[sample].iter().fold(y, add)
            };
            let expected = alone(&x, rows, one);
            let together = low_rank_by_sample(y.clone(), x.clone(), samples, &factors).into_data();
            assert_eq!(together, expected, "{rows} rows, {inputs} to {outputs}");
            // The form of other devices and dtypes.
            let [y, x] = [&y, &x].map(|t| t.clone().cast(FloatDType::BF16));
            let composed = low_rank_by_sample(y, x, samples, &factors).cast(FloatDType::F32);
            let expected = Tensor::<2>::from_data(expected, &Device::flex());
            let largest: f32 = expected.clone().abs().max().into_scalar();
            let apart: f32 = (composed - expected).abs().max().into_scalar();
            assert!(apart < 0.02 * largest, "{rows} rows, {inputs} to {outputs}: {apart} of {largest}");
        }
    }
}

#[test]
fn a_sample_of_a_convolution_has_the_bits_that_it_has_alone() {
    for (inputs, outputs, kernel, stride) in [
        (4, 20, 3, 1),
        (40, 24, 3, 1),
        (64, 64, 3, 1),
        (64, 70, 3, 2),
        (130, 130, 3, 1),
        (600, 24, 1, 1),
        (600, 30, 3, 1),
    ] {
        for [height, width] in [[1, 1], [1, 2], [2, 2], [4, 4], [5, 7], [8, 8], [9, 8], [12, 20], [16, 32], [3, 100]] {
            let batch = 5;
            let (x, weight) = (normal([batch, inputs, height, width], 0), normal([outputs, inputs, kernel, kernel], 1));
            for bias in [None, Some(normal([outputs], 2))] {
                let forward = |by_sample: bool, x: Tensor<4>| {
                    let convolve = if by_sample { conv2d_by_sample } else { conv2d };
                    convolve(x, weight.clone(), bias.clone(), stride, kernel / 2)
                };
                let alone = x.clone().split(1, 0).into_iter().map(|x| forward(false, x)).collect();
                let alone = Tensor::cat(alone, 0).into_data();
                let what = format!("{inputs} to {outputs} by {kernel}/{stride} of {height} x {width}");
                assert_eq!(forward(true, x.clone()).into_data(), alone, "{what}");
            }
        }
    }
}

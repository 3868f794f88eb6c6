//! Parts have the same bits as in the whole or, where that is not required, nearly the same values.

use super::*;
use crate::kernels::composed::attention as products;

#[test]
fn parts_are_even_and_none_is_too_small() {
    assert_eq!(even_parts(10, 4, 1), [0..3, 3..6, 6..10]);
    assert_eq!(even_parts(10, 4, 5), [0..5, 5..10]);
    assert_eq!(even_parts(9, 4, 5), std::iter::once(0..9).collect::<Vec<_>>());
    assert_eq!(even_parts(3, 0, 0).len(), 3);
    for count in 1..200 {
        for (most, least) in [(1, 1), (7, 3), (64, 65), (1000, 1)] {
            let parts = even_parts(count, most, least);
            assert!(parts.iter().all(|part| part.len() >= least.min(count)), "{count} {most} {least}");
            assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start) && parts[parts.len() - 1].end == count);
        }
    }
}

#[test]
fn some_rows_of_a_linear_layer_and_its_adapter_have_the_bits_of_all() {
    for (rows, inputs, outputs, rank) in [
        (1024, 16, 64, 1),
        (1100, 33, 65, 2),
        (1537, 70, 48, 3),
        (1030, 640, 20, 4),
        (2050, 1300, 300, 16),
        (1111, 3, 5, 8),
    ] {
        let (x, weight, bias) = (normal([rows, inputs], 0), normal([outputs, inputs], 1), normal([outputs], 2));
        let (a, b) = (normal([rank, inputs], 3), normal([outputs, rank], 4));
        for weight in [weight.clone(), prepack_weight(weight)] {
            let forward = |x: Tensor<2>| {
                let y = linear(x.clone(), weight.clone(), Some(bias.clone()));
                low_rank(y, x, a.clone(), b.clone(), 0.7)
            };
            let whole = forward(x.clone()).into_data();
            let parts = even_parts(rows, 1, 512).into_iter();
            let parts = parts.map(|part| forward(x.clone().narrow(0, part.start, part.len()))).collect();
            assert_eq!(Tensor::cat(parts, 0).into_data(), whole, "{rows} {inputs} {outputs} {rank}");
        }
    }
}

#[test]
fn some_queries_have_the_bits_of_all() {
    for [batch, heads, queries, keys, width] in [[1, 1, 300, 77, 40], [2, 3, 517, 517, 64], [1, 2, 260, 1100, 128]] {
        let tensor = |tokens, sample| normal([batch, heads, tokens, width], sample);
        let all = [tensor(queries, 0), tensor(keys, 1), tensor(keys, 2), tensor(queries, 3)];
        for dtype in [FloatDType::BF16, FloatDType::F16, FloatDType::F32] {
            let [q, k, v, g] = all.clone().map(|t| t.cast(dtype).into_dispatch());
            let forward = |at_once| {
                Tensor::<4>::from_dispatch(products::forward([q.clone(), k.clone(), v.clone()], at_once)).into_data()
            };
            let backward = |at_once| {
                let all = [q.clone(), k.clone(), v.clone(), g.clone()];
                products::backward(all, at_once).map(|t| Tensor::<4>::from_dispatch(t).into_data())
            };
            for at_once in [1, batch * keys * 130, batch * keys * queries] {
                let what = format!("{:?} {dtype:?} {at_once}", [batch, heads, queries, keys, width]);
                assert_eq!(forward(at_once), forward(usize::MAX), "{what}");
                assert_eq!(backward(at_once), backward(usize::MAX), "{what}");
            }
        }
    }
}

/// `x` `[B, in, H, W]`, channels of the output, kernel, stride.
type Case = ([usize; 4], usize, usize, usize);

const CASES: [Case; 12] = [
    ([1, 4, 9, 11], 20, 3, 1),
    ([2, 3, 8, 70], 20, 3, 1),
    // By Winograd's method in the whole, whose parts alone would have too few tiles for it.
    ([1, 20, 40, 30], 17, 3, 1),
    ([2, 32, 33, 21], 48, 3, 1),
    ([1, 64, 16, 16], 64, 3, 1),
    ([3, 64, 16, 16], 64, 3, 1),
    // Long sums over few pixels.
    ([1, 96, 12, 10], 70, 3, 1),
    ([2, 130, 14, 6], 130, 3, 1),
    ([1, 600, 10, 9], 24, 1, 1),
    ([2, 40, 10, 12], 24, 1, 1),
    ([1, 70, 30, 22], 40, 3, 2),
    ([2, 16, 12, 40], 64, 3, 2),
];

/// `x` with a column of zeros at the right and a row below.
fn with_zeros_at_the_end(x: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let device = x.device();
    let zeros = |rows, columns| Tensor::zeros([batch, channels, rows, columns], &device);
    let x = Tensor::cat(vec![x, zeros(height, 1)], 3);
    Tensor::cat(vec![x, zeros(1, width + 1)], 2)
}

#[test]
fn some_rows_of_a_convolution_have_the_bits_of_all() {
    for (shape @ [batch, inputs, height, _], outputs, kernel, stride) in CASES {
        let (x, weight) = (normal(shape, 0), normal([outputs, inputs, kernel, kernel], 1));
        let bias = Some(normal([outputs], 2));
        // With a stride, zeros are added only after the last row and column, as in the encoder of a VAE.
        let around = if stride == 1 { kernel / 2 } else { 0 };
        let (x, to) = match stride {
            1 => (x, height),
            _ => (with_zeros_at_the_end(x), height / 2),
        };
        let whole = conv2d_rows(x.clone(), weight.clone(), bias.clone(), stride, [around; 2], to);
        let plain = conv2d(x.clone(), weight.clone(), bias.clone(), stride, around);
        close(&flat(whole.clone()), &flat(plain), 1e-5, "the way does not matter");
        let zeros = Tensor::zeros([batch, inputs, around.max(1), x.dims()[3]], &Device::flex());
        let x = if around > 0 { Tensor::cat(vec![zeros.clone(), x, zeros], 2) } else { x };
        for each in [2, 4, 6, 32] {
            let rows = |first: usize| {
                let count = each.min(to - first);
                let seen = x.clone().narrow(2, first * stride, (count - 1) * stride + kernel);
                conv2d_rows(seen, weight.clone(), bias.clone(), stride, [0, around], to)
            };
            let all = Tensor::cat((0..to).step_by(each).map(rows).collect(), 2);
            assert_eq!(all.into_data(), whole.to_data(), "{shape:?} {outputs} {kernel} {stride}, {each} rows");
        }
        // A sample has the same bits as alone.
        let one = |x: Tensor<4>| conv2d_rows(x, weight.clone(), bias.clone(), stride, [0, around], to);
        let each = x.split(1, 0).into_iter().map(one).collect();
        assert_eq!(Tensor::cat(each, 0).into_data(), whole.into_data(), "{shape:?} {outputs} {kernel} {stride}, alone");
    }
}

#[test]
fn a_bf16_convolution_of_some_rows_is_that_of_all() {
    for (shape @ [_, inputs, height, _], outputs, kernel, stride) in CASES {
        if stride > 1 {
            continue;
        }
        let around = kernel / 2;
        let [x, weight] =
            [normal(shape, 0), normal([outputs, inputs, kernel, kernel], 1) * 0.1].map(|t| t.cast(FloatDType::BF16));
        let whole = conv2d(x.clone(), weight.clone(), None, 1, around);
        let rows = 1..height.min(5);
        let seen = x.narrow(2, rows.start - around, rows.len() + 2 * around);
        let some = conv2d_rows(seen, weight, None, 1, [0, around], height);
        assert_eq!(some.dtype(), DType::BF16);
        close(&flat(some), &flat(whole.narrow(2, rows.start, rows.len())), 2e-2, &format!("{shape:?}"));
    }
}

#[test]
fn statistics_of_groups_do_not_depend_on_the_parts_they_are_gathered_from() {
    // Chunks of the statistics end within rows, at their ends, and beyond a channel.
    for (shape @ [_, channels, height, _], groups) in
        [([1, 2, 3, 5], 1), ([2, 8, 33, 40], 4), ([1, 4, 64, 64], 2), ([2, 6, 130, 77], 3), ([1, 3, 9, 5000], 3)]
    {
        let x = normal(shape, 0) * 3.0 + 1.0;
        let (weight, bias) = (normal([channels], 1), normal([channels], 2));
        for (dtype, exact) in [(FloatDType::F32, true), (FloatDType::BF16, false)] {
            let [weight, bias] = [weight.clone(), bias.clone()].map(|t| t.cast(dtype));
            let x = x.clone().cast(dtype);
            for silu in [false, true] {
                let norm = if silu { group_norm_silu } else { group_norm };
                let whole = norm(x.clone(), weight.clone(), bias.clone(), groups, 1e-6);
                for each in [1, 2, 7, height] {
                    let bands = || (0..height).step_by(each).map(|first| (first, each.min(height - first)));
                    let mut statistics = GroupStatistics::new(shape, groups, 1e-6);
                    bands().for_each(|(first, count)| statistics.add(x.clone().narrow(2, first, count), first));
                    let statistics = statistics.finish();
                    let rows = |(first, count)| {
                        group_norm_rows(
                            x.clone().narrow(2, first, count),
                            weight.clone(),
                            bias.clone(),
                            &statistics,
                            silu,
                        )
                    };
                    let all = Tensor::cat(bands().map(rows).collect(), 2);
                    let what = format!("{shape:?} {dtype:?}, {each} rows, silu {silu}");
                    match exact {
                        true => assert_eq!(all.into_data(), whole.to_data(), "{what}"),
                        false => close(&flat(all), &flat(whole.clone()), 1e-2, &what),
                    }
                }
            }
        }
    }
}

#[test]
fn statistics_of_rows_that_are_missing_are_refused() {
    for dtype in [FloatDType::F32, FloatDType::BF16] {
        let mut statistics = GroupStatistics::new([1, 2, 4, 4], 1, 1e-6);
        statistics.add(normal([1, 2, 3, 4], 0).cast(dtype), 0);
        assert!(std::panic::catch_unwind(move || statistics.finish()).is_err());
        let mut statistics = GroupStatistics::new([1, 2, 4, 4], 1, 1e-6);
        let rows = normal([1, 2, 3, 4], 0).cast(dtype);
        assert!(std::panic::catch_unwind(move || statistics.add(rows, 2)).is_err(), "rows beyond the picture");
    }
}

//! Attention.

use super::*;
use crate::kernels::composed::attention as products;

#[test]
fn attention_over_all_keys() {
    for ([batch, heads, queries, keys, width], contiguous) in [
        ([1, 1, 1, 1, 2], true),
        ([2, 3, 5, 7, 10], true),
        ([2, 2, 70, 33, 16], false),
        ([1, 2, 130, 130, 64], false),
        // A UNet's, over images and over text.
        ([1, 8, 130, 77, 8], false),
        ([2, 2, 33, 33, 4], false),
        ([1, 2, 20, 77, 40], false),
        ([1, 2, 64, 70, 160], false),
    ] {
        // As the model has them: heads before tokens, or a view of tokens before heads.
        let heads_first = |t: &Tensor<1>, tokens: usize| match contiguous {
            true => t.clone().reshape([batch, heads, tokens, width]),
            false => t.clone().reshape([batch, tokens, heads, width]).swap_dims(1, 2),
        };
        let parts = |t: &[Tensor<1>]| (heads_first(&t[0], queries), heads_first(&t[1], keys), heads_first(&t[2], keys));
        let [of_queries, of_keys] = [queries, keys].map(|tokens| batch * heads * tokens * width);
        agree_in_products(
            &[of_queries, of_keys, of_keys],
            &|t| {
                let (q, k, v) = parts(t);
                flat(attention(q, k, v))
            },
            &|t| {
                let (q, k, v) = parts(t);
                let scores = matmul(q, k.transpose()) / (width as f64).sqrt();
                flat(matmul(activation::softmax(scores, 3), v))
            },
        );
    }
}

#[test]
fn attention_with_huge_scores_picks_one_key() {
    let counts = [2 * 3 * 8; 3];
    let f: Function = &|t| {
        let [q, k, v] = [0, 1, 2].map(|i| t[i].clone().reshape([1, 2, 3, 8]));
        flat(attention(q, k, v))
    };
    for numbers in run(f, &draw(&counts, 1e4), FloatDType::F32) {
        let numbers: Vec<f32> = numbers.into_data().into_vec().unwrap();
        assert!(numbers.iter().all(|x| x.is_finite()));
    }
    let mut inputs = draw(&counts, 1.0);
    inputs[1] = TensorData::new(vec![f32::NAN; counts[1]], [counts[1]]);
    let output: Vec<f32> = run(f, &inputs, FloatDType::F32).remove(0).into_data().into_vec().unwrap();
    assert!(output.iter().all(|x| x.is_nan()), "a broken model shows");
}

/// The output and the gradients of q, k and v by matrix products, with at most `at_once` scores at a time.
fn by_products(t: &[Tensor<4>; 4], at_once: usize) -> [Tensor<4>; 4] {
    let [q, k, v, g] = t.clone().map(Tensor::into_dispatch);
    let output = products::forward([q.clone(), k.clone(), v.clone()], at_once);
    let [dq, dk, dv] = products::backward([q, k, v, g], at_once);
    [output, dq, dk, dv].map(Tensor::from_dispatch)
}

#[test]
fn attention_by_products_is_the_formula_however_many_heads_go_at_once() {
    for ([batch, heads, queries, keys, width], contiguous) in
        [([1, 1, 1, 1, 2], true), ([2, 5, 33, 33, 40], false), ([1, 4, 70, 77, 64], true), ([2, 3, 20, 35, 128], false)]
    {
        let device = Device::flex();
        let tensor = |i: u64, tokens: usize| {
            let n = batch * heads * tokens * width;
            let numbers = Seed(7).draw(Purpose::Noise, 0, i).normal(n);
            let numbers = Tensor::<1>::from_data(TensorData::new(numbers, [n]), &device);
            match contiguous {
                true => numbers.reshape([batch, heads, tokens, width]),
                false => numbers.reshape([batch, tokens, heads, width]).swap_dims(1, 2),
            }
        };
        let inputs = [tensor(0, queries), tensor(1, keys), tensor(2, keys), tensor(3, queries)];
        let [q, k, v] = [0, 1, 2].map(|i| Tensor::from_inner(inputs[i].clone()).require_grad());
        let scores = matmul(q.clone(), k.clone().transpose()) / (width as f64).sqrt();
        let output = matmul(activation::softmax(scores, 3), v.clone());
        let tape = (output.clone() * Tensor::from_inner(inputs[3].clone())).sum().backward();
        let gradient = |t: &Tensor<4>| t.grad(&tape).expect("every input gets a gradient");
        let want = [output.inner(), gradient(&q), gradient(&k), gradient(&v)].map(flat);
        let cases = [(FloatDType::F32, 1e-5), (FloatDType::F16, 5e-3), (FloatDType::BF16, 4e-2)];
        // A GPU multiplies f32 with TF32's mantissa of ten bits.
        let on_gpu = [(FloatDType::F32, 2e-3), (FloatDType::F16, 5e-3), (FloatDType::BF16, 4e-2)];
        let devices = [Some((device, cases)), gpu().map(|gpu| (gpu, on_gpu))];
        for (device, (dtype, tolerance)) in devices.into_iter().flatten().flat_map(|(d, c)| c.map(|c| (d.clone(), c))) {
            let inputs = inputs.clone().map(|t| t.to_device(&device).cast(dtype));
            let run = |at_once| by_products(&inputs, at_once).map(|t| flat(t.to_device(&Device::flex())));
            let what = format!("{:?}, {dtype:?}, {device:?}", [batch, heads, queries, keys, width]);
            let all = run(usize::MAX);
            for (i, (got, want)) in all.iter().zip(&want).enumerate() {
                assert_eq!(FloatDType::from(got.dtype()), dtype, "{what}");
                close(got, want, tolerance, &format!("{what}, {i} (0 is the output)"));
            }
            for parts in 2..=heads {
                let some = run(batch * queries * keys * heads.div_ceil(parts));
                for (some, all) in some.into_iter().zip(&all) {
                    assert_eq!(some.into_data(), all.clone().into_data(), "{what}, {parts} parts");
                }
            }
        }
    }
}

#[test]
fn a_broken_key_shows_in_what_sees_it() {
    let ones = |tokens| Tensor::<4>::ones([1, 2, tokens, 4], &Device::flex()).cast(FloatDType::BF16);
    let k = ones(5).slice_fill([0..1, 1..2, 3..4, 0..1], f64::NAN);
    for numbers in by_products(&[ones(3), k, ones(5), ones(3)], usize::MAX) {
        let whole = |head| {
            let sum: f32 = numbers.clone().narrow(1, head, 1).sum().cast(FloatDType::F32).into_scalar();
            sum.is_finite()
        };
        assert!(whole(0) && !whole(1));
    }
}

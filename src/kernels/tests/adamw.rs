//! The optimizer, on the CPU and on a GPU if there is one to test.

use super::*;
use crate::weights::TensorFile;

#[test]
fn adamw_is_that_of_torch() {
    let golden =
        TensorFile::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/flux_golden/golden.safetensors"))
            .unwrap();
    for device in devices() {
        adamw_on(&device, &golden);
    }
}

fn adamw_on(device: &Device, golden: &TensorFile) {
    let mut parameter = Tensor::<1>::from_data(golden.read_f32("optim.adamw.start").unwrap(), device);
    let gradients = Tensor::<2>::from_data(golden.read_f32("optim.adamw.grads").unwrap(), device);
    let expected = Tensor::<2>::from_data(golden.read_f32("optim.adamw.params").unwrap(), device);
    let (mut m, mut v) = (parameter.zeros_like(), parameter.zeros_like());
    for step in 0..6 {
        let options = AdamW {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.1,
            step: step as u64 + 1,
        };
        let gradient: Tensor<1> = gradients.clone().narrow(0, step, 1).squeeze_dim(0);
        let before = parameter.clone();
        let start = before.clone().into_data();
        // Half the gradient, doubled again.
        let (half, two) = (gradient / 2.0, Tensor::full([1], 2.0, device));
        let update = Update { parameter, gradient: half, moments: [m, v] };
        let updated = adamw(vec![update], &two, &options).pop().unwrap();
        (parameter, [m, v]) = updated;
        let [got, want] = [parameter.clone(), expected.clone().narrow(0, step, 1).squeeze_dim(0)]
            .map(|t| t.to_device(&Device::flex()));
        close(&got, &want, 1e-6, &format!("step {step} on {device:?}"));
        assert_eq!(before.into_data(), start, "a tensor that someone holds is not changed");
    }
}

/// Burn's CUDA backend would silently compute garbage: here every backend refuses, with kiln's message.
#[test]
fn mixed_dtypes_are_refused_by_name() {
    let of = |shape: [usize; 4], dtype| Tensor::<4>::ones(shape, &Device::flex()).cast(dtype);
    let flat = |dtype| of([1, 1, 4, 4], dtype).reshape([4, 4]);
    let (f32, bf16) = (FloatDType::F32, FloatDType::BF16);
    let calls: [(&str, &dyn Fn()); 7] = [
        ("matmul", &|| drop(matmul(flat(f32), flat(bf16)))),
        ("linear", &|| drop(linear(flat(bf16), flat(f32), None))),
        ("bias", &|| drop(linear(flat(f32), flat(f32), Some(flat(bf16).flatten(0, 1))))),
        ("low_rank", &|| drop(low_rank(flat(bf16), flat(f32), flat(f32), flat(f32), 1.0))),
        ("conv2d", &|| drop(conv2d(of([1, 4, 6, 6], f32), of([5, 4, 3, 3], bf16), None, 1, 1))),
        ("attention", &|| drop(attention(of([1, 1, 4, 4], f32), of([1, 1, 4, 4], f32), of([1, 1, 4, 4], bf16)))),
        ("attention_biased", &|| {
            let [q, k, v] = [f32, bf16, f32].map(|dtype| of([1, 1, 4, 4], dtype));
            drop(attention_biased(q, k, v, None, 1.0));
        }),
    ];
    for (what, call) in calls {
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).expect_err(what);
        let message = panic.downcast_ref::<String>().unwrap_or_else(|| panic!("{what}: no message"));
        let named = ["mixed dtypes", "F32", "BF16"].iter().all(|part| message.contains(part));
        assert!(named, "{what}: {message}");
    }
}

#[test]
fn squares_of_all_rows_are_summed() {
    let counts = [1, 7, 64, 1023, 70_000];
    let rows = draw(&counts, 3.0);
    let numbers = rows.iter().flat_map(|row| row.as_slice::<f32>().unwrap());
    let want: f64 = numbers.map(|&x| f64::from(x).powi(2)).sum();
    for device in devices() {
        let rows = rows.iter().map(|row| Tensor::<1>::from_data(row.clone(), &device));
        let got: f32 = sum_of_squares(rows).into_scalar();
        assert!((f64::from(got) / want - 1.0).abs() < 1e-6, "{got} is not {want} on {device:?}");
    }
}

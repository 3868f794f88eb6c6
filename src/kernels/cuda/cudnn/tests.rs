//! Every plan that kiln's models need is made by NVIDIA's own cuDNN, for a GPU that is not present.

use std::ffi::CString;

use super::{graph::Plan, *};

#[expect(clippy::disallowed_macros, reason = "a test prints why it is skipped")]
/// cuDNN, if `KILN_TEST_CUDNN` names its file (`libcudnn.so.9`); see `tests/cuda/standin/README.md`.
fn cudnn() -> Option<&'static Cudnn> {
    let Some(file) = std::env::var_os("KILN_TEST_CUDNN") else {
        eprintln!("skipped: KILN_TEST_CUDNN is not set");
        return None;
    };
    // SAFETY: NVIDIA's library has no start-up code with preconditions.
    let file = Box::leak(Box::new(unsafe { libloading::Library::new(file) }.unwrap()));
    Some(Box::leak(Box::new(Cudnn::of(file).unwrap())))
}

/// An H100, as cuDNN describes one.
fn h100() -> CString {
    let numbers = serde_json::json!({
        "deviceName": "NVIDIA H100 80GB HBM3", "deviceVer": 900, "driverVer": 13000, "cudaDeviceId": 0,
        "pciDeviceId": 0x2330, "isTccDriver": 0, "supportCoopLaunch": 1, "warpSize": 32,
        "multiProcessorCount": 132, "smCountOrigin": 0, "smClockRateKHz": 1980000, "maxCtasPerSM": 32,
        "maxThreadsPerSM": 2048, "maxThreadsPerBlock": 1024, "regsPerBlock": 65536, "maxRegistersPerSM": 65536,
        "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
        "totalGlobalMem": 85899345920u64, "memClockRateKHz": 2619000, "memoryBusWidth": 5120,
        "l2CacheSize": 52428800, "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
        "oversizedSharedMemoryPerBlock": 0, "reservedSharedMemoryPerBlock": 1024,
    });
    CString::new(numbers.to_string()).unwrap()
}

/// The distance between the tokens of a head: adjacent, or separated by all heads of one or of three tensors.
#[derive(Clone, Copy)]
enum Tokens {
    Together,
    Apart,
    Threefold,
}

fn layout([batch, heads, tokens, width]: [i64; 4], dtype: Type, by: Tokens) -> Layout {
    let shape = [batch, heads, tokens, width];
    let apart =
        |times| Layout { shape, strides: [times * tokens * heads * width, width, times * heads * width, 1], dtype };
    match by {
        Tokens::Together => Layout::contiguous(shape, dtype),
        Tokens::Apart => apart(1),
        Tokens::Threefold => apart(3),
    }
}

#[test]
fn cudnn_has_a_plan_for_every_attention_of_the_models() {
    use Tokens::*;
    let Some(cudnn) = cudnn() else { return };
    let h100 = h100();
    let target = Target::Described(&h100);
    // Batch, heads, queries, keys, width; the layouts of q and k, and of v.
    for ([batch, heads, queries, keys, width], qk, v) in [
        // FLUX at 1024² and 512², an odd shape, two samples.
        ([1, 24, 4608, 4608, 128], Together, Together),
        ([1, 24, 4608, 4608, 128], Together, Threefold),
        ([1, 24, 1536, 1536, 128], Together, Apart),
        ([1, 24, 3913, 3913, 128], Together, Apart),
        ([2, 24, 1536, 1536, 128], Together, Apart),
        // Stable Diffusion 1.5 at 512², over the image and over the text.
        ([4, 8, 4096, 4096, 40], Apart, Apart),
        ([4, 8, 4096, 77, 40], Apart, Apart),
        ([4, 8, 1024, 1024, 80], Apart, Apart),
        ([4, 8, 1024, 77, 80], Apart, Apart),
        ([4, 8, 256, 256, 160], Apart, Apart),
        ([4, 8, 256, 77, 160], Apart, Apart),
        ([4, 8, 64, 64, 160], Apart, Apart),
        // Stable Diffusion 2, a longer text, a text encoder.
        ([2, 10, 4096, 77, 64], Apart, Apart),
        ([2, 8, 1024, 512, 64], Apart, Apart),
        ([2, 12, 77, 77, 64], Apart, Apart),
    ] {
        for dtype in [Type::Bf16, Type::F16] {
            let [of_queries, of_keys] = [queries, keys].map(|tokens| [batch, heads, tokens, width]);
            let sizes = Sizes {
                q: layout(of_queries, dtype, qk),
                k: layout(of_keys, dtype, qk),
                v: layout(of_keys, dtype, v),
                gradient: layout(of_queries, dtype, Apart),
            };
            let made = |plan: Result<Plan, String>| plan.unwrap_or_else(|problem| panic!("{sizes:?}: {problem}"));
            let scores = (batch * heads * queries * keys * 2) as usize;
            let rows = (batch * heads * queries * width * 4) as usize;
            assert!(made(forward(cudnn, &target, &sizes)).workspace() < 1 << 20, "the scores are not in memory");
            let work = made(backward(cudnn, &target, &sizes, false)).workspace();
            assert!(work < rows + rows / 8 + (1 << 20), "{work} bytes: no more than the sum of dq is in memory");
            let work = made(backward(cudnn, &target, &sizes, true)).workspace();
            assert!(work < 2 * scores + (4 << 20), "{work} bytes: no more than a gradient of the scores is in memory");
        }
    }
}

#[test]
fn what_cudnn_cannot_do_is_an_error_that_says_so() {
    let Some(cudnn) = cudnn() else { return };
    let h100 = h100();
    let target = Target::Described(&h100);
    let wide = layout([1, 1, 64, 512], Type::Bf16, Tokens::Together);
    let sizes = Sizes { q: wide, k: wide, v: wide, gradient: wide };
    assert!(backward(cudnn, &target, &sizes, false).is_err(), "no width of 512");
    let odd = layout([1, 1, 64, 63], Type::Bf16, Tokens::Together);
    let sizes = Sizes { q: odd, k: odd, v: odd, gradient: odd };
    let problem = forward(cudnn, &target, &sizes).map(|_| ()).unwrap_err();
    assert!(problem.starts_with("cuDNN 9"), "{problem}");
}

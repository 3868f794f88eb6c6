#!/usr/bin/env python3
"""What torch reaches on this card: large products, copies, and attention at FLUX.1's shape, each the median of ten calls."""

import subprocess

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attention

TOKENS, HEADS, HEAD, WIDTH = 4608, 24, 128, 3072  # 1024² and 512 tokens of text


def seconds(call, count=10):
    for _ in range(3):
        call()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in zip(marks, marks[1:]))[count // 2] / 1e3


def randn(*shape, **options):
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16, **options)


query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
print(subprocess.run(query, capture_output=True, text=True).stdout.strip())
print("torch", torch.__version__, "CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version())
for m, n, k in [(8192,) * 3] + [(TOKENS, WIDTH, WIDTH), (TOKENS, 4 * WIDTH, WIDTH), (TOKENS, WIDTH, 5 * WIDTH)]:
    a, b = randn(m, k), randn(n, k)
    print(f"product {m}x{n}x{k} bf16: {2 * m * n * k / seconds(lambda: a @ b.T) / 1e12:.0f} TFLOP/s")
x = torch.randn(2**30, device="cuda")
y = torch.empty_like(x)
print(f"copy: {2 * 4 * 2**30 / seconds(lambda: y.copy_(x)) / 1e12:.2f} TB/s")
del x, y
q, k, v = (randn(1, HEADS, TOKENS, HEAD, requires_grad=True) for _ in range(3))
work = 4 * HEADS * TOKENS**2 * HEAD
for name in ("CUDNN_ATTENTION", "FLASH_ATTENTION"):
    try:
        with sdpa_kernel([getattr(SDPBackend, name)]):
            forward = seconds(lambda: attention(q, k, v))
            output = attention(q, k, v)
            upstream = torch.randn_like(output)
            backward = seconds(lambda: torch.autograd.grad(output, (q, k, v), upstream, retain_graph=True))
        there, back = work / forward / 1e12, 2.5 * work / backward / 1e12
        print(f"{name}: forward {forward * 1e3:.2f} ms ({there:.0f} TFLOP/s), backward {backward * 1e3:.2f} ms ({back:.0f})")
    except RuntimeError as error:
        print(name, str(error)[:120])

#!/usr/bin/env python3
"""Goldens of quantized matrices: what bitsandbytes, torch and gguf make of numbers, and back.

    python quantized.py ../fixtures/quantized.safetensors ../fixtures/quantized.gguf

Needs `torch bitsandbytes gguf numpy safetensors` (made with bitsandbytes 0.50.2 and gguf 0.19.0). The same bytes every time.
"""

import json
import sys

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch
from safetensors.torch import save_file

torch.manual_seed(0)
out = {}


def dequantize(packed, state):
    """As one row: the CPU kernel of bitsandbytes takes a block for one that ends with its row, which those of its GPUs do not."""
    shape, state.shape = state.shape, torch.Size((1, state.shape.numel()))
    dense = bnb.dequantize_4bit(packed, state).reshape(shape)
    state.shape = shape
    return dense


# Whole blocks; rows that are no multiple of a block; a last block that is not full; an odd number of values; a block of zeros;
# more than 256 blocks, so that scales have more than one scale.
shapes = {"whole": (8, 128), "rows": (48, 48), "rest": (7, 20), "odd": (5, 13), "zeros": (4, 64), "many": (140, 160)}
for name, shape in shapes.items():
    values = torch.randn(shape) * 0.03
    if name == "zeros":
        values[1] = 0
    out[f"{name}.values"] = values
    for kind in ("nf4", "fp4"):
        packed, state = bnb.quantize_4bit(values, blocksize=64, quant_type=kind, compress_statistics=False)
        out[f"{name}.{kind}.plain.weight"] = packed
        out[f"{name}.{kind}.plain.absmax"] = state.absmax
        out[f"{name}.{kind}.plain.dense"] = dequantize(packed, state)
        packed, state = bnb.quantize_4bit(values, blocksize=64, quant_type=kind, compress_statistics=True)
        parts = state.as_dict(packed=True)
        for key, part in parts.items():
            out[f"{name}.{kind}.weight.{key}"] = part
        out[f"{name}.{kind}.weight"] = packed
        out[f"{name}.{kind}.dense"] = dequantize(packed, state)
        packed, state = bnb.quantize_4bit(values.bfloat16(), blocksize=64, quant_type=kind, compress_statistics=True)
        out[f"{name}.{kind}.dense_bf16"] = dequantize(packed, state)
    rows = values.clone()
    if name == "zeros":
        rows[1] = 1e-3  # bitsandbytes divides a row of zeros by zero
    quantized, absmax, _ = bnb.int8_vectorwise_quant(rows)
    out[f"{name}.int8.values"] = rows
    out[f"{name}.int8.weight"] = quantized
    out[f"{name}.int8.SCB"] = absmax
    out[f"{name}.int8.dense"] = bnb.int8_vectorwise_dequant(quantized, absmax)

out["dynamic"] = bnb.create_dynamic_map()
every = torch.arange(256, dtype=torch.uint8)
out["e4m3.levels"] = every.view(torch.float8_e4m3fn).float()
out["e5m2.levels"] = every.view(torch.float8_e5m2).float()
numbers = torch.cat([torch.randn(500) * s for s in (1e-3, 0.1, 10, 100)]).clamp(-448, 448)
between = out["e4m3.levels"][:127]
numbers = torch.cat([numbers, (between[1:] + between[:-1]) / 2, -(between[1:] + between[:-1]) / 2, between])
out["e4m3.numbers"] = numbers
out["e4m3.bytes"] = numbers.to(torch.float8_e4m3fn).view(torch.uint8)

writer = gguf.GGUFWriter(sys.argv[2], "flux")
writer.add_uint32("answer", 42)
writer.add_array("list", ["a", "b"])
rng = np.random.default_rng(0)
for kind in ("Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"):
    quant = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[quant]
    values = (rng.standard_normal((6, 3 * block)) * 0.03).astype(np.float32)
    if kind in ("Q4_0", "Q8_0"):
        packed = gguf.quants.quantize(values, quant)
    else:
        # gguf does not write these: any bytes are blocks, but for their scales, which are to be ordinary numbers.
        packed = rng.integers(0, 256, (6, 3, size), dtype=np.uint8)
        at = [208] if kind == "Q6_K" else [0, 2]
        for start in at:
            packed[:, :, start : start + 2] = (rng.random((6, 3, 1)) * 1e-3).astype(np.float16).view(np.uint8)
        packed = packed.reshape(6, 3 * size)
    out[f"{kind}.bytes"] = torch.from_numpy(packed.copy())
    writer.add_tensor(f"{kind}.weight", packed, raw_dtype=quant)
    out[f"{kind}.dense"] = torch.from_numpy(gguf.quants.dequantize(packed, quant).copy())

for kind, dtype in (("f32", np.float32), ("f16", np.float16)):
    writer.add_tensor(f"{kind}.weight", out["rest.values"].numpy().astype(dtype))
bf16 = out["rest.values"].bfloat16().view(torch.uint8).reshape(7, 40).numpy()
writer.add_tensor("bf16.weight", bf16, raw_dtype=gguf.GGMLQuantizationType.BF16)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

save_file({k: v.contiguous() for k, v in out.items()}, sys.argv[1], {"format": "pt"})
print(len(out), "tensors")

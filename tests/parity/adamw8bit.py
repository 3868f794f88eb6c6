#!/usr/bin/env python3
"""Goldens of AdamW with moments in eight bits: what bitsandbytes makes of the same gradients.

    python adamw8bit.py ../fixtures/adamw8bit.safetensors

Needs `torch bitsandbytes safetensors` (made with bitsandbytes 0.50.2, on the CPU). The same bytes every time.
"""

import sys

import bitsandbytes as bnb
import bitsandbytes.backends.cpu.ops as ops
import bitsandbytes.functional as F
import torch
from safetensors.torch import save_file

# Its CPU library takes a level that is not the nearest for a few values in a thousand, from a table of rounded bounds. What it
# falls back to for types that the library lacks takes the nearest one, as the published method says.
nearest = lambda values, levels: torch.ops.bitsandbytes.quantize_blockwise(values.double(), levels, 256)


def requantize(values, levels, absmax, codes, blocksize):
    new, largest = nearest(values, levels)
    codes.copy_(new)
    absmax.copy_(largest)


torch.manual_seed(0)
out = {"signed.levels": F.create_dynamic_map(signed=True), "unsigned.levels": F.create_dynamic_map(signed=False)}

# A last block that is not full, magnitudes far apart, a block of zeros, and values between two levels.
values = torch.randn(1000) * torch.logspace(-6, 2, 1000)
values[256:512] = 0
levels = out["signed.levels"]
values[512:767] = (levels[1:] + levels[:-1]) / 2
values[767] = 1
for kind, row in (("signed", values), ("unsigned", values.abs())):
    codes, absmax = nearest(row, out[f"{kind}.levels"])
    out[f"{kind}.values"], out[f"{kind}.codes"], out[f"{kind}.absmax"] = row, codes, absmax
    out[f"{kind}.dense"] = F.dequantize_blockwise(codes, absmax=absmax, code=out[f"{kind}.levels"], blocksize=256)

STEPS, COUNT = 12, 4100
start = torch.randn(COUNT) * 0.02
gradients = torch.randn(STEPS, COUNT) * torch.logspace(-5, 0, COUNT)
gradients[:, 300:310] = 0
out["start"], out["gradients"] = start, gradients


def trained():
    parameter = torch.nn.Parameter(start.clone())
    optimizer = bnb.optim.AdamW8bit([parameter], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)
    rows = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        rows.append(parameter.detach().clone())
    state = optimizer.state[parameter]
    assert state["state1"].dtype == torch.uint8
    return torch.stack(rows), state


out["library"] = trained()[0][-1]
ops._quant_blockwise_fp32_direct = requantize
out["parameters"], state = trained()
for kind, number in (("mean", 1), ("square", 2)):
    out[f"{kind}.codes"], out[f"{kind}.absmax"] = state[f"state{number}"], state[f"absmax{number}"]

save_file({k: v.contiguous() for k, v in out.items()}, sys.argv[1], {"format": "pt"})
print(len(out), "tensors")

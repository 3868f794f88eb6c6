#!/usr/bin/env python3
"""Read a part that `kiln quantize --to nf4|int8` wrote as bitsandbytes and diffusers (transformers) do.

    python load_quantized.py BASE/transformer QUANTIZED/transformer

Checks that the modules which the library would replace are those that are quantized, that bitsandbytes takes every weight with
what lies beside it, and that what it makes of them is near the base. Without a GPU neither library opens such a folder as a whole.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import init_empty_weights
from bitsandbytes.functional import QuantState, dequantize_4bit, int8_vectorwise_dequant
from safetensors.torch import load_file


def load(folder):
    tensors = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


base, folder = sys.argv[1:]
exact, stored = load(base), load(folder)
config = json.loads((Path(folder) / "config.json").read_text())
quantization = config["quantization_config"]
kind = config.get("_class_name") or config["architectures"][0]

with init_empty_weights():
    if "_class_name" in config:
        import diffusers
        from diffusers.quantizers.bitsandbytes.utils import replace_with_bnb_linear

        model = getattr(diffusers, kind).from_config({k: v for k, v in config.items() if k != "quantization_config"})
        parsed = diffusers.BitsAndBytesConfig.from_dict(quantization)
        left = parsed.llm_int8_skip_modules + sorted(model._keep_in_fp32_modules or [])
        replace_with_bnb_linear(model, modules_to_not_convert=left, quantization_config=parsed)
    else:
        import transformers
        from transformers.integrations import replace_with_bnb_linear

        model = getattr(transformers, kind)(transformers.AutoConfig.from_pretrained(base))
        parsed = transformers.BitsAndBytesConfig.from_dict(quantization)
        left = parsed.llm_int8_skip_modules + sorted(model._keep_in_fp32_modules or [])
        model = replace_with_bnb_linear(model, modules_to_not_convert=left, quantization_config=parsed)

replaced = {n for n, m in model.named_modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")}
four = quantization["load_in_4bit"]
quantized = {n.removesuffix(".weight") for n, t in stored.items() if t.dtype == (torch.uint8 if four else torch.int8)}
quantized = {n for n in quantized if f"{n}.weight" in exact}
print(f"{kind}: {len(quantized)} matrices are quantized, {len(replaced)} would be replaced")
if replaced != quantized:
    print("only in the file:", sorted(quantized - replaced)[:9], "\nonly in the library:", sorted(replaced - quantized)[:9])
    sys.exit(1)

signal = noise = 0.0
for name in sorted(quantized):
    weight = f"{name}.weight"
    if four:
        parts = {k: v for k, v in stored.items() if k.startswith(weight + ".")}
        state = QuantState.from_dict(parts, device=torch.device("cpu"))
        assert state.shape == exact[weight].shape, name
        # As one row: the CPU kernel takes a block for one that ends with its row, which those of GPUs do not.
        state.shape = torch.Size((1, exact[weight].numel()))
        values = dequantize_4bit(stored[weight], state).reshape(exact[weight].shape)
    else:
        values = int8_vectorwise_dequant(stored[weight], stored[f"{name}.SCB"])
    original = exact[weight].double()
    assert values.shape == original.shape, name
    signal += original.square().sum().item()
    noise += (original - values.double()).square().sum().item()
print(f"signal-to-noise ratio {10 * torch.tensor(signal / noise).log10().item():.2f} dB")
rest = {n for n in exact if n.removesuffix(".weight") not in quantized}
assert all(torch.equal(exact[n], stored[n]) for n in rest), "a tensor that is not quantized has changed"

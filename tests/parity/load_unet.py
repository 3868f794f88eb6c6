#!/usr/bin/env python3
"""Load a model folder that another program exported into diffusers and report how well that went.

Prints one JSON line and exits 1 if the class or the number of channels is not what the folder says, tensors are missing,
unexpected or other than expected, or a result differs by more than --tolerance.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from load_lora import replay, short
from safetensors.torch import load_file


def compare(unet, expected):
    """The UNet's tensors as diffusers holds them against a file of them; a file may lack axes of length one."""
    have = unet.state_dict()
    want = {k.removeprefix("unet."): v for k, v in load_file(expected).items()}
    both = sorted(have.keys() & want.keys())
    same_size = [k for k in both if have[k].numel() == want[k].numel()]
    diffs = {k: float((have[k].double() - want[k].double().reshape(have[k].shape)).abs().max()) for k in same_size}
    return {
        "expected_missing": sorted(want.keys() - have.keys()), "expected_lacking": sorted(have.keys() - want.keys()),
        "misshapen": sorted(set(both) - set(same_size)), "changed": sorted(k for k, d in diffs.items() if d != 0.0),
        "tensors_max_abs": max(diffs.values(), default=0.0),
    }  # fmt: skip


@torch.no_grad()
def forward(unet, golden, output):
    """One call with the inputs of golden section `lora`, against another program's output or that of the golden's UNet."""
    t = load_file(golden / "golden.safetensors")
    got = unet(**{k: t[f"lora.{k}"] for k in ("sample", "timestep", "encoder_hidden_states")}, return_dict=False)[0]
    want = next(iter(load_file(output).values())) if output else t["lora.output_base"]
    return {"forward_max_abs_diff": float((got.float() - want.float().reshape(got.shape)).abs().max())}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path, help="the exported folder")
    p.add_argument("--expected", type=Path, help="safetensors with all tensors of the UNet: their values must be exactly these")
    p.add_argument("--golden", type=Path, help="folder written by golden.py for the base model: inputs, and outputs if unchanged")
    p.add_argument("--section", help="golden section to sample with, such as pipe.ip2p")
    p.add_argument("--latents", type=Path, help="safetensors with one tensor: the other program's final latents for that section")
    p.add_argument("--output", type=Path, help="safetensors with one tensor: the other program's output for golden section lora")
    p.add_argument("--tolerance", type=float, default=1e-3)
    a = p.parse_args()
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    index = json.loads((a.model / "model_index.json").read_text())
    pipe = DiffusionPipeline.from_pretrained(a.model, local_files_only=True)
    stored = Path(a.model, "unet", "diffusion_pytorch_model.safetensors")
    report = {
        "file": str(a.model), "class": type(pipe).__name__, "dtype": str(next(iter(load_file(stored).values())).dtype)[6:],
        "in_channels": pipe.unet.config.in_channels, "conv_in": list(pipe.unet.conv_in.weight.shape),
        **{f"file_{k}": v for k, v in compare(pipe.unet, stored).items()},
    }  # fmt: skip
    ok = report["class"] == index["_class_name"] and report["conv_in"][1] == report["in_channels"]
    if a.expected:
        report |= compare(pipe.unet, a.expected)
    pipe = pipe.to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if a.golden:
        report |= forward(pipe.unet, a.golden, a.output) if a.output or not a.section else {}
        report |= replay(pipe, a.golden, a.section, a.latents) if a.section else {}
    ok = ok and not any(v for k, v in report.items() if isinstance(v, list) and k != "conv_in")
    ok = ok and all(v <= a.tolerance for k, v in report.items() if k.endswith("_diff"))
    print(json.dumps({"ok": ok, **short(report)}))
    sys.exit(not ok)


if __name__ == "__main__":
    main()

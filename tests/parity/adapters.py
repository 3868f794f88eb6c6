#!/usr/bin/env python3
"""Adapters other than plain LoRA, as PEFT and LyCORIS write them, and the outputs of the tiny models with them.

    python adapters.py ../fixtures [CASE ...]

Writes `adapters/<model>/<case>.safetensors` (a folder where PEFT needs its settings) and `adapters/<model>/outputs.safetensors`: a
forward pass of the denoiser with each, in f64, on the inputs of the model's golden (section `lora`). With names of cases, only
these are rewritten.
Needs `torch diffusers peft lycoris-lora safetensors`.
"""

import json
import os
import shutil
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error"}

import lycoris
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

FLUX = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.ff.net.2", "single_transformer_blocks.0.proj_mlp", "norm_out.linear"]
UNET = ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.attentions.0.transformer_blocks.0.ff.net.2"]
CONV = ["down_blocks.0.resnets.0.conv1", "down_blocks.1.resnets.0.conv_shortcut", "down_blocks.0.downsamplers.0.conv",
        "up_blocks.0.upsamplers.0.conv", "mid_block.resnets.1.conv2", "conv_in"]  # fmt: skip


def fill(module, seed):
    """Fill all trainable parameters of an adapter, so that it changes the model."""
    draw = torch.Generator().manual_seed(seed)
    for name, p in sorted(module.named_parameters()):
        if p.requires_grad:
            if "magnitude" in name or "dora_scale" in name:
                p.data *= 0.5 + torch.rand(p.shape, generator=draw)
            else:
                p.data = torch.randn(p.shape, generator=draw) * (0.5 / max(p.shape[-1], 1) ** 0.5)


def peft_case(model, config, seed, folder, double):
    adapted = get_peft_model(model, config)
    fill(adapted, seed)
    if folder:
        adapted.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        settings = json.loads((folder / "adapter_config.json").read_text())
        keep = "peft_type r lora_alpha lora_bias alpha use_dora use_rslora rank_pattern alpha_pattern target_modules".split()
        (folder / "adapter_config.json").write_text(json.dumps({k: v for k, v in settings.items() if k in keep and v is not None}, default=sorted) + "\n")
    return adapted.double() if double else adapted


def lycoris_case(model, names, seed, file, double, **options):
    lycoris.LycorisNetwork.apply_preset({"target_module": [], "target_name": names, "enable_conv": True})
    net = lycoris.create_lycoris(model, 1.0, **options)
    assert net.loras, names
    for lora in net.loras:
        fill(lora, seed)
        if hasattr(lora, "scalar") and isinstance(lora.scalar, torch.nn.Parameter):
            lora.scalar.data.fill_(1.0)
    net.apply_to()
    if file:
        tensors = {k: v.detach().contiguous() for k, v in net.state_dict().items() if not k.endswith(".scalar")}
        save_file(tensors, file)
    if double:
        net.double()
        model.double()
    model._net = net
    return model


def main():
    fixtures, chosen = Path(sys.argv[1]), sys.argv[2:]
    for name, cls, part, linear, conv in [
        ("flux", FluxTransformer2DModel, "transformer", FLUX, []),
        ("sd", UNet2DConditionModel, "unet", UNET, CONV),
    ]:
        out = fixtures / "adapters" / name
        outputs = {}
        if chosen:
            outputs = load_file(out / "outputs.safetensors")
        else:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
        with safe_open(fixtures / f"{name}_golden" / "golden.safetensors", "pt") as f:
            x = {k.removeprefix("lora."): f.get_tensor(k) for k in f.keys() if k.startswith("lora.")}
        x = {k: v for k, v in x.items() if k != "latents" and not k.startswith("output")}
        peft_cases = {
            "peft_dora": LoraConfig(r=3, lora_alpha=6, use_dora=True, target_modules=linear),
            "peft_lokr": LoKrConfig(r=2, alpha=3, target_modules=linear, decompose_factor=4),
            "peft_lokr_whole": LoKrConfig(r=64, alpha=16, target_modules=linear),
            "peft_loha": LoHaConfig(r=2, alpha=1, target_modules=linear),
            "peft_patterns": LoraConfig(r=2, lora_alpha=2, use_rslora=True, target_modules=linear,
                                        alpha_pattern={r".*attn\.to_[qk]": 5, r"norm_out\.linear|ff\.net\.2": 3},
                                        rank_pattern={"to_q": 3}),
        }  # fmt: skip
        every = linear + conv
        lycoris_cases = {
            "lycoris_lokr": dict(algo="lokr", linear_dim=10000, linear_alpha=1, conv_dim=10000, conv_alpha=1, factor=4),
            "lycoris_lokr_r2": dict(algo="lokr", linear_dim=2, linear_alpha=1, conv_dim=2, conv_alpha=1, factor=4),
            "lycoris_loha": dict(algo="loha", linear_dim=3, linear_alpha=2, conv_dim=2, conv_alpha=2),
            "lycoris_locon_dora": dict(algo="lora", linear_dim=3, linear_alpha=2, conv_dim=2, conv_alpha=1, dora_wd=True, wd_on_output=True),
        }
        if conv:
            for algo in ("lora", "loha", "lokr"):
                lycoris_cases[f"lycoris_{algo}_tucker"] = dict(algo=algo, linear_dim=2, linear_alpha=1, conv_dim=2, conv_alpha=1, use_tucker=True)
        # Changes of biases; after the others, whose seeds are their numbers.
        bias_cases = {
            "peft_lora_bias": LoraConfig(r=3, lora_alpha=6, lora_bias=True, target_modules=[n for n in linear if "attn1.to_q" not in n]),
            "lycoris_full": dict(algo="full"),
        }
        cases = peft_cases | lycoris_cases | bias_cases
        for seed, case in enumerate(cases):
            if chosen and case not in chosen:
                continue
            for double in (False, True):
                model = cls.from_pretrained(fixtures / name / part, torch_dtype=torch.float32).eval()
                if case.startswith("peft"):
                    model = peft_case(model, cases[case], seed, None if double else out / case, double)
                else:
                    model = lycoris_case(model, every, seed, None if double else out / f"{case}.safetensors", double, **cases[case])
                kind = torch.float64 if double else torch.float32
                inputs = {k: v.to(kind) if v.is_floating_point() else v for k, v in x.items()}
                with torch.no_grad():
                    y = model(**inputs, return_dict=False)[0]
                outputs[case + ".f64" * double] = y.float().contiguous()
            noise = (outputs[case] - outputs[case + ".f64"]).abs().max()
            print(name, case, f"noise {noise:.1e}", f"size {outputs[case].abs().max():.2f}")
            del outputs[case]
        save_file(outputs, out / "outputs.safetensors")


main()

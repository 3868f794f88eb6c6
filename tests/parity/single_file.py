#!/usr/bin/env python3
"""Which tensors of a single-file checkpoint are which of a model folder's, by diffusers' own conversion.

    python single_file.py ../fixtures

Writes `single_file/<case>.json`: for each tensor of the original layout the tensors of the folder that it is made of, one below the
other, and whether their halves change places. Each map is checked: diffusers makes the folder's tensors of it, bit by bit.
Needs `torch diffusers transformers safetensors`.
"""

import inspect
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ |= {"HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error"}

import torch
from diffusers.loaders import single_file_utils as convert
from safetensors.torch import load_file

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip


def folder(path):
    tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def unet_name(name, config):
    per, levels = config["layers_per_block"] + 1, len(config["block_out_channels"])
    module, kind = name.rsplit(".", 1)
    top = {v: k for k, v in {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
                             "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}.items()}  # fmt: skip
    if module in top:
        return f"{top[module]}.{kind}"
    p = module.split(".")
    if p[0] == "mid_block":
        return f"middle_block.{1 if p[1] == 'attentions' else 2 * int(p[2])}.{'.'.join(p[3:]) if p[1] == 'attentions' else RESNET['.'.join(p[3:])]}.{kind}"
    way, level, what, i = p[0], int(p[1]), p[2], int(p[3])
    rest = ".".join(p[4:])
    if way == "down_blocks":
        if what == "downsamplers":
            return f"input_blocks.{per * (level + 1)}.0.op.{kind}"
        n = 1 + per * level + i
        return f"input_blocks.{n}.{0 if what == 'resnets' else 1}.{RESNET[rest] if what == 'resnets' else rest}.{kind}"
    if what == "upsamplers":
        attends = config["up_block_types"][level].startswith("CrossAttn")
        return f"output_blocks.{per * level + per - 1}.{2 if attends else 1}.conv.{kind}"
    n = per * level + i
    return f"output_blocks.{n}.{0 if what == 'resnets' else 1}.{RESNET[rest] if what == 'resnets' else rest}.{kind}"


def vae_name(name, levels):
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    for i in range(levels):
        name = name.replace(f"encoder.down_blocks.{i}.resnets", f"encoder.down.{i}.block")
        name = name.replace(f"encoder.down_blocks.{i}.downsamplers.0.conv", f"encoder.down.{i}.downsample.conv")
        name = name.replace(f"decoder.up_blocks.{i}.resnets", f"decoder.up.{levels - 1 - i}.block")
        name = name.replace(f"decoder.up_blocks.{i}.upsamplers.0.conv", f"decoder.up.{levels - 1 - i}.upsample.conv")
    for i in range(2):
        name = name.replace(f"mid_block.resnets.{i}", f"mid.block_{i + 1}")
    if "mid_block.attentions.0" in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        for own, old in [("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
                         ("query", "q"), ("key", "k"), ("value", "v"), ("proj_attn", "proj_out")]:  # fmt: skip
            name = name.replace(f"attn_1.{own}.", f"attn_1.{old}.")
    return name


def flux_map(names):
    double = {"img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"], "img_attn.proj": ["attn.to_out.0"],
              "img_mlp.0": ["ff.net.0.proj"], "img_mlp.2": ["ff.net.2"], "img_mod.lin": ["norm1.linear"],
              "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"], "txt_attn.proj": ["attn.to_add_out"],
              "txt_mlp.0": ["ff_context.net.0.proj"], "txt_mlp.2": ["ff_context.net.2"], "txt_mod.lin": ["norm1_context.linear"]}  # fmt: skip
    single = {"linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"], "linear2": ["proj_out"], "modulation.lin": ["norm.linear"]}
    top = {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out", "final_layer.adaLN_modulation.1": "norm_out.linear"}
    for old, new in (("time_in", "timestep_embedder"), ("guidance_in", "guidance_embedder"), ("vector_in", "text_embedder")):
        top |= {f"{old}.in_layer": f"time_text_embed.{new}.linear_1", f"{old}.out_layer": f"time_text_embed.{new}.linear_2"}
    out = {}
    for kind in ("weight", "bias"):
        for old, new in top.items():
            if f"{new}.{kind}" in names:
                out[f"{old}.{kind}"] = [f"{new}.{kind}"]
        for blocks, own, table in (("double_blocks", "transformer_blocks", double), ("single_blocks", "single_transformer_blocks", single)):
            count = 1 + max(int(n.split(".")[1]) for n in names if n.startswith(own + "."))
            for i in range(count):
                for old, new in table.items():
                    out[f"{blocks}.{i}.{old}.{kind}"] = [f"{own}.{i}.{n}.{kind}" for n in new]
                norms = {"norm.query_norm": "norm_q", "norm.key_norm": "norm_k"}
                if blocks == "double_blocks":
                    norms = {"img_attn.norm.query_norm": "norm_q", "img_attn.norm.key_norm": "norm_k",
                             "txt_attn.norm.query_norm": "norm_added_q", "txt_attn.norm.key_norm": "norm_added_k"}  # fmt: skip
                for old, new in norms.items():
                    out[f"{blocks}.{i}.{old}.scale"] = [f"{own}.{i}.attn.{new}.weight"]
    return out


def build(mapping, tensors, swapped=()):
    out = {}
    for old, parts in mapping.items():
        t = torch.cat([tensors[p] for p in parts]) if len(parts) > 1 else tensors[parts[0]]
        out[old] = torch.cat(t.chunk(2)[::-1]) if old in swapped else t
    return out


def check(got, want, what):
    assert set(got) == set(want), (what, set(got) ^ set(want))
    for k in want:
        assert got[k].reshape(want[k].shape).equal(want[k]), (what, k)


def main():
    fixtures = Path(sys.argv[1])
    out = fixtures / "single_file"
    out.mkdir(exist_ok=True)
    # Stable Diffusion: the UNet, the VAE, and CLIP in both layouts.
    sd = fixtures / "sd"
    config = {part: json.loads((sd / part / "config.json").read_text()) for part in ("unet", "vae", "text_encoder")}
    tensors = {part: folder(sd / part) for part in config}
    unet = {"model.diffusion_model." + unet_name(n, config["unet"]): [n] for n in tensors["unet"]}
    check(convert.convert_ldm_unet_checkpoint(build(unet, tensors["unet"]), config["unet"]), tensors["unet"], "unet")
    levels = len(config["vae"]["block_out_channels"])
    vae = {"first_stage_model." + vae_name(n, levels): [n] for n in tensors["vae"]}
    check(convert.convert_ldm_vae_checkpoint(build(vae, tensors["vae"]), config["vae"]), tensors["vae"], "vae")
    clip = {n if n.startswith("text_model.") else f"text_model.{n}": n for n in tensors["text_encoder"]}
    v1 = {"cond_stage_model.transformer." + n: [own] for n, own in clip.items()}
    layers = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}
    v2 = {}
    for n, own in clip.items():
        old = {"text_model.embeddings.token_embedding.weight": "token_embedding.weight",
               "text_model.embeddings.position_embedding.weight": "positional_embedding",
               "text_model.final_layer_norm.weight": "ln_final.weight", "text_model.final_layer_norm.bias": "ln_final.bias"}.get(n)  # fmt: skip
        if old is None:
            _, _, _, i, rest = n.split(".", 4)
            module, kind = rest.rsplit(".", 1)
            if module in ("self_attn.k_proj", "self_attn.v_proj"):
                continue
            if module == "self_attn.q_proj":
                key = f"cond_stage_model.model.transformer.resblocks.{i}.attn.in_proj_{kind}"
                v2[key] = [own.replace("q_proj", w) for w in ("q_proj", "k_proj", "v_proj")]
                continue
            old = f"transformer.resblocks.{i}.{layers[module]}.{kind}"
        v2["cond_stage_model.model." + old] = [own]
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=config["text_encoder"]["hidden_size"]))
    got = convert.convert_open_clip_checkpoint(model, build(v2, tensors["text_encoder"]))
    check(got, {n: tensors["text_encoder"][own] for n, own in clip.items()}, "open clip")
    for name, text in (("sd_v1", v1), ("sd_v2", v2)):
        rows = {"unet": unet, "vae": vae, "text_encoder": text}
        (out / f"{name}.json").write_text(json.dumps({"parts": rows, "swapped": []}, indent=0, sort_keys=True) + "\n")
    # FLUX: the transformer alone.
    flux = folder(fixtures / "flux" / "transformer")
    mapping = flux_map(flux)
    assert sorted(p for parts in mapping.values() for p in parts) == sorted(flux)
    swapped = [f"final_layer.adaLN_modulation.1.{kind}" for kind in ("weight", "bias")]
    width = flux["x_embedder.weight"].shape[0]
    source = inspect.getsource(convert.convert_flux_transformer_checkpoint_to_diffusers).replace("inner_dim = 3072", f"inner_dim = {width}")
    scope = {}
    exec(source, convert.__dict__, scope)
    check(scope["convert_flux_transformer_checkpoint_to_diffusers"](build(mapping, flux, swapped)), flux, "flux")
    (out / "flux.json").write_text(json.dumps({"parts": {"transformer": mapping}, "swapped": swapped}, indent=0, sort_keys=True) + "\n")


main()

#!/usr/bin/env python3
"""Five steps of training all weights of the FLUX fixture, as diffusers' script for LoRA trains adapters; and how far float32 is off.

    python flux_full.py ../fixtures/flux      # -> ../fixtures/flux_full.safetensors

What goes in is in the golden beside the model already (`train_lora.*`). Of each output `NAME`, `noise.NAME` is the largest
difference between float32 and float64.
"""

import sys
from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

SHOWN = (
    "x_embedder.weight", "context_embedder.bias", "time_text_embed.timestep_embedder.linear_1.weight",
    "transformer_blocks.0.norm1.linear.weight", "transformer_blocks.0.attn.norm_q.weight",
    "transformer_blocks.1.attn.norm_added_k.weight", "transformer_blocks.1.ff_context.net.2.weight",
    "single_transformer_blocks.0.attn.norm_k.weight", "single_transformer_blocks.2.proj_out.weight", "norm_out.linear.bias",
    "proj_out.weight",
)  # fmt: skip


def run(folder, given, dtype, steps=5, lr=1e-3):
    model = FluxTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    ema = EMAModel(model.parameters(), decay=0.9999)
    take = lambda name: given[f"train_lora.{name}"].to(dtype)
    prompt, pooled, out, losses, norms = take("prompt_embeds"), take("pooled_prompt_embeds"), {}, [], []
    named = dict(model.named_parameters())
    for step in range(1, steps + 1):
        of = lambda name: take(f"step{step}.{name}")
        latents, noise, sigmas = of("latents"), of("noise"), of("sigmas").view(-1, 1, 1, 1)
        b, c, h, w = latents.shape
        ids = FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", dtype)
        noisy = (1.0 - sigmas) * latents + sigmas * noise
        pred = model(
            hidden_states=FluxPipeline._pack_latents(noisy, b, c, h, w), timestep=sigmas.flatten(),
            guidance=torch.full([b], 3.5, dtype=dtype), pooled_projections=pooled, encoder_hidden_states=prompt,
            txt_ids=torch.zeros(prompt.shape[1], 3, dtype=dtype), img_ids=ids, return_dict=False,
        )[0]  # fmt: skip
        loss = (FluxPipeline._unpack_latents(pred, h * 8, w * 8, 8) - (noise - latents)).square().mean()
        loss.backward()
        if step == 1:
            out |= {f"grad1.{n}": named[n].grad.clone() for n in SHOWN}
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        losses.append(loss.detach())
    out |= {f"final.{n}": named[n].detach().clone() for n in SHOWN}
    ema.copy_to(model.parameters())
    out |= {f"ema.{n}": named[n].detach().clone() for n in SHOWN[:4]}
    return out | {"loss": torch.stack(losses), "grad_norm": torch.stack(norms)}


def main():
    folder = Path(sys.argv[1])
    given = load_file(folder.parent / f"{folder.name}_golden" / "golden.safetensors")
    single, double = run(folder, given, torch.float32), run(folder, given, torch.float64)
    noise = {f"noise.{n}": (single[n].double() - double[n]).abs().max().float().reshape(1) for n in single}
    save_file({n: t.contiguous() for n, t in (single | noise).items()}, folder.parent / f"{folder.name}_full.safetensors")
    print([round(x, 5) for x in single["loss"].tolist()])


if __name__ == "__main__":
    main()

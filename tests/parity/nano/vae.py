#!/usr/bin/env python3
"""Train a small AutoencoderKL of diffusers on drawn images, in the layout of FLUX.1's (or of Stable Diffusion's).

    python vae.py encoder flux OUT/vae FOLDER...     # 64 x 64 -> 8 x 8 x 16, no quant convolutions, a shift and a scale
    python vae.py decoder flux OUT/vae FOLDER...     # for the encoder that is there, which stays as it is
    python vae.py both sd OUT/vae FOLDER...          # 64 x 64 -> 16 x 16 x 4, quant convolutions, a scale

An encoder alone learns the principal components of patches of the images, each a channel: a denoiser can begin as soon as they are
there, and of a small encoder that is trained together with its decoder the colors come last. The decoder learns to draw from
them, and more than a linear map would. Both together begin so, and then are free: four channels have to carry more than the
four strongest components would, and the divergence from a normal distribution (Kingma & Welling 2013) keeps them near it.
`scaling_factor` and `shift_factor` are measured on the latents of the images, so that they have mean 0 and deviation 1. The images are seen as they are, mirrored, upside down, in grey, in other colors and on dark
backgrounds: an autoencoder has to carry what an adapter or an edit may ask for. Needs `torch diffusers pillow`.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error"}

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image

KINDS = {
    "flux": dict(latent_channels=16, block_out_channels=(16, 32, 64, 64), use_quant_conv=False, use_post_quant_conv=False),
    "sd": dict(latent_channels=4, block_out_channels=(16, 32, 64)),
}


def images(folders):
    """All images of the folders, [N, 3, H, W] of bytes."""
    files = [f for folder in folders for f in sorted(Path(folder).glob("*.png"))]
    pixels = np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def signed(x):
    """Bytes as numbers in -1..1."""
    return x.float() / 127.5 - 1


def varied(x, g):
    """Each image in one of its guises."""
    rows = len(x)
    draw = lambda p: (torch.rand(rows, 1, 1, 1, generator=g) < p)
    x = torch.where(draw(0.5), x.flip(3), x)
    x = torch.where(draw(0.15), x.flip(2), x)
    x = torch.where(draw(0.1), x.mean(1, keepdim=True).expand_as(x), x)
    x = torch.where(draw(0.15), -x, x)
    order = torch.stack([torch.randperm(3, generator=g) for _ in range(rows)])
    mixed = x.gather(1, order[:, :, None, None].expand_as(x))
    return torch.where(draw(0.2), mixed, x)


def components(data, side, count):
    """A convolution that gives the first principal components of patches, the strong ones weakened by the root of their strength."""
    patches = F.unfold(data, side, stride=side).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    values, vectors = values[-count:].flip(0), vectors[:, -count:].flip(1)
    print(f"{count} components hold {values.sum() / (patches - mean).square().sum(1).mean():.3f} of the variance", flush=True)
    weights = (vectors / values**0.25).T
    return weights.reshape(count, 3, side, side), -weights @ mean


def colors_first(data, side):
    """The same for four channels: three for the mean color of a patch, one for what of it varies the most."""
    base, base_bias = components(F.avg_pool2d(data, side), 1, 3)
    rest, rest_bias = components(data - F.interpolate(F.avg_pool2d(data, side), scale_factor=side), side, 1)
    rest = rest - rest.mean((2, 3), keepdim=True)
    return torch.cat([base.expand(3, 3, side, side) / side**2, rest]), torch.cat([base_bias, rest_bias])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("part", choices=["encoder", "decoder", "both"])
    p.add_argument("kind", choices=sorted(KINDS))
    p.add_argument("out", type=Path)
    p.add_argument("folders", type=Path, nargs="+")
    p.add_argument("--steps", type=int, default=600)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--rate", type=float, default=2e-3)
    p.add_argument("--divergence", type=float, default=3e-4, help="weight of the divergence, with `both`")
    p.add_argument("--hue", type=float, default=4, help="weight of the error of colors")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--start", type=Path, help="weights to start from, an autoencoder of this layout")
    p.add_argument("--save", type=Path, help="write to this folder, and leave OUT as it is")
    a = p.parse_args()
    torch.manual_seed(a.seed)
    g = torch.Generator().manual_seed(a.seed)
    data, config = images(a.folders), KINDS[a.kind]
    n = len(config["block_out_channels"])
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * n, up_block_types=["UpDecoderBlock2D"] * n, layers_per_block=1,
        norm_num_groups=8, sample_size=64, **config,
    )  # fmt: skip
    start = a.start or (a.out if a.part == "decoder" else None)
    if start:
        vae = AutoencoderKL.from_pretrained(start, torch_dtype=torch.float32)
    print(f"{len(data)} images, {sum(w.numel() for w in vae.parameters()):,} parameters", flush=True)
    ends = {"encoder": ["encoder", "quant_conv"], "decoder": ["decoder", "post_quant_conv"]}
    ends["both"] = ends["encoder"] + ends["decoder"]
    trained = [w for name, w in vae.named_parameters() if name.split(".")[0] in ends[a.part]]
    side = 2 ** (n - 1)
    some = data[torch.randperm(len(data), generator=g)[:1000]]
    if config["latent_channels"] == 4:
        weights, bias = colors_first(signed(some), side)
    else:
        weights, bias = components(signed(some), side, config["latent_channels"])
    optimizer = torch.optim.AdamW(trained, lr=a.rate, betas=(0.9, 0.99), weight_decay=1e-3)
    half = lambda step: min(1, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * step / a.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, half)
    began, seen = time.time(), []
    for step in range(a.steps):
        x = varied(signed(data[torch.randint(len(data), (a.batch,), generator=g)]), g)
        loss = 0
        with torch.set_grad_enabled(a.part != "decoder"):
            posterior = vae.encode(x).latent_dist
        if a.part != "decoder":
            # With `both`, this pull ends after a third of the steps.
            pull = 1 if a.part == "encoder" else max(0, 1 - 3 * step / a.steps)
            error = (posterior.mean - F.conv2d(x, weights, bias, stride=side)).square().mean()
            loss = pull * (error + 0.01 * (posterior.logvar + 6).square().mean())
        if a.part != "encoder":
            y = vae.decode(posterior.sample(g)).sample
            error = (y - x).square().mean()
            hue = F.avg_pool2d(y - x, 4)
            loss = loss + error + (y - x).abs().mean() + a.hue * (hue - hue.mean(1, keepdim=True)).square().mean()
        if a.part == "both":
            loss = loss + a.divergence * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        seen.append(error.item())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: mse {np.mean(seen[-50:]):.5f}, {(time.time() - began) / 60:.1f} min", flush=True)
    if a.part != "decoder":
        vae.eval()
        with torch.no_grad():
            latents = torch.cat([vae.encode(signed(x)).latent_dist.mean for x in data[:: max(1, len(data) // 2000)].split(64)])
        mean, deviation = latents.mean().item(), latents.std().item()
        print(f"latents: mean {mean:.4f}, deviation {deviation:.4f}", flush=True)
        if a.kind == "flux":
            vae.register_to_config(scaling_factor=round(1 / deviation, 4), shift_factor=round(mean, 4))
        else:
            vae.register_to_config(scaling_factor=round(1 / latents.square().mean().sqrt().item(), 5))
    out = a.save or a.out
    vae.half().save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config.pop("_name_or_path", None)  # a folder of the machine it was made on
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / f"{a.part}.json").write_text(json.dumps([float(np.mean(seen[i : i + 50])) for i in range(0, a.steps, 50)]))


if __name__ == "__main__":
    main()

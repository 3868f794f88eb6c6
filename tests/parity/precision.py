#!/usr/bin/env python3
"""How far diffusers itself is from its float32 golden in lower precision: the measure for ours.

Every section of the goldens that `kiln selftest` compares is computed again, twice:
  bf16   the model's weights and activations in bfloat16, adapters in float32, as the training scripts do with
         `--mixed_precision bf16`; what surrounds the model in float32, noise levels exact
  tf32   float32, with the factors of every product rounded to the 10 bits of TensorFloat-32, as a GPU's tensor cores do
`../fixtures/precision.json` gets, for each pair NAME/ and NAME_golden/ and each tensor, [bf16, tf32]: the root mean square of
the difference over that of the golden. Gradients of one step, and all that was trained, have the largest of theirs: what chance
does to a single one, above all once Adam has divided it by its own size, it may do to another the next time.
"""

import argparse
import json
import os
import re
from contextlib import contextmanager, nullcontext
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}

import golden
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

FIXTURES = Path(__file__).parent.parent / "fixtures"
SEED = 1234  # of golden.py
WANTED = re.compile(
    r"(clip|t5)\.(last_hidden_state|hidden_state_before_last|pooled)|vae\.\d\.(moments|decoded)"
    r"|(transformer|unet)\.\d\.(output|taps\.(x_embedder|context_embedder|double_\d\.\d|single_\d\.\d|conv_in|down_.*|mid|up_.*))"
    r"|pipe\.(txt2img|ip2p)\.(steps|output|decoded_image)"
    r"|train_\w+\.(loss|grad_norm|step\d\.prediction|grad[15]\..*|(final|ema)\..*)"
)
INPUTS = ("hidden_states", "encoder_hidden_states", "pooled_projections", "sample", "pixel_values")
aten = torch.ops.aten
# The arguments of an operation that are factors of products.
FACTORS = {aten.mm: (0, 1), aten.bmm: (0, 1), aten.addmm: (1, 2), aten.baddbmm: (1, 2)}
FACTORS |= {aten.convolution: (0, 1), aten.convolution_backward: (0, 1, 2)}


class Tf32(TorchDispatchMode):
    """Rounds the factors of products to 10 bits, half away from zero, as the instruction cvt.rna.tf32.f32."""

    on = True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        args = list(args)
        for i in FACTORS.get(function.overloadpacket, ()) if self.on else ():
            if torch.is_tensor(args[i]) and args[i].dtype == torch.float32:
                args[i] = ((args[i].contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
        return function(*args, **(kwargs or {}))


def lower(model):
    """A copy in bfloat16 that takes and gives float32. Times stay exact: diffusers would round them, too."""
    if model is None:
        return None
    exact = {}

    def enter(module, args, kwargs):
        low = lambda x: x.bfloat16() if torch.is_tensor(x) and x.dtype == torch.float32 else x
        exact.update({k: v * 1000 for k, v in kwargs.items() if k in ("timestep", "guidance") and v is not None})
        return tuple(low(x) if x.ndim > 1 else x for x in args), {k: low(v) if k in INPUTS else v for k, v in kwargs.items()}

    def leave(module, args, output):
        high = lambda x: x.float() if torch.is_tensor(x) and x.is_floating_point() else x
        if isinstance(output, tuple):
            return tuple(high(x) for x in output)
        for key in list(output) if isinstance(output, dict) else ():
            output[key] = high(output[key])
        return output

    model = model.bfloat16()
    model.register_forward_pre_hook(enter, with_kwargs=True)
    model.register_forward_hook(leave)
    if hasattr(model, "time_text_embed"):
        times = lambda module, args: (*[exact[k] for k in ("timestep", "guidance") if k in exact], args[-1])
        model.time_text_embed.register_forward_pre_hook(times)
    return model


@contextmanager
def exactly(mode):
    """Inside, `mode` and autocast are off."""
    if mode:
        mode.on = False
    with torch.autocast("cpu", enabled=False):
        yield
    if mode:
        mode.on = True


def in_float32(f, mode):
    def g(*args, **kwargs):
        with exactly(mode):
            return f(*args, **kwargs)

    return g


def compute(folder, want, precision):
    """The tensors of a golden in a precision: `f32`, `bf16` or `tf32`."""
    torch.manual_seed(SEED)
    load = lambda: DiffusionPipeline.from_pretrained(folder, local_files_only=True).to(torch.float32)
    pipe, g, mode = load(), golden.Golden(), Tf32() if precision == "tf32" else None
    flux, low = isinstance(pipe, FluxPipeline), precision == "bf16"
    rng = lambda number: golden.Rng(SEED + number, torch.float32)
    name = "transformer" if flux else "unet"
    if low:
        lower(getattr(pipe, name))
    with mode or nullcontext(), sdpa_kernel(SDPBackend.MATH) if mode else nullcontext():
        with torch.no_grad():
            (golden.flux_model if flux else golden.unet_model)(g, pipe, rng(1))
            golden.flux_pipes(g, pipe, rng(3)) if flux else golden.sd_pipes(g, pipe, rng(3), "ip2p")
        if flux:
            # The embeddings and latents of the golden are what our own run starts from.
            pipe.vae.encode, pipe.encode_prompt = (in_float32(f, mode) for f in (pipe.vae.encode, pipe.encode_prompt))
            for part in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
                part.requires_grad_(False)
            linear = [k for k, m in pipe.transformer.named_modules() if isinstance(m, torch.nn.Linear)]
            golden.save_lora = lambda *_: None
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                golden.train_flux(g, pipe, rng(6), Path(), "train_lora", golden.FLUX_LORA, 4, 4, "none", folder)
                golden.train_flux(g, pipe, rng(7), Path(), "train_lora_all", linear, 4, 8, "cosmap", folder)
        else:  # the whole model is not trained in bf16: its steps are smaller than the rounding
            golden.train_ip2p(g, pipe, rng(6), folder, steps=1 if low else 5)
        pipe = load()
        with torch.no_grad():
            if low:
                for part in ("text_encoder", "text_encoder_2"):
                    lower(getattr(pipe, part, None))
                pipe.vae.bfloat16()
            golden.text(g, pipe)
            dtype = pipe.vae.dtype
            for i in range(2):
                pixels, sample = (want[f"vae.{i}.{part}"].to(dtype) for part in ("pixels", "sample"))
                g.put(f"vae.{i}", moments=pipe.vae.encode(pixels).latent_dist.parameters, decoded=pipe.vae.decode(sample).sample)
    return g.tensors


def measure(folder):
    want = load_file(folder.parent / f"{folder.name}_golden" / "golden.safetensors")
    table = {}
    for precision in ("f32", "bf16", "tf32"):
        for key, got in compute(folder, want, precision).items():
            one_step = precision == "bf16" and key.startswith(("train_ip2p.final", "train_ip2p.ema"))
            if not WANTED.fullmatch(key) or one_step:
                continue
            exact, got = want[key].double(), got.double()
            size = exact.norm().item()
            if got.shape != exact.shape:  # fewer steps
                exact = exact[: len(got)]
            error = ((got - exact).norm() / exact.norm()).item() if size else got.norm().item()
            if precision == "f32":
                assert error < 1e-3, f"{folder.name}: {key} is not the golden's: {error}"
            else:
                row = table.setdefault(re.sub(r"\.(grad[15]|final)\..*", r".\1", key), {})
                row[precision] = max(row.get(precision, 0), float(f"{error:.2g}"))
    return {key: [row.get("bf16"), row["tf32"]] for key, row in sorted(table.items())}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("names", nargs="*", default=["flux", "flux_schnell_bf16", "ip2p"])
    p.add_argument("--out", type=Path, default=FIXTURES / "precision.json")
    a = p.parse_args()
    golden.diffusers.utils.logging.disable_progress_bar()
    golden.transformers.logging.disable_progress_bar()
    models = []
    for name in a.names:
        rows = [f'    {json.dumps(key)}: {json.dumps(row)}' for key, row in measure(FIXTURES / name).items()]
        models.append(f'  {json.dumps(name)}: {{\n' + ",\n".join(rows) + "\n  }")
    a.out.write_text("{\n" + ",\n".join(models) + "\n}\n")


if __name__ == "__main__":
    main()

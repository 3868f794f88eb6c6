#!/usr/bin/env python3
"""What PyTorch takes for the work that `kiln bench` measures: diffusers, transformers and PEFT, on the same device.

kiln starts it once (`kiln bench --peer "python3 benches/peer.py"`), writes one JSON request a line and reads one JSON
response a line; everything else goes to standard error. Weights and inputs are random, so nothing is downloaded.

    {"case": "train", "model": "flux", "targets": "attention", "rank": 16, "size": 1024, "batch": 1, "device": "cuda:0"}
    {"variants": [{"name": "eager", "seconds": [..], "first_seconds": .., "device_peak_bytes": .., ..}, ..], "versions": {..}}

The keys of a request, all with defaults: `case`, `model` (flux, unet), `device`, `size` of the picture, `batch`, `repeats`,
`rank`, `targets` (attention, all; a UNet is trained whole without it), `layers` (FLUX's [double, single] blocks), `small`
(the shapes of src/bench/shape.rs), `text_tokens`, `dtype` (bf16, f32), `variants`, `path`
(load), and `operation` with `shape`.

What a training step is: draw noise and noise level, forward, loss, backward, clip by the common norm, fused AdamW, zero the
gradients. Its numbers are held as in diffusers' scripts with --mixed_precision=bf16: a frozen base in bf16, all that is
trained and its moments in f32, autocast around the forward pass. A variant is any of these words joined by `_`:

- eager, compiled (torch.compile of every block), checkpointing (gradient checkpointing of every block);
- f32: everything in f32 without autocast; bf16: everything in bf16 without autocast, the least that PyTorch can be asked to do.

`seconds` are whole steps or calls after a first one, which is `first_seconds` and holds compilation; the device is waited for
before and after. Of operations, each is the mean of as many calls as fill 20 ms, over inputs that take turns so that no cache
holds them. `device_peak_bytes` is the most that tensors held in the repeats, weights included; `device_peak_reserved_bytes`
is what the allocator held for them; `first_device_peak_bytes` is the peak before that, from making the model to the end of
the first call. All three are null on a CPU. `host_peak_bytes` is the process's resident peak in the variant.
"""

import argparse
import contextlib
import functools
import gc
import itertools
import json
import math
import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}
try:
    import diffusers
    import peft
    import torch
    import torch._dynamo
    import torch._functorch.config
    import transformers
    from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel, UNet2DConditionModel
    from diffusers.models.embeddings import apply_rotary_emb
    from diffusers.training_utils import cast_training_params
    from safetensors.torch import load_file, save_file
    from torch.nn import functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
except ImportError as missing:
    sys.exit(f"peer.py needs `pip install torch diffusers transformers peft`: {missing}")

# Otherwise a block that was compiled for too many shapes goes on uncompiled without a word.
torch._dynamo.config.recompile_limit = 256

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
WORDS = {"eager", "compiled", "checkpointing", "f32", "bf16", "pinned", "pageable"}
TRAIN = ["eager", "checkpointing", "compiled", "compiled_checkpointing"]
PLAIN = ["eager", "compiled"]
ONLY = []  # of --variants; empty: all
CLIP_TOKENS = 77
GUIDANCE = 3.5


class Problem(Exception):
    """A request that cannot be met; its text is the whole answer."""


class Request(dict):
    """A request, with its defaults, and what follows from it."""

    DEFAULTS = dict(
        case="train", model="flux", size=1024, batch=1, repeats=5, rank=16, device="cuda:0", dtype="bf16", small=False,
        text_tokens=512, steps=1,
    )  # fmt: skip

    def __init__(self, request):
        super().__init__(self.DEFAULTS | request)
        self.device = torch.device(self["device"])
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise Problem("this PyTorch finds no CUDA device")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device.index or 0)
        if self["dtype"] not in DTYPES:
            raise Problem(f"`{self['dtype']}` is not a dtype: bf16 or f32")
        self.dtype = DTYPES[self["dtype"]]
        self.latent = self["size"] // 8

    def __getattr__(self, key):
        return self.get(key)

    def words(self, variant):
        words = set(variant.split("_"))
        if words - WORDS:
            raise Problem(f"`{variant}` is not a variant: join some of {', '.join(sorted(WORDS))} by `_`")
        return words

    def weights_dtype(self, words):
        """The element type of frozen weights."""
        return torch.float32 if "f32" in words else torch.bfloat16 if "bf16" in words else self.dtype

    def randn(self, *shape, dtype=None):
        return torch.randn(shape, device=self.device, dtype=dtype or self.dtype)


# --- Models -----------------------------------------------------------------------------------------------------------


def random_model(build, device, dtype):
    """A model whose weights are drawn where they are needed: the host never holds them."""
    with torch.device("meta"):
        model = build()
    model = model.to(dtype).to_empty(device=device)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:  # unit gain
                p.normal_(std=p[0].numel() ** -0.5)
            else:  # norms scale by about 1
                p.normal_(mean=float("norm" in name and name.endswith("weight")), std=0.02)
        for b in model.buffers():  # position ids
            b.copy_(torch.arange(b.numel(), device=device).view_as(b))
    return model.requires_grad_(False)


class Flux:
    """FLUX.1-dev's transformer; its step is that of train_dreambooth_lora_flux.py."""

    # What kiln and that script call by default; kiln's name for it is `attention`.
    ATTENTION = "attn.to_k attn.to_q attn.to_v attn.to_out.0 attn.add_k_proj attn.add_q_proj attn.add_v_proj attn.to_add_out "
    ATTENTION = (ATTENTION + "ff.net.0.proj ff.net.2 ff_context.net.0.proj ff_context.net.2").split()
    SMALL = dict(
        num_layers=4, num_single_layers=8, attention_head_dim=64, num_attention_heads=8, joint_attention_dim=512,
        pooled_projection_dim=256, axes_dims_rope=[8, 28, 28],
    )  # fmt: skip
    variants = staticmethod(lambda request: TRAIN)
    WHOLE = False

    def __init__(self, request, dtype):
        shape = dict(guidance_embeds=True) | (self.SMALL if request.small else {})
        if request.layers:
            shape["num_layers"], shape["num_single_layers"] = request.layers
        self.request = request
        self.model = random_model(lambda: FluxTransformer2DModel(**shape), request.device, dtype)
        c, b, n = self.model.config, request.batch, request.latent
        self.tokens, self.latents = (n // 2) ** 2, (b, c.in_channels // 4, n, n)
        self.inputs = dict(
            encoder_hidden_states=request.randn(b, request.text_tokens, c.joint_attention_dim, dtype=dtype),
            pooled_projections=request.randn(b, c.pooled_projection_dim, dtype=dtype),
            guidance=torch.full([b], GUIDANCE, device=request.device),
            txt_ids=torch.zeros(request.text_tokens, 3, device=request.device, dtype=dtype),
            img_ids=FluxPipeline._prepare_latent_image_ids(b, n // 2, n // 2, request.device, dtype), return_dict=False,
        )  # fmt: skip
        self.dtype = dtype

    def blocks(self):
        return [*self.model.transformer_blocks, *self.model.single_transformer_blocks]

    def loss(self, autocast):
        b, c, h, w = self.latents
        latents, noise = (self.request.randn(*self.latents, dtype=self.dtype) for _ in range(2))
        sigma = torch.rand(b, device=self.request.device)
        s = sigma.view(-1, 1, 1, 1).to(self.dtype)
        x = FluxPipeline._pack_latents((1 - s) * latents + s * noise, b, c, h, w)
        with autocast:
            velocity = self.model(hidden_states=x, timestep=sigma, **self.inputs)[0]
        velocity = FluxPipeline._unpack_latents(velocity, h * 8, w * 8, 8)
        return ((velocity.float() - (noise - latents).float()) ** 2).mean()

    def denoise(self):
        x, sigma = self.request.randn(self.request.batch, self.tokens, self.model.config.in_channels, dtype=self.dtype), 0.7
        timestep = torch.full([self.request.batch], sigma, device=self.request.device, dtype=self.dtype)
        velocity = self.model(hidden_states=x, timestep=timestep, **self.inputs)[0]
        return (x.float() - 0.05 * velocity.float()).to(self.dtype)


class UNet:
    """Stable Diffusion 1.5's UNet with 8 input channels; its step is that of train_instruct_pix2pix.py."""

    # kiln's `attention`: what diffusers' LoRA scripts train.
    ATTENTION = "to_k to_q to_v to_out.0".split()
    FULL = dict(in_channels=8, cross_attention_dim=768, attention_head_dim=8)
    SMALL = dict(sample_size=32, block_out_channels=[64, 128, 256, 256], cross_attention_dim=256)
    # kiln trains a whole UNet in f32, and an adapter beside a base in bf16.
    variants = staticmethod(lambda request: TRAIN if request.targets else TRAIN + [f"{name}_f32" for name in TRAIN])
    WHOLE = True

    def __init__(self, request, dtype):
        shape = self.FULL | (self.SMALL if request.small else {})
        self.request, self.dtype = request, dtype
        self.model = random_model(lambda: UNet2DConditionModel(**shape), request.device, dtype)
        self.latents = (request.batch, 4, request.latent, request.latent)
        self.text = request.randn(request.batch, CLIP_TOKENS, self.model.config.cross_attention_dim, dtype=dtype)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # "scaled_linear"
        self.alphas = (1 - betas).cumprod(0).float().to(request.device)

    def blocks(self):
        return [*self.model.down_blocks, self.model.mid_block, *self.model.up_blocks]

    def loss(self, autocast):
        latents, noise, original = (self.request.randn(*self.latents, dtype=self.dtype) for _ in range(3))
        t = torch.randint(0, 1000, [self.request.batch], device=self.request.device)
        alpha = self.alphas[t].view(-1, 1, 1, 1).to(self.dtype)
        x = torch.cat([alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, original], 1)
        with autocast:
            prediction = self.model(x, t, self.text, return_dict=False)[0]
        return F.mse_loss(prediction.float(), noise.float())

    def denoise(self):
        x, original = (self.request.randn(*self.latents, dtype=self.dtype) for _ in range(2))
        sigma, next_sigma = 5.0, 4.5
        y = torch.cat([x / (sigma**2 + 1) ** 0.5, original], 1)
        noise = self.model(y, torch.full([x.shape[0]], 700, device=x.device), self.text, return_dict=False)[0]
        return (x.float() + (next_sigma - sigma) * noise.float()).to(self.dtype)


DENOISERS = {"flux": Flux, "unet": UNet}


def denoiser(request):
    if request.model not in DENOISERS:
        raise Problem(f"`{request.model}` is not a model: {' or '.join(DENOISERS)}")
    return DENOISERS[request.model]


def fused_attention(device, trained=False):
    """On a GPU, an error instead of attention that writes all scores to memory.

    Training goes without cuDNN's: with torch 2.11 and cuDNN 9.19 on an H100, the backward pass of FLUX.1's step ended with an
    illegal memory access. Which kernel it was is not known; torch's own choice there would have been cuDNN.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    known = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    return sdpa_kernel(known if trained else [SDPBackend.CUDNN_ATTENTION, *known])


def compile_blocks(blocks, words):
    for block in blocks if "compiled" in words else []:
        block.compile(dynamic=False)


# --- Cases: each takes a request and the words of a variant, and returns what is timed ----------------------------------


def train(request, words):
    kind = denoiser(request)
    whole = kind.WHOLE and not request.targets
    plain = words & {"f32", "bf16"} or request.dtype == torch.float32
    network = kind(request, torch.float32 if whole and not plain else request.weights_dtype(words))
    model = network.model
    if whole:
        model.requires_grad_(True)
    else:
        targets = {
            "attention": kind.ATTENTION,
            "all": [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)],
        }  # fmt: skip
        if request.targets not in (None, *targets):
            raise Problem(f"`{request.targets}` is not a set of targets: {' or '.join(targets)}")
        rank, layers = request.rank, targets[request.targets or "attention"]
        model.add_adapter(peft.LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=layers))
        if "bf16" not in words:
            cast_training_params(model, dtype=torch.float32)
    model.train()
    if "checkpointing" in words:
        model.enable_gradient_checkpointing()
    compile_blocks(network.blocks(), words)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-2 if whole else 1e-4, fused=True)
    autocast = torch.autocast(request.device.type, torch.bfloat16, enabled=not plain)

    def run():
        with fused_attention(request.device, trained=True):
            loss = network.loss(autocast)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return run


def sample(request, words):
    network = denoiser(request)(request, request.weights_dtype(words))
    compile_blocks(network.blocks(), words)

    @torch.no_grad()
    def run():
        with fused_attention(request.device):
            for _ in range(request.steps):
                latents = network.denoise()
            return latents

    return run


def vae(request, words):
    """FLUX's autoencoder."""
    shape = dict(
        block_out_channels=[32, 32, 64, 64] if request.small else [128, 256, 512, 512], layers_per_block=2, latent_channels=16,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, use_quant_conv=False,
        use_post_quant_conv=False, sample_size=1024,
    )  # fmt: skip
    dtype, b, n, size = request.weights_dtype(words), request.batch, request.latent, request.size
    model, encode = random_model(lambda: AutoencoderKL(**shape), request.device, dtype), request.case == "vae_encode"
    compile_blocks([model.encoder if encode else model.decoder], words)

    @torch.no_grad()
    def run():
        if encode:
            return model.encode(request.randn(b, 3, size, size, dtype=dtype)).latent_dist.sample()
        return model.decode(request.randn(b, 16, n, n, dtype=dtype)).sample

    return run


def text_encoder(request, words):
    """T5-XXL over 512 tokens or CLIP-L over 77."""
    if request.case == "t5":
        shape = dict(d_model=4096, d_ff=10240, num_layers=24, num_heads=64)
        if request.small:
            shape = dict(d_model=128, d_ff=320, num_layers=2, num_heads=2)
        config, kind = T5Config(vocab_size=32128, d_kv=64, feed_forward_proj="gated-gelu", **shape), T5EncoderModel
        tokens = request.text_tokens
    else:
        shape = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        if request.small:
            shape = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2)
        config, kind = CLIPTextConfig(vocab_size=49408, projection_dim=768, eos_token_id=49407, **shape), CLIPTextModel
        tokens = CLIP_TOKENS
    model = random_model(lambda: kind(config), request.device, request.weights_dtype(words)).eval()
    if "compiled" in words:
        model.compile(dynamic=False)

    @torch.no_grad()
    def run():
        ids = torch.randint(2, config.vocab_size - 2, (request.batch, tokens), device=request.device)
        return model(ids)[0]

    return run


def load(request, words):
    """Every safetensors file under a folder, to the device as it is."""
    files = sorted(Path(request.path or "").rglob("*.safetensors")) if request.path else []
    if not files:
        raise Problem(f"`path` must be a folder with safetensors files, and is {request.path!r}")
    return lambda: [load_file(file, device=str(request.device)) for file in files]


# --- Operations: each takes a request, and returns how to make one set of inputs, and the function ---


def linear(r):
    m, k, n = r.shape
    return lambda: [r.randn(m, k), r.randn(n, k) * k**-0.5, r.randn(n)], F.linear


def matmul_ceiling(r):
    m, k, n = r.shape
    return lambda: [r.randn(m, k), r.randn(k, n)], torch.mm


def attention(r):
    b, heads, tokens, size = r.shape

    def function(q, k, v):
        with fused_attention(r.device):
            return F.scaled_dot_product_attention(q, k, v)

    # As diffusers hands them over: in memory, heads are the third axis.
    return lambda: [r.randn(b, tokens, heads, size).transpose(1, 2) for _ in range(3)], function


def layer_norm_modulate(r):
    b, tokens, width = r.shape
    function = lambda x, shift, scale: F.layer_norm(x, (width,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    return lambda: [r.randn(b, tokens, width), r.randn(b, width), r.randn(b, width)], function


def rms_norm_rope(r):
    b, tokens, heads, size = r.shape

    def inputs():
        angles = torch.randn(tokens, size // 2, device=r.device).repeat_interleave(2, -1)
        return [r.randn(b, tokens, heads, size), 1 + 0.1 * r.randn(size), angles.cos(), angles.sin()]

    return inputs, lambda x, weight, *angles: apply_rotary_emb(F.rms_norm(x, (size,), weight, 1e-6), angles, sequence_dim=1)


def gelu_tanh(r):
    return lambda: [r.randn(*r.shape)], lambda x: F.gelu(x, approximate="tanh")


def gated_add(r):
    b, tokens, width = r.shape
    function = lambda x, gate, y: x + gate.unsqueeze(1) * y
    return lambda: [r.randn(b, tokens, width), r.randn(b, width), r.randn(b, tokens, width)], function


def adamw(r):
    """Shape [numbers], or [tensors, numbers of each]; in f32, moments too."""
    tensors, numbers = (1, *r.shape)[-2:]
    parameters = [r.randn(numbers, dtype=torch.float32).requires_grad_() for _ in range(tensors)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    return lambda: [], torch.optim.AdamW(parameters, lr=1e-4, fused=True).step


def copy(r):
    return lambda: [r.randn(*r.shape), r.randn(*r.shape)], lambda to, source: to.copy_(source)


def upload(r):
    """Host to device, from pinned memory in the variant of that name."""
    host = lambda: torch.randn(r.shape).to(r.dtype)
    make = (lambda: [host().pin_memory()]) if r.variant == "pinned" else (lambda: [host()])
    return make, lambda x: x.to(r.device, non_blocking=True)


OPERATIONS = {f.__name__: f for f in (
    linear, matmul_ceiling, attention, layer_norm_modulate, rms_norm_rope, gelu_tanh, gated_add, adamw, copy, upload,
)}  # fmt: skip
CHAINS = {"layer_norm_modulate", "rms_norm_rope", "gelu_tanh", "gated_add"}
# The inputs of which training with frozen weights needs gradients, where that is not the first alone.
TRACKED = {"attention": [0, 1, 2], "gated_add": [0, 2]}


def operation_name(request):
    """The operation, and whether its backward pass is meant."""
    asked = request.operation or ""
    name = asked.removesuffix("_forward").removesuffix("_backward")
    if name not in OPERATIONS:
        raise Problem(f"`{asked}` is not an operation: {', '.join(OPERATIONS)}, or one of them with _forward or _backward")
    return name, asked.endswith("_backward")


def operation_variants(request):
    name, _ = operation_name(request)
    return ["pinned", "pageable"] if name == "upload" else PLAIN if name in CHAINS else ["eager"]


def operation(request, words):
    """Of a backward pass, only that is timed: the forward pass is done before, its graph is kept, and each set of inputs has an
    output gradient of its own."""
    name, backward = operation_name(request)
    try:
        make, function = OPERATIONS[name](request)
    except (TypeError, ValueError):
        raise Problem(f"{request.shape} is not a shape of {name}") from None
    if "compiled" in words:
        function = torch.compile(function, dynamic=False)
    sets = [make()]
    held = sum(x.numel() * x.element_size() for x in sets[0])
    # In all, at least four times the second-level cache of an H200 (60 MB).
    sets += [make() for _ in range(min(63, math.ceil(240e6 / held)) if held and request.device.type == "cuda" else 1)]

    def pull(inputs):
        leaves = [inputs[i].requires_grad_() for i in TRACKED.get(name, [0])]
        y = function(*inputs)
        dy = torch.randn_like(y)
        return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)[0]

    calls = [pull(inputs) if backward else functools.partial(function, *inputs) for inputs in sets]
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


# --- Measuring --------------------------------------------------------------------------------------------------------

CASES = {
    "train": (train, lambda request: denoiser(request).variants(request)),
    "sample": (sample, lambda request: PLAIN),
    "vae_encode": (vae, lambda request: PLAIN),
    "vae_decode": (vae, lambda request: PLAIN),
    "t5": (text_encoder, lambda request: PLAIN),
    "clip": (text_encoder, lambda request: PLAIN),
    "load": (load, lambda request: ["eager"]),
    "operation": (operation, operation_variants),
}


def clock(device, run, count=1):
    """Seconds a call."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda device: None
    wait(device)
    start = time.perf_counter()
    for _ in range(count):
        run()
    wait(device)
    return (time.perf_counter() - start) / count


def device_peak(device):
    """The most bytes that tensors, and that the allocator, held since the last call."""
    if device.type != "cuda":
        return None, None
    peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peaks


def host_peak():
    """Peak resident bytes since the last call, or since the start where Linux does not let it be reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measure(make, request, words):
    device = request.device
    device_peak(device), host_peak()
    run = make(request, words)
    first = clock(device, run)
    first_peak, _ = device_peak(device)
    count = 1
    if request.case == "operation":
        clock(device, run, 16)
        count = min(1000, math.ceil(0.02 / max(clock(device, run, 4), 1e-7)))
    seconds = [clock(device, run, count) for _ in range(request.repeats)]
    peak, reserved = device_peak(device)
    result = run()
    if isinstance(result, torch.Tensor) and not result.isfinite().all():
        raise Problem("the result has numbers that are not finite")
    peaks = dict(device_peak_bytes=peak, device_peak_reserved_bytes=reserved, first_device_peak_bytes=first_peak)
    return dict(seconds=seconds, first_seconds=first, **peaks, host_peak_bytes=host_peak())


def attempt(work):
    """What the work returns; or what went wrong, as a dictionary, with everything freed."""
    try:
        return work()
    except Problem as problem:
        return {"error": str(problem)}
    except Exception as error:
        traceback.print_exc()
        text = (str(error).strip() or repr(error)).splitlines()[0]
        memory = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
        return {"error": f"out of memory: {text}" if memory else f"{type(error).__name__}: {text}"}


def variant(request, name):
    make, _ = CASES[request.case]
    request.variant = name
    # The backward passes of operations run more than once over what one forward pass kept.
    torch._functorch.config.donated_buffer = request.case != "operation"
    result = attempt(lambda: measure(make, request, request.words(name)))
    # Outside of the handler: the error holds the frames, and these the tensors.
    torch._dynamo.reset()
    gc.collect()
    if request.device.type == "cuda":
        torch.cuda.empty_cache()
    return {"name": name, **result}


def versions(device):
    cuda, matmul = torch.backends.cuda, torch.backends.cuda.matmul
    attention = dict(flash=cuda.flash_sdp_enabled(), cudnn=cuda.cudnn_sdp_enabled(), efficient=cuda.mem_efficient_sdp_enabled())
    numbers = {library.__name__: library.__version__ for library in (torch, diffusers, peft, transformers)}
    numbers |= dict(python=platform.python_version(), threads=torch.get_num_threads(), tf32_matmul=matmul.allow_tf32)
    numbers |= dict(tf32_convolution=torch.backends.cudnn.allow_tf32, attention=" ".join(k for k, on in attention.items() if on))
    if device.type == "cuda":
        numbers |= dict(device=torch.cuda.get_device_name(device), cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    return {name: str(value) for name, value in numbers.items()}


def respond(request):
    def work():
        if not isinstance(request, dict):
            raise Problem("a request is a JSON object")
        known = Request(request)
        if known.case not in CASES:
            raise Problem(f"`{known.case}` is not a case: {', '.join(CASES)}")
        names = known.variants or [name for name in CASES[known.case][1](known) if name in (ONLY or [name])]
        return {"variants": [variant(known, name) for name in names], "versions": versions(known.device)}

    return attempt(work)


def self_check():
    """Every case at a tiny size on the CPU; fails if any variant does."""
    torch.set_num_threads(1)  # on a busy machine more would wait for each other
    small = dict(device="cpu", small=True, layers=[1, 1], size=64, text_tokens=16, repeats=2, rank=4)
    requests = [small | dict(case="train", model="flux", targets=targets) for targets in ("attention", "all")]
    requests += [small | dict(case="train", model="flux", variants=["eager_f32", "compiled_checkpointing_bf16"])]
    # Compiled for a CPU, the many kinds of blocks of a UNet take many minutes.
    unet = small | dict(case="train", model="unet")
    requests += [unet | dict(variants=["eager", "checkpointing", "eager_f32"])]
    requests += [unet | dict(targets="attention", variants=TRAIN[:2])]
    requests += [small | dict(case="sample", model="flux"), small | dict(case="sample", model="unet", variants=["eager"])]
    requests += [small | dict(case=case) for case in ("vae_encode", "vae_decode", "t5", "clip")]
    shapes = dict(
        linear=[64, 32, 48], matmul_ceiling=[64, 64, 64], attention=[1, 2, 64, 32], layer_norm_modulate=[2, 16, 64],
        rms_norm_rope=[2, 16, 4, 32], gelu_tanh=[2, 16, 64], gated_add=[2, 16, 64], adamw=[4, 1000], copy=[10000],
    )  # fmt: skip
    run = small | dict(case="operation")
    requests += [run | dict(operation=name, shape=shape) for name, shape in shapes.items()]
    backward = ("linear", "attention", *sorted(CHAINS))
    requests += [run | dict(operation=f"{name}_backward", shape=shapes[name]) for name in backward]
    requests += [run | dict(operation="upload", shape=[10000], variants=["pageable"])]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        save_file({"x": torch.randn(100, 100)}, Path(folder, "x.safetensors"))
        for request in [*requests, small | dict(case="load", path=folder)]:
            response = respond(request)
            failed += "error" in response or any("error" in each for each in response["variants"])
            print(json.dumps(request), json.dumps(response), "", sep="\n", flush=True)
    sys.exit(f"{failed} of {len(requests) + 1} requests failed" if failed else 0)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--self-check", action="store_true", help="run every case at a tiny size on the CPU and print the responses")
    p.add_argument("--variants", metavar="NAME,…", help="run only those of each case's variants that are named here")
    args = p.parse_args()
    if args.self_check:
        self_check()
    ONLY.extend(filter(None, (args.variants or "").split(",")))
    # Libraries print too: what they write to standard output goes to standard error.
    responses = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(attempt(lambda: respond(json.loads(line)))), file=responses, flush=True)


if __name__ == "__main__":
    main()

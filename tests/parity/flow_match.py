"""Runs of diffusers' FlowMatchEulerDiscreteScheduler with the settings that FLUX.1's own file leaves off
-> ../fixtures/flow_match.safetensors

    python flow_match.py

Each case is set up as FluxPipeline does it: sigmas from 1 to 1/steps, `mu` by the number of image tokens. All cases share
`start`, `noise` and `model_output`; each has its sigmas and the latents after every call. The settings are in the file's metadata.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from safetensors.torch import save_file

CALLS, SHAPE = 12, (1, 2, 2, 2)
DEV = dict(shift=3.0, use_dynamic_shifting=True)
LINEAR = dict(DEV, time_shift_type="linear")
KARRAS, EXPONENTIAL, BETA = (dict([(f"use_{s}_sigmas", True)]) for s in ("karras", "exponential", "beta"))

# settings, steps, image tokens
CASES = [
    *((dict(DEV, **s), n, 1024) for s in (KARRAS, EXPONENTIAL, BETA) for n in (1, 2, 6, 12)),
    *((dict(shift=3.0, **s), 6, 0) for s in (KARRAS, EXPONENTIAL, BETA)),
    *((dict(DEV, shift_terminal=t), n, 4096) for t in (0.02, 0.3) for n in (2, 6)),
    (dict(shift_terminal=0.1), 4, 0), (dict(shift_terminal=0.0), 4, 0),
    *((LINEAR, n, tokens) for n, tokens in ((1, 256), (6, 256), (6, 4096))),
    (dict(LINEAR, shift_terminal=0.1, **KARRAS), 6, 1024), (dict(DEV, shift_terminal=0.1, **BETA), 6, 1024),
    (dict(DEV, base_shift=0.7, max_shift=1.5, base_image_seq_len=100, max_image_seq_len=900, **EXPONENTIAL), 6, 400),
    *((dict(DEV, stochastic_sampling=True), n, 1024) for n in (1, 6)),
    (dict(shift=3.0, stochastic_sampling=True, **KARRAS), 6, 0),
]  # fmt: skip


def main():
    rng = torch.Generator().manual_seed(0)
    start, noise, outputs = (torch.randn(*n, *SHAPE, generator=rng) for n in ((), (CALLS,), (CALLS,)))
    tensors, cases = dict(start=start, noise=noise, model_output=outputs), []
    for i, (settings, steps, tokens) in enumerate(CASES):
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(settings)
        config = scheduler.config
        mu = calculate_shift(
            tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
        )
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        scheduler.set_begin_index(0)
        fresh, x, samples = iter(noise), start, []
        sys.modules[type(scheduler).__module__].randn_tensor = lambda *a, **k: next(fresh)
        for output, t in zip(outputs, scheduler.timesteps):
            x = scheduler.step(output, t, x, return_dict=False)[0]
            samples.append(x)
        case = dict(sigmas=scheduler.sigmas, prev_sample=torch.stack(samples))
        assert all(v.isfinite().all() for v in case.values()), (settings, steps)
        tensors.update({f"{i}.{k}": v.contiguous() for k, v in case.items()})
        cases.append(dict(settings, _class_name="FlowMatchEulerDiscreteScheduler", steps=steps, image_tokens=tokens))
    path = Path(__file__).parent.parent / "fixtures" / "flow_match.safetensors"
    save_file(tensors, path, metadata=dict(cases=json.dumps(cases)))
    print(path, path.stat().st_size, "bytes,", len(cases), "cases")


if __name__ == "__main__":
    main()

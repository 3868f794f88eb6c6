"""Runs of diffusers' samplers that golden.py does not have -> ../fixtures/samplers.safetensors, samplers_more.safetensors

    python samplers.py

Other beta schedules, v prediction, solver orders, runs that start late (image to image), one step. All cases share `start`,
`noise` and `model_output`; each has its timesteps, its sigmas if any, the latents that it starts from (`added`: `start` with
`noise[0]` at call `begin`) and the latents after every call. The arguments of the cases are in the file's metadata.
"""

import json
import sys
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file

CALLS, SHAPE = 24, (1, 2, 2, 2)
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
LINEAR, COSINE = dict(beta_schedule="linear"), dict(beta_schedule="squaredcos_cap_v2")
V = dict(BETAS, prediction_type="v_prediction")
ZERO = dict(V, rescale_betas_zero_snr=True, timestep_spacing="trailing")
LEADING, TRAILING, LINSPACE = (dict(timestep_spacing=s) for s in ("leading", "trailing", "linspace"))
DPM = "DPMSolverMultistep"

# class, settings, steps, first call
CASES = [
    ("DDPM", dict(LINEAR, clip_sample=False), 8, 0), ("DDPM", COSINE, 8, 0), ("DDPM", V, 8, 3),
    ("DDPM", dict(BETAS, **LINSPACE), 5, 0), ("DDPM", dict(BETAS, **TRAILING, variance_type="fixed_large"), 7, 0),
    ("DDPM", dict(ZERO, clip_sample=False), 5, 0), ("DDPM", BETAS, 1, 0),
    ("DDIM", LINEAR, 8, 0), ("DDIM", dict(COSINE, clip_sample_range=2.0), 8, 0),
    ("DDIM", dict(V, set_alpha_to_one=False, steps_offset=1), 8, 3), ("DDIM", dict(BETAS, **LINSPACE), 7, 0),
    ("DDIM", ZERO, 5, 0), ("DDIM", BETAS, 1, 0),
    ("PNDM", dict(LINEAR, skip_prk_steps=True), 8, 0), ("PNDM", dict(COSINE, skip_prk_steps=True), 8, 1),
    ("PNDM", dict(V, skip_prk_steps=True, steps_offset=1), 8, 0), ("PNDM", dict(V, skip_prk_steps=True), 8, 4),
    ("PNDM", dict(BETAS, skip_prk_steps=True, set_alpha_to_one=True, **TRAILING), 7, 2),
    ("PNDM", dict(BETAS, skip_prk_steps=True, **LINSPACE), 6, 0), ("PNDM", dict(BETAS, skip_prk_steps=True), 1, 0),
    ("PNDM", dict(BETAS, skip_prk_steps=True), 2, 0),
    ("EulerDiscrete", LINEAR, 8, 0), ("EulerDiscrete", COSINE, 8, 0), ("EulerDiscrete", V, 8, 3),
    ("EulerDiscrete", dict(V, use_karras_sigmas=True, **LEADING, steps_offset=1), 8, 2),
    ("EulerDiscrete", dict(BETAS, final_sigmas_type="sigma_min", **TRAILING), 7, 0),
    ("EulerDiscrete", ZERO, 5, 0), ("EulerDiscrete", BETAS, 1, 0),
    ("EulerAncestralDiscrete", LINEAR, 8, 0), ("EulerAncestralDiscrete", COSINE, 8, 0),
    ("EulerAncestralDiscrete", V, 8, 3), ("EulerAncestralDiscrete", dict(BETAS, **TRAILING), 7, 0),
    ("EulerAncestralDiscrete", ZERO, 5, 0), ("EulerAncestralDiscrete", BETAS, 1, 0),
    (DPM, dict(BETAS, solver_order=1), 8, 0), (DPM, dict(BETAS, solver_order=3), 8, 0),
    (DPM, dict(BETAS, solver_order=3), 16, 0), (DPM, dict(BETAS, solver_order=3), 9, 4),
    (DPM, dict(V, solver_order=3, use_karras_sigmas=True), 8, 0), (DPM, V, 8, 3), (DPM, LINEAR, 8, 0), (DPM, COSINE, 8, 0),
    (DPM, dict(COSINE, use_karras_sigmas=True), 8, 0), (DPM, dict(BETAS, **LEADING, steps_offset=1), 8, 0),
    (DPM, dict(BETAS, **TRAILING), 7, 0), (DPM, dict(BETAS, euler_at_final=True, final_sigmas_type="sigma_min"), 16, 0),
    (DPM, dict(BETAS, lower_order_final=False, final_sigmas_type="sigma_min"), 8, 0), (DPM, dict(BETAS, use_karras_sigmas=True), 16, 5),
    (DPM, ZERO, 5, 0), (DPM, BETAS, 1, 0), (DPM, dict(BETAS, use_karras_sigmas=True), 1, 0),
]  # fmt: skip


# In a file of their own: UniPC, Heun, LCM, and the curves of noise levels that other samplers have, too.
CURVES = [dict(BETAS, **{f"use_{curve}_sigmas": True}) for curve in ("karras", "exponential", "beta")]
UNIPC, HEUN = "UniPCMultistep", "HeunDiscrete"
MORE = [
    *[(UNIPC, dict(BETAS, solver_order=order), steps, 0) for order in (1, 2, 3) for steps in (1, 2, 3, 8)],
    (UNIPC, dict(V, solver_type="bh1", final_sigmas_type="sigma_min"), 8, 0),
    (UNIPC, dict(BETAS, solver_order=3, solver_type="bh1", final_sigmas_type="sigma_min"), 9, 3),
    (UNIPC, dict(LINEAR, lower_order_final=False, final_sigmas_type="sigma_min"), 8, 0), (UNIPC, COSINE, 8, 0),
    (UNIPC, dict(BETAS, **LEADING, steps_offset=1), 8, 2), (UNIPC, dict(V, **TRAILING), 7, 0),
    *[(UNIPC, curve, 8, 0) for curve in CURVES], (UNIPC, dict(CURVES[0], final_sigmas_type="sigma_min"), 6, 0),
    (HEUN, BETAS, 8, 0), (HEUN, BETAS, 1, 0), (HEUN, LINEAR, 5, 4), (HEUN, V, 8, 6), (HEUN, dict(BETAS, **TRAILING), 7, 0),
    (HEUN, dict(BETAS, **LEADING, steps_offset=1), 6, 0), *[(HEUN, curve, 6, 0) for curve in CURVES],
    ("LCM", BETAS, 4, 0), ("LCM", BETAS, 1, 0), ("LCM", V, 8, 3), ("LCM", dict(BETAS, original_inference_steps=100, timestep_scaling=7.0), 7, 0),
    *[("EulerDiscrete", curve, 8, 0) for curve in CURVES[1:]], *[(DPM, curve, 8, 0) for curve in CURVES[1:]],
    (DPM, dict(CURVES[2], solver_order=3), 9, 0),
]  # fmt: skip


def main():
    write("samplers", CASES)
    write("samplers_more", MORE)


def write(name, all_cases):
    rng = torch.Generator().manual_seed(0)
    start, noise, outputs = (torch.randn(*n, *SHAPE, generator=rng) for n in ((), (CALLS,), (CALLS,)))
    tensors, cases = dict(start=start, noise=noise, model_output=outputs), []
    for i, (cls, settings, steps, begin) in enumerate(all_cases):
        scheduler = getattr(diffusers, cls + "Scheduler").from_config(settings)
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        timesteps = scheduler.timesteps
        x = scheduler.add_noise(start, noise[0], timesteps[begin : begin + 1])
        case = dict(timesteps=timesteps.float(), added=x)
        if hasattr(scheduler, "sigmas"):
            case["sigmas"] = scheduler.sigmas
        samples, inputs, fresh = [], [], iter(noise[1:])
        sys.modules[type(scheduler).__module__].randn_tensor = lambda *a, **k: next(fresh)
        for output, t in zip(outputs, timesteps[begin:]):
            inputs.append(scheduler.scale_model_input(x, t))
            x = scheduler.step(output, t, x, return_dict=False)[0]
            samples.append(x)
        case.update(prev_sample=torch.stack(samples))
        if "Euler" in cls or "Heun" in cls:
            case.update(model_input=torch.stack(inputs))
        tensors.update({f"{i}.{k}": v.contiguous() for k, v in case.items()})
        cases.append(dict(settings, _class_name=cls + "Scheduler", steps=steps, begin=begin,
                          init_noise_sigma=float(scheduler.init_noise_sigma)))  # fmt: skip
        assert all(v.isfinite().all() for v in case.values()), (cls, settings, steps)
    path = Path(__file__).parent.parent / "fixtures" / f"{name}.safetensors"
    save_file(tensors, path, metadata=dict(cases=json.dumps(cases)))
    print(path, path.stat().st_size, "bytes,", len(cases), "cases")


if __name__ == "__main__":
    main()

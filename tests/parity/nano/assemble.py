#!/usr/bin/env python3
"""Put the parts of a nano model together as a folder of diffusers, its denoiser a `config.json` without weights yet.

    python assemble.py flux PARTS OUT     # PARTS/{text,vae-flux} -> OUT, for `kiln train` with model.init = "random"
    python assemble.py ip2p PARTS OUT     # PARTS/{text,vae-sd} -> OUT
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from make_tiny import SD_COMMON, SD_SCHEDULERS, dump

FLUX = {
    "_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.42.1", "attention_head_dim": 32,
    "axes_dims_rope": [8, 12, 12], "guidance_embeds": False, "in_channels": 64, "joint_attention_dim": 96,
    "num_attention_heads": 5, "num_layers": 1, "num_single_layers": 4, "out_channels": None, "patch_size": 1,
    "pooled_projection_dim": 96,
}  # fmt: skip
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.42.1", "num_train_timesteps": 1000,
        "shift": 1.0, "use_dynamic_shifting": False}  # fmt: skip
UNET = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.42.1", "act_fn": "silu", "attention_head_dim": 4,
    "block_out_channels": [48, 64, 64], "center_input_sample": False, "cross_attention_dim": 96,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"], "downsample_padding": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 8, "layers_per_block": 1, "mid_block_scale_factor": 1,
    "norm_eps": 1e-05, "norm_num_groups": 16, "out_channels": 4, "sample_size": 16,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "use_linear_projection": True,
}  # fmt: skip
# The images are white for the most part, and an edit may make them black: the last timestep is noise alone (Lin et al. 2023).
ZERO = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
COMMON = {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
          "vae": ["diffusers", "AutoencoderKL"], "_diffusers_version": "0.42.1"}  # fmt: skip


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("kind", choices=["flux", "ip2p"])
    p.add_argument("parts", type=Path)
    p.add_argument("out", type=Path)
    a = p.parse_args()
    flux = a.kind == "flux"
    shutil.rmtree(a.out, ignore_errors=True)
    for part in ["tokenizer", "text_encoder"] + ["tokenizer_2", "text_encoder_2"] * flux:
        # As published: a tokenizer of CLIP is a vocabulary and merges.
        ignored = shutil.ignore_patterns(*["tokenizer.json"] * (part == "tokenizer"))
        shutil.copytree(a.parts / "text" / part, a.out / part, ignore=ignored)
    curves = shutil.ignore_patterns("encoder.json", "decoder.json", "both.json")
    shutil.copytree(a.parts / ("vae-flux" if flux else "vae-sd"), a.out / "vae", ignore=curves)
    if flux:  # the longest caption has eight tokens, and each costs as much as one of the image's sixteen
        path = a.out / "tokenizer_2/tokenizer_config.json"
        dump(path, json.loads(path.read_text()) | {"model_max_length": 10})
    for folder in ("scheduler", "transformer" if flux else "unet"):
        (a.out / folder).mkdir()
    if flux:
        dump(a.out / "transformer/config.json", FLUX)
        dump(a.out / "scheduler/scheduler_config.json", FLOW)
        index = COMMON | {
            "_class_name": "FluxPipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder_2": ["transformers", "T5EncoderModel"], "tokenizer_2": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "FluxTransformer2DModel"],
        }  # fmt: skip
    else:
        dump(a.out / "unet/config.json", UNET)
        dump(a.out / "scheduler/scheduler_config.json", SD_SCHEDULERS["ddim"] | SD_COMMON | ZERO)
        index = COMMON | {
            "_class_name": "StableDiffusionInstructPix2PixPipeline", "feature_extractor": [None, None],
            "requires_safety_checker": False, "safety_checker": [None, None], "scheduler": ["diffusers", "DDIMScheduler"],
            "unet": ["diffusers", "UNet2DConditionModel"],
        }  # fmt: skip
    dump(a.out / "model_index.json", dict(sorted(index.items())))


if __name__ == "__main__":
    main()

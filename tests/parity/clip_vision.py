#!/usr/bin/env python3
"""Build a tiny random CLIPModel folder in the layout of openai/clip-vit-large-patch14, and what transformers computes with it.

<folder>                            config.json, preprocessor_config.json, model.safetensors, tokenizer files
<folder>_golden/golden.safetensors  features of pictures and texts, pixel values, similarities
<folder>_golden/golden.json         as golden.py writes it, noise and all
<folder>_golden/*.png               the pictures
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from golden import Golden, Rng
from make_tiny import dump, randomize, write_clip_tokenizer
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

CAPTIONS = ["a photo of a red castle", "a photo of a snowy castle in the rain", ""]
# The first two have the model's own size, so that no resampling stands between them and the similarities.
PICTURES = {"original": (32, 32), "edited": (32, 32), "wide": (101, 47), "tall": (20, 45)}


def make(folder, seed):
    shutil.rmtree(folder, ignore_errors=True)
    vocab = write_clip_tokenizer(folder, seed, 100, with_json=False)
    text = CLIPTextConfig(
        vocab_size=vocab, hidden_size=16, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, projection_dim=12,
        max_position_embeddings=77, hidden_act="quick_gelu", bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3, projection_dim=12, image_size=32,
        patch_size=8, hidden_act="gelu",
    )  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    projections = torch.nn.ModuleDict({"text": model.text_projection, "visual": model.visual_projection})
    for i, part in enumerate([model.text_model, model.vision_model, projections]):
        randomize(part, 1000 * seed + i)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    assert {k.split(".")[0] for k in tensors} == {"logit_scale", "text_model", "text_projection", "vision_model", "visual_projection"}
    for name, count in (("text", 77), ("vision", 17)):  # buffers that the published file has
        tensors[f"{name}_model.embeddings.position_ids"] = torch.arange(count)[None]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    # As published: sizes are plain numbers, and steps that are always taken are not named.
    dump(folder / "preprocessor_config.json", {
        "crop_size": 32, "do_center_crop": True, "do_normalize": True, "do_resize": True, "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 32,
    })  # fmt: skip


def build(folder, out, seed, dtype):
    g, rng = Golden(), Rng(seed, dtype)
    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval().to(dtype)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    pictures = {}
    for name, (w, h) in PICTURES.items():
        pixels = (rng.image(1, h, w)[0].permute(1, 2, 0).float() * 255).round().to(torch.uint8).numpy()
        pictures[name] = Image.fromarray(np.ascontiguousarray(pixels))
        pictures[name].save(out / f"{name}.png")
    pixels = torch.from_numpy(np.stack(processor(list(pictures.values()))["pixel_values"]))
    with torch.no_grad():
        vision = model.get_image_features(pixel_values=pixels.to(dtype))
        g.put("image", pictures=list(pictures), pixel_values=pixels, last_hidden_state=vision.last_hidden_state,
              features=vision.pooler_output, note="features: projected, of whatever length")  # fmt: skip
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        ids = tokenizer(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        text = model.get_text_features(input_ids=ids).pooler_output
        g.put("text", captions=CAPTIONS, input_ids=ids, features=text)
    original, edited = F.normalize(vision.pooler_output[:2], dim=1)
    before, after = F.normalize(text[:2], dim=1)
    image, direction = F.cosine_similarity(original, edited, dim=0), F.cosine_similarity(edited - original, after - before, dim=0)
    g.put("similarity", scores=[image, direction], note="image, direction; of original to edited and of the first caption to the second")
    return g


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    make(a.folder, a.seed)
    out = a.folder.parent / (a.folder.name + "_golden")
    out.mkdir(parents=True, exist_ok=True)
    g, exact = (build(a.folder, out, a.seed + 1, dtype) for dtype in (torch.float32, torch.float64))
    g.save(out, exact, pipeline="CLIPModel", seed=a.seed, versions={m.__name__: m.__version__ for m in (torch, transformers)})
    print(a.folder, {k: [round(x, 5) for x in v.tolist()] for k, v in g.tensors.items() if k.startswith("similarity")})


if __name__ == "__main__":
    main()

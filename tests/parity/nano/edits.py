#!/usr/bin/env python3
"""Make pairs of images for InstructPix2Pix from drawn images: every instruction is carried out exactly.

    python edits.py IMAGES OUT [--from-file NAMES]     # OUT/{original,edited}/*.png and OUT/metadata.jsonl

Needs `numpy pillow`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

DARK = (24, 26, 44)


def black_and_white(image):
    return ImageOps.grayscale(image).convert("RGB")


def upside_down(image):
    return ImageOps.flip(image)


def blue(image):
    light = np.asarray(ImageOps.grayscale(image)).astype(float)
    return Image.fromarray(np.stack([light, light, 255 - (255 - light) * 0.3], 2).round().astype(np.uint8))


def outline(image):
    """Where neighbours differ, in any channel, there is a black line."""
    most, least = (np.asarray(image.filter(f(3))).astype(int) for f in (ImageFilter.MaxFilter, ImageFilter.MinFilter))
    line = np.clip((most - least).max(2) * 1.6, 0, 255)
    return Image.fromarray((255 - line).astype(np.uint8)).convert("RGB")


def dark_background(image):
    """What is connected to the white of the border becomes dark."""
    framed = ImageOps.expand(image, 1, (255, 255, 255))
    ImageDraw.floodfill(framed, (0, 0), DARK, thresh=90)
    return framed.crop((1, 1, image.width + 1, image.height + 1))


EDITS = {
    "make it black and white": (black_and_white, "{} in black and white"),
    "turn it upside down": (upside_down, "{} upside down"),
    "make it blue": (blue, "blue {}"),
    "draw it as an outline": (outline, "an outline of {}"),
    "put it on a dark background": (dark_background, "{} on a dark background"),
}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("images", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--from-file", type=Path, help="the names in this file only, one a line")
    p.add_argument("--only", nargs="*", help="of the instructions, these")
    a = p.parse_args()
    files = sorted(a.images.glob("*.png"))
    if a.from_file:
        wanted = a.from_file.read_text().split()
        files = [f for f in files if f.stem in wanted]
    for part in ("original", "edited"):
        (a.out / part).mkdir(parents=True, exist_ok=True)
    rows = []
    for f in files:
        image, name = Image.open(f).convert("RGB"), f.stem.replace("-", " ")
        image.save(a.out / "original" / f.name, optimize=True)
        for instruction, (edit, caption) in EDITS.items():
            if a.only and instruction not in a.only:
                continue
            to = f"edited/{f.stem}-{edit.__name__.replace('_', '-')}.png"
            edit(image).save(a.out / to, optimize=True)
            rows.append({"original": f"original/{f.name}", "edited": to, "instruction": instruction,
                         "original_caption": name, "edited_caption": caption.format(name)})  # fmt: skip
    (a.out / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} pairs in {a.out}")


if __name__ == "__main__":
    main()

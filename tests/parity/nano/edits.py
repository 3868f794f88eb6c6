#!/usr/bin/env python3
"""Make pairs of images for InstructPix2Pix from an icon package of npm: every instruction is carried out exactly.

    python edits.py known PACKAGE OUT [--without NAMES]     # OUT/{original,edited}/*.png and OUT/metadata.jsonl
    python edits.py lesson PACKAGE OUT [--from-file NAMES]

The package as for `draw.py`. Needs `cairosvg numpy pillow`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from draw import caption, draw, names, read
from PIL import Image, ImageFilter, ImageOps

SIZE = 64


class Icon:
    """An icon drawn on white, and on black: so it can be put on anything."""

    def __init__(self, *icon):
        self.white, self.black = (draw(*icon, SIZE, ground) for ground in ("white", "black"))

    def on(self, color):
        """On a ground of a color."""
        white, black = (np.asarray(image).astype(float) for image in (self.white, self.black))
        return picture(black + (white - black) * np.array(color) / 255)

    def silhouette(self):
        """Black where there is anything."""
        return ImageOps.grayscale(picture(np.asarray(self.white).astype(float) - np.asarray(self.black))).convert("RGB")


def picture(values):
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def tinted(icon, ink):
    """In one ink: what is dark takes its color, and white stays white."""
    light = np.asarray(ImageOps.grayscale(icon.white)).astype(float)[:, :, None] / 255
    return picture(255 * light + np.array(ink) * (1 - light))


def outline(icon):
    """Where neighbors differ, in any channel, there is a black line."""
    most, least = (np.asarray(icon.white.filter(f(3))).astype(float) for f in (ImageFilter.MaxFilter, ImageFilter.MinFilter))
    line = (most - least).max(2, keepdims=True) * 1.6
    return picture((255 - line).repeat(3, 2))


# What the nano model is trained on while it is made, and what the quickstart teaches it.
KNOWN = {
    "make it black and white": (lambda icon: ImageOps.grayscale(icon.white).convert("RGB"), "{} in black and white"),
    "turn it upside down": (lambda icon: ImageOps.flip(icon.white), "{} upside down"),
    "make it blue": (lambda icon: tinted(icon, (0, 0, 178)), "blue {}"),
    "make it red": (lambda icon: tinted(icon, (178, 0, 0)), "red {}"),
    "draw it as an outline": (outline, "an outline of {}"),
    "put it on a dark background": (lambda icon: icon.on((24, 26, 44)), "{} on a dark background"),
}
NEW = {
    "make it green": (lambda icon: tinted(icon, (0, 128, 0)), "green {}"),
    "put it on a yellow background": (lambda icon: icon.on((255, 214, 64)), "{} on a yellow background"),
    "make it a photo negative": (lambda icon: ImageOps.invert(icon.white), "a photo negative of {}"),
    "make it a silhouette": (Icon.silhouette, "a silhouette of {}"),
}
# The model never learned to turn things around, so there is nothing to keep.
KEPT = [instruction for instruction in KNOWN if instruction != "turn it upside down"]


def instructions(chosen, number):
    """What is made of the icon of a number. A lesson is all that is new, and two of the known in turn: so that they are not
    forgotten."""
    if chosen == "lesson":
        return NEW | {instruction: KNOWN[instruction] for instruction in (KEPT[(number + i) % len(KEPT)] for i in (0, 2))}
    return {"known": KNOWN, "all": KNOWN | NEW}[chosen]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("set", choices=["known", "all", "lesson"], help="which instructions")
    p.add_argument("package", type=Path, help="the `package` folder of an unpacked @iconify-json package")
    p.add_argument("out", type=Path)
    p.add_argument("--from-file", type=Path, help="the names in this file only, one a line")
    p.add_argument("--without", type=Path, help="all but the names in this file, one a line")
    a = p.parse_args()
    icons, *side = read(a.package)
    wanted = a.from_file.read_text().split() if a.from_file else names(a.package, icons)
    left_out = a.without.read_text().split() if a.without else []
    for part in ("original", "edited"):
        (a.out / part).mkdir(parents=True, exist_ok=True)
    rows = []
    for number, name in enumerate(sorted(set(wanted) - set(left_out))):
        icon = Icon(icons[name], *side)
        icon.white.save(a.out / f"original/{name}.png", optimize=True)
        for instruction, (edit, edited) in instructions(a.set, number).items():
            to = f"edited/{name}-{instruction.replace(' ', '-')}.png"
            edit(icon).save(a.out / to, optimize=True)
            rows.append({"original": f"original/{name}.png", "edited": to, "instruction": instruction,
                         "original_caption": caption(name), "edited_caption": edited.format(caption(name))})  # fmt: skip
    (a.out / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} pairs in {a.out}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Draw an icon package of npm as 64 x 64 images on white, each with its name as the caption.

Fetches nothing. The packages come from npm's registry, into a scratch folder outside the repository:

    npm pack @iconify-json/noto @iconify-json/fluent-emoji-high-contrast
    for f in *.tgz; do mkdir "${f%.tgz}" && tar xzf "$f" -C "${f%.tgz}"; done

Only things are drawn: no flags, symbols, clocks, people or skin tones. Needs `cairosvg numpy pillow`.
"""

import argparse
import io
import json
import re
from pathlib import Path

import cairosvg
import numpy as np
from PIL import Image, ImageOps

CATEGORIES = ["Activities", "Animals & Nature", "Food & Drink", "Objects", "Smileys & Emotion", "Travel & Places"]
# Many faces differ by an eyebrow.
LEFT_OUT = re.compile(r"-oclock|o-clock|-thirty|flag|speech|button|zzz|(ing|ed|ous|ful|less|y)-face|face-(with|in|without)|cat-with")


def read(package):
    """The icons of a package by name, and how wide and high those are that do not say so; prints their licence."""
    licence = json.loads((package / "info.json").read_text())["license"]
    print(f"{package}: {licence['title']} ({licence.get('url', '')})")
    data = json.loads((package / "icons.json").read_text())
    return data["icons"], data.get("width", 16), data.get("height", 16)


def names(package, icons):
    categories = json.loads((package / "metadata.json").read_text())["categories"]
    found = {name for category in CATEGORIES for name in categories[category]}
    return sorted(name for name in found if name in icons and not LEFT_OUT.search(name))


def draw(icon, width, height, size, ground="white"):
    """Drawn four times as large, so that thin lines are averaged and not missed."""
    box = f"0 0 {icon.get('width', width)} {icon.get('height', height)}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}">'
    png = cairosvg.svg2png(
        f"{head}{icon['body']}</svg>".encode(), output_width=4 * size, output_height=4 * size, background_color=ground
    )
    return Image.open(io.BytesIO(png)).convert("RGB").resize((size, size), Image.Resampling.BOX)


def in_ink(image):
    """In one ink: what is dark becomes blue, and what is light gets paler less fast than it is light."""
    light = (np.asarray(ImageOps.grayscale(image)) / 255)[:, :, None] ** 1.8
    return Image.fromarray((255 * light + np.array([24, 40, 170]) * (1 - light)).round().astype(np.uint8))


def caption(name):
    return name.replace("-", " ")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("package", type=Path, help="the `package` folder of an unpacked @iconify-json package")
    p.add_argument("out", type=Path)
    p.add_argument("--size", type=int, default=64)
    p.add_argument("--only", nargs="*", help="draw these names only")
    p.add_argument("--from-file", type=Path, help="draw the names in this file, one a line")
    p.add_argument("--ink", action="store_true", help="in blue ink: the style that the quickstart teaches")
    a = p.parse_args()
    icons, *side = read(a.package)
    wanted = a.only or (a.from_file.read_text().split() if a.from_file else names(a.package, icons))
    a.out.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        image = draw(icons[name], *side, a.size)
        image = in_ink(image) if a.ink else image
        image.save(a.out / f"{name}.png", optimize=True)
        (a.out / f"{name}.txt").write_text(caption(name) + "\n")
    print(f"{len(wanted)} images in {a.out}")


if __name__ == "__main__":
    main()

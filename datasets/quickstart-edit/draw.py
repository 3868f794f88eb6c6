"""Draws the quickstart edits: folded paper shapes before and after an instruction.

A shape with a rim, a fold down its middle and a shadow, on a plain ground; simple enough for a tiny model to learn. Python's
standard library only; the same files come out every time.

    python3 datasets/quickstart-edit/draw.py

A shape is a signed distance: a function of x, y that is negative inside; a picture is 2 units wide, the origin is its middle and
y grows downwards.
"""

import json
import struct
import zlib
from math import atan2, cos, hypot, pi, sin
from pathlib import Path

SIDE = 64
INKS = {
    "red": (228, 72, 66), "blue": (58, 112, 214), "green": (56, 160, 98), "yellow": (244, 188, 60),
    "purple": (142, 92, 190),
}
GROUNDS = {"cream": (246, 236, 214), "sky": (196, 224, 240), "mint": (200, 232, 212), "pink": (248, 212, 214)}
BLACK, WHITE = (24, 24, 30), (255, 255, 255)

# --- shapes ---------------------------------------------------------------------------------------------------------


def circle(r):
    return lambda x, y: hypot(x, y) - r


def box(hx, hy, r):
    def distance(x, y):
        dx, dy = abs(x) - hx + r, abs(y) - hy + r
        return hypot(max(dx, 0), max(dy, 0)) + min(max(dx, dy), 0) - r

    return distance


def polygon(*points):
    edges = list(zip(points, points[1:] + points[:1]))

    def distance(x, y):
        nearest, inside = 1e9, False
        for (x1, y1), (x2, y2) in edges:
            dx, dy = x2 - x1, y2 - y1
            t = max(0, min(1, ((x - x1) * dx + (y - y1) * dy) / (dx * dx + dy * dy)))
            nearest = min(nearest, hypot(x - x1 - t * dx, y - y1 - t * dy))
            if (y1 > y) != (y2 > y) and x < x1 + (y - y1) / dy * dx:
                inside = not inside
        return -nearest if inside else nearest

    return distance


def regular(n, r, inner=None, turn=0.0):
    """A polygon of n corners, or a star if there is an inner radius."""
    radii = [r, inner] if inner else [r]
    count = n * len(radii)
    angles = [(turn + 2 * pi * k / count - pi / 2, radii[k % len(radii)]) for k in range(count)]
    return polygon(*[(q * cos(a), q * sin(a)) for a, q in angles])


def rounded(shape, r):
    return lambda x, y: shape(x, y) - r


def heart(x, y):
    x, y = abs(x), y + 0.06
    lobes = hypot(x - 0.27, y + 0.2) - 0.33
    point = polygon((0, 0.68), (-0.56, -0.02), (0, -0.3), (0.56, -0.02))(x, y)
    return min(lobes, point)


def flower(x, y):
    return hypot(x, y) - 0.5 - 0.14 * cos(5 * (atan2(y, x) + pi / 2))


SHAPES = {
    "circle": circle(0.58),
    "square": box(0.52, 0.52, 0.1),
    "triangle": rounded(polygon((0, -0.56), (0.58, 0.46), (-0.58, 0.46)), 0.07),
    "star": rounded(regular(5, 0.64, 0.28), 0.06),
    "heart": heart,
    "diamond": rounded(regular(4, 0.6), 0.06),
    "arrow": rounded(polygon((0, -0.6), (0.52, 0.0), (0.2, 0.0), (0.2, 0.54), (-0.2, 0.54), (-0.2, 0.0), (-0.52, 0.0)), 0.05),
    "flower": flower,
}

# --- edits: shape, ink, ground, instruction ---------------------------------------------------------------------------

EDITS = [
    ("circle", "red", "cream", "make it blue"), ("square", "yellow", "sky", "make it blue"),
    ("star", "green", "pink", "make it blue"), ("heart", "red", "mint", "make it blue"),
    ("diamond", "purple", "cream", "make it red"), ("triangle", "blue", "mint", "make it red"),
    ("flower", "yellow", "sky", "make it red"), ("arrow", "green", "cream", "make it red"),
    ("circle", "purple", "pink", "make it green"), ("square", "red", "mint", "make it green"),
    ("heart", "blue", "cream", "make it green"), ("triangle", "yellow", "sky", "make it green"),
    ("star", "yellow", "sky", "add a white border"), ("square", "blue", "pink", "add a white border"),
    ("flower", "purple", "mint", "add a white border"), ("diamond", "red", "sky", "add a white border"),
    ("circle", "green", "sky", "add a white border"),
    ("star", "red", "cream", "put it on a black background"), ("flower", "blue", "pink", "put it on a black background"),
    ("arrow", "yellow", "mint", "put it on a black background"), ("circle", "blue", "mint", "put it on a black background"),
    ("diamond", "green", "pink", "put it on a black background"),
    ("triangle", "red", "pink", "flip it upside down"), ("heart", "purple", "sky", "flip it upside down"),
    ("arrow", "blue", "sky", "flip it upside down"), ("star", "purple", "mint", "flip it upside down"),
    ("triangle", "green", "cream", "flip it upside down"),
    # A second edit of a picture above: both stay on one side of the held-out split.
    ("heart", "red", "mint", "flip it upside down"),
]


def picture(shape, ink, ground, border=False):
    """Rows of RGB: the shadow, the rim, and the two halves of the fold, each with an edge of one pixel."""
    distance = SHAPES[shape]
    rim, light = tuple(round(0.7 * c) for c in ink), tuple(round(c + 0.3 * (255 - c)) for c in ink)
    pixel = 2 / SIDE

    def over(under, color, depth, opacity=1.0):
        amount = max(0.0, min(1.0, 0.5 + depth / pixel)) * opacity
        return tuple(u + (c - u) * amount for u, c in zip(under, color))

    rows = []
    for py in range(SIDE):
        row = bytearray()
        for px in range(SIDE):
            x, y = (px + 0.5) * pixel - 1, (py + 0.5) * pixel - 1
            depth = -distance(x, y)
            color = over(ground, BLACK, -distance(x - 0.06, y - 0.06), 0.16)
            color = over(color, rim, depth)
            color = over(color, over(light, ink, x), depth - 0.07)
            if border:
                color = over(color, WHITE, max(abs(x), abs(y)) - 0.84)
            row += bytes(round(c) for c in color)
        rows.append(bytes(row))
    return rows


def edited(shape, ink, ground, instruction):
    """The picture after the instruction, and what it shows."""
    drawn, caption = (shape, INKS[ink], GROUNDS[ground]), f"a {ink} {shape} on {ground}"
    match instruction.split():
        case ["make", "it", other]:
            return picture(shape, INKS[other], GROUNDS[ground]), f"a {other} {shape} on {ground}"
        case ["add", *_]:
            return picture(*drawn, border=True), f"{caption} with a white border"
        case ["put", *_]:
            return picture(shape, INKS[ink], BLACK), f"a {ink} {shape} on black"
        case ["flip", *_]:
            return picture(*drawn)[::-1], f"{caption}, upside down"


def write_png(path, rows):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows), 9)) + chunk(b"IEND", b""))


def main():
    folder = Path(__file__).parent
    for below in ("original", "edited"):
        (folder / below).mkdir(exist_ok=True)
    lines = []
    for shape, ink, ground, instruction in EDITS:
        before, after = f"original/{ink}-{shape}.png", f"edited/{ink}-{shape}-{instruction.split()[-1]}.png"
        rows, caption = edited(shape, ink, ground, instruction)
        write_png(folder / before, picture(shape, INKS[ink], GROUNDS[ground]))
        write_png(folder / after, rows)
        columns = {"original": before, "edited": after, "instruction": instruction,
                   "original_caption": f"a {ink} {shape} on {ground}", "edited_caption": caption}
        lines.append(json.dumps(columns) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
